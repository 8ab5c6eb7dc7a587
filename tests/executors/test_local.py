"""Cells in this process: what is computed, what is reused, and what lies on disk afterwards."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mae_bench.cells import Cell
from mae_bench.errors import BenchError
from mae_bench.executors.local import LocalExecutor, resolved_device
from mae_bench.models import ModelError
from mae_bench.models.classifier import Classifier
from mae_bench.models.registry import ModelEntry
from mae_bench.rows import CellResult
from mae_bench.settings import Settings
from mae_bench.store import RunDirectory
from mae_bench.suites import Suite, SuiteEntry

VIT, OTHER = ModelEntry("vit"), ModelEntry("other")
CLEAN, BLURRED, OCCLUDED = (
    Cell.parse(f"vit-{condition}") for condition in ("clean-0.00", "gaussian_blur-1.50", "random_patch-0.50")
)


@dataclass(frozen=True)
class Loaded(SuiteEntry):
    """The entry of a suite that is in memory; ``loads`` counts how often it was asked for."""

    suite: Suite | None = None
    loads: tuple[list[None], ...] = ()

    def load(self, data: Path | None) -> Suite:  # noqa: ARG002
        assert self.suite is not None
        self.loads[0].append(None)
        return self.suite


class Counting(nn.Module):
    """Counts the images that pass, and breaks down after the most that may."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.images, self.most = network, 0, 1000

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        if self.images > self.most:
            raise RuntimeError("the network broke down")
        logits: Tensor = self.network(images)
        return logits


class Bench:
    """Executors on one suite and in one run directory, and a model whose forward passes are counted."""

    def __init__(self, suite: Suite, network: nn.Module, path: Path) -> None:
        self.network = Counting(network)
        self.path = path
        self.loads: list[None] = []
        self.entry = Loaded("random_images", 28, 0, True, "random images", suite=suite, loads=(self.loads,))

    def build(self) -> Classifier:
        return Classifier(self.network, mean=(0.5,), std=(0.5,), input_size=(1, 28, 28))

    def executor(self, resume: bool = False, settings: Settings | None = None) -> LocalExecutor:
        run = RunDirectory.create(self.path, resume=True)
        executor = LocalExecutor(self.entry, None, settings or Settings(), run, resume)
        executor.load(VIT, self.build)
        self.network.images = 0  # after the probe
        return executor

    def on_file(self) -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in (self.path / "cells").glob("*/*.json")}


@pytest.fixture
def bench(random_suite: Callable[..., Suite], small_vit: Callable[..., nn.Module], tmp_path: Path) -> Iterator[Bench]:
    threads = torch.get_num_threads()
    yield Bench(random_suite(40), small_vit(), tmp_path / "run")
    torch.set_num_threads(threads)


def same(one: CellResult, other: CellResult) -> bool:
    """Whether two results are equal but for the time they took."""
    rows = [replace(result.row, seconds=1.0, images_per_second=1.0) for result in (one, other)]
    return (
        rows[0] == rows[1]
        and np.array_equal(one.prediction, other.prediction)
        and one.indicators == other.indicators
        and one.block_sums == other.block_sums
    )


def stored(bench: Bench, cell: Cell) -> CellResult:
    result = RunDirectory(bench.path).read_cell(cell)
    assert result is not None
    return result


# --------------------------------------------------------------------------- devices


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("name", "count", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_device_is_resolved_by_what_the_machine_has(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int, device: str
) -> None:
    gpus(monkeypatch, count)
    assert resolved_device(name) == device


@pytest.mark.parametrize(("name", "numbered"), [("auto", False), ("cuda", False), ("cuda:1", True)])
def test_workers_take_turns_on_gpus_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, numbered: bool
) -> None:
    gpus(monkeypatch, 3)
    expected = [1] * 5 if numbered else [0, 1, 2, 0, 1]
    assert [resolved_device(name, place) for place in range(5)] == [f"cuda:{index}" for index in expected]
    assert resolved_device("cpu", 4) == "cpu"
    gpus(monkeypatch, 0)
    assert resolved_device("auto", 4) == "cpu"


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(BenchError, match=rf"--mae-device {name}: torch .* sees {count} .*use --mae-device auto or cpu"):
        resolved_device(name)


# --------------------------------------------------------------------------- cells


