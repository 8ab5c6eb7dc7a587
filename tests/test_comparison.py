"""A run against its baseline: what is said of every cell, and that nothing is left unsaid."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.baseline import Baseline, Incomparable
from mae_bench.comparison import Comparison, verdict_table
from mae_bench.evaluate import CellResult
from mae_bench.regression import Rule, Shift, Verdict, verdict
from mae_bench.store import Outcomes, cell_of

LAW = settings(max_examples=50, derandomize=True)
MakeResult = Callable[..., CellResult]

IMAGES = 1000
IDS = [f"{i:032x}-0" for i in range(IMAGES)]
LABELS = np.arange(IMAGES) % 10
SUMS = {"images": [200.0] * 5, "alignment_cls": [180.0] * 5}
MOVED = {"images": [200.0] * 5, "alignment_cls": [100.0] * 5}


def lost(images: int) -> np.ndarray:
    """Predictions that are right but for the first ``images``."""
    return np.where(np.arange(IMAGES) < images, (LABELS + 1) % 10, LABELS)


def held(results: Sequence[CellResult]) -> Baseline:
    rows = {cell_of(result.row).id: result.row for result in results}
    outcomes = Outcomes.of("fashion_mnist", results, IDS, LABELS, [str(i) for i in range(10)])
    return Baseline(Path("results/fashion_mnist"), rows, outcomes)


CELLS = tuple(f"vit-stripes-{level}" for level in ("0.10", "0.25", "0.50", "0.75", "0.90"))


@pytest.fixture
def baseline(cell_result: MakeResult) -> Baseline:
    return held([cell_result(name, LABELS, block_sums=SUMS) for name in ("vit-clean-0.00", *CELLS)])


def compared(results: Sequence[CellResult], baseline: Baseline, rule: Rule) -> Comparison:
    comparison = Comparison()
    for result in results:
        comparison.add(result, IDS, baseline, rule)
    return comparison


# --------------------------------------------------------------------------- adding, and travelling as plain text


def test_every_cell_is_judged_or_said_not_to_be(cell_result: MakeResult, baseline: Baseline) -> None:
    results = [
        cell_result(CELLS[0], LABELS),
        cell_result(CELLS[1], lost(40), block_sums=MOVED),
        cell_result(CELLS[2], LABELS, seed=7),
        cell_result("cnn-stripes-0.10", LABELS),
    ]
    comparison = compared(results, baseline, Rule(6))
    assert [(v.cell, v.judgement) for v in comparison.verdicts] == [(CELLS[0], "unchanged"), (CELLS[1], "regression")]
    assert [(i.cell, i.field, i.new) for i in comparison.incomparable] == [
        (CELLS[2], "seed", False),
        ("cnn-stripes-0.10", "model", True),
    ]
    assert [(s.cell, s.indicator) for s in comparison.shifts] == [(CELLS[1], "alignment_cls")]
    assert comparison.references == []


def test_what_was_added_is_returned_on_its_own(cell_result: MakeResult, baseline: Baseline) -> None:
    comparison = Comparison()
    for result in (cell_result(CELLS[0], LABELS), cell_result(CELLS[1], lost(40), block_sums=MOVED)):
        added = comparison.add(result, IDS, baseline, Rule(6))
        assert added.verdicts == comparison.verdicts[-1:]
    assert (len(added.shifts), len(comparison.verdicts), len(comparison.shifts)) == (1, 2, 1)


def test_indicators_of_a_cell_that_is_not_comparable_are_not_compared(
    cell_result: MakeResult, baseline: Baseline
) -> None:
    comparison = compared([cell_result(CELLS[0], LABELS, block_sums=MOVED, seed=7)], baseline, Rule(6))
    assert (len(comparison.incomparable), comparison.shifts) == (1, [])


@LAW
@given(st.lists(st.integers(0, 40), min_size=len(CELLS), max_size=len(CELLS)), st.data())
def test_verdict_on_a_cell_does_not_depend_on_which_others_ran(
    cell_result: MakeResult, losses: list[int], data: st.DataObject
) -> None:
    baseline, rule = held([cell_result(name, LABELS) for name in CELLS]), Rule(len(CELLS))
    results = [cell_result(name, lost(images)) for name, images in zip(CELLS, losses, strict=True)]
    alone = {r.row.condition: compared([r], baseline, rule).verdicts for r in results}
    for result, together in zip(results, compared(results, baseline, rule).verdicts, strict=True):
        assert alone[result.row.condition] == [together]
    some = data.draw(st.permutations(results))[: data.draw(st.integers(0, len(results)))]
    for result, together in zip(some, compared(some, baseline, rule).verdicts, strict=True):
        assert alone[result.row.condition] == [together]


COUNT = st.integers(0, 10**6)
RATE = st.floats(0, 1)
VERDICTS = st.builds(
    Verdict, st.text(), RATE, RATE, COUNT, COUNT, COUNT, RATE,
    st.sampled_from(["unchanged", "pass", "inconclusive", "regression"]), st.text(),
)  # fmt: skip
COMPARISONS = st.builds(
    Comparison,
    st.lists(VERDICTS, max_size=3),
    st.lists(VERDICTS, max_size=3),
    st.lists(st.builds(Incomparable, st.text(), st.text(), st.text(), st.text(), st.booleans()), max_size=3),
    st.lists(st.builds(Shift, st.text(), st.text(), RATE, RATE, RATE), max_size=3),
)


@LAW
@given(COMPARISONS)
def test_comparison_survives_the_way_from_a_worker(comparison: Comparison) -> None:
    assert Comparison.from_dict(json.loads(json.dumps(comparison.to_dict()))) == comparison


def test_comparison_of_real_cells_survives_the_way_from_a_worker(cell_result: MakeResult, baseline: Baseline) -> None:
    """NumPy's scalars would not: JSON refuses them."""
    results = [cell_result(CELLS[1], lost(40), block_sums=MOVED), cell_result("cnn-stripes-0.10", LABELS)]
    comparison = compared(results, baseline, Rule(6))
    assert comparison.shifts
    assert Comparison.from_dict(json.loads(json.dumps(comparison.to_dict()))) == comparison


