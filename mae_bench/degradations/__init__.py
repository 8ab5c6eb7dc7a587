"""Degradations: what each is called, its family and its domain; the pixels are changed in the modules beside this one.

Importing this module imports no torch, so that a matrix can be listed cheaply.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mae_bench.cells import FAMILIES, GROUPS, MARKS, Level, near_name
from mae_bench.degradations.severity import SEVERITIES, table_name
from mae_bench.entry_points import EntryPointError, added, implementation

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DOMAINS: dict[str, tuple[float, float]] = {
    "px": (0.0, math.inf),
    "fraction of area": (0.0, 1.0),
    "fraction of attention": (0.0, 1.0),
    "fraction of side": (0.0, 1.0),
    "fraction of tokens": (0.0, 1.0),
    "degrees": (0.0, 180.0),
    "times larger or smaller, less 1": (0.0, math.inf),
    "severity": (1.0, 5.0),
    "none": (0.0, 0.0),
}
"""Unit of a level to the closed range that it may lie in."""


@dataclass(frozen=True)
class Setting:
    """What a degradation may know of a batch beside its pixels.

    ``keys`` (B,) int64 are the first 64 bits of the images' content hashes, ``seed`` is the run's,
    ``reference_size`` is the image side for which levels in pixels are meant, ``mean`` the suite's mean
    pixel per channel in [0, 1]. ``salience`` (B, cells of the occlusion grid) is how much a reference model attends
    to each cell of the clean images, summing to 1; None where no degradation asks for it.
    """

    keys: Tensor
    seed: int
    reference_size: int
    mean: tuple[float, ...]
    salience: Tensor | None = None


@dataclass(frozen=True)
class Degradation:
    """One way to degrade images. ``version`` changes whenever the same level gives other pixels; ``module`` beside this
    one changes them (by default that of its family). ``group`` is a further mark of its cells, ``colour`` says that it
    cannot change a grey image.

    A package adds one by an entry point of its name in :data:`ENTRY_POINTS`. Its ``module`` is then a full path, whose
    function ``degrade(name, images, value, setting)`` takes images (B, C, H, W) in [0, 1], the value of the level and a
    :class:`Setting`, and gives as many of the same shape, dtype and range; it is imported when the first is degraded.
    Its ``levels`` rise, with two decimals at most; its ``unit`` may be any word, but for those in :data:`OWN_UNITS`;
    its ``family`` is one of its own. ``package`` is filled in when it is found.
    """

    name: str
    family: str
    unit: str
    version: int = 1
    module: str = ""
    group: str = ""
    colour: bool = False
    levels: tuple[float, ...] = ()
    package: str = ""

    @property
    def on_tokens(self) -> bool:
        """Whether tokens are taken from the model's sequence, instead of pixels being changed."""
        return self.unit == "fraction of tokens"

    @property
    def by_salience(self) -> bool:
        """Whether it needs to know what a reference model attends to."""
        return self.unit == "fraction of attention"

    @property
    def by_severity(self) -> bool:
        """Whether its levels are published severities."""
        return self.unit == "severity"

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.family, self.group) if self.group else (self.family,)

    def unit_at(self, side: int) -> str:
        """The unit of a level for images of ``side`` pixels; of severities it names the table too, and of what a
        package adds the package.

        >>> degradation("contrast", severity=True).unit_at(28)
        'severity (32 px)'
        """
        if self.package:
            return f"{self.unit} ({self.package})"
        return f"{self.unit} ({table_name(side)})" if self.by_severity else self.unit

    def check(self, level: Level) -> None:
        """Raises:
        ValueError: ``level`` is outside the domain of this degradation.
        """
        low, high = DOMAINS.get(self.unit, (0.0, math.inf))
        if level.severity != self.by_severity or not (low <= level.value <= high and math.isfinite(level.value)):
            upper = "any finite number" if math.isinf(high) else f"{high:g}"
            raise ValueError(f"{self.name}: level {level} is outside its domain, {low:g} to {upper} ({self.unit})")

    def method(self, level: Level, size: tuple[int, int], device: torch.device, reference_size: int) -> str | None:
        """By which of several equal ways images of ``size`` (H, W) are degraded at ``level`` on ``device``, as
        :func:`mae_bench.degradations.blur.method_of` names them; None where there is one.

        >>> import torch
        >>> degradation("gaussian_blur").method(Level(2.0), (224, 224), torch.device("cpu"), 224)
        'toeplitz'
        """
        if level.value == 0 or self.on_tokens:
            return None
        chosen: Any = getattr(self._changing, "method_of", None)
        method: str | None = chosen and chosen(self.name, level, size, device, reference_size)
        return method

    @property
    def _changing(self) -> Any:
        """The module that changes the pixels.

        Raises:
            EntryPointError: it is that of a package, and cannot be used.
        """
        if self.package:
            return implementation(self.package, self.module, "degrade")
        return import_module(f"mae_bench.degradations.{self.module or self.family}")

    def apply(self, images: Tensor, level: Level, setting: Setting) -> Tensor:
        """``images`` (B, C, H, W) in [0, 1] degraded at ``level``; shape, dtype and range are kept. What acts on the
        model's tokens leaves them as they are, and so does what needs colours where there is one channel.

        Raises:
            ValueError: the level is outside the domain, or the salience of the images is not known.
        """
        self.check(level)
        if level.value == 0 or self.on_tokens or (self.colour and images.shape[1] == 1):
            return images
        if self.by_salience and setting.salience is None:
            raise ValueError(f"{self.name}: needs the salience of the images, and the setting has none")
        if self.by_severity:
            parameters = SEVERITIES[self.name].at(level.value, min(images.shape[-2:]))
            corrupted: Tensor = self._changing.corrupt(self.name, images, parameters, setting)
            return corrupted
        degraded: Tensor = self._changing.degrade(self.name, images, level.value, setting)
        if self.package:
            self._check_degraded(images, degraded)
        return degraded

    def _check_degraded(self, images: Tensor, degraded: Any) -> None:
        """Raises:
        EntryPointError: what a package made of ``images`` are none of the same shape and range.
        """
        shape, dtype = getattr(degraded, "shape", None), getattr(degraded, "dtype", None)
        if (shape, dtype) != (images.shape, images.dtype):
            found = type(degraded).__name__ if shape is None else f"{dtype} {tuple(shape)}"
            raise EntryPointError(
                f"package {self.package}: {self.name} made {found} of {images.dtype} {tuple(images.shape)}; it is to "
                "keep both, so mend or uninstall it"
            )
        if not bool(((degraded >= 0) & (degraded <= 1)).all()):
            raise EntryPointError(
                f"package {self.package}: {self.name} gave pixels outside [0, 1] or NaN; mend or uninstall it"
            )


