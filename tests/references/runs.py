"""Run directories as sessions leave them, made up in a moment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mae_bench.baseline import Baseline, save
from mae_bench.cells import Cell
from mae_bench.labelled_images import LabelledImages, first_copies
from mae_bench.outcomes import Outcomes
from mae_bench.representation import Representation
from mae_bench.rows import IDENTITY, CellResult
from mae_bench.store import RunDirectory, cell_of
from mae_bench.tables import write_representation_table, write_tables

CONDITIONS = ("clean-0.00", "gaussian_blur-3.00", "random_patch-0.50", "token_drop-0.50")
CELLS = tuple(f"{model}-{condition}" for model in ("vit", "ViT-B", "cnn") for condition in CONDITIONS)


def some_images(count: int = 12, copies: int = 1) -> LabelledImages:
    """Images of three classes, the last ``copies`` of which are copies of the first."""
    firsts = [f"{i:032x}-0" for i in range(count - copies)]
    ids = firsts + [f"{0:032x}-{i + 1}" for i in range(copies)]
    return LabelledImages(ids, np.arange(count) % 3, ["bag", "coat", "shirt"], first_copies(ids))


def records(name: str) -> list[dict[str, Any]]:
    """Indicators that belong to ``name``."""
    value = int(hashlib.sha256(name.encode()).hexdigest()[:4], 16) / 2**16
    shape = {"indicator": "alignment", "layer": 1, "head": None, "token": "cls", "low": None, "high": None}
    return [
        {**shape, "value": value, "reason": "few_blocks"},
        {**shape, "layer": 2, "value": None, "reason": "constant"},
    ]


def model_record(name: str, **changes: Any) -> dict[str, Any]:
    """What a run writes down of a model."""
    return {"name": name, "arm": None, "training_seed": None, "weights_hash": f"weights of {name}", **changes}


@dataclass(frozen=True)
class Sessions:
    """Leaves run directories behind. What is measured depends on the cell alone, what it takes on the run."""

    cell_result: Callable[..., CellResult]
    images: LabelledImages = field(default_factory=some_images)

    def result(self, name: str, run_id: str = "run", **changes: Any) -> CellResult:
        """The finished cell ``name``; ``changes`` are of its row."""
        images = self.images
        seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
        prediction = np.random.default_rng(seed).integers(0, len(images.classes), len(images.ids))
        model = Cell.parse(name).model
        row: dict[str, Any] = {
            "manifest_hash": images.manifest_hash,
            "subset": f"first {len(prediction)} of {len(images.ids)}",
            "classes": len(images.classes),
            "distinct": len(set(images.duplicate_of.tolist())),
            "weights_hash": f"weights of {model}",
            "seconds": 1.0 + len(run_id),
            "images_per_second": 100.0 / len(run_id),
            "threads": len(run_id),
            "machine": f"machine of {run_id}",
            "run_id": run_id,
        }
        hits = float((prediction == images.labels).sum())
        sums = {"images": [float(len(prediction))], "hits": [hits], "nll": [2.5]}
        return self.cell_result(
            name, prediction, images.labels, indicators=records(name), block_sums=sums, **row | changes
        )

    def representation(self, name: str) -> Representation:
        row = self.result(name).row
        identity = {name: getattr(row, name) for name in IDENTITY if name != "schema_version"}
        return Representation(identity, records(f"representation of {name}"))

    def leave(
        self,
        path: Path,
        cells: Collection[str] = CELLS,
        represented: Collection[str] = (),
        run_id: str | None = None,
        tables: bool = False,
    ) -> RunDirectory:
        """The run directory of a session that planned and finished ``cells`` and what is ``represented``."""
        run = RunDirectory.create(path, resume=False)
        name_of_run = run_id or path.name
        run.write_manifest({"run_id": name_of_run, "suite": "fashion_mnist", "settings": {"threads": len(name_of_run)}})
        run.write_images(self.images)
        run.write_plan(cells, represented)
        for model in sorted({Cell.parse(name).model for name in (*cells, *represented)}):
            run.write_model_record(model_record(model))
        for name in cells:
            run.write_cell(self.result(name, name_of_run))
        for name in represented:
            run.write_representation(Cell.parse(name), self.representation(name))
        if tables:
            write_tables(run, run.cells(), Outcomes.of(run.cells(), self.images))
            write_representation_table(run)
        return run

    def commit(
        self, path: Path, cells: Collection[str] = CELLS, turned: int = 0, suite: str = "fashion_mnist"
    ) -> Baseline:
        """The committed results in ``path``, updated by ``cells`` in each of which the first ``turned`` images are
        predicted as the class after the one that they else are.
        """
        results = [self.result(name, suite=suite) for name in cells]
        for result in results:
            result.prediction[:turned] = (result.prediction[:turned] + 1) % len(self.images.classes)
        images, before = self.images, Baseline.load(path, suite)
        outcomes = Outcomes.of(results, images)
        rows = {cell_of(result.row).id: result.row for result in results}
        baseline = Baseline(path, rows, outcomes, before.history if before is not None else ())
        save(baseline, sorted({row.model for row in rows.values()}), "a reason", "run", path.parent.parent)
        return baseline


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by its path there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
