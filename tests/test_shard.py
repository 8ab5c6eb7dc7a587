"""A block is compared part by part as it would be whole, and patches do not pile up."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mae_bench.images import BLOCK
from mae_bench.indicators import alignment, retention
from mae_bench.models.taps import Features
from mae_bench.reference import CleanSide, Reference
from mae_bench.shard import Comparison, Part, Shard, windows

IMAGES = 12
LAST = (2, "mean_patch")
THRESHOLD = torch.tensor([0.3, 0.9])


def features(seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(IMAGES, *shape, generator=generator)

    tokens = {(layer, kind): normal(8) for layer in range(3) for kind in ("cls", "mean_patch")}
    heads = {(layer, kind): normal(2, 4) for layer in (1, 2) for kind in ("cls", "mean_patch")}
    tokens |= {(layer, "patch"): normal(5, 8) for layer in range(3)}
    heads |= {(layer, "patch"): normal(5, 2, 4) for layer in (1, 2)}
    return Features(tokens, heads)


class Clean(Reference):
    """Holds the clean features of one block in memory."""

    def __init__(self, clean: Features) -> None:
        self.clean = clean
        self.probe = IMAGES

    def side(self, start: int, stop: int, features: Features) -> CleanSide:
        own = self.clean.window(slice(start, stop))
        return CleanSide(
            {key: own.tokens[key] for key in features.tokens},
            {key: retention.active(own.heads[key], THRESHOLD) for key in features.heads},
            {key: self.clean.tokens[key].mean(0) for key in features.tokens},
        )

    def threshold(self, key: tuple[int, str], device: torch.device) -> Tensor:  # noqa: ARG002
        return THRESHOLD


def parts_of(degraded: Features, edges: list[int], clean: CleanSide | None = None) -> list[Part]:
    return [
        Part(
            start,
            torch.zeros(stop - start, 3),
            degraded.window(slice(start, stop)),
            clean and clean.window(slice(start, stop)),
        )
        for start, stop in pairwise(edges)
    ]


def of_its_own(side: CleanSide) -> CleanSide:
    """With a center for every image, as those have whose tokens were dropped."""
    centers = {
        key: center.expand(IMAGES, *center.shape) if key[1] == "patch" else center
        for key, center in side.centers.items()
    }
    return CleanSide(side.tokens, side.active, centers)


def compared(reference: Reference, parts: list[Part]) -> tuple[Shard, dict[str, Tensor]]:
    comparison, shard = Comparison(reference, LAST), Shard()
    for part in parts:
        comparison.add(part)
    comparison.finish().settle(7, shard)
    return shard, comparison.scores


@settings(max_examples=20)
@given(st.sets(st.integers(1, IMAGES - 1)), st.booleans())
def test_a_block_in_parts_is_compared_as_each_layer_alone(cuts: set[int], own_side: bool) -> None:
    clean, degraded = features(0), features(1)
    reference = Clean(clean)
    side = of_its_own(reference.side(0, IMAGES, degraded)) if own_side else None
    shard, scores = compared(reference, parts_of(degraded, [0, *sorted(cuts), IMAGES], side))
    assert shard.tokens.keys() == degraded.tokens.keys()
    for key, sums in shard.tokens.items():
        center = clean.tokens[key].mean(0)
        alone = alignment.image_scores(clean.tokens[key], degraded.tokens[key], center)
        assert sums.total("images") == IMAGES
        for name in alignment.INDICATORS:
            assert sums.total(name) == pytest.approx(float(alone[name].double().sum()), abs=1e-5)
            if key == LAST and name in scores:
                torch.testing.assert_close(scores[name], alone[name], rtol=0, atol=1e-6)
    assert set(scores) == {"alignment", "alignment_centered"}
    assert shard.heads.keys() == degraded.heads.keys()
    for key, sums in shard.heads.items():
        masks = [retention.active(each.heads[key], THRESHOLD) for each in (clean, degraded)]
        for name, expected in retention.retention_sums(*masks).items():
            assert np.array_equal(sums.total(name), np.asarray(expected)), (key, name)
            assert sums.blocks == [7]


def test_patches_of_a_part_are_let_go_before_the_next_comes() -> None:
    comparison = Comparison(Clean(features(0)), LAST)
    alive: list[weakref.ref[Any]] = []
    for part in parts_of(features(1), [0, 4, 8, IMAGES]):
        patches = {key: value.clone() for key, value in part.features.tokens.items()}
        alive += [weakref.ref(value) for key, value in patches.items() if key[1] == "patch"]
        comparison.add(Part(part.start, part.logits, Features(patches, part.features.heads), None))
        del patches
        gc.collect()
        assert [each() for each in alive] == [None] * len(alive)
    assert len(alive) == 9


def test_patches_beyond_the_probe_are_not_compared() -> None:
    reference = Clean(features(0))
    reference.probe = 0
    shard, _ = compared(reference, parts_of(features(1), [0, 4, IMAGES]))
    assert {kind for _, kind in (*shard.tokens, *shard.heads)} == {"cls", "mean_patch"}


@given(st.integers(0, 5 * BLOCK), st.integers(1, 5 * BLOCK))
def test_windows_follow_each_other_and_lie_in_one_block_each(start: int, images: int) -> None:
    found = windows(start, start + images)
    assert [i for window in found for i in range(*window)] == list(range(start, start + images))
    blocks = [{i // BLOCK for i in range(*window)} for window in found]
    assert all(len(each) == 1 for each in blocks)
    assert len(set.union(*blocks)) == len(found)
