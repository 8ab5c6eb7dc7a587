"""Runs merged in any order and grouping give the same bytes; runs that contradict each other are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from faults.reliability import Injection
from mae_bench.cells import Cell
from mae_bench.labelled_images import LabelledImages
from mae_bench.merge import merge
from mae_bench.rows import CellResult
from mae_bench.store import RunDirectory, StoreError
from references.runs import CELLS, Sessions, contents, model_record

Journal = Callable[[Injection], None]


@pytest.fixture(scope="session")
def sessions(cell_result: Callable[..., CellResult]) -> Sessions:
    return Sessions(cell_result)


def merged(paths: Sequence[Path], folder: Path, random: Random) -> Path:
    """All of ``paths`` in one, merged in any order, some of them first, some twice."""
    paths = list(paths)
    random.shuffle(paths)
    while len(paths) > 1:
        some = [paths.pop() for _ in range(random.randint(2, len(paths)))]
        again = random.sample(some, random.randint(0, 1))
        paths.append(merge([*some, *again], folder / f"{len(list(folder.iterdir()))}").path)
        random.shuffle(paths)
    return paths[0]


@pytest.mark.parametrize("count", [1, pytest.param(40, marks=pytest.mark.faults)])
def test_order_and_grouping_change_no_byte(tmp_path: Path, journal: Journal, sessions: Sessions, count: int) -> None:
    lost = 0
    random = Random(0)
    for number in range(count):
        folder = tmp_path / f"{number}"
        (folder / "trees").mkdir(parents=True)
        names = [f"run_{i}" for i in range(random.randint(2, 5))]
        runs = []
        for name in names:
            held = random.sample(CELLS, random.randint(1, 6))
            runs.append(sessions.leave(folder / name, held, random.sample(held, 1)).path)
        one = contents(merge(runs, folder / "all").path)
        lost += contents(merged(runs, folder / "trees", random)) != one
        shutil.rmtree(folder)
    journal(
        Injection(
            "merge",
            "two to five runs with cells in common, merged in any order and grouping, some several times",
            count,
            "the merged run is the same, byte by byte, as that of all at once",
            lost,
        )
    )


Contradiction = Callable[[Path, Sessions, Random], tuple[RunDirectory, tuple[str, ...]]]
FIELDS: dict[str, Sequence[Any]] = {
    "top1": (0.125, 0.875), "nll": (0.25, 9.5), "near_ties": (3, 4), "retained": (0.5,), "flip_rate": (0.5,),
    "alignment_cls": (0.5,), "degradation_version": (2, 3), "classes": (4,), "parameters": (7,), "family": ("other",),
    "dtype": ("bfloat16", "float16"), "device": ("cuda",), "seed": (5, 6), "subset": ("first 5 of 12",), "view": ("x",),
    "weights_hash": ("x", "y"), "preprocessing": ("x",), "label_map": ("x",), "torch_version": ("1.0",),
    "indicator_version": (9,), "mae_bench_version": ("9.9",), "unit": ("inch",), "suite": ("cifar10",),
    "distinct": (None, 3),
}  # fmt: skip
IMAGES: dict[str, Any] = {
    "labels": [1] * 12, "classes": ["bag", "coat", "sandal"], "ids": [f"{i:032x}-0" for i in range(12)],
    "duplicate_of": list(range(12)),
}  # fmt: skip


def of_a_row(path: Path, sessions: Sessions, random: Random) -> tuple[RunDirectory, tuple[str, ...]]:
    """Another value of a field of a cell that the first run has too."""
    name, field = random.choice(CELLS[:4]), random.choice(sorted(FIELDS))
    run = sessions.leave(path, [name])
    run.write_cell(sessions.result(name, path.name, **{field: random.choice(FIELDS[field])}))
    return run, (name, field)


def behind_a_row(path: Path, sessions: Sessions, random: Random) -> tuple[RunDirectory, tuple[str, ...]]:
    """One prediction, sum or indicator of a cell is another."""
    name = random.choice(CELLS[:4])
    run, result = sessions.leave(path, [name]), sessions.result(name, path.name)
    field = random.choice(["prediction", "block_sums", "indicators"])
    change: dict[str, Any] = {"prediction": result.prediction.copy(), "block_sums": {"nll": [random.random()]}}
    change["prediction"][random.randrange(12)] = -5
    change["indicators"] = [record | {"layer": random.randint(5, 9)} for record in result.indicators]
    run.write_cell(replace(result, **{field: change[field]}))
    return run, (name, field)


def of_images(path: Path, sessions: Sessions, random: Random) -> tuple[RunDirectory, tuple[str, ...]]:
    """Other images, labels, classes or copies."""
    field = random.choice(sorted(IMAGES))
    images = LabelledImages.from_dict(sessions.images.to_dict() | {field: IMAGES[field]})
    return replace(sessions, images=images).leave(path, random.sample(CELLS, 2)), (field,)


def of_a_model(path: Path, sessions: Sessions, random: Random) -> tuple[RunDirectory, tuple[str, ...]]:
    """The same name of another arm or seed, or with another number of parameters."""
    run = sessions.leave(path, CELLS[:1])
    field, value = random.choice([("arm", "mae_ft"), ("training_seed", 3), ("parameters", 7)])
    run.write_model_record(model_record("vit", **{field: value}))
    return run, ("vit", field)


def of_a_representation(path: Path, sessions: Sessions, random: Random) -> tuple[RunDirectory, tuple[str, ...]]:
    """Another value in a representation."""
    run = sessions.leave(path, (), CELLS[:1])
    made = sessions.representation(CELLS[0])
    records = [record | {"value": random.random()} for record in made.records]
    run.write_representation(Cell.parse(CELLS[0]), replace(made, records=records))
    return run, (CELLS[0], "records")


def of_a_run(path: Path, sessions: Sessions, random: Random) -> tuple[RunDirectory, tuple[str, ...]]:
    """Another run of the same name."""
    return sessions.leave(path, random.sample(CELLS, 2), run_id="first"), ("run first", "content_sha256")


CONTRADICTIONS: tuple[Contradiction, ...] = (
    of_a_row, of_a_row, of_a_row, behind_a_row, behind_a_row, of_images, of_a_model, of_a_representation, of_a_run
)  # fmt: skip


@pytest.mark.parametrize("count", [9, pytest.param(200, marks=pytest.mark.faults)])
def test_runs_that_contradict_each_other_are_refused(
    tmp_path: Path, journal: Journal, sessions: Sessions, count: int
) -> None:
    first = sessions.leave(tmp_path / "first", CELLS[:4], CELLS[:2]).path
    lost = silent = 0
    for number in range(count):
        random = Random(number)
        second, words = CONTRADICTIONS[number % len(CONTRADICTIONS)](tmp_path / "second", sessions, random)
        paths = [first, second.path]
        random.shuffle(paths)
        before = contents(tmp_path)
        try:
            merge(paths, tmp_path / "out")
            silent += 1
        except StoreError as refusal:
            silent += not all(word in str(refusal) for word in words)
        lost += contents(tmp_path) != before or (tmp_path / "out").exists()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.rmtree(second.path)
    journal(
        Injection(
            "merge",
            "two runs that differ in a field of a cell, its numbers, the images, a model, a setting, or all but name",
            count,
            "they are refused, and the error names what differs and where; nothing is written",
            lost,
            silent,
        )
    )
