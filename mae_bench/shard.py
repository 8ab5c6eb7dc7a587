"""What a pass over some blocks of a cell leaves, gathered as images come out of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_bench.images import BLOCK
from mae_bench.indicators import added_indicators, alignment, retention
from mae_bench.indicators.block_sums import BlockSums
from mae_bench.models.taps import POOLED, Features
from mae_bench.reference import CleanSide, Key, Reference

FORETELLING = ("alignment", "alignment_centered")
"""Indicators that are a statement about each image."""
Sums = dict[str, Any]


@dataclass
class Shard:
    """What a pass over some blocks of a cell leaves: predicted outputs per block, sums of the cell, sums per layer and
    kind, and per block each image's alignment at the last block. Shards of disjoint blocks merge into what one pass
    over all of them gives.
    """

    prediction: dict[int, np.ndarray] = field(default_factory=dict)
    cell: BlockSums = field(default_factory=BlockSums)
    tokens: dict[Key, BlockSums] = field(default_factory=dict)
    heads: dict[Key, BlockSums] = field(default_factory=dict)
    scores: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def merge(self, other: Shard) -> None:
        """Raises:
        ValueError: a block is in both.
        """
        self.cell.merge(other.cell)
        self.prediction |= other.prediction
        self.scores |= other.scores
        for mine, theirs in ((self.tokens, other.tokens), (self.heads, other.heads)):
            for key, sums in theirs.items():
                mine.setdefault(key, BlockSums()).merge(sums)


@dataclass(frozen=True)
class Part:
    """Images of one block after their forward pass, the first at ``start``. ``clean`` is what they are compared with
    where that is not what the reference holds of them.
    """

    start: int
    logits: Tensor
    features: Features
    clean: CleanSide | None

    @property
    def stop(self) -> int:
        return self.start + len(self.logits)

    @property
    def block(self) -> int:
        return self.start // BLOCK


class Comparison:
    """Alignment and retention of the images of one block, and what packages add. Patches, which of large networks are
    gigabytes, are compared part by part as they come, and layer by layer, so that the clean ones of a single layer are
    in memory at a time; pooled features are compared once all are there. ``last`` is the layer and kind of token whose
    scores of each image are kept.
    """

    def __init__(self, reference: Reference, last: Key) -> None:
        self._reference = reference
        self._last = last
        self._parts: list[Part] = []
        self._tokens: dict[Key, Sums] = {}
        self._heads: dict[Key, Sums] = {}
        self.scores: dict[str, Tensor] = {}

    def add(self, part: Part) -> None:
        """Count the next images of the block in."""
        known = part.clean
        # beyond the probe subset patches are there for others, and the reference holds none to compare them with
        for patches in part.features.patches.layers if self._reference.in_probe(part.start) else ():
            self._compare(patches, self._side(part.start, part.stop, patches) if known is None else known.of(patches))
        pooled = part.features.pooled
        self._parts.append(Part(part.start, part.logits, pooled, part.clean and part.clean.of(pooled)))

    def finish(self) -> HeldSums:
        """The sums of the whole block."""
        features = Features.concatenated([part.features for part in self._parts])
        sides = [part.clean for part in self._parts if part.clean is not None]
        start, stop = self._parts[0].start, self._parts[-1].stop
        self._compare(features, CleanSide.concatenated(sides) if sides else self._side(start, stop, features))
        return HeldSums.of(self._tokens, self._heads)

    def _side(self, start: int, stop: int, features: Features) -> CleanSide:
        return self._reference.side(start, stop, features)

    def _compare(self, features: Features, clean: CleanSide) -> None:
        more = added_indicators().values()
        for key, scores in alignment.layer_scores(clean.tokens, features.tokens, clean.centers).items():
            mine, theirs = clean.tokens[key], features.tokens[key]
            if key[1] in POOLED:
                scores |= {indicator.name: indicator.scores(mine, theirs) for indicator in more}
            _count_in(self._tokens, key, {"images": float(len(mine)), **alignment.alignment_sums(scores)})
            if key == self._last:
                self.scores = {name: scores[name] for name in FORETELLING}
        for key, active in clean.active.items():
            mask = retention.active(features.heads[key], self._reference.threshold(key, active.device))
            _count_in(self._heads, key, retention.retention_sums(active, mask))


def _count_in(sums: dict[Key, Sums], key: Key, more: Sums) -> None:
    known = sums.get(key)
    sums[key] = more if known is None else {name: known[name] + value for name, value in more.items()}


@dataclass(frozen=True)
class HeldSums:
    """Sums of one block, on the device in one piece, so that they reach the host in one transfer. ``places`` say whose
    they are, what they are called, and their shape; numbers that are known without the device are there as they are.
    """

    values: Tensor | None
    places: list[tuple[str, Key, str, torch.Size]]
    known: list[tuple[str, Key, str, float]]

    @classmethod
    def of(cls, tokens: dict[Key, Sums], heads: dict[Key, Sums]) -> HeldSums:
        values, places, known = [], [], []
        for what, each in (("tokens", tokens), ("heads", heads)):
            for key, sums in each.items():
                for name, value in sums.items():
                    if isinstance(value, Tensor):
                        values.append(value.reshape(-1))
                        places.append((what, key, name, value.shape))
                    else:
                        known.append((what, key, name, value))
        return cls(torch.cat(values) if values else None, places, known)

    def settle(self, block: int, shard: Shard) -> None:
        """Bring them to the host, into ``shard``."""
        sums: dict[str, dict[Key, Sums]] = {"tokens": {}, "heads": {}}
        for what, key, name, number in self.known:
            sums[what].setdefault(key, {})[name] = number
        held = np.empty(0) if self.values is None else self.values.cpu().numpy()
        offset = 0
        for what, key, name, shape in self.places:
            own = held[offset : offset + math.prod(shape)]
            sums[what].setdefault(key, {})[name] = own.reshape(shape) if shape else float(own[0])
            offset += len(own)
        for what, store in (("tokens", shard.tokens), ("heads", shard.heads)):
            for key, each in sums[what].items():
                store.setdefault(key, BlockSums()).update(block, each)


def windows(start: int, stop: int) -> Sequence[tuple[int, int]]:
    """Where images ``start`` to ``stop`` begin and end block by block.

    >>> windows(64, 600)
    [(64, 256), (256, 512), (512, 600)]
    """
    edges = [start, *range((start // BLOCK + 1) * BLOCK, stop, BLOCK), stop]
    return list(pairwise(edges))