@LAW
@given(COMPARISONS, COMPARISONS)
def test_comparisons_add_up(one: Comparison, other: Comparison) -> None:
    parts = one.to_dict(), other.to_dict()
    one.extend(other)
    assert one.to_dict() == {name: [*parts[0][name], *parts[1][name]] for name in parts[0]}
    assert other.to_dict() == parts[1]


def test_fresh_comparisons_share_nothing(cell_result: MakeResult, baseline: Baseline) -> None:
    Comparison().add(cell_result(CELLS[0], LABELS), IDS, baseline, Rule(6))
    assert Comparison() == Comparison([], [], [], [])


# --------------------------------------------------------------------------- nothing comparable


@pytest.mark.parametrize(
    ("verdicts", "news", "expected"),
    [(0, [], False), (0, [True, True], False), (0, [True, False], True), (1, [False], False), (1, [], False)],
)
def test_nothing_is_comparable_where_known_cells_ran_and_none_was_judged(
    verdicts: int, news: list[bool], expected: bool
) -> None:
    """Cells that are all new are no reason to fail: there is nothing yet to compare them with."""
    judged = [verdict("vit-clean-0.00", LABELS, LABELS, LABELS, Rule(1))] * verdicts
    others = [Incomparable("vit-clean-0.00", "seed", "1", "0", new) for new in news]
    assert Comparison(judged, incomparable=others).nothing_comparable is expected


# --------------------------------------------------------------------------- what the terminal shows


def line_of(text: str, cell: str) -> str:
    [line] = [line for line in text.splitlines() if re.match(rf"{re.escape(cell)}\s", line)]
    return line


def test_text_counts_the_judgements_and_shows_what_is_not_plainly_fine(
    cell_result: MakeResult, baseline: Baseline
) -> None:
    losses = dict(zip(CELLS, (0, 1, 12, 40, 40), strict=True))
    rule = Rule(6)
    comparison = compared([cell_result(name, lost(images)) for name, images in losses.items()], baseline, rule)
    assert [v.judgement for v in comparison.verdicts] == ["unchanged", "pass", "regression", "regression", "regression"]
    text = comparison.to_text(rule)
    assert text.startswith("1 unchanged, 1 pass, 0 inconclusive, 3 regression")
    assert CELLS[0] not in text
    assert CELLS[1] not in text
    for name in CELLS[2:]:
        images = losses[name]
        after = f"{100 - images / 10:.2f} %"
        wanted = [
            "100.00 %",
            after,
            f"-{images / 10:.2f}",
            f"{images} of 1000",
            "0",
            f"{2.0**-images:.2g}",
            "regression",
        ]
        assert re.split(r"\s{2,}", line_of(text, name)) == [name, *wanted]


def test_inconclusive_cells_are_shown(cell_result: MakeResult, baseline: Baseline) -> None:
    rule = Rule(6)
    comparison = compared([cell_result(CELLS[0], lost(6))], baseline, rule)
    assert comparison.to_text(rule).startswith("0 unchanged, 0 pass, 1 inconclusive, 0 regression")
    assert line_of(comparison.to_text(rule), CELLS[0]).endswith("inconclusive")


def test_reference_is_listed_but_not_judged(cell_result: MakeResult, baseline: Baseline) -> None:
    rule = Rule(6)
    reference = compared([cell_result("vit-clean-0.00", lost(40))], baseline, rule)
    assert reference.verdicts[0].judgement == "regression"
    comparison = compared([cell_result(CELLS[0], LABELS)], baseline, rule)
    comparison.references += reference.verdicts
    text = comparison.to_text(rule)
    assert text.startswith("1 unchanged, 0 pass, 0 inconclusive, 0 regression")
    assert line_of(text, "vit-clean-0.00").endswith("reference")
    assert comparison.later(rule) == []


