"""Results on disk: written whole or not at all, read back as they were, refused where they are something else."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.cells import Cell
from mae_bench.evaluate import CellResult
from mae_bench.rows import SCHEMA_VERSION
from mae_bench.store import ABSENT, Outcomes, RunDirectory, StoreError, cell_of, write_atomically

LAW = settings(max_examples=50, derandomize=True)
MakeResult = Callable[..., CellResult]

CONDITIONS = ("clean-0.00", "gaussian_blur-0.50", "gaussian_blur-3.00", "random_patch_uniform-0.90", "box_blur-10.50")
# what ModelEntry allows: no white space, brackets, slashes or colons
NAMES = st.text(st.characters(exclude_characters="[]/\\:", categories=("L", "N", "P", "S")), min_size=1, max_size=20)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


# --------------------------------------------------------------------------- cells


def same_result(one: CellResult | None, other: CellResult | None) -> bool:
    assert one is not None
    assert other is not None
    return (
        one.row == other.row
        and one.prediction.dtype == other.prediction.dtype
        and one.prediction.tolist() == other.prediction.tolist()
        and one.indicators == other.indicators
        and one.block_sums == other.block_sums
    )


RECORDS = st.fixed_dictionaries(
    {
        "indicator": st.sampled_from(["alignment", "retention"]),
        "layer": st.integers(0, 13),
        "head": st.none() | st.integers(0, 3),
        "token": st.sampled_from(["cls", "mean_patch", "patch"]),
        "value": st.none() | FINITE,
        "low": st.none() | FINITE,
        "high": st.none() | FINITE,
        "reason": st.none() | st.text(max_size=5),
    }
)


@LAW
@given(
    model=NAMES,
    condition=st.sampled_from(CONDITIONS),
    prediction=st.lists(st.integers(-1001, 9), max_size=20),
    block_sums=st.dictionaries(st.text(max_size=5), st.lists(FINITE, min_size=1, max_size=4), max_size=4),
    indicators=st.lists(RECORDS, max_size=4),
    nll=st.none() | FINITE,
    view=st.text(max_size=5),
)
def test_cell_is_read_as_it_was_written(
    cell_result: MakeResult,
    tmp_path_factory: pytest.TempPathFactory,
    model: str,
    condition: str,
    prediction: list[int],
    block_sums: dict[str, list[float]],
    indicators: list[dict[str, Any]],
    nll: float | None,
    view: str,
) -> None:
    result = cell_result(
        f"{model}-{condition}", prediction, block_sums=block_sums, indicators=indicators, nll=nll, view=view
    )
    run = RunDirectory.create(tmp_path_factory.mktemp("run"), resume=False)
    run.write_cell(result)
    cell = Cell.parse(f"{model}-{condition}")
    assert same_result(run.read_cell(cell), result)
    assert [cell_of(r.row) for r in run.cells()] == [cell]


def test_cell_that_did_not_finish_is_none(cell_result: MakeResult, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_cell(cell_result("vit-gaussian_blur-0.50"))
    for name in ("vit-gaussian_blur-3.00", "vit-box_blur-10.50", "cnn-gaussian_blur-0.50"):
        assert run.read_cell(Cell.parse(name)) is None


@LAW
@given(st.sets(st.tuples(st.sampled_from(["vit", "cnn", "a-b"]), st.sampled_from(CONDITIONS)), max_size=8))
def test_all_cells_come_back_in_the_order_of_cells(
    cell_result: MakeResult, tmp_path_factory: pytest.TempPathFactory, names: set[tuple[str, str]]
) -> None:
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    for model, condition in names:
        run.write_cell(cell_result(f"{model}-{condition}"))
    assert [cell_of(r.row) for r in run.cells()] == sorted(Cell.parse(f"{m}-{c}") for m, c in names)


def test_cell_written_again_replaces_the_first(cell_result: MakeResult, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for prediction in ([1, 2, 3], [4]):
        run.write_cell(cell_result("vit-clean-0.00", prediction))
    assert [r.prediction.tolist() for r in run.cells()] == [[4]]


def damaged(text: str, change: Callable[[dict[str, Any]], Any]) -> str:
    record = json.loads(text)
    replaced = change(record)
    return json.dumps(record if replaced is None else replaced)


def without(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        for name in path[:-1]:
            record = record[name]
        del record[path[-1]]

    return change


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a number": lambda _: 3,
    "a list": lambda _: [1, 2],
    "null": lambda _: {"row": None},
    "a row that is a number": lambda record: record.update(row=3),
    "a row that is a text": lambda record: record.update(row="row"),
    "a row that is a list": lambda record: record.update(row=[]),
    "no row": without("row"),
    "no prediction": without("prediction"),
    "no block sums": without("block_sums"),
    "no indicators": without("indicators"),
    "a row without a field": without("row", "seed"),
    "a row with another field": lambda record: record["row"].update(mood="good"),
    "a row with a list": lambda record: record["row"].update(top1=[0.5]),
    "a row that is not finite": lambda record: record["row"].update(top1=float("nan")),
    "another schema": lambda record: record["row"].update(schema_version=SCHEMA_VERSION + 1),
    "words as predictions": lambda record: record.update(prediction=["cat"]),
    "fractions as predictions": lambda record: record.update(prediction=[0.5, 1.0, 2.0]),
    "no number as prediction": lambda record: record.update(prediction=[None, 1, 2]),
    "huge predictions": lambda record: record.update(prediction=[2**70, 1, 2]),
    "nested predictions": lambda record: record.update(prediction=[[1], [2], [3]]),
    "fewer predictions than images": lambda record: record.update(prediction=[1, 2]),
    "block sums that are a number": lambda record: record.update(block_sums=3),
    "indicators that are a number": lambda record: record.update(indicators=3),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_cell_file_of_other_content_is_refused_naming_file_and_remedy(
    cell_result: MakeResult, tmp_path: Path, damage: str
) -> None:
    run, cell = RunDirectory(tmp_path), Cell.parse("vit-clean-0.00")
    run.write_cell(cell_result(cell.id, [1, 2, 3]))
    path = run.cell_path(cell)
    path.write_text(damaged(path.read_text(), DAMAGES[damage]))
    for read in (lambda: run.read_cell(cell), run.cells):
        with pytest.raises(StoreError, match="remove it and run the cell again") as caught:
            read()
        assert str(path) in str(caught.value)


@LAW
@given(st.data())
def test_torn_cell_file_is_refused(
    cell_result: MakeResult, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    run, cell = RunDirectory(tmp_path_factory.mktemp("run")), Cell.parse("vit-clean-0.00")
    run.write_cell(cell_result(cell.id, [1, 2, 3], block_sums={"images": [3.0]}))
    path = run.cell_path(cell)
    content = path.read_bytes()
    # the last byte is the line's end, without which nothing is missing
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
    with pytest.raises(StoreError, match="remove it and run the cell again"):
        run.read_cell(cell)


@LAW
@given(st.binary(max_size=200))
def test_garbage_in_place_of_a_cell_is_refused(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    run, cell = RunDirectory(tmp_path_factory.mktemp("run")), Cell.parse("vit-clean-0.00")
    run.cell_path(cell).parent.mkdir(parents=True)
    run.cell_path(cell).write_bytes(garbage)
    with pytest.raises(StoreError, match="remove it and run the cell again") as caught:
        run.read_cell(cell)
    assert str(run.cell_path(cell)) in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["block_sums", "indicators"])
def test_number_that_is_not_finite_is_never_written(
    cell_result: MakeResult, tmp_path: Path, place: str, value: float
) -> None:
    what: Any = {"nll": [1.0, value]} if place == "block_sums" else [{"indicator": "alignment", "value": value}]
    run = RunDirectory(tmp_path)
    with pytest.raises(StoreError, match=r"vit-clean-0\.00.*not finite.*check the weights"):
        run.write_cell(cell_result("vit-clean-0.00", [1], **{place: what}))
    assert list(tmp_path.rglob("*.json")) == []


# --------------------------------------------------------------------------- written whole or not at all


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_at(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full at a step of writing."""

    def refuse(*_: object, **__: object) -> Any:
        raise full()

    if step in ("fsync", "replace"):
        monkeypatch.setattr(os, step, refuse)
        return
    opened = tempfile.NamedTemporaryFile

    def temporary(*arguments: Any, **options: Any) -> Any:
        file: Any = opened(*arguments, **options)
        setattr(file, step, refuse)
        return file

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse if step == "open" else temporary)


