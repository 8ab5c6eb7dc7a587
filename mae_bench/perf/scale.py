"""How large grids would go: a simulated cluster over the real groups, and a leaderboard asked of millions of rows.

``python -m mae_bench.perf.scale`` writes the page. Rates and failures of the simulation are made up, and said; groups,
rows on the disk and queries are the package's own.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from mae_bench.cells import Cell
from mae_bench.degradations.ladders import conditions
from mae_bench.grouping import grouped, path_of
from mae_bench.markup import markdown_text
from mae_bench.rows import SCHEMA_VERSION
from mae_bench.seals import sealed
from mae_bench.simulation import Failures, Work, simulated
from mae_bench.suites import SUITES, SuiteEntry
from mae_bench.warehouse import FILE, GROUP, leaderboard, opened, schema, write_warehouse

if TYPE_CHECKING:
    import pyarrow as pa

GRID = SUITES["imagenet_c"]
"""Suite of the simulated grid: 95 degraded cells of each model, and the clean pass."""
LOAD = 60.0
"""Seconds that a node takes to begin with a model. Made up."""
SLOWEST, FASTEST = 200.0, 4000.0
"""Images per second between which the rates of models are spread, evenly on a logarithmic scale. Made up."""
REPAIR_HOURS = 0.5
"""Hours until a node that failed is back. Made up."""
MTBF_HOURS = (float("inf"), 10_000.0, 1_000.0, 100.0)
"""Mean hours until a node fails. Made up."""
STORED = SUITES["imagenet"]
"""Suite of the rows that are asked."""


# --------------------------------------------------------------------------- a simulated cluster


def works(suite: SuiteEntry, models: int, nodes: int, seed: int = 0) -> list[Work]:
    """What each group of a grid takes: models called ``model_00000`` and so on, their rates made up."""
    rates = np.exp(np.random.default_rng(seed).uniform(np.log(SLOWEST), np.log(FASTEST), models))
    matrix = conditions(suite)
    cells = [Cell(f"model_{number:05}", kind.name, level) for number in range(models) for kind, level in matrix]
    found = []
    for group in grouped([path_of(cell) for cell in cells], nodes):
        seconds = suite.images / float(rates[group[0] // len(matrix)])
        degraded = sum(cells[position].degradation != "clean" for position in group)
        found.append(Work(LOAD + seconds, (seconds,) * degraded))
    return found


def ideal(groups: list[Work], models: int, nodes: int, seed: int = 0) -> float:
    """Seconds where every image goes through every model once for each cell and once clean, and no node ever waits."""
    rates = np.exp(np.random.default_rng(seed).uniform(np.log(SLOWEST), np.log(FASTEST), models))
    clean = float((GRID.images / rates).sum())
    return (sum(sum(group.cells) for group in groups) + clean) / nodes


def simulation_section(
    models: int = 10_000, nodes: int = 1_000, others: tuple[tuple[int, int], ...] = ((1_500, 8), (100, 4))
) -> str:
    """A grid of ``models`` on ``nodes`` under each of :data:`MTBF_HOURS`, and in groups of several sizes that grid and
    ``others``: numbers of models, and of groups for each node.
    """
    groups = works(GRID, models, nodes)
    least = ideal(groups, models, nodes)
    failing = []
    for hours in MTBF_HOURS:
        course = simulated(longest_first(groups), nodes, Failures(hours, REPAIR_HOURS))
        failing.append(
            (
                "never" if np.isinf(hours) else f"{hours:,.0f} h",
                f"{course.failures:,}",
                f"{course.lost / 3600:,.1f}",
                f"{course.starts / 3600:,.0f}",
                *_spans(course.makespan, least),
            )
        )
    sizes = []
    for count, of_node in ((models, 1), *(pair for many, each in others for pair in ((many, 1), (many, each)))):
        groups = works(GRID, count, nodes * of_node)
        least = ideal(groups, count, nodes)
        as_they_come = simulated(groups, nodes).makespan
        sizes.append(
            (
                f"{count:,}",
                f"{len(groups):,}",
                *_spans(as_they_come, least),
                *_spans(simulated(longest_first(groups), nodes).makespan, least)[1:],
            )
        )
    header = ["a node fails after", "failures", "node-hours lost", "before first cells", "ideal", "makespan", "ratio"]
    header_of_sizes = ["models", "groups", "ideal", "as they come", "ratio", "longest first", "ratio"]
    cells = len(conditions(GRID)) - 1
    return (
        "## A simulated cluster\n\n"
        f"`mae_bench.grouping` over {cells} degraded cells of each model on {GRID.images:,} images (`{GRID.name}`), "
        f"{nodes:,} nodes. A node takes one group after another and keeps each finished cell; when it fails it is back "
        f"in {REPAIR_HOURS:g} h, another goes on with its group, and the cell that it was in is done again, after the "
        "model was built and its clean images seen again. Made up are the rates of the models "
        f"({SLOWEST:,.0f} to {FASTEST:,.0f} images/s, even on a logarithmic scale), {LOAD:.0f} s to begin with one, "
        "and when nodes fail (exponentially distributed). *ideal*: the sum of one pass for each cell and one clean "
        "pass for each model, by the nodes. *before first cells*: node-hours of building models and of clean passes."
        "\n\n"
        f"{models:,} models, each a group, the longest first:\n\n{_table(failing, header)}\n\n"
        "Without failures, by how many groups there are and in which order they are taken. Which are long is known "
        "by rates; `mae-bench plan --rates` orders the shards of its script by them:\n\n"
        f"{_table(sizes, header_of_sizes)}\n\n"
        "Where models are few, or of very different rates, whole models leave nodes waiting for the slowest of them, "
        "and smaller groups (`--shards`) pay for it with clean passes.\n"
    )


def longest_first(groups: list[Work]) -> list[Work]:
    return sorted(groups, key=lambda group: -group.seconds)


def _spans(makespan: float, least: float) -> tuple[str, str, str]:
    return f"{least / 3600:,.2f} h", f"{makespan / 3600:,.2f} h", f"{makespan / least:.3f}"


def _table(lines: Sequence[tuple[str, ...]], header: list[str]) -> str:
    from tabulate import tabulate

    return tabulate(lines, headers=header, tablefmt="github", disable_numparse=True)


# --------------------------------------------------------------------------- millions of rows


def made_up_tables(rows: int, seed: int = 0) -> Iterator[pa.Table]:
    """At least ``rows`` rows of whole models, each with every cell of the default matrix; numbers drawn at random."""
    import pyarrow as pa

    generator = np.random.default_rng(seed)
    matrix = conditions(STORED)
    models = -(-rows // len(matrix))
    at_once = max(1, FILE // len(matrix))
    of_cell: dict[str, list[Any]] = {
        "family": [kind.family for kind, _ in matrix],
        "degradation": [kind.name for kind, _ in matrix],
        "level": [level.value for _, level in matrix],
        "unit": [kind.unit_at(STORED.reference_size) for kind, _ in matrix],
        "condition": [f"{kind.name}-{level}" for kind, level in matrix],
        "degradation_version": [kind.version for kind, _ in matrix],
    }
    for first in range(0, models, at_once):
        numbers = range(first, min(first + at_once, models))
        model = np.repeat(np.arange(len(numbers)), len(matrix))
        cell = np.tile(np.arange(len(matrix)), len(numbers))
        count = len(model)
        of_model = {
            "model": [f"model_{number:06}" for number in numbers],
            "weights_hash": [generator.bytes(16).hex() for _ in numbers],
            "parameters": generator.integers(10**6, 10**9, len(numbers)),
        }
        constant: dict[str, Any] = {
            "suite": STORED.name, "status": "ok", "n": STORED.images, "n_expected": STORED.images,
            "distinct": STORED.images, "device": "cuda", "dtype": "bfloat16", "batch_size": 256, "threads": 8,
            "seed": 0, "subset": f"first {STORED.images} of {STORED.images}", "view": "model", "classes": 1000,
            "run_id": "grid", "schema_version": SCHEMA_VERSION,
        }  # fmt: skip
        columns: list[Any] = []
        for field in schema():
            if field.name in of_cell:
                column = pa.array(of_cell[field.name], field.type).take(pa.array(cell))
            elif field.name in of_model:
                column = pa.array(of_model[field.name], field.type).take(pa.array(model))
            elif field.name in constant:
                column = pa.repeat(pa.scalar(constant[field.name], field.type), count)
            elif pa.types.is_floating(field.type) and field.name.startswith("top"):
                # a share of the images
                column = pa.array(generator.integers(0, STORED.images + 1, count) / STORED.images)
            elif pa.types.is_floating(field.type):
                column = pa.array(generator.random(count))
            elif pa.types.is_integer(field.type):
                column = pa.array(generator.integers(0, 100, count))
            else:
                column = pa.repeat(pa.scalar(f"{field.name} of all", field.type), count)
            columns.append(column)
        yield pa.Table.from_arrays(columns, schema=schema())


@dataclass(frozen=True)
class Asked:
    """Seconds of the wall clock and of all threads that a question took, the median of several."""

    question: str
    wall: float
    processor: float


def asked(question: str, ask: Any, rounds: int) -> Asked:
    times = []
    for _ in range(rounds):
        wall, processor = time.perf_counter(), time.process_time()
        ask()
        times.append((time.perf_counter() - wall, time.process_time() - processor))
    return Asked(question, statistics.median(t[0] for t in times), statistics.median(t[1] for t in times))


def store_section(rows: int, folder: Path, rounds: int = 5) -> str:
    """Writes ``rows`` rows below ``folder`` and asks them."""
    started = time.process_time()
    write_warehouse(made_up_tables(rows), folder)
    written = time.process_time() - started
    size = sum(file.stat().st_size for file in folder.rglob("*.parquet"))
    connection = opened(folder)
    held, models = connection.execute("select count(*), count(distinct model) from cells").fetchone()
    one = f"select * from cells where model = 'model_{models // 2:06}'"
    blur = "select degradation, level, avg(top1) from cells where family = 'blur' group by all"
    questions = [
        asked("the leaderboard of the suite, all models ranked", lambda: leaderboard(folder, STORED.name), rounds),
        asked("mean top-1 of each blur and level", lambda: opened(folder).execute(blur).fetchall(), rounds),
        asked("every field of the cells of one model", lambda: opened(folder).execute(one).fetchall(), rounds),
    ]
    lines = [(q.question, f"{q.wall:.2f} s", f"{q.processor:.2f} s") for q in questions]
    table = _table(lines, ["question", "wall clock", "processor"])
    threads = connection.execute("select current_setting('threads')").fetchone()[0]
    per_row = size / held
    grid = 10_000 * len(conditions(GRID))
    prediction = np.random.default_rng(0).integers(0, 1000, GRID.images).tolist()
    file = len(sealed({"prediction": prediction}))
    return (
        "## Millions of rows\n\n"
        f"{held:,} rows of {models:,} models under the default matrix of `{STORED.name}`, made up at random (so that "
        f"numbers hardly compress), written by `mae_bench.warehouse`: one folder for each suite, files of up to "
        f"{FILE:,} rows sorted by model, row groups of {GROUP:,}, strings by dictionary, zstd. "
        f"{size / 1e9:.2f} GB, {per_row:.0f} bytes a row; making and writing them took {written:.0f} s of processor "
        f"time. Medians of {rounds} times, {threads} threads, files in the cache of the operating system; each opens "
        "the files anew.\n\n"
        f"{table}\n\n"
        f"The grid above with 10,000 models is {grid:,} rows with the clean ones: {grid * per_row / 1e6:,.0f} MB at "
        f"that size. The rows are the small part. The predictions of a cell on {GRID.images:,} images are "
        f"{file / 1e3:,.0f} kB in its file (classes drawn evenly from 1,000), {grid * file / 1e9:,.0f} GB for the grid "
        f"beside its indicators, and {grid * GRID.images * 2 / 1e9:,.0f} GB in `outcomes.npz` before compression. "
        "`mae-bench merge` holds those in memory, so that a grid of this size is merged in parts; `mae-bench gather` "
        "reads one cell at a time.\n"
    )


def page(rows: int, rounds: int) -> str:
    from mae_bench.machine import machine

    versions = ", ".join(f"{name} {version(name)}" for name in ("mae_bench", "duckdb", "pyarrow", "numpy"))
    with tempfile.TemporaryDirectory() as scratch:
        store = store_section(rows, Path(scratch) / "rows", rounds)
    simulation = simulation_section()
    where = f"{markdown_text(machine('cpu'))}; Python {platform.python_version()}, {versions}"
    return f"# At scale\n\n`python -m mae_bench.perf.scale`, {where}.\n\n{simulation}\n{store}"


def main(
    rows: Annotated[int, typer.Option(min=1, help="Rows that are written and asked.")] = 10_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each question is asked.")] = 5,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("results/performance/scale.md"),
) -> None:
    """Simulate a grid on a cluster, ask millions of rows, and write what came out."""
    from mae_bench.store import write_atomically

    write_atomically(out, page(rows, rounds).encode())
    typer.echo(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