PATTERNS = ("random_patch", "random_patch_offset", "center_block", "border", "random_block", "stripes")
SALIENT = ("salient", "nonsalient")
FILLS = ("black", "mean", "uniform", "lowpass")

DEGRADATIONS: dict[str, Degradation] = {
    degradation.name: degradation
    for degradation in (
        Degradation("clean", "clean", "none"),
        *(Degradation(name, "blur", "px") for name in ("gaussian_blur", "box_blur", "motion_blur", "defocus_blur")),
        *(Degradation(pattern, "occlusion", "fraction of area") for pattern in PATTERNS),
        *(Degradation(f"random_patch_{fill}", "occlusion", "fraction of area") for fill in FILLS[1:]),
        *(Degradation(pattern, "occlusion", "fraction of attention") for pattern in SALIENT),
        Degradation("token_drop", "token_drop", "fraction of tokens"),
        Degradation("rotation", "geometry", "degrees"),
        Degradation("scale", "geometry", "times larger or smaller, less 1"),
        Degradation("translation", "geometry", "fraction of side"),
    )
}
"""Degradations whose levels are lengths, fractions or angles: each pattern in black, ``random_patch`` in every fill."""

_VERSIONS = {"frost": 2}
"""Of corruptions that have given other pixels before: frost, when each image had a texture of its own."""

