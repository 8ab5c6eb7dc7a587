"""What degradations and forward passes cost on a device: medians of interleaved rounds within one run, as ratios."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import timm
import torch
from torch import Tensor

from mae_bench.cells import Level
from mae_bench.degradations import EVERY, Degradation, Setting
from mae_bench.degradations.ladders import GRIDS, ladder
from mae_bench.markup import markdown_text

ARCHITECTURES = ("vit_tiny_patch16_224", "vit_base_patch16_224", "resnet50")
"""timm's names; their weights are random, on which speed does not depend."""
YARDSTICK = "vit_base_patch16_224"
SIDE = 224


@dataclass(frozen=True)
class Timing:
    """Seconds that a batch of ``images`` took: the median of the rounds, and the least and the most."""

    name: str
    images: int
    median: float
    low: float
    high: float

    @property
    def images_per_second(self) -> float:
        return self.images / self.median


def timed(work: dict[str, Callable[[], object]], images: int, device: torch.device, rounds: int) -> list[Timing]:
    """Timings of pieces of ``work``, each done once in every round, so that what slows the machine slows all; two
    rounds before the first are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(-2, rounds):
        for name, do in work.items():
            _finish(device)
            started = time.perf_counter()
            do()
            _finish(device)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - started)
    return [Timing(name, images, statistics.median(s), min(s), max(s)) for name, s in seconds.items()]


def degradation_timings(device: torch.device, images: int, side: int = SIDE, rounds: int = 5) -> list[Timing]:
    """How long each degradation of pixels takes at its middle level on a batch of ``images`` of ``side`` pixels."""
    batch = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    setting = setting_of(images, device)

    def work(kind: Degradation) -> Callable[[], Tensor]:
        level: Level = ladder(kind, SIDE)[2]
        return lambda: kind.apply(batch, level, setting)

    kinds = [kind for kind in EVERY if kind.family != "clean" and not kind.on_tokens]
    return timed({f"{kind.name}-{ladder(kind, SIDE)[2]}": work(kind) for kind in kinds}, images, device, rounds)


def setting_of(images: int, device: torch.device, seed: int = 0) -> Setting:
    """A setting of natural images with keys, and with salience, that are made up."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(-(2**62), 2**62, (images,), generator=generator)
    salience = torch.rand(images, GRIDS[SIDE] ** 2, generator=generator)
    salience /= salience.sum(1, keepdim=True)
    return Setting(keys.to(device), seed, SIDE, (0.485, 0.456, 0.406), salience.to(device))


def forward_timings(device: torch.device, images: int, rounds: int = 5) -> list[Timing]:
    """How long a forward pass of each of :data:`ARCHITECTURES` takes in float32 and under bfloat16 autocast, and of the
    CNN with channels last too.
    """
    work: dict[str, Callable[[], object]] = {}
    batch = torch.rand(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    for name in ARCHITECTURES:
        model = timm.create_model(name).to(device).eval()
        work[f"{name} float32"] = _forward(model, batch, torch.float32)
        work[f"{name} bfloat16"] = _forward(model, batch, torch.bfloat16)
        if name.startswith("resnet"):
            last = timm.create_model(name).to(device).eval().to(memory_format=torch.channels_last)
            work[f"{name} bfloat16, channels last"] = _forward(
                last, batch.to(memory_format=torch.channels_last), torch.bfloat16
            )
    return timed(work, images, device, rounds)


def _forward(model: torch.nn.Module, batch: Tensor, dtype: torch.dtype) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode(), torch.autocast(batch.device.type, dtype, enabled=dtype != torch.float32):
            return model(batch)

    return run


def page(device: torch.device, images: int, rounds: int = 5) -> str:
    """Both tables as Markdown, with what they were measured on; a degradation beside the forward pass in bfloat16 of
    the :data:`YARDSTICK`.
    """
    from tabulate import tabulate

    # float32 shall mean float32, as it does where cells are evaluated
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    forward = forward_timings(device, images, rounds)
    degraded = degradation_timings(device, images, rounds=rounds)
    yardstick = next(t for t in forward if t.name == f"{YARDSTICK} bfloat16")
    versions = ", ".join(f"{name} {version(name)}" for name in ("mae_bench", "torch", "timm", "kornia"))
    processor = platform.processor() or platform.machine()
    where = markdown_text(torch.cuda.get_device_name(device) if device.type == "cuda" else processor)
    header = ["", "images/s", "ms per batch", "least to most", f"of {YARDSTICK} bfloat16"]

    def table(timings: list[Timing]) -> str:
        lines = [
            (
                t.name,
                f"{t.images_per_second:,.0f}",
                f"{1000 * t.median:.2f}",
                f"{1000 * t.low:.2f} to {1000 * t.high:.2f}",
                f"{t.median / yardstick.median:.3f}",
            )
            for t in timings
        ]
        return tabulate(lines, headers=header, tablefmt="github", disable_numparse=True)

    return (
        f"# Timings on {where}\n\nBatches of {images} images of {SIDE} pixels, medians of {rounds} interleaved rounds; "
        f"random weights. {versions}; {torch.get_num_threads()} threads.\n\n## Forward passes\n\n{table(forward)}\n\n"
        f"## Degradations, at their middle level\n\n{table(degraded)}\n"
    )


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