def outcomes(prediction: dict[str, list[int]], labels: list[int] | None = None, **block_sums: Any) -> Outcomes:
    images = len(next(iter(prediction.values()), ()))
    return Outcomes(
        "fashion_mnist",
        np.array([f"{i:032x}-0" for i in range(images)], dtype="S"),
        np.array(labels or [0] * images, dtype=np.int16),
        np.array(["a", "b"]),
        {cell: np.array(values, dtype=np.int16) for cell, values in prediction.items()},
        {cell: block_sums.get(cell, {}) for cell in prediction},
    )


@pytest.mark.parametrize("step", ["open", "write", "flush", "fsync", "replace"])
@pytest.mark.parametrize("kind", ["cell", "manifest", "outcomes"])
def test_full_disk_leaves_the_old_file_and_nothing_else(
    cell_result: MakeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, step: str
) -> None:
    run = RunDirectory(tmp_path)

    def write(version: int) -> None:
        if kind == "cell":
            run.write_cell(cell_result("vit-clean-0.00", [version] * 3))
        elif kind == "manifest":
            run.write_manifest({"version": version})
        else:
            outcomes({"vit-clean-0.00": [version] * 3}).save(tmp_path / "outcomes.npz")

    write(1)
    [path] = (file for file in tmp_path.rglob("*") if file.is_file())
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        fail_at(step, patch)
        with pytest.raises(StoreError, match=r"cannot be written \(.*No space left.*free or choose another") as caught:
            write(2)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    write(2)
    assert path.read_bytes() != before


