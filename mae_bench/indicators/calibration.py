"""Expected calibration error with global bins (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import numpy as np

BINS = 15


def calibration_sums(confidence: np.ndarray, hit: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """Per equal-width bin of ``confidence`` (B,) in [0, 1]: images, summed confidence, summed hits.

    A bin holds its upper edge, the first also 0.
    """
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return {
        "bin_images": np.bincount(index, minlength=bins).astype(np.float64),
        "bin_confidence": np.bincount(index, weights=confidence, minlength=bins),
        "bin_hits": np.bincount(index, weights=hit.astype(np.float64), minlength=bins),
    }


def expected_calibration_error(images: np.ndarray, confidence: np.ndarray, hits: np.ndarray) -> float:
    """ECE in [0, 1] from sums per bin over **all** images; averaging it over batches would inflate it.

    >>> expected_calibration_error(np.array([4.0]), np.array([3.0]), np.array([2.0]))
    0.25
    """
    return float(np.abs(confidence - hits).sum() / images.sum())