def test_the_first_cell_of_a_model_leaves_the_clean_one_beside_it(bench: Bench) -> None:
    executor = bench.executor()
    result, note = executor.run(BLURRED)
    assert note == ""
    assert sorted(bench.on_file()) == ["clean-0.00", "gaussian_blur-1.50"]
    assert same(stored(bench, BLURRED), result)
    assert same(stored(bench, CLEAN), executor.evaluation.clean)
    assert bench.network.images == 2 * 40


def test_the_clean_cell_alone_is_one_file_and_one_pass(bench: Bench) -> None:
    result, _ = bench.executor().run(CLEAN)
    assert sorted(bench.on_file()) == ["clean-0.00"]
    assert (result.row.family, result.row.n) == ("clean", 40)
    assert bench.network.images == 40


def test_the_clean_pass_runs_once_and_its_file_is_not_written_again(bench: Bench) -> None:
    executor = bench.executor()
    executor.run(BLURRED)
    path = bench.path / "cells/vit/clean-0.00.json"
    path.write_text("untouched")
    executor.run(OCCLUDED)
    assert path.read_text() == "untouched"
    assert bench.network.images == 3 * 40


def test_a_clean_pass_is_on_file_although_the_cell_after_it_breaks_down(bench: Bench) -> None:
    executor = bench.executor()
    bench.network.most = 60
    with pytest.raises(RuntimeError, match="the network broke down"):
        executor.run(BLURRED)
    assert sorted(bench.on_file()) == ["clean-0.00"]
    bench.network.most = 1000
    executor.run(OCCLUDED)
    assert sorted(bench.on_file()) == ["clean-0.00", "random_patch-0.50"]


def test_cells_do_not_depend_on_which_ran_before(bench: Bench, tmp_path: Path) -> None:
    executor = bench.executor()
    first = [executor.run(cell)[0] for cell in (CLEAN, BLURRED, OCCLUDED)]
    executor.release()
    bench.path = tmp_path / "other" / bench.path.name
    executor = bench.executor()
    second = [executor.run(cell)[0] for cell in (OCCLUDED, BLURRED, CLEAN)]
    assert all(same(a, b) for a, b in zip(first, reversed(second), strict=True))


def test_no_cell_runs_without_a_model(bench: Bench) -> None:
    executor = bench.executor()
    executor.release()
    with pytest.raises(LookupError, match="load one first"):
        executor.run(CLEAN)


# --------------------------------------------------------------------------- resuming


def test_a_finished_cell_is_reused_when_resuming_and_only_then(bench: Bench) -> None:
    first, _ = bench.executor().run(BLURRED)
    files = bench.on_file()
    again, note = bench.executor(resume=True).run(BLURRED)
    assert (bench.network.images, note) == (0, "")
    assert same(again, first)
    assert bench.on_file() == files
    anew, note = bench.executor().run(BLURRED)
    assert (bench.network.images, note) == (2 * 40, "")
    assert same(anew, first)


def test_a_missing_cell_is_run_when_resuming(bench: Bench) -> None:
    bench.executor().run(BLURRED)
    result, note = bench.executor(resume=True).run(OCCLUDED)
    assert (result.row.condition, note) == ("random_patch-0.50", "")
    assert bench.network.images == 2 * 40
    assert sorted(bench.on_file()) == ["clean-0.00", "gaussian_blur-1.50", "random_patch-0.50"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(seed=3), "seed 3 here, 0 stored"),
        (Settings(dtype="bfloat16"), "dtype bfloat16 here, float32 stored"),
        (Settings(seed=3, dtype="bfloat16"), "seed 3 here, 0 stored, dtype bfloat16 here, float32 stored"),
    ],
    ids=["seed", "dtype", "both"],
)
def test_a_cell_of_other_settings_is_run_again_and_the_note_says_why(
    bench: Bench, settings: Settings, words: str
) -> None:
    bench.executor().run(BLURRED)
    result, note = bench.executor(resume=True, settings=settings).run(BLURRED)
    # the clean cell that it is held against is of the same settings
    assert note == f"vit-clean-0.00 was run again: {words}\nvit-gaussian_blur-1.50 was run again: {words}"
    assert (result.row.seed, result.row.dtype) == (settings.seed, settings.dtype)
    assert same(stored(bench, BLURRED), result)
    assert stored(bench, CLEAN).row.dtype == settings.dtype


@pytest.mark.parametrize("settings", [Settings(batch_size=7), Settings(threads=2)], ids=["batch-size", "threads"])
def test_what_does_not_change_outcomes_does_not_forbid_resuming(bench: Bench, settings: Settings) -> None:
    bench.executor().run(BLURRED)
    _, note = bench.executor(resume=True, settings=settings).run(BLURRED)
    assert (bench.network.images, note) == (0, "")


