"""Results on disk: written whole or not at all, read back as they were, refused where they are something else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.cells import Cell
from mae_bench.labelled_images import LabelledImages
from mae_bench.outcomes import ABSENT, Outcomes
from mae_bench.representation import Representation
from mae_bench.rows import RECORD, SCHEMA_VERSION, CellResult
from mae_bench.store import Plan, RunDirectory, StoreError, cell_of, write_atomically
from references.runs import model_record

LAW = settings(max_examples=50, derandomize=True)
FEW = settings(max_examples=15, derandomize=True)
"""Where every example writes many files."""
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


@FEW
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


def resealed(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Content of a file under a seal that is right for what ``change`` made of it."""
    record = json.loads(content)
    del record["sha256"]
    replaced = change(record)
    return seal_of(json.dumps(record if replaced is None else replaced).encode())


def seal_of(body: bytes) -> bytes:
    """What a writer who knows no rule but that of the seal would write."""
    digest = hashlib.sha256(body).hexdigest()
    return body if body[:1] != b"{" else b'{"sha256": "' + digest.encode() + b'", ' + body[1:]


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
    "another schema of the file": lambda record: record.update(schema_version=SCHEMA_VERSION + 1),
    "a schema that is a text": lambda record: record.update(schema_version="2"),
    "a condition of another degradation": lambda record: record["row"].update(degradation="box_blur"),
    "a condition of another level": lambda record: record["row"].update(level=0.5),
    "a condition that is none": lambda record: record["row"].update(condition="clean"),
    "words as predictions": lambda record: record.update(prediction=["cat"]),
    "fractions as predictions": lambda record: record.update(prediction=[0.5, 1.0, 2.0]),
    "no number as prediction": lambda record: record.update(prediction=[None, 1, 2]),
    "huge predictions": lambda record: record.update(prediction=[2**70, 1, 2]),
    "predictions beyond 16 bits": lambda record: record.update(prediction=[2**15, 1, 2]),
    "a prediction that means none": lambda record: record.update(prediction=[ABSENT, 1, 2]),
    "nested predictions": lambda record: record.update(prediction=[[1], [2], [3]]),
    "fewer predictions than images": lambda record: record.update(prediction=[1, 2]),
    "block sums that are a number": lambda record: record.update(block_sums=3),
    "block sums of words": lambda record: record.update(block_sums={"nll": ["much"]}),
    "block sums that are not finite": lambda record: record.update(block_sums={"nll": [float("inf")]}),
    "indicators that are a number": lambda record: record.update(indicators=3),
    "an indicator that is a number": lambda record: record.update(indicators=[3]),
    "an indicator without a value": lambda record: record.update(indicators=[{"indicator": "alignment"}]),
    "an indicator of words": lambda record: record.update(indicators=[dict.fromkeys(RECORD, "much")]),
    "a reason that is a number": lambda record: record.update(reason=3),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_cell_file_of_other_content_is_refused_naming_file_and_remedy(
    cell_result: MakeResult, tmp_path: Path, damage: str
) -> None:
    run, cell = RunDirectory(tmp_path), Cell.parse("vit-clean-0.00")
    run.write_cell(cell_result(cell.id, [1, 2, 3]))
    path = run.cell_path(cell)
    path.write_bytes(resealed(path.read_bytes(), DAMAGES[damage]))
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
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
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


def test_every_flip_of_a_bit_in_a_cell_is_refused(cell_result: MakeResult, tmp_path: Path) -> None:
    run, cell = RunDirectory(tmp_path), Cell.parse("vit-clean-0.00")
    run.write_cell(cell_result(cell.id, [1, 2, 3], block_sums={"nll": [1e-05]}))
    path = run.cell_path(cell)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):  # every place of a bit in a byte, all over the file
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(StoreError, match="remove it and run the cell again"):
            run.read_cell(cell)


