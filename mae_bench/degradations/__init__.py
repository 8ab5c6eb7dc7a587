"""Degradations: what each is called, its family and its domain; the pixels are changed in the modules beside this one.

Importing this module imports no torch, so that a matrix can be listed cheaply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mae_bench.cells import Level, near_name

if TYPE_CHECKING:
    from torch import Tensor

DOMAINS: dict[str, tuple[float, float]] = {
    "px": (0.0, math.inf),
    "fraction of area": (0.0, 1.0),
    "fraction of tokens": (0.0, 1.0),
    "none": (0.0, 0.0),
}
"""Unit of a level to the closed range that it may lie in."""


@dataclass(frozen=True)
class Setting:
    """What a degradation may know of a batch beside its pixels.

    ``keys`` (B,) int64 are the first 64 bits of the images' content hashes, ``seed`` is the run's,
    ``reference_size`` is the image side for which levels in pixels are meant, ``mean`` the suite's mean
    pixel per channel in [0, 1].
    """

    keys: Tensor
    seed: int
    reference_size: int
    mean: tuple[float, ...]


@dataclass(frozen=True)
class Degradation:
    """One way to degrade images. ``version`` changes whenever the same level gives other pixels."""

    name: str
    family: str
    unit: str
    version: int = 1

    @property
    def on_tokens(self) -> bool:
        """Whether tokens are taken from the model's sequence, instead of pixels being changed."""
        return self.unit == "fraction of tokens"

    def check(self, level: Level) -> None:
        """Raises:
        ValueError: ``level`` is outside the domain of this degradation.
        """
        low, high = DOMAINS[self.unit]
        if level.severity or not (low <= level.value <= high and math.isfinite(level.value)):
            upper = "any finite number" if math.isinf(high) else f"{high:g}"
            raise ValueError(f"{self.name}: level {level} is outside its domain, {low:g} to {upper} ({self.unit})")

    def apply(self, images: Tensor, level: Level, setting: Setting) -> Tensor:
        """``images`` (B, C, H, W) in [0, 1] degraded at ``level``; shape, dtype and range are kept. What acts on the
        model's tokens leaves them as they are.

        Raises:
            ValueError: the level is outside the domain.
        """
        self.check(level)
        if level.value == 0 or self.on_tokens:
            return images
        module: Any = import_module(f"mae_bench.degradations.{self.family}")
        degraded: Tensor = module.degrade(self.name, images, level.value, setting)
        return degraded


PATTERNS = ("random_patch", "random_patch_offset", "center_block", "border", "random_block", "stripes")
FILLS = ("black", "mean", "uniform", "lowpass")

DEGRADATIONS: dict[str, Degradation] = {
    degradation.name: degradation
    for degradation in (
        Degradation("clean", "clean", "none"),
        *(Degradation(name, "blur", "px") for name in ("gaussian_blur", "box_blur", "motion_blur", "defocus_blur")),
        *(Degradation(pattern, "occlusion", "fraction of area") for pattern in PATTERNS),
        *(Degradation(f"random_patch_{fill}", "occlusion", "fraction of area") for fill in FILLS[1:]),
        Degradation("token_drop", "token_drop", "fraction of tokens"),
    )
}
"""Every degradation that is collected: each pattern in black, ``random_patch`` in every fill."""


def degradation(name: str) -> Degradation:
    """The degradation called ``name``.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name not in DEGRADATIONS:
        raise ValueError(f"unknown degradation {name!r}: {near_name(name, DEGRADATIONS)}")
    return DEGRADATIONS[name]
