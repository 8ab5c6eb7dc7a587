"""Shards of a matrix: whatever their number they part it, and merged they are the run that was not sharded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from mae_bench.cells import Cell
from mae_bench.cli import app
from mae_bench.rows import CellResult
from mae_bench.store import RunDirectory, cell_of

if TYPE_CHECKING:
    from tests.conftest import Project


def listed(project: Project, *arguments: object) -> list[str]:
    lines = project.run("--co", "-q", *arguments).stdout.lines
    return [line for line in lines if "::" in line]


@pytest.mark.parametrize("count", [3, pytest.param(7, marks=pytest.mark.thorough)])
def test_shards_part_what_is_selected(project: Project, count: int) -> None:
    project.matrix("clean", "blur", "geometry", models=("colour", "other"))
    project.write("test_plain.py", "def test_of_no_model():\n    pass\n")
    project.write(
        "test_represented.py",
        "import pytest\n\n\n@pytest.mark.representation\ndef test_it(representation):\n    pass\n\n\n"
        "def test_model(evaluation):\n    pass\n",
    )
    selection = ("-k", "not motion")
    whole = listed(project, *selection)
    shards = [listed(project, *selection, "--mae-shard", f"{k}/{count}") for k in range(1, count + 1)]
    assert sorted(line for shard in shards for line in shard) == sorted(whole)
    assert "test_plain.py::test_of_no_model" in shards[0]
    models = [{found.group(1) for line in shard if (found := re.search(r"\[(\w+)", line))} for shard in shards]
    assert max(map(len, models)) == 1


def test_shard_is_an_ini_key_too_and_one_that_cannot_be_is_refused(project: Project) -> None:
    project.matrix("clean", models=("colour", "other"))
    assert len(listed(project, "-o", "mae_shard=2/2")) == 1
    result = project.run("--mae-shard", "3/2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--mae-shard: 3/2 is no shard: of N shards there are 1/N to N/N" in str(result.stderr)


def measured(result: CellResult) -> tuple[object, ...]:
    """What a cell says but for how long it took, and in which run."""
    row = result.row.to_dict()
    for name in ("seconds", "images_per_second", "run_id"):
        del row[name]
    return row, result.prediction.tolist(), result.indicators, result.block_sums, result.reason


def merged(project: Project, runs: list[Path], name: str) -> RunDirectory:
    out = project.path / name
    result = CliRunner().invoke(app, ["merge", *map(str, runs), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return RunDirectory(out)


@pytest.mark.thorough  # evaluates every cell twice
@pytest.mark.parametrize(("models", "count"), [(("colour", "other", "third"), 2), (("colour",), 3)])
def test_merged_shards_are_the_run_that_was_not_sharded(project: Project, models: tuple[str, ...], count: int) -> None:
    project.matrix("clean", "blur", "occlusion", models=models, per_class=2)
    selection = ("--mae-limit", "0", "-k", "clean or box or stripes", "-p", "no:cacheprovider")
    assert project.run(*selection, "--mae-run", "whole").ret == 0
    runs = []
    for k in range(1, count + 1):
        runs.append(project.path / f"shard-{k}")
        arguments = (*selection, "--mae-shard", f"{k}/{count}", "--mae-run", runs[-1], "--mae-resume")
        assert project.run(*arguments).ret == 0
        held = RunDirectory(runs[-1])
        evaluated = {cell_of(result.row).model for result in held.cells()}
        assert all(held.read_cell(Cell.parse(f"{model}-clean-0.00")) is not None for model in evaluated)
    whole, joined = merged(project, [project.path / "whole"], "one"), merged(project, runs, "all")
    assert [measured(result) for result in joined.cells()] == [measured(result) for result in whole.cells()]
    assert joined.plan() == whole.plan()
    assert joined.models() == whole.models()
    boards = [(run.path / "leaderboard.md").read_text() for run in (joined, whole)]
    one, other = (re.sub(r"[\d,]+ +\|$", "", board, flags=re.MULTILINE) for board in boards)  # images/s
    assert one == other