@pytest.mark.parametrize("step", ["open", "write", "flush", "fsync", "replace"])
def test_full_disk_leaves_no_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    with monkeypatch.context() as patch:
        fail_at(step, patch)
        with pytest.raises(StoreError, match="cannot be written"):
            write_atomically(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_file_that_outgrows_what_the_system_allows_leaves_the_old_one(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "file"
    write_atomically(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"file: cannot be written \(.*free or choose another place"):
            write_atomically(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_reader_sees_the_old_file_until_the_new_one_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    seen = []
    for step in ("fsync", "replace"):
        original = getattr(os, step)

        def observe(*arguments: Any, step: str = step, original: Callable[..., None] = original) -> None:
            seen.append((step, path.read_bytes()))
            original(*arguments)

        monkeypatch.setattr(os, step, observe)
    write_atomically(path, b"new")
    # renaming before the bytes are on the disk would leave an empty file after a crash
    assert seen == [("fsync", b"old"), ("replace", b"old")]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("blocked", ["file", "file/below"])
def test_place_below_a_file_is_named(tmp_path: Path, blocked: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written") as caught:
        write_atomically(tmp_path / blocked / "new", b"")
    assert str(tmp_path / blocked / "new") in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_results_can_be_read_by_others(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode & 0o444 == 0o444


# --------------------------------------------------------------------------- run directories


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["new", "new/below"])
def test_run_directory_is_made(tmp_path: Path, name: str, resume: bool) -> None:
    run = RunDirectory.create(tmp_path / name, resume)
    assert run.path.is_dir()
    assert list(run.path.iterdir()) == []
    assert run.run_id == run.path.name


def test_results_of_an_earlier_run_are_not_mixed_in_unasked(cell_result: MakeResult, tmp_path: Path) -> None:
    cell = Cell.parse("vit-clean-0.00")
    RunDirectory.create(tmp_path, resume=False).write_cell(cell_result(cell.id, [1]))
    with pytest.raises(StoreError, match="is not empty: add --mae-resume") as caught:
        RunDirectory.create(tmp_path, resume=False)
    assert str(tmp_path) in str(caught.value)
    assert RunDirectory.create(tmp_path, resume=True).read_cell(cell) is not None


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["file", "file/below"])
def test_run_directory_where_a_file_is_in_the_way_is_refused(tmp_path: Path, name: str, resume: bool) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"is not writable .*choose another with --mae-run") as caught:
        RunDirectory.create(tmp_path / name, resume)
    assert str(tmp_path / name) in str(caught.value)


# --------------------------------------------------------------------------- merged tables


def test_merged_tables_hold_every_row_and_record(cell_result: MakeResult, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, resume=False)
    ids, labels = ["0a-0", "0b-0", "0b-1"], np.array([0, 1, 1])
    record = {"indicator": "alignment", "layer": 1, "head": None, "token": "cls", "reason": None}
    written = [
        cell_result("vit-clean-0.00", [0, 1, 1], labels, nll=0.25),
        cell_result(
            "vit-gaussian_blur-0.50",
            [0, 0, 1],
            labels,
            block_sums={"images": [2.0, 1.0]},
            indicators=[
                {**record, "value": 0.1 + 0.2, "low": 0.25, "high": None},
                {**record, "head": 2, "value": None, "low": None, "high": None, "reason": "constant"},
            ],
        ),
        cell_result("cnn-gaussian_blur-3.00", [0, 1], labels, n_expected=3),
    ]
    for result in written:
        run.write_cell(result)
    merged = run.merge(ids, labels, ["coat", "bag"])

    by_cell = sorted(written, key=lambda r: cell_of(r.row).id)
    assert all(same_result(*pair) for pair in zip(merged, by_cell, strict=True))

    def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
        return frame.astype(object).where(frame.notna(), None).to_dict("records")

    assert plain(pd.read_parquet(tmp_path / "cells.parquet")) == [r.row.to_dict() for r in by_cell]
    assert plain(pd.read_parquet(tmp_path / "indicators.parquet")) == [
        {"cell": cell_of(r.row).id, **record} for r in by_cell for record in r.indicators
    ]
    loaded = Outcomes.load(tmp_path / "outcomes.npz")
    assert_same_outcomes(loaded, Outcomes.of("fashion_mnist", by_cell, ids, labels, ["coat", "bag"]))


def test_run_without_a_finished_cell_merges_to_empty_tables(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).merge(["0a-0"], np.array([0]), ["coat"]) == []
    assert len(pd.read_parquet(tmp_path / "cells.parquet")) == 0
    assert len(pd.read_parquet(tmp_path / "indicators.parquet")) == 0
    assert Outcomes.load(tmp_path / "outcomes.npz").prediction == {}


# --------------------------------------------------------------------------- outcomes


def assert_same_outcomes(one: Outcomes, other: Outcomes) -> None:
    assert one.suite == other.suite
    for name in ("ids", "labels", "classes"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist()
    assert {cell: values.tolist() for cell, values in one.prediction.items()} == {
        cell: values.tolist() for cell, values in other.prediction.items()
    }
    assert {cell: {name: v.tolist() for name, v in sums.items()} for cell, sums in one.block_sums.items()} == {
        cell: {name: v.tolist() for name, v in sums.items()} for cell, sums in other.block_sums.items()
    }
    for mine, theirs in zip(one.prediction.values(), other.prediction.values(), strict=True):
        assert mine.dtype == theirs.dtype == np.int16


@st.composite
def any_outcomes(draw: st.DrawFn) -> Outcomes:
    images = draw(st.integers(0, 12))
    classes = draw(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1), min_size=1, max_size=3))
    names = [f"{m}-{c}" for m in ("vit", "größe") for c in CONDITIONS]
    prediction, block_sums = {}, {}
    for cell in draw(st.lists(st.sampled_from(names), unique=True, max_size=4)):
        values = draw(st.lists(st.just(ABSENT) | st.integers(-1001, 999), min_size=images, max_size=images))
        prediction[cell] = np.array(values, dtype=np.int16)
        sums = st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=5)
        drawn = draw(st.dictionaries(st.sampled_from(["images", "nll", "active_overlap"]), sums))
        block_sums[cell] = {name: np.array(v, dtype=np.float32) for name, v in drawn.items()}
    return Outcomes(
        draw(st.sampled_from(["fashion_mnist", "imagefolder"])),
        np.array([f"{i:032x}-{i % 2}" for i in range(images)], dtype="S"),
        np.array(draw(st.lists(st.integers(0, 999), min_size=images, max_size=images)), dtype=np.int16),
        np.array(classes, dtype="U"),
        prediction,
        block_sums,
    )


