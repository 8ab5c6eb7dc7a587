"""Sinks: trackers of experiments to which a run is sent beside the files that it writes.

Each is a module with a function ``sink(place, folder)`` that gives a :class:`Sink`; ``place`` is what the user wrote
behind the colon of ``--mae-sink name:place``, or None, and ``folder`` holds the results of the project. Nothing heavy
is imported until :meth:`Sink.open`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mae_bench.cells import near_name
from mae_bench.entry_points import added, implementation
from mae_bench.errors import BenchError

if TYPE_CHECKING:
    from mae_bench.leaderboard import Leaderboard
    from mae_bench.rows import ResultRow

ENTRY_POINTS = "mae_bench.sinks"
"""Group of the entry points by which packages add sinks."""
SENT = ("top1", "nll", "ece", "flip_rate", "alignment_mean_patch", "retention")
"""Fields of a row that are sent, those that are not null."""


class SinkError(BenchError):
    """A sink that there is not, or that cannot be used here."""


class Sink(Protocol):
    """Takes what one run finishes, in this order; whatever it raises ends it, and is shown beside its name."""

    def open(self, run_id: str, config: Mapping[str, Any]) -> None:
        """Begin, before the first cell; ``config`` is the run's manifest."""

    def cell(self, row: ResultRow) -> None:
        """Take a finished cell, whose row is on disk."""

    def finish(self, leaderboard: Leaderboard, files: Sequence[Path]) -> str:
        """Take what was made of all cells, and end; where it can now be looked at, in words. Of a run whose cells could
        not be brought together the leaderboard is empty, and there are no files.
        """


@dataclass(frozen=True)
class SinkEntry:
    """A kind of sink, as a package adds it by an entry point of its name in :data:`ENTRY_POINTS`.

    ``module`` is the full path of the module that makes it, ``summary`` says what it is, ``place`` what may stand
    behind a colon, such as ``DIR``. ``needs`` is a module that it imports and that may not be installed. ``package`` is
    filled in when it is found.
    """

    name: str
    module: str
    summary: str
    place: str = ""
    needs: str = ""
    package: str = ""


SINKS = {
    entry.name: entry
    for entry in (
        SinkEntry("tensorboard", "mae_bench.sinks.tensorboard", "event files of TensorBoard", "DIR", "tensorboard"),
        SinkEntry("wandb", "mae_bench.sinks.wandb", "Weights & Biases, offline unless WANDB_MODE is set", "", "wandb"),
        SinkEntry("mlflow", "mae_bench.sinks.mlflow", "MLflow's tracking", "URI", "mlflow"),
    )
}


@cache
def every_sink() -> dict[str, SinkEntry]:
    """Every kind of sink by name, those that installed packages add last.

    Raises:
        EntryPointError: one of these cannot be used; it is named with its package and the remedy.
    """
    return SINKS | added(ENTRY_POINTS, SinkEntry, SINKS, _unfit)


def _unfit(entry: SinkEntry, *_: object) -> str | None:
    """Why a sink cannot be used; None where it can."""
    return None if entry.module else "it names no module with a function sink(place, folder)"


def sink(given: str, folder: Path) -> Sink:
    """The sink that ``given``, a name or ``name:place``, stands for; results of the project lie in ``folder``.

    Raises:
        SinkError: there is none, or what it needs is not installed.
        EntryPointError: it is a package's, and cannot be used.
    """
    name, colon, place = given.partition(":")
    entry = every_sink().get(name)
    if entry is None:
        raise SinkError(f"{given}: unknown sink {name!r}: {near_name(name, every_sink())}")
    if colon and not (entry.place and place):
        usage = f"{name}:{entry.place}, or {name}" if entry.place else name
        raise SinkError(f"{given}: write {usage}")
    if entry.needs and find_spec(entry.needs) is None:
        remedy = f"see package {entry.package}" if entry.package else f'pip install "mae-bench[{name}]"'
        raise SinkError(f"{given}: {entry.needs} is not installed: {remedy}")
    module = implementation(entry.package or "mae_bench", entry.module, "sink")
    return cast(Sink, module.sink(place or None, folder))


# --------------------------------------------------------------------------- what is sent of a cell


def series(row: ResultRow) -> str:
    """The name under which the cells of a model and degradation are sent, one step for each level; with the family,
    since there are blurs that are both a plain kernel and a corruption.
    """
    return f"{row.model}/{row.family}/{row.degradation}"


def step(row: ResultRow) -> int:
    """Which level of the degradation's whole ladder the row is of, from 1 on; 0 for clean images."""
    from mae_bench.degradations import degradation
    from mae_bench.degradations.ladders import ladder
    from mae_bench.store import cell_of
    from mae_bench.suites import suite_entry

    if row.family == "clean":
        return 0
    level = cell_of(row).level
    kind = degradation(row.degradation, level.severity)
    values = [rung.value for rung in ladder(kind, suite_entry(row.suite).reference_size)]
    return bisect_left(values, level.value) + 1


def measured(row: ResultRow) -> dict[str, float]:
    """The values of :data:`SENT` that the row has; rates are in [0, 1], ``nll`` is in nats."""
    return {name: float(value) for name in SENT if (value := getattr(row, name)) is not None}
