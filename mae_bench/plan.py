"""What a large grid will cost, from rates that were measured, and the batch script that runs it in shards."""

from __future__ import annotations

import heapq
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mae_bench.cells import Cell
from mae_bench.command import pytest_command
from mae_bench.degradations.ladders import conditions
from mae_bench.errors import BenchError
from mae_bench.grouping import path_of, sharded
from mae_bench.images import BLOCK, PROBE_BLOCKS
from mae_bench.rows import CellResult, ResultRow
from mae_bench.suites import SuiteEntry

MOST_SHARDS = 1000
"""Elements that Slurm takes in an array unless its MaxArraySize says otherwise."""


class PlanError(BenchError):
    """A grid that cannot be planned."""


# --------------------------------------------------------------------------- what was measured


@dataclass(frozen=True)
class Rate:
    """How fast a model is evaluated: ``images_per_second`` over whole cells, degradation and indicators included, and
    ``source``, where that was measured.
    """

    images_per_second: float
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.images_per_second < float("inf"):
            raise PlanError(f"{self.images_per_second:g} images per second is no rate: give a positive number")


def rates_of(rows: Iterable[ResultRow]) -> dict[str, Rate]:
    """The rate of each model over all of its ``rows``: their images by the seconds that these took.

    Raises:
        PlanError: rows of a model are of several devices, whose mean would be no rate of any.
    """
    images: dict[str, float] = {}
    seconds: dict[str, float] = {}
    sources: dict[str, str] = {}
    for row in rows:
        if not row.images_per_second:
            continue
        source = ", ".join(filter(None, (row.machine, row.device, row.dtype)))
        if sources.setdefault(row.model, source) != source:
            raise PlanError(
                f"the rates of {row.model} were measured on {sources[row.model]} and on {source}: name runs of one"
            )
        images[row.model] = images.get(row.model, 0) + row.n
        seconds[row.model] = seconds.get(row.model, 0) + row.n / row.images_per_second
    return {model: Rate(images[model] / seconds[model], source) for model, source in sources.items()}


@dataclass(frozen=True)
class CellBytes:
    """Bytes of the file of a finished cell: what depends on the images, by image, and the rest."""

    per_image: float
    rest: float

    @classmethod
    def of(cls, result: CellResult, size: int) -> CellBytes:
        """From the file of ``size`` bytes that holds ``result``."""
        by_image = len(json.dumps([result.prediction.tolist(), result.block_sums]))
        return cls(by_image / max(1, result.row.n), size - by_image)

    def at(self, images: int) -> float:
        return self.rest + self.per_image * images


def measured_at(paths: Iterable[Path]) -> tuple[dict[str, Rate], dict[str, CellBytes]]:
    """Rates, and bytes of cells, of the models that runs or folders of committed results at ``paths`` are of; the
    latter keep no files of cells.

    Raises:
        BenchError: there is neither, or it cannot be read.
    """
    from mae_bench.baseline import read_rows
    from mae_bench.store import RunDirectory

    rows: list[ResultRow] = []
    sizes: dict[str, CellBytes] = {}
    for path in paths:
        files = RunDirectory(path).cell_files()
        for file in files:
            result = RunDirectory(path).read_cell_file(file)
            rows.append(result.row)
            if result.row.status != "not_applicable":
                sizes[result.row.model] = CellBytes.of(result, file.stat().st_size)
        if (path / "cells.csv").is_file():
            rows += read_rows(path / "cells.csv")
        elif not files:
            raise PlanError(f"{path}: neither a run with finished cells nor a folder of committed results; name one")
    return rates_of(rows), sizes


