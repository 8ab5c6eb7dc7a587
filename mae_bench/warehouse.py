"""Rows of many runs as Parquet, one folder for each suite, and the leaderboard as a query that DuckDB answers.

Predictions stay in the runs; what is here are rows alone, so that tens of millions fit on one disk and a question about
all of them takes seconds. DuckDB (extra ``[query]``) is imported when something is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_bench.atomic import folder_written_whole
from mae_bench.degradations import families
from mae_bench.errors import BenchError
from mae_bench.rows import ResultRow
from mae_bench.store import RunDirectory

if TYPE_CHECKING:
    import pyarrow as pa

SORTED_BY = ("model", "family", "degradation", "level")
"""Order of the rows of a file, so that a group of them holds few models, and its strings are few."""
GROUP = 2**17
"""Rows of a row group: what DuckDB gives to one thread at a time."""
FILE = 2**20
"""Rows of a file, as far as they are gathered here."""


class WarehouseError(BenchError):
    """Rows that cannot be kept together, or asked."""


@cache
def schema() -> pa.Schema:
    """The columns of :class:`mae_bench.rows.ResultRow`; those without "not applicable" may not be null."""
    import pyarrow as pa

    kinds = {"float": pa.float64(), "int": pa.int64()}
    columns = []
    for field in fields(ResultRow):
        kind, _, optional = str(field.type).partition(" | ")
        columns.append(pa.field(field.name, kinds.get(kind, pa.string()), nullable=bool(optional)))
    return pa.schema(columns)


def row_tables(rows: Iterable[ResultRow], size: int = FILE) -> Iterator[pa.Table]:
    """``rows`` in tables of at most ``size``."""
    import pyarrow as pa

    gathered: list[dict[str, Any]] = []
    for row in rows:
        gathered.append(row.to_dict())
        if len(gathered) == size:
            yield pa.Table.from_pylist(gathered, schema())
            gathered = []
    if gathered:
        yield pa.Table.from_pylist(gathered, schema())


def rows_of(runs: Iterable[Path]) -> Iterator[ResultRow]:
    """The rows of all finished cells of ``runs``, one cell in memory at a time.

    Raises:
        BenchError: a run holds none, or a file is damaged.
    """
    for path in runs:
        files = RunDirectory(path).cell_files()
        if not files:
            raise WarehouseError(f"{path}: holds no finished cells, so it is no run to be kept; name another")
        for file in files:
            yield RunDirectory(path).read_cell_file(file).row


def write_warehouse(tables: Iterable[pa.Table], folder: Path) -> None:
    """Write ``tables`` of :func:`schema` to the new ``folder``, a file for each table and suite, sorted. It is there
    whole, or not at all.

    Raises:
        WarehouseError: there is something already, or it cannot be written.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WarehouseError(f"{folder}: is not empty; name a new directory, or remove it")
    try:
        with folder_written_whole(folder) as private:
            for number, table in enumerate(tables):
                for suite in sorted(pc.unique(table["suite"]).to_pylist()):
                    of_suite = table.filter(pc.equal(table["suite"], suite)).drop_columns("suite")
                    order = pc.sort_indices(of_suite, [(name, "ascending") for name in SORTED_BY])
                    place = private / f"suite={suite}" / f"{number:05}.parquet"
                    place.parent.mkdir(exist_ok=True)
                    pq.write_table(of_suite.take(order), place, row_group_size=GROUP, compression="zstd")
    except OSError as error:
        raise WarehouseError(
            f"{folder}: cannot be written ({error}); free some room, or choose another place"
        ) from error


# --------------------------------------------------------------------------- questions


@dataclass(frozen=True)
class Place:
    """A model in the ranking: ``score`` as in :class:`mae_bench.leaderboard.Standing`, and clean top-1, in [0, 1]."""

    model: str
    score: float
    clean: float


