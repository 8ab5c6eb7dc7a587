"""What a grid costs is what its parts cost, and the script of its shards is the run that was planned."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mae_bench.cli import app
from mae_bench.command import pytest_command
from mae_bench.grouping import path_of
from mae_bench.plan import (
    CellBytes,
    Grid,
    PlanError,
    Rate,
    Shape,
    makespan,
    measured_at,
    planned_images,
    rates_of,
    slurm_script,
    to_text,
)
from mae_bench.rows import CellResult
from mae_bench.store import RunDirectory, cell_of
from mae_bench.suites import SUITES
from mae_bench.verify import verification
from references.runs import CELLS, Sessions

if TYPE_CHECKING:
    from tests.conftest import Project

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
IMAGENET = SUITES["imagenet"]


# --------------------------------------------------------------------------- how much there is


@pytest.mark.parametrize("full", [False, True])
def test_planned_cells_are_those_that_pytest_collects(project: Project, full: bool) -> None:
    grid = Grid(SUITES["fashion_mnist"], ("cnn_s0", "mae_ft_s0"), 1024, 1, full)
    command = pytest_command("fashion_mnist", grid.models, full=full)
    assert command[:4] == ["python", "-m", "pytest", "benchmarks"]
    lines = project.run("--co", "-q", "-p", "no:cacheprovider", BENCHMARKS, *command[4:]).stdout.lines
    listed = [line.partition("[")[2].removesuffix("]") for line in lines if "::" in line]
    assert sorted(listed) == sorted(cell.id for cell in grid.cells)


def test_name_that_no_fixture_could_have_is_timms(project: Project) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    project.matrix("clean", models=("colour", "colour2", "other"))
    command = pytest_command("imagefolder", ["colour", name], Path("data"))
    lines = project.run("--co", "-q", *command[4:]).stdout.lines
    assert [line for line in lines if "::" in line] == [
        "test_x.py::test_cell[colour-clean-0.00]",
        f"test_x.py::test_cell[{name}-clean-0.00]",
    ]


@given(st.integers(1, 50_000))
def test_limit_stands_for_as_many_images_as_in_a_run(limit: int) -> None:
    from mae_bench.images import Manifest

    for suite in (IMAGENET, SUITES["fashion_mnist"]):
        manifest = Manifest(("a",), ("",) * suite.images, np.zeros(0))
        assert planned_images(suite, limit) == manifest.subset(limit)
        assert planned_images(suite, 0) == manifest.subset(0)


def test_images_of_a_suite_of_ones_own_have_to_be_said() -> None:
    with pytest.raises(PlanError, match="--limit N"):
        planned_images(SUITES["imagefolder"], None)
    assert planned_images(SUITES["imagefolder"], 300) == 512


def test_clean_features_take_the_room_that_the_reference_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from mae_bench.images import BLOCK
    from mae_bench.models.taps import Features
    from mae_bench.reference import Reference

    shape, images, head = Shape(blocks=2, width=10, patches=3), 600, 5

    def features(count: int, patches: bool) -> Features:
        tokens, heads = {}, {}
        for kind, positions in (("cls", ()), ("mean_patch", ()), *([("patch", (3,))] if patches else [])):
            tokens |= {(layer, kind): torch.rand(count, *positions, shape.width) for layer in range(shape.blocks + 2)}
            heads |= {(block, kind): torch.rand(count, *positions, 2, head) for block in (1, 2)}
        return Features(tokens, heads)

    held = []
    unlink = Path.unlink

    def measured(path: Path, **options: Any) -> None:
        held.append(sum(file.stat().st_size for file in path.parent.iterdir()))
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", measured)
    reference = Reference(tmp_path / "clean", images)
    for start in range(0, images, BLOCK):
        stop = min(start + BLOCK, images)
        reference.add(start, stop, features(stop - start, reference.in_probe(start)))
    assert max(held) == shape.clean_bytes(images)


@pytest.fixture
def sessions(cell_result: Callable[..., CellResult]) -> Sessions:
    return Sessions(cell_result)


def test_bytes_of_cells_are_those_of_their_files(sessions: Sessions, tmp_path: Path) -> None:
    run = sessions.leave(tmp_path / "run")
    _, sizes = measured_at([run.path])
    assert set(sizes) == {"vit", "ViT-B", "cnn"}
    for file in run.cell_files():
        result = run.read_cell_file(file)
        own = CellBytes.of(result, file.stat().st_size)
        assert own.at(result.row.n) == pytest.approx(file.stat().st_size)
        assert own.at(2 * result.row.n) > own.at(result.row.n)


# --------------------------------------------------------------------------- how long it takes


def test_rate_is_that_of_all_cells_together(sessions: Sessions) -> None:
    rows = [
        sessions.result(name, images_per_second=speed).row
        for name, speed in zip(CELLS[:3], (10.0, 20.0, 40.0), strict=True)
    ]
    seconds = sum(row.n / speed for row, speed in zip(rows, (10.0, 20.0, 40.0), strict=True))
    rates = rates_of([*rows, sessions.result(CELLS[3], images_per_second=None).row])
    assert rates["vit"].images_per_second == pytest.approx(sum(row.n for row in rows) / seconds)
    assert "machine of run" in rates["vit"].source


def test_rates_of_two_machines_are_not_mixed(sessions: Sessions) -> None:
    rows = [sessions.result(name, machine=machine).row for name, machine in zip(CELLS, ("one", "two"), strict=False)]
    with pytest.raises(PlanError, match=r"vit were measured on one.* and on two"):
        rates_of(rows)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=40), st.integers(1, 12))
def test_makespan_is_that_of_workers_who_take_what_comes_next(durations: list[float], workers: int) -> None:
    free = [0.0] * workers
    for duration in durations:
        free[free.index(min(free))] += duration
    assert makespan(durations, workers) == pytest.approx(max(free))
    assert makespan(durations, 1) == pytest.approx(sum(durations))


def test_a_model_on_one_gpu_takes_its_cells_by_its_rate() -> None:
    grid = Grid(IMAGENET, ("vit", "cnn"), 1024, gpus=2)
    assert grid.shards == 2
    assert grid.seconds({"vit": Rate(100, "x"), "cnn": Rate(50, "x")}) == pytest.approx(
        [grid.conditions * 1024 / 100, grid.conditions * 1024 / 50]
    )
    assert grid.forwards == 2 * grid.conditions * 1024


def test_shards_of_one_model_repeat_its_clean_pass() -> None:
    grid = Grid(IMAGENET, ("vit",), 512, gpus=8)
    assert grid.shards == 8
    assert grid.forwards == (grid.conditions + 7) * 512
    seconds = grid.seconds({"vit": Rate(512, "x")})
    assert seconds is not None
    assert sum(seconds) == pytest.approx(grid.conditions + 7)


def test_a_model_without_a_rate_is_named_with_how_to_measure_it() -> None:
    grid = Grid(IMAGENET, ("vit", "cnn"), 512, gpus=1)
    text = to_text(grid, {"cnn": Rate(100, "as given")}, {}, {})
    assert grid.seconds({"cnn": Rate(100, "as given")}) is None
    assert "No rate of vit, so no GPU-hours and no makespan" in text
    assert "-k '[vit-'" in text
    assert "makespan:" not in text
    assert "makespan:" in to_text(grid, dict.fromkeys(("vit", "cnn"), Rate(100, "as given")), {}, {})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--models", "vit,vit"), "name each model once"),
        (("--models", "vit,"), "name each model once"),
        (("--models", "vit", "--shards", "145"), "145 shards of 144 cells"),
        (("--models", "vit", "--rate", "vit"), "write MODEL=VALUE"),
        (("--models", "vit", "--rate", "vot=3"), "did you mean vit?"),
        (("--models", "vit", "--rate", "vit=0"), "no rate"),
        (("--models", "vit", "--rate", "vit=inf"), "no rate"),
        (("--models", "vit", "--rate", "vit=nan"), "no rate"),
        (("--models", "vit", "--rate", "vit=fast"), "'fast' is no number"),
        (("--models", "vit", "--shape", "vit=12x768"), "BLOCKSxWIDTHxPATCHES"),
        (("--models", "vit", "--rates", "nowhere"), "nowhere: neither a run"),
        (("--models", "vit", "--slurm", "x.sh"), "name their directory with --data"),
        (("--models", "vit", "--suite", "imagenot"), "did you mean imagenet?"),
        (("--models", "vit", "--suite", "imagefolder"), "--limit N"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


# --------------------------------------------------------------------------- the script

SBATCH = """#!/bin/bash
printf '%s ' "$@" >> "$SBATCH_LOG"
printf '\\n' >> "$SBATCH_LOG"
echo "17;cluster"
"""


def bash(script: Path, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{script.parent / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PYTEST_"))}
    return subprocess.run(
        ["bash", str(script), *arguments],
        cwd=cwd,
        env={**clean, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "sbatch"
    fake.write_text(SBATCH)
    fake.chmod(0o755)
    return tmp_path / "plan.sh"


def test_script_submits_an_array_and_what_waits_for_it(script: Path, tmp_path: Path) -> None:
    grid = Grid(IMAGENET, ("vit", "cnn"), 512, gpus=8, shards=20)
    run = tmp_path / "it's a run"
    script.write_text(slurm_script(grid, pytest_command("imagenet", grid.models, tmp_path / "a b"), run))
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    done = bash(script, "--partition=gpu", cwd=tmp_path, SBATCH_LOG=str(tmp_path / "log"))
    assert done.returncode == 0, done.stderr
    array, joining = (tmp_path / "log").read_text().splitlines()
    assert "--array=1-20%8 " in array
    assert "--dependency=afterany:17 " in joining
    assert joining.rstrip().endswith("merge")
    assert all("--partition=gpu " in line for line in (array, joining))
    assert run.is_dir()


def test_script_begins_with_the_longest_shards_where_rates_are_known() -> None:
    grid = Grid(IMAGENET, ("fast", "slow", "middle"), 512, gpus=2)
    rates = {"fast": Rate(300, "x"), "slow": Rate(100, "x"), "middle": Rate(200, "x")}
    command = pytest_command("imagenet", grid.models, Path("data"))
    first = grid.seconds(rates)
    assert first is not None
    numbers = [str(shard + 1) for shard in sorted(range(3), key=lambda shard: -first[shard])]
    assert numbers != ["1", "2", "3"]
    assert f"shards=({' '.join(numbers)})" in slurm_script(grid, command, Path("run"), rates)
    assert "shards=(1 2 3)" in slurm_script(grid, command, Path("run"), {"fast": rates["fast"]})


@pytest.mark.thorough  # starts pytest for each shard
def test_shards_of_the_script_joined_by_it_are_the_run_that_was_planned(project: Project, script: Path) -> None:
    project.matrix(models=("colour", "other"), per_class=2)
    (project.path / "test_x.py").unlink()
    families = ("clean", "blur")
    for family in families:
        project.test(family, name=f"benchmarks/test_{family}.py")
    grid = Grid(SUITES["imagefolder"], ("colour", "other"), 512, gpus=2, shards=3)
    run = project.path / "runs" / "grid"
    rates = {"colour": Rate(100, "x"), "other": Rate(1, "x")}
    command = pytest_command("imagefolder", grid.models, project.path / "data")
    script.write_text(slurm_script(grid, command, run, rates))
    for number in ("1", "2", "3", "2"):  # the second is requeued
        done = bash(script, cwd=project.path, SLURM_ARRAY_TASK_ID=number)
        assert done.returncode == 0, done.stdout + done.stderr
    done = bash(script, "merge", cwd=project.path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert verification(run / "merged").findings == ()
    finished = {cell_of(result.row) for result in RunDirectory(run / "merged").cells()}
    assert finished == {cell for cell in grid.cells if path_of(cell)[1] in families}
