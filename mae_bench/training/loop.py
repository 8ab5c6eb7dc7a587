"""The training loop: counted steps, seeded per step, resumable after a kill."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightly.models.modules import MaskedVisionTransformerTIMM
from timm.layers import set_fused_attn, use_fused_attn
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mae_bench.errors import BenchError
from mae_bench.models.zoo import ARCHITECTURES, save_weights
from mae_bench.suites import fashion_mnist
from mae_bench.training.masked_autoencoder import MaskedAutoencoder
from mae_bench.training.recipes import RECIPES, Optimisation, Recipe

CLASSES = 10
VALIDATION_IMAGES_PER_CLASS = 500
CHECKPOINT_EVERY = 200
EVALUATIONS = 10

Report = Callable[[str], None]
Loss = Callable[[Tensor, Tensor], Tensor]


def train(recipe: Recipe, data: Path, out: Path, report: Report = print) -> Path:
    """Run ``recipe`` on the training images below ``data`` and write its weights, card and curve to ``out``.

    A run that was killed goes on from its last checkpoint in ``out``; the result is the same as that of
    a run that was not, because every random draw is keyed by (seed, phase, step).

    Raises:
        FileNotFoundError: the training images are not there; the message says how to get them.
        BenchError: a checkpoint in ``out`` is of another recipe.
    """
    images, labels = fashion_mnist.training_images(data)
    training, validation = split(labels, recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    architecture = ARCHITECTURES[recipe.architecture]
    model = architecture.build(CLASSES)
    curve: dict[str, Any] = {"recipe": asdict(recipe), "phases": {}}
    if recipe.pretraining is not None:
        autoencoder = MaskedAutoencoder(architecture.build(0), recipe.pretraining)
        pretraining = Phase("pretraining", recipe, recipe.pretraining.optimisation, out)
        curve["phases"]["pretraining"] = pretraining.run(
            autoencoder, lambda x, _: autoencoder(normalised(x)), images[training], labels[training], None, report
        )
        missing, unexpected = model.load_state_dict(autoencoder.encoder.state_dict(), strict=False)
        if unexpected or {key.split(".")[0] for key in missing} != {"head"}:
            raise RuntimeError(f"the pretrained encoder does not fit the classifier: {missing=}, {unexpected=}")

    elif isinstance(model, VisionTransformer):
        # initialised as masked pretraining initialises its encoder (other draws), so that pretraining is what differs
        MaskedVisionTransformerTIMM(vit=model)
        model.pos_embed.requires_grad_(True)

    optimisation = classification_of(recipe)
    smoothing = optimisation.label_smoothing

    def classification_loss(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(normalised(x)), y, label_smoothing=smoothing)

    def validation_top1() -> float:
        return top1(model, images[validation], labels[validation])

    phase = Phase("classification", recipe, optimisation, out)
    curve["phases"]["classification"] = phase.run(
        model, classification_loss, images[training], labels[training], validation_top1, report
    )
    model.half().float()  # the stored weights are half precision: measure what is shipped
    curve["validation_top1"] = validation_top1()
    curve["training_flops"] = training_flops(recipe)
    curve["parameters"] = sum(p.numel() for p in model.parameters())
    path = save_weights(model, recipe.name, recipe.architecture, out)
    (out / f"{recipe.name}.json").write_text(json.dumps(curve, indent=1) + "\n")
    (out / f"{recipe.name}.md").write_text(card(recipe, curve))
    report(f"{recipe.name}: validation top-1 {curve['validation_top1']:.4f}, written to {path}")
    return path


def split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and of the class-balanced validation images."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in range(CLASSES):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    held_out = rank < VALIDATION_IMAGES_PER_CLASS
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def normalised(images: Tensor) -> Tensor:
    return (images - fashion_mnist.MEAN[0]) / fashion_mnist.STD[0]


def augmented(images: Tensor, generator: torch.Generator, padding: int = 2) -> Tensor:
    """Random horizontal flip and random crop of the zero-padded image, one draw per image."""
    count, _, height, width = images.shape
    flip = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    padded = functional.pad(images, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(count)[:, None, None, None], 0, rows, columns]


def top1(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    model.eval()
    hits = 0
    with torch.inference_mode():
        for start in range(0, len(labels), 250):
            x = torch.from_numpy(images[start : start + 250]).unsqueeze(1).float() / 255
            hits += int((model(normalised(x)).argmax(1).numpy() == labels[start : start + 250]).sum())
    return hits / len(labels)


def image_flops(recipe: Recipe) -> tuple[int, int]:
    """FLOPs per image of (pretraining, classification), forward and backward, attention included."""
    architecture = ARCHITECTURES[recipe.architecture]
    images = torch.zeros(8, 1, 28, 28)

    def counted(loss: Callable[[], Tensor]) -> int:
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward(loss())
        return int(counter.get_total_flops()) // len(images)

    fused = use_fused_attn()
    set_fused_attn(False)  # the counter does not know every fused kernel; a module decides when it is built
    try:
        model = architecture.build(CLASSES)
        classification = counted(lambda: model(images).sum())
        if recipe.pretraining is None:
            return 0, classification
        autoencoder = MaskedAutoencoder(architecture.build(0), recipe.pretraining)
        return counted(lambda: autoencoder(images)), classification
    finally:
        set_fused_attn(bool(fused))


def training_flops(recipe: Recipe) -> int:
    """Counted FLOPs of the whole recipe (forward and backward, all phases)."""
    pretraining, classification = image_flops(recipe)
    steps = classification_of(recipe)
    total = steps.steps * steps.batch_size * classification
    if recipe.pretraining is not None:
        own = recipe.pretraining.optimisation
        total += own.steps * own.batch_size * pretraining
    return total


def classification_of(recipe: Recipe) -> Optimisation:
    """The classification phase, its steps bought from the compute budget where the recipe names one."""
    if recipe.equal_compute_to is None:
        return recipe.classification
    budget = training_flops(RECIPES[recipe.equal_compute_to])
    _, per_image = image_flops(recipe)
    steps = round(budget / (per_image * recipe.classification.batch_size))
    return Optimisation(**{**asdict(recipe.classification), "steps": steps})


class Phase:
    """One optimisation: its data order, its checkpoints, its curve."""

    def __init__(self, name: str, recipe: Recipe, optimisation: Optimisation, out: Path) -> None:
        self.name = name
        self.recipe = recipe
        self.optimisation = optimisation
        self.checkpoint = out / f"{recipe.name}.{name}.checkpoint"

    def run(
        self,
        module: nn.Module,
        loss_of: Loss,
        images: np.ndarray,
        labels: np.ndarray,
        validation_top1: Callable[[], float] | None,
        report: Report,
    ) -> dict[str, Any]:
        """Train ``module`` in place and return the curve; on return it holds the weights validation chose.

        Raises:
            BenchError: the checkpoint is of another recipe.
        """
        steps = self.optimisation.steps
        optimizer = create_optimizer_v2(
            module,
            opt="adamw",
            lr=self.optimisation.learning_rate,
            weight_decay=self.optimisation.weight_decay,
            betas=(0.9, 0.95 if self.name == "pretraining" else 0.999),
            layer_decay=self.optimisation.layer_decay,
        )
        base = [float(group.get("lr_scale", 1.0)) * self.optimisation.learning_rate for group in optimizer.param_groups]
        state: dict[str, Any] = {"step": 0, "curve": [], "best": -1.0, "chosen_step": steps, "chosen": None}
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            if state.pop("made_by", None) != self.made_by:
                raise BenchError(
                    f"{self.checkpoint} is of another recipe: remove it to start anew, or choose another "
                    "folder with --out"
                )
            module.load_state_dict(state.pop("module"))
            optimizer.load_state_dict(state.pop("optimizer"))
            report(f"{self.recipe.name} {self.name}: resumed at step {state['step']}")
        evaluate_at = {round(steps * k / EVALUATIONS) for k in range(1, EVALUATIONS + 1)}
        started, since, losses = time.perf_counter(), state["step"], []
        for step in range(state["step"], steps):
            module.train()
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * self.schedule(step)
            batch, generator = self.batch(step, len(labels))
            x = torch.from_numpy(images[batch]).unsqueeze(1).float() / 255
            loss = loss_of(augmented(x, generator), torch.from_numpy(labels[batch]))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            done = step + 1
            if done % CHECKPOINT_EVERY == 0 or done in evaluate_at or done == steps:
                point: dict[str, Any] = {"step": done, "loss": sum(losses) / len(losses)}
                losses.clear()
                if validation_top1 is not None and done in evaluate_at:
                    point["validation_top1"] = validation_top1()
                    if point["validation_top1"] > state["best"]:
                        chosen = {k: v.clone() for k, v in module.state_dict().items()}
                        state.update(best=point["validation_top1"], chosen_step=done, chosen=chosen)
                state["curve"].append(point)
                state["step"] = done
                rate = (done - since) * self.optimisation.batch_size / (time.perf_counter() - started)
                text = " ".join(f"{k} {v:.4f}" for k, v in point.items() if k != "step")
                report(f"{self.recipe.name} {self.name} {done}/{steps}: {text} ({rate:.0f} images/s)")
                self.save(
                    {
                        **state,
                        "made_by": self.made_by,
                        "module": module.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    }
                )
        if state["chosen"] is not None:
            module.load_state_dict(state["chosen"])
        return {"steps": steps, "chosen_step": state["chosen_step"], "curve": state["curve"]}

    @property
    def made_by(self) -> dict[str, Any]:
        """What a checkpoint must agree in before it is gone on with."""
        return {"recipe": asdict(self.recipe), "optimisation": asdict(self.optimisation)}

    def schedule(self, step: int) -> float:
        warmup = min(self.optimisation.warmup_steps, max(1, self.optimisation.steps // 10))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.optimisation.steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * progress))

    def batch(self, step: int, images: int) -> tuple[np.ndarray, torch.Generator]:
        """The images of a step and the generator of its augmentation: functions of (seed, phase, step) alone."""
        size = self.optimisation.batch_size
        per_epoch = images // size
        epoch, position = divmod(step, per_epoch)
        phase = 1 if self.name == "pretraining" else 2
        order = np.random.default_rng((self.recipe.seed, phase, epoch)).permutation(images)
        key = int(np.random.SeedSequence((self.recipe.seed, phase, epoch, position)).generate_state(1, np.uint64)[0])
        torch.manual_seed(key % 2**63)  # the masks of the autoencoder come from the global generator
        return order[position * size : (position + 1) * size], torch.Generator().manual_seed(key % 2**63)

    def save(self, state: dict[str, Any]) -> None:
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)


def card(recipe: Recipe, curve: dict[str, Any]) -> str:
    """The model card, in Markdown, made from the recipe and what was measured."""
    phases = "\n".join(
        f"* {name}: {phase['steps']:,} steps, weights of step {phase['chosen_step']:,}"
        for name, phase in curve["phases"].items()
    )
    held_out = VALIDATION_IMAGES_PER_CLASS * CLASSES
    return f"""# {recipe.name}

{recipe.summary[0].upper() + recipe.summary[1:]}.

* architecture: `{recipe.architecture}`, {curve["parameters"]:,} parameters, stored in half precision
* data: the 60,000 Fashion-MNIST training images (Zalando, MIT), {held_out:,} of them held out for validation
{phases}
* training FLOPs (forward and backward, counted): {curve["training_flops"]:.3e}
* validation top-1: {100 * curve["validation_top1"]:.2f} %
* seed: {recipe.seed}; made again by `mae-bench train {recipe.name}`

Meant for showing and testing this benchmark on a machine without a network; not for use as a classifier.
The learning curve is in `{recipe.name}.json`.
"""
