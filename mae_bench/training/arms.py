"""How the model of each recipe is made: weights, card and curve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightly.models.modules import MaskedVisionTransformerTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from mae_bench.atomic import written_whole
from mae_bench.errors import BenchError
from mae_bench.models.zoo import ARCHITECTURES, WEIGHTS, digest, load_weights, save_weights
from mae_bench.training.compute import optimisation_of, training_flops
from mae_bench.training.data import TrainingData
from mae_bench.training.loop import Loop, Report
from mae_bench.training.masked_autoencoder import MaskedAutoencoder
from mae_bench.training.recipes import (
    SEARCHED_RATES,
    FineTuning,
    LinearProbe,
    Pretraining,
    Recipe,
    Supervised,
    recipe_named,
)

TRAJECTORY = (0.2, 0.4, 0.6, 0.8)
"""Shares of a training with labels after which its weights are kept beside the final ones."""

COMMANDS = {"mae_pretrained": "pretrain", "mae_ft": "finetune", "mae_probe": "probe", "cnn": "cnn"}


def train(recipe: Recipe, data: Path, out: Path, report: Report = print) -> Path:
    """Run ``recipe`` on the training images below ``data`` and write its weights, card and curve to ``out``.

    A run that was killed goes on from its last checkpoint in ``out``; the result is the same as that of
    a run that was not. Trainings with labels leave their weights at :data:`TRAJECTORY` in ``out/trajectories``.

    Raises:
        FileNotFoundError: the training images are not there; the message says how to get them.
        BenchError: a checkpoint in ``out`` is of another recipe, or the encoder to start from is not there.
    """
    return _train(recipe, TrainingData.load(recipe.suite, data), out, report)


def _train(recipe: Recipe, data: TrainingData, out: Path, report: Report) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    record: dict[str, Any] = {"recipe": {"kind": type(recipe).__name__, **asdict(recipe)}}
    if isinstance(recipe, Pretraining):
        model, made = _pretrained(recipe, data, out, report)
    elif isinstance(recipe, LinearProbe):
        model, made = _probed(recipe, data, out, report)
    else:
        assert isinstance(recipe, FineTuning | Supervised)
        model, made = _classifier(recipe, data, out, report)
    record |= made
    model.half().float()  # the stored weights are half precision: measure what is shipped
    if not isinstance(recipe, Pretraining):
        record["validation_top1"] = top1(model, data)
    record["training_flops"] = training_flops(recipe, len(data.training))
    record["parameters"] = sum(p.numel() for p in model.parameters())
    path = save_weights(model, recipe.name, recipe.architecture, out)
    record["sha256"] = digest(path)
    with written_whole(out / f"{recipe.name}.json") as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())
    with written_whole(out / f"{recipe.name}.md") as file:
        file.write(card(recipe, record).encode())
    measured = f"validation top-1 {record['validation_top1']:.4f}, " if "validation_top1" in record else ""
    report(f"{recipe.name}: {measured}written to {path}")
    return path


def _pretrained(recipe: Pretraining, data: TrainingData, out: Path, report: Report) -> tuple[nn.Module, dict[str, Any]]:
    encoder = ARCHITECTURES[recipe.architecture].build(0)
    autoencoder = MaskedAutoencoder(encoder, recipe)
    loop = Loop(recipe, recipe.optimisation, data, out, report, at_share=lambda _: {})
    curve = loop.run(autoencoder, lambda images, _: autoencoder(images))
    with _fixed_masks():
        loss = validation_loss(autoencoder, data)
    return encoder, {"steps": recipe.optimisation.steps, "curve": curve, "validation_loss": loss}


def _classifier(
    recipe: FineTuning | Supervised, data: TrainingData, out: Path, report: Report
) -> tuple[nn.Module, dict[str, Any]]:
    architecture = ARCHITECTURES[recipe.architecture]
    model = architecture.build(data.classes)
    if isinstance(recipe, FineTuning):
        _start_from(model, recipe.start, out)
    elif isinstance(model, VisionTransformer):
        # initialised as masked pretraining initialises its encoder (other draws), so that pretraining is what differs
        MaskedVisionTransformerTIMM(vit=model)
        model.pos_embed.requires_grad_(True)
    optimisation = optimisation_of(recipe)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(model(images), labels, label_smoothing=optimisation.label_smoothing)

    def at_share(share: float) -> dict[str, float]:
        if share in TRAJECTORY:
            folder = out / "trajectories"
            folder.mkdir(exist_ok=True)
            save_weights(model, f"{recipe.name}@{share:.1f}", recipe.architecture, folder)
        return {"validation_top1": top1(model, data)}

    curve = Loop(recipe, optimisation, data, out, report, at_share).run(model, loss)
    return model, {"steps": optimisation.steps, "curve": curve}


def _probed(recipe: LinearProbe, data: TrainingData, out: Path, report: Report) -> tuple[nn.Module, dict[str, Any]]:
    model = ARCHITECTURES[recipe.architecture].build(data.classes)
    _start_from(model, recipe.start, out)
    assert isinstance(model, VisionTransformer)
    assert isinstance(model.head, nn.Linear)
    training, validation = (_features(model, data, part) for part in (data.training, data.validation))
    labels = torch.from_numpy(data.labels)
    trials = []
    best = -1.0
    for penalty in recipe.penalties:
        weight, bias = linear_probe(training, labels[data.training], data.classes, penalty)
        predicted = (validation @ weight.T + bias).argmax(1)
        rate = float((predicted == labels[data.validation]).double().mean())
        trials.append({"penalty": penalty, "validation_top1": rate})
        report(f"{recipe.name}: penalty {penalty:g} validation_top1 {rate:.4f}")
        if rate > best:
            best = rate
            with torch.no_grad():
                model.head.weight.copy_(weight)
                model.head.bias.copy_(bias)
    return model, {"steps": 0, "curve": [], "trials": trials}


def linear_probe(features: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight (classes, D) and bias of the logistic regression of ``labels`` on ``features`` (N, D), standardised,
    with ``penalty`` times the squared weights added to the mean loss; L-BFGS from zero.
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    x = (features - mean) / std
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(x @ weight.T + bias, labels) + penalty * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        folded = weight / std
        return folded, bias - folded @ mean


def search(recipe: FineTuning | Supervised, data: Path, out: Path, report: Report = print) -> Path:
    """Train ``recipe`` at each of :data:`SEARCHED_RATES` for a quarter of its steps (and, where it starts from an
    encoder, of that encoder's) in ``out/search``, and record validation top-1 in ``out/<suite>_<arm>_search.json``.

    Raises:
        As :func:`train`.
    """
    images = TrainingData.load(recipe.suite, data)
    optimisation = optimisation_of(recipe)
    trying = out / "search"
    quarter: dict[str, Any] = {}
    if isinstance(recipe, FineTuning):
        whole = recipe_named(recipe.start)
        assert isinstance(whole, Pretraining)
        steps = replace(whole.optimisation, steps=whole.optimisation.steps // 4)
        encoder = replace(whole, name=f"{whole.name}_quarter", optimisation=steps)
        if not (trying / f"{encoder.name}.safetensors").exists():
            _train(encoder, images, trying, report)
        quarter["start"] = encoder.name
    else:
        quarter["equal_compute_to"] = None
    trials = []
    for rate in SEARCHED_RATES:
        tried = replace(optimisation, steps=optimisation.steps // 4, learning_rate=rate)
        torch.manual_seed(recipe.seed)
        named = replace(recipe, name=f"{recipe.name}_quarter_{rate:g}", optimisation=tried, **quarter)
        trying.mkdir(parents=True, exist_ok=True)
        _, made = _classifier(named, images, trying, report)
        validation = made["curve"][-1]["validation_top1"]
        trials.append({"learning_rate": rate, "validation_top1": validation, **made})
    best = max(trials, key=lambda trial: float(trial["validation_top1"]))
    found = {"arm": recipe.arm, "suite": recipe.suite, "seed": recipe.seed, "best": best["learning_rate"]}
    path = out / f"{recipe.suite}_{recipe.arm}_search.json"
    with written_whole(path) as file:
        file.write((json.dumps({**found, "trials": trials}, indent=1) + "\n").encode())
    report(f"{recipe.arm}: best learning rate {best['learning_rate']:g}, written to {path}")
    return path


def top1(model: nn.Module, data: TrainingData) -> float:
    """Top-1 on the validation images."""
    model.eval()
    hits = 0
    with torch.inference_mode():
        for start in range(0, len(data.validation), 250):
            images, labels = data.batch(data.validation[start : start + 250])
            hits += int((model(data.normalised(images)).argmax(1) == labels).sum())
    return hits / len(data.validation)


def validation_loss(autoencoder: nn.Module, data: TrainingData) -> float:
    """Mean reconstruction loss on the validation images."""
    autoencoder.eval()
    losses, weights = [], []
    with torch.inference_mode():
        for start in range(0, len(data.validation), 250):
            images, _ = data.batch(data.validation[start : start + 250])
            losses.append(float(autoencoder(data.normalised(images))))
            weights.append(len(images))
    return float(np.average(losses, weights=weights))


@contextmanager
def _fixed_masks() -> Iterator[None]:
    """The same masks whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _start_from(model: nn.Module, start: str, out: Path) -> None:
    """Load the encoder called ``start``, from ``out`` or as bundled, into the classifier ``model``.

    Raises:
        BenchError: there is no such encoder, or it is of another architecture.
    """
    for path in (out / f"{start}.safetensors", WEIGHTS / f"{start}.safetensors"):
        if path.exists():
            break
    else:
        raise BenchError(f"the encoder {start} is neither in {out} nor bundled: make it with mae-bench train pretrain")
    missing, unexpected = model.load_state_dict(load_weights(path).state_dict(), strict=False)
    if unexpected or {key.split(".")[0] for key in missing} != {"head"}:
        raise BenchError(f"{path}: the encoder does not fit the classifier: {missing=}, {unexpected=}")


def _features(model: VisionTransformer, data: TrainingData, positions: np.ndarray) -> Tensor:
    """(N, D): what the head of ``model`` reads."""
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(positions), 250):
            images, _ = data.batch(positions[start : start + 250])
            parts.append(model.forward_head(model.forward_features(data.normalised(images)), pre_logits=True))
    return torch.cat(parts).clone()


