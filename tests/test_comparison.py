"""A run against its baseline: what is said of every cell, and that nothing is left unsaid."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.baseline import Baseline, Incomparable
from mae_bench.comparison import MOST_LINES, Comparison, Difference, failure_text, verdict_table
from mae_bench.labelled_images import LabelledImages
from mae_bench.markup import terminal_text
from mae_bench.outcomes import Outcomes
from mae_bench.regression import Rule, Shift, Verdict, verdict
from mae_bench.rows import FINGERPRINT, CellResult
from mae_bench.store import cell_of
from references import page

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
    outcomes = Outcomes.of(results, LabelledImages.of(IDS, LABELS, [str(i) for i in range(10)]))
    return Baseline(Path("results/fashion_mnist"), rows, outcomes)


SAME: dict[str, str | int] = {
    "machine": "a processor", "libraries": "numpy 2", "torch_version": "2.14", "mae_bench_version": "1",
    "device": "cpu", "dtype": "float32", "threads": 1, "batch_size": 64, "weights_hash": "w",
}  # fmt: skip
"""What makes a repeated cell one that must be the same."""

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


COUNT = st.integers(0, 500)
RATE = st.floats(0, 1)
IMAGES_COMPARED = st.integers(1000, 10**6)
VERDICTS = st.builds(
    Verdict, st.text(), RATE, RATE, IMAGES_COMPARED, COUNT, COUNT, COUNT, RATE,
    st.sampled_from(["unchanged", "pass", "inconclusive", "regression", "determinism fault"]), st.text(),
)  # fmt: skip
COMPARISONS = st.builds(
    Comparison,
    st.lists(VERDICTS, max_size=3),
    st.lists(VERDICTS, max_size=3),
    st.lists(st.builds(Incomparable, st.text(), st.text(), st.text(), st.text(), st.booleans()), max_size=3),
    st.lists(st.builds(Shift, st.text(), st.text(), RATE, RATE, RATE, RATE), max_size=3),
    st.lists(st.builds(Difference, st.sampled_from(FINGERPRINT), st.text(), st.text()), max_size=3, unique=True),
    st.integers(0, 1000),
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
    sums = one.to_dict()
    # all cells of a run may differ from the baseline in the same, and are judged as members of one family
    differences = [*parts[0]["differences"], *parts[1]["differences"]]
    assert sums.pop("differences") == [d for i, d in enumerate(differences) if d not in differences[:i]]
    assert sums.pop("family") == max(part["family"] for part in parts)
    assert sums == {name: [*parts[0][name], *parts[1][name]] for name in sums}
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


# --------------------------------------------------------------------------- what fails


def made(judgement: Any, cell: str = CELLS[0], lost: int = 0) -> Verdict:
    return Verdict(cell, 1.0, 1 - lost / IMAGES, IMAGES, lost, lost, 0, 1.0, judgement)


@pytest.mark.parametrize(
    ("judgement", "fails", "fails_strictly"),
    [
        ("unchanged", False, False),
        ("pass", False, False),
        ("inconclusive", False, True),
        ("regression", True, True),
        ("determinism fault", True, True),
    ],
)
def test_a_cell_fails_by_its_judgement(judgement: str, fails: bool, fails_strictly: bool) -> None:
    comparison = Comparison([made(judgement)], references=[made("regression", "vit-clean-0.00")])
    for strict, expected in ((False, fails), (True, fails_strictly)):
        failures = comparison.failures(Rule(5), strict)
        assert failures.cells == comparison.verdicts[: int(expected)]
        assert (failures.later, failures.reasons, bool(failures)) == ([], [], expected)


def test_a_cell_fails_at_the_end_only_where_its_own_test_passed() -> None:
    rule = Rule(4)
    first, later = (verdict(name, LABELS, lost(n), LABELS, rule) for name, n in zip(CELLS, (20, 6), strict=False))
    assert later.judgement == "inconclusive"
    assert 0.05 / 4 < later.p_value < 0.05 / 3
    comparison = Comparison([first, later])
    failures, strictly = comparison.failures(rule), comparison.failures(rule, strict=True)
    assert (failures.cells, failures.later) == ([first], [later])
    assert (strictly.cells, strictly.later) == ([first, later], [])
    for strict in (False, True):
        assert comparison.to_markdown(rule, strict).startswith("**Failed: 2 regressions**\n")


def test_a_run_fails_where_no_cell_is_comparable() -> None:
    others = [
        Incomparable(CELLS[0], "seed", "7", "1"),
        Incomparable(CELLS[1], "view", "a", "b"),
        Incomparable("cnn-clean-0.00", "model", "cnn", "not in the baseline", new=True),
    ]
    comparison = Comparison(incomparable=others)
    [reason] = comparison.failures(Rule(1)).reasons
    assert reason.startswith("no cell is comparable with the baseline: they differ in seed, view; ")
    assert "--mae-baseline DIR, or none" in reason
    assert comparison.to_markdown(Rule(1)).startswith("**Failed: no cell is comparable")
    assert not Comparison(incomparable=others[2:]).failures(Rule(1))


def test_indicators_fail_a_run_only_where_they_are_asked_and_beyond_chance_over_all_cells() -> None:
    clear = [Shift(cell, "alignment_cls", 0.1, 0.08, 0.12, 0.0001) for cell in CELLS[:2]]
    by_chance = Shift(CELLS[2], "retention", 0.1, 0.03, 0.2, 0.002)
    comparison = Comparison(shifts=[*clear, by_chance])
    assert not comparison.failures(Rule(100))
    [reason] = comparison.failures(Rule(100), gate_indicators=True).reasons
    assert reason == f"2 indicators moved (--mae-gate-indicators) in {CELLS[0]}, {CELLS[1]}"
    [reason] = comparison.failures(Rule(10), gate_indicators=True).reasons
    assert reason.startswith("3 indicators moved")
    assert not Comparison(shifts=[by_chance]).failures(Rule(100), gate_indicators=True)


def test_family_is_that_of_the_workers_where_they_know_more_models() -> None:
    """Holm's later steps go on in the family that the cells were judged in, not in a smaller one."""
    judged = verdict(CELLS[0], LABELS, lost(7), LABELS, Rule(13))
    comparison = Comparison()
    comparison.extend(Comparison([judged], family=13))
    comparison.extend(Comparison(shifts=[Shift(CELLS[0], "alignment_cls", 0.1, 0.03, 0.2, 0.01)], family=13))
    here = Rule(1)
    assert 0.05 / 13 < judged.p_value < 0.05
    assert not comparison.failures(here, gate_indicators=True)
    for text in (comparison.to_text(here), comparison.to_markdown(here)):
        assert "1 of the 13 cells that the baseline holds" in text
    assert comparison.to_text(here) == comparison.to_text(Rule(13))


