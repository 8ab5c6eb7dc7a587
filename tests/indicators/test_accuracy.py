"""Accuracy against loops over images in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mae_bench.indicators.accuracy import accuracy_sums, outcomes
from mae_bench.indicators.block_sums import BlockSums

Rows = list[list[float]]


def by_hand(logits: Rows, targets: list[int]) -> list[dict[str, Any]]:
    """Of equal logits the first counts as larger."""
    images = []
    for row, target in zip(logits, targets, strict=True):
        ranked = sorted(range(len(row)), key=lambda c: (-row[c], c))
        largest = max(row)
        total = math.fsum(math.exp(value - largest) for value in row)
        images.append(
            {
                "prediction": ranked[0],
                "hit": ranked[0] == target,
                "top5": target in ranked[:5],
                "nll": math.log(total) + largest - row[target],
                "confidence": math.exp(row[ranked[0]] - largest) / total,
                "margin": row[ranked[0]] - row[ranked[1]],
            }
        )
    return images


@st.composite
def batches(draw: st.DrawFn) -> tuple[Rows, list[int]]:
    classes = draw(st.integers(2, 9))
    # few distinct values, so that ties at the first and at the fifth place are common
    value = st.integers(-3, 3).map(float) | st.floats(-30, 30, width=32)
    rows = draw(st.lists(st.lists(value, min_size=classes, max_size=classes), min_size=1, max_size=6))
    targets = draw(st.lists(st.integers(0, classes - 1), min_size=len(rows), max_size=len(rows)))
    return rows, targets


@given(batches())
def test_outcomes_are_those_of_a_loop_over_images(batch: tuple[Rows, list[int]]) -> None:
    rows, targets = batch
    measured = outcomes(torch.tensor(rows), torch.tensor(targets))
    for i, expected in enumerate(by_hand(rows, targets)):
        for name in ("prediction", "hit", "top5"):
            assert getattr(measured, name)[i] == expected[name], name
        for name in ("nll", "confidence", "margin"):
            assert getattr(measured, name)[i] == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize(("target", "among"), [(0, True), (4, True), (5, False), (7, False)])
def test_where_all_logits_tie_the_first_five_are_the_top_five(target: int, among: bool) -> None:
    measured = outcomes(torch.zeros(1, 8), torch.tensor([target]))
    assert measured.prediction[0] == 0
    assert measured.top5[0] == among
    assert measured.hit[0] == (target == 0)
    assert measured.nll[0] == pytest.approx(math.log(8))


def test_a_tie_at_the_fifth_place_goes_to_the_lower_index() -> None:
    logits = torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 1.0]])
    assert [bool(outcomes(logits, torch.tensor([target])).top5[0]) for target in (4, 5)] == [True, False]


def test_of_five_classes_every_one_is_among_the_top_five() -> None:
    assert outcomes(torch.randn(4, 5), torch.tensor([0, 1, 2, 4])).top5.all()


@given(batches())
def test_a_prediction_is_a_hit_exactly_when_it_is_the_target(batch: tuple[Rows, list[int]]) -> None:
    rows, targets = batch
    measured = outcomes(torch.tensor(rows), torch.tensor(targets))
    assert (measured.hit == (measured.prediction == torch.tensor(targets))).all()
    assert (measured.hit <= measured.top5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_logits_neither_overflow_nor_lose_the_likelihood(dtype: torch.dtype) -> None:
    measured = outcomes(torch.tensor([[30000.0, -30000.0], [30000.0, 30000.0]], dtype=dtype), torch.tensor([1, 1]))
    assert measured.nll.tolist() == pytest.approx([60000.0, math.log(2)], rel=0.01)
    assert measured.confidence.tolist() == pytest.approx([1.0, 0.5])


def test_an_image_s_outcome_does_not_depend_on_the_others() -> None:
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(20) % 7
    together = outcomes(logits, targets)
    for i in range(20):
        alone = outcomes(logits[i : i + 1], targets[i : i + 1])
        for name in ("prediction", "hit", "top5", "nll", "confidence", "margin"):
            one, among_others = getattr(alone, name)[0].item(), getattr(together, name)[i].item()
            assert one == pytest.approx(among_others, rel=1e-12, abs=1e-12)


def test_a_choice_among_some_outputs_is_that_of_a_model_without_the_others() -> None:
    logits = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)) * 3
    kept = torch.tensor([1, 2, 4, 5, 7, 8, 10, 11])
    among = torch.zeros(12, dtype=torch.bool)
    among[kept] = True
    place = torch.arange(50) % 8
    masked, alone = outcomes(logits, kept[place], among), outcomes(logits[:, kept], place)
    assert torch.equal(masked.prediction, kept[alone.prediction])
    for name in ("hit", "top5", "nll", "confidence", "margin"):
        torch.testing.assert_close(getattr(masked, name), getattr(alone, name))
    assert not torch.equal(masked.prediction, outcomes(logits, kept[place]).prediction)


def test_an_output_that_is_not_finite_is_told_though_it_cannot_be_chosen() -> None:
    logits = torch.zeros(2, 3)
    logits[1, 2] = torch.nan
    found = outcomes(logits, torch.tensor([0, 0]), torch.tensor([True, True, False]))
    assert found.finite.tolist() == [True, False]


@given(batches(), st.data())
def test_sums_are_those_of_a_loop_over_images(batch: tuple[Rows, list[int]], data: st.DataObject) -> None:
    rows, targets = batch
    clean = data.draw(st.lists(st.integers(0, len(rows[0]) - 1), min_size=len(rows), max_size=len(rows)))
    near_tie = data.draw(st.sampled_from([1e-4, 0.5, 2.0]))
    sums = accuracy_sums(outcomes(torch.tensor(rows), torch.tensor(targets)), torch.tensor(clean), near_tie)
    expected = {"images": 0.0, "hits": 0.0, "top5": 0.0, "nll": 0.0, "flips": 0.0, "near_ties": 0.0}
    for image, before in zip(by_hand(rows, targets), clean, strict=True):
        expected["images"] += 1
        expected["hits"] += image["hit"]
        expected["top5"] += image["top5"]
        expected["nll"] += image["nll"]
        expected["flips"] += image["prediction"] != before
        expected["near_ties"] += image["margin"] < near_tie
    assert sums == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_an_image_is_near_a_tie_below_a_margin_of_a_ten_thousandth() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.99e-4], [0.0, 1.01e-4], [0.0, 5.0]])
    block = outcomes(logits, torch.zeros(4, dtype=torch.int64))
    assert accuracy_sums(block, block.prediction)["near_ties"] == 2


def test_nothing_flips_against_itself() -> None:
    block = outcomes(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(50, dtype=torch.int64))
    assert accuracy_sums(block, block.prediction)["flips"] == 0
    assert accuracy_sums(block, 3 - block.prediction)["flips"] == (block.prediction * 2 != 3).sum() == 50


@given(st.integers(1, 5), st.data())
def test_shards_merge_to_the_whole(count: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(count)
    whole = BlockSums()
    shards = [BlockSums(), BlockSums()]
    for block in range(count):
        logits = torch.randn(16, 6, generator=generator) * 4
        found = outcomes(logits, torch.randint(6, (16,), generator=generator))
        sums = accuracy_sums(found, torch.zeros(16, dtype=torch.int64))
        whole.update(block, sums)
        shards[data.draw(st.integers(0, 1))].update(block, sums)
    merged = BlockSums()
    for shard in data.draw(st.permutations(shards)):
        merged.merge(shard)
    for name in ("images", "hits", "top5", "nll", "flips", "near_ties"):
        assert merged.total(name).tobytes() == whole.total(name).tobytes()
