"""The tables of a run, made of its finished cells and representations."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mae_bench.outcomes import Outcomes
from mae_bench.rows import RECORD, CellResult
from mae_bench.store import RunDirectory, cell_of, write_atomically, write_together

if TYPE_CHECKING:
    import pandas as pd

    from mae_bench.representation import Representation

LONG = ["cell", *RECORD]
"""Columns of indicators in long form."""
LONG_TYPES = {"head": "Int64", "layer": "Int64", "value": "float64", "low": "float64", "high": "float64"}


def write_tables(run: RunDirectory, results: Sequence[CellResult], outcomes: Outcomes) -> None:
    """Write ``cells.parquet`` and ``indicators.parquet`` of ``results``, and their ``outcomes.npz``, into the directory
    of a run.

    Raises:
        StoreError: the files cannot be written.
    """
    write_together(
        {
            run.path / "cells.parquet": _parquet(cell_table(results)),
            run.path / "indicators.parquet": _parquet(indicator_table(results)),
            run.path / "outcomes.npz": outcomes.to_bytes(),
        }
    )


def write_representation_table(run: RunDirectory) -> None:
    """Write ``representations.parquet`` of all finished representations of ``run``; none where there are none.

    Raises:
        StoreError: one is damaged, or the file cannot be written.
    """
    found = run.representations()
    if found:
        write_atomically(run.path / "representations.parquet", _parquet(representation_table(found)))


def cell_table(results: Sequence[CellResult]) -> pd.DataFrame:
    """Rows as a table."""
    import pandas as pd

    return pd.DataFrame([result.row.to_dict() for result in results])


def indicator_table(results: Sequence[CellResult]) -> pd.DataFrame:
    """The indicators of all layers and heads in long form."""
    return _long((cell_of(result.row).id, result.indicators) for result in results)


def representation_table(found: Mapping[str, Representation]) -> pd.DataFrame:
    """The records of representations by cell id in long form."""
    return _long((cell, representation.records) for cell, representation in found.items())


def _long(records: Iterator[tuple[str, list[dict[str, Any]]]]) -> pd.DataFrame:
    import pandas as pd

    lines = [{"cell": cell, **record} for cell, each in records for record in each]
    return pd.DataFrame(lines, columns=LONG).astype(LONG_TYPES)


def _parquet(table: pd.DataFrame) -> bytes:
    file = io.BytesIO()
    table.to_parquet(file, index=False)
    return file.getvalue()
