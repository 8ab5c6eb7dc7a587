"""What an evaluation found, to be looked at in Python: a table, a chart, a comparison, and a run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_bench.errors import BenchError
from mae_bench.markup import terminal_text

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd
    from rich.table import Table

    from mae_bench.labelled_images import LabelledImages
    from mae_bench.leaderboard import Leaderboard
    from mae_bench.outcomes import Outcomes
    from mae_bench.paired_comparison import PairedComparison
    from mae_bench.report.contents import Contents
    from mae_bench.rows import CellResult, ResultRow
    from mae_bench.store import RunDirectory

SHOWN_AT_MOST = 60
"""Lines of the table as which results are shown."""


class ResultsError(BenchError):
    """Results of which something is asked that they do not hold."""


@dataclass(frozen=True, eq=False, repr=False)
class Results:
    """Finished cells of one or several models on one suite, as :func:`mae_bench.evaluate` returns them and as
    :meth:`load` reads them from a run directory.

    ``cells`` are rows with what stands behind them, ``images`` the images that they are of, ``models`` what is recorded
    of each model by its name, ``manifest`` how it was all made.
    """

    cells: Sequence[CellResult]
    images: LabelledImages
    models: Mapping[str, Mapping[str, Any]]
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Results:
        """The results in a run directory, from pytest or from :meth:`save`.

        Raises:
            BenchError: no clean cell is finished there, or a file is damaged.
        """
        from mae_bench.report.contents import Contents
        from mae_bench.store import RunDirectory

        run = RunDirectory(Path(folder))
        contents = Contents.of(run)
        clean_first = sorted(contents.results, key=lambda result: (result.row.model, result.row.family != "clean"))
        return cls(tuple(clean_first), contents.images, run.models(), contents.manifest)

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write a run directory, as ``pytest benchmarks --mae-run`` does, so that ``mae-bench report``, ``compare``,
        ``merge`` and ``verify`` take it. It is there whole, or not at all.

        Raises:
            BenchError: ``folder`` is not empty, or cannot be written.
        """
        from mae_bench.atomic import folder_written_whole
        from mae_bench.store import RunDirectory, StoreError, cell_of

        place = Path(folder)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise StoreError(f"{place}: is not empty; name a new folder, or remove it")
        try:
            with folder_written_whole(place) as private:
                run = RunDirectory(private)
                run.write_manifest(self.manifest)
                run.write_images(self.images)
                run.write_plan([cell_of(result.row).id for result in self.cells], [])
                for record in self.models.values():
                    run.write_model_record(record)
                for result in self.cells:
                    run.write_cell(result)
                self.write_tables(run)
        except OSError as error:
            raise StoreError(f"{place}: cannot be written ({error}); free or choose another place") from error
        return place

    def write_tables(self, run: RunDirectory) -> None:
        """Write the tables of these cells into ``run``, the directory that they are of. An earlier session's comparison
        is of other tables, and removed.

        Raises:
            BenchError: it cannot be written.
        """
        from mae_bench.comparison import COMPARISON
        from mae_bench.store import cell_of, write_atomically
        from mae_bench.tables import write_tables

        cells = sorted(self.cells, key=lambda result: cell_of(result.row))
        write_tables(run, cells, self.outcomes)
        write_atomically(run.path / "leaderboard.md", self.leaderboard.to_markdown().encode())
        (run.path / COMPARISON).unlink(missing_ok=True)

    # ----------------------------------------------------------------------- what there is

    @property
    def rows(self) -> list[ResultRow]:
        """The row of each cell."""
        return [result.row for result in self.cells]

    def to_frame(self) -> pd.DataFrame:
        """One line for each cell, with the fields of :class:`mae_bench.ResultRow` as columns; rates are in [0, 1]."""
        from mae_bench.tables import cell_table

        return cell_table(self.cells)

    @cached_property
    def outcomes(self) -> Outcomes:
        """Which class each image was predicted as in each cell."""
        from mae_bench.outcomes import Outcomes

        return Outcomes.of(self.cells, self.images)

    @cached_property
    def leaderboard(self) -> Leaderboard:
        """A line for each model, those with whole families of degradations ranked by their score."""
        from mae_bench.leaderboard import Leaderboard

        return Leaderboard.of(self.rows, self.outcomes)

    def indicators(self) -> pd.DataFrame:
        """The indicators of all layers, heads and kinds of token, one line for each value, as ``indicators.parquet``
        has them.
        """
        from mae_bench.tables import indicator_table

        return indicator_table(self.cells)

    def plot(self) -> alt.FacetChart:
        """Top-1 against the level with its 95 % interval, a small chart for each degradation; level 0 is clean.

        Raises:
            ResultsError: there is no degraded cell.
        """
        from mae_bench.report.charts import accuracy

        if all(row.family == "clean" or row.status == "not_applicable" for row in self.rows):
            raise ResultsError("there are only clean cells, and nothing to draw them against: evaluate degradations")
        return accuracy(self._contents)

    def compare(self, other: Results, models: Mapping[str, str] | None = None) -> PairedComparison:
        """Whether ``other`` is better: every cell that both have, tested on the images that both have. ``models`` says
        which model of these results is compared with which of the others; by default each with the one of its name, or
        where each side has one model these.

        Raises:
            BenchError: there is nothing to compare; of another suite, of other images, or of other models.
        """
        from mae_bench.paired_comparison import Pair, PairedComparison
        from mae_bench.side import Side

        pairs = [Pair(mine, theirs) for mine, theirs in (models or {}).items()]
        if not pairs and len(self.models) == len(other.models) == 1:
            pairs = [Pair(next(iter(self.models)), next(iter(other.models)))]
        a, b = (Side.of(f"{one._name} ({', '.join(one.models)})", one.cells, one.images) for one in (self, other))
        return PairedComparison.of(a, b, pairs)

    @property
    def _name(self) -> str:
        """Of the run."""
        return str(self.manifest.get("run_id", "results"))

    @property
    def _contents(self) -> Contents:
        from mae_bench.report.contents import Contents
        from mae_bench.tables import representation_table

        return Contents(
            self._name,
            dict(self.manifest),
            self.images,
            tuple(self.cells),
            self.leaderboard,
            self.outcomes,
            representation_table({}),
            None,
        )

    # ----------------------------------------------------------------------- how it is shown

    @property
    def _caption(self) -> str:
        return f"{self.leaderboard.caption} Top-1 in percent with its 95 % interval."

    @property
    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Header and lines: a condition each, a column for each model."""
        models = list(dict.fromkeys(row.model for row in self.rows))
        shown = {(row.condition, row.model): _shown(row) for row in self.rows}
        lines = []
        for row in {row.condition: row for row in self.rows}.values():
            level = "" if row.family == "clean" else row.condition.rpartition("-")[2]
            unit = "" if row.family == "clean" else terminal_text(row.unit)
            values = [shown.get((row.condition, model), "") for model in models]
            lines.append([terminal_text(row.degradation), level, unit, *values])
        return ["degradation", "level", "unit", *map(terminal_text, models)], lines

    @property
    def _rest(self) -> str:
        """What is said of lines that are not shown."""
        left = len(self._table[1]) - SHOWN_AT_MOST
        return f"{left} more conditions; to_frame() has them all." if left > 0 else ""

    def __repr__(self) -> str:
        from tabulate import tabulate

        header, lines = self._table
        table = tabulate(lines[:SHOWN_AT_MOST], headers=header, disable_numparse=True)
        return "\n\n".join(filter(None, (self._caption, table, self._rest)))

    def _repr_html_(self) -> str:
        """As notebooks show it."""
        from markupsafe import escape
        from tabulate import tabulate

        header, lines = self._table
        table = tabulate(lines[:SHOWN_AT_MOST], headers=header, tablefmt="html", disable_numparse=True)
        rest = f"<p>{escape(self._rest)}</p>" if self._rest else ""
        return f"<p>{escape(self._caption)}</p>\n{table}\n{rest}"

    def __rich__(self) -> Table:
        """As rich shows it."""
        from rich.table import Table
        from rich.text import Text

        header, lines = self._table
        table = Table(title=Text(self._caption), caption=self._rest or None, title_justify="left")
        for name in header:
            table.add_column(Text(name), no_wrap=name != "unit")
        for line in lines[:SHOWN_AT_MOST]:
            table.add_row(*map(Text, line))
        return table


def _shown(row: ResultRow) -> str:
    if row.top1 is None or row.top1_low is None or row.top1_high is None:
        return "not applicable"
    return f"{100 * row.top1:.1f} [{100 * row.top1_low:.1f}, {100 * row.top1_high:.1f}]"
