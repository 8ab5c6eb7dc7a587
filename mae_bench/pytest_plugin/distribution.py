"""pytest-xdist: one run for all workers, and every cell of a model on one of them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pytest

from mae_bench.cells import Cell
from mae_bench.errors import BenchError
from mae_bench.pytest_plugin.harness import Harness


class Distribution:
    """Keeps all cells of a model on one xdist worker, so that it is loaded once, and gives workers one run."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker which run it belongs to."""
        node.workerinput["mae_run"] = str(self.harness.run_path)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Look, before the first test is sent out, at whatever would spoil the run."""
        if not self.harness.began and any(self._model(nodeid) for nodeid in ids):
            self.harness.check_before_run()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """A scheduler whose unit of work is a model. xdist's own ``--dist`` choices other than the default stay."""
        if config.getvalue("dist") != "load" or not self._known:
            return None
        from xdist.scheduler.loadscope import LoadScopeScheduling

        model = self._model

        class ModelScheduling(LoadScopeScheduling):  # type: ignore[misc]
            def _split_scope(self, nodeid: str) -> str:
                return model(nodeid) or nodeid

        return ModelScheduling(config, log)

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