def test_holms_later_steps_are_shown_and_counted(cell_result: MakeResult) -> None:
    baseline, rule = held([cell_result(name, LABELS) for name in CELLS]), Rule(5)
    # .05 / 5 < 2 ** -6 <= .05 / 3
    results = [cell_result(name, lost(images)) for name, images in zip(CELLS, (20, 20, 6, 0, 0), strict=True)]
    comparison = compared(results, baseline, rule)
    assert [v.cell for v in comparison.later(rule)] == [CELLS[2]]
    text = comparison.to_text(rule)
    assert line_of(text, CELLS[2]).endswith("regression (Holm)")
    assert "1 of these are regressions by Holm's later steps over the baseline's 5 cells" in text
    assert "were judged" not in text


def test_partial_selection_says_that_later_steps_wait(cell_result: MakeResult, baseline: Baseline) -> None:
    rule = Rule(6)
    text = compared([cell_result(CELLS[0], LABELS)], baseline, rule).to_text(rule)
    assert "1 of the 6 cells that the baseline holds of these models were judged" in text
    assert "Holm's later steps wait for the others" in text


def test_incomparable_cells_are_listed_with_field_and_both_values(cell_result: MakeResult, baseline: Baseline) -> None:
    rule = Rule(6)
    results = [cell_result(CELLS[0], LABELS, seed=7), cell_result(CELLS[1], LABELS, view="32x32")]
    text = compared(results, baseline, rule).to_text(rule)
    assert re.split(r"\s{2,}", line_of(text, CELLS[0])) == [CELLS[0], "seed", "7", "1"]
    assert re.split(r"\s{2,}", line_of(text, CELLS[1]))[:3] == [CELLS[1], "view", "32x32"]


def test_long_list_of_incomparable_cells_says_how_many_are_left_out() -> None:
    cells = [Incomparable(f"vit-stripes-0.{i:02d}", "seed", "7", "0") for i in range(10, 35)]
    text = Comparison(incomparable=cells).to_text(Rule(1))
    shown = [cell for cell in cells if cell.cell in text]
    assert f"... and {25 - len(shown)} more" in text
    assert 0 < len(shown) < 25
    assert "more" not in Comparison(incomparable=shown).to_text(Rule(1))


def test_new_cells_are_counted_and_named(cell_result: MakeResult, baseline: Baseline) -> None:
    results = [cell_result(f"{model}-stripes-0.10", LABELS) for model in ("resnet", "cnn")]
    text = compared(results, baseline, Rule(6)).to_text(Rule(6))
    assert "2 cells are new, the baseline lacks them: model cnn, resnet" in text
    both = compared([*results, cell_result("vit-border-0.10", LABELS)], baseline, Rule(6)).to_text(Rule(6))
    assert "3 cells are new" in both
    for what in ("model cnn, resnet", "degradation border"):
        assert what in both


def test_indicators_that_moved_are_shown_with_their_interval(cell_result: MakeResult, baseline: Baseline) -> None:
    rule = Rule(6)
    text = compared([cell_result(CELLS[0], LABELS, block_sums=MOVED)], baseline, rule).to_text(rule)
    [line] = [line for line in text.splitlines() if line.startswith(CELLS[0])]
    assert re.split(r"\s{2,}", line)[1:] == ["alignment_cls", "-0.400", "[-0.400, -0.400]"]


def test_models_whose_weights_changed_are_named(cell_result: MakeResult, baseline: Baseline) -> None:
    rule = Rule(6)
    results = [cell_result(CELLS[0], LABELS, weights_hash="other"), cell_result(CELLS[1], LABELS)]
    text = compared(results, baseline, rule).to_text(rule)
    assert "Other weights than the baseline's under the same name: vit." in text
    assert "Other weights" not in compared(results[1:], baseline, rule).to_text(rule)


def test_smallest_drop_that_can_be_seen_is_stated() -> None:
    """1,000 images of which 5 % change, first Holm step over 100 cells: 2.91 points, by the planning table."""
    before, after = lost(25), np.roll(lost(25), 500)
    changed = verdict(CELLS[0], before, np.where(np.arange(IMAGES) >= 500, after, LABELS), LABELS, Rule(100))
    assert (changed.lost, changed.gained) == (25, 25)
    text = Comparison([changed]).to_text(Rule(100))
    assert "1,000 images show with 80 % power where 5 % of outcomes change: 2.9 points" in text


def test_nothing_at_all_is_still_said(baseline: Baseline) -> None:
    text = Comparison().to_text(Rule(baseline.cells_of(["vit"])))
    assert text.startswith("0 unchanged, 0 pass, 0 inconclusive, 0 regression")
    assert "0 of the 6 cells" in text


def test_table_marks_each_kind_of_verdict() -> None:
    verdicts = [
        verdict(name, LABELS, lost(images), LABELS, Rule(1)) for name, images in zip(CELLS, (40, 6, 7), strict=False)
    ]
    later, references = verdicts[1:2], verdicts[2:]
    text = verdict_table(verdicts, later, references)
    assert [line_of(text, name).rsplit("  ", 1)[1] for name in CELLS[:3]] == [
        "regression",
        "regression (Holm)",
        "reference",
    ]
