"""Degradations of pixels: Gaussian blur beside the peers that have it, and all of them beside a copy of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mae_bench.cells import Level
from mae_bench.degradations import BUILT_IN, DEGRADATIONS, Degradation, Setting
from mae_bench.degradations.blur import gaussian_kernel
from mae_bench.degradations.convolution import toeplitz
from mae_bench.degradations.ladders import GRIDS, ladder
from mae_bench.perf.conditions import Conditions
from mae_bench.perf.measurement import FASTER, LONGER, Findings, Measurement
from mae_bench.perf.peers import present
from mae_bench.perf.timing import Work, interleaved, ratio

SECTION = "degradations"
OURS, COPY = "mae_bench", "a copy"
SIDE = 224
SIGMAS = {(3, 224): (1.0, 2.0, 4.0, 8.0), (3, 32): (0.5, 1.0, 2.0), (1, 28): (0.5, 1.0, 2.0)}
"""Standard deviations in pixels by channels and side of the images that they blur."""
AT_ONCE = "all in one product, multiples of the time of one after the other"
LEAST = 0.02
"""Seconds that a piece of work takes at least in a round, repeated if need be."""


def measured(conditions: Conditions) -> Findings:
    findings = Findings()
    on_gpu = conditions.device.type == "cuda"
    names = ("kornia", "torchvision") if on_gpu else ("kornia", "torchvision", "OpenCV", "scikit-image")
    peers = present(names, findings.notes)
    for (channels, side), sigmas in SIGMAS.items():
        images = conditions.either(16, 2) if side == SIDE else conditions.either(256, 32)
        batch = smooth_images(images, channels, side).to(conditions.device)
        for sigma in sigmas[-2:] if conditions.quick else sigmas:
            findings.measurements += _blur_measurements(conditions, batch, sigma, peers)
        if side != SIDE:
            findings.measurements.append(_at_once(conditions, batch, sigmas))
    findings.measurements += _against_a_copy(conditions)
    if not on_gpu:
        findings.notes.append(
            "memory comes as it does by default, to the peers as to this package, and is not kept from one call to the "
            "next, as it is in a session of pytest"
        )
    return findings


def _blur_measurements(conditions: Conditions, batch: Tensor, sigma: float, peers: dict[str, Any]) -> list[Measurement]:
    images, channels, side, _ = batch.shape
    work = {OURS: Work(gaussian_blur(batch, sigma), images), COPY: Work(batch.clone, images)}
    work |= {name: Work(peer_blur(name, module, batch, sigma), images) for name, module in peers.items()}
    seconds = interleaved(work, conditions.clock, conditions.rounds, LEAST)
    case = f"gaussian_blur-{Level(sigma)}, {channels}x{side}x{side}"
    goals = {"kornia": "blur kornia"} | ({"OpenCV": "blur opencv"} if sigma == 8 else {})
    if side != SIDE:
        goals = {"OpenCV": "blur small"}
    elif conditions.device.type == "cuda":
        goals = {COPY: "bandwidth"}
    method = DEGRADATIONS["gaussian_blur"].method(Level(sigma), (side, side), batch.device, side) or ""
    found = [Measurement.rate(SECTION, case, name, each, method * (name == OURS)) for name, each in seconds.items()]
    return found + [
        Measurement.of(SECTION, case, name, FASTER, ratio(each, seconds[OURS]), goals.get(name, ""))
        for name, each in seconds.items()
        if name != OURS
    ]


def _at_once(conditions: Conditions, batch: Tensor, sigmas: Sequence[float]) -> Measurement:
    """What it takes to blur by all ``sigmas`` in one product, as a multiple of one after the other."""
    images, channels, side, _ = batch.shape
    blurs = [gaussian_blur(batch, sigma) for sigma in sigmas]
    work = {OURS: Work(lambda: [blur() for blur in blurs], images), AT_ONCE: Work(stacked_blur(batch, sigmas), images)}
    seconds = interleaved(work, conditions.clock, conditions.rounds, LEAST)
    case = f"gaussian_blur by {len(sigmas)} sigmas, {channels}x{side}x{side}"
    return Measurement.of(SECTION, case, AT_ONCE, LONGER, ratio(seconds[AT_ONCE], seconds[OURS]))


def stacked_blur(batch: Tensor, sigmas: Sequence[float]) -> Callable[[], Tensor]:
    """(sigmas, B, C, H, W) by all ``sigmas`` in pixels: the columns in one product with all their matrices, one below
    the other, which is read once, and the rows of each in a product of its own.
    """
    images, channels, side, _ = batch.shape
    kernels = [gaussian_kernel(sigma, math.ceil(4 * sigma)) for sigma in sigmas]
    matrices = torch.stack([toeplitz(side, kernel, "mirror", batch.device) for kernel in kernels])

    def blur() -> Tensor:
        columns = batch.reshape(-1, side) @ matrices.view(-1, side).mT
        columns = columns.view(images * channels, side, len(sigmas), side).permute(2, 0, 1, 3)
        blurred = matrices[:, None] @ columns
        return blurred.view(len(sigmas), images, channels, side, side)

    return blur


def gaussian_blur(batch: Tensor, sigma: float) -> Callable[[], Tensor]:
    """Ours, of ``sigma`` pixels."""
    setting = setting_of(len(batch), batch.device, side=batch.shape[-1])
    return lambda: DEGRADATIONS["gaussian_blur"].apply(batch, Level(sigma), setting)


def peer_blur(name: str, module: Any, batch: Tensor, sigma: float) -> Callable[[], object]:
    """The same function by a peer: cut at four standard deviations, borders reflected without repeating the edge."""
    side = 2 * math.ceil(4 * sigma) + 1
    if name == "kornia":
        return lambda: module.filters.gaussian_blur2d(batch, side, (sigma, sigma), border_type="reflect")
    if name == "torchvision":
        from torchvision.transforms.v2.functional import gaussian_blur as blurred

        return lambda: blurred(batch, [side, side], [sigma, sigma])
    pictures = [image.movedim(0, -1).contiguous().numpy() for image in batch]
    if name == "OpenCV":
        border = module.BORDER_REFLECT_101
        return lambda: [module.GaussianBlur(image, (side, side), sigma, borderType=border) for image in pictures]
    gaussian: Any = import_module("skimage.filters").gaussian
    return lambda: [gaussian(image, sigma, mode="mirror", truncate=4.0, channel_axis=-1) for image in pictures]


def _against_a_copy(conditions: Conditions) -> list[Measurement]:
    """Every degradation of pixels at the middle level of its ladder."""
    images = conditions.either(8, 1)
    batch = smooth_images(images, 3, SIDE).to(conditions.device)
    setting = setting_of(images, conditions.device)
    kinds = pixel_degradations()
    work = {COPY: Work(batch.clone, images)}
    work |= {f"{kind.name}-{level}": Work(_applied(kind, batch, level, setting), images) for kind, level in kinds}
    methods = {f"{kind.name}-{level}": kind.method(level, (SIDE, SIDE), batch.device, SIDE) for kind, level in kinds}
    rounds = conditions.either(conditions.rounds, 1)
    seconds = interleaved(work, conditions.clock, rounds, 0 if conditions.quick else LEAST / 4)
    copy = seconds.pop(COPY)
    found = []
    for name, each in seconds.items():
        case = f"{name}, 3x{SIDE}x{SIDE}"
        found += [
            Measurement.rate(SECTION, case, OURS, each, methods[name] or ""),
            Measurement.of(SECTION, case, COPY, LONGER, ratio(each, copy)),
        ]
    return found


def pixel_degradations() -> list[tuple[Degradation, Level]]:
    """Every degradation that changes pixels, with the middle level of its ladder at 224 pixels."""
    kinds = [kind for kind in BUILT_IN if kind.family != "clean" and not kind.on_tokens]
    return [(kind, ladder(kind, SIDE)[2]) for kind in kinds]


def _applied(kind: Degradation, batch: Tensor, level: Level, setting: Setting) -> Callable[[], Tensor]:
    return lambda: kind.apply(batch, level, setting)


def smooth_images(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """(count, channels, side, side) in [0, 1] in steps of 1/255, with smooth parts and edges, as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 12, 12, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return (images * 255).round() / 255


def setting_of(images: int, device: torch.device, seed: int = 0, side: int = SIDE) -> Setting:
    """A setting of natural images with keys, and with salience, that are made up."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(-(2**62), 2**62, (images,), generator=generator)
    salience = torch.rand(images, GRIDS[side] ** 2, generator=generator)
    salience /= salience.sum(1, keepdim=True)
    return Setting(keys.to(device), seed, side, (0.485, 0.456, 0.406), salience.to(device))
