"""Imports inside the package point down the list of floors, so that the folder list reads as the pipeline."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mae_bench

PACKAGE = Path(mae_bench.__file__).parent

# Modules and packages by floor; a package stands for all that is in it.
FLOORS = {
    0: (
        "mae_bench", "archives", "atomic", "cached", "cells", "entry_points", "errors", "file_names", "markup",
        "published", "restored", "revision", "rows", "seals", "settings", "statistics",
    ),
    1: ("duplicates", "images", "labelled_images", "machine", "memory", "randomness", "suites"),
    2: ("degradations",),
    3: ("models",),
    4: ("indicators",),
    5: (
        "clean_pass", "evaluation", "forward_pass", "inputs", "joint_pass", "reference", "representation", "salience",
        "shard", "training",
    ),
    6: (
        "baseline", "claims", "comparison", "contrasts", "corruption_error", "evidence", "export", "figures", "history",
        "leaderboard", "merge", "mirror", "outcomes", "paired_comparison", "regression", "report", "selfcheck",
        "side", "sinks", "store", "tables", "trajectories", "verify", "warehouse",
    ),
    7: ("command", "executors", "grouping", "plan", "results", "simulation"),
    8: ("__main__", "cli", "notebook", "perf", "pytest_plugin"),
}  # fmt: skip
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}


def module_name(path: Path) -> str:
    parts = ("mae_bench", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor(module: str) -> int | None:
    _, _, inside = module.partition(".")
    return FLOOR_OF.get(inside.split(".")[0] or "mae_bench")


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


class Imports(ast.NodeVisitor):
    """Names of all modules that a source imports anywhere, but for annotations only."""

    def __init__(self, module: str, is_package: bool) -> None:
        self.package = module if is_package else module.rpartition(".")[0]
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if is_type_checking(node.test):
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        origin = node.module or ""
        if node.level:
            above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            origin = ".".join([*above, *([node.module] if node.module else [])])
        # what is imported from a package may be a module in it
        modules = {f"{origin}.{alias.name}" for alias in node.names} & SOURCES.keys()
        self.found |= modules or {origin}


def imports_of(source: str, module: str, is_package: bool = False) -> set[str]:
    visitor = Imports(module, is_package)
    visitor.visit(ast.parse(source))
    return visitor.found


IMPORTS = {
    module: imports_of(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    for module, path in SOURCES.items()
}


def test_every_kind_of_import_is_seen_and_annotations_are_not() -> None:
    source = """
import torch.nn as nn
from mae_bench import cells
from mae_bench.degradations import Setting, ladders
from . import blur
from ..suites import Suite
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import timm
    from mae_bench.evaluation import Evaluation
else:
    import kornia
def later():
    from mae_bench.rows import ResultRow
"""
    assert imports_of(source, "mae_bench.degradations.occlusion") == {
        "torch.nn", "mae_bench.cells", "mae_bench.degradations.ladders", "mae_bench.degradations.blur",
        "mae_bench.suites", "typing", "kornia", "mae_bench.rows",
    }  # fmt: skip
    assert imports_of("from . import ladders\nfrom .. import cells", "mae_bench.degradations", is_package=True) == {
        "mae_bench.degradations.ladders",
        "mae_bench.cells",
    }


@pytest.mark.parametrize("module", SOURCES)
def test_module_has_a_floor(module: str) -> None:
    assert floor(module) is not None, f"{module} is on no floor: give it one in {Path(__file__).name}"


def upward(module: str) -> set[str]:
    """Modules of higher floors that ``module`` imports."""
    own = floor(module)
    inside = {other for other in IMPORTS[module] if other.split(".")[0] == "mae_bench"}
    return {other for other in inside if (floor(other) or 0) > (own or 0)}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(module: str) -> None:
    assert upward(module) == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: IMPORTS[module] & SOURCES.keys() for module in SOURCES}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert set(order) == SOURCES.keys()


@pytest.mark.parametrize("module", [module for module in SOURCES if not module.startswith("mae_bench.pytest_plugin")])
def test_pytest_is_imported_by_its_plugin_alone(module: str) -> None:
    roots = {name.split(".")[0] for name in IMPORTS[module]}
    assert roots.isdisjoint({"pytest", "_pytest", "pluggy", "xdist", "hypothesis"})


def imported_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules), sep='\\n')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


HEAVY = {"torch", "torchvision", "timm", "kornia", "lightly", "safetensors"}


def test_importing_the_package_is_next_to_nothing() -> None:
    assert imported_after("import mae_bench").isdisjoint(HEAVY | {"pytest", "numpy", "pandas", "scipy", "statsmodels"})


def test_what_collection_needs_imports_no_network_library() -> None:
    """Listing a matrix must not wait for torch."""
    modules = (
        "mae_bench.cells",
        "mae_bench.rows",
        "mae_bench.degradations.ladders",
        "mae_bench.suites",
        "mae_bench.models.registry",
        "mae_bench.pytest_plugin",
    )
    assert imported_after(f"import {', '.join(modules)}").isdisjoint(HEAVY)


@pytest.mark.parametrize("name", sorted(set(mae_bench.__all__) - {"__version__", "Classifier"}))
def test_public_name_that_needs_no_network_imports_none(name: str) -> None:
    loaded = imported_after(f"from mae_bench import {name}")
    assert loaded.isdisjoint(HEAVY)
    assert "mae_bench" in loaded


def test_public_names_are_listed_and_others_are_refused() -> None:
    assert dir(mae_bench) == sorted(mae_bench.__all__)
    assert all(getattr(mae_bench, name) is not None for name in mae_bench.__all__)
    with pytest.raises(AttributeError, match="'mae_bench' has no attribute 'Modle'"):
        mae_bench.Modle  # noqa: B018
