"""Rows on disk: one file per finished cell, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mae_bench.atomic import written_whole
from mae_bench.cells import Cell, Level
from mae_bench.errors import BenchError
from mae_bench.file_names import file_name
from mae_bench.labelled_images import LabelledImages
from mae_bench.rows import CellResult, ResultRow
from mae_bench.seals import sealed, unsealed

if TYPE_CHECKING:
    from mae_bench.models.pool import LoadedModel
    from mae_bench.representation import Representation

SETTING = ("manifest_hash", "subset", "seed", "device", "dtype")
"""Fields in which all cells of a table agree."""
OF_MODEL = (
    "weights_hash",
    "preprocessing",
    "label_map",
    "view",
    "indicator_version",
    "torch_version",
    "mae_bench_version",
)
"""Fields in which all cells of a model in a table agree."""
LOCK = ".lock"
SESSION = ".session"
"""Says who holds :data:`LOCK`. It counts only while that is held, so that one who was killed leaves nothing behind."""


class StoreError(BenchError):
    """A directory or file of results that cannot be used."""


def cell_of(row: ResultRow) -> Cell:
    degradation, level = row.condition.rsplit("-", 1)
    return Cell(row.model, degradation, Level.parse(level))


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` so that a reader, or a crash, sees the old file or the new one.

    Raises:
        StoreError: the disk is full or the directory not writable; an older file is left as it was.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """:func:`write_atomically` for files that belong together: no old one is replaced before all are on the disk.

    Raises:
        StoreError: as above; none of the older files has changed.
    """
    if not contents:
        return
    (path, content), *others = contents.items()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(content)
            if others:
                file.flush()
                os.fsync(file.fileno())
                write_together(dict(others))
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error}); free or choose another place") from error


def of_one_setting(results: Sequence[CellResult], cells: Collection[str]) -> list[CellResult]:
    """Those of ``results`` that were evaluated as ``cells`` were: a resumed directory may hold others, of other
    images or settings, or of the same model with other weights.
    """

    def values(row: ResultRow, names: Sequence[str]) -> tuple[object, ...]:
        return tuple(getattr(row, name) for name in names)

    ran = [result.row for result in results if cell_of(result.row).id in cells]
    settings = {values(row, SETTING) for row in ran}
    models: dict[str, set[tuple[object, ...]]] = {}
    for row in ran:
        models.setdefault(row.model, set()).add(values(row, OF_MODEL))
    return [
        result
        for result in results
        for mine in [values(result.row, OF_MODEL)]
        if values(result.row, SETTING) in settings and mine in models.get(result.row.model, {mine})
    ]


@dataclass(frozen=True)
class Plan:
    """Ids of the cells and of the representations that sessions set out to finish."""

    cells: frozenset[str] = frozenset()
    representations: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.cells or self.representations)


class RunDirectory:
    """The files of one run. What lies in ``cells`` and ``representations``, a file for each, is the only truth; tables
    are made from it. A file says itself which cell it is of and whether it is whole (:mod:`mae_bench.seals`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FileLock | None = None

    @classmethod
    def create(cls, path: Path, resume: bool) -> RunDirectory:
        """The directory at ``path``, made if need be.

        Raises:
            StoreError: it is not writable, or not empty without ``resume``, or merged from several runs.
        """
        run = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.check(resume)
            with tempfile.NamedTemporaryFile(dir=path, prefix=".writable"):
                pass
        except OSError as error:
            raise StoreError(
                f"run directory {path} is not writable ({error}): choose another with --mae-run"
            ) from error
        return run

    def check(self, resume: bool) -> None:
        """Whether a session may begin, or with ``resume`` go on.

        Raises:
            StoreError: it may not.
            OSError: the directory cannot be read.
        """
        if not resume and {entry.name for entry in self.path.iterdir()} - {LOCK, SESSION}:
            raise StoreError(
                f"run directory {self.path} is not empty: add --mae-resume to go on with it, or name another"
            )
        if resume and (self.manifest() or {}).get("parts") is not None:
            raise StoreError(
                f"run directory {self.path} is merged from several runs: go on with one of these and merge them again, "
                "or name another with --mae-run"
            )

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def scratch(self) -> Path:
        """Decoded images and clean features while the run lasts."""
        return self.path / "scratch"

    def clean_pass(self, session: str, model: str) -> Path:
        """Folder for what the clean pass of ``model`` leaves for the workers of a session, while they evaluate it."""
        return self.scratch / session / file_name(model)

    def joint_passes(self, session: str, model: str) -> Path:
        """Folder for the passes over cells of ``model`` that several workers of a session make together."""
        return self.scratch / f"joint-{session}" / file_name(model)

    def remove_scratch(self) -> None:
        """Delete decoded images and clean features of a run that has ended, and what killed processes left."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        for left in (*self.path.glob(".writable*"), *self.path.rglob(".*.partial")):
            left.unlink(missing_ok=True)

    # ----------------------------------------------------------------------- one session at a time

    def hold(self) -> None:
        """Let no other session write here before :meth:`release`, or before this process has ended in whatever way. The
        workers of a session write under the lock of the process that started them.

        Raises:
            StoreError: another session is writing here, or the disk has no locks.
        """
        if self._lock is not None:
            return
        lock = FileLock(self.path / LOCK, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"run directory {self.path} is being written by another session ({self._holder()}): wait until it has "
                "ended, or name another with --mae-run"
            ) from error
        except (OSError, NotImplementedError) as error:
            raise StoreError(f"run directory {self.path} cannot be locked ({error}): choose another place") from error
        try:
            session = {"pid": os.getpid(), "host": socket.gethostname()}
            write_atomically(self.path / SESSION, (json.dumps(session) + "\n").encode())
        except StoreError:
            lock.release()
            raise
        self._lock = lock

    def release(self) -> None:
        """Let other sessions write here."""
        if self._lock is not None:
            (self.path / SESSION).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def _holder(self) -> str:
        try:
            session = json.loads((self.path / SESSION).read_bytes())
            return f"pid {int(session['pid'])} on {session['host']}"
        except (OSError, LookupError, TypeError, ValueError):  # it is just beginning or ending
            return "pid unknown"

    # ----------------------------------------------------------------------- what the run is of

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_atomically(self.path / "manifest.json", sealed(manifest))

    def manifest(self) -> dict[str, Any] | None:
        """What the run was made with; None where it is not known.

        Raises:
            StoreError: the file is damaged.
        """
        return self._record(self.path / "manifest.json")

    def write_images(self, images: LabelledImages) -> None:
        write_atomically(self.path / "images.json", sealed(images.to_dict()))

    def images(self) -> LabelledImages | None:
        """The images of the run; None where no cell ran.

        Raises:
            StoreError: the file is damaged.
        """
        path = self.path / "images.json"
        record = self._record(path)
        try:
            return None if record is None else LabelledImages.from_dict(record)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: not the images of a run ({error}); {_RUN_AGAIN}") from error

    def write_model(
        self, model: LoadedModel, copies: Sequence[tuple[int, int]] = (), alike: Sequence[tuple[int, int]] = ()
    ) -> None:
        """Record what a model is, for readers of the run; ``copies`` are pairs of images, the later first, that are the
        same to it, ``alike`` pairs that are nearly so.
        """
        entry = model.entry
        record = {"name": entry.name, "arm": entry.arm, "training_seed": entry.training_seed, "head": entry.head}
        record |= {"weights_hash": model.weights_hash, "parameters": model.parameters}
        self.write_model_record(record | {"copies": [*map(list, copies)], "alike": [*map(list, alike)]})

    def write_model_record(self, record: Mapping[str, Any]) -> None:
        """Record what a model is; ``record["name"]`` is its name."""
        write_atomically(self.model_path(record["name"]), sealed(record))

    def model_path(self, name: str) -> Path:
        return self.path / "models" / f"{file_name(name)}.json"

    def models(self) -> dict[str, dict[str, Any]]:
        """What is recorded of models, by name.

        Raises:
            StoreError: a file is damaged.
        """
        found = {}
        for path in sorted((self.path / "models").glob("*.json")):
            record = self._record(path) or {}
            if not all(name in record and type(record[name]) in kinds for name, kinds in _OF_A_MODEL.items()):
                raise StoreError(f"{path}: does not say {', '.join(_OF_A_MODEL)} of a model; {_RUN_AGAIN}")
            if path.stem not in (record["name"], file_name(record["name"])):
                raise StoreError(f"{path}: is of another model, {record['name']}; {_RUN_AGAIN}")
            found[record["name"]] = record
        return dict(sorted(found.items()))

    def write_plan(self, cells: Collection[str], representations: Collection[str]) -> None:
        """Add the ids of ``cells`` and ``representations`` to what sessions set out to finish here.

        Raises:
            StoreError: the plan that is there is damaged, or the file cannot be written.
        """
        known = self.plan() or Plan()
        plan = {
            "cells": sorted(known.cells | set(cells)),
            "representations": sorted(known.representations | set(representations)),
        }
        write_atomically(self.path / "plan.json", sealed(plan))

    def plan(self) -> Plan | None:
        """What sessions set out to finish; None where it is not known.

        Raises:
            StoreError: the file is damaged.
        """
        path = self.path / "plan.json"
        record = self._record(path)
        if record is None:
            return None
        try:
            ids = [frozenset(Cell.parse(name).id for name in record[key]) for key in ("cells", "representations")]
            return Plan(*ids)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: not a plan ({error}); {_RUN_AGAIN}") from error

    def unfinished(self) -> Plan:
        """What sessions set out to finish and did not.

        Raises:
            StoreError: the plan is damaged.
        """
        plan = self.plan() or Plan()
        return Plan(
            frozenset(name for name in plan.cells if not self.cell_path(Cell.parse(name)).exists()),
            frozenset(name for name in plan.representations if not self.representation_path(Cell.parse(name)).exists()),
        )

    def _record(self, path: Path) -> dict[str, Any] | None:
        """The record in a file; None where there is none.

        Raises:
            StoreError: it is damaged.
        """
        try:
            return unsealed(path.read_bytes())[0]
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read ({error}); {_RUN_AGAIN}") from error

    # ----------------------------------------------------------------------- cells

    def cell_path(self, cell: Cell) -> Path:
        return self._path("cells", cell)

    def write_cell(self, result: CellResult) -> None:
        """Raises:
        StoreError: a number is not finite, or the file cannot be written.
        """
        cell = cell_of(result.row)
        try:
            content = sealed(result.to_dict())
        except ValueError as error:
            raise StoreError(
                f"cell {cell.id} has an indicator or sum that is not finite; check the weights and --mae-dtype"
            ) from error
        write_atomically(self.cell_path(cell), content)

    def read_cell(self, cell: Cell) -> CellResult | None:
        """The finished ``cell``, or None.

        Raises:
            StoreError: its file is not what this version writes.
        """
        path = self.cell_path(cell)
        return self.read_cell_file(path) if path.exists() else None

    def cells(self) -> list[CellResult]:
        """All finished cells, sorted by id.

        Raises:
            StoreError: a file is not what this version writes.
        """
        found: dict[Cell, CellResult] = {}
        for path in self.cell_files():
            result = self.read_cell_file(path)
            cell = cell_of(result.row)
            if cell not in found or path == self.cell_path(cell):  # rather than an older file of a name that changed
                found[cell] = result
        return [found[cell] for cell in sorted(found)]

    def cell_files(self) -> list[Path]:
        """Files of finished cells."""
        return sorted((self.path / "cells").glob("*/*.json"))

    def read_cell_file(self, path: Path) -> CellResult:
        """The finished cell in a file of :meth:`cell_files`.

        Raises:
            StoreError: the file is not what this version writes.
        """
        try:
            record, version = unsealed(path.read_bytes())
            result = CellResult.from_dict(record)
            self._check_place("cells", path, cell_of(result.row), version)
            return result
        except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path}: not a cell that can be read ({error}); remove it and run the cell again"
            ) from error

    # ----------------------------------------------------------------------- representations

    def representation_path(self, cell: Cell) -> Path:
        return self._path("representations", cell)

    def write_representation(self, cell: Cell, representation: Representation) -> None:
        """Raises:
        StoreError: a number is not finite, or the file cannot be written.
        """
        try:
            content = sealed({"cell": cell.id, **representation.to_dict()})
        except ValueError as error:
            raise StoreError(f"the representation of {cell.id} is not finite; check the weights") from error
        write_atomically(self.representation_path(cell), content)

    def read_representation(self, cell: Cell) -> Representation | None:
        """The finished representation of ``cell``, or None.

        Raises:
            StoreError: its file is not what this version writes.
        """
        path = self.representation_path(cell)
        return self.read_representation_file(path)[1] if path.exists() else None

    def representations(self) -> dict[str, Representation]:
        """All finished representations by cell id, sorted.

        Raises:
            StoreError: a file is not what this version writes.
        """
        found: dict[Cell, Representation] = {}
        for path in self.representation_files():
            cell, representation = self.read_representation_file(path)
            if cell not in found or path == self.representation_path(cell):
                found[cell] = representation
        return {cell.id: found[cell] for cell in sorted(found)}

    def representation_files(self) -> list[Path]:
        """Files of finished representations."""
        return sorted((self.path / "representations").glob("*/*.json"))

    def read_representation_file(self, path: Path) -> tuple[Cell, Representation]:
        """The finished representation in a file of :meth:`representation_files`, and the cell that it is of.

        Raises:
            StoreError: the file is not what this version writes.
        """
        from mae_bench.representation import Representation

        try:
            record, version = unsealed(path.read_bytes())
            named = record.pop("cell", None)
            representation = Representation.from_dict(record)
            cell = _of_identity(representation.identity, path.stem) if version == 1 else Cell.parse(named)
            self._check_place("representations", path, cell, version)
            return cell, representation
        except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path}: not a representation that can be read ({error}); remove it and run the item again"
            ) from error

    def _path(self, folder: str, cell: Cell) -> Path:
        return self.path / folder / file_name(cell.model) / f"{file_name(cell.condition)}.json"

    def _check_place(self, folder: str, path: Path, cell: Cell, version: int) -> None:
        """Raises:
        ValueError: the file at ``path`` is of ``cell``, whose place is another. Schema 1 took names as they are.
        """
        as_they_are = (path.parent.name, path.stem) == (cell.model, cell.condition)
        if path != self._path(folder, cell) and not (version == 1 and as_they_are):
            raise ValueError(f"it is of {cell.id}")


_RUN_AGAIN = "remove it and run again with --mae-resume"
_OF_A_MODEL: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "arm": (str, type(None)),
    "training_seed": (int, type(None)),
    "weights_hash": (str,),
}


def _of_identity(identity: Mapping[str, Any], condition: str) -> Cell:
    """The cell that ``identity`` is of. Schema 1 did not say whether its level is a severity; ``condition`` does.

    Raises:
        ValueError: it is not of that condition.
    """
    for severity in (False, True):
        cell = Cell(identity["model"], identity["degradation"], Level(identity["level"], severity))
        if cell.condition == condition:
            return cell
    raise ValueError(f"it is of {identity['degradation']} at level {identity['level']}")
