"""The matrix: which items a test becomes, and their order."""

from __future__ import annotations

import difflib
from collections.abc import Generator, Iterable
from typing import Any

import pytest

from mae_bench.cells import GROUPS, Cell, near_name
from mae_bench.degradations import BUILT_IN, Degradation, every, families
from mae_bench.degradations.ladders import RARE, levels
from mae_bench.errors import BenchError
from mae_bench.grouping import Path, ShardNumber, path_of, sharded
from mae_bench.indicators import added_indicators
from mae_bench.pytest_plugin.harness import HARNESS, Harness
from mae_bench.pytest_plugin.items import NO_EVIDENCE, PARAMETERS
from mae_bench.suites import every_suite

NO_CELLS = "no_cells"
"""Id of the one item, deselected, of a test whose families have no cells in this run."""
REPRESENTED_FAMILIES = ("clean", "blur", "occlusion", "token_drop")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = [name for name in PARAMETERS if name in metafunc.fixturenames]
    if not wanted:
        return
    harness = metafunc.config.stash[HARNESS]
    try:
        if "mae_bench_claim" in wanted:
            from mae_bench.contrasts import CONTRASTS

            ids = list(CONTRASTS) if harness.evidence_path is not None else [NO_EVIDENCE]
            metafunc.parametrize("mae_bench_claim", ids, indirect=True, ids=ids)
        models = harness.models(metafunc.definition.path) if wanted != ["mae_bench_claim"] else []
        if "mae_bench_model" in wanted:
            ids = [entry.name for entry in models]
            metafunc.parametrize("mae_bench_model", ids, indirect=True, ids=ids)
        if "mae_bench_cell" in wanted:
            # what packages add and cannot be used is said before anything is measured
            added_indicators()
            every_suite()
            harness.suite.check(harness.options["data"])
            kinds = _kinds(metafunc.definition)
            full = harness.options["full"]
            ladder = [
                (kind, level, marks)  # which take longer to make than all else of a cell
                for kind in kinds
                for marks in [[getattr(pytest.mark, name) for name in kind.marks]]
                for level in levels(kind, harness.suite, full)
            ]
            cells: list[Any] = [
                pytest.param(Cell(entry.name, kind.name, level).id, marks=marks)
                for entry in models
                for kind, level, marks in ladder
            ]
            if not ladder:
                harness.lacking.update(kind.family for kind in kinds)
                cells = [NO_CELLS]
            ids = [cell if isinstance(cell, str) else str(cell.values[0]) for cell in cells]
            metafunc.parametrize("mae_bench_cell", cells, indirect=True, ids=ids)
        if "mae_bench_represented" in wanted:
            harness.suite.check(harness.options["data"])
            entries = harness.models(metafunc.definition.path, encoders=True)
            ids = [cell.id for entry in entries for cell in _represented(entry.name, harness)]
            metafunc.parametrize("mae_bench_represented", ids, indirect=True, ids=ids)
    except BenchError as error:
        raise pytest.Collector.CollectError(str(error)) from error


def _represented(model: str, harness: Harness) -> Iterable[Cell]:
    """Cells whose representation is collected: clean, and of each degradation all levels but the lowest."""
    full = harness.options["full"]
    for kind in BUILT_IN:
        if kind.family in REPRESENTED_FAMILIES:
            ladder = levels(kind, harness.suite, full)
            for level in ladder if full or kind.family == "clean" else ladder[1:]:
                yield Cell(model, kind.name, level)


def _kinds(definition: pytest.Item) -> list[Degradation]:
    """Degradations of the families that a test's marks name, or where they name none of the groups."""
    marks = [mark.name for mark in definition.iter_markers()]
    known = families()
    asked = [family for family in known if family in marks]
    groups = [group for group in GROUPS if group in marks]
    if not asked and not groups:
        near = [mark for mark in marks if difflib.get_close_matches(mark, (*known, *GROUPS))]
        hint = near_name(near[0], (*known, *GROUPS)) if near else f"families are {', '.join(known)}"
        raise BenchError(f"{definition.name} asks for `cell` but carries no family mark: {hint}")
    return [kind for kind in every() if kind.family in asked or (not asked and kind.group in groups)]


