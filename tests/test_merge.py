"""Runs merged: the same whatever the order and the grouping, or refused with the cell and the field named."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.cells import Cell
from mae_bench.labelled_images import LabelledImages
from mae_bench.merge import CIRCUMSTANCES, merge
from mae_bench.outcomes import Outcomes
from mae_bench.rows import CellResult
from mae_bench.store import RunDirectory, StoreError, cell_of
from mae_bench.verify import verification
from references.runs import CELLS, Sessions, contents, model_record

SCHEMA_1 = Path(__file__).parent / "data" / "schema_1" / "run"


@pytest.fixture(scope="session")
def sessions(cell_result: Callable[..., CellResult]) -> Sessions:
    return Sessions(cell_result)


# --------------------------------------------------------------------------- the same whatever the way


Tree = Any
"""A position in a list of runs, or a list of trees."""


@st.composite
def trees(draw: st.DrawFn, runs: int) -> Tree:
    """Ways to merge all of so many runs: some of them first, some several times."""
    order = draw(st.permutations(range(runs)))
    if draw(st.booleans()):
        return order
    cut = draw(st.integers(1, runs - 1))
    parts: list[Tree] = [order[:cut], [*order[cut:], *draw(st.lists(st.sampled_from(order), max_size=2))]]
    return parts if draw(st.booleans()) else [*reversed(parts)]


def grown(tree: Tree, runs: list[Path], folder: Path) -> Path:
    """The run directory that a tree stands for."""
    if isinstance(tree, int):
        return runs[tree]
    parts = [grown(part, runs, folder) for part in tree]
    return merge(parts, folder / f"merged {len(list(folder.iterdir()))}").path


@pytest.fixture(scope="session")
def runs(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs with cells in common, and one of representations."""
    folder = tmp_path_factory.mktemp("runs")
    of = {"b": (CELLS[:6], ()), "a": (CELLS[4:9], CELLS[4:5]), "cc": (CELLS[8:], CELLS[:5]), "d": ((), CELLS[:2])}
    return [sessions.leave(folder / name, *held).path for name, held in of.items()]


