"""Committed results: read as they were written, compared on shared images, replaced by complete runs only."""

from __future__ import annotations

import csv
import shutil
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
    Change,
    Incomparable,
    adopt,
    change_table,
    changes,
    read_rows,
    save,
    table,
    updated,
)
from mae_bench.history import BaselineError, Update
from mae_bench.labelled_images import LabelledImages
from mae_bench.outcomes import ABSENT, Outcomes
from mae_bench.regression import Rule, Verdict, indicator_shifts
from mae_bench.rows import FINGERPRINT, SCHEMA_VERSION, CellResult, ResultRow
from mae_bench.store import StoreError, cell_of

LAW = settings(max_examples=50, derandomize=True)
MakeResult = Callable[..., CellResult]

CLASSES = [f"class {i}" for i in range(10)]
RULE = Rule(10)


@pytest.fixture(autouse=True)
def outside_continuous_integration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


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
    return Baseline(path, rows, Outcomes.of(results, LabelledImages.of(ids, truth, CLASSES)))


def write(baseline: Baseline, put_in: Sequence[str] = (), reason: str = "new weights") -> Update:
    return save(baseline, put_in, reason, "full", baseline.path.parent)


def held(path: Path) -> Baseline:
    baseline = Baseline.load(path, "fashion_mnist")
    assert baseline is not None
    return baseline


# --------------------------------------------------------------------------- the table of rows

TYPES = {field.name: str(field.type) for field in fields(ResultRow)}
# what stands in a cell's id is not drawn
FREE = {name: kind for name, kind in TYPES.items() if name not in ("model", "condition", "status", "schema_version")}
PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "str": st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["=1+1", "@x", "-1", "'", "a\r\nb"]),
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


def test_table_holds_nothing_that_a_spreadsheet_computes(cell_result: MakeResult, tmp_path: Path) -> None:
    row = cell_result("vit-clean-0.00", view="=1+1", run_id='=HYPERLINK("x")', nll=-0.5).row
    path = tmp_path / "cells.csv"
    path.write_text(table([row]))
    with path.open(newline="") as file:
        (record,) = csv.DictReader(file)
    assert (record["view"], record["run_id"], record["nll"]) == ("'=1+1", '\'=HYPERLINK("x")', "-0.5")
    assert read_rows(path) == [row]


SCHEMA_1 = Path(__file__).parent / "data" / "schema_1"


def test_rows_of_schema_1_are_those_of_their_file_and_nothing_is_made_up(tmp_path: Path) -> None:
    with (SCHEMA_1 / "cells.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    rows = read_rows(SCHEMA_1 / "cells.csv")
    assert len(rows) == len(records) > 0
    for row, record in zip(rows, records, strict=True):
        assert record.pop("schema_version") == "1"
        for name, cell in record.items():
            value = getattr(row, name)
            assert (cell == "" and value in (None, "")) or (
                float(cell) == value if isinstance(value, int | float) else cell == value
            )
        assert (row.schema_version, row.distinct, row.machine, row.libraries) == (SCHEMA_VERSION, None, "", "")
    path = tmp_path / "cells.csv"
    path.write_text(table(rows))
    assert read_rows(path) == rows


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
        (lambda lines: [lines[0], lines[1], lines[2].replace("clean-0.00", "clean")], ""),
        (lambda lines: [lines[0], lines[1], "x" * 200_000], "limit"),
    ],
    ids=[
        "no number",
        "not finite",
        "unknown status",
        "short line",
        "long line",
        "other schema",
        "no level",
        "endless field",
    ],
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
    write(baseline)
    return held(baseline.path)


def test_baseline_is_loaded_as_it_was_saved(cell_result: MakeResult, tmp_path: Path) -> None:
    results = [cell_result(f"a-{c}", [0, 1, 0], block_sums={"images": [3.0]}) for c in ("clean-0.00", "stripes-0.10")]
    made = baseline_of(results, ids_of(3), path=tmp_path / "committed")
    line = write(made)
    assert everything(held(made.path)) == everything(made)
    assert held(made.path).history == (line,)
    assert sorted(file.name for file in made.path.iterdir()) == ["cells.csv", "history.csv", "outcomes.npz"]


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