CORRUPTIONS: dict[str, Degradation] = {
    name: Degradation(
        name, family, "severity", _VERSIONS.get(name, 1), module, group, colour=name == "saturate"
    )
    for family, group, module, names in (
        ("imagenet_c", "noise", "noise", ("gaussian_noise", "shot_noise", "impulse_noise")),
        ("imagenet_c", "blur", "blur", ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")),
        ("imagenet_c", "weather", "weather", ("snow", "frost", "fog", "brightness")),
        ("imagenet_c", "digital", "digital", ("contrast", "pixelate", "jpeg_compression")),
        ("imagenet_c", "digital", "elastic", ("elastic_transform",)),
        ("c_extra", "noise", "noise", ("speckle_noise",)),
        ("c_extra", "blur", "blur", ("gaussian_blur",)),
        ("c_extra", "weather", "weather", ("spatter",)),
        ("c_extra", "digital", "digital", ("saturate",)),
        (
            "cbar",
            "",
            "cbar",
            (
                "blue_sample", "plasma", "checkerboard_cutout", "cocentric_sine", "single_freq_grey", "brownish",
                "perlin", "sparkles", "inverse_sparkles", "caustic",
            ),
        ),
    )
    for name in names
}  # fmt: skip
"""Degradations whose levels are published severities. A blur of the same name in :data:`DEGRADATIONS` is the plain
kernel; here it is the one that the published set was made with.
"""

BUILT_IN: tuple[Degradation, ...] = (*DEGRADATIONS.values(), *CORRUPTIONS.values())

ENTRY_POINTS = "mae_bench.degradations"
"""Group of the entry points by which packages add degradations."""

OWN_UNITS = ("severity", "fraction of tokens", "fraction of attention", "none")
"""Units whose levels are looked up in tables, or acted on, by the benchmark itself."""


@cache
def added_degradations() -> dict[str, Degradation]:
    """Degradations that installed packages add, by name.

    Raises:
        EntryPointError: one cannot be used; it is named with its package and the remedy.
    """
    return added(ENTRY_POINTS, Degradation, {kind.name for kind in BUILT_IN}, _unfit)


def every() -> tuple[Degradation, ...]:
    """Every degradation, those that packages add last.

    Raises:
        EntryPointError: as :func:`added_degradations`.
    """
    return (*BUILT_IN, *added_degradations().values())


def families() -> tuple[str, ...]:
    """Every family, those that packages add last.

    Raises:
        EntryPointError: as :func:`added_degradations`.
    """
    return (*FAMILIES, *dict.fromkeys(kind.family for kind in added_degradations().values()))


def _unfit(kind: Degradation, package: str, before: Collection[Degradation]) -> str | None:
    """Why a degradation of ``package`` cannot be used beside those that were added ``before``; None where it can."""
    if not re.fullmatch("[a-z][a-z0-9_]*", kind.family):
        return f"{kind.family!r} is no name: write small letters, digits and underscores"
    if kind.group not in ("", *GROUPS):
        return f"its group {kind.group!r} is none of {', '.join(GROUPS)}"
    if kind.unit in OWN_UNITS or not kind.unit.isprintable() or not kind.unit:
        return f"its unit {kind.unit!r} is not one that a package can have; name another"
    if not kind.module:
        return "it names no module with a function degrade(name, images, value, setting)"
    rising = all(low < high for low, high in zip((0.0, *kind.levels), kind.levels, strict=False))
    if not kind.levels or not rising or any(round(value, 2) != value for value in kind.levels):
        return f"its levels {kind.levels} are to rise from above 0, in hundredths"
    try:
        kind.check(Level(kind.levels[-1]))
    except ValueError as error:
        return str(error)
    return _clash(kind, package, before)


def _clash(kind: Degradation, package: str, before: Collection[Degradation]) -> str | None:
    """Why the names of a degradation of ``package`` cannot stand beside those that come with the benchmark, and those
    that were added ``before``: cells are selected by parts of names, and a family is the work of one package.
    """
    if kind.family in MARKS:
        return f"mae_bench has a family {kind.family!r} itself; give it one of its own"
    for other in before:
        if other.family == kind.family and other.package != package:
            return f"package {other.package} has a family {kind.family!r} too; give it another"
    taken = [mark for mark in MARKS if mark != kind.group and (mark in kind.name or mark in kind.family)]
    if taken:
        return f"its name or its family contains {taken[0]!r}, so that -k {taken[0]} would select its cells; rename it"
    for other in (*BUILT_IN, *before):
        if other.family == kind.family:
            continue
        pairs = ((one.family, name) for one, two in ((kind, other), (other, kind)) for name in (two.name, two.family))
        for mark, name in pairs:
            if mark in name:
                return f"{name!r} contains {mark!r}, so that -k {mark} would select cells of both; rename it"
    return None


def degradation(name: str, severity: bool = False) -> Degradation:
    """The degradation called ``name``, with ``severity`` the one whose levels are published severities.

    Raises:
        ValueError: there is none; the message names the nearest.
        EntryPointError: as :func:`added_degradations`.
    """
    known, other = (CORRUPTIONS, DEGRADATIONS) if severity else (DEGRADATIONS, CORRUPTIONS)
    if name in known:
        return known[name]
    mine = added_degradations()
    if name in mine and not severity:
        return mine[name]
    if name in other or name in mine:
        levels = "as 0.50 or 2.00" if severity else "from s1 to s5"
        unit = (other.get(name) or mine[name]).unit
        raise ValueError(f"{name!r} has no such level: its levels are {levels} ({unit})")
    raise ValueError(f"unknown degradation {name!r}: {near_name(name, {*DEGRADATIONS, *CORRUPTIONS, *mine})}")
