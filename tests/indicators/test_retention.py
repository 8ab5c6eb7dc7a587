"""Retention of active features against loops over images, heads and features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mae_bench.indicators.block_sums import BlockSums
from mae_bench.indicators.retention import (
    Retention,
    active,
    head_retentions,
    packed,
    retention_sums,
    retention_values,
    thresholds,
    unpacked,
)

NAMES = ("overlap", "clean", "degraded")
SEEDS = st.integers(0, 2**16)


def masks(seed: int, *shape: int, share: float = 0.4) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def measured(clean: Tensor, degraded: Tensor) -> Retention:
    sums = retention_sums(clean, degraded)
    return retention_values(float(sums["observations"]), *(sums[name] for name in NAMES))


def by_hand(clean: list[list[list[bool]]], degraded: list[list[list[bool]]]) -> dict[str, float | None]:
    """Observations x heads x features; None where the definition has none."""
    count, heads, width = len(clean), len(clean[0]), len(clean[0][0])
    overlap = active_clean = newly = 0
    expected = 0.0
    for h in range(heads):
        for j in range(width):
            was = [observation[h][j] for observation in clean]
            is_now = [observation[h][j] for observation in degraded]
            overlap += sum(a and b for a, b in zip(was, is_now, strict=True))
            newly += sum(b and not a for a, b in zip(was, is_now, strict=True))
            active_clean += sum(was)
            expected += count * (sum(was) / count) * (sum(is_now) / count)
    if active_clean == 0:
        return {"retention": None, "retention_adjusted": None, "newly_active": None}
    degenerate = active_clean - expected < 0.01 * active_clean
    return {
        "retention": overlap / active_clean,
        "retention_adjusted": None if degenerate else (overlap - expected) / (active_clean - expected),
        "newly_active": newly / active_clean,
    }


def agrees(value: Retention, expected: dict[str, float | None]) -> None:
    for name, number in expected.items():
        if number is None:
            assert getattr(value, name) is None, name
        else:
            assert getattr(value, name) == pytest.approx(number, rel=1e-9, abs=1e-9), name


@given(SEEDS, st.integers(1, 8), st.integers(1, 3), st.integers(1, 4), st.sampled_from([0.05, 0.3, 0.7, 0.97]))
def test_retention_is_that_of_a_loop_over_everything(
    seed: int, images: int, heads: int, width: int, share: float
) -> None:
    clean = masks(seed, images, heads, width, share=share)
    degraded = clean ^ masks(seed + 1, images, heads, width, share=0.2)
    agrees(measured(clean, degraded), by_hand(clean.tolist(), degraded.tolist()))


@given(SEEDS, st.integers(1, 4), st.integers(1, 4))
def test_each_patch_is_an_observation(seed: int, images: int, patches: int) -> None:
    clean, degraded = masks(seed, images, patches, 2, 3), masks(seed + 1, images, patches, 2, 3)
    flat = [[clean[i, p].tolist() for i in range(images) for p in range(patches)]]
    flat.append([degraded[i, p].tolist() for i in range(images) for p in range(patches)])
    sums = retention_sums(clean, degraded)
    assert float(sums["observations"]) == images * patches
    agrees(measured(clean, degraded), by_hand(*flat))


@given(SEEDS)
def test_one_head_is_measured_as_if_it_were_alone(seed: int) -> None:
    clean, degraded = masks(seed, 12, 3, 4), masks(seed + 1, 12, 3, 4)
    sums = retention_sums(clean, degraded)
    for h in range(3):
        value = retention_values(float(sums["observations"]), *(sums[name][h] for name in NAMES))
        agrees(value, by_hand(clean[:, h : h + 1].tolist(), degraded[:, h : h + 1].tolist()))


@given(SEEDS, st.integers(1, 5), st.sampled_from([0.0, 0.3, 1.0]))
def test_heads_are_measured_at_once_as_one_by_one(seed: int, heads: int, share: float) -> None:
    clean, degraded = masks(seed, 12, heads, 4, share=share), masks(seed + 1, 12, heads, 4)
    sums = retention_sums(clean, degraded)
    counts = [np.asarray(sums[name]) for name in NAMES]
    one_by_one = [retention_values(12.0, *(count[h] for count in counts)) for h in range(heads)]
    assert head_retentions(12.0, *counts) == one_by_one


@given(SEEDS)
def test_identical_activity_is_kept_whole(seed: int) -> None:
    clean = masks(seed, 50, 2, 8)
    assert measured(clean, clean.clone()) == Retention(1.0, pytest.approx(1.0), 0.0)


def test_activity_that_vanishes_is_not_kept() -> None:
    clean = masks(0, 50, 2, 8)
    value = measured(clean, torch.zeros_like(clean))
    assert (value.retention, value.retention_adjusted, value.newly_active) == (0, 0, 0)


def test_activity_that_moves_to_the_other_features_is_worse_than_chance() -> None:
    clean = masks(0, 400, 2, 8, share=0.5)
    value = measured(clean, ~clean)
    assert value.retention == 0
    assert value.retention_adjusted == pytest.approx(-1, abs=0.05)
    assert value.newly_active == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("before", "after"), [(0.25, 0.25), (0.25, 0.7), (0.9, 0.1)])
def test_independent_activity_has_no_adjusted_retention(before: float, after: float) -> None:
    clean, degraded = masks(0, 20000, 2, 8, share=before), masks(1, 20000, 2, 8, share=after)
    value = measured(clean, degraded)
    assert value.retention == pytest.approx(after, abs=0.01)
    assert value.retention_adjusted == pytest.approx(0, abs=0.01)
    assert value.newly_active == pytest.approx(after * (1 - before) / before, abs=0.01)


def test_features_that_are_always_on_do_not_count_as_kept_information() -> None:
    # one half always active, the other independent of the image: unadjusted retention looks respectable
    always = torch.ones(20000, 1, 4, dtype=torch.bool)
    clean = torch.cat([always, masks(0, 20000, 1, 4, share=0.25)], -1)
    degraded = torch.cat([always, masks(1, 20000, 1, 4, share=0.25)], -1)
    value = measured(clean, degraded)
    assert value.retention is not None
    assert value.retention > 0.8
    assert value.retention_adjusted == pytest.approx(0, abs=0.02)


def test_features_that_are_always_active_leave_nothing_to_adjust() -> None:
    everything = torch.ones(20, 2, 3, dtype=torch.bool)
    assert measured(everything, everything) == Retention(1.0, None, 0.0, reason="degenerate")


def test_almost_nothing_to_lose_is_degenerate_below_one_percent() -> None:
    clean = torch.ones(1000, 1, 1, dtype=torch.bool)
    clean[:11] = False
    assert measured(clean, clean).retention_adjusted == pytest.approx(1.0)
    clean[9:11] = True
    assert measured(clean, clean) == Retention(1.0, None, 0.0, reason="degenerate")


def test_without_an_active_feature_nothing_is_defined() -> None:
    nothing = torch.zeros(20, 2, 3, dtype=torch.bool)
    assert measured(nothing, masks(0, 20, 2, 3)) == Retention(None, None, None, reason="no_active_feature")


@given(SEEDS, st.integers(1, 7), st.integers(1, 3), st.integers(1, 4))
def test_thresholds_are_the_upper_quartile_of_the_magnitudes_of_each_head(
    seed: int, images: int, heads: int, width: int
) -> None:
    outputs = np.random.default_rng(seed).normal(size=(images, heads, width)).astype(np.float32)
    for h, threshold in enumerate(thresholds(outputs)):
        magnitudes = sorted(abs(float(outputs[i, h, j])) for i in range(images) for j in range(width))
        place = 0.75 * (len(magnitudes) - 1)
        below = magnitudes[math.floor(place)]
        expected = below + (magnitudes[math.ceil(place)] - below) * (place - math.floor(place))
        assert threshold == pytest.approx(expected, rel=1e-5)


@given(SEEDS)
def test_thresholds_of_patches_pool_images_and_patches(seed: int) -> None:
    outputs = np.random.default_rng(seed).normal(size=(5, 4, 2, 3)).astype(np.float32)
    for h, threshold in enumerate(thresholds(outputs)):
        assert threshold == pytest.approx(float(np.quantile(np.abs(outputs[:, :, h]), 0.75)), rel=1e-6)


def test_a_quarter_of_the_features_is_active_where_thresholds_were_set() -> None:
    outputs = np.random.default_rng(0).normal(size=(100, 3, 8)).astype(np.float32) * [[[1.0], [10.0], [0.1]]]
    mask = active(torch.from_numpy(outputs), torch.from_numpy(thresholds(outputs)))
    assert mask.sum((0, 2)).tolist() == [200, 200, 200]


@given(SEEDS)
def test_a_feature_is_active_by_its_magnitude_against_its_own_head(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs, threshold = torch.randn(3, 2, 2, 4, generator=generator), torch.rand(2, generator=generator)
    mask = active(outputs, threshold)
    for i in range(3):
        for p in range(2):
            for h in range(2):
                for j in range(4):
                    assert mask[i, p, h, j] == (abs(outputs[i, p, h, j].item()) > threshold[h].item())


def test_a_feature_at_its_threshold_is_not_active() -> None:
    outputs = torch.tensor([[[0.5, -0.5, 0.75, -0.75, 0.25]]])
    assert active(outputs, torch.tensor([0.5])).tolist() == [[[False, False, True, True, False]]]


@given(SEEDS, st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_packed_masks_come_back(seed: int, images: int, shape: list[int]) -> None:
    mask = masks(seed, images, *shape)
    bits = packed(mask)
    assert bits.dtype == np.uint8
    assert bits.shape == (images, math.ceil(math.prod(shape) / 8))
    assert torch.equal(unpacked(bits, tuple(shape)), mask)


@given(SEEDS, st.data())
def test_any_rows_of_packed_masks_can_be_read_alone(seed: int, data: st.DataObject) -> None:
    mask = masks(seed, 9, 2, 5)
    start = data.draw(st.integers(0, 8))
    stop = data.draw(st.integers(start + 1, 9))
    assert torch.equal(unpacked(packed(mask)[start:stop], (2, 5)), mask[start:stop])


@given(st.integers(1, 5), st.data())
def test_shards_merge_to_the_whole_and_to_one_pass(count: int, data: st.DataObject) -> None:
    clean, degraded = masks(count, count, 16, 2, 4), masks(count + 9, count, 16, 2, 4)
    whole, shards = BlockSums(), [BlockSums(), BlockSums()]
    for block in range(count):
        sums = retention_sums(clean[block], degraded[block])
        whole.update(block, sums)
        shards[data.draw(st.integers(0, 1))].update(block, sums)
    merged = BlockSums()
    for shard in data.draw(st.permutations(shards)):
        merged.merge(shard)
    at_once = retention_sums(clean.flatten(0, 1), degraded.flatten(0, 1))
    for name in ("observations", *NAMES):
        assert merged.total(name).tobytes() == whole.total(name).tobytes()
        assert np.array_equal(merged.total(name), at_once[name])