def test_a_model_with_other_weights_is_not_taken_for_the_stored_one(bench: Bench) -> None:
    bench.executor().run(BLURRED)
    with torch.no_grad():
        next(bench.network.parameters()).add_(1.0)
    _, note = bench.executor(resume=True).run(BLURRED)
    assert "weights_hash" in note
    assert bench.network.images == 2 * 40


def test_finished_cells_stay_as_they_are_when_others_are_run(bench: Bench) -> None:
    bench.executor().run(BLURRED)
    before = bench.on_file()
    _, note = bench.executor(resume=True).run(OCCLUDED)
    assert note == ""
    assert {name: content for name, content in bench.on_file().items() if name != "random_patch-0.50"} == before


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"row": {'], ids=["empty", "other", "cut"])
def test_a_damaged_cell_is_run_again_and_its_file_replaced(bench: Bench, damage: bytes) -> None:
    first, _ = bench.executor().run(BLURRED)
    (bench.path / "cells/vit/gaussian_blur-1.50.json").write_bytes(damage)
    again, note = bench.executor(resume=True).run(BLURRED)
    assert note.startswith("vit-gaussian_blur-1.50 was run again: its file is damaged (")
    assert same(again, first)
    assert same(stored(bench, BLURRED), first)
    assert bench.executor(resume=True).run(BLURRED)[1] == ""


@pytest.mark.parametrize("damaged", [False, True], ids=["missing", "damaged"])
def test_the_clean_cell_is_on_file_although_all_that_is_asked_for_was_finished(bench: Bench, damaged: bool) -> None:
    bench.executor().run(BLURRED)
    clean, file = stored(bench, CLEAN), bench.path / "cells/vit/clean-0.00.json"
    file.write_text("{") if damaged else file.unlink()
    _, note = bench.executor(resume=True).run(BLURRED)
    assert note.startswith("vit-clean-0.00 was run again: its file is damaged (") is damaged
    assert bench.network.images == 40
    assert same(stored(bench, CLEAN), clean)


def test_why_a_cell_was_run_again_is_said_although_its_representation_came_first(bench: Bench) -> None:
    bench.executor().run(BLURRED)
    executor = bench.executor(resume=True, settings=Settings(seed=3))
    executor.represent(BLURRED, with_cell=True)
    _, note = executor.run(BLURRED)
    assert note.splitlines() == [f"{cell.id} was run again: seed 3 here, 0 stored" for cell in (CLEAN, BLURRED)]
    assert executor.run(BLURRED)[1] == ""


def test_a_stored_representation_is_reused_unless_it_is_of_something_else_or_damaged(bench: Bench) -> None:
    first = bench.executor().represent(BLURRED)
    executor = bench.executor(resume=True)
    assert executor.represent(BLURRED) == first
    assert (executor.note, bench.network.images) == ("", 0)

    executor = bench.executor(resume=True, settings=Settings(seed=3))
    other = executor.represent(BLURRED)
    assert other.identity["seed"] == 3
    assert executor.note == "vit-gaussian_blur-1.50 was run again: seed 3 here, 0 stored"
    executor.represent(OCCLUDED)
    assert executor.note == ""

    file = bench.path / "representations/vit/gaussian_blur-1.50.json"
    file.write_bytes(file.read_bytes()[:-20])
    executor = bench.executor(resume=True)
    assert executor.represent(BLURRED).identity == first.identity
    assert executor.note.startswith("vit-gaussian_blur-1.50 was run again: its file is damaged (")
    assert executor.run_directory.read_representation(BLURRED) == executor.represent(BLURRED)


# --------------------------------------------------------------------------- models


def test_loading_another_model_lets_go_of_the_first_and_of_its_clean_features(bench: Bench) -> None:
    executor = bench.executor()
    executor.run(BLURRED)
    assert list(bench.path.glob("scratch/reference-*"))
    executor.load(OTHER, bench.build)
    assert executor.held == "other"
    assert not list(bench.path.glob("scratch/reference-*"))
    result, _ = executor.run(replace(BLURRED, model="other"))
    assert result.row.model == "other"
    assert {path.parent.name for path in bench.path.glob("cells/*/*.json")} == {"vit", "other"}
    assert len(bench.loads) == 1


SALIENT = Cell.parse("vit-salient-0.50")


def seeing(bench: Bench) -> None:
    """Give the suite a reference model."""
    assert bench.entry.suite is not None
    entry = replace(bench.entry, salience="seer")
    bench.entry = replace(entry, suite=replace(bench.entry.suite, entry=entry))


def test_models_of_one_view_share_what_the_reference_model_has_seen(
    bench: Bench, small_vit: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeing(bench)
    network = small_vit(patch_size=4)
    passes: list[int] = []
    network.register_forward_hook(lambda _, args, __: passes.append(len(args[0])))
    seen = Classifier(network, mean=(0.5,), std=(0.5,), input_size=(1, 28, 28))
    loaded: list[str] = []
    monkeypatch.setattr("mae_bench.executors.local.pretrained_encoder", lambda name, _: loaded.append(name) or seen)
    executor = bench.executor()
    executor.run(SALIENT)
    looked = len(passes)
    assert looked > 0
    executor.load(OTHER, bench.build)
    executor.run(replace(SALIENT, model="other"))
    assert loaded == ["seer"]
    assert len(passes) == looked


def test_a_reference_model_that_cannot_be_had_is_tried_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing(bench)
    tried: list[str] = []

    def offline(name: str, _: Path | None) -> nn.Module:
        tried.append(name)
        raise ModelError("there is no network")

    monkeypatch.setattr("mae_bench.executors.local.pretrained_encoder", offline)
    executor = bench.executor()
    for cell in (SALIENT, replace(SALIENT, degradation="nonsalient")):
        with pytest.raises(ModelError, match="there is no network"):
            executor.run(cell)
    assert tried == ["seer"]


def test_a_released_executor_holds_nothing(bench: Bench) -> None:
    executor = bench.executor()
    executor.run(CLEAN)
    executor.release()
    executor.release()
    assert executor.held is None
    assert not list(bench.path.glob("scratch/reference-*"))


def test_what_a_fixture_gave_is_kept_beside_the_model(bench: Bench) -> None:
    executor = bench.executor()
    given = bench.build()
    assert executor.load(OTHER, lambda: given).returned is given
    assert executor.load(OTHER, bench.build).returned is given  # not built again while it is held


# --------------------------------------------------------------------------- what a run is made of


def test_the_images_and_the_manifest_of_a_run_are_written_when_the_suite_is_loaded(bench: Bench) -> None:
    executor = bench.executor(settings=Settings(seed=5, threads=1))
    assert executor.run_directory.images() is None
    suite = executor.suite
    images = executor.run_directory.images()
    assert images is not None
    assert (tuple(images.ids), tuple(images.classes)) == (suite.manifest.ids, suite.manifest.classes)
    assert np.array_equal(images.labels, suite.manifest.labels)
    manifest: dict[str, Any] = json.loads((bench.path / "manifest.json").read_text())
    assert (manifest["run_id"], manifest["suite"], manifest["images"]) == ("run", "random_images", 40)
    assert manifest["manifest_hash"] == suite.manifest_hash
    assert manifest["settings"]["seed"] == 5
    assert manifest["versions"]["torch"] == torch.__version__


def test_scratch_can_be_removed_while_results_stay(bench: Bench) -> None:
    executor = bench.executor()
    executor.run(BLURRED)
    executor.release()
    files = bench.on_file()
    assert (bench.path / "scratch").exists()
    left = [bench.path / ".writable12", bench.path / "cells/vit/.gaussian_blur-1.50.json.k2.partial"]
    for file in left:  # by a process that was killed
        file.write_text("{")
    executor.run_directory.remove_scratch()
    executor.run_directory.remove_scratch()
    assert not (bench.path / "scratch").exists()
    assert not any(file.exists() for file in left)
    assert bench.on_file() == files


def test_workers_of_one_run_write_what_it_is_made_of_at_once_and_it_is_whole_at_any_moment(bench: Bench) -> None:
    first = bench.executor()
    assert first.suite is not None
    run, wanted = first.run_directory, (bench.path / "images.json").read_bytes()
    readings: list[int] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            images, manifest = run.images(), run.manifest()
            assert images is not None
            assert manifest is not None
            readings.append(len(images.ids) + manifest["images"])

    def write(_: int) -> None:
        assert LocalExecutor(bench.entry, None, Settings(), run, False).suite is not None

    with ThreadPoolExecutor() as threads:
        reading = threads.submit(read)
        list(threads.map(write, range(40)))
        over.set()
        reading.result()
    assert set(readings) == {80}
    assert (bench.path / "images.json").read_bytes() == wanted
    assert not list(bench.path.glob(".*.partial"))
