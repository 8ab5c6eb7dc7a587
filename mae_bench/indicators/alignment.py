"""Directional alignment of clean and degraded embeddings.

The idea is that of arXiv 2602.03531, whose abstract gives no formula; these are this project's readings.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import repeat

import torch
from torch import Tensor

INDICATORS = ("alignment", "alignment_centered", "correlation")
SHORTEST = 1e-8
"""Length below which a vector counts as no longer than this, so that one without a direction scores 0."""
PIECE = 1 << 19
"""Bytes of patch tokens that a processor compares at a time, so that what lies between stays in its cache."""
Key = tuple[int, str]


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine (...) of vectors (..., D), in [-1, 1]; 0 where one has no length.

    It takes a third of the passes over memory that ``torch.nn.functional.cosine_similarity`` takes.

    >>> cosine(torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0]))
    tensor(1.)
    """
    lengths = [torch.linalg.vector_norm(each, dim=-1).clamp_min(SHORTEST) for each in (one, other)]
    product: Tensor = torch.linalg.vecdot(one, other) / (lengths[0] * lengths[1])
    return product.clamp(-1, 1)


def alignment_scores(clean: Tensor, degraded: Tensor, center: Tensor) -> dict[str, Tensor]:
    """Per token (..., D) -> (...): ``alignment`` is the cosine of clean and degraded, ``alignment_centered`` the
    cosine after subtracting ``center`` (broadcast; the clean mean over the probe subset) from both, which
    removes the direction all embeddings share, ``correlation`` is Pearson's over the features. All in
    [-1, 1]; a vector of length zero scores 0.

    >>> alignment_scores(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.zeros(2))["alignment"]
    tensor(0.)
    """
    return {
        "alignment": cosine(clean, degraded),
        "alignment_centered": cosine(clean - center, degraded - center),
        "correlation": cosine(clean - clean.mean(-1, keepdim=True), degraded - degraded.mean(-1, keepdim=True)),
    }


def image_scores(clean: Tensor, degraded: Tensor, center: Tensor) -> dict[str, Tensor]:
    """:func:`alignment_scores` of each image (B,), from one token (B, D) or from patches (B, P, D), whose scores are
    averaged within their image. A ``center`` of as many dimensions is one for each image.
    """
    if clean.ndim == 2:
        return alignment_scores(clean, degraded, center)
    several = len(clean) if clean.is_cuda else max(1, PIECE // clean[0].nbytes)
    centers = torch.split(center, several) if center.ndim == clean.ndim else repeat(center)
    pieces = [
        alignment_scores(*piece)
        for piece in zip(torch.split(clean, several), torch.split(degraded, several), centers, strict=False)
    ]
    return {name: torch.cat([piece[name].mean(1) for piece in pieces]) for name in INDICATORS}


def layer_scores(
    clean: Mapping[Key, Tensor], degraded: Mapping[Key, Tensor], centers: Mapping[Key, Tensor]
) -> dict[Key, dict[str, Tensor]]:
    """:func:`image_scores` of every layer and kind of token in ``clean``. Pooled tokens of one shape are compared at
    once: of small networks, single comparisons cost more to begin than to make.
    """
    scores: dict[Key, dict[str, Tensor]] = {}
    alike: dict[torch.Size, list[Key]] = {}
    for key, tokens in clean.items():
        if tokens.ndim == 2 and centers[key].ndim == 1:
            alike.setdefault(tokens.shape, []).append(key)
        else:
            scores[key] = image_scores(tokens, degraded[key], centers[key])
    for keys in alike.values():
        stacks = [torch.stack([values[key] for key in keys]) for values in (clean, degraded, centers)]
        together = alignment_scores(stacks[0], stacks[1], stacks[2][:, None])
        for place, key in enumerate(keys):
            scores[key] = {name: values[place] for name, values in together.items()}
    return scores


def alignment_sums(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums (float64) of the scores (B,) of the images of a block."""
    return {name: score.double().sum() for name, score in scores.items()}


def is_constant(embeddings: Tensor, tolerance: float = 1e-6) -> bool:
    """Whether (B, ...) embeddings are the same for every image, so that nothing can be aligned."""
    return len(embeddings) > 1 and bool(torch.all((embeddings - embeddings[:1]).abs() <= tolerance))