def by_hand(committed: Baseline) -> None:
    """Write the files as something else would that knew of no history."""
    (committed.path / "history.csv").unlink()
    (committed.path / "cells.csv").write_text(table(committed.rows.values()))
    committed.outcomes.save(committed.path / "outcomes.npz")


def test_rows_of_several_suites_are_refused(committed: Baseline) -> None:
    committed.rows["a-clean-0.00"] = replace(committed.rows["a-clean-0.00"], suite="imagefolder")
    by_hand(committed)
    with pytest.raises(BaselineError, match="of suite fashion_mnist, imagefolder, the run is of fashion_mnist"):
        Baseline.load(committed.path, "fashion_mnist")


@pytest.mark.parametrize("where", ["rows", "prediction"])
def test_files_that_hold_different_cells_are_refused(committed: Baseline, where: str) -> None:
    if where == "rows":
        del committed.rows["a-clean-0.00"]
    else:
        del committed.outcomes.prediction["a-clean-0.00"]
    by_hand(committed)
    with pytest.raises(BaselineError, match=r"cells\.csv and outcomes\.npz hold different cells; restore both"):
        Baseline.load(committed.path, "fashion_mnist")


def test_a_cell_that_stands_in_the_table_twice_is_refused(committed: Baseline) -> None:
    by_hand(committed)
    with (committed.path / "cells.csv").open("a") as file:
        file.write(table([committed.rows["a-clean-0.00"]]).splitlines()[1] + "\n")
    with pytest.raises(BaselineError, match="hold different cells"):
        Baseline.load(committed.path, "fashion_mnist")


def test_a_baseline_from_before_there_was_a_history_is_loaded(committed: Baseline) -> None:
    before = everything(committed)
    by_hand(committed)
    assert everything(held(committed.path)) == before
    assert held(committed.path).history == ()
    write(held(committed.path))
    assert [(line.cells_before, line.cells_after) for line in held(committed.path).history] == [(8, 8)]


@pytest.mark.parametrize("name", ["cells.csv", "outcomes.npz"])
def test_a_file_that_was_changed_by_other_means_is_named(committed: Baseline, name: str) -> None:
    path = committed.path / name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(BaselineError, match="was changed by other means than --mae-update-baseline") as caught:
        Baseline.load(committed.path, "fashion_mnist")
    assert str(path) in str(caught.value)


