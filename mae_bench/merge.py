"""Runs and shards joined into one run directory, the same whatever the order and the grouping.

A shard is a run that holds some of the cells. What was asked, seen and measured has to agree; where the same cell was
finished several times, what cannot agree (how long it took, and where) is taken from one of them by a rule that knows
no order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_bench.atomic import folder_written_whole
from mae_bench.cells import Cell
from mae_bench.labelled_images import LabelledImages
from mae_bench.leaderboard import Leaderboard
from mae_bench.outcomes import Outcomes
from mae_bench.rows import CellResult
from mae_bench.seals import sealed
from mae_bench.store import OF_MODEL, SETTING, Plan, RunDirectory, StoreError, cell_of, write_atomically
from mae_bench.suites import suite_entry
from mae_bench.tables import write_representation_table, write_tables

if TYPE_CHECKING:
    from mae_bench.representation import Representation

CIRCUMSTANCES = ("seconds", "images_per_second", "run_id", "threads", "batch_size", "machine", "libraries")
"""Fields of a row in which repetitions of a cell may differ."""
_DIGEST = "content_sha256"


@dataclass(frozen=True)
class _Run:
    """What a run to be merged holds. ``parts`` are manifests by run id, of a run that is merged itself those of its own
    parts.
    """

    path: Path
    parts: dict[str, dict[str, Any]]
    images: LabelledImages
    models: dict[str, dict[str, Any]]
    cells: list[CellResult]
    representations: dict[str, Representation]
    plan: Plan | None


def merge(paths: Sequence[Path], out: Path) -> RunDirectory:
    """Write what the runs at ``paths`` hold into the new run directory ``out``, and tables of all of it. It is there
    whole, or not at all.

    Raises:
        StoreError: ``out`` is not empty, within a run or not writable; a run cannot be read; or runs do not fit each
            other: the message names the runs, the cell and the field.
    """
    _check_out(paths, out)
    runs = [_run(path) for path in paths]
    images = _images(runs)
    manifest = _manifest(runs, images)
    _check_settings(runs)
    models, cells, representations = _models(runs), _cells(runs), _representations(runs)
    try:
        with folder_written_whole(out) as folder:
            merged = RunDirectory(folder)
            merged.write_images(images)
            for record in models.values():
                merged.write_model_record(record)
            for result in cells:
                merged.write_cell(result)
            for name, representation in representations.items():
                merged.write_representation(Cell.parse(name), representation)
            for run in runs:
                if run.plan is not None:
                    merged.write_plan(run.plan.cells, run.plan.representations)
            merged.write_manifest(manifest)
            _write_tables(merged, images, cells)
    except OSError as error:
        raise StoreError(f"{out}: cannot be written ({error}); free or choose another place") from error
    return RunDirectory(out)


def _check_out(paths: Sequence[Path], out: Path) -> None:
    """Raises:
    StoreError: no run is named, or ``out`` cannot take what is merged.
    """
    if not paths:
        raise StoreError("nothing to merge: name at least one run directory")
    for path in paths:
        if out.resolve().is_relative_to(path.resolve()):
            raise StoreError(f"{out}: lies in {path}, which is to be merged; name another place")
    try:
        occupied = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise StoreError(f"{out}: cannot be read ({error}); name another place") from error
    if occupied:
        raise StoreError(f"{out}: is not empty; name a new directory, or remove it")


def _run(path: Path) -> _Run:
    """Raises:
    StoreError: ``path`` is no run directory, or cannot be read.
    """
    directory = RunDirectory(path)
    manifest, images = directory.manifest(), directory.images()
    if manifest is None or images is None:
        missing = "manifest.json" if manifest is None else "images.json"
        raise StoreError(f"{path}: has no {missing}, so it is no run that could be merged; name another")
    parts = manifest.get("parts")
    if parts is None:
        parts = {manifest.get("run_id"): {**manifest, _DIGEST: _digest(path)}}
    if not isinstance(parts, dict) or not all(type(i) is str and isinstance(m, dict) for i, m in parts.items()):
        raise StoreError(f"{path / 'manifest.json'}: does not name its runs; restore it")
    run = _Run(
        path, parts, images, directory.models(), directory.cells(), directory.representations(), directory.plan()
    )
    for name, _, identity in _identities(run):
        if identity.get("manifest_hash") != images.manifest_hash:
            raise StoreError(f"{path}: {name} is of other images than images.json; remove it and run it again")
    return run


def _digest(path: Path) -> str:
    """Of all that the run at ``path`` says of its cells, models and images, byte by byte."""
    total = hashlib.sha256()
    files = [path / "images.json", path / "plan.json"]
    for folder in ("models", "cells", "representations"):
        files += sorted((path / folder).rglob("*.json"))
    for file in files:
        if file.exists():
            total.update(
                f"{file.relative_to(path).as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode()
            )
    return total.hexdigest()


def _identities(run: _Run) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    """Of each cell and representation its id, the kind of thing it is, and the fields that identify it."""
    for result in run.cells:
        yield cell_of(result.row).id, "cell", result.row.to_dict()
    for name, representation in run.representations.items():
        yield name, "representation", representation.identity


def _manifest(runs: Sequence[_Run], images: LabelledImages) -> dict[str, Any]:
    """The manifest of what ``runs`` are merged into.

    Raises:
        StoreError: two runs have one id.
    """
    parts: dict[str, dict[str, Any]] = {}
    for run in runs:
        for run_id, part in run.parts.items():
            known = parts.setdefault(run_id, part)
            if known != part:
                fields = [name for name in sorted(known.keys() | part.keys()) if known.get(name) != part.get(name)]
                raise StoreError(
                    f"{run.path}: run {run_id} is among the others too, with another {', '.join(fields)}; name the one "
                    "that is to count, and give each run a directory of its own name"
                )
    of_images = {"manifest_hash": images.manifest_hash, "images": len(images.ids)}
    return _sorted({**of_images, "parts": parts})


def _sorted(record: dict[str, Any]) -> dict[str, Any]:
    ordered: dict[str, Any] = json.loads(json.dumps(record, sort_keys=True))
    return ordered


def _images(runs: Sequence[_Run]) -> LabelledImages:
    """The images that all ``runs`` are of.

    Raises:
        StoreError: they are of several.
    """
    first = runs[0]
    for run in runs[1:]:
        one, other = first.images.to_dict(), run.images.to_dict()
        fields = [name for name in one if one[name] != other[name]]
        if fields:
            raise StoreError(
                f"{run.path} and {first.path}: their images differ in {', '.join(fields)}, so that no table can hold "
                "both; merge runs of one suite and one state of its data"
            )
    return first.images


def _check_settings(runs: Sequence[_Run]) -> None:
    """Raises:
    StoreError: cells or representations were evaluated in ways that no table can mix.
    """
    seen: dict[tuple[str, str], tuple[Any, str]] = {}  # value and place of each field, of all or of one model
    for run in runs:
        for name, kind, identity in _identities(run):
            where = f"{kind} {name} in {run.path}"
            # a representation is of its own sample of images, whatever the limit
            fields = [("", field) for field in ("suite", *SETTING) if (kind, field) != ("representation", "subset")]
            fields += [(Cell.parse(name).model, field) for field in OF_MODEL]
            for of, field in fields:
                value = identity.get(field)
                known, place = seen.setdefault((of, field), (value, where))
                if known != value:
                    raise StoreError(
                        f"{where} was evaluated with {field} {value!r}, {place} with {known!r}: tables cannot mix "
                        "them; merge runs of one setting, or remove those of another"
                    )


def _models(runs: Sequence[_Run]) -> dict[str, dict[str, Any]]:
    """What is known of each model.

    Raises:
        StoreError: runs know different things of one.
    """
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, record in run.models.items():
            known = found.setdefault(name, record)
            if known != record:
                fields = [field for field in sorted(known | record) if known.get(field) != record.get(field)]
                raise StoreError(
                    f"{run.path}: model {name} has another {', '.join(fields)} there than in another run; merge runs "
                    "of one model of that name"
                )
    return {name: _sorted(found[name]) for name in sorted(found)}


def _cells(runs: Sequence[_Run]) -> list[CellResult]:
    """Every cell once, sorted.

    Raises:
        StoreError: repetitions of a cell differ in what was measured.
    """
    found: dict[Cell, tuple[Path, CellResult]] = {}
    for run in runs:
        for result in run.cells:
            cell = cell_of(result.row)
            place, known = found.setdefault(cell, (run.path, result))
            if fields := _differing(known, result):
                raise StoreError(
                    f"{run.path} and {place}: {cell.id} differs in {', '.join(fields)}; keep the one that is right, "
                    "and remove the other"
                )
            found[cell] = min((place, known), (run.path, result), key=lambda one: _rank(one[1]))
    return [found[cell][1] for cell in sorted(found)]


def _rank(result: CellResult) -> tuple[str, bytes]:
    return result.row.run_id, sealed(result.to_dict())


def _differing(one: CellResult, other: CellResult) -> list[str]:
    """Names of what differs between two repetitions of a cell that is not :data:`CIRCUMSTANCES`."""
    mine, theirs = one.to_dict(), other.to_dict()
    rows = mine.pop("row"), theirs.pop("row")
    fields = [name for name in rows[0] if name not in CIRCUMSTANCES and rows[0][name] != rows[1][name]]
    return fields + [name for name in mine if mine[name] != theirs[name]]


def _representations(runs: Sequence[_Run]) -> dict[str, Representation]:
    """Every representation once, by cell id, sorted.

    Raises:
        StoreError: repetitions of one differ.
    """
    found: dict[Cell, tuple[Path, Representation]] = {}
    for run in runs:
        for name, representation in run.representations.items():
            place, known = found.setdefault(Cell.parse(name), (run.path, representation))
            fields = [field for field, value in known.to_dict().items() if representation.to_dict()[field] != value]
            if fields:
                raise StoreError(
                    f"{run.path} and {place}: the representation of {name} differs in {', '.join(fields)}; keep the "
                    "one that is right, and remove the other"
                )
            found[Cell.parse(name)] = min((place, known), (run.path, representation), key=lambda one: _text(one[1]))
    return {cell.id: found[cell][1] for cell in sorted(found)}


def _text(representation: Representation) -> bytes:
    return sealed(representation.to_dict())


def _write_tables(merged: RunDirectory, images: LabelledImages, results: Sequence[CellResult]) -> None:
    """Raises:
    StoreError: a row is of no suite or degradation that there is.
    """
    write_representation_table(merged)
    rows = [result.row for result in results]
    outcomes = Outcomes.of(results, images)
    write_tables(merged, results, outcomes)
    if all(row.status == "not_applicable" for row in rows):
        return
    suite_entry(rows[0].suite)
    try:
        board = Leaderboard.of(rows, outcomes)
    except (LookupError, ValueError) as error:
        raise StoreError(f"no leaderboard can be made of these runs ({error}); merge others") from error
    write_atomically(merged.path / "leaderboard.md", board.to_markdown().encode())
