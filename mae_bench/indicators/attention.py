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
_TINY = 1e-30


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


def attention_values(attention: Tensor, prefix: int, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Per image and head (B, H), from ``attention`` (B, H, T, T) of which the first ``prefix`` tokens are no patches:
    ``attention_distance``, the mean over patch queries of the distance to what they attend to, and
    ``attention_entropy``, the mean entropy of their attention over that of uniform attention. What goes to other
    tokens is left out, and the rest made to sum to one; a query that gives nothing to any patch counts as 0 in both.

    >>> values = attention_values(torch.full((1, 1, 2, 2), 0.5), prefix=0, grid=(1, 2))
    >>> values["attention_distance"].item(), round(values["attention_entropy"].item(), 6)
    (0.25, 1.0)
    """
    return _values(attention[:, :, prefix:, prefix:], _distances_on(attention.device, grid))


@lru_cache
def _distances_on(device: torch.device, grid: tuple[int, int]) -> Tensor:
    # what is kept may be used in another mode than the one that it is made in
    with torch.inference_mode(False):
        return grid_distances(grid).to(device, torch.float32)


def _values(attention: Tensor, distances: Tensor) -> dict[str, Tensor]:
    """Of ``attention`` (B, H, P, P) between patches, which need not sum to one: with a of each key and A of all, the
    distance is sum(a d) / A, and the entropy log(A) - sum(a log(a)) / A, so that nothing is divided key by key.
    """
    patches = attention.float().contiguous()
    given = patches.sum(-1)
    total = given.clamp_min(_TINY)
    # torch.xlogy would need no least value, and takes twice as long
    entropy = total.log() - torch.linalg.vecdot(patches, patches.clamp_min(_TINY).log_()) / total
    entropy = entropy.where(given >= _TINY, 0)
    most = math.log(max(patches.shape[-1], 2))
    return {
        "attention_distance": (torch.linalg.vecdot(patches, distances) / total).mean(-1),
        "attention_entropy": entropy.mean(-1) / most,
    }