def pytest_itemcollected(item: pytest.Item) -> None:
    """A cell has the marks of its own family and group, whatever other families its test asks for: ``-k`` and ``-m``
    select by them.
    """
    if params_of(item).get("mae_bench_cell", NO_CELLS) != NO_CELLS:
        own = {mark.name for mark in item.callspec.marks}  # type: ignore[attr-defined]
        others = {*families(), *GROUPS} - own
        item.own_markers[:] = [mark for mark in item.own_markers if mark.name not in others]


def _deselect_others(items: list[pytest.Item], given: str) -> None:
    """Leave those of the shard ``given``; what evaluates no model is in the first one."""
    try:
        shard = ShardNumber.parse(given)
    except BenchError as error:
        raise pytest.UsageError(f"--mae-shard: {error}") from error
    evaluated = [item for item in items if model_of(item)]
    own = {evaluated[i] for i in sharded([matrix_path(item) for item in evaluated], shard.count)[shard.number - 1]}
    if shard.number == 1:
        own.update(item for item in items if not model_of(item))
    others = [item for item in items if item not in own]
    items[:] = [item for item in items if item in own]
    if others:
        others[0].config.hook.pytest_deselected(items=others)


class Order:
    """Brings the items of a model together, where its first stands, after everyone else has ordered them, and claims
    behind the cells that they are about. Of a session whose cells run on a cluster, what runs here comes last.
    """

    def __init__(self, cells_first: bool) -> None:
        self.cells_first = cells_first

    def _place(self, item: pytest.Item) -> tuple[bool, bool]:
        elsewhere = self.cells_first and model_of(item) is None
        return elsewhere, "mae_bench_claim" in getattr(item, "fixturenames", ())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, None, None]:
        yield
        without = [item for item in items if params_of(item).get("mae_bench_cell") == NO_CELLS]
        if without:
            items[:] = [item for item in items if item not in without]
            without[0].config.hook.pytest_deselected(items=without)
        if items and (given := items[0].config.stash[HARNESS].options["shard"]) is not None:
            _deselect_others(items, given)
        groups: dict[object, list[pytest.Item]] = {}
        for item in items:
            groups.setdefault(model_of(item) or item, []).append(item)
        together = [item for group in groups.values() for item in group]
        items[:] = sorted(together, key=self._place)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Which families were asked for and have no cells, and what would give them some."""
    harness = config.stash[HARNESS]
    rare = sorted(harness.lacking & set(RARE)) if not harness.suite.stored else []
    never = sorted(harness.lacking - set(rare))
    lines = [f"mae_bench: cells of {', '.join(rare)} are collected with --mae-full"] if rare else []
    if never:
        lines.append(f"mae_bench: suite {harness.suite.name} has no cells of {', '.join(never)}")
    return lines


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    harness = config.stash[HARNESS]
    for item in session.items:
        params = params_of(item)
        if "mae_bench_cell" in params:
            harness.collected.add(params["mae_bench_cell"])
        if "mae_bench_represented" in params:
            cell = Cell.parse(params["mae_bench_represented"])
            harness.represented.setdefault(cell.model, set()).add(cell.condition)
    is_worker = hasattr(config, "workerinput")
    if config.option.collectonly or is_worker or session.testsfailed:
        return
    if any(model_of(item) for item in session.items):
        harness.check_before_run()


def params_of(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def model_of(item: pytest.Item) -> str | None:
    """Name of the model that ``item`` evaluates."""
    cell = _cell_of(item)
    return params_of(item).get("mae_bench_model") if cell is None else cell.model


def _cell_of(item: pytest.Item) -> Cell | None:
    """The cell that ``item`` evaluates, or of which it measures the representation."""
    params = params_of(item)
    cell_id = params.get("mae_bench_cell", params.get("mae_bench_represented"))
    return None if cell_id is None else Cell.parse(cell_id)


def matrix_path(item: pytest.Item) -> Path:
    """Where what ``item``, which evaluates a model, is about stands in the matrix."""
    cell = _cell_of(item)
    return (params_of(item)["mae_bench_model"],) if cell is None else path_of(cell)