@pytest.fixture(scope="session")
def merged(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merge(runs, tmp_path_factory.mktemp("merged") / "all").path


@settings(max_examples=6, derandomize=True)
@given(trees(4))
def test_order_and_grouping_change_no_byte(
    runs: list[Path], merged: Path, tmp_path_factory: pytest.TempPathFactory, tree: Tree
) -> None:
    assert contents(grown(tree, runs, tmp_path_factory.mktemp("tree"))) == contents(merged)


def test_merging_one_run_is_merging_it_again(runs: list[Path], tmp_path: Path) -> None:
    once = merge(runs[:1], tmp_path / "once").path
    for name, others in {"twice": [runs[0]] * 2, "merged": [once], "both": [once, runs[0]]}.items():
        assert contents(merge(others, tmp_path / name).path) == contents(once)


def test_merged_run_holds_everything_and_is_whole(runs: list[Path], merged: Path, sessions: Sessions) -> None:
    run = RunDirectory(merged)
    found = verification(merged)
    assert (found.findings, found.cells, found.representations) == ((), len(CELLS), 5)
    assert {cell_of(result.row).id for result in run.cells()} == set(CELLS)
    names = ["cells.parquet", "images.json", "indicators.parquet", "leaderboard.md", "manifest.json", "outcomes.npz"]
    names += ["plan.json", "representations.parquet"]
    assert sorted(path.name for path in merged.iterdir() if path.is_file()) == names
    plan = run.plan()
    assert plan is not None
    assert (plan.cells, plan.representations) == (set(CELLS), set(CELLS[:5]))
    assert list(run.models()) == ["ViT-B", "cnn", "vit"]
    manifest, images = run.manifest(), run.images()
    assert manifest is not None
    assert images is not None
    assert images.to_dict() == sessions.images.to_dict()
    assert list(manifest["parts"]) == ["a", "b", "cc", "d"]
    for path in runs:
        own = RunDirectory(path).manifest()
        assert own is not None
        assert own.items() <= manifest["parts"][path.name].items()
    outcomes = Outcomes.load(merged / "outcomes.npz")
    assert set(outcomes.prediction) == set(CELLS)
    assert outcomes.duplicate_of.tolist() == images.duplicate_of.tolist()
    assert merged.stat().st_mode & 0o777 == 0o755


def test_cell_of_several_runs_is_taken_whole_from_the_first_by_name(
    runs: list[Path], merged: Path, sessions: Sessions
) -> None:
    for result in RunDirectory(merged).cells():
        name = cell_of(result.row).id
        having = [path.name for path in runs if RunDirectory(path).read_cell(Cell.parse(name)) is not None]
        expected = sessions.result(name, min(having))
        assert result.row == expected.row
        assert result.prediction.tolist() == expected.prediction.tolist()


def test_run_of_schema_1_is_merged_as_it_is_read(tmp_path: Path) -> None:
    path = merge([SCHEMA_1], tmp_path / "merged").path
    assert verification(path).findings == ()
    run, before = RunDirectory(path), RunDirectory(SCHEMA_1)
    assert [result.row for result in run.cells()] == [result.row for result in before.cells()]
    assert run.representations() == before.representations()
    assert run.models() == before.models()
    assert run.plan() is None
    assert (path / "leaderboard.md").read_text() == (SCHEMA_1 / "leaderboard.md").read_text()
    assert contents(merge([path, SCHEMA_1], tmp_path / "again").path) == contents(path)


def test_representations_alone_are_merged_without_a_leaderboard(sessions: Sessions, tmp_path: Path) -> None:
    only = sessions.leave(tmp_path / "only", (), CELLS[:2]).path
    path = merge([only], tmp_path / "merged").path
    assert verification(path).findings == ()
    assert not (path / "leaderboard.md").exists()


# --------------------------------------------------------------------------- what does not fit is refused


def refused(paths: Sequence[Path], out: Path, *words: str) -> None:
    """Merging is refused with these words, leaving nothing, in whatever order."""
    for order in (paths, list(reversed(paths))):
        before = sorted(out.parent.iterdir())
        with pytest.raises(StoreError) as caught:
            merge(order, out)
        assert [word for word in words if word not in str(caught.value)] == [], caught.value
        assert sorted(out.parent.iterdir()) == before


CHANGED_ROWS: dict[str, Any] = {
    "top5": 0.25, "nll": 0.75, "ece": 0.25, "near_ties": 3, "distinct": None, "degradation_version": 7, "unit": "inch",
    "alignment_cls": 0.25, "parameters": 7,
}  # fmt: skip
CHANGED_SETTINGS: dict[str, Any] = {
    "suite": "cifar10", "seed": 7, "device": "cuda", "dtype": "bfloat16", "subset": "first 5 of 12",
}  # fmt: skip
CHANGED_MODELS: dict[str, Any] = {
    "weights_hash": "others", "preprocessing": "other", "label_map": "other", "view": "other", "indicator_version": 7,
    "torch_version": "1.0", "mae_bench_version": "0.0.1",
}  # fmt: skip


@pytest.fixture
def first(sessions: Sessions, tmp_path: Path) -> RunDirectory:
    return sessions.leave(tmp_path / "first", CELLS[:2], CELLS[:1])


@pytest.fixture
def second(sessions: Sessions, tmp_path: Path) -> RunDirectory:
    return sessions.leave(tmp_path / "second", CELLS[:2], CELLS[:1])


@pytest.mark.parametrize("field", CHANGED_ROWS)
def test_cell_that_was_measured_otherwise_is_refused(
    first: RunDirectory, second: RunDirectory, sessions: Sessions, tmp_path: Path, field: str
) -> None:
    second.write_cell(sessions.result(CELLS[1], "second", **{field: CHANGED_ROWS[field]}))
    refused([first.path, second.path], tmp_path / "out", CELLS[1], field, str(first.path), str(second.path))


@pytest.mark.parametrize("field", ["prediction", "indicators", "block_sums", "reason"])
def test_cell_with_other_numbers_behind_its_row_is_refused(
    first: RunDirectory, second: RunDirectory, sessions: Sessions, tmp_path: Path, field: str
) -> None:
    result = sessions.result(CELLS[1], "second")
    change: dict[str, Any] = {
        "prediction": (result.prediction + 1) % 3, "indicators": [], "block_sums": {"nll": [2.0]}, "reason": "other",
    }  # fmt: skip
    second.write_cell(replace(result, **{field: change[field]}))
    refused([first.path, second.path], tmp_path / "out", CELLS[1], field)


def test_nothing_else_than_circumstances_may_differ() -> None:
    assert set(CIRCUMSTANCES) == {
        "seconds", "images_per_second", "run_id", "threads", "batch_size", "machine", "libraries"
    }  # fmt: skip


@pytest.mark.parametrize("field", [*CHANGED_SETTINGS, *CHANGED_MODELS])
@pytest.mark.parametrize("model", ["vit", "cnn"])
def test_settings_that_tables_cannot_mix_are_refused(
    sessions: Sessions, tmp_path: Path, field: str, model: str
) -> None:
    """Those of a model are its own affair."""
    first = sessions.leave(tmp_path / "first", ["vit-clean-0.00"])
    second = sessions.leave(tmp_path / "second", [f"{model}-gaussian_blur-3.00"])
    value = (CHANGED_SETTINGS | CHANGED_MODELS)[field]
    second.write_cell(sessions.result(f"{model}-gaussian_blur-3.00", "second", **{field: value}))
    if model == "cnn" and field in CHANGED_MODELS:
        merge([first.path, second.path], tmp_path / "out")
    else:
        refused([first.path, second.path], tmp_path / "out", field, "vit-clean-0.00", f"{model}-gaussian_blur-3.00")


def test_one_run_of_several_settings_is_refused_too(first: RunDirectory, sessions: Sessions, tmp_path: Path) -> None:
    first.write_cell(sessions.result(CELLS[1], "first", dtype="bfloat16"))
    refused([first.path], tmp_path / "out", "dtype", CELLS[0], CELLS[1])


@pytest.mark.parametrize("field", ["ids", "labels", "classes", "duplicate_of"])
def test_runs_of_other_images_are_refused(first: RunDirectory, sessions: Sessions, tmp_path: Path, field: str) -> None:
    record = sessions.images.to_dict()
    change = {
        "ids": [f"{99:032x}-0", *record["ids"][1:]], "labels": [2, *record["labels"][1:]],
        "classes": ["bag", "coat", "sandal"], "duplicate_of": list(range(12)),
    }  # fmt: skip
    images = LabelledImages.from_dict(record | {field: change[field]})
    second = replace(sessions, images=images).leave(tmp_path / "second", CELLS[2:3])
    refused([first.path, second.path], tmp_path / "out", field, str(first.path), str(second.path))


def test_cell_of_other_images_than_its_run_is_refused(first: RunDirectory, sessions: Sessions, tmp_path: Path) -> None:
    first.write_cell(sessions.result(CELLS[1], "first", manifest_hash="another"))
    refused([first.path], tmp_path / "out", CELLS[1], "images.json")


def test_representation_that_was_measured_otherwise_is_refused(
    first: RunDirectory, second: RunDirectory, sessions: Sessions, tmp_path: Path
) -> None:
    representation = sessions.representation(CELLS[0])
    second.write_representation(Cell.parse(CELLS[0]), replace(representation, records=[]))
    refused([first.path, second.path], tmp_path / "out", CELLS[0], "records")
    other = replace(representation, identity=representation.identity | {"dtype": "bfloat16"})
    second.write_representation(Cell.parse(CELLS[0]), other)
    refused([first.path, second.path], tmp_path / "out", CELLS[0], "dtype")


def test_model_that_is_known_otherwise_is_refused(first: RunDirectory, second: RunDirectory, tmp_path: Path) -> None:
    second.write_model_record(model_record("vit", arm="mae_ft"))
    refused([first.path, second.path], tmp_path / "out", "vit", "arm")


def test_two_runs_of_one_name_are_refused_merged_or_not(sessions: Sessions, tmp_path: Path) -> None:
    one = sessions.leave(tmp_path / "one", CELLS[:1], run_id="run").path
    two = sessions.leave(tmp_path / "two", CELLS[1:2], run_id="run").path
    other = sessions.leave(tmp_path / "other", CELLS[2:3]).path
    refused([one, two], tmp_path / "out", "run run", "content_sha256")
    refused([merge([one, other], tmp_path / "merged").path, two], tmp_path / "out", "run run", "content_sha256")


@pytest.mark.parametrize("missing", ["manifest.json", "images.json"])
def test_folder_that_is_no_run_is_refused(first: RunDirectory, tmp_path: Path, missing: str) -> None:
    (first.path / missing).unlink()
    refused([first.path], tmp_path / "out", str(first.path), missing)
    refused([tmp_path / "nowhere"], tmp_path / "out", "nowhere")


@pytest.mark.parametrize("name", ["manifest.json", "images.json", "plan.json", "models/vit.json"])
def test_damaged_file_is_refused(first: RunDirectory, tmp_path: Path, name: str) -> None:
    path = first.path / name
    path.write_bytes(path.read_bytes()[:-3])
    refused([first.path], tmp_path / "out", str(path))


def test_nothing_is_not_merged(tmp_path: Path) -> None:
    refused([], tmp_path / "out", "name at least one run")


# --------------------------------------------------------------------------- whole or not at all


def test_place_that_is_taken_is_refused(first: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (first.path / "empty").mkdir()
    for place in ("file", "full", "first", "first/new", "first/empty", "first/../first/new"):
        refused([first.path], tmp_path / place, "name")
    (tmp_path / "link").symlink_to(first.path)
    refused([first.path], tmp_path / "link" / "new", "lies in")
    (tmp_path / "empty").mkdir()
    assert verification(merge([first.path], tmp_path / "empty").path).findings == ()
    assert verification(merge([first.path], tmp_path / "new" / "below").path).findings == ()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_leaves_nothing(
    first: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = contents(tmp_path)
    original = getattr(os, step)
    for last in (0, 5, len(contents(first.path))):  # the first file, one of the cells, and one of the tables
        done = 0

        def fail(*arguments: Any, last: int = last) -> Any:
            nonlocal done
            done += 1
            if done > last:
                raise OSError(28, "No space left on device")
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(StoreError, match="No space left on device"):
                merge([first.path], tmp_path / "out")
        assert contents(tmp_path) == before
        assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_inputs_stay_as_they_are(runs: list[Path], tmp_path: Path) -> None:
    before = [contents(path) for path in runs]
    merge(runs, tmp_path / "out")
    assert [contents(path) for path in runs] == before


def test_merged_labels_are_those_of_the_images(merged: Path, sessions: Sessions) -> None:
    loaded = Outcomes.load(merged / "outcomes.npz")
    for name in CELLS:
        expected = np.mean(loaded.prediction[name] == sessions.images.labels)
        result = RunDirectory(merged).read_cell(Cell.parse(name))
        assert result is not None
        assert result.row.top1 == expected
