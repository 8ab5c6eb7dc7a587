"""A selection that is empty, or names something twice, is said; it is never an empty green run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from faults.reliability import Injection

if TYPE_CHECKING:
    from conftest import Project

Journal = Callable[[Injection], None]


def no_model(project: Project) -> tuple[str, ...]:
    project.write("conftest.py", "")
    return ()


def model_of_another_suite(project: Project) -> tuple[str, ...]:
    text = (project.path / "conftest.py").read_text()
    project.write("conftest.py", text.replace("@model_fixture", '@model_fixture(suite="fashion_mnist")'))
    return ()


def no_such_keyword(project: Project) -> tuple[str, ...]:  # noqa: ARG001
    return ("-k", "nosuch")


def no_such_mark(project: Project) -> tuple[str, ...]:  # noqa: ARG001
    return ("-m", "geometry")


def no_such_item(project: Project) -> tuple[str, ...]:  # noqa: ARG001
    return ("test_x.py::test_cell[colour-clean-7.00]",)


def family_without_cells(project: Project) -> tuple[str, ...]:
    project.test("geometry")
    return ()


def two_models_of_one_name(project: Project) -> tuple[str, ...]:
    text = (project.path / "conftest.py").read_text()
    for folder in ("one", "two"):
        project.write(f"{folder}/conftest.py", text.replace("def colour", "def twin"))
        project.test("clean", name=f"{folder}/test_{folder}.py")
    return ()


def no_such_timm_model(project: Project) -> tuple[str, ...]:  # noqa: ARG001
    return ("--mae-model", "resnet_nosuch*")


EMPTY = {
    no_model: "no model is registered for suite 'imagefolder'",
    model_of_another_suite: "registered models are bound to fashion_mnist",
    no_such_keyword: "1 deselected",
    no_such_mark: "1 deselected",
    no_such_item: "not found",
    family_without_cells: "cells of geometry are collected with --mae-full",
    two_models_of_one_name: "two models are called 'twin'",
    no_such_timm_model: "--mae-model resnet_nosuch*: no pretrained timm model matches",
}
"""What makes a selection empty or ambiguous, and what is said of it."""


FEW = (no_such_keyword, no_such_item, family_without_cells)


@pytest.mark.parametrize(
    ("select", "workers"),
    [
        *((select, ()) for select in FEW),
        *(pytest.param(select, workers, marks=pytest.mark.faults) for select in EMPTY for workers in ((), ("-n", "2"))),
    ],
)
def test_empty_or_ambiguous_selection_is_said_and_not_green(
    project: Project, journal: Journal, select: Callable[[Project], tuple[str, ...]], workers: tuple[str, ...]
) -> None:
    project.matrix("clean")
    result = project.run(*select(project), *workers)
    said = result.stdout.str() + result.stderr.str()
    # of what workers deselect or do not find pytest-xdist says nothing, and what they could collect they run
    unsaid = (no_such_keyword, no_such_mark, no_such_item) if workers else ()
    assert EMPTY[select] in said or select in unsaid
    if not workers:
        assert project.log == []
        assert not list(project.path.rglob("cells"))
    journal(
        Injection(
            "selection",
            f"{select.__name__.replace('_', ' ')}{', with workers' if workers else ''}",
            1,
            "the run ends with an exit status other than 0"
            + ("" if workers else ", says why, evaluates nothing and leaves no results"),
            silent=int(result.ret == 0),
        )
    )


TWICE = """
import pytest


@pytest.mark.clean
@pytest.mark.parametrize("again", [1, 2])
def test_twice(cell, again):
    cell.check()
"""


@pytest.mark.faults
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_cell_that_is_selected_several_times_is_run_once(
    project: Project, journal: Journal, workers: tuple[str, ...]
) -> None:
    project.matrix("clean")
    project.write("test_y.py", TWICE)
    project.test("clean", name="test_z.py")
    files = ("test_x.py", "test_y.py", "test_z.py", "test_x.py")
    result = project.run(*files, *workers, "--mae-run", "run", "--mae-baseline", "none")
    result.assert_outcomes(passed=4)
    assert sorted(project.rows()) == ["colour-clean-0.00"]
    assert "imagefolder: all 15 images, 1 cells." in result.stdout.str()
    forwards = [line for line in project.log if line.startswith("forward")]
    journal(
        Injection(
            "selection",
            f"a cell in three tests, one of them twice, and a file named twice{', with workers' if workers else ''}",
            1,
            "the cell is evaluated once and counts once",
            silent=len(forwards) - 1,
        )
    )
