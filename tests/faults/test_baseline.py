"""A baseline is changed by mistake, or an update is cut short: it is as it was to the byte, or wholly the new one."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from faults.reliability import Injection
from mae_bench.baseline import Baseline, save, updated
from mae_bench.history import (
    HASHES,
    HISTORY,
    BaselineError,
    Update,
    check_may_update,
    commit,
    history_of,
    located,
    locked,
)
from mae_bench.labelled_images import LabelledImages
from mae_bench.rows import CellResult
from mae_bench.store import cell_of

Journal = Callable[[Injection], None]
MakeResult = Callable[..., CellResult]

SUITE = "fashion_mnist"
CLASSES = [f"class {i}" for i in range(10)]
CONDITIONS = ("clean-0.00", "box_blur-1.75", "box_blur-5.25")
FILES = {"cells.csv", "outcomes.npz", HISTORY}


def images(start: int = 0) -> LabelledImages:
    return LabelledImages.of([f"{i:032x}-0" for i in range(start, start + 3)], np.zeros(3, dtype=int), CLASSES)


@dataclass
class Project:
    """A repository with a baseline in a commit, and the results of a run that may replace it."""

    tree: Path
    results: list[CellResult]

    @property
    def folder(self) -> Path:
        return self.tree / "results" / SUITE

    @property
    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def update(self, results: list[CellResult] | None = None, *, start: int = 0, reason: str = "new weights") -> None:
        """What a run does with --mae-update-baseline, from its first moment to its last."""
        results = self.results if results is None else results
        run = self.tree / "run"
        check_may_update(self.folder, reason, self.tree, run)
        expected = {("a", "clean"): {CONDITIONS[0]}, ("a", "blur"): {*CONDITIONS[1:]}}
        with locked(self.folder):
            baseline = Baseline.load(self.folder, results[0].row.suite)
            new, put_in, _ = updated(baseline, self.folder, results, expected, images(start))
            save(new, put_in, reason, "run", self.tree, run)

    def read(self) -> tuple[dict[str, list[int]], int]:
        """What a reader makes of the baseline: predictions by cell, and the number of updates."""
        baseline = Baseline.load(self.folder, SUITE)
        assert baseline is not None
        assert {cell_of(row).id for row in baseline.rows.values()} == baseline.outcomes.prediction.keys()
        assert {row.top1 for row in baseline.rows.values()} in ({0.25}, {0.75})  # of one run alone
        return {cell: list(map(int, p)) for cell, p in baseline.outcomes.prediction.items()}, len(baseline.history)


@pytest.fixture
def project(cell_result: MakeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("CI", raising=False)
    person = {f"GIT_{who}_{what}": f"{who}@{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for name, value in (person | {"GIT_CONFIG_GLOBAL": os.devnull}).items():
        monkeypatch.setenv(name, value)
    before, after = (
        [cell_result(f"a-{condition}", values, top1=top1) for condition in CONDITIONS]
        for values, top1 in (([0, 1, 0], 0.25), ([1, 1, 1], 0.75))
    )
    made = Project(tmp_path / "project", before)
    made.tree.mkdir()
    made.update()
    (made.tree / "model.py").write_text("weights = 1\n")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", "-C", made.tree, *words], check=True)
    made.results = after
    return made


# --------------------------------------------------------------------------- mistakes


def refusal(act: Callable[[], object]) -> str | None:
    """What is said against it."""
    try:
        act()
    except BaselineError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Mistake:
    """``prepare`` makes it, and ``act`` is to be refused with ``words``."""

    what: str
    words: str
    behaviour: str
    prepare: Callable[[Project, pytest.MonkeyPatch], object] = lambda *_: None
    act: Callable[[Project], object] = Project.update


def edit(name: str) -> Callable[[Project, pytest.MonkeyPatch], None]:
    """Change one byte of a file of the baseline by hand."""

    def prepare(project: Project, _: pytest.MonkeyPatch) -> None:
        path = project.folder / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return prepare


def of(result: CellResult, **changes: Any) -> CellResult:
    row = replace(result.row, **changes)
    return CellResult(row, result.prediction[: row.n], result.indicators, result.block_sums)


PARTIAL = {"n": 2, "n_expected": 3, "status": "partial"}
NAMED = "Refused before a cell has run, naming the file."
MISTAKES = [
    Mistake(
        "updated where CI is set",
        "refused where CI is set",
        "Refused before a cell has run.",
        lambda _, patch: patch.setenv("CI", "true"),
    ),
    Mistake(
        "updated without a reason",
        "add --mae-reason TEXT",
        "Refused before a cell has run, asking for one.",
        act=lambda project: project.update(reason=" \n"),
    ),
    Mistake(
        "updated with a change in no commit",
        r"1 files in .*, such as model\.py, .*: commit them",
        NAMED,
        lambda project, _: (project.tree / "model.py").write_text("weights = 2"),
    ),
    Mistake(
        "updated with a new file in no commit",
        r"1 files in .*, such as other\.py, .*: commit them",
        NAMED,
        lambda project, _: (project.tree / "other.py").write_text("weights = 2"),
    ),
    Mistake(
        "updated from a part of the images",
        "a blur: ran on 2 of 3 images; use --mae-limit 0",
        "Refused, naming the option that takes all.",
        act=lambda project: project.update([of(result, **PARTIAL) for result in project.results]),
    ),
    Mistake(
        "updated from a part of a family's cells",
        "a blur: 1 cells did not run, such as box_blur-5.25",
        "Refused, naming a cell that is missing.",
        act=lambda project: project.update(project.results[1:2]),
    ),
    Mistake(
        "updated by a run of another suite",
        "is of suite fashion_mnist, the run is of imagefolder",
        "Refused, naming both suites.",
        act=lambda project: project.update([of(result, suite="imagefolder") for result in project.results]),
    ),
    Mistake(
        "updated by a run of other images",
        "is of other images and 2 of its cells were not run again",
        "Refused as long as cells of the images before would stay.",
        act=lambda project: project.update(project.results[:1], start=1),
    ),
    Mistake("updated after cells.csv was edited", r"cells\.csv was changed by other means", NAMED, edit("cells.csv")),
    Mistake("updated after outcomes.npz was edited", r"npz was changed by other means", NAMED, edit("outcomes.npz")),
    Mistake(
        "compared with after cells.csv was edited",
        r"cells\.csv was changed by other means",
        "Nothing is compared, and the file is named.",
        edit("cells.csv"),
        Project.read,
    ),
    Mistake(
        "compared with after outcomes.npz was edited",
        r"npz was changed by other means",
        "Nothing is compared, and the file is named.",
        edit("outcomes.npz"),
        Project.read,
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_mistake_is_refused_and_changes_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch, journal: Journal, mistake: Mistake
) -> None:
    mistake.prepare(project, monkeypatch)
    before = project.files
    said = refusal(lambda: mistake.act(project))
    assert said is None or re.search(mistake.words, said), said
    journal(Injection("baseline", mistake.what, 1, mistake.behaviour, int(project.files != before), int(said is None)))


def test_without_a_mistake_the_same_is_not_refused(project: Project) -> None:
    before = project.files
    project.update()
    assert {name for name, content in project.files.items() if content != before[name]} == FILES


# --------------------------------------------------------------------------- updates that are cut short


class Killed(BaseException):
    """Nothing catches it, as nothing catches the end of a process."""


WRITING = ((os, "replace"), (os, "fsync"), (os, "chmod"), (tempfile, "mkstemp"))
ANY = (*WRITING, (os, "unlink"))


@contextmanager
def broken(
    operations: Sequence[tuple[ModuleType, str]], after: int, error: BaseException, once: bool
) -> Iterator[list[str]]:
    """Let ``operations`` on the disk fail after so many of them: ``once``, or from then on, since a process that was
    killed tidies nothing up. What failed is appended to the list.
    """
    done: list[str] = []
    failed: list[str] = []

    def breaking(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def broken_operation(*arguments: Any, **options: Any) -> Any:
            done.append(name)
            if len(done) > after and not (once and failed):
                failed.append(name)
                raise error
            return operation(*arguments, **options)

        return broken_operation

    with pytest.MonkeyPatch.context() as patch:
        for module, name in operations:
            patch.setattr(module, name, breaking(name, getattr(module, name)))
        yield failed


FULL = OSError(errno.ENOSPC, "No space left on device")
NEXT = "The baseline is that of before to the byte, or wholly the new one, and the next update goes on from it."
NAMING = f"An error names the folder. {NEXT}"


@pytest.mark.parametrize(
    ("what", "operations", "error", "once", "behaviour"),
    [
        ("killed at each operation on the disk of an update", ANY, Killed(), False, NEXT),
        ("disk full for one operation of an update, each in turn", WRITING, FULL, True, NAMING),
        ("disk full from one operation of an update on, each in turn", WRITING, FULL, False, NAMING),
    ],
    ids=["killed", "full once", "full"],
)
def test_an_update_that_is_cut_short_has_not_happened_or_is_whole(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    journal: Journal,
    what: str,
    operations: Sequence[tuple[ModuleType, str]],
    error: BaseException,
    once: bool,
    behaviour: str,
) -> None:
    # what takes time and changes nothing here: the power stays on, and the tree as it is
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("PATH", "")
    kept = project.tree.parent / "kept"
    shutil.copytree(project.folder, kept)
    files, old = project.files, project.read()
    project.update()
    new = project.read()
    happened: list[bool] = []
    lost = silent = 0
    while True:
        shutil.rmtree(project.folder)
        shutil.copytree(kept, project.folder)
        said: str | None = None
        with broken(operations, len(happened), error, once) as failed, suppress(Killed):
            said = refusal(project.update)
        if not failed:
            break
        assert said is None or str(project.folder) in said
        silent += said is None and error is FULL
        state = project.read()
        happened.append(state == new)
        left = {name: content for name, content in project.files.items() if name in files or error is FULL}
        lost += not (state == new or (state == old and left == files))
        project.update()
        lost += project.read() != (new[0], state[1] + 1)
        assert {name for name in project.files if not name.endswith(".partial")} == FILES
    assert happened == sorted(happened), "one moment parts the old from the new"
    assert happened.count(False) > 3
    assert happened.count(True) > 1
    journal(Injection("baseline", what, len(happened), behaviour, lost, silent))


def test_an_update_that_is_killed_after_one_that_was_killed_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: Journal
) -> None:
    """What the first left waiting is the baseline, and the second must not write over it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    states = [{name: f"{name} {number}".encode() for name in HASHES} for number in range(3)]

    def update(number: int, killed_after: int) -> list[str]:
        hashes = [hashlib.sha256(content).hexdigest() for content in states[number].values()]
        with broken(ANY, killed_after, Killed(), once=False) as failed, suppress(Killed):
            commit(folder, states[number], Update("", "", "", "", "", "", 1, 1, *hashes))
        return failed

    def state() -> int:
        return states.index({name: path.read_bytes() for name, path in located(folder, history_of(folder)).items()})

    folder = tmp_path / "whole"
    update(0, 99)
    for first in itertools.count():  # the earliest that makes an update happen, with all that it leaves to be done
        update(1, first)
        if state() == 1:
            break
    found = []
    for second in itertools.count():
        folder = tmp_path / str(second)
        update(0, 99)
        update(1, first)
        failed = update(2, second)
        found.append(state())
        if not failed:
            break
    assert found == sorted(found)
    assert {*found} == {1, 2}
    lost = sum(one not in (1, 2) for one in found)
    journal(Injection("baseline", "killed after an update that was killed, each operation in turn", second, NEXT, lost))