def test_added_cell_says_in_which_family_it_was_judged(cell_result: MakeResult, baseline: Baseline) -> None:
    for result in (cell_result(CELLS[0], LABELS), cell_result("cnn-stripes-0.10", LABELS)):
        assert Comparison().add(result, IDS, baseline, Rule(6)).family == 6


# --------------------------------------------------------------------------- the same, run again


def repeated(cell_result: MakeResult, images: int, **changes: str | int) -> Comparison:
    """Two cells that lose as many images, against the same with nothing lost."""
    there = held([cell_result(name, LABELS, block_sums=SUMS, **SAME) for name in CELLS])
    here = {**SAME, **changes}
    return compared([cell_result(name, lost(images), block_sums=SUMS, **here) for name in CELLS[:2]], there, Rule(5))


def test_same_weights_on_the_same_machine_must_predict_the_same(cell_result: MakeResult) -> None:
    same = repeated(cell_result, 0)
    assert ({v.judgement for v in same.verdicts}, same.differences) == ({"unchanged"}, [])
    faults = repeated(cell_result, 1)
    assert {(v.judgement, v.changed) for v in faults.verdicts} == {("determinism fault", 1)}
    assert faults.failures(Rule(5)).cells == faults.verdicts
    assert faults.later(Rule(2)) == []