@LAW
@given(any_outcomes())
def test_outcomes_are_loaded_as_they_were_saved(tmp_path_factory: pytest.TempPathFactory, saved: Outcomes) -> None:
    path = tmp_path_factory.mktemp("outcomes") / "outcomes.npz"
    saved.save(path)
    loaded = Outcomes.load(path)
    # cells are kept sorted, so compare them by name
    loaded.prediction = {cell: loaded.prediction[cell] for cell in saved.prediction}
    assert_same_outcomes(loaded, saved)


def test_same_content_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A committed file changes only with what it says: not with the order of the cells, nor with the date."""
    sums = {"images": np.array([2.0], dtype=np.float32), "nll": np.array([0.5], dtype=np.float32)}
    one = outcomes({"a-clean-0.00": [0, 1], "b-clean-0.00": [1, 1]}, **{"a-clean-0.00": sums})
    reverse = dict(reversed(sums.items()))
    other = outcomes({"b-clean-0.00": [1, 1], "a-clean-0.00": [0, 1]}, **{"a-clean-0.00": reverse})
    one.save(tmp_path / "one")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10**7)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(now + 10**7))
    other.save(tmp_path / "other")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@LAW
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-12, 9)), min_size=1, max_size=20), st.data())
def test_outcomes_of_results_say_of_each_image_what_was_predicted(
    cell_result: MakeResult, pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    labels = np.array([label for label, _ in pairs])
    ran = data.draw(st.integers(0, len(pairs)))
    ids = [f"{i:x}-0" for i in range(len(pairs))]
    result = cell_result("vit-clean-0.00", [p for _, p in pairs[:ran]], block_sums={"nll": [1.5, 2.5]})
    held = Outcomes.of("fashion_mnist", [result], ids, labels, [str(i) for i in range(10)])
    for i, (label, prediction) in enumerate(pairs):
        assert held.prediction["vit-clean-0.00"][i] == (prediction if i < ran else ABSENT)
        # an image that did not run was not classified rightly, whatever its label
        assert held.correct("vit-clean-0.00")[i] == (i < ran and prediction == label)
    assert [i.decode() for i in held.ids] == ids
    assert held.block_sums["vit-clean-0.00"]["nll"].tolist() == [1.5, 2.5]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "outcomes.npz"
    sums = {name: np.array([2.0, 1.0], dtype=np.float32) for name in ("images", "nll")}
    outcomes({"a-clean-0.00": [0, 1, 1], "b-clean-0.00": [1, 1, ABSENT]}, **{"a-clean-0.00": sums}).save(path)
    return path


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def refused(path: Path) -> str:
    with pytest.raises(StoreError, match="restore it or make the baseline again") as caught:
        Outcomes.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x93NUMPY", bytes(100)])
def test_file_that_holds_no_outcomes_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "outcomes.npz"
    path.write_bytes(content)
    refused(path)


def test_missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "outcomes.npz")
    refused(tmp_path)


def test_single_array_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "outcomes.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    refused(tmp_path / "outcomes.npz")


@pytest.mark.parametrize("name", ["suite", "ids", "labels", "classes", "cells", "prediction", "block_sums"])
def test_missing_array_is_refused_by_name(saved: Path, name: str) -> None:
    held = arrays(saved)
    del held[name]
    np.savez(saved, **held)
    assert name in refused(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"prediction": np.zeros((1, 3), dtype=np.int16)},
        {"prediction": np.zeros((2, 2), dtype=np.int16)},
        {"prediction": np.zeros(2, dtype=np.int16)},
        {"prediction": np.zeros((2, 3))},
        {"labels": np.zeros(2, dtype=np.int16)},
        {"block_sums": np.zeros((2, 1, 2), dtype=np.float32)},
        {"block_sums": np.zeros((1, 2, 2), dtype=np.float32)},
        {"block_sums": np.zeros((2, 2), dtype=np.float32)},
        {"schema_version": np.array([1, 1])},
        {"schema_version": np.array("one")},
    ],
    ids=lambda change: " ".join(f"{name} {value.dtype}{value.shape}" for name, value in change.items()),
)
def test_arrays_that_do_not_fit_each_other_are_refused(saved: Path, change: dict[str, np.ndarray]) -> None:
    np.savez(saved, **(arrays(saved) | change))
    refused(saved)


class Trap:
    """Touches a file when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("name", ["suite", "ids", "prediction", "block_sums", "schema_version"])
