"""Batches in parts: on a CPU few images are worked on at a time, so that what is made on the way stays in the cache,
and in memory that the process has: what is larger is asked of the system, and cleared by it, every time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ONE_IMAGE = 3 * 224 * 224
"""Values of an image of 224 pixels."""


def parts(images: Tensor, values: int = ONE_IMAGE) -> list[slice]:
    """Slices of a batch: on a CPU of at most so many ``values``, but at least an image, elsewhere the whole of it.

    >>> parts(torch.zeros(5, 3, 112, 112)), parts(torch.zeros(2, 3, 448, 448))
    ([slice(0, 4, None), slice(4, 5, None)], [slice(0, 1, None), slice(1, 2, None)])
    """
    count = len(images)
    step = max(1, values // max(1, images[:1].numel())) if images.device.type == "cpu" else max(1, count)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def by_parts(images: Tensor, change: Callable[[slice], Tensor]) -> Tensor:
    """What ``change`` makes of each part of ``images``, of their shape and in their dtype.

    >>> by_parts(torch.ones(2, 1, 1, 2), lambda part: torch.full((part.stop - part.start, 1, 1, 2), 0.5)).flatten()
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    changed = torch.empty_like(images)
    for part in parts(images):
        changed[part] = change(part)
    return changed
