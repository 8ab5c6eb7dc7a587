"""Rows on disk: one file per finished cell, written whole or not at all, and the tables merged from them."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from mae_bench.cells import Cell, Level
from mae_bench.errors import BenchError
from mae_bench.evaluate import CellResult
from mae_bench.models.pool import LoadedModel
from mae_bench.representation import Representation
from mae_bench.rows import SCHEMA_VERSION, ResultRow

LONG = ["cell", "indicator", "layer", "head", "token", "value", "low", "high", "reason"]
"""Columns of indicators in long form."""
LONG_TYPES = {"head": "Int64", "layer": "Int64", "value": "float64", "low": "float64", "high": "float64"}
ABSENT = np.iinfo(np.int16).min
"""Stands in :attr:`Outcomes.prediction` for an image that the cell did not evaluate."""


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
    partials: dict[Path, str] = {}
    path = Path()
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
                partials[path] = file.name
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partials[path], 0o644)  # temporary files are private, results are not
        for path, partial in partials.items():
            os.replace(partial, path)
    except OSError as error:
        for partial in partials.values():
            Path(partial).unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({error}); free or choose another place") from error


def of_one_setting(results: Sequence[CellResult], cells: Collection[str]) -> list[CellResult]:
    """Those of ``results`` that were evaluated as ``cells`` were: a resumed directory may hold others, of other
    images or settings, or of the same model with other weights.
    """

    def setting(row: ResultRow) -> tuple[object, ...]:
        return row.manifest_hash, row.subset, row.seed, row.device, row.dtype

    def model(row: ResultRow) -> tuple[object, ...]:
        versions = (row.indicator_version, row.torch_version, row.mae_bench_version)
        return row.weights_hash, row.preprocessing, row.label_map, row.view, *versions

    ran = [result.row for result in results if cell_of(result.row).id in cells]
    settings = {setting(row) for row in ran}
    models: dict[str, set[tuple[object, ...]]] = {}
    for row in ran:
        models.setdefault(row.model, set()).add(model(row))
    return [
        result
        for result in results
        if setting(result.row) in settings and model(result.row) in models.get(result.row.model, {model(result.row)})
    ]


class RunDirectory:
    """The files of one run. ``cells/<model>/<condition>.json`` is the only truth; the rest is made from it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, resume: bool) -> RunDirectory:
        """The directory at ``path``, made if need be.

        Raises:
            StoreError: it is not writable, or not empty without ``resume``.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not resume and any(path.iterdir()):
                raise StoreError(
                    f"run directory {path} is not empty: add --mae-resume to go on with it, or name another"
                )
            with tempfile.NamedTemporaryFile(dir=path, prefix=".writable"):
                pass
        except OSError as error:
            raise StoreError(
                f"run directory {path} is not writable ({error}): choose another with --mae-run"
            ) from error
        return cls(path)

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def scratch(self) -> Path:
        """Decoded images and clean features while the run lasts."""
        return self.path / "scratch"

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_atomically(self.path / "manifest.json", _json(manifest))

    def write_model(self, model: LoadedModel) -> None:
        """Record what a model is, for readers of the run."""
        entry = model.entry
        record = {"name": entry.name, "arm": entry.arm, "training_seed": entry.training_seed, "head": entry.head}
        record |= {"weights_hash": model.weights_hash, "parameters": model.parameters}
        write_atomically(self.path / "models" / f"{entry.name}.json", _json(record))

    def cell_path(self, cell: Cell) -> Path:
        return self.path / "cells" / cell.model / f"{cell.condition}.json"

    def write_cell(self, result: CellResult) -> None:
        """Raises:
        StoreError: a number is not finite, or the file cannot be written.
        """
        cell = cell_of(result.row)
        record = {
            "row": result.row.to_dict(),
            "prediction": result.prediction.tolist(),
            "block_sums": result.block_sums,
            "indicators": result.indicators,
            "reason": result.reason,
        }
        try:
            content = _json(record)
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
        return self._read(path) if path.exists() else None

    def cells(self) -> list[CellResult]:
        """All finished cells, sorted by id."""
        paths = sorted((self.path / "cells").glob("*/*.json"))
        return sorted((self._read(path) for path in paths), key=lambda result: cell_of(result.row))

    def _read(self, path: Path) -> CellResult:
        try:
            record = json.loads(path.read_bytes())
            row = ResultRow.from_dict(record["row"])
            prediction = record["prediction"]
            if len(prediction) != row.n or not all(type(output) is int for output in prediction):
                raise ValueError(f"{row.n} images need as many predictions, each an integer")
            return CellResult(
                row,
                np.array(prediction, dtype=np.int64),
                list(record["indicators"]),
                dict(record["block_sums"]),
                record.get("reason"),
            )
        except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path}: not a cell that can be read ({error}); remove it and run the cell again"
            ) from error

    def representation_path(self, cell: Cell) -> Path:
        return self.path / "representations" / cell.model / f"{cell.condition}.json"

    def write_representation(self, cell: Cell, representation: Representation) -> None:
        """Raises:
        StoreError: a number is not finite, or the file cannot be written.
        """
        try:
            content = representation.to_json()
        except ValueError as error:
            raise StoreError(f"the representation of {cell.id} is not finite; check the weights") from error
        write_atomically(self.representation_path(cell), content)

    def read_representation(self, cell: Cell) -> Representation | None:
        """The finished representation of ``cell``, or None.

        Raises:
            StoreError: its file is not what this version writes.
        """
        path = self.representation_path(cell)
        return self._read_representation(path) if path.exists() else None

    def representations(self) -> dict[str, Representation]:
        """All finished representations by cell id, sorted."""
        paths = sorted((self.path / "representations").glob("*/*.json"))
        found = {Cell.parse(f"{path.parent.name}-{path.stem}"): self._read_representation(path) for path in paths}
        return {cell.id: found[cell] for cell in sorted(found)}

    def _read_representation(self, path: Path) -> Representation:
        try:
            return Representation.from_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: {error}; remove it and run the item again") from error

    def merge_representations(self) -> None:
        """Write ``representations.parquet`` from all finished representations; none where there are none."""
        import pandas as pd

        found = self.representations()
        if found:
            long = [{"cell": cell, **record} for cell, one in found.items() for record in one.records]
            frame = pd.DataFrame(long, columns=LONG).astype(LONG_TYPES)
            frame.to_parquet(self.path / "representations.parquet", index=False)

    def merge(
        self,
        ids: Sequence[str],
        labels: np.ndarray,
        classes: Sequence[str],
        results: Sequence[CellResult] | None = None,
    ) -> list[CellResult]:
        """Write ``cells.parquet``, ``indicators.parquet`` and ``outcomes.npz`` from ``results``, by default all
        finished cells.
        """
        import pandas as pd

        results = self.cells() if results is None else list(results)
        pd.DataFrame([result.row.to_dict() for result in results]).to_parquet(self.path / "cells.parquet", index=False)
        long = [{"cell": cell_of(result.row).id, **record} for result in results for record in result.indicators]
        frame = pd.DataFrame(long, columns=LONG).astype(LONG_TYPES)
        frame.to_parquet(self.path / "indicators.parquet", index=False)
        suite = results[0].row.suite if results else ""
        Outcomes.of(suite, results, ids, labels, classes).save(self.path / "outcomes.npz")
        return results


def _json(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()


@dataclass
class Outcomes:
    """Per cell the class predicted for each image, and sums per block of 256 images: what paired comparisons need.

    ``prediction[cell]`` (images,) int16 holds positions in ``classes``, ``-1 - output`` for outputs that stand
    for no class, and :data:`ABSENT`. ``block_sums[cell][name]`` is (blocks,) float32.
    """

    suite: str
    ids: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    prediction: dict[str, np.ndarray] = field(default_factory=dict)
    block_sums: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        suite: str,
        results: Sequence[CellResult],
        ids: Sequence[str],
        labels: np.ndarray,
        classes: Sequence[str],
    ) -> Outcomes:
        outcomes = cls(suite, np.array(ids, dtype="S"), labels.astype(np.int16), np.array(classes, dtype="U"))
        for result in results:
            name = cell_of(result.row).id
            prediction = np.full(len(ids), ABSENT, dtype=np.int16)
            prediction[: len(result.prediction)] = result.prediction
            outcomes.prediction[name] = prediction
            outcomes.block_sums[name] = {
                key: np.array(value, dtype=np.float32) for key, value in result.block_sums.items()
            }
        return outcomes

    def correct(self, cell: str) -> np.ndarray:
        """(images,) whether ``cell`` classified each image rightly; absent images count as wrong."""
        return np.asarray(self.prediction[cell] == self.labels)

    def save(self, path: Path) -> None:
        write_atomically(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """A NumPy archive; the same content gives the same bytes."""
        cells = sorted(self.prediction)
        names = sorted({name for sums in self.block_sums.values() for name in sums})
        blocks = max((len(v) for sums in self.block_sums.values() for v in sums.values()), default=0)
        table = np.full((len(cells), len(names), blocks), np.nan, dtype=np.float32)
        for i, cell in enumerate(cells):
            for name, values in self.block_sums[cell].items():
                table[i, names.index(name), : len(values)] = values
        stack = [self.prediction[cell] for cell in cells]
        with tempfile.SpooledTemporaryFile() as file:
            np.savez_compressed(
                file,
                schema_version=np.array(SCHEMA_VERSION),
                suite=np.array(self.suite),
                ids=self.ids,
                labels=self.labels,
                classes=self.classes,
                cells=np.array(cells, dtype="U"),
                prediction=np.array(stack, dtype=np.int16).reshape(len(cells), len(self.ids)),
                block_sum_names=np.array(names, dtype="U"),
                block_sums=table,
            )
            file.seek(0)
            return file.read()

    @classmethod
    def load(cls, path: Path) -> Outcomes:
        """Raises:
        StoreError: the file is not what :meth:`save` writes, or of another schema.
        """
        try:
            # opened here, because np.load leaves a damaged archive open
            with path.open("rb") as source, np.load(source, allow_pickle=False) as file:
                version = int(file["schema_version"])
                if version != SCHEMA_VERSION:
                    raise StoreError(
                        f"{path}: schema {version}, this mae_bench reads {SCHEMA_VERSION}: make the baseline again "
                        "with --mae-update-baseline, or use the version that wrote it"
                    )
                outcomes = cls(str(file["suite"]), file["ids"], file["labels"], file["classes"])
                cells, names = ([str(name) for name in file[key]] for key in ("cells", "block_sum_names"))
                prediction, table = file["prediction"], file["block_sums"]
                images = (len(outcomes.ids),)
                fitting = outcomes.labels.shape == images and prediction.shape == (len(cells), *images)
                if not fitting or prediction.dtype != np.int16 or table.shape[:-1] != (len(cells), len(names)):
                    raise ValueError("its arrays do not fit each other")
                for i, cell in enumerate(cells):
                    outcomes.prediction[cell] = prediction[i]
                    sums = {name: table[i, k][~np.isnan(table[i, k])] for k, name in enumerate(names)}
                    outcomes.block_sums[cell] = {name: values for name, values in sums.items() if len(values)}
                return outcomes
        except StoreError:
            raise
        except (OSError, EOFError, LookupError, TypeError, ValueError, BadZipFile, zlib.error) as error:
            raise StoreError(
                f"{path}: not a file of outcomes ({error}); restore it or make the baseline again"
            ) from error