def test_fault_is_shown_with_its_remedy(cell_result: MakeResult) -> None:
    faults, rule = repeated(cell_result, 3), Rule(5)
    remedy = (
        "Same weights, machine and libraries, yet 6 predictions in 2 cells changed: either the model or a degradation "
        "is not deterministic, or its code changed. Find it, or update the baseline."
    )
    text, markdown = faults.to_text(rule), faults.to_markdown(rule)
    assert text.startswith("0 unchanged, 0 pass, 0 inconclusive, 0 regression, 2 determinism fault")
    for shown in (text, markdown, failure_text(faults.verdicts)):
        assert remedy in shown.rstrip().split("\n\n")
    assert re.split(r"\s{2,}", line_of(text, CELLS[0]))[-3:] == [
        "0",
        "-",
        "determinism fault (3 predictions changed)",
    ]
    assert markdown.startswith("**Failed: 2 determinism faults**\n")
    assert "determinism" not in repeated(cell_result, 0).to_text(rule)
    assert failure_text([made("regression")]) == verdict_table([made("regression")])


@pytest.mark.parametrize("field", ["machine", "libraries", "torch_version", "device", "dtype", "threads", "batch_size"])
def test_what_was_computed_otherwise_is_named_once_and_tested(cell_result: MakeResult, field: str) -> None:
    value = 7 if isinstance(SAME[field], int) else "another"
    comparison = repeated(cell_result, 1, **{field: value})
    assert {v.judgement for v in comparison.verdicts} == {"pass"}
    assert comparison.differences == [Difference(field, str(value), str(SAME[field]))]
    for text in (comparison.to_text(Rule(5)), page.read(comparison.to_markdown(Rule(5))).text):
        said = f"Computed otherwise than the baseline: {field} {value} (baseline: {SAME[field]}). "
        assert said + "Differences are tested, not expected to be none." in text


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
    *shown, p_value = re.split(r"\s{2,}", line)[1:]
    assert shown == ["alignment_cls", "-0.400", "[-0.400, -0.400]"]
    assert float(p_value) < 1e-9


def test_chance_of_an_indicator_is_shown_for_all_cells_together() -> None:
    shift = Shift("vit-clean-0.00", "alignment_cls", 0.1, 0.03, 0.2, 0.001)
    for cells, shown in ((1, "0.001"), (20, "0.02"), (5000, "1")):
        assert line_of(Comparison(shifts=[shift]).to_text(Rule(cells)), shift.cell).endswith(f"  {shown}")


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


# --------------------------------------------------------------------------- what a job's summary shows


def sections(markdown: str) -> dict[str, str]:
    """Text under each heading, and before the first one under none."""
    first, *rest = re.split(r"^### ", markdown, flags=re.MULTILINE)
    return {"": first} | {title: text for title, _, text in (part.partition("\n") for part in rest)}


def first_column(markdown: str) -> list[str]:
    return [row[0] for table in page.read(markdown).tables for row in table[1:]]


def test_summary_says_what_failed_and_shows_each_kind_of_cell_in_its_place() -> None:
    rule = Rule(8)
    fine, first, large, inconclusive, later = (
        verdict(name, LABELS, lost(images), LABELS, rule) for name, images in zip(CELLS, (0, 12, 40, 6, 7), strict=True)
    )
    fault = verdict("cnn-stripes-0.10", LABELS, lost(2), LABELS, rule, repeatable=True)
    reference = verdict("vit-clean-0.00", LABELS, lost(9), LABELS, rule)
    assert 0.05 / 8 < later.p_value < 0.05 / 6 < inconclusive.p_value
    comparison = Comparison(
        [fine, first, large, inconclusive, later, fault],
        [reference],
        [Incomparable("cnn-border-0.10", "seed", "7", "1"), Incomparable("a-border-0.10", "model", "a", "-", new=True)],
        [Shift(CELLS[0], "alignment_cls", -0.1, -0.2, -0.05, 0.3)],
    )
    found = sections(comparison.to_markdown(rule))
    assert list(found) == [
        "", "Regressions", "Determinism faults", "Inconclusive", "Listed as references, not judged", "Not comparable",
    ]  # fmt: skip
    assert found[""].startswith("**Failed: 3 regressions; 1 determinism fault**\n")
    assert "1 unchanged, 0 pass, 2 inconclusive, 2 regression, 1 determinism fault" in found[""]
    assert "6 of the 8 cells that the baseline holds of these models were judged" in found[""]
    assert "1 cells are new, the baseline lacks them: model a" in found[""]
    # the largest drop first
    assert first_column(found["Regressions"]) == [large.cell, first.cell, later.cell]
    assert "1 of these by Holm's later steps over the baseline's 8 cells." in found["Regressions"]
    assert first_column(found["Determinism faults"]) == [fault.cell]
    assert first_column(found["Inconclusive"]) == [inconclusive.cell]
    assert first_column(found["Listed as references, not judged"]) == [reference.cell]
    incomparable, _, details = found["Not comparable"].partition("<details>\n<summary>")
    assert first_column(incomparable) == ["cnn-border-0.10"]
    title, _, table = details.partition("</summary>\n\n")
    assert title == "Look here: 1 indicator moved"
    assert first_column(table.removesuffix("\n\n</details>\n")) == [CELLS[0]]


