"""Models as a caller gives them: modules, or names of those that are bundled or published."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mae_bench.models import ModelError
from mae_bench.models.registry import ModelEntry

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Subject:
    """A model to evaluate: its entry, what builds it, and the module itself where the caller holds it."""

    entry: ModelEntry
    build: Callable[[], object]
    module: nn.Module | None = None


def subjects_of(model: Any) -> list[Subject]:
    """Those that ``model`` stands for: a module, the name of a bundled model or of one of timm's pretrained ones, a
    sequence of these, or a mapping from names to them. A module without a name is called as timm calls its
    architecture, else by its class. No weights are read before a subject is built.

    Raises:
        ModelError: one is no model, a name is unknown, or two have the same.

    >>> [subject.entry.name for subject in subjects_of({"mine": "mae_ft_s0"})]
    ['mine']
    """
    if isinstance(model, Mapping):
        named = [(str(name), one) for name, one in model.items()]
    else:
        several = model if isinstance(model, Sequence) and not isinstance(model, str) else [model]
        named = [(one if isinstance(one, str) else _name_of(one), one) for one in several]
    if not named:
        raise ModelError("no model was given: give one, or several as a list or as {name: model}")
    names = [name for name, _ in named]
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise ModelError(f"two models are called {twice!r}: give them as {{name: model}}")
    return [_by_name(name, one) if isinstance(one, str) else _held(name, one) for name, one in named]


def _name_of(module: Any) -> str:
    """timm's name of the architecture, else that of the class."""
    from mae_bench.models.classifier import Classifier

    network = module.module if isinstance(module, Classifier) else module
    config = getattr(network, "pretrained_cfg", None)
    known = config.get("architecture") if isinstance(config, dict) else None
    return known or type(network).__name__


def _held(name: str, module: Any) -> Subject:
    from torch import nn

    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{module!r} is no model: give a timm model, Classifier(module, mean=..., std=..., input_size=...), or the "
            "name of a bundled model or of one of timm's"
        )
    return Subject(_entry(name), lambda: module, module)


def _by_name(name: str, called: str) -> Subject:
    """The bundled or published model that is ``called`` so, under ``name``."""
    import timm

    from mae_bench.models.checkpoints import pretrained
    from mae_bench.models.zoo import bundled, cards

    bundle = {card.name: card for card in cards()}
    if called in bundle:
        card = bundle[called]
        if card.validation_top1 is None:
            raise ModelError(f"bundled model {called!r} is an encoder, which classifies nothing: its probes do")
        entry = _entry(name, arm=card.arm, training_seed=card.seed) if name == called else _entry(name)
        return Subject(entry, lambda: bundled(called))
    published = timm.list_models(pretrained=True)
    if called not in published and called not in timm.list_models():
        classifiers = [card.name for card in bundle.values() if card.validation_top1 is not None]
        close = difflib.get_close_matches(called, [*classifiers, *published], n=1)
        hint = f"did you mean {close[0]}?" if close else "timm.list_models(pretrained=True) lists timm's"
        raise ModelError(f"unknown model {called!r}: {hint} Bundled: {', '.join(classifiers)}")
    return Subject(_entry(name), lambda: pretrained(called))


def _entry(name: str, **more: Any) -> ModelEntry:
    """Raises:
    ModelError: a model cannot be called so.
    """
    try:
        return ModelEntry(name, **more)
    except ModelError as error:
        error.add_note("Give the model another name, as {name: model}.")
        raise