@dataclass(frozen=True)
class Shape:
    """What a vision transformer leaves behind of each image: tokens of ``width`` for ``patches``, ``blocks`` times.

    >>> Shape.parse("12x768x196")
    Shape(blocks=12, width=768, patches=196)
    """

    blocks: int
    width: int
    patches: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Raises:
        PlanError: ``text`` is not BLOCKSxWIDTHxPATCHES.
        """
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
            raise PlanError(f"{text!r} is no shape: write BLOCKSxWIDTHxPATCHES, for a ViT-B/16 at 224 px 12x768x196")
        return cls(*map(int, parts))

    def clean_bytes(self, images: int) -> int:
        """Bytes of clean features on the disk while the model is evaluated, at their most."""
        probe = min(images, PROBE_BLOCKS * BLOCK)
        layers = self.blocks + 2  # before the first block, and what the head reads
        tokens = 4 * layers * self.width * (2 * images + probe * self.patches)
        # the heads' outputs on the probe subset stay until thresholds are known; what is active is kept as bits
        heads = 4 * self.blocks * self.width * probe * (2 + self.patches)
        bits = self.blocks * (2 * images * -(-self.width // 8) + probe * -(-self.width * self.patches // 8))
        return tokens + heads + bits


# --------------------------------------------------------------------------- the grid


def planned_images(suite: SuiteEntry, limit: int | None) -> int:
    """Images of a run with ``--mae-limit``: whole blocks, at least the probe's, no more than were published.

    Raises:
        PlanError: how many images the suite has is known to its user alone.

    >>> from mae_bench.suites import SUITES
    >>> planned_images(SUITES["imagenet"], None), planned_images(SUITES["imagenet"], 1000)
    (50000, 1024)
    """
    limit = suite.default_limit if limit is None else limit
    if limit == 0:
        if not suite.images:
            raise PlanError(f"suite {suite.name!r} holds your own images: say how many with --limit N")
        return suite.images
    blocks = max(PROBE_BLOCKS, -(-limit // BLOCK)) * BLOCK
    return min(suite.images, blocks) if suite.images else blocks


@dataclass(frozen=True)
class Grid:
    """Every condition of a suite's matrix for each of ``models``, on ``images`` images, in ``shards`` that ``gpus``
    take one after another.

    Raises:
        PlanError: there is no model, one is there twice, no GPU, or no cell for a shard.
    """

    suite: SuiteEntry
    models: tuple[str, ...]
    images: int
    gpus: int
    full: bool = False
    shards: int = 0
    cells: tuple[Cell, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.models or not all(self.models) or len(set(self.models)) < len(self.models):
            raise PlanError(f"models {','.join(self.models)!r}: name each model once, separated by commas")
        if self.gpus < 1:
            raise PlanError(f"{self.gpus} GPUs evaluate nothing: give 1 or more")
        matrix = conditions(self.suite, self.full)
        cells = tuple(Cell(model, kind.name, level) for model in self.models for kind, level in matrix)
        object.__setattr__(self, "cells", cells)
        # one for each model, so that a GPU that is done takes the next; where there are fewer, one for each GPU
        chosen = self.shards or min(max(len(self.models), self.gpus), MOST_SHARDS, len(cells))
        if not 1 <= chosen <= len(cells):
            raise PlanError(f"{chosen} shards of {len(cells):,} cells: some would be empty, give at most one for each")
        object.__setattr__(self, "shards", chosen)

    @property
    def conditions(self) -> int:
        """Cells of each model, the clean one included."""
        return len(self.cells) // len(self.models)

    @property
    def decoded_bytes(self) -> int:
        """Of the decoded images that models of the suite's reference size share."""
        return self.images * self.suite.reference_size**2 * (1 if self.suite.grey else 3)

    @cached_property
    def passes(self) -> list[dict[str, int]]:
        """Of each shard, how often each of its models sees the images: once for each cell, and once clean where the
        clean cell is another shard's.
        """
        found = []
        for positions in sharded([path_of(cell) for cell in self.cells], self.shards):
            counts: dict[str, int] = {}
            with_clean = set()
            for cell in (self.cells[position] for position in positions):
                counts[cell.model] = counts.get(cell.model, 0) + 1
                if cell.degradation == "clean":
                    with_clean.add(cell.model)
            found.append({model: count + (model not in with_clean) for model, count in counts.items()})
        return found

    @property
    def forwards(self) -> int:
        """Images that go through a model, with the clean passes that shards of one model repeat."""
        return self.images * sum(sum(counts.values()) for counts in self.passes)

    def seconds(self, rates: Mapping[str, Rate]) -> list[float] | None:
        """How long each shard takes; None where a model has no rate."""
        if not rates.keys() >= set(self.models):
            return None
        return [
            sum(count * self.images / rates[model].images_per_second for model, count in counts.items())
            for counts in self.passes
        ]


def longest_first(durations: Sequence[float]) -> list[int]:
    """Numbers of ``durations`` in the order in which workers that are free take them, so that no long one is left for
    the end.

    >>> longest_first([1.0, 3.0, 1.0, 2.0])
    [1, 3, 0, 2]
    """
    return sorted(range(len(durations)), key=lambda number: -durations[number])


def makespan(durations: Sequence[float], workers: int) -> float:
    """When the last of ``workers`` is done, each of which takes the next duration as soon as it is free.

    >>> makespan([3.0, 1.0, 1.0, 1.0], 2)
    3.0
    """
    free = [0.0] * workers
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


# --------------------------------------------------------------------------- in words


