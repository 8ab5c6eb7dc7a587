"""Head-wise retention of active features under degradation.

The idea is that of arXiv 2602.03531, whose abstract gives no formula; these are this project's readings. A
feature of a head's output (before the output projection) is *active* where its magnitude exceeds the head's
threshold, a quantile over the clean probe subset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ACTIVE_QUANTILE = 0.75
DEGENERATE_SHARE = 0.01
"""Least share of ``active - expected`` in ``active`` for which the adjusted retention means something."""

INDICATORS = ("retention", "retention_adjusted", "newly_active")


def thresholds(outputs: np.ndarray, quantile: float = ACTIVE_QUANTILE) -> np.ndarray:
    """(heads,) the ``quantile`` of the magnitudes of ``outputs`` (..., heads, d), over everything but heads."""
    magnitudes = np.abs(np.moveaxis(outputs, -2, 0)).reshape(outputs.shape[-2], -1)
    return np.asarray(np.quantile(magnitudes, quantile, axis=1), dtype=np.float32)


def active(outputs: Tensor, threshold: Tensor) -> Tensor:
    """Which features of ``outputs`` (..., heads, d) are active under ``threshold`` (heads,)."""
    # a threshold for every feature, since comparing rows that are alike is several times as fast
    return outputs.abs() > threshold[:, None].expand(outputs.shape[-2:]).contiguous()


def retention_sums(clean: Tensor, degraded: Tensor) -> dict[str, Tensor | float]:
    """Counts per head and feature, (heads, d), over images (and patches) of ``active`` features (..., heads, d)."""
    return {
        "observations": float(math.prod(clean.shape[:-2])),
        "overlap": _count(clean & degraded),
        "clean": _count(clean),
        "degraded": _count(degraded),
    }


def _count(mask: Tensor) -> Tensor:
    """(heads, d) float64: for how many observations each feature is True.

    >>> _count(torch.ones(300, 1, 2, dtype=torch.bool))
    tensor([[300., 300.]], dtype=torch.float64)
    """
    shape = mask.shape[-2:]
    # as bytes in rows, since sums of booleans, over several axes, take five to ten times as long
    rows = mask.reshape(-1, math.prod(shape)).view(torch.uint8)
    return rows.sum(0, dtype=torch.int32).double().reshape(shape)


@dataclass(frozen=True)
class Retention:
    """``retention`` in [0, 1]; ``retention_adjusted`` is 1 where all is kept and 0 where no more is kept than
    independent activity would; ``newly_active`` counts features switched on, relative to those active when
    clean. None where undefined, with the ``reason``.
    """

    retention: float | None
    retention_adjusted: float | None
    newly_active: float | None
    reason: str | None = None


def retention_values(observations: float, overlap: np.ndarray, clean: np.ndarray, degraded: np.ndarray) -> Retention:
    """Retention from counts over all images; the arrays may hold one head's features or all heads' together.

    >>> retention_values(2, np.array([1.0, 1.0]), np.array([1.0, 1.0]), np.array([1.0, 1.0])).retention_adjusted
    1.0
    """
    newly = float((degraded - overlap).sum())
    return _retention(float(overlap.sum()), float(clean.sum()), newly, float((clean * degraded).sum() / observations))


def head_retentions(
    observations: float, overlap: np.ndarray, clean: np.ndarray, degraded: np.ndarray
) -> list[Retention]:
    """:func:`retention_values` of each head, from counts (heads, d)."""
    kept, before, newly, both = (
        part.sum(1).tolist() for part in (overlap, clean, degraded - overlap, clean * degraded)
    )
    return [_retention(k, b, n, e / observations) for k, b, n, e in zip(kept, before, newly, both, strict=True)]


def _retention(kept: float, active_clean: float, newly: float, expected: float) -> Retention:
    """From sums over features: of those active before and after, before, after alone, and of how many would be active
    before and after if both were independent.
    """
    if active_clean == 0:
        return Retention(None, None, None, reason="no_active_feature")
    ratio, switched_on = kept / active_clean, newly / active_clean
    if active_clean - expected < DEGENERATE_SHARE * active_clean:
        return Retention(ratio, None, switched_on, reason="degenerate")
    return Retention(ratio, (kept - expected) / (active_clean - expected), switched_on)


def packed(mask: Tensor) -> np.ndarray:
    """(B, ...) booleans as (B, bytes) uint8, eight to a byte."""
    return np.packbits(mask.reshape(len(mask), -1).cpu().numpy(), axis=1)


def unpacked(bits: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """The booleans (B, *shape) behind :func:`packed`."""
    flat = np.unpackbits(bits, axis=1, count=math.prod(shape))
    return torch.from_numpy(flat.reshape(len(bits), *shape)).view(torch.bool)
