"""Sums kept per block of images, so that any sharding at block boundaries gives the same result to the bit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Sums = dict[str, np.ndarray]


class BlockSums:
    """Named float64 arrays per block. Blocks are added in their order, whatever the order of arrival.

    >>> left, right = BlockSums(), BlockSums()
    >>> right.update(1, {"hits": 3}); left.update(0, {"hits": 2})
    >>> left.merge(right); left.total("hits").item()
    5.0
    """

    def __init__(self) -> None:
        self._blocks: dict[int, Sums] = {}

    def update(self, block: int, sums: Mapping[str, object]) -> None:
        """Raises:
        ValueError: the block was counted already.
        """
        if block in self._blocks:
            raise ValueError(f"block {block} was counted already")
        self._blocks[block] = {name: np.asarray(value, dtype=np.float64) for name, value in sums.items()}

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

    @property
    def blocks(self) -> list[int]:
        return sorted(self._blocks)

    def per_block(self, name: str) -> np.ndarray:
        """(blocks, ...) in block order."""
        return np.stack([self._blocks[block][name] for block in self.blocks])

    def total(self, name: str) -> np.ndarray:
        first, *rest = (self._blocks[block][name] for block in self.blocks)
        total = first.copy()
        for value in rest:
            total += value
        return total