def to_text(
    grid: Grid, rates: Mapping[str, Rate], shapes: Mapping[str, Shape], cell_bytes: Mapping[str, CellBytes]
) -> str:
    """The plan as a table of models, totals under it, and what is not known with how to learn it."""
    from tabulate import tabulate

    cells, images = grid.conditions, grid.images
    lines = []
    for model in grid.models:
        rate, shape, size = rates.get(model), shapes.get(model), cell_bytes.get(model)
        lines.append(
            (
                model,
                f"{cells:,}",
                f"{cells * images:,}",
                f"{rate.images_per_second:,.0f}" if rate else "none",
                f"{cells * images / rate.images_per_second / 3600:,.2f}" if rate else "-",
                _size(shape.clean_bytes(images)) if shape else "-",
                _size(cells * size.at(images)) if size else "-",
                rate.source if rate else "-",
            )
        )
    header = ["model", "cells", "forwards", "images/s", "GPU-hours", "clean features", "results", "measured on"]
    total = len(grid.cells) * images
    parts = [
        f"{grid.suite.name}: {images:,} images, {len(grid.models)} models, {len(grid.cells):,} cells"
        f"{' (full)' if grid.full else ''}, {grid.gpus} GPUs, {grid.shards} shards",
        tabulate(lines, headers=header, disable_numparse=True),
        f"forwards: {total:,}, and {grid.forwards - total:,} of clean passes that shards of one model repeat\n"
        f"decoded images: {_size(grid.decoded_bytes)} for each view of {grid.suite.reference_size} px",
    ]
    seconds = grid.seconds(rates)
    if seconds is not None:
        work = sum(cells * images / rates[model].images_per_second for model in grid.models)
        span = makespan([seconds[number] for number in longest_first(seconds)], grid.gpus)
        parts.append(
            f"GPU-hours: {sum(seconds) / 3600:,.2f}, of which repeated {(sum(seconds) - work) / 3600:,.2f}\n"
            f"makespan: {span / 3600:,.2f} h on {grid.gpus} GPUs, where all of them are busy to "
            f"the end {work / grid.gpus / 3600:,.2f} h"
        )
    return "\n\n".join([*parts, "\n".join(_notes(grid, rates, shapes, cell_bytes))])


def _notes(
    grid: Grid, rates: Mapping[str, Rate], shapes: Mapping[str, Shape], cell_bytes: Mapping[str, CellBytes]
) -> list[str]:
    """What the numbers leave out, and how to learn what is not known."""
    notes = [
        "Not counted: starting Python, loading weights, decoding. Cells that a model cannot have (token_drop on a CNN) "
        "are."
    ]
    unrated = [model for model in grid.models if model not in rates]
    if unrated:
        command = shlex.join(pytest_command(grid.suite.name, unrated, limit=1024, full=grid.full))
        notes.append(
            f"No rate of {', '.join(unrated)}, so no GPU-hours and no makespan. Measure it on one such GPU:\n"
            f"    {command} --mae-run results/runs/rates\n"
            "and add --rates results/runs/rates, or give it as --rate MODEL=IMAGES_PER_SECOND."
        )
    if any(model not in shapes for model in grid.models):
        notes.append(
            "Clean features of a model lie in its run directory while it is evaluated: --shape "
            "MODEL=BLOCKSxWIDTHxPATCHES says how large they are (12x768x196 for a ViT-B/16 at 224 px)."
        )
    if any(model not in cell_bytes for model in grid.models):
        notes.append("The size of results is read from the cells of a run: --rates RUN.")
    return notes


def _size(count: float) -> str:
    """Bytes with a prefix of ten.

    >>> _size(7_526_400_000)
    '7.53 GB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


# --------------------------------------------------------------------------- the batch script


def slurm_script(grid: Grid, command: Sequence[str], run: Path, rates: Mapping[str, Rate] | None = None) -> str:
    """A script that submits itself to Slurm: an array of shards, each a run of its own below ``run`` by ``command``,
    and behind it what joins them. A shard that is requeued goes on with what it has. With ``rates`` of all models the
    longest shards come first.
    """
    seconds = grid.seconds(rates or {})
    order = range(grid.shards) if seconds is None else longest_first(seconds)
    numbers = " ".join(str(shard + 1) for shard in order)
    name = shlex.quote(run.name)  # of each run, so that shards of several grids can be merged
    return f"""#!/bin/bash
#SBATCH --job-name=mae_bench
#SBATCH --requeue
#SBATCH --open-mode=append
# `bash THIS_FILE [options of sbatch]` submits {grid.shards} shards of {len(grid.cells):,} cells, {grid.gpus} at once,
# and a job that joins them when all have ended. All have to run on one kind of machine: a model's clean cell is
# measured by each shard that holds the model, and merge takes no two that differ.
set -euo pipefail
run={shlex.quote(str(run))}
shards=({numbers}) # {"as they come" if seconds is None else "the longest first"}

if [ -n "${{SLURM_ARRAY_TASK_ID:-}}" ]; then
    shard=${{shards[SLURM_ARRAY_TASK_ID - 1]}}
    exec {shlex.join(command)} \\
        --mae-baseline none --mae-shard "$shard/{grid.shards}" \\
        --mae-run "$run"/{name}-"$shard" --mae-resume
elif [ "${{1:-}}" = merge ]; then
    mae-bench merge "$run"/{name}-{{1..{grid.shards}}} --out "$run"/merged
    exec mae-bench verify "$run"/merged
else
    mkdir -p "$run"
    array=$(sbatch --parsable --array=1-{grid.shards}%{grid.gpus} --gres=gpu:1 --output="$run"/{name}-%a.log "$@" "$0")
    sbatch --dependency="afterany:${{array%%;*}}" --output="$run"/merge.log "$@" "$0" merge
fi
"""
