"""How much longer features become."""

import torch
from torch import Tensor


def scores(name: str, clean: Tensor, degraded: Tensor) -> Tensor:
    """(B,) the length of each of ``degraded`` (B, D) over that of ``clean``, less 1."""
    assert name == "lengthening"
    lengths = [torch.linalg.vector_norm(each, dim=-1) for each in (degraded, clean)]
    return lengths[0] / lengths[1] - 1
