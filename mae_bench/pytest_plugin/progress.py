"""A line below what pytest prints while a run lasts: how far it is, how fast, for how long, and which model leads."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from typing import Any

import pytest

from mae_bench.cells import Cell
from mae_bench.grouping import Path, path_of
from mae_bench.markup import terminal_text
from mae_bench.pytest_plugin.collection import matrix_path, model_of
from mae_bench.pytest_plugin.gate import said
from mae_bench.pytest_plugin.leader import Leader, leader
from mae_bench.pytest_plugin.pace import Pace, Task

ERASE = "\x1b[J"
"""Clears what is behind and below the cursor."""
BELOW, BACK = "\x1bD\x1b[A\x1b7\r\n", "\x1b8"
"""Go to the line below, for which the screen scrolls where it ends, and come back to where the cursor was: index,
cursor up, save cursor and restore cursor of a VT100.
"""
SEPARATOR = "  |  "


def is_wanted(config: pytest.Config) -> bool:
    """Whether somebody looks at the session on a terminal that nobody else draws on, and has not asked for quiet."""
    from mae_bench.history import in_continuous_integration

    terminal = config.pluginmanager.getplugin("terminalreporter")
    option = vars(config.option)  # without those of plugins that are blocked (-p no:logging)
    return (
        type(terminal) is pytest.TerminalReporter  # others, such as pytest-sugar's, have lines of their own
        and bool(terminal.isatty())
        and os.environ.get("TERM", "dumb") != "dumb"
        and not in_continuous_integration()
        and option["verbose"] >= 0
        and option.get("capture", "no") != "no"  # else tests print
        and not (option.get("usepdb") or option.get("trace"))  # else a debugger does
        and not ("log_cli_level" in option and (config.getini("log_cli") or option["log_cli_level"]))
    )


def duration_text(seconds: float) -> str:
    """``seconds`` as one reads them, rounded up to what matters.

    >>> [duration_text(seconds) for seconds in (0, 58.2, 61, 3600, 7900, 200_000)]
    ['0 s', '59 s', '2 min', '1 h 00 min', '2 h 12 min', '2 d 8 h']
    """
    if seconds <= 59:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = math.ceil(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def progress_line(
    done: int, total: int, images_per_second: float | None, seconds_left: float | None, first: Leader | None
) -> str:
    """What is known of a run, in one line; ``-`` stands for what is not known yet.

    >>> progress_line(12, 300, 843.7, 251, Leader("mae_ft_s0", 0.543, compared=2))
    '12 of 300 cells  |  844 images/s  |  ETA 5 min  |  mae_ft_s0 leads so far, 54.3 %'
    >>> progress_line(2, 300, None, None, Leader("mae_ft_s0", 0.8, compared=0))
    '2 of 300 cells  |  - images/s  |  ETA -  |  mae_ft_s0 so far 80.0 %'
    """
    rate = "-" if images_per_second is None else f"{images_per_second:,.{0 if images_per_second >= 10 else 1}f}"
    left = "-" if seconds_left is None else duration_text(seconds_left)
    parts = [f"{done:,} of {total:,} cells", f"{rate} images/s", f"ETA {left}"]
    if first is not None:
        how = "leads so far," if first.compared else "so far"
        parts.append(f"{terminal_text(first.model)} {how} {100 * first.score:.1f} %")
    return SEPARATOR.join(parts)


def shortened(text: str, columns: int) -> str:
    """``text`` cut to so many columns of a terminal.

    >>> shortened("12 of 300 cells", 9), shortened("12 of 300 cells", 80)
    ('12 of 300', '12 of 300 cells')
    """
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= columns else set_cell_size(text, max(0, columns))


class Progress:
    """Draws the line on the terminal, and takes it away before anything else is printed.

    It knows what reports say, so that it is the same wherever items run; of workers, the process that began them draws.
    """

    def __init__(self, config: pytest.Config, clock: Callable[[], float] = time.monotonic) -> None:
        self.terminal: Any = config.pluginmanager.getplugin("terminalreporter")
        self.distribution: Any = config.pluginmanager.getplugin("mae_bench_distribution")
        self.clock = clock
        self._pace = Pace(())
        self._began: float | None = None
        self._setups: dict[str, float] = {}
        self._left: dict[str, Task] = {}
        self._found: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
        self._drawn = self._ended = False

    # ----------------------------------------------------------------------- what there is to do

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._plan((item.nodeid, matrix_path(item)) for item in session.items if model_of(item))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Iterable[str]) -> None:
        if not self._pace.total:  # every worker has the same
            paths = ((nodeid, self.distribution.path(nodeid)) for nodeid in ids)
            self._plan((nodeid, path) for nodeid, path in paths if path is not None)

    def _plan(self, paths: Iterable[tuple[str, Path]]) -> None:
        self._left = {nodeid: (nodeid.partition("[")[0], path[0], *path[2:3]) for nodeid, path in paths}
        self._pace = Pace(self._left.values())

    # ----------------------------------------------------------------------- what is printed meanwhile

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logstart(self) -> Generator[None, None, None]:
        if self._began is None:
            self._began = self.clock()
        self.erase()
        yield
        self._draw()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None, None, None]:
        self.erase()
        yield
        self._note(report)
        if report.when in ("setup", "call", "teardown"):  # behind the death of a worker, more is printed
            self._draw()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logfinish(self) -> Generator[None, None, None]:
        self.erase()
        yield
        self._draw()

    @pytest.hookimpl(wrapper=True, tryfirst=True, optionalhook=True)
    def pytest_testnodedown(self) -> Generator[None, None, None]:
        self.erase()
        yield

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            self.erase()
            self._ended = True

    # ----------------------------------------------------------------------- what is drawn

    def erase(self) -> None:
        """Take the line away, so that something can be printed where it was."""
        if self._drawn:
            self.terminal.write_raw(ERASE, flush=True)
            self._drawn = False

    def _draw(self) -> None:
        if self._ended or not self._pace.total:
            return
        self.erase()
        columns = shutil.get_terminal_size().columns
        self.terminal.write_raw(f"{BELOW}{shortened(self.line, columns - 1)}{BACK}", flush=True)
        self._drawn = True

    @property
    def line(self) -> str:
        """What is known now."""
        pace, elapsed = self._pace, 0.0 if self._began is None else self.clock() - self._began
        finished = self._found.keys() - {model for _, model, *_ in self._left.values()}
        first = leader(self._found, finished)
        return progress_line(pace.done, pace.total, pace.images_per_second(elapsed), pace.seconds_left(elapsed), first)

    def _note(self, report: pytest.TestReport) -> None:
        """Learn from the report of an item, which is done when its call is, or when there is none."""
        if report.nodeid not in self._left:
            return
        if report.when == "setup" and report.passed:
            self._setups[report.nodeid] = report.duration
            return
        told = said(report, "mae_cell") or said(report, "mae_representation")
        seconds = self._setups.pop(report.nodeid, 0.0) + report.duration
        self._pace.finish(
            self._left.pop(report.nodeid),
            seconds,
            told.get("images", 0),
            getattr(report, "worker_id", ""),
            told.get("reused", False) or not report.duration,  # it was never run
        )
        if told.get("top1") is not None:
            from mae_bench.leaderboard import UNRANKED

            cell = Cell.parse(told["cell"])
            family = path_of(cell)[1]
            if family not in UNRANKED:
                self._found[cell.model][family, cell.condition] = told["top1"]