HOSTILE = {
    "nested too deeply": b'{"row": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of many digits": b'{"row": ' + b"9" * 10_000 + b"}",
    "not a number": b'{"row": NaN}',
    "infinity": b'{"row": 1e999}',
    "no UTF-8": b'{"row": "\xff"}',
    "UTF-16": '{"row": 1}'.encode("utf-16"),
    "half a character": b'{"row": {"schema_version": 2, "condition": "\\ud800"}}',
}


@pytest.mark.parametrize("kind", ["cell", "representation", "manifest", "images", "model", "plan"])
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("make", [bytes, seal_of], ids=["plain", "sealed"])
def test_hostile_json_is_refused_naming_file_and_remedy(
    tmp_path: Path, kind: str, content: bytes, make: Callable[[bytes], bytes]
) -> None:
    run, cell = RunDirectory(tmp_path), Cell.parse("vit-clean-0.00")
    path, read = {
        "cell": (run.cell_path(cell), run.cells),
        "representation": (run.representation_path(cell), run.representations),
        "manifest": (tmp_path / "manifest.json", run.manifest),
        "images": (tmp_path / "images.json", run.images),
        "model": (run.model_path("vit"), run.models),
        "plan": (tmp_path / "plan.json", run.unfinished),
    }[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make(content))
    if kind == "manifest" and make is bytes and b"ud800" in content:
        return  # of which nothing but a record is expected
    with pytest.raises(StoreError, match="remove it and run") as caught:
        read()
    assert str(path) in str(caught.value)


# --------------------------------------------------------------------------- a file is of one cell


# what ModelEntry allows, and what nobody should be called
HOSTILE_NAMES = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20) | st.sampled_from(
    [
        "..",
        ".",
        "../../x",
        "/abs",
        "a/b",
        "a\\b",
        "CON",
        "con.txt",
        "ViT",
        "vit",
        "~",
        "x" * 300,
        "a\nb",
        "-rf",
        "\ud800",
    ]
)


@FEW
@given(st.lists(HOSTILE_NAMES, min_size=1, max_size=4, unique=True))
def test_cells_of_any_names_lie_in_the_run_and_are_told_apart(
    cell_result: MakeResult, tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    base = tmp_path_factory.mktemp("base")
    run = RunDirectory(base / "deep" / "run")
    cells = [Cell.parse(f"{name}-clean-0.00") for name in names]
    for number, cell in enumerate(cells):
        run.write_cell(cell_result(cell.id, [number]))
        run.write_representation(cell, Representation({"number": number}, []))
    for number, cell in enumerate(cells):
        stored, representation = run.read_cell(cell), run.read_representation(cell)
        assert stored is not None
        assert representation is not None
        assert stored.prediction.tolist() == [number] == [representation.identity["number"]]
    assert [cell_of(result.row) for result in run.cells()] == sorted(cells)
    assert list(run.representations()) == [cell.id for cell in sorted(cells)]
    inside = [path for path in (base / "deep" / "run").rglob("*") if path.is_file()]
    assert sorted(path for path in base.rglob("*") if path.is_file()) == sorted(inside)
    assert len(inside) == 2 * len(cells)


@pytest.mark.parametrize("kind", ["cell", "representation"])
@pytest.mark.parametrize("place", ["vit-box_blur-10.50", "cnn-clean-0.00", "ViT-clean-0.00"])
def test_file_in_the_place_of_another_cell_is_refused(
    cell_result: MakeResult, tmp_path: Path, kind: str, place: str
) -> None:
    run, cell, other = RunDirectory(tmp_path), Cell.parse("vit-clean-0.00"), Cell.parse(place)
    run.write_cell(cell_result(cell.id, [1]))
    run.write_representation(cell, Representation({}, []))
    of, read, each = {
        "cell": (run.cell_path, run.read_cell, run.cells),
        "representation": (run.representation_path, run.read_representation, run.representations),
    }[kind]
    of(other).parent.mkdir(parents=True, exist_ok=True)
    of(cell).rename(of(other))
    for again in (lambda: read(other), each):
        with pytest.raises(StoreError, match=r"it is of vit-clean-0\.00.*remove it") as caught:
            again()
        assert str(of(other)) in str(caught.value)
    assert read(cell) is None


REPRESENTATION_DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no cell": without("cell"),
    "a cell that is a number": lambda record: record.update(cell=3),
    "a cell that is none": lambda record: record.update(cell="vit"),
    "no identity": without("identity"),
    "a record without a value": lambda record: record.update(records=[{"indicator": "alignment"}]),
    "records that are a number": lambda record: record.update(records=3),
    "another entry": lambda record: record.update(mood="good"),
}


