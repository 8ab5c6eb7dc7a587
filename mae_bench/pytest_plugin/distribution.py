"""pytest-xdist: one run for all workers, who is sent what, and what is left to do when one dies."""

from __future__ import annotations

import itertools
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pytest

from mae_bench.cells import Cell, Level
from mae_bench.errors import BenchError
from mae_bench.grouping import Path, path_of
from mae_bench.pytest_plugin.collection import pytest_report_collectionfinish
from mae_bench.pytest_plugin.harness import Harness
from mae_bench.pytest_plugin.workload import Workload

DEATHS = 2
"""Workers that a model may end before anything of it has finished; after that it is the model, not one of its cells."""
EARLY_DEATHS = 4
"""Workers that may die before they have collected anything."""


class Distribution:
    """Keeps cells of a model on one xdist worker, so that it is loaded once, until others would be idle
    (:class:`mae_bench.pytest_plugin.workload.Workload`), and gives workers one run.

    A cell in which its worker dies has failed, and the others go on in the worker that takes its place.
    """

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.session = f"clean-{secrets.token_hex(4)}"
        self._collected: set[object] = set()
        self._early_deaths = 0
        self._ids: Sequence[str] = ()
        self._models: list[str | None] = []
        self._workload = Workload(())
        self._left: Counter[str | None] = Counter()
        self._begun: set[str | None] = set()
        self._deaths: Counter[str | None] = Counter()
        self._unrun: list[str] = []
        self._places: dict[object, int] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        has_models = self.harness.registry.entries or self.harness.options["model"]
        if config.getvalue("dist") == "load" and has_models and config.option.maxworkerrestart is None:
            # four for each worker is xdist's default, after which cells of innocent models would be left out; every
            # death takes a cell with it, so that there is an end
            config.option.maxworkerrestart = str(sys.maxsize)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker which run and session it belongs to, and at which place, from 0 on, which stands for a GPU: one
        that replaces another has its place.
        """
        taken = set(self._places.values())
        self._places[node] = next(place for place in itertools.count() if place not in taken)
        node.workerinput["mae_run"] = str(self.harness.run_path)
        node.workerinput["mae_place"] = self._places[node]
        node.workerinput["mae_session"] = self.session

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
        self._places.pop(node, None)
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
        """A scheduler that hands out whole models, and shares them once none is left that nobody has begun. xdist's own
        ``--dist`` choices other than the default stay.
        """
        if config.getvalue("dist") != "load" or not self._known:
            return None
        from xdist.scheduler.load import LoadScheduling

        distribution = self

        class ModelScheduling(LoadScheduling):  # type: ignore[misc]
            collection: list[str] | None

            def schedule(self) -> None:
                if self.collection is None and self._check_nodes_have_same_collection():
                    self.collection = next(iter(self.node2collection.values()))
                    self.pending = distribution.divide(self.collection or ())
                    for node in self.nodes:  # to each its own before anyone has two
                        self.check_schedule(node, least=1)
                for node in self.nodes:
                    self.check_schedule(node)

            def check_schedule(self, node: Any, duration: float = 0, least: int = 2) -> None:  # noqa: ARG002
                # one that took the place of another is known before it has collected what it is to be sent
                if node.shutting_down or self.collection is None or node not in self.node2collection:
                    return
                # a worker begins an item only when it knows the next or that there is none; what it was not sent,
                # others can be
                pending = self.node2pending[node]
                while len(pending) < least:
                    positions = self.pending.take(node)
                    if not positions:
                        node.shutdown()
                        break
                    pending += positions
                    node.send_runtest_some(positions)

            def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
                super().mark_test_complete(node, item_index, duration)
                distribution.complete(item_index)

            def remove_node(self, node: Any) -> str | None:
                """The item in which ``node`` died. It is not run again; what else the node had left, others run."""
                pending = self.node2pending.pop(node)
                if self.collection is None:
                    return None
                self.pending.give_back(node, pending[1:])
                if pending:
                    distribution.bury(pending[0])
                for other in self.nodes:
                    self.check_schedule(other)
                return self.collection[pending[0]] if pending else None

        return ModelScheduling(config, log)

    def divide(self, ids: Sequence[str]) -> Workload:
        """What is to be sent to workers, who collected items of these ``ids``."""
        self._ids, paths = ids, [self.path(nodeid) for nodeid in ids]
        self._models = [path[0] if path else None for path in paths]
        self._left = Counter(self._models)
        self._workload = Workload(paths)
        return self._workload

    def complete(self, position: int) -> None:
        """Note that an item has been run."""
        self._begun.add(self._models[position])
        self._count_down(position)

    def bury(self, position: int) -> None:
        """Note that a worker died in an item, and give up what is left of its model where each item would end another
        worker: where building it or its clean pass does.
        """
        model = self._models[position]
        self._count_down(position)
        self._deaths[model] += 1
        if model is None or self._deaths[model] < DEATHS or model in self._begun:
            return
        from mae_bench.store import RunDirectory

        if not RunDirectory(self.harness.run_path).cell_path(Cell(model, "clean", Level(0.0))).exists():
            unrun = self._workload.give_up(model)
            self._unrun = [self._ids[position] for position in unrun]
            for position in unrun:
                self._count_down(position)

    def _count_down(self, position: int) -> None:
        """One item less of a model; after its last what workers have shared of it is removed."""
        model = self._models[position]
        self._left[model] -= 1
        if model is not None and not self._left[model]:
            from mae_bench.store import RunDirectory

            shutil.rmtree(RunDirectory(self.harness.run_path).clean_pass(self.session, model), ignore_errors=True)

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
        try:
            own = Cell.parse(name).model if self._known else None
        except ValueError:
            own = None
        if own in self.harness.registry.entries:
            return own
        for model in self._known:  # its cell may be crossed with another parameter
            if f"-{model}-" in f"-{name}-":
                return model
        return own  # of a conftest file that only workers read

    def path(self, nodeid: str) -> Path | None:
        """What the item is about; None where it evaluates no model."""
        model = self._model(nodeid)
        if model is None:
            return None
        name = f"-{nodeid.partition('[')[2].removesuffix(']')}-"
        condition = name.partition(f"-{model}-")[2].split("-")
        try:
            return path_of(Cell(model, condition[0], Level.parse(condition[1])))
        except (LookupError, ValueError):  # it is about the whole model
            return (model,)