def card(recipe: Recipe, record: dict[str, Any]) -> str:
    """The model card, in Markdown, made from the recipe and what was measured."""
    command = COMMANDS.get(recipe.arm, "supervised")
    if recipe.arm == "supervised_ep":
        command += " --equal epochs"
    again = f"mae-bench train {command} --suite {recipe.suite} --seed {recipe.seed}"
    held_out = {"fashion_mnist": "Fashion-MNIST (Zalando, MIT)", "cifar10": "CIFAR-10"}[recipe.suite]
    lines = [
        f"# {recipe.name}",
        "",
        f"{recipe.summary[0].upper() + recipe.summary[1:]}.",
        "",
        f"* architecture: `{recipe.architecture}`, {record['parameters']:,} parameters, stored in half precision",
        f"* data: the training images of {held_out}, 500 of each class held out for validation",
    ]
    start = getattr(recipe, "start", None)
    if start is not None:
        lines.append(f"* starts from: `{start}`")
    if record["steps"]:
        lines.append(f"* {record['steps']:,} steps; the weights are those of the last")
    lines.append(
        f"* training FLOPs (forward and backward, counted, pretraining included): {record['training_flops']:.3e}"
    )
    if "validation_top1" in record:
        lines.append(f"* validation top-1: {100 * record['validation_top1']:.2f} %")
    if "validation_loss" in record:
        lines.append(
            f"* validation loss (mean squared error of normalised hidden patches): {record['validation_loss']:.4f}"
        )
    lines += [
        f"* seed: {recipe.seed}; made again by `{again}`",
        "",
        "Meant for showing and testing this benchmark on a machine without a network; not for use as a classifier.",
        f"The learning curve is in `{recipe.name}.json`.",
    ]
    return "\n".join(lines) + "\n"