@pytest.mark.parametrize("damage", REPRESENTATION_DAMAGES)
def test_representation_of_other_content_is_refused(tmp_path: Path, damage: str) -> None:
    run, cell = RunDirectory(tmp_path), Cell.parse("vit-clean-0.00")
    run.write_representation(cell, Representation({"seed": 0}, []))
    path = run.representation_path(cell)
    path.write_bytes(resealed(path.read_bytes(), REPRESENTATION_DAMAGES[damage]))
    with pytest.raises(StoreError, match="remove it and run the item again") as caught:
        run.read_representation(cell)
    assert str(path) in str(caught.value)


def test_representation_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(StoreError, match=r"vit-clean-0\.00 is not finite; check the weights"):
        run.write_representation(Cell.parse("vit-clean-0.00"), Representation({}, [{"value": float("nan")}]))
    assert list(tmp_path.rglob("*.json")) == []


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
    if step == "open":
        monkeypatch.setattr(tempfile, "mkstemp", refuse)
        return
    opened = os.fdopen

    def temporary(*arguments: Any, **options: Any) -> Any:
        file: Any = opened(*arguments, **options)
        setattr(file, step, refuse)
        return file

    monkeypatch.setattr(os, "fdopen", temporary)


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
            images = LabelledImages.of(["0a-0", "0b-0", "0c-0"], np.zeros(3), ["a", "b"])
            Outcomes.of([cell_result("vit-clean-0.00", [version] * 3)], images).save(tmp_path / "outcomes.npz")

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
    # renaming before the bytes are on the disk would leave an empty file after a crash, and a folder that is not on the
    # disk the old one
    assert seen == [("fsync", b"old"), ("replace", b"old"), ("fsync", b"new")]
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


def test_what_a_run_is_of_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert (run.manifest(), run.images(), run.plan(), run.models()) == (None, None, None, {})
    run.write_manifest({"run_id": "run", "settings": {"seed": 0}})
    images = LabelledImages(["0a-0", "0a-1"], np.array([1, 1]), ["a", "b"], np.array([0, 0], dtype=np.int32))
    run.write_images(images)
    for name in ("vit", "ViT"):
        run.write_model_record(model_record(name))
    read = run.images()
    assert read is not None
    assert read.to_dict() == images.to_dict()
    assert run.manifest() == {"run_id": "run", "settings": {"seed": 0}}
    assert run.models() == {name: model_record(name) for name in ("ViT", "vit")}


def test_model_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_model_record(model_record("vit"))
    run.model_path("vit").rename(run.model_path("cnn"))
    with pytest.raises(StoreError, match="is of another model, vit; remove it") as caught:
        run.models()
    assert str(run.model_path("cnn")) in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"name": 3}, {"arm": 3}, {"training_seed": "3"}, {"weights_hash": None}, {}], ids=str
)
def test_model_of_which_something_else_is_said_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    run = RunDirectory(tmp_path)
    path = run.model_path("vit")
    run.write_model_record(model_record("vit"))
    path.write_bytes(
        resealed(path.read_bytes(), lambda record: {"schema_version": 2} if not change else record | change)
    )
    with pytest.raises(StoreError, match="does not say name, arm, training_seed, weights_hash of a model") as caught:
        run.models()
    assert str(path) in str(caught.value)


def test_run_merged_from_others_is_not_gone_on_with(tmp_path: Path) -> None:
    RunDirectory(tmp_path).write_manifest({"parts": {"one": {}}})
    with pytest.raises(StoreError, match="is merged from several runs: go on with one of these"):
        RunDirectory.create(tmp_path, resume=True)


