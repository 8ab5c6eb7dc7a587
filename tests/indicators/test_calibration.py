"""Calibration error against a loop over images and bins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_bench.indicators.block_sums import BlockSums
from mae_bench.indicators.calibration import BINS, calibration_sums, expected_calibration_error

PREDICTIONS = st.lists(
    # the edges of the fifteen bins are drawn often
    st.tuples(st.floats(0, 1) | st.integers(0, 15).map(lambda edge: edge / 15), st.booleans()),
    min_size=1,
    max_size=60,
)


def ece(confidence: np.ndarray, hit: np.ndarray, bins: int = BINS) -> float:
    sums = calibration_sums(confidence, hit, bins)
    return expected_calibration_error(sums["bin_images"], sums["bin_confidence"], sums["bin_hits"])


def by_hand(confidence: list[float], hit: list[bool], bins: int = 15) -> float:
    """Guo et al. 2017, equation 3: bins of equal width, open below and closed above; 0 belongs to the first."""
    error = 0.0
    for b in range(bins):
        members = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)]
        if members:
            accuracy = sum(hit[i] for i in members) / len(members)
            mean = sum(confidence[i] for i in members) / len(members)
            error += len(members) / len(confidence) * abs(accuracy - mean)
    return error


@given(PREDICTIONS)
def test_error_is_that_of_a_loop_over_images_and_bins(predictions: list[tuple[float, bool]]) -> None:
    confidence, hit = [c for c, _ in predictions], [h for _, h in predictions]
    assert ece(np.array(confidence), np.array(hit)) == pytest.approx(by_hand(confidence, hit), abs=1e-12)


@pytest.mark.parametrize("bins", [2, 5, 10, 15])
def test_a_bin_holds_its_upper_edge(bins: int) -> None:
    for edge in range(bins + 1):
        sums = calibration_sums(np.array([edge / bins]), np.array([True]), bins)
        assert np.flatnonzero(sums["bin_images"]).tolist() == [max(edge - 1, 0)]


@given(PREDICTIONS)
def test_every_image_falls_into_one_bin(predictions: list[tuple[float, bool]]) -> None:
    confidence, hit = np.array([c for c, _ in predictions]), np.array([h for _, h in predictions])
    sums = calibration_sums(confidence, hit)
    assert sums["bin_images"].sum() == len(predictions)
    assert sums["bin_hits"].sum() == hit.sum()
    assert sums["bin_confidence"].sum() == pytest.approx(confidence.sum())
    assert all(len(values) == 15 for values in sums.values())


def test_a_calibrated_predictor_has_no_error_but_would_have_if_batches_were_averaged() -> None:
    confidence, hit = [], []
    for b in range(15):
        right = 2 * b + 1  # of thirty images, which is the centre of the bin
        confidence += [right / 30] * 30
        hit += [True] * right + [False] * (30 - right)
    order = np.random.default_rng(0).permutation(len(confidence))
    shuffled, right_or_not = np.array(confidence)[order], np.array(hit)[order]
    assert ece(shuffled, right_or_not) < 1e-12
    batches = [ece(shuffled[i : i + 8], right_or_not[i : i + 8]) for i in range(0, len(order), 8)]
    assert np.mean(batches) > 0.1


def test_a_predictor_that_is_always_sure_errs_by_its_error_rate() -> None:
    hit = np.array([True] * 7 + [False] * 3)
    assert ece(np.ones(10), hit) == pytest.approx(0.3)
    assert ece(np.ones(10), ~hit) == pytest.approx(0.7)


@given(PREDICTIONS, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(predictions: list[tuple[float, bool]], random: object) -> None:
    shuffled = list(predictions)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    errors = [
        ece(np.array([c for c, _ in order]), np.array([h for _, h in order])) for order in (predictions, shuffled)
    ]
    assert errors[0] == pytest.approx(errors[1], abs=1e-12)


@given(st.integers(1, 5), st.data())
def test_shards_merge_to_the_whole(count: int, data: st.DataObject) -> None:
    generator = np.random.default_rng(count)
    whole, shards = BlockSums(), [BlockSums(), BlockSums()]
    confidence, hit = generator.random((count, 16)), generator.random((count, 16)) < 0.5
    for block in range(count):
        sums = calibration_sums(confidence[block], hit[block])
        whole.update(block, sums)
        shards[data.draw(st.integers(0, 1))].update(block, sums)
    merged = BlockSums()
    for shard in data.draw(st.permutations(shards)):
        merged.merge(shard)
    names = ("bin_images", "bin_confidence", "bin_hits")
    for name in names:
        assert merged.total(name).tobytes() == whole.total(name).tobytes()
    error = expected_calibration_error(*(merged.total(name) for name in names))
    expected = by_hand(confidence.flatten().tolist(), hit.flatten().tolist())
    assert error == pytest.approx(expected, abs=1e-12)