def test_pickled_content_is_never_executed(saved: Path, name: str) -> None:
    canary = saved.parent / "canary"
    hostile = np.array([Trap(canary)], dtype=object)
    np.savez(saved, **(arrays(saved) | {name: hostile}))
    assert "allow_pickle=False" in refused(saved)
    assert not canary.exists()
    hostile.dump(saved)
    refused(saved)
    assert not canary.exists()
    np.load(saved, allow_pickle=True)
    assert canary.exists()  # or the trap would prove nothing


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1])
def test_other_schema_is_refused_with_both_versions_and_a_remedy(saved: Path, version: int) -> None:
    np.savez(saved, **(arrays(saved) | {"schema_version": np.array(version)}))
    wanted = rf"schema {version}, this mae_bench reads {SCHEMA_VERSION}: make the baseline again with --mae-update-base"
    with pytest.raises(StoreError, match=wanted) as caught:
        Outcomes.load(saved)
    assert str(saved) in str(caught.value)


@settings(max_examples=150, derandomize=True)
@given(data=st.data())
def test_damaged_file_is_refused_or_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("outcomes") / "outcomes.npz"
    sums = {name: np.arange(1, 5, dtype=np.float32) for name in ("images", "nll")}
    whole = outcomes({"a-clean-0.00": [0, 1, 1], "b-clean-0.00": [1, 1, ABSENT]}, **{"a-clean-0.00": sums})
    whole.save(path)
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[where:]
    else:
        content[where] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        loaded = Outcomes.load(path)
    except StoreError as error:
        assert str(path) in str(error)  # noqa: PT017 - a flip in a name or a date that nobody reads is no fault
        return
    assert_same_outcomes(loaded, whole)
