"""Where heads look: attention distance and entropy from attention maps.

Mean attention distance is that of Dosovitskiy et al. 2021 (arXiv 2010.11929, figure 7) and Raghu et al. 2021 (arXiv
2108.08810), in units of the image's side instead of pixels, so that grids can be compared.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

INDICATORS = ("attention_distance", "attention_distance_ratio", "attention_entropy")


def grid_distances(grid: tuple[int, int]) -> Tensor:
    """(P, P) distances between the centres of the patches of a ``grid`` (rows, columns), in image sides.

    >>> grid_distances((1, 2))
    tensor([[0.0000, 0.5000],
            [0.5000, 0.0000]], dtype=torch.float64)
    """
    rows, columns = grid
    y = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    x = (torch.arange(columns, dtype=torch.float64) + 0.5) / columns
    centres = torch.cartesian_prod(y, x)
    return torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")


@lru_cache
def uniform_distance(grid: tuple[int, int]) -> float:
    """Attention distance of a head that attends to all patches alike.

    >>> uniform_distance((1, 2))
    0.25
    """
    return float(grid_distances(grid).mean())


def attention_values(scores: Tensor, prefix: int, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Per image and head (B, H), from finite attention ``scores`` (B, H, T, T), whose softmax over the last axis is
    the attention, and of which the first ``prefix`` tokens are no patches: ``attention_distance``, the mean over patch
    queries of the distance to what they attend to, and ``attention_entropy``, the mean entropy of their attention over
    that of uniform attention. What goes to other tokens is left out, and the rest made to sum to one.

    >>> values = attention_values(torch.zeros(1, 1, 2, 2), prefix=0, grid=(1, 2))
    >>> values["attention_distance"].item(), round(values["attention_entropy"].item(), 6)
    (0.25, 1.0)
    """
    # the softmax over patches alone is what is left, made to sum to one
    logarithms = scores[:, :, prefix:, prefix:].float().log_softmax(-1)
    attention = logarithms.exp()
    most = math.log(max(attention.shape[-1], 2))
    return {
        "attention_distance": torch.linalg.vecdot(attention, _distances_on(scores.device, grid)).mean(-1),
        "attention_entropy": -torch.linalg.vecdot(attention, logarithms).mean(-1) / most,
    }


@lru_cache
def _distances_on(device: torch.device, grid: tuple[int, int]) -> Tensor:
    # what is kept may be used in another mode than the one that it is made in
    with torch.inference_mode(False):
        return grid_distances(grid).to(device, torch.float32)