# --------------------------------------------------------------------------- several at once

WRITER = """
import json, sys
from pathlib import Path

import numpy as np

from mae_bench.baseline import Baseline, save, updated
from mae_bench.history import locked
from mae_bench.labelled_images import LabelledImages
from mae_bench.rows import CellResult, ResultRow

tree, suite, classes, row, models = json.loads(sys.argv[1])
tree = Path(tree)
folder = tree / "results" / suite
images = LabelledImages.of([f"{i:032x}-0" for i in range(3)], np.zeros(3, dtype=int), classes)
print("ready", flush=True)
sys.stdin.readline()
for model in models:
    result = CellResult(ResultRow.from_dict(row | {"model": model}), np.array([1, 1, 1]), [], {})
    with locked(folder):
        baseline = Baseline.load(folder, suite)
        new, put_in, _ = updated(baseline, folder, [result], {}, images)
        save(new, put_in, f"adds {model}", "run", tree)
"""


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.faults)])
def test_updates_at_once_wait_for_each_other(project: Project, journal: Journal, count: int) -> None:
    processes = 2 if count == 8 else 8
    models = [[f"m{process}_{i}" for i in range(count // processes)] for process in range(processes)]
    old, _ = project.read()
    writers = []
    for each in models:
        given = json.dumps([str(project.tree), SUITE, CLASSES, project.results[0].row.to_dict() | {"top1": 0.25}, each])
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        writers.append(writer)
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    said = [writer.communicate()[1] for writer in writers]
    assert said == [""] * processes

    now, lines = project.read()
    added = {f"{model}-clean-0.00" for each in models for model in each}
    lost = len((old.keys() | added) - now.keys()) + (lines != 1 + count)
    baseline = Baseline.load(project.folder, SUITE)
    assert baseline is not None
    order = [line.model_families.split()[0] for line in baseline.history[1:]]
    for each in models:
        assert [model for model in order if model in each] == each
    steps = [(line.cells_before, line.cells_after) for line in baseline.history[1:]]
    assert steps == [(n, n + 1) for n in range(len(old), len(old) + count)]
    behaviour = "Each waits for the one before and goes on from what it left: every cell and every line is there."
    journal(Injection("baseline", f"updated by {processes} processes at once", count, behaviour, lost))
