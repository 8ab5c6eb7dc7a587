"""The disk is full, too small for a file, or read-only: what was there stays, nothing half-written does, and the error
names the place.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from faults.reliability import Injection
from mae_bench.cells import Cell
from mae_bench.merge import merge
from mae_bench.outcomes import Outcomes
from mae_bench.rows import CellResult
from mae_bench.store import RunDirectory, StoreError
from mae_bench.tables import write_representation_table, write_tables
from references.runs import Sessions, contents, model_record

Journal = Callable[[Injection], None]
Write = Callable[[RunDirectory, Sessions, int], object]
NAME = "vit-clean-0.00"


@pytest.fixture(scope="session")
def sessions(cell_result: Callable[..., CellResult]) -> Sessions:
    return Sessions(cell_result)


def tables(run: RunDirectory, sessions: Sessions, version: int) -> None:
    results = [sessions.result(NAME, nll=float(version))]
    write_tables(run, results, Outcomes.of(results, sessions.images))


def representation(run: RunDirectory, sessions: Sessions, version: int) -> None:
    made = sessions.representation(NAME)
    run.write_representation(Cell.parse(NAME), replace(made, identity=made.identity | {"seed": version}))


def representation_table(run: RunDirectory, sessions: Sessions, version: int) -> None:
    records = [record | {"layer": version} for record in sessions.representation(NAME).records]
    run.write_representation(Cell.parse(NAME), replace(sessions.representation(NAME), records=records))
    write_representation_table(run)


SITES: dict[str, Write] = {
    "a cell": lambda run, each, version: run.write_cell(each.result(NAME, nll=float(version))),
    "a representation": representation,
    "a manifest": lambda run, _, version: run.write_manifest({"version": version}),
    "images": lambda run, each, version: run.write_images(replace(each.images, classes=["a", "b", f"{version}"])),
    "a model": lambda run, _, version: run.write_model_record(model_record("vit", version=version)),
    "a plan": lambda run, _, version: run.write_plan([f"vit_{version}-clean-0.00"], []),
    "tables": tables,
    "a table of representations": representation_table,
}
STEPS = ("make", "write", "flush", "fsync", "replace", "fsync of the folder", "/dev/full")
ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EDQUOT)
EVERY = list(itertools.product(SITES, STEPS, ERRORS))
Random(0).shuffle(EVERY)


def broken(step: str, number: int, patch: pytest.MonkeyPatch) -> None:
    """Let every write fail at one of its steps."""
    original = {name: getattr(os, name) for name in ("fsync", "fdopen")}
    made = tempfile.mkstemp

    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    def opened(*arguments: Any, **options: Any) -> Any:
        file: Any = original["fdopen"](*arguments, **options)
        setattr(file, step, fail)
        return file

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            fail()
        original["fsync"](descriptor)

    def full(*arguments: Any, **options: Any) -> tuple[int, str]:
        descriptor, path = made(*arguments, **options)
        os.close(descriptor)
        return os.open("/dev/full", os.O_WRONLY), path

    if step == "make":
        patch.setattr(tempfile, "mkstemp", fail)
    elif step in ("write", "flush"):
        patch.setattr(os, "fdopen", opened)
    elif step == "fsync of the folder":
        patch.setattr(os, "fsync", fsync)
    elif step == "/dev/full":
        patch.setattr(tempfile, "mkstemp", full)
    else:
        patch.setattr(os, step, fail)


@pytest.mark.parametrize("count", [8, pytest.param(len(EVERY), marks=pytest.mark.faults)])
def test_failed_write_leaves_what_was_there(
    tmp_path: Path, journal: Journal, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    lost = silent = 0
    for number, (site, step, error) in enumerate(EVERY[:count]):
        run = RunDirectory(tmp_path / f"{number}")
        write = SITES[site]
        write(run, sessions, 1)
        before = contents(run.path)
        with monkeypatch.context() as patch:
            broken(step, error, patch)
            try:
                write(run, sessions, 2)
                silent += 1
            except StoreError as refusal:
                silent += str(run.path) not in str(refusal) or "free or choose another place" not in str(refusal)
        after = contents(run.path)
        write(run, sessions, 2)
        whole = contents(run.path)
        # a folder that cannot be synced may have the new file already
        kept = [before, whole] if step == "fsync of the folder" else [before]
        lost += before.keys() != after.keys()
        lost += any(content not in [state[name] for state in kept] for name, content in after.items())
    journal(
        Injection(
            "disk",
            "ENOSPC, EFBIG, EROFS or EDQUOT at a step of writing a file of a run, and /dev/full in its place",
            count,
            "the file that was there stays as it was, nothing half-written is left, the error names place and remedy",
            lost,
            silent,
        )
    )


LIMITED = """
import json, resource, sys
from dataclasses import replace
from pathlib import Path
from mae_bench.rows import CellResult
from mae_bench.store import RunDirectory, StoreError
folder, template, limits = sys.argv[1:]
run = RunDirectory(Path(folder))
result = CellResult.from_dict(json.loads(Path(template).read_text()))
for limit in json.loads(limits):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        run.write_cell(replace(result, row=replace(result.row, nll=2.0)))
        print("written", flush=True)
    except StoreError as error:
        print(str(error).replace(chr(10), " "), flush=True)
"""


@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.faults)])
def test_file_that_outgrows_what_the_system_allows_leaves_the_old_one(
    tmp_path: Path, journal: Journal, sessions: Sessions, count: int
) -> None:
    pytest.importorskip("resource")
    run = RunDirectory(tmp_path / "run")
    run.write_cell(sessions.result(NAME))
    before = contents(run.path)
    size = len(next(iter(before.values())))
    limits = [0, *(size * i // count for i in range(1, count))]
    template = tmp_path / "template.json"
    template.write_text(json.dumps(sessions.result(NAME).to_dict()))
    command = [sys.executable, "-c", LIMITED, str(run.path), str(template), json.dumps(limits)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    silent = sum("cannot be written ([Errno 27] File too large)" not in line for line in said)
    silent += len(said) != count
    journal(
        Injection(
            "disk",
            "a file may have no more than some bytes (RLIMIT_FSIZE), fewer than a cell has",
            count,
            "the cell that was there stays as it was, nothing half-written is left, the error says File too large",
            int(contents(run.path) != before),
            silent,
        )
    )


@pytest.mark.parametrize("count", [2, pytest.param(30, marks=pytest.mark.faults)])
def test_merge_without_room_leaves_nothing(
    tmp_path: Path, journal: Journal, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """At whichever of its files the disk is full."""
    runs = [sessions.leave(tmp_path / name, [f"{name}-clean-0.00"], [f"{name}-clean-0.00"]).path for name in "ab"]
    before = contents(tmp_path)
    lost = silent = 0
    for number in range(count):
        step, left = ("fsync", "replace")[number % 2], number // 2
        original = getattr(os, step)

        def fail(*arguments: Any, original: Callable[..., Any] = original) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            try:
                merge(runs, tmp_path / "out")
                silent += 1
            except StoreError as refusal:
                silent += "No space left on device" not in str(refusal)
        lost += contents(tmp_path) != before or sorted(path.name for path in tmp_path.iterdir()) != ["a", "b"]
    journal(
        Injection(
            "disk",
            "no room for one of the files of a merge",
            count,
            "there is no merged run, nothing half-written is left, the runs stay as they were",
            lost,
            silent,
        )
    )
