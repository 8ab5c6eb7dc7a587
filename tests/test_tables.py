"""The tables of a run hold what its cells hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mae_bench.labelled_images import LabelledImages
from mae_bench.outcomes import Outcomes
from mae_bench.rows import CellResult
from mae_bench.store import RunDirectory, cell_of
from mae_bench.tables import write_tables

MakeResult = Callable[..., CellResult]


def test_merged_tables_hold_every_row_and_record(cell_result: MakeResult, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, resume=False)
    ids, labels = ["0a-0", "0b-0", "0b-1"], np.array([0, 1, 1])
    record = {"indicator": "alignment", "layer": 1, "head": None, "token": "cls", "reason": None}
    written = [
        cell_result("vit-clean-0.00", [0, 1, 1], labels, nll=0.25),
        cell_result(
            "vit-gaussian_blur-0.50",
            [0, 0, 1],
            labels,
            block_sums={"images": [2.0, 1.0]},
            indicators=[
                {**record, "value": 0.1 + 0.2, "low": 0.25, "high": None},
                {**record, "head": 2, "value": None, "low": None, "high": None, "reason": "constant"},
            ],
        ),
        cell_result("cnn-gaussian_blur-3.00", [0, 1], labels, n_expected=3),
    ]
    for result in written:
        run.write_cell(result)
    images = LabelledImages.of(ids, labels, ["coat", "bag"])
    finished = run.cells()
    write_tables(run, finished, Outcomes.of(finished, images))

    by_cell = sorted(written, key=lambda r: cell_of(r.row).id)

    def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
        return frame.astype(object).where(frame.notna(), None).to_dict("records")

    assert plain(pd.read_parquet(tmp_path / "cells.parquet")) == [r.row.to_dict() for r in by_cell]
    assert plain(pd.read_parquet(tmp_path / "indicators.parquet")) == [
        {"cell": cell_of(r.row).id, **record} for r in by_cell for record in r.indicators
    ]
    loaded = Outcomes.load(tmp_path / "outcomes.npz")
    assert loaded.to_bytes() == Outcomes.of(by_cell, images).to_bytes()


def test_run_without_a_finished_cell_merges_to_empty_tables(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_tables(run, [], Outcomes.of([], LabelledImages.of(["0a-0"], np.array([0]), ["coat"])))
    assert len(pd.read_parquet(tmp_path / "cells.parquet")) == 0
    assert len(pd.read_parquet(tmp_path / "indicators.parquet")) == 0
    assert Outcomes.load(tmp_path / "outcomes.npz").prediction == {}