def test_summary_says_what_passed_and_what_strictness_or_indicators_fail() -> None:
    rule = Rule(1)
    comparison = Comparison([made("inconclusive")], shifts=[Shift(CELLS[0], "alignment_cls", 0.1, 0.08, 0.12, 0.0001)])
    headlines = [
        comparison.to_markdown(rule, strict, gate).splitlines()[0] for strict in (False, True) for gate in (False, True)
    ]
    moved = f"1 indicator moved (--mae-gate-indicators) in {CELLS[0]}"
    assert [page.read(line).text.strip() for line in headlines] == [
        "Passed: no regression",
        f"Failed: {moved}",
        "Failed: 1 inconclusive cell",
        f"Failed: 1 inconclusive cell; {moved}",
    ]
    assert Comparison().to_markdown(rule).startswith("**No cell was compared**\n")
    assert list(sections(Comparison([made("unchanged")]).to_markdown(rule))) == [""]


@settings(LAW, max_examples=25)
@given(COMPARISONS, st.integers(1, 50))
def test_whatever_a_name_is_it_is_shown_and_does_nothing(comparison: Comparison, cells: int) -> None:
    named = [replace(v, cell=f"m{v.cell}-clean-0.00") for v in comparison.verdicts]
    comparison = replace(comparison, verdicts=named, references=[])
    rule = Rule(cells)
    shown = page.read(comparison.to_markdown(rule))
    assert set(shown.tags) <= {"p", "strong", "h3", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
    assert all(len(row) == len(table[0]) for table in shown.tables for row in table)
    listed = [v for v in comparison.verdicts if v.judgement not in ("unchanged", "pass")]
    incomparable = [i for i in comparison.incomparable if not i.new]
    column = {row[0] for table in shown.tables for row in table}
    assert {terminal_text(one.cell) for one in [*listed, *comparison.shifts, *incomparable]} <= column
    text = comparison.to_text(rule)
    assert text.replace("\n", "").isprintable()
    assert all(terminal_text(v.cell) in text for v in listed)


def test_summary_of_very_many_cells_stays_short_and_says_how_many_are_left_out() -> None:
    cells = [f"vit{i}-stripes-0.10" for i in range(3 * MOST_LINES)]
    comparison = Comparison(
        [made("regression", name, lost=40 + i) for i, name in enumerate(cells)],
        incomparable=[Incomparable(name, "seed", "7", "1") for name in cells],
        shifts=[Shift(name, "alignment_cls", 0.1, 0.08, 0.12, 0.1) for name in cells],
    )
    markdown = comparison.to_markdown(Rule(3 * MOST_LINES))
    assert markdown.count(f"... and {2 * MOST_LINES} more") == 3
    assert len(markdown) < 2**16
    assert first_column(sections(markdown)["Regressions"]) == cells[: -MOST_LINES - 1 : -1]
    text = comparison.to_text(Rule(1))
    assert all(name in text for name in cells)
