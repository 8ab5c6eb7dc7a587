"""``--mae-sink``: what a session has finished is sent to trackers of experiments, beside the files that it wrote."""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mae_bench.cells import Cell
from mae_bench.markup import terminal_text
from mae_bench.pytest_plugin.gate import Gate, said
from mae_bench.pytest_plugin.harness import Harness

if TYPE_CHECKING:
    from mae_bench.leaderboard import Leaderboard
    from mae_bench.rows import ResultRow
    from mae_bench.sinks import Sink


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep what trackers print out of pytest's lines, and their warnings from being errors of the project."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _words(error: BaseException) -> str:
    return terminal_text("".join(traceback.format_exception_only(error)).strip())


class Sending:
    """Sends each cell once its row is on disk, and the rest once the run's own files are; a sink that fails is left out
    from then on, and said to have failed, and nothing else of the session depends on it.
    """

    def __init__(self, harness: Harness, gate: Gate) -> None:
        self.harness = harness
        self.gate = gate
        self._sinks: dict[str, Sink] = dict(harness.sinks)
        self._opened: set[str] = set()
        self._sent: set[str] = set()
        self._said: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" or not (told := said(report, "mae_cell")):
            return
        from mae_bench.store import RunDirectory, StoreError

        try:
            result = RunDirectory(self.harness.run_path).read_cell(Cell.parse(told["cell"]))
        except StoreError:  # which the end of the run is about
            return
        if result is not None:  # it may be on another machine until the end
            self._cell(result.row)

    def pytest_sessionfinish(self) -> None:
        """Behind the gate, which writes the run's files first."""
        if self.gate.settled is not None:
            run, _, results, board, _ = self.gate.settled
            for result in results:
                self._cell(result.row)
            written = [path for name in ("report.html", "leaderboard.md") if (path := run.path / name).exists()]
            self._finish(board, written)
        elif self._opened & self._sinks.keys():
            from mae_bench.leaderboard import Leaderboard as Board

            self._said.append("WARNING: the run's cells could not be brought together: sinks have no leaderboard of it")
            self._finish(Board(self.harness.suite.name, (), 0, 0, (), ()), [])

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._said:
            terminalreporter.section("mae_bench: sinks")
            terminalreporter.write_line("\n".join(self._said))

    def _cell(self, row: ResultRow) -> None:
        from mae_bench.store import RunDirectory, cell_of

        cell = cell_of(row).id
        if cell in self._sent or row.status == "not_applicable":
            return
        self._sent.add(cell)

        def send(name: str, sink: Sink) -> None:
            if name not in self._opened:
                self._opened.add(name)
                sink.open(self.harness.run_path.name, RunDirectory(self.harness.run_path).manifest() or {})
            sink.cell(row)

        self._each(send)

    def _finish(self, board: Leaderboard, files: list[Path]) -> None:
        """End what was opened, with the ``board`` as a further file, unless it is empty."""
        with ExitStack() as until_sent:
            if board.rows:
                try:
                    folder = until_sent.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
                    table = Path(folder) / "leaderboard.csv"
                    table.write_text(board.to_csv())
                    files = [*files, table]
                except OSError as error:
                    self._said.append(f"WARNING: leaderboard.csv cannot be written, and is not sent. {_words(error)}")

            def finish(name: str, sink: Sink) -> None:
                where: object = sink.finish(board, files)
                self._said.append(f"{terminal_text(name)}: {terminal_text(str(where)) if where else 'sent'}")

            self._each(finish)

    def _each(self, send: Callable[[str, Sink], None]) -> None:
        """Have every sink that has not failed do something."""
        for name, sink in list(self._sinks.items()):
            try:
                with _unheard():
                    send(name, sink)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a tracker's sys.exit would end the session before its verdicts
                del self._sinks[name]
                self._said.append(
                    f"WARNING: {terminal_text(name)} failed and has not been sent everything; results and verdicts do "
                    f"not depend on it. {_words(error)}"
                )
