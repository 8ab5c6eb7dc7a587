"""The training loop: counted steps, every draw keyed by (seed, phase, step), resumable after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from mae_bench.atomic import written_whole
from mae_bench.errors import BenchError
from mae_bench.training.data import TrainingData, augmented
from mae_bench.training.recipes import Optimisation, Pretraining, Recipe

CHECKPOINT_EVERY = 500
EVALUATIONS = 10

Report = Callable[[str], None]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Loop:
    """One optimisation: its data order, its checkpoints, its curve.

    ``at_share`` is called with 0.1, 0.2, ... 1.0 of the steps done and returns what the curve shall record then.
    """

    recipe: Recipe
    optimisation: Optimisation
    data: TrainingData
    out: Path
    report: Report
    at_share: Callable[[float], dict[str, float]]

    @property
    def checkpoint(self) -> Path:
        return self.out / f"{self.recipe.name}.checkpoint"

    def run(self, module: nn.Module, loss_of: Loss) -> list[dict[str, float]]:
        """Train ``module`` in place and return the curve.

        Raises:
            BenchError: the checkpoint is of another recipe, or the loss is no longer finite.
        """
        steps = self.optimisation.steps
        optimizer = create_optimizer_v2(
            module,
            opt="adamw",
            lr=self.optimisation.learning_rate,
            weight_decay=self.optimisation.weight_decay,
            betas=(0.9, self.optimisation.beta2),
            layer_decay=self.optimisation.layer_decay,
        )
        base = [float(group.get("lr_scale", 1.0)) * self.optimisation.learning_rate for group in optimizer.param_groups]
        state: dict[str, Any] = {"step": 0, "curve": []}
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            if state.pop("made_by", None) != self.made_by:
                raise BenchError(
                    f"{self.checkpoint} is of another recipe: remove it to start anew, or choose another "
                    "folder with --out"
                )
            module.load_state_dict(state.pop("module"))
            optimizer.load_state_dict(state.pop("optimizer"))
            self.report(f"{self.recipe.name}: resumed at step {state['step']}")
        shares = {round(steps * k / EVALUATIONS): k / EVALUATIONS for k in range(1, EVALUATIONS + 1)}
        started, since, losses = time.perf_counter(), state["step"], []
        for step in range(state["step"], steps):
            module.train()
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * self.schedule(step)
            positions, generator = self.batch(step)
            images, labels = self.data.batch(positions)
            images = self.data.normalised(augmented(images, generator, self.recipe.shift))
            loss = loss_of(images, labels)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            done = step + 1
            if done % CHECKPOINT_EVERY == 0 or done in shares:
                point: dict[str, float] = {"step": done, "loss": sum(losses) / len(losses)}
                if not math.isfinite(point["loss"]):
                    raise BenchError(f"{self.recipe.name}: the loss is {point['loss']} at step {done}: lower the rate")
                losses.clear()
                if done in shares:
                    point |= self.at_share(shares[done])
                state["curve"].append(point)
                state["step"] = done
                rate = (done - since) * self.optimisation.batch_size / (time.perf_counter() - started)
                text = " ".join(f"{k} {v:.4f}" for k, v in point.items() if k != "step")
                self.report(f"{self.recipe.name} {done}/{steps}: {text} ({rate:.0f} images/s)")
                self.save(
                    {
                        **state,
                        "made_by": self.made_by,
                        "module": module.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    }
                )
        curve: list[dict[str, float]] = state["curve"]
        return curve

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

    def batch(self, step: int) -> tuple[np.ndarray, torch.Generator]:
        """The images of a step and the generator of its augmentation: functions of (seed, phase, step) alone."""
        size = self.optimisation.batch_size
        images = self.data.training
        epoch, position = divmod(step, len(images) // size)
        phase = 1 if isinstance(self.recipe, Pretraining) else 2
        order = np.random.default_rng((self.recipe.seed, phase, epoch)).permutation(images)
        key = int(np.random.SeedSequence((self.recipe.seed, phase, epoch, position)).generate_state(1, np.uint64)[0])
        torch.manual_seed(key % 2**63)  # the masks of the autoencoder come from the global generator
        return order[position * size : (position + 1) * size], torch.Generator().manual_seed(key % 2**63)

    def save(self, state: dict[str, Any]) -> None:
        with written_whole(self.checkpoint) as file:
            torch.save(state, file)