_LEADERBOARD = """
with place as (  -- of each condition among those of its family, as the bit that stands for it
    select family, condition, 1::hugeint << (row_number() over (partition by family order by condition) - 1)::int as bit
    from (select distinct family, condition from cells where suite = $suite)
), held as (
    select model, family, bit, top1, n = (select max(n) from cells where suite = $suite) as whole
    from cells join place using (family, condition) where suite = $suite and status <> 'not_applicable'
), asked as (
    select family, bit_or(coalesce(bit, 1::hugeint << 126)) as bits
    from needed left join place using (family, condition) group by family
), standing as (  -- of a model in a family: what it has on all images, and whether the default matrix asks for no more
    select model, family, own as bits, own & asked.bits = asked.bits as complete, repeated
    from (
        select model, family, coalesce(bit_or(bit) filter (whole), 0) as own,
            count(*) - bit_count(bit_or(bit)) as repeated
        from held group by model, family
    ) join asked using (family)
), candidate as (
    select model from standing group by model
    having bool_or(family = 'clean') and bool_and(complete or family = 'clean') and bool_or(family not in $unranked)
), scored as (
    select family from standing semi join candidate using (model) where family not in $unranked
    group by family having count(*) = (select count(*) from candidate)
), shared as (  -- conditions that all models have which are complete in the family
    select family, bit_and(bits) as bits from standing where complete and family in (from scored) group by family
), mean as (
    select model, family, avg(top1) as top1 from held join shared using (family)
    where whole and held.bit & shared.bits <> 0 group by model, family
), clean as (
    select model, any_value(top1) as clean from held where family = 'clean' group by model
)
select model, avg(mean.top1) as score, any_value(clean) as clean, (select sum(repeated) from standing) as repeated
from mean semi join candidate using (model) join clean using (model) group by model order by score desc, model
"""


def leaderboard(folder: Path, suite: str) -> list[Place]:
    """The models of ``suite`` that :class:`mae_bench.leaderboard.Leaderboard` would rank, best first.

    Raises:
        WarehouseError: there are no rows of the suite, a cell is there twice, or DuckDB is not installed.
    """
    from mae_bench.leaderboard import UNRANKED, default_conditions
    from mae_bench.suites import suite_entry

    entry = suite_entry(suite)
    needed = [(family, condition) for family in families() for condition in default_conditions(family, entry)]
    connection = opened(folder)
    if not (folder / f"suite={suite}").is_dir():
        held = ", ".join(sorted(path.name.removeprefix("suite=") for path in folder.glob("suite=*")))
        raise WarehouseError(f"{folder}: holds no rows of {suite}, but of {held}; name one of these with --suite")
    connection.execute("create temp table needed (family varchar, condition varchar)")
    connection.executemany("insert into needed values (?, ?)", needed)
    found = connection.execute(_LEADERBOARD, {"suite": suite, "unranked": list(UNRANKED)}).fetchall()
    if found and found[0][3]:
        raise WarehouseError(f"{folder}: holds {found[0][3]} cells of {suite} twice; keep runs of one setting together")
    return [Place(model, score, clean) for model, score, clean, _ in found]


def answer(folder: Path, sql: str) -> tuple[list[str], Sequence[Sequence[Any]]]:
    """Columns and rows that DuckDB gives for ``sql`` about the table ``cells``.

    Raises:
        WarehouseError: it cannot be answered.
    """
    import duckdb

    try:
        result = opened(folder).execute(sql)
        return [column[0] for column in result.description or ()], result.fetchall()
    except duckdb.Error as error:
        raise WarehouseError(f"{sql!r} cannot be answered: {error}") from error


def opened(folder: Path) -> Any:
    """A DuckDB connection in which the view ``cells`` is the rows in ``folder``.

    Raises:
        WarehouseError: there are none, or DuckDB is not installed.
    """
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise WarehouseError('duckdb is not installed: pip install "mae-bench[query]"') from error
    if not any(folder.glob("suite=*/*.parquet")):
        raise WarehouseError(f"{folder}: holds no rows; mae-bench gather RUN... --out DIR keeps those of runs")
    connection = duckdb.connect()
    files = str(folder / "suite=*" / "*.parquet").replace("'", "''")
    connection.execute(f"create view cells as from read_parquet('{files}', hive_partitioning = true)")
    return connection
