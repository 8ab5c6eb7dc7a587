"""One side of a comparison: the rows and the outcomes of a run, of committed results, or of a git revision of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_bench.baseline import Baseline
from mae_bench.errors import BenchError
from mae_bench.history import HASHES, HISTORY
from mae_bench.labelled_images import LabelledImages
from mae_bench.outcomes import Outcomes
from mae_bench.revision import Commit, RevisionError
from mae_bench.rows import CellResult, ResultRow
from mae_bench.store import RunDirectory, cell_of, of_one_setting

RESULTS = "results"
"""Folder of a repository that holds the committed results of each suite under its name."""


class SideError(BenchError):
    """A place that holds no results, or not those that were asked for."""


@dataclass(frozen=True)
class Side:
    """Finished cells by id: their ``rows``, and the ``outcomes`` behind them. ``name`` is where they lie. ``left_out``
    are ids of cells that lie there too, but were evaluated otherwise than the rest (another number format, other
    weights under the same name, other images).
    """

    name: str
    rows: dict[str, ResultRow]
    outcomes: Outcomes
    left_out: tuple[str, ...] = ()

    @property
    def models(self) -> list[str]:
        return sorted({row.model for row in self.rows.values()})

    @classmethod
    def of(cls, name: str, results: Sequence[CellResult], images: LabelledImages) -> Side:
        """What was measured in ``results`` on ``images``; of cells that were evaluated in several ways, those that were
        as the first clean one, and of each model as its clean one.

        Raises:
            SideError: there is no result.
        """
        if not results:
            raise SideError(f"{name} holds no finished cell: run some, or name another")
        first = next((result.row for result in results if result.row.family == "clean"), results[0].row)
        taken = of_one_setting(results, {cell_of(first).id})
        clean = {cell_of(result.row).id for result in taken if result.row.family == "clean"}
        taken = of_one_setting(taken, clean | {cell_of(first).id})
        rows = {cell_of(result.row).id: result.row for result in taken}
        left = {cell_of(result.row).id for result in results} - rows.keys()
        return cls(name, rows, Outcomes.of(taken, images), tuple(sorted(left)))

    @classmethod
    def load(cls, place: str, folder: Path, suite: str | None = None) -> Side:
        """What lies at ``place``: a run directory, a folder of committed results, or a git revision of committed
        results, ``REV:FOLDER`` or ``REV`` alone, which means its ``results/<suite>``. A folder comes before a revision
        of the same name. Paths count from ``folder``, and so does the repository. ``suite`` is used where a revision
        holds several.

        Raises:
            SideError: there are no results.
            BenchError: there are some, and they are damaged.
        """
        path = folder / place
        if os.path.isdir(path):  # which says no of a name that is too long, too
            if (path / "cells").is_dir():
                return cls._of_run(place, path)
            return cls._of_results(place, path)
        if os.path.exists(path):
            raise SideError(f"{place} is a file: name the folder that it lies in")
        return cls._of_revision(place, folder, suite)

    @classmethod
    def _of_run(cls, name: str, path: Path) -> Side:
        run = RunDirectory(path)
        images = run.images()
        if images is None:
            raise SideError(f"{name}: images.json is missing; run again with --mae-resume, or name another")
        return cls.of(name, run.cells(), images)

    @classmethod
    def _of_results(cls, name: str, path: Path) -> Side:
        baseline = Baseline.load(path, None)
        if baseline is None:
            raise SideError(
                f"{name} holds no results: name the directory of a run (with cells/ in it), a folder of committed "
                "results (with cells.csv), or a git revision of one (REV:FOLDER)"
            )
        return cls(name, baseline.rows, baseline.outcomes)

    @classmethod
    def _of_revision(cls, place: str, folder: Path, suite: str | None) -> Side:
        """Committed results as they lie in a revision, read without touching the working tree."""
        name, colon, below = place.partition(":")
        try:
            commit = Commit.named(folder, name)
        except RevisionError as error:
            raise SideError(f"{place} is no folder, and no revision either: {error}") from error
        if commit is None:
            raise SideError(f"{place} is no folder, and there is no git repository here that it may be a revision of")
        if not colon:
            below = _default_folder(commit, place, suite)
        shown = f"{name}:{below}"
        files = commit.files(below, {*HASHES, HISTORY})
        if not files.keys() & HASHES.keys():
            raise SideError(f"{shown}: the revision has no results there; name a folder with cells.csv in it")
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch)
            for file, content in files.items():
                (copy / file).write_bytes(content)
            try:
                side = cls._of_results(shown, copy)
            except BenchError as error:
                words = str(error).replace(str(copy), shown)
                raise SideError(f"{words}, or name another revision") from error
        return side


def sides(a: str, b: str, folder: Path) -> tuple[Side, Side]:
    """Both sides of a comparison, as :meth:`Side.load` has them; a revision without a folder is of the suite of the
    other side.

    Raises:
        BenchError: as there.
    """
    if _is_bare(a, folder):
        second = Side.load(b, folder)
        return Side.load(a, folder, second.outcomes.suite), second
    first = Side.load(a, folder)
    return first, Side.load(b, folder, first.outcomes.suite)


def _is_bare(place: str, folder: Path) -> bool:
    """Whether ``place`` can only be a revision without a folder."""
    return ":" not in place and not os.path.exists(folder / place)


def _default_folder(commit: Commit, place: str, suite: str | None) -> str:
    """Raises:
    SideError: the revision has no results of ``suite``, or of several where no suite is known.
    """
    found = [name for name in commit.folders(RESULTS) if commit.files(f"{RESULTS}/{name}", {"cells.csv"})]
    if suite in found:
        return f"{RESULTS}/{suite}"
    if suite is None and len(found) == 1:
        return f"{RESULTS}/{found[0]}"
    wanted = f"of {suite} " if suite is not None else ""
    known = f"it has {', '.join(f'{place}:{RESULTS}/{name}' for name in found)}" if found else "it has none"
    raise SideError(f"{place}: which results {wanted}in {RESULTS}/ are meant is not clear, {known}; name REV:FOLDER")
