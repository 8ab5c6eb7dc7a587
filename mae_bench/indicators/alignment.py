"""Directional alignment of clean and degraded embeddings.

The idea is that of arXiv 2602.03531, whose abstract gives no formula; these are this project's readings.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

INDICATORS = ("alignment", "alignment_centered", "correlation")


def alignment_scores(clean: Tensor, degraded: Tensor, center: Tensor) -> dict[str, Tensor]:
    """Per token (..., D) -> (...): ``alignment`` is the cosine of clean and degraded, ``alignment_centered`` the
    cosine after subtracting ``center`` (broadcast; the clean mean over the probe subset) from both, which
    removes the direction all embeddings share, ``correlation`` is Pearson's over the features. All in
    [-1, 1]; a vector of length zero scores 0.

    >>> alignment_scores(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.zeros(2))["alignment"]
    tensor(0.)
    """

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1)

    return {
        "alignment": cosine(clean, degraded),
        "alignment_centered": cosine(clean - center, degraded - center),
        "correlation": cosine(clean - clean.mean(-1, keepdim=True), degraded - degraded.mean(-1, keepdim=True)),
    }


def alignment_sums(clean: Tensor, degraded: Tensor, center: Tensor) -> dict[str, Tensor]:
    """Sums (float64) over the images of a block; (B, P, D) tokens are averaged within an image after scoring."""
    return {
        name: score.flatten(1).mean(1).double().sum() if score.ndim > 1 else score.double().sum()
        for name, score in alignment_scores(clean, degraded, center).items()
    }


def is_constant(embeddings: Tensor, tolerance: float = 1e-6) -> bool:
    """Whether (B, ...) embeddings are the same for every image, so that nothing can be aligned."""
    return len(embeddings) > 1 and bool(torch.all((embeddings - embeddings[:1]).abs() <= tolerance))