def test_a_reader_sees_the_baseline_before_or_after_an_update(
    cell_result: MakeResult, committed: Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update comes whole between the reading of the one file and of the other."""
    results = [cell_result(cell, [1, 1, 1], nll=0.25) for cell in committed.rows]
    replacement, *_ = updated(committed, committed.path, results, {}, IMAGES)
    load = Outcomes.load

    def interrupted(path: Path) -> Outcomes:
        monkeypatch.setattr(Outcomes, "load", load)
        outcomes = load(path)
        write(replacement)
        return outcomes

    monkeypatch.setattr(Outcomes, "load", interrupted)
    assert everything(held(committed.path)) == everything(replacement)


def test_unreadable_outcomes_are_refused(committed: Baseline) -> None:
    by_hand(committed)
    (committed.path / "outcomes.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(StoreError, match=r"outcomes\.npz: not a file of outcomes"):
        Baseline.load(committed.path, "fashion_mnist")


# --------------------------------------------------------------------------- comparing


@settings(max_examples=100, derandomize=True)
@given(data=st.data())
def test_cell_is_judged_on_exactly_the_images_that_both_have_and_on_one_of_copies(
    cell_result: MakeResult, data: st.DataObject
) -> None:
    known = [f"{content:032x}-{copy}" for content in range(5) for copy in range(2)]
    there, here = (data.draw(st.permutations(known))[: data.draw(st.integers(1, 10))] for _ in range(2))
    ran = data.draw(st.integers(0, len(here)))
    outputs = st.integers(-2, 2)
    label = {image: data.draw(st.integers(0, 2)) for image in known}
    then = {image: data.draw(st.just(ABSENT) | outputs) for image in there}
    now = {image: data.draw(outputs) for image in here[:ran]}
    # the run may know of copies that are not the same to the byte
    group = {image: data.draw(st.integers(0, 3)) for image in here} if data.draw(st.booleans()) else None

    baseline = baseline_of([cell_result("vit-clean-0.00")], there, [label[image] for image in there])
    baseline.outcomes.prediction["vit-clean-0.00"][:] = list(then.values())
    groups = list(group.values()) if group is not None else []
    first = np.array([groups.index(one) for one in groups]) if group is not None else None
    outcome = baseline.compare(cell_result("vit-clean-0.00", list(now.values())), here, RULE, first)

    shared: list[str] = []
    for image in now:
        same = {other for other in known if other[:32] == image[:32]}
        if group is not None:
            same = {other for other in here if group[other] == group[image]}
        if then.get(image, ABSENT) != ABSENT and same.isdisjoint(shared):
            shared.append(image)
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


KNOWN = {
    "machine": "a processor", "libraries": "numpy 2", "torch_version": "2.14", "mae_bench_version": "1",
    "device": "cpu", "dtype": "float32", "threads": 1, "batch_size": 64,
    "weights_hash": "w", "preprocessing": "p", "manifest_hash": "m",
}  # fmt: skip


def test_the_same_weights_in_the_same_place_give_the_same_predictions(cell_result: MakeResult) -> None:
    assert KNOWN.keys() > set(FINGERPRINT)
    baseline = baseline_of([cell_result("vit-clean-0.00", [0, 1], **KNOWN)], ids_of(2))
    again, other = (cell_result("vit-clean-0.00", values, **KNOWN) for values in ([0, 1], [0, 0]))
    judged = [baseline.compare(result, ids_of(2), RULE) for result in (again, other)]
    assert [v.judgement for v in judged if isinstance(v, Verdict)] == ["unchanged", "determinism fault"]
    assert baseline.differing(again.row) == {}


@pytest.mark.parametrize("name", [*KNOWN])
def test_elsewhere_a_changed_prediction_is_no_fault_and_what_is_another_is_named(
    cell_result: MakeResult, name: str
) -> None:
    """A field that does not tell must not be taken for one that agrees."""
    changed = 2 if isinstance(KNOWN[name], int) else "other"
    for there, here in ((KNOWN[name], changed), *([("", KNOWN[name]), ("", "")] if name == "machine" else [])):
        baseline = baseline_of([cell_result("vit-clean-0.00", [0, 1], **KNOWN | {name: there})], ids_of(2))
        result = cell_result("vit-clean-0.00", [0, 0], **KNOWN | {name: here})
        outcome = baseline.compare(result, ids_of(2), RULE)
        assert isinstance(outcome, Verdict)
        assert outcome.judgement != "determinism fault"
        words = (str(here) or "unknown", str(there) or "unknown")
        assert baseline.differing(result.row) == ({name: words} if name in FINGERPRINT else {})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32 compiled"])
def test_only_plain_float32_promises_the_same_predictions(cell_result: MakeResult, dtype: str) -> None:
    baseline = baseline_of([cell_result("vit-clean-0.00", [0, 1], **KNOWN | {"dtype": dtype})], ids_of(2))
    outcome = baseline.compare(cell_result("vit-clean-0.00", [0, 0], **KNOWN | {"dtype": dtype}), ids_of(2), RULE)
    assert isinstance(outcome, Verdict)
    assert outcome.judgement != "determinism fault"


def test_nothing_differs_from_a_cell_that_the_baseline_lacks(cell_result: MakeResult) -> None:
    assert baseline_of([], []).differing(cell_result("vit-clean-0.00").row) == {}


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
IMAGES = LabelledImages.of(ids_of(3), np.zeros(3, dtype=int), CLASSES)


def expected_of(*models: str) -> dict[tuple[str, str], set[str]]:
    return {(model, family): set(conditions) for model in models for family, conditions in FAMILIES.items()}


def test_first_baseline_holds_the_complete_model_families(cell_result: MakeResult, tmp_path: Path) -> None:
    results = [cell_result(f"vit-{c}", [0, 1, 0]) for conditions in FAMILIES.values() for c in conditions]
    made, put_in, refused = updated(None, tmp_path, results, expected_of("vit"), IMAGES)
    assert everything(made) == everything(baseline_of(results, ids_of(3)))
    assert (made.path, sorted(put_in), refused) == (tmp_path, ["vit blur", "vit clean", "vit occlusion"], [])


def test_other_model_families_stay_as_they_were_to_the_byte(cell_result: MakeResult, committed: Baseline) -> None:
    before = everything(committed)
    lines = (committed.path / "cells.csv").read_text().splitlines()
    results = [cell_result(f"a-{c}", [1, 1, 1], nll=0.25) for c in FAMILIES["blur"]]
    new, put_in, refused = updated(committed, committed.path, results, expected_of("a"), IMAGES)
    assert (put_in, refused) == (["a blur"], [])
    assert everything(committed) == before

    write(new, put_in)
    loaded = held(committed.path)
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
    other = LabelledImages.of(ids_of(3, start=1), np.zeros(3, dtype=int), CLASSES)
    results = [cell_result(f"a-{c}", [0, 1, 0]) for c in FAMILIES["blur"]]
    wanted = "of other images and 6 of its cells were not run again: run them too, or remove the directory"
    with pytest.raises(BaselineError, match=wanted) as caught:
        updated(committed, committed.path, results, expected_of("a"), other)
    assert str(committed.path) in str(caught.value)
    results = [cell_result(cell, [0, 1, 0]) for cell in committed.rows]
    new, _, refused = updated(committed, committed.path, results, expected_of("a", "b"), other)
    assert new.outcomes.ids.tolist() == [i.encode() for i in other.ids]
    assert refused == []


@pytest.mark.parametrize("what", ["labels", "classes"])
def test_the_same_images_under_other_classes_never_join_cells_that_stay(
    cell_result: MakeResult, committed: Baseline, what: str
) -> None:
    labels = np.full(3, what == "labels", dtype=int)
    other = LabelledImages.of(ids_of(3), labels, CLASSES if what == "labels" else CLASSES[::-1])
    results = [cell_result(f"a-{c}", [0, 1, 0]) for c in FAMILIES["blur"]]
    with pytest.raises(BaselineError, match="of other images and 6 of its cells were not run again"):
        updated(committed, committed.path, results, expected_of("a"), other)


def test_refused_update_writes_nothing(cell_result: MakeResult, committed: Baseline) -> None:
    before = {file.name: file.read_bytes() for file in committed.path.iterdir()}
    with pytest.raises(BaselineError):
        updated(committed, committed.path, [cell_result("a-clean-0.00", [0], n_expected=3)], {}, IMAGES)
    updated(committed, committed.path, [cell_result("a-clean-0.00", [1, 1, 1])], {}, IMAGES)
    assert {file.name: file.read_bytes() for file in committed.path.iterdir()} == before


# --------------------------------------------------------------------------- writing


def test_every_update_is_a_line_of_the_history(cell_result: MakeResult, committed: Baseline) -> None:
    results = [cell_result(f"{m}-clean-0.00", [1, 1, 1]) for m in ("a", "c")]
    new, put_in, _ = updated(committed, committed.path, results, {}, IMAGES)
    line = write(new, put_in, " =new weights\n")
    first, last = held(committed.path).history
    assert (first, last) == (*committed.history, line)
    assert (line.reason, line.run_id, line.model_families) == ("=new weights", "full", "a clean, c clean")
    assert (line.cells_before, line.cells_after, line.revision) == (8, 9, "")
    assert line.date.endswith("+00:00")
    assert line.mae_bench_version


def test_an_update_of_what_another_has_updated_since_is_refused(cell_result: MakeResult, committed: Baseline) -> None:
    """Neither may take the other's cells away."""
    for model in ("c", "d"):
        new, *_ = updated(committed, committed.path, [cell_result(f"{model}-clean-0.00", [1, 1, 1])], {}, IMAGES)
        if model == "c":
            write(new)
            continue
        with pytest.raises(BaselineError, match="was updated by another run in the meantime: update it again"):
            write(new)
    assert {"c-clean-0.00"} == held(committed.path).rows.keys() - committed.rows.keys()


@pytest.mark.parametrize(("ci", "reason"), [("1", "new weights"), ("", " ")])
def test_what_is_refused_at_the_beginning_is_refused_at_the_end(
    committed: Baseline, monkeypatch: pytest.MonkeyPatch, ci: str, reason: str
) -> None:
    before = {file.name: file.read_bytes() for file in committed.path.iterdir()}
    monkeypatch.setenv("CI", ci)
    with pytest.raises(BaselineError, match="--mae-update-baseline"):
        write(committed, reason=reason)
    assert {file.name: file.read_bytes() for file in committed.path.iterdir()} == before


def test_a_baseline_of_an_older_schema_is_adopted_once(tmp_path: Path) -> None:
    for name in ("cells.csv", "outcomes.npz"):
        shutil.copy(SCHEMA_1 / name, tmp_path)
    before = Baseline.load(tmp_path, "imagefolder")
    assert before is not None
    line = adopt(tmp_path, "imagefolder", "schema 2", tmp_path)
    after = Baseline.load(tmp_path, "imagefolder")
    assert after is not None
    assert everything(after) == everything(before)
    assert after.history == (line,)
    assert (line.model_families, line.cells_before, line.cells_after) == ("", len(before.rows), len(before.rows))
    with (tmp_path / "cells.csv").open(newline="") as file:
        assert {record["schema_version"] for record in csv.DictReader(file)} == {str(SCHEMA_VERSION)}
    with pytest.raises(BaselineError, match="there is no baseline"):
        adopt(tmp_path / "nowhere", "imagefolder", "schema 2", tmp_path)


# --------------------------------------------------------------------------- side by side


def test_an_update_is_shown_old_beside_new(cell_result: MakeResult) -> None:
    def side(top1: dict[str, float]) -> Baseline:
        return baseline_of([cell_result(cell, top1=value) for cell, value in top1.items()], [])

    occlusion = {"a-stripes-0.10": 0.9, "a-stripes-0.50": 0.5, "a-stripes-0.90": 0.1}
    before = side(occlusion | {"a-clean-0.00": 0.9, "b-clean-0.00": 0.8})
    occlusion = {"a-stripes-0.10": 0.9, "a-stripes-0.50": 0.45, "a-border-0.10": 1.0}
    after = side(occlusion | {"a-clean-0.00": 0.9, "b-clean-0.00": 0.9, "c-clean-0.00": 0.6})
    found = changes(before, after)
    assert [(one.model, one.family, one.cells, one.added, one.removed, one.worst) for one in found] == [
        ("a", "occlusion", 3, 1, 1, "stripes-0.50"),
        ("b", "clean", 1, 0, 0, "clean-0.00"),
        ("c", "clean", 1, 1, 0, None),
    ]
    assert [one.before for one in found] == [pytest.approx(0.7), pytest.approx(0.8), None]
    assert [one.after for one in found] == [pytest.approx(0.675), pytest.approx(0.9), pytest.approx(0.6)]
    assert [one.change for one in found] == [pytest.approx(-0.025), pytest.approx(0.1), None]
    assert [one.worst_change for one in found] == [pytest.approx(-0.05), pytest.approx(0.1), None]
    assert changes(after, after) == []
    assert [one.added for one in changes(None, before)] == [1, 3, 1]


def test_cells_that_a_model_cannot_have_count_and_enter_no_mean(cell_result: MakeResult) -> None:
    sides = [
        baseline_of([cell_result("a-stripes-0.10", top1=one), cell_result("a-border-0.10", top1=None)], [])
        for one in (0.5, 0.25)
    ]
    assert changes(*sides) == [Change("a", "occlusion", 2, 0, 0, 0.5, 0.25, "stripes-0.10", -0.25)]


def test_changes_are_read_as_text_and_as_markdown() -> None:
    found = [
        Change("a|b", "blur", 12, 2, 0, 0.5, 0.25, "box_blur-1.75", -0.3),
        Change("c", "clean", 1, 1, 0, None, 0.625),
    ]
    text, page = change_table(found), change_table(found, markdown=True)
    for words in ("50.00 %", "25.00 %", "-25.00", "box_blur-1.75 -30.00", "62.50 %"):
        assert words in text
        assert words in page
    assert text.splitlines()[2].split()[0] == "a|b"
    *_, first, second = page.splitlines()
    assert (first.count("|"), second.count("|")) == (10, 10)
