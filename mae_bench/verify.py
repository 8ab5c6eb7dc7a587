"""Whether a run directory is whole: every file as it was written, of what its place says, and none telling what another
denies. Nothing of it needs torch but the representations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mae_bench.cells import Cell
from mae_bench.labelled_images import LabelledImages, first_copies
from mae_bench.outcomes import Outcomes
from mae_bench.rows import CellResult, ResultRow
from mae_bench.seals import unsealed
from mae_bench.store import OF_MODEL, SETTING, RunDirectory, StoreError, cell_of, of_one_setting
from mae_bench.tables import indicator_table, representation_table

if TYPE_CHECKING:
    import pandas as pd

    from mae_bench.representation import Representation

Read = TypeVar("Read")
_AGAIN = "remove it and go on with --mae-resume"
_TABLES = "make the tables again: go on with --mae-resume, or use mae-bench merge"


@dataclass(frozen=True)
class Verification:
    """What is wrong with a run, a sentence each that names the place, the fault and the remedy; and how many cells and
    representations it holds, ``partial`` cells being of a part of the images.
    """

    findings: tuple[str, ...]
    cells: int
    partial: int
    representations: int


@dataclass(frozen=True)
class _Run:
    """A run directory as far as it can be read."""

    directory: RunDirectory
    manifest: dict[str, Any] | None
    images: LabelledImages | None
    models: dict[str, dict[str, Any]] | None
    cells: list[CellResult]
    representations: list[tuple[Cell, Representation]]


def verification(path: Path) -> Verification:
    """What the run at ``path`` is worth.

    Raises:
        StoreError: ``path`` is no run directory.
    """
    directory = RunDirectory(path)
    if not any((path / name).exists() for name in ("manifest.json", "images.json", "cells", "representations")):
        raise StoreError(f"{path}: not a run directory; pytest benchmarks --mae-run DIR makes one")
    unread: list[str] = []

    def read(what: Callable[..., Read], *of: Path) -> list[Read]:
        try:
            return [what(*of)]
        except StoreError as error:
            unread.append(str(error))
            return []

    manifest = next(iter(read(directory.manifest)), None)
    images = next(iter(read(directory.images)), None)
    models = next(iter(read(directory.models)), None)
    cells = [one for file in directory.cell_files() for one in read(directory.read_cell_file, file)]
    representations = [
        one for file in directory.representation_files() for one in read(directory.read_representation_file, file)
    ]
    run = _Run(directory, manifest, images, models, cells, representations)
    read(directory.plan)
    checks = (_of_the_run, _of_cells, _of_representations, _of_models, _of_plan, _of_tables, _of_long_table, _left)
    found = [finding for check in checks for finding in check(run)]
    partial = sum(result.row.status == "partial" for result in run.cells)
    return Verification((*unread, *found), len(run.cells), partial, len(run.representations))


def _of_the_run(run: _Run) -> Iterator[str]:
    path = run.directory.path
    for name, why in (("manifest.json", "how the run was made"), ("images.json", "which images it is of")):
        if not (path / name).exists():
            yield f"{path / name}: is missing, so that it is not known {why}; restore it or go on with --mae-resume"
    if run.manifest is None or run.images is None:
        return
    for name, value in (("manifest_hash", run.images.manifest_hash), ("images", len(run.images.ids))):
        if run.manifest.get(name, value) != value:
            yield f"{path / 'manifest.json'}: says {name} {run.manifest[name]}, images.json {value}; restore them"
    parts = run.manifest.get("parts")
    for run_id in sorted({result.row.run_id for result in run.cells} - set(parts if parts is not None else ())):
        if parts is not None:
            yield f"{path / 'manifest.json'}: does not name run {run_id}, which some cells are of; merge the runs again"


def _of_cells(run: _Run) -> Iterator[str]:
    places: dict[str, Path] = {}
    for result in run.cells:
        name, path = cell_of(result.row).id, run.directory.cell_path(cell_of(result.row))
        if name in places:
            yield f"{path}: there is an older file of {name} too; remove that one"
        places[name] = path
        for fault in _faults(result, run):
            yield f"{path}: {fault}; {_AGAIN}"


def _faults(result: CellResult, run: _Run) -> Iterator[str]:
    """What a cell says that its own numbers or the images deny."""
    row, n = result.row, result.row.n
    whole = {"ok": n == row.n_expected, "partial": n < row.n_expected, "not_applicable": n == 0}
    if not whole[row.status]:
        yield f"its status is {row.status} with {n} of {row.n_expected} images"
    if row.status != "not_applicable" and row.subset != f"first {n} of {row.n_expected}":
        yield f"it is of {n} of {row.n_expected} images, and was to be of the {row.subset}"
    if "images" in result.block_sums and sum(result.block_sums["images"]) != n:
        yield f"its blocks are of {sum(result.block_sums['images']):g} images, its row of {n}"
    if run.manifest is not None and run.manifest.get("suite", row.suite) != row.suite:
        yield f"it is of suite {row.suite}, the run of {run.manifest['suite']}"
    if run.images is None:
        return
    if (row.manifest_hash, row.n_expected) != (run.images.manifest_hash, len(run.images.ids)):
        yield "it is of other images than images.json"
        return
    if row.classes != len(run.images.classes) or (result.prediction >= row.classes).any():
        yield f"it knows other classes than the {len(run.images.classes)} of images.json"
    if row.status == "not_applicable":
        return
    hits = int((result.prediction == run.images.labels[:n]).sum())
    if row.top1 is None or row.top1 * n != hits:
        yield f"{hits} of its {n} predictions are right, and its top1 is {row.top1}"
    if "hits" in result.block_sums and sum(result.block_sums["hits"]) != hits:
        yield f"{hits} of its predictions are right, and {sum(result.block_sums['hits']):g} in its blocks"
    # a model's view may make copies of more images than contents tell
    distinct = int((first_copies(run.images.ids)[:n] == np.arange(n)).sum())
    if row.distinct is not None and not min(n, 1) <= row.distinct <= distinct:
        yield f"{distinct} of its images are no copies of others by their ids, and its row says {row.distinct}"


def _of_representations(run: _Run) -> Iterator[str]:
    places: dict[str, Path] = {}
    for cell, representation in run.representations:
        path = run.directory.representation_path(cell)
        if cell.id in places:
            yield f"{path}: there is an older file of {cell.id} too; remove that one"
        places[cell.id] = path
        identity = representation.identity
        known = {"model": cell.model, "degradation": cell.degradation, "level": cell.level.value}
        if run.images is not None:
            known["manifest_hash"] = run.images.manifest_hash
        for name, value in known.items():
            if identity.get(name) != value:
                yield f"{path}: its {name} is {identity.get(name)}, and is to be {value}; {_AGAIN}"


def _of_models(run: _Run) -> Iterator[str]:
    if run.models is None:
        return
    weights = [(run.directory.cell_path(cell_of(r.row)), r.row.model, r.row.weights_hash) for r in run.cells]
    for cell, representation in run.representations:
        known = representation.identity.get("weights_hash", "")
        weights.append((run.directory.representation_path(cell), cell.model, known))
    for model in sorted({model for _, model, _ in weights} - run.models.keys()):
        yield f"{run.directory.model_path(model)}: is missing; go on with --mae-resume, which writes it"
    for path, model, known in weights:
        there = run.models.get(model, {}).get("weights_hash", known)
        if known != there:
            yield f"{path}: was evaluated with weights {known}, and {model} has {there}; {_AGAIN}"


def _of_plan(run: _Run) -> Iterator[str]:
    path = run.directory.path / "plan.json"
    try:
        unfinished = run.directory.unfinished()
        if not path.exists() and _is_planned(run):
            yield f"{path}: is missing, so that it is not known what is; restore it or go on with --mae-resume"
    except StoreError:  # it was said that the plan cannot be read
        return
    for name in sorted(unfinished.cells):
        yield f"{path}: cell {name} was planned and is not finished; go on with --mae-resume"
    for name in sorted(unfinished.representations):
        yield f"{path}: the representation of {name} was planned and is not finished; go on with --mae-resume"


def _is_planned(run: _Run) -> bool:
    """Whether the run wrote down what it set out to do: from schema 2 on, and not where it was merged."""
    if run.manifest is None or "parts" in run.manifest:
        return False
    return unsealed((run.directory.path / "manifest.json").read_bytes())[1] > 1


def _of_tables(run: _Run) -> Iterator[str]:
    """``cells.parquet``, ``indicators.parquet`` and ``outcomes.npz`` against the cells that are in them."""
    path = run.directory.path
    if not run.cells:
        return
    for name in ("cells.parquet", "indicators.parquet", "outcomes.npz"):
        if not (path / name).exists():
            yield f"{path / name}: is missing; {_TABLES}"
    try:
        table = _table(path / "cells.parquet")
        rows = [] if table is None else [ResultRow.from_dict(line) for line in _lines(table)]
        held = {cell_of(row).id: row for row in rows}
    except (StoreError, ValueError) as error:
        yield f"{path / 'cells.parquet'}: cannot be read ({error}); {_TABLES}"
        held = {}
    finished = {cell_of(result.row).id: result for result in run.cells}
    expected = of_one_setting(sorted(finished.values(), key=lambda result: cell_of(result.row)), held or finished)
    if held:
        yield from _of_rows(run, held, finished, {cell_of(result.row).id for result in expected})
    try:
        indicators = _table(path / "indicators.parquet")
        if indicators is not None and not _equal(indicators, indicator_table(expected)):
            yield f"{path / 'indicators.parquet'}: is not what the cells say; {_TABLES}"
    except StoreError as error:
        yield f"{error}; {_TABLES}"
    if run.images is None or not (path / "outcomes.npz").exists():
        return
    try:
        made = Outcomes.of(expected, run.images)
        if (what := _difference(Outcomes.load(path / "outcomes.npz"), made)) is not None:
            yield f"{path / 'outcomes.npz'}: its {what} is not what the cells and images say; {_TABLES}"
    except StoreError as error:
        yield str(error)


def _of_rows(
    run: _Run, held: Mapping[str, ResultRow], finished: Mapping[str, CellResult], expected: set[str]
) -> Iterator[str]:
    """The rows of ``cells.parquet`` against the finished cells, of which it is to hold those ``expected``."""
    path = run.directory.path / "cells.parquet"
    for name in sorted(held.keys() - finished.keys()):
        yield f"{path}: holds {name}, of which there is no file; run the cell again, or {_TABLES}"
    for name in sorted(expected - held.keys()):
        yield f"{path}: lacks {name}; {_TABLES}"
    for name in sorted(finished.keys() - expected):
        row, others = finished[name].row, [finished[other].row for other in sorted(expected)]
        same = [other for other in others if other.model == row.model]
        fields = [field for field in SETTING if others and getattr(row, field) != getattr(others[0], field)]
        fields += [field for field in OF_MODEL if same and getattr(row, field) != getattr(same[0], field)]
        where = run.directory.cell_path(cell_of(row))
        yield f"{where}: differs from the cells of the tables in {', '.join(fields)}, so that none holds it; {_AGAIN}"
    for name in sorted(held.keys() & expected):
        one, other = held[name].to_dict(), finished[name].row.to_dict()
        differing = [field for field in one if one[field] != other[field]]
        if differing:
            yield f"{path}: has another {', '.join(differing)} of {name} than its file; {_TABLES}"


def _of_long_table(run: _Run) -> Iterator[str]:
    """``representations.parquet`` against the representations."""
    path = run.directory.path / "representations.parquet"
    if not run.representations:
        return
    try:
        table = _table(path)
        found = {
            cell.id: representation for cell, representation in sorted(run.representations, key=lambda one: one[0])
        }
        if table is None:
            yield f"{path}: is missing; {_TABLES}"
        elif not _equal(table, representation_table(found)):
            yield f"{path}: is not what the representations say; {_TABLES}"
    except StoreError as error:
        yield f"{error}; {_TABLES}"


def _left(run: _Run) -> Iterator[str]:
    for path in sorted(run.directory.path.rglob(".*.partial")):
        yield f"{path}: was left by a write that was cut off; remove it"


def _table(path: Path) -> pd.DataFrame | None:
    """Raises:
    StoreError: the file at ``path`` is no table.
    """
    import pandas as pd
    from pyarrow.lib import ArrowException

    if not path.exists():
        return None
    try:
        return pd.read_parquet(path)
    except (ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from error


def _lines(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as dictionaries of plain values."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in line.items()} for line in plain.to_dict("records")]


def _equal(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    if list(one.columns) != list(other.columns) or len(one) != len(other):
        return False
    values = [table.astype(object).where(table.notna(), None).to_numpy() for table in (one, other)]
    return bool((values[0] == values[1]).all())


def _difference(one: Outcomes, other: Outcomes) -> str | None:
    """The first thing in which two outcomes differ."""
    if one.suite != other.suite:
        return "suite"
    for name in ("ids", "labels", "classes", "duplicate_of"):
        if not np.array_equal(getattr(one, name), getattr(other, name)):
            return name
    if one.prediction.keys() != other.prediction.keys():
        return "list of cells"
    for cell, prediction in other.prediction.items():
        if not np.array_equal(one.prediction[cell], prediction):
            return f"prediction of {cell}"
        mine, theirs = one.block_sums[cell], other.block_sums[cell]
        if mine.keys() != theirs.keys() or not all(np.array_equal(mine[name], theirs[name]) for name in theirs):
            return f"block sums of {cell}"
    return None
