"""The pytest plugin: options, model fixtures, the matrix of cells, the gate, and what is printed at the end.

Nothing heavy is imported until a cell runs, so that collection stays light.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Generator
from typing import Any

import pytest

from mae_bench.cells import FAMILIES, GROUPS
from mae_bench.degradations import families
from mae_bench.errors import BenchError
from mae_bench.pytest_plugin.cluster import Driver
from mae_bench.pytest_plugin.collection import (
    Order,
    model_of,
    pytest_collection_finish,
    pytest_generate_tests,
    pytest_itemcollected,
    pytest_report_collectionfinish,
)
from mae_bench.pytest_plugin.distribution import Distribution
from mae_bench.pytest_plugin.gate import Gate, said
from mae_bench.pytest_plugin.harness import HARNESS, Harness, fail
from mae_bench.pytest_plugin.items import (
    cell,
    claim,
    evaluation,
    mae_bench_cell,
    mae_bench_claim,
    mae_bench_model,
    mae_bench_represented,
    mae_probe,
    mae_weights,
    representation,
)
from mae_bench.pytest_plugin.options import pytest_addoption
from mae_bench.pytest_plugin.progress import Progress, is_wanted
from mae_bench.pytest_plugin.registration import Discovery, model_fixture

__all__ = [
    "cell",
    "claim",
    "evaluation",
    "mae_bench_cell",
    "mae_bench_claim",
    "mae_bench_model",
    "mae_bench_represented",
    "mae_probe",
    "mae_weights",
    "model_fixture",
    "pytest_addoption",
    "pytest_collection_finish",
    "pytest_generate_tests",
    "pytest_itemcollected",
    "pytest_report_collectionfinish",
    "representation",
]
"""Fixtures and hooks that pytest is to find here, and what users import."""

_MARKS = {
    **{group: f"ImageNet-C cells of the {group} group, the extra ones too" for group in GROUPS},
    "representation": "items about what happens inside a model",
    "claims": "claims of the literature, decided from committed results",
}


def pytest_configure(config: pytest.Config) -> None:
    try:
        known = families()
    except BenchError:  # said where a model or a cell needs them: sessions of other projects are none the worse for it
        known = FAMILIES
    of_families = {family: f"cells of the {family} family" for family in known}
    for mark, text in (of_families | _MARKS).items():
        config.addinivalue_line("markers", f"{mark}: {text}")
    harness = Harness.of(config)
    config.stash[HARNESS] = harness
    if harness.options["cell-timeout"]:
        config.add_cleanup(functools.partial(os.close, harness.said_on))  # opened before output is captured
    config.pluginmanager.register(Discovery(harness), "mae_bench_discovery")
    if not hasattr(config, "workerinput"):
        gate = Gate(harness)
        config.pluginmanager.register(gate, "mae_bench_gate")
        if harness.sinks:
            from mae_bench.pytest_plugin.sending import Sending

            config.pluginmanager.register(Sending(harness, gate), "mae_bench_sending")
        if harness.options["executor"] == "ray":
            config.pluginmanager.register(Driver(harness), "mae_bench_driver")
        if harness.mirror is not None:
            from mae_bench.pytest_plugin.mirroring import Mirroring

            config.pluginmanager.register(Mirroring(harness, harness.mirror), "mae_bench_mirroring")
    if config.pluginmanager.has_plugin("xdist"):
        config.pluginmanager.register(Distribution(harness), "mae_bench_distribution")


def pytest_sessionstart(session: pytest.Session) -> None:
    # the last of several such wrappers has the last word; pytest's own, for --ff, is registered at configuration
    config = session.config
    harness = config.stash[HARNESS]
    config.pluginmanager.register(Order(harness.options["executor"] == "ray"), "mae_bench_order")
    if harness.options["progress"] == "auto" and is_wanted(config):  # of a reporter that is the last one too
        config.pluginmanager.register(Progress(config), "mae_bench_progress")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """After its last cell a model is cleaned up and freed; what goes wrong there is an error of that cell."""
    raised: BaseException | None = None
    try:
        return (yield)
    except BaseException as error:
        raised = error
        raise
    finally:
        try:
            item.config.stash[HARNESS].release_unless(model_of(nextitem) if nextitem is not None else None)
        except BenchError as error:
            fail(error, raised)


def pytest_report_teststatus(report: pytest.TestReport | pytest.CollectReport) -> Any:
    """In verbose output, a cell that passes says its top-1, and where there are several the method by which its images
    were degraded. One that fails says it in its table, and keeps the line by which other tools know it.
    """
    if isinstance(report, pytest.TestReport) and report.when == "call" and report.passed:
        told = said(report, "mae_cell")
        top1, method = told.get("top1"), told.get("method")
        if top1 is not None and not hasattr(report, "wasxfail"):
            return report.outcome, ".", f"PASSED top-1 {100 * top1:.1f} %" + (f", {method}" if method else "")
    return None
