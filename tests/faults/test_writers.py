"""Several processes write cells into one run directory at once: each file is whole, and none is lost or made up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from faults.reliability import Injection
from mae_bench.rows import CellResult
from mae_bench.store import RunDirectory, StoreError
from references.runs import Sessions

Journal = Callable[[Injection], None]
WRITER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from mae_bench.rows import CellResult
from mae_bench.store import RunDirectory
folder, template, writer, names = sys.argv[1:]
run = RunDirectory(Path(folder))
result = CellResult.from_dict(json.loads(Path(template).read_text()))
print("ready", flush=True)
sys.stdin.readline()
for name in json.loads(Path(names).read_text()):
    row = replace(result.row, model=name, run_id=writer)
    run.write_cell(replace(result, row=row, block_sums={"images": [12.0], "of": [float(writer)]}))
"""


@pytest.fixture(scope="session")
def sessions(cell_result: Callable[..., CellResult]) -> Sessions:
    return Sessions(cell_result)


def models_of(writer: int, cells: int) -> list[str]:
    """What a process writes, in an order of its own: two thirds that it has alone, and a third that all have."""
    names = [f"{'all' if i % 3 == 0 else f'own_{writer}'}_{i}" for i in range(cells)]
    Random(writer).shuffle(names)
    return names


def written_together(folder: Path, sessions: Sessions, processes: int, cells: int) -> Iterator[int]:
    """Let processes write at once; what reading in the meantime finds, as often as it is done."""
    template = folder / "template.json"
    template.write_text(json.dumps(sessions.result("vit-clean-0.00").to_dict()))
    with ExitStack() as running:
        started = []
        for writer in range(processes):
            names = folder / f"names_{writer}.json"
            names.write_text(json.dumps(models_of(writer, cells)))
            command = [sys.executable, "-c", WRITER, str(folder / "run"), str(template), str(writer), str(names)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            started.append(running.enter_context(process))
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        while any(process.poll() is None for process in started):
            yield len(RunDirectory(folder / "run").cells())
        assert [process.returncode for process in started] == [0] * processes


@pytest.mark.parametrize(
    ("processes", "cells", "runs"),
    [(2, 40, 1), *(pytest.param(processes, 500, 5, marks=pytest.mark.faults) for processes in (2, 4, 8))],
)
def test_no_cell_is_lost_torn_or_made_up(
    tmp_path: Path, journal: Journal, sessions: Sessions, processes: int, cells: int, runs: int
) -> None:
    lost = silent = 0
    for number in range(runs):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        seen = [0, *written_together(folder, sessions, processes, cells)]
        silent += seen != sorted(seen)  # a cell that was there was gone
        expected = {name for writer in range(processes) for name in models_of(writer, cells)}
        run = RunDirectory(folder / "run")
        found = {result.row.model: result for result in run.cells()}
        lost += len(expected ^ found.keys())
        for name, result in found.items():
            alone = name.startswith("own_")
            writers = [name.split("_")[1]] if alone else [str(writer) for writer in range(processes)]
            # all of it is of one of those who wrote it
            silent += result.row.run_id not in writers or result.block_sums["of"] != [float(result.row.run_id)]
        lost += sum(path.name.endswith(".partial") for path in run.path.rglob("*"))
    journal(
        Injection(
            "writers",
            f"{processes} processes write {cells} cells each, a third of them the same, {runs} times",
            processes * cells * runs,
            "every cell is there once and whole, of one of its writers; whoever reads in the meantime sees whole ones",
            lost,
            silent,
        )
    )


HOLDER = """
import sys
from pathlib import Path
from mae_bench.store import RunDirectory, StoreError
print("ready", flush=True)
sys.stdin.readline()
run = RunDirectory(Path(sys.argv[1]))
try:
    run.hold()
    print("held", flush=True)
except StoreError as error:
    print(error, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.faults)])
def test_of_sessions_that_begin_at_once_one_writes(tmp_path: Path, journal: Journal, count: int) -> None:
    """And when it is killed, the next one does."""
    silent = lost = 0
    for _ in range(count):
        with ExitStack() as running:
            started = [
                running.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", HOLDER, str(tmp_path)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
                for _ in range(3)
            ]
            for process in started:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            for process in started:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            said = [process.stdout.readline() for process in started if process.stdout is not None]
            silent += said.count("held\n") != 1
            silent += sum("is being written by another session (pid " in line for line in said) != 2
            for process in started:
                process.kill()
        run = RunDirectory(tmp_path)
        try:
            run.hold()
            run.release()
        except StoreError:
            lost += 1
    journal(
        Injection(
            "writers",
            "three sessions begin at once in one directory; the one that writes is killed",
            count,
            "one writes, the others are refused and told its process; once it is killed, nothing blocks the next",
            lost,
            silent,
        )
    )
