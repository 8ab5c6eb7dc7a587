"""Loaded models, one at a time."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import GeneratorType

import torch
from torch import Tensor, nn

from mae_bench.models import ModelError
from mae_bench.models.classifier import Classifier, untrained_head
from mae_bench.models.registry import ModelEntry
from mae_bench.models.taps import Taps, taps_of

BATCH_TOLERANCE = 0.05
"""Share of the largest logit by which the logits of an image may depend on what else is in its batch: more than any
rounding, and less than what dropout or a mean over the batch changes.
"""
LEAST_CHANGE = 1e-3
"""The same in logits, for a network whose logits are almost zero."""
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
"""What weights may be laid out in, beside ``"auto"``."""


@dataclass
class LoadedModel:
    """A model on its device, in evaluation mode. ``returned`` is what its fixture gave."""

    entry: ModelEntry
    returned: object
    classifier: Classifier
    taps: Taps
    outputs: int
    parameters: int
    weights_hash: str


class Pool:
    """Holds at most one model; asking for another releases the one before it. With ``compiles`` what lies between the
    taps of a model is compiled by torch; ``memory_format`` is one of :data:`MEMORY_FORMATS`.
    """

    def __init__(self, device: str, compiles: bool = False, memory_format: str = "auto") -> None:
        self.device = torch.device(device)
        self.compiles = compiles
        self.memory_format = memory_format
        self._loaded: LoadedModel | None = None
        self._cleanup: Generator[object, None, None] | None = None
        self._name = ""
        self._failed: dict[str, str] = {}  # the message alone: an error keeps its frames, and they the model

    @property
    def model(self) -> LoadedModel:
        """The model held.

        Raises:
            LookupError: none is.
        """
        if self._loaded is None:
            raise LookupError("no model is loaded: load one first")
        return self._loaded

    @property
    def held(self) -> str | None:
        """Name of the model that is loaded."""
        return None if self._loaded is None else self._loaded.entry.name

    def load(self, entry: ModelEntry, build: Callable[[], object]) -> LoadedModel:
        """The model of ``entry``, built unless it is the one held. ``build`` returns it, or a generator that
        yields it and then cleans up. A model that failed once fails again without being built.

        Raises:
            ModelError: ``build`` raised, or gave what cannot be evaluated.
        """
        if self._loaded is not None and self._loaded.entry.name == entry.name:
            return self._loaded
        self.release()
        self._name = entry.name
        if entry.name in self._failed:
            raise ModelError(self._failed[entry.name])
        try:
            self._loaded = self._build(entry, build)
        except Exception as error:
            refusal = error if isinstance(error, ModelError) else _unusable(entry.name, error)
            self._failed[entry.name] = str(refusal)
            try:
                self.release()
            except ModelError as another:
                refusal.add_note(str(another))
            if refusal is error:
                raise
            raise refusal from error
        return self._loaded

    def _build(self, entry: ModelEntry, build: Callable[[], object]) -> LoadedModel:
        try:
            returned = build()
            if isinstance(returned, GeneratorType):
                self._cleanup = returned
                returned = next(returned)
        except Exception as error:
            raise ModelError(f"model fixture {entry.name!r} raised {type(error).__name__}: {error}") from error
        classifier = Classifier.of(entry.name, returned)
        tensors = [*classifier.parameters(), *classifier.buffers()]
        elsewhere = {t.device for t in tensors} - {self.device, torch.device("cpu")}
        if elsewhere:
            raise ModelError(
                f"model {entry.name!r} has tensors on {', '.join(sorted(map(str, elsewhere)))}, but the run is on "
                f"{self.device}: leave it on the CPU (it is moved) or choose --mae-device"
            )
        spoilt = [name for name, value in classifier.module.named_parameters() if not bool(torch.isfinite(value).all())]
        if spoilt:
            raise ModelError(
                f"model {entry.name!r}: {len(spoilt)} of its tensors hold NaN or infinite weights, the first is "
                f"{spoilt[0]}; load them again, or take an earlier checkpoint of the training"
            )
        if entry.head and (untrained := untrained_head(classifier)) is not None:
            raise ModelError(
                f"model {entry.name!r}: {untrained}; load weights that hold one, or register an encoder with head=False"
            )
        classifier = classifier.to(self.device).eval()
        wanted = self.memory_format
        if wanted == "auto":  # kernels for half precision want channels last
            wanted = "channels_last" if self.device.type == "cuda" and is_convolutional(classifier.module) else ""
        if wanted:
            classifier = classifier.to(memory_format=MEMORY_FORMATS[wanted])
        example = _example(classifier).to(self.device)
        try:
            with torch.inference_mode():
                logits, alone = classifier(example), classifier(example[:1])
        except Exception as error:
            raise ModelError(
                f"model {entry.name!r} cannot evaluate images of {tuple(example.shape[1:])}: {error}; "
                "check input_size in its preprocessing"
            ) from error
        self._check_logits(entry.name, logits, alone)
        taps = taps_of(classifier.module, example)
        for piece in taps.untapped() if self.compiles else ():
            piece.forward = torch.compile(piece.forward)
        return LoadedModel(
            entry=entry,
            returned=returned,
            classifier=classifier,
            taps=taps,
            outputs=logits.shape[1],
            parameters=sum(p.numel() for p in classifier.parameters()),
            weights_hash=classifier.weights_hash(),
        )

    def _check_logits(self, name: str, logits: object, alone: object) -> None:
        """Raises:
        ModelError: ``logits`` of two images are none, or those of the first are not what it gets ``alone``.
        """
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 2 or not logits.shape[1]:
            shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ModelError(f"model {name!r} gave logits of shape {shape} for 2 images; expected (2, classes)")
        if not logits.is_floating_point():
            raise ModelError(f"model {name!r} gave logits of {logits.dtype}; expected floating-point numbers")
        if logits.device.type != self.device.type:
            raise ModelError(f"model {name!r} gave logits on {logits.device}; expected them on {self.device}")
        if not isinstance(alone, torch.Tensor) or alone.shape != logits[:1].shape:
            shape = tuple(alone.shape) if isinstance(alone, torch.Tensor) else type(alone).__name__
            raise ModelError(
                f"model {name!r} gave logits of shape {shape} for 1 image; expected {tuple(logits[:1].shape)}, as for "
                "every other number of images"
            )
        change = float((logits[:1] - alone).abs().max())
        if change > LEAST_CHANGE + BATCH_TOLERANCE * float(alone.abs().max()):
            raise ModelError(
                f"model {name!r} gives an image other logits in a batch than alone (they differ by {change:.3g}), so "
                "no row of it could be repeated: switch off what draws at random or normalises over the batch, such "
                "as functional dropout or batch_norm(training=True)"
            )

    def release(self) -> None:
        """Let the held model go and run its fixture's clean-up.

        Raises:
            ModelError: the clean-up raised, or yielded again.
        """
        if self._loaded is None and self._cleanup is None:
            return
        name = self._name
        self._loaded = None
        # a failed test keeps its frames, and with them the model, alive for post-mortem debuggers
        for attribute in ("last_type", "last_value", "last_traceback", "last_exc"):
            if hasattr(sys, attribute):
                delattr(sys, attribute)
        cleanup, self._cleanup = self._cleanup, None
        try:
            if cleanup is not None and next(cleanup, cleanup) is not cleanup:
                raise ModelError(f"model fixture {name!r} yields more than once")
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"model fixture {name!r} raised {type(error).__name__} in its clean-up: {error}"
            ) from error
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _example(classifier: Classifier) -> Tensor:
    """A black image and one of every brightness, (2, C, H, W) in [0, 1]."""
    shape = (classifier.channels, classifier.view.height, classifier.view.width)
    return torch.stack([torch.zeros(shape), torch.linspace(0, 1, math.prod(shape)).reshape(shape)])


def is_convolutional(module: nn.Module) -> bool:
    """Whether ``module`` convolves and does not attend.

    >>> is_convolutional(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())), is_convolutional(nn.Linear(2, 2))
    (True, False)
    """
    layers = list(module.modules())
    attends = any("attention" in type(layer).__name__.lower() for layer in layers)
    return not attends and any(isinstance(layer, nn.Conv2d) for layer in layers)


def _unusable(name: str, error: Exception) -> ModelError:
    return ModelError(f"model {name!r} cannot be used: {type(error).__name__}: {error}")
