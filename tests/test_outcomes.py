"""Which class each image was predicted as: kept, read back, refused where a file holds something else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.labelled_images import LabelledImages
from mae_bench.outcomes import ABSENT, Outcomes
from mae_bench.rows import SCHEMA_VERSION, CellResult
from mae_bench.store import RunDirectory, StoreError

LAW = settings(max_examples=50, derandomize=True)
MakeResult = Callable[..., CellResult]
SCHEMA_1 = Path(__file__).parent / "data" / "schema_1"


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


def assert_same_outcomes(one: Outcomes, other: Outcomes) -> None:
    assert one.suite == other.suite
    for name in ("ids", "labels", "classes", "duplicate_of"):
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
    last = len(classes) - 1
    names = [f"{m}-{c}" for m in ("vit", "größe") for c in ("clean-0.00", "gaussian_blur-3.00", "box_blur-10.50")]
    prediction, block_sums = {}, {}
    for cell in draw(st.lists(st.sampled_from(names), unique=True, max_size=4)):
        values = draw(st.lists(st.just(ABSENT) | st.integers(-1001, last), min_size=images, max_size=images))
        prediction[cell] = np.array(values, dtype=np.int16)
        sums = st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=5)
        drawn = draw(st.dictionaries(st.sampled_from(["images", "nll", "active_overlap"]), sums))
        block_sums[cell] = {name: np.array(v, dtype=np.float32) for name, v in drawn.items()}
    return Outcomes(
        draw(st.sampled_from(["fashion_mnist", "imagefolder"])),
        np.array([f"{i:032x}-{i % 2}" for i in range(images)], dtype="S"),
        np.array(draw(st.lists(st.integers(0, last), min_size=images, max_size=images)), dtype=np.int16),
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
    held = Outcomes.of([result], LabelledImages.of(ids, labels, [str(i) for i in range(10)]))
    for i, (label, prediction) in enumerate(pairs):
        assert held.prediction["vit-clean-0.00"][i] == (prediction if i < ran else ABSENT)
        # an image that did not run was not classified rightly, whatever its label
        assert held.correct("vit-clean-0.00")[i] == (i < ran and prediction == label)
    assert [i.decode() for i in held.ids] == ids
    assert held.block_sums["vit-clean-0.00"]["nll"].tolist() == [1.5, 2.5]


def test_copies_are_told_by_ids_unless_they_are_given(cell_result: MakeResult, tmp_path: Path) -> None:
    ids, labels = ["0a-0", "0b-0", "0a-1", "0c-0"], np.zeros(4, dtype=np.int64)
    result = cell_result("vit-clean-0.00", [0] * 4)
    for known, expected in ((None, [0, 1, 0, 3]), (np.array([0, 0, 0, 3]), [0, 0, 0, 3])):
        held = Outcomes.of([result], LabelledImages.of(ids, labels, ["a"], known))
        assert held.duplicate_of.tolist() == expected
        held.save(tmp_path / "outcomes.npz")
        loaded = Outcomes.load(tmp_path / "outcomes.npz").duplicate_of
        assert (loaded.tolist(), loaded.dtype) == (expected, np.int32)
    with pytest.raises(ValueError, match="duplicate_of"):
        LabelledImages.of(ids, labels, ["a"], np.array([0, 1]))
    with pytest.raises(ValueError, match="duplicate_of"):
        Outcomes("s", np.array(ids, dtype="S"), labels, np.array(["a"]), duplicate_of=np.array([0, 1, 3, 3]))


def test_result_of_more_images_than_there_are_is_refused(cell_result: MakeResult) -> None:
    with pytest.raises(StoreError, match=r"vit-clean-0\.00 is of 3 images, but there are 2"):
        Outcomes.of([cell_result("vit-clean-0.00", [0] * 3)], LabelledImages.of(["0a-0", "0b-0"], np.zeros(2), ["a"]))


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


@pytest.mark.parametrize(
    "name", ["suite", "ids", "labels", "classes", "duplicate_of", "cells", "prediction", "block_sums"]
)
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
        {"suite": np.array(["fashion_mnist"])},
        {"suite": np.array(3)},
        {"ids": np.array(["a", "b", "c"])},
        {"ids": np.array([b"a", b"b", b"a"])},
        {"ids": np.array(b"a")},
        {"ids": np.array([b"\xff", b"b", b"c"])},
        {"labels": np.zeros(3)},
        {"labels": np.array([0, 1, 2], dtype=np.int16)},
        {"labels": np.array([0, 1, -1], dtype=np.int16)},
        {"prediction": np.full((2, 3), 2, dtype=np.int16)},
        {"classes": np.array([1, 2])},
        {"classes": np.array("ab")},
        {"classes": np.array([["a", "b"]])},
        {"cells": np.array(["a-clean-0.00", "a-clean-0.00"])},
        {"cells": np.array([b"a-clean-0.00", b"b-clean-0.00"])},
        {"block_sum_names": np.array(["nll", "nll"])},
        {"block_sums": np.zeros((2, 2, 2, 2), dtype=np.float32)},
        {"block_sums": np.zeros((2, 2, 2))},
        {"duplicate_of": np.zeros(3)},
        {"duplicate_of": np.zeros(2, dtype=np.int32)},
        {"duplicate_of": np.array([1, 1, 2], dtype=np.int32)},
        {"duplicate_of": np.array([0, 0, 1], dtype=np.int32)},
        {"duplicate_of": np.array([-1, 1, 2], dtype=np.int32)},
    ],
    ids=lambda change: " ".join(f"{name} {value.dtype}{value.tolist()}" for name, value in change.items()),
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
    assert f"array {name!r} holds objects, which are never unpickled" in refused(saved)
    assert not canary.exists()
    hostile.dump(saved)
    refused(saved)
    assert not canary.exists()
    np.load(saved, allow_pickle=True)
    assert canary.exists()  # or the trap would prove nothing


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1])
def test_other_schema_is_refused_with_both_versions_and_a_remedy(saved: Path, version: int) -> None:
    np.savez(saved, **(arrays(saved) | {"schema_version": np.array(version)}))
    wanted = (
        rf"schema {version}, this mae_bench reads 1 to {SCHEMA_VERSION}: use the version that wrote it, or make the"
    )
    with pytest.raises(StoreError, match=wanted) as caught:
        Outcomes.load(saved)
    assert str(saved) in str(caught.value)


@settings(max_examples=100, derandomize=True)
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


def test_outcomes_of_schema_1_are_told_which_images_are_copies() -> None:
    run = RunDirectory(SCHEMA_1 / "run")
    images = run.images()
    assert images is not None
    told = LabelledImages.of(images.ids, images.labels, images.classes)
    made = Outcomes.of(run.cells(), told)
    loaded = Outcomes.load(SCHEMA_1 / "outcomes.npz")
    assert_same_outcomes(loaded, made)
    [first] = {k for i, k in enumerate(loaded.duplicate_of.tolist()) if i != k}
    copies = np.flatnonzero(loaded.duplicate_of == first)
    assert len(copies) == 3
    assert len({images.ids[i].partition("-")[0] for i in copies}) == 1
    assert len({tuple(loaded.prediction[cell][copies]) for cell in ("vit-clean-0.00",)}) == 1