# --------------------------------------------------------------------------- plans


IDS = st.sets(st.sampled_from([f"{m}-{c}" for m in ("vit", "ViT", "a/b") for c in CONDITIONS]))


@FEW
@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=3), IDS, IDS)
def test_what_was_planned_and_has_no_file_is_unfinished(
    cell_result: MakeResult,
    tmp_path_factory: pytest.TempPathFactory,
    plans: list[tuple[set[str], set[str]]],
    cells: set[str],
    representations: set[str],
) -> None:
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    assert run.unfinished() == Plan()
    for plan in plans:
        run.write_plan(*plan)
    for name in cells:
        run.write_cell(cell_result(name))
    for name in representations:
        run.write_representation(Cell.parse(name), Representation({}, []))
    planned = [set().union(*(plan[k] for plan in plans)) for k in range(2)]
    assert run.plan() == Plan(*map(frozenset, planned))
    assert run.unfinished() == Plan(frozenset(planned[0] - cells), frozenset(planned[1] - representations))
    assert bool(run.unfinished()) is bool(planned[0] - cells or planned[1] - representations)


@pytest.mark.parametrize("cells", [None, 3, ["vit"], [3]], ids=str)
def test_damaged_plan_is_refused_and_not_written_over(tmp_path: Path, cells: object) -> None:
    run, path = RunDirectory(tmp_path), tmp_path / "plan.json"
    run.write_plan(["vit-clean-0.00"], [])
    content = resealed(path.read_bytes(), lambda record: record.update(cells=cells))
    path.write_bytes(content)
    for use in (run.plan, run.unfinished, lambda: run.write_plan(["vit-clean-0.00"], [])):
        with pytest.raises(StoreError, match="not a plan") as caught:
            use()
        assert str(path) in str(caught.value)
    assert path.read_bytes() == content


# --------------------------------------------------------------------------- one session at a time


