"""Sums kept per block of images, so that any sharding at block boundaries gives the same result to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor


class BlockSums:
    """Named float64 arrays per block. Blocks are added in their order, whatever the order of arrival. Tensors stay on
    their device until they are read, so that a GPU is not waited for at every block.

    >>> left, right = BlockSums(), BlockSums()
    >>> right.update(1, {"hits": 3}); left.update(0, {"hits": 2})
    >>> left.merge(right); left.total("hits").item()
    5.0
    """

    def __init__(self) -> None:
        self._blocks: dict[int, dict[str, Any]] = {}

    def update(self, block: int, sums: Mapping[str, object]) -> None:
        """Raises:
        ValueError: the block was counted already.
        """
        if block in self._blocks:
            raise ValueError(f"block {block} was counted already")
        self._blocks[block] = dict(sums)

    def merge(self, other: BlockSums) -> None:
        """Raises:
        ValueError: a block is in both.
        """
        for block, sums in other._blocks.items():
            self.update(block, sums)

    def of(self, blocks: range) -> BlockSums:
        """The sums of those ``blocks`` that were counted, alone."""
        part = BlockSums()
        part._blocks = {block: sums for block, sums in self._blocks.items() if block in blocks}
        return part

    def items(self) -> Iterator[tuple[int, str, np.ndarray]]:
        """Block, name and float64 array of each sum."""
        for block in self.blocks:
            for name in self._blocks[block]:
                yield block, name, np.asarray(self._read(block, name), dtype=np.float64)

    @property
    def blocks(self) -> list[int]:
        return sorted(self._blocks)

    def per_block(self, name: str) -> np.ndarray:
        """(blocks, ...) in block order."""
        return np.array([self._read(block, name) for block in self.blocks], dtype=np.float64)

    def total(self, name: str) -> np.ndarray:
        first, *rest = (self._read(block, name) for block in self.blocks)
        total = first
        for value in rest:
            total = total + value
        return np.array(total, dtype=np.float64)

    def _read(self, block: int, name: str) -> Any:
        """A float or a float64 array."""
        value = self._blocks[block][name]
        if type(value) is float:  # as most are, and adding these is much faster than adding arrays of one
            return value
        read = np.asarray(value.cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
        self._blocks[block][name] = read
        return read
