"""pytest-xdist: one run for all workers, every cell of a model on one of them, and what is left to do when one dies."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

import pytest

from mae_bench.cells import Cell, Level
from mae_bench.errors import BenchError
from mae_bench.pytest_plugin.collection import pytest_report_collectionfinish
from mae_bench.pytest_plugin.harness import Harness

DEATHS = 2
"""Workers that a model may end before anything of it has finished; after that it is the model, not one of its cells."""
EARLY_DEATHS = 4
"""Workers that may die before they have collected anything."""


class Distribution:
    """Keeps all cells of a model on one xdist worker, so that it is loaded once, and gives workers one run.

    A cell in which its worker dies has failed, and the others go on in the worker that takes its place.
    """

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self._collected: set[object] = set()
        self._early_deaths = 0
        self._died_in: set[str] = set()
        self._unrun: list[str] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        has_models = self.harness.registry.entries or self.harness.options["model"]
        if config.getvalue("dist") == "load" and has_models and config.option.maxworkerrestart is None:
            # four for each worker is xdist's default, after which cells of innocent models would be left out; every
            # death takes a cell with it, so that there is an end
            config.option.maxworkerrestart = str(sys.maxsize)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker which run it belongs to."""
        node.workerinput["mae_run"] = str(self.harness.run_path)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """Look, before the first test is sent out, at whatever would spoil the run."""
        self._collected.add(node)
        if not self.harness.began and any(self._model(nodeid) for nodeid in ids):
            self.harness.check_before_run()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Tell the controller which families have no cells, since a worker alone has seen who asks for them."""
        output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["mae_lacking"] = sorted(self.harness.lacking)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        if config.pluginmanager.has_plugin("dsession"):
            for line in pytest_report_collectionfinish(config):
                terminalreporter.write_line(line)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Learn what a worker tells, and do not replace for ever those that die as soon as they begin."""
        self.harness.lacking.update(getattr(node, "workeroutput", {}).get("mae_lacking", ()))
        if error and node not in self._collected:
            self._early_deaths += 1
            if self._early_deaths > EARLY_DEATHS:
                pytest.exit(f"{self._early_deaths} workers died before they had collected any test", returncode=1)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: Any) -> None:
        """Say what the death of a worker means, and which items will not be tried after it."""
        model = self._model(crashitem)
        if model is None:
            return
        report.longrepr += (
            ": its process was killed, perhaps for memory, or native code crashed; what is finished is kept, and "
            "--mae-resume runs the rest"
        )
        for nodeid in self._unrun:
            why = f"not run: {model} ended {DEATHS} workers before anything of it had finished; --mae-resume tries it"
            place = (nodeid.partition("::")[0], None, nodeid)
            failed = pytest.TestReport(nodeid, place, {}, "failed", why, "call")
            self.harness.config.hook.pytest_runtest_logreport(report=failed)
        self._unrun = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """A scheduler whose unit of work is a model. xdist's own ``--dist`` choices other than the default stay."""
        if config.getvalue("dist") != "load" or not self._known:
            return None
        from xdist.scheduler.loadscope import LoadScopeScheduling

        model, give_up = self._model, self._give_up

        class ModelScheduling(LoadScopeScheduling):  # type: ignore[misc]
            def _split_scope(self, nodeid: str) -> str:
                return model(nodeid) or nodeid

            def _reschedule(self, node: Any) -> None:
                # one that took the place of another is known before it has collected what it is to be sent, and a
                # worker begins an item only when it knows the next or that there is none
                while node in self.registered_collections and not node.shutting_down:
                    pending = self._pending_of(self.assigned_work[node])
                    super()._reschedule(node)
                    if pending > 1 or self._pending_of(self.assigned_work[node]) > 1:
                        break

            def remove_node(self, node: Any) -> str | None:
                """The item in which ``node`` died. It is not run again; what else the node had left, others run."""
                work = self.assigned_work.pop(node)
                left = {scope: items for scope, items in work.items() if not all(items.values())}
                if not left:
                    return None
                items = next(iter(left.values()))
                died_in: str = next(nodeid for nodeid, done in items.items() if not done)
                items[died_in] = True
                give_up(died_in, items)
                self.workqueue.update(left)
                for other in self.nodes:
                    self._reschedule(other)
                return died_in

        return ModelScheduling(config, log)

    def _give_up(self, died_in: str, items: dict[str, bool]) -> None:
        """Mark the ``items`` of a model as done where each of them would end another worker, as ``died_in`` did: where
        building it or its clean pass does.
        """
        self._died_in.add(died_in)
        model = self._model(died_in)
        done = {nodeid for nodeid, is_done in items.items() if is_done}
        if model is None or len(done) < DEATHS or done - self._died_in:
            return
        from mae_bench.store import RunDirectory

        if not RunDirectory(self.harness.run_path).cell_path(Cell(model, "clean", Level(0.0))).exists():
            self._unrun = [nodeid for nodeid in items if nodeid not in done]
            items.update(dict.fromkeys(self._unrun, True))

    @cached_property
    def _known(self) -> list[str]:
        """Names of models, such that none stands behind one that it contains."""
        try:
            return sorted({*self.harness.registry.entries, *self.harness.timm_models}, key=len, reverse=True)
        except BenchError as error:
            raise pytest.UsageError(str(error)) from error

    def _model(self, nodeid: str) -> str | None:
        """Name of the model that the item evaluates, of which the controller knows the id alone."""
        name = nodeid.partition("[")[2].removesuffix("]")
        for model in self._known:  # its cell may be crossed with another parameter
            if f"-{model}-" in f"-{name}-":
                return model
        try:
            return Cell.parse(name).model if self._known else None  # of a conftest file that only workers read
        except ValueError:
            return None