HOLD = """
import sys
from pathlib import Path
from mae_bench.store import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
run.hold()
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def session(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run directory."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_second_session_is_refused_and_told_which_is_the_first(tmp_path: Path, session: subprocess.Popen[str]) -> None:
    run = RunDirectory.create(tmp_path, resume=False)
    for _ in range(2):  # being refused does not make the first one forgotten
        with pytest.raises(
            StoreError, match=rf"being written by another session \(pid {session.pid} on .*\): wait"
        ) as caught:
            run.hold()
        assert str(tmp_path) in str(caught.value)
    run.release()  # what it does not hold
    with pytest.raises(StoreError, match="another session"):
        run.hold()


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_session_that_is_gone_blocks_nobody(tmp_path: Path, session: subprocess.Popen[str], how: str) -> None:
    if how == "killed":
        session.kill()
    else:
        session.communicate("\n")
    session.wait()
    run = RunDirectory.create(tmp_path, resume=False)
    run.hold()
    run.hold()  # what it holds already
    with pytest.raises(StoreError, match=rf"another session \(pid {os.getpid()} on "):
        RunDirectory(tmp_path).hold()
    run.release()
    other = RunDirectory(tmp_path)
    other.hold()
    other.release()
    assert RunDirectory.create(tmp_path, resume=False).path == tmp_path  # what a lock leaves is no result


def test_place_that_cannot_be_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be locked") as caught:
        RunDirectory(tmp_path / "file").hold()
    assert str(tmp_path / "file") in str(caught.value)
    with monkeypatch.context() as patch:
        fail_at("replace", patch)
        with pytest.raises(StoreError, match="cannot be written"):
            RunDirectory(tmp_path).hold()
    RunDirectory(tmp_path).hold()  # the lock was given back


# --------------------------------------------------------------------------- files of earlier versions


SCHEMA_1 = Path(__file__).parent / "data" / "schema_1"
"""Of a small ViT on 41 images of three classes, two of them copies of the third but last."""


def test_cell_of_schema_1_is_read_as_it_was_and_what_it_did_not_know_is_unknown() -> None:
    run = RunDirectory(SCHEMA_1 / "run")
    for path in run.cell_files():
        record = json.loads(path.read_bytes())
        result = run.read_cell_file(path)
        known = {**record["row"], "schema_version": SCHEMA_VERSION}
        assert result.row.to_dict() == {"distinct": None, "machine": "", "libraries": ""} | known
        assert result.prediction.tolist() == record["prediction"]
        assert (result.block_sums, result.indicators) == (record["block_sums"], record["indicators"])
        assert same_result(run.read_cell(cell_of(result.row)), result)
    assert [cell_of(result.row).condition for result in run.cells()] == [
        "clean-0.00", "token_drop-0.10", "token_drop-0.50", "token_drop-0.90"
    ]  # fmt: skip


def test_representation_of_schema_1_is_of_the_cell_that_its_identity_and_its_place_say() -> None:
    run = RunDirectory(SCHEMA_1 / "run")
    found = run.representations()
    assert list(found) == ["vit-clean-0.00", "vit-token_drop-0.50"]
    for name, representation in found.items():
        record = json.loads(run.representation_path(Cell.parse(name)).read_bytes())
        assert representation.to_dict() == {"replicates": {}, **record}
        assert run.read_representation(Cell.parse(name)) == representation


def test_run_of_schema_1_is_known_as_it_was(tmp_path: Path) -> None:
    run = RunDirectory(SCHEMA_1 / "run")
    images, manifest, models = run.images(), run.manifest(), run.models()
    assert images is not None
    assert manifest is not None
    assert images.manifest_hash == manifest["manifest_hash"]
    assert [i for i, first in enumerate(images.duplicate_of) if i != first] == [
        i for i, name in enumerate(images.ids) if not name.endswith("-0")
    ]
    assert models["vit"]["weights_hash"] == run.cells()[0].row.weights_hash
    assert run.plan() is None
    assert not run.unfinished()
    shutil.copytree(run.path, tmp_path / "run")
    assert RunDirectory.create(tmp_path / "run", resume=True).cells()


@pytest.mark.parametrize("kind", ["cells", "representations"])
def test_older_file_lies_where_its_name_was_taken_as_it_is(tmp_path: Path, kind: str) -> None:
    """Names that are no everyday ones were, before file names were made of them; a newer file counts before it."""
    run = RunDirectory(tmp_path)
    cell = Cell.parse("ViT-token_drop-0.50")
    older = tmp_path / kind / "ViT" / "token_drop-0.50.json"
    older.parent.mkdir(parents=True)
    text = (SCHEMA_1 / "run" / kind / "vit" / older.name).read_text()
    older.write_text(text.replace('"model": "vit"', '"model": "ViT"'))
    if kind == "cells":
        [result] = run.cells()
        assert (cell_of(result.row), result.row.n) == (cell, 41)
        newer = replace(
            result, row=replace(result.row, n=0, status="not_applicable"), prediction=np.zeros(0, dtype=int)
        )
        run.write_cell(newer)
        assert [each.row.n for each in run.cells()] == [0]
    else:
        [(name, representation)] = run.representations().items()
        assert (name, representation.identity["level"]) == (cell.id, 0.5)
        run.write_representation(cell, Representation(representation.identity, []))
        assert [each.records for each in run.representations().values()] == [[]]


@pytest.mark.parametrize("kind", ["cells", "representations"])
@pytest.mark.parametrize(
    "place", ["vit/token_drop-0.90", "vit/token_drop-s2", "cnn/token_drop-0.50", "ViT/token_drop-0.50"]
)
def test_older_file_in_the_place_of_another_is_refused(tmp_path: Path, kind: str, place: str) -> None:
    path = tmp_path / kind / f"{place}.json"
    path.parent.mkdir(parents=True)
    shutil.copy(SCHEMA_1 / "run" / kind / "vit" / "token_drop-0.50.json", path)
    with pytest.raises(StoreError, match=r"it is of .*remove it") as caught:
        getattr(RunDirectory(tmp_path), kind)()
    assert str(path) in str(caught.value)
