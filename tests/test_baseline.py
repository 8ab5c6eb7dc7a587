"""Committed results: read as they were written, compared on shared images, replaced by complete runs only."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.baseline import (
    COMPARABLE,
    Baseline,
    BaselineError,
    Incomparable,
    in_continuous_integration,
    read_rows,
    save,
    table,
    updated,
)
from mae_bench.evaluate import CellResult
from mae_bench.regression import Rule, Verdict, indicator_shifts
from mae_bench.rows import SCHEMA_VERSION, ResultRow
from mae_bench.store import ABSENT, Outcomes, StoreError, cell_of

LAW = settings(max_examples=50, derandomize=True)
MakeResult = Callable[..., CellResult]

CLASSES = [f"class {i}" for i in range(10)]
RULE = Rule(10)


@pytest.fixture(autouse=True)
def outside_continuous_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


def ids_of(images: int, start: int = 0) -> list[str]:
    return [f"{i:032x}-0" for i in range(start, start + images)]


def baseline_of(
    results: Sequence[CellResult],
    ids: Sequence[str],
    labels: Sequence[int] | np.ndarray | None = None,
    path: Path = Path("results/fashion_mnist"),
) -> Baseline:
    rows = {cell_of(result.row).id: result.row for result in results}
    truth = np.zeros(len(ids), dtype=int) if labels is None else np.asarray(labels)
    return Baseline(path, rows, Outcomes.of("fashion_mnist", results, ids, truth, CLASSES))


# --------------------------------------------------------------------------- the table of rows

TYPES = {field.name: str(field.type) for field in fields(ResultRow)}
# what stands in a cell's id is not drawn
FREE = {name: kind for name, kind in TYPES.items() if name not in ("model", "condition", "status", "schema_version")}
PLAIN: dict[str, st.SearchStrategy[Any]] = {
    # a carriage return, which no field holds, would end a line
    "str": st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])),
    "int": st.integers(-(10**12), 10**12),
    "float": st.floats(allow_nan=False, allow_infinity=False),
}
VALUES = st.fixed_dictionaries(
    {
        name: PLAIN[kind.removesuffix(" | None")] | (st.none() if "None" in kind else st.nothing())
        for name, kind in FREE.items()
    }
)


def six_digits(row: ResultRow) -> dict[str, Any]:
    return {name: float(f"{value:.5e}") if isinstance(value, float) else value for name, value in row.to_dict().items()}


@LAW
@given(st.dictionaries(st.sampled_from(["clean-0.00", "box_blur-1.75", "box_blur-10.50"]), VALUES, max_size=3))
def test_rows_survive_the_table_to_six_digits(
    cell_result: MakeResult, tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, dict[str, Any]]
) -> None:
    rows = [cell_result(f"größe-{condition}", **values).row for condition, values in drawn.items()]
    path = tmp_path_factory.mktemp("baseline") / "cells.csv"
    path.write_bytes(table(rows).encode())
    read = read_rows(path)
    assert [six_digits(row) for row in sorted(rows, key=cell_of)] == [row.to_dict() for row in read]
    # what was read once stays as it is, so that an update leaves the other lines of a committed file alone
    assert table(read) == table(rows)


def test_table_is_plain_text_that_any_program_reads(cell_result: MakeResult, tmp_path: Path) -> None:
    rows = [cell_result(f"{m}-box_blur-{v}", nll=1 / 3).row for m in "ba" for v in ("10.50", "1.75")]
    path = tmp_path / "cells.csv"
    path.write_text(table(rows))
    with path.open(newline="") as file:
        records = list(csv.DictReader(file))
    assert [(r["model"], r["condition"]) for r in records] == [
        (m, f"box_blur-{v}") for m in "ab" for v in ("1.75", "10.50")
    ]
    assert {(r["nll"], r["ece"]) for r in records} == {("0.333333", "")}


@pytest.fixture
def written(cell_result: MakeResult, tmp_path: Path) -> Path:
    path = tmp_path / "cells.csv"
    path.write_text(table([cell_result(f"{m}-clean-0.00", nll=0.5, view="here").row for m in ("a", "b")]))
    return path


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda lines: [lines[0], lines[1], lines[2].replace("0.5", "half")], "half"),
        (lambda lines: [lines[0], lines[1], lines[2].replace("0.5", "nan")], "nan"),
        (lambda lines: [lines[0], lines[1], lines[2].replace("ok", "fine")], "fine"),
        (lambda lines: [lines[0], lines[1], lines[2].rsplit(",", 3)[0]], ""),
        (lambda lines: [lines[0], lines[1], lines[2] + ",1"], ""),
        (lambda lines: [lines[0], lines[1], lines[2].rsplit(",", 1)[0] + f",{SCHEMA_VERSION + 1}"], "schema"),
    ],
    ids=["no number", "not finite", "unknown status", "short line", "long line", "other schema"],
)
def test_line_that_is_no_row_is_named(written: Path, damage: Callable[[list[str]], list[str]], what: str) -> None:
    written.write_text("\n".join(damage(written.read_text().splitlines())) + "\n")
    with pytest.raises(BaselineError, match=r"line 3: .*restore the file") as caught:
        read_rows(written)
    assert str(written) in str(caught.value)
    assert what in str(caught.value)


@pytest.mark.parametrize("change", [("nll,", ""), ("nll,", "nil,"), ("nll,", "nll,mood,")])
def test_table_with_other_columns_is_refused(written: Path, change: tuple[str, str]) -> None:
    header, *lines = written.read_text().splitlines()
    written.write_text("\n".join([header.replace(*change), *lines]) + "\n")
    with pytest.raises(BaselineError, match="restore the file"):
        read_rows(written)


def test_table_that_is_no_text_is_refused(written: Path) -> None:
    written.write_bytes(written.read_bytes().replace(b"here", b"h\xffre"))
    with pytest.raises(BaselineError, match="restore the file") as caught:
        read_rows(written)
    assert str(written) in str(caught.value)


# --------------------------------------------------------------------------- loading


def everything(baseline: Baseline) -> dict[str, Any]:
    outcomes = baseline.outcomes
    return {
        "rows": {cell: row.to_dict() for cell, row in baseline.rows.items()},
        "ids": outcomes.ids.tolist(),
        "labels": outcomes.labels.tolist(),
        "classes": outcomes.classes.tolist(),
        "prediction": {cell: values.tolist() for cell, values in outcomes.prediction.items()},
        "block_sums": {
            cell: {name: values.tolist() for name, values in sums.items()} for cell, sums in outcomes.block_sums.items()
        },
    }


@pytest.fixture
def committed(cell_result: MakeResult, tmp_path: Path) -> Baseline:
    sums = {"images": [3.0], "nll": [1.5]}
    results = [
        cell_result(f"{m}-{c}", [0, 1, 0], block_sums=sums)
        for m in ("a", "b")
        for c in ("clean-0.00", "box_blur-1.75", "box_blur-5.25", "stripes-0.10")
    ]
    baseline = baseline_of(results, ids_of(3), path=tmp_path / "committed")
    save(baseline)
    return baseline


def test_baseline_is_loaded_as_it_was_saved(committed: Baseline) -> None:
    loaded = Baseline.load(committed.path, "fashion_mnist")
    assert loaded is not None
    assert everything(loaded) == everything(committed)
    assert sorted(file.name for file in committed.path.iterdir()) == ["cells.csv", "outcomes.npz"]


def test_no_baseline_is_none(tmp_path: Path) -> None:
    assert Baseline.load(tmp_path, "fashion_mnist") is None
    assert Baseline.load(tmp_path / "nowhere", "fashion_mnist") is None


@pytest.mark.parametrize("name", ["cells.csv", "outcomes.npz"])
def test_missing_file_is_named(committed: Baseline, name: str) -> None:
    (committed.path / name).unlink()
    with pytest.raises(BaselineError, match=f"{name} is missing; restore it, or remove the directory") as caught:
        Baseline.load(committed.path, "fashion_mnist")
    assert str(committed.path) in str(caught.value)


def test_baseline_of_another_suite_is_refused_naming_both(committed: Baseline) -> None:
    with pytest.raises(BaselineError, match=r"of suite fashion_mnist, the run is of imagefolder: .*--mae-baseline DIR"):
        Baseline.load(committed.path, "imagefolder")


def test_rows_of_several_suites_are_refused(committed: Baseline) -> None:
    committed.rows["a-clean-0.00"] = replace(committed.rows["a-clean-0.00"], suite="imagefolder")
    save(committed)
    with pytest.raises(BaselineError, match="of suite fashion_mnist, imagefolder, the run is of fashion_mnist"):
        Baseline.load(committed.path, "fashion_mnist")


@pytest.mark.parametrize("where", ["rows", "prediction"])
def test_files_that_hold_different_cells_are_refused(committed: Baseline, where: str) -> None:
    del (committed.rows if where == "rows" else committed.outcomes.prediction)["a-clean-0.00"]
    save(committed)
    with pytest.raises(BaselineError, match=r"cells\.csv and outcomes\.npz hold different cells; restore both"):
        Baseline.load(committed.path, "fashion_mnist")


def test_unreadable_outcomes_are_refused(committed: Baseline) -> None:
    (committed.path / "outcomes.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(StoreError, match=r"outcomes\.npz: not a file of outcomes"):
        Baseline.load(committed.path, "fashion_mnist")


@pytest.mark.parametrize("failing", [1, 2])
def test_full_disk_leaves_the_whole_old_baseline(
    cell_result: MakeResult, committed: Baseline, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """New rows beside old outcomes would be compared as if they belonged together."""
    before = {file.name: file.read_bytes() for file in committed.path.iterdir()}
    fsync, calls = os.fsync, []

    def refuse(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    results = [cell_result(cell, [1, 1, 1], nll=0.25) for cell in committed.rows]
    replacement, *_ = updated(committed, committed.path, results, {}, (ids_of(3), np.zeros(3), CLASSES))
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match="No space left"):
        save(replacement)
    assert {file.name: file.read_bytes() for file in committed.path.iterdir()} == before


# --------------------------------------------------------------------------- comparing


@settings(max_examples=150, derandomize=True)
@given(data=st.data())
def test_cell_is_judged_on_exactly_the_images_that_both_have(cell_result: MakeResult, data: st.DataObject) -> None:
    known = ids_of(14)
    there = data.draw(st.lists(st.sampled_from(known), unique=True, min_size=1))
    here = data.draw(st.lists(st.sampled_from(known), unique=True, min_size=1))
    ran = data.draw(st.integers(0, len(here)))
    outputs = st.integers(-2, 2)
    label = {image: data.draw(st.integers(0, 2)) for image in known}
    then = {image: data.draw(st.just(ABSENT) | outputs) for image in there}
    now = {image: data.draw(outputs) for image in here[:ran]}

    baseline = baseline_of([cell_result("vit-clean-0.00")], there, [label[image] for image in there])
    baseline.outcomes.prediction["vit-clean-0.00"][:] = list(then.values())
    outcome = baseline.compare(cell_result("vit-clean-0.00", list(now.values())), here, RULE)

    shared = [image for image in now if then.get(image, ABSENT) != ABSENT]
    if not shared:
        assert outcome == Incomparable("vit-clean-0.00", "images", f"{len(here)} images", "none of them")
        return
    assert isinstance(outcome, Verdict)
    right = [(then[image] == label[image], now[image] == label[image]) for image in shared]
    assert outcome.images == len(shared)
    assert outcome.lost == right.count((True, False))
    assert outcome.gained == right.count((False, True))
    assert outcome.before == sum(was for was, _ in right) / len(shared)
    assert outcome.after == sum(is_now for _, is_now in right) / len(shared)
    assert (outcome.judgement == "unchanged") == all(then[image] == now[image] for image in shared)


def test_baseline_of_ten_images_judges_a_run_of_six_in_another_order(cell_result: MakeResult) -> None:
    labels = np.arange(10)
    ids = ids_of(10)
    baseline = baseline_of([cell_result("vit-clean-0.00", labels)], ids, labels)
    order = [9, 2, 7, 0, 5, 4, 1, 3, 6, 8]
    wrong_on_two = [9, 2, 8, 0, 6, 4]
    outcome = baseline.compare(cell_result("vit-clean-0.00", wrong_on_two), [ids[i] for i in order], RULE)
    assert isinstance(outcome, Verdict)
    assert (outcome.images, outcome.lost, outcome.gained) == (6, 2, 0)


@pytest.mark.parametrize("name", COMPARABLE)
def test_field_that_changes_the_question_makes_a_cell_incomparable(cell_result: MakeResult, name: str) -> None:
    baseline = baseline_of([cell_result("vit-box_blur-1.75", [0], **{name: 3})], ids_of(1))
    outcome = baseline.compare(cell_result("vit-box_blur-1.75", [0], **{name: 4}), ids_of(1), RULE)
    assert outcome == Incomparable("vit-box_blur-1.75", name, "4", "3")


def test_degradation_version_seed_and_view_are_such_fields() -> None:
    assert {"degradation_version", "seed", "view"} <= set(COMPARABLE)


@pytest.mark.parametrize(
    "name", ["weights_hash", "torch_version", "mae_bench_version", "dtype", "device", "batch_size", "subset"]
)
def test_what_the_gate_is_there_to_judge_stays_comparable(cell_result: MakeResult, name: str) -> None:
    """Other weights, versions and machines are the changes whose effect on the outcomes is asked for."""
    baseline = baseline_of([cell_result("vit-box_blur-1.75", [0], **{name: "one"})], ids_of(1))
    outcome = baseline.compare(cell_result("vit-box_blur-1.75", [0], **{name: "other"}), ids_of(1), RULE)
    assert isinstance(outcome, Verdict)
    assert outcome.note == ("weights changed" if name == "weights_hash" else "")


def test_unknown_level_is_named_beside_the_known_ones(cell_result: MakeResult) -> None:
    held = [cell_result(f"{m}-stripes-{v}", [0]) for m, v in (("vit", "0.10"), ("vit", "0.50"), ("cnn", "0.90"))]
    outcome = baseline_of(held, ids_of(1)).compare(cell_result("vit-stripes-0.25", [0]), ids_of(1), RULE)
    assert outcome == Incomparable("vit-stripes-0.25", "level", "0.25", "0.10, 0.50", new=False)


@pytest.mark.parametrize(
    ("cell", "field", "here"),
    [("new-stripes-0.10", "model", "new"), ("vit-border-0.10", "degradation", "border")],
)
def test_new_model_or_degradation_is_new(cell_result: MakeResult, cell: str, field: str, here: str) -> None:
    baseline = baseline_of([cell_result("vit-stripes-0.10", [0])], ids_of(1))
    outcome = baseline.compare(cell_result(cell, [0]), ids_of(1), RULE)
    assert outcome == Incomparable(cell, field, here, "not in the baseline", new=True)


def test_run_that_shares_no_image_is_refused_and_one_that_shares_one_is_not(cell_result: MakeResult) -> None:
    baseline = baseline_of([cell_result("vit-clean-0.00", [0] * 3)], ids_of(3))
    baseline.check_images(ids_of(5, start=2))
    for strangers in (ids_of(5, start=3), []):
        with pytest.raises(BaselineError, match=r"no image in common.*name another with --mae-baseline DIR") as caught:
            baseline.check_images(strangers)
        assert str(baseline.path) in str(caught.value)


def test_cells_are_counted_by_model(cell_result: MakeResult) -> None:
    results = [cell_result(f"{m}-clean-0.00") for m in ("a", "b")] + [cell_result("a-stripes-0.10")]
    baseline = baseline_of(results, [])
    assert [baseline.cells_of(names) for names in ([], ["a"], ["b", "b"], ["a", "b"], ["c"])] == [0, 2, 1, 3, 0]


def sums_of(alignment: float, blocks: int = 5) -> dict[str, list[float]]:
    return {"images": [256.0] * blocks, "alignment_cls": [256 * alignment] * blocks}


def test_indicators_are_compared_where_the_images_are_the_same(cell_result: MakeResult) -> None:
    cell = "vit-stripes-0.10"
    baseline = baseline_of([cell_result(cell, block_sums=sums_of(0.9), manifest_hash="one")], [])
    same = cell_result(cell, block_sums=sums_of(0.5), manifest_hash="one")
    held, now = ({k: np.array(v, np.float32) for k, v in sums_of(a).items()} for a in (0.9, 0.5))
    assert baseline.shifts(same) == indicator_shifts(cell, held, now) != []
    assert baseline.shifts(cell_result(cell, block_sums=sums_of(0.5), manifest_hash="other")) == []
    assert baseline.shifts(cell_result("vit-stripes-0.50", block_sums=sums_of(0.5), manifest_hash="one")) == []


# --------------------------------------------------------------------------- replacing

FAMILIES = {"clean": ["clean-0.00"], "blur": ["box_blur-1.75", "box_blur-5.25"], "occlusion": ["stripes-0.10"]}
IMAGES = (ids_of(3), np.zeros(3, dtype=int), CLASSES)


def expected_of(*models: str) -> dict[tuple[str, str], set[str]]:
    return {(model, family): set(conditions) for model in models for family, conditions in FAMILIES.items()}


def test_first_baseline_holds_the_complete_model_families(cell_result: MakeResult, tmp_path: Path) -> None:
    results = [cell_result(f"vit-{c}", [0, 1, 0]) for conditions in FAMILIES.values() for c in conditions]
    made, put_in, refused = updated(None, tmp_path, results, expected_of("vit"), IMAGES)
    assert everything(made) == everything(baseline_of(results, ids_of(3)))
    assert (made.path, sorted(put_in), refused) == (tmp_path, ["vit blur", "vit clean", "vit occlusion"], [])


def test_other_model_families_stay_as_they_were_to_the_byte(cell_result: MakeResult, committed: Baseline) -> None:
    held = Baseline.load(committed.path, "fashion_mnist")
    assert held is not None
    before = everything(held)
    lines = (committed.path / "cells.csv").read_text().splitlines()
    results = [cell_result(f"a-{c}", [1, 1, 1], nll=0.25) for c in FAMILIES["blur"]]
    new, put_in, refused = updated(held, held.path, results, expected_of("a"), IMAGES)
    assert (put_in, refused) == (["a blur"], [])
    assert everything(held) == before

    save(new)
    loaded = Baseline.load(committed.path, "fashion_mnist")
    assert loaded is not None
    replaced = {f"a-{c}" for c in FAMILIES["blur"]}
    for name, now in everything(loaded).items():
        if isinstance(now, dict):
            assert {cell: v for cell, v in now.items() if cell not in replaced} == {
                cell: v for cell, v in before[name].items() if cell not in replaced
            }
        else:
            assert now == before[name]
    for result in results:
        assert loaded.rows[cell_of(result.row).id] == result.row
        assert loaded.outcomes.prediction[cell_of(result.row).id].tolist() == [1, 1, 1]
    unchanged = [line for line in lines if ",a,blur," not in line]
    assert [line for line in (committed.path / "cells.csv").read_text().splitlines() if line in lines] == unchanged


def refusal(results: list[CellResult], baseline: Baseline | None, **expected: set[str]) -> str:
    """Why a run of nothing else is refused; the message must say that nothing changed."""
    families = {("a", family): conditions for family, conditions in expected.items()}
    with pytest.raises(BaselineError, match="no model-family is complete, so the baseline stays as it was") as caught:
        updated(baseline, Path("results"), results, families, IMAGES)
    return str(caught.value)


def test_run_on_fewer_images_is_refused(cell_result: MakeResult, committed: Baseline) -> None:
    results = [cell_result(f"a-{c}", [0, 1], n_expected=3) for c in FAMILIES["blur"]]
    assert "a blur: ran on 2 of 3 images; use --mae-limit 0" in refusal(results, committed)


def test_run_without_all_conditions_is_refused_naming_one(cell_result: MakeResult) -> None:
    results = [cell_result("a-box_blur-1.75", [0, 1, 0])]
    text = refusal(results, None, blur={"box_blur-1.75", "box_blur-5.25", "box_blur-10.50"})
    assert "a blur: 2 cells did not run, such as box_blur-10.50" in text
    assert "--mae-full" not in text


def test_run_of_fewer_levels_than_the_baseline_holds_is_refused_with_the_option(
    cell_result: MakeResult, committed: Baseline
) -> None:
    results = [cell_result("a-box_blur-1.75", [0, 1, 0])]
    text = refusal(results, committed, blur={"box_blur-1.75"})
    assert "a blur: 1 cells did not run, such as box_blur-5.25 (add --mae-full)" in text


def test_run_without_any_cell_is_refused(committed: Baseline) -> None:
    refusal([], committed)


def test_incomplete_families_stay_while_complete_ones_are_replaced(
    cell_result: MakeResult, committed: Baseline
) -> None:
    results = [
        cell_result("a-stripes-0.10", [1, 1, 1], nll=0.25, block_sums={"images": [3.0], "nll": [0.75]}),
        cell_result("a-box_blur-1.75", [1, 1, 1], nll=0.25),
        cell_result("b-clean-0.00", [1, 1], nll=0.25, n_expected=3),
    ]
    before = everything(committed)
    new, put_in, refused = updated(committed, committed.path, results, expected_of("a", "b"), IMAGES)
    assert put_in == ["a occlusion"]
    assert [text.partition(":")[0] for text in refused] == ["a blur", "b clean"]
    now = everything(new)
    for name in ("rows", "prediction", "block_sums"):
        changed = {cell for cell in before[name] if before[name][cell] != now[name][cell]}
        assert changed == {"a-stripes-0.10"}
        assert now[name].keys() == before[name].keys()


def test_other_images_never_join_cells_that_stay(cell_result: MakeResult, committed: Baseline) -> None:
    other = (ids_of(3, start=1), np.zeros(3, dtype=int), CLASSES)
    results = [cell_result(f"a-{c}", [0, 1, 0]) for c in FAMILIES["blur"]]
    wanted = "of other images and 6 of its cells were not run again: run them too, or remove the directory"
    with pytest.raises(BaselineError, match=wanted) as caught:
        updated(committed, committed.path, results, expected_of("a"), other)
    assert str(committed.path) in str(caught.value)
    results = [cell_result(cell, [0, 1, 0]) for cell in committed.rows]
    new, _, refused = updated(committed, committed.path, results, expected_of("a", "b"), other)
    assert new.outcomes.ids.tolist() == [i.encode() for i in other[0]]
    assert refused == []


@pytest.mark.parametrize(
    ("value", "inside"),
    [("true", True), ("1", True), ("TRUE", True), ("yes", True), ("", False), ("0", False), ("False", False)],
)
def test_gate_does_not_move_its_own_mark(
    cell_result: MakeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, inside: bool
) -> None:
    monkeypatch.setenv("CI", value)
    assert in_continuous_integration() is inside
    results = [cell_result("vit-clean-0.00", [0, 1, 0])]
    if inside:
        with pytest.raises(BaselineError, match="--mae-update-baseline is refused where CI is set"):
            updated(None, tmp_path, results, expected_of("vit"), IMAGES)
    else:
        updated(None, tmp_path, results, expected_of("vit"), IMAGES)


def test_refused_update_writes_nothing(cell_result: MakeResult, committed: Baseline) -> None:
    before = {file.name: file.read_bytes() for file in committed.path.iterdir()}
    with pytest.raises(BaselineError):
        updated(committed, committed.path, [cell_result("a-clean-0.00", [0], n_expected=3)], {}, IMAGES)
    updated(committed, committed.path, [cell_result("a-clean-0.00", [1, 1, 1])], {}, IMAGES)
    assert {file.name: file.read_bytes() for file in committed.path.iterdir()} == before
