"""Indicators: pure functions that turn a block of images into sums, and sums over blocks into numbers.

Each module has an ``*_sums`` function for one block and a ``*_values`` function for totals; between them the
sums live in :class:`mae_bench.indicators.block_sums.BlockSums`, which merges. Packages may add indicators of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mae_bench.entry_points import EntryPointError, added, implementation
from mae_bench.machine import version_of

if TYPE_CHECKING:
    from torch import Tensor

INDICATOR_VERSION = 2
"""Changes whenever a definition or a constant does, so that results of different definitions never mix."""

BUILT_IN = (
    "alignment", "alignment_centered", "correlation", "retention", "retention_adjusted", "newly_active",
    "alignment_flip_auc", "alignment_centered_flip_auc", "separability", "separability_permuted",
    "separability_excess", "separability_within", "subspace_accuracy", "fisher_ratio", "knn_accuracy",
    "attention_distance", "attention_distance_ratio", "attention_entropy",
)  # fmt: skip
"""Names of the benchmark's own."""

ENTRY_POINTS = "mae_bench.indicators"
"""Group of the entry points by which packages add indicators."""


@dataclass(frozen=True)
class Indicator:
    """A statement about each image, from its clean and its degraded features, that a package adds by an entry point of
    its ``name`` in :data:`ENTRY_POINTS`.

    ``module`` is the full path of one with a function ``scores(name, clean, degraded)``, which takes the pooled tokens
    of as many images (B, D), clean and degraded, of one layer and kind (``cls``, ``mean_patch``), and gives a number
    for each image (B,) that hangs on no other image; it is imported when the first cell is degraded. Its mean over
    images, with a 95 % interval over blocks, is in the profile of every degraded cell. ``package`` is filled in when it
    is found.
    """

    name: str
    module: str
    summary: str = ""
    package: str = ""

    def scores(self, clean: Tensor, degraded: Tensor) -> Tensor:
        """A number (B,) for each image.

        Raises:
            EntryPointError: the module cannot be used, or does not give a finite number for each image.
        """
        import torch

        found: Any = implementation(self.package, self.module, "scores").scores(self.name, clean, degraded)
        shape = getattr(found, "shape", None)
        if shape != clean.shape[:1]:
            given = type(found).__name__ if shape is None else f"values of shape {tuple(shape)}"
            raise EntryPointError(
                f"package {self.package}: indicator {self.name!r} gave {given} for {len(clean)} images, not a number "
                "for each; mend or uninstall it"
            )
        scores: Tensor = found
        if not bool(torch.isfinite(scores).all()):
            raise EntryPointError(
                f"package {self.package}: indicator {self.name!r} gave a number that is not finite; mend or uninstall "
                "it"
            )
        return scores


@cache
def added_indicators() -> dict[str, Indicator]:
    """Indicators that installed packages add, by name.

    Raises:
        EntryPointError: one cannot be used; it is named with its package and the remedy.
    """
    return added(ENTRY_POINTS, Indicator, BUILT_IN, _unfit)


def _unfit(indicator: Indicator, *_: object) -> str | None:
    """Why an indicator cannot be used; None where it can."""
    return None if indicator.module else "it names no module with a function scores(name, clean, degraded)"


def software() -> str:
    """The version of mae_bench, with the packages whose indicators are measured too."""
    packages = sorted({indicator.package for indicator in added_indicators().values()})
    return version_of("mae_bench") + (f" with {', '.join(packages)}" if packages else "")
