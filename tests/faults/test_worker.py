"""Workers of pytest-xdist die or hang in a cell: it has failed and is named, every other one is finished."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import pytest

from faults.deaths import DEATHS, FAILURES
from faults.mortals import ARGUMENTS, CONDITIONS, died_in, failed, mortals, passes
from faults.prepared import Interpreter
from faults.reliability import Injection

if TYPE_CHECKING:
    from conftest import Project

Journal = Callable[[Injection], None]


@pytest.mark.parametrize("count", [2, pytest.param(50, marks=pytest.mark.faults)])
def test_cell_in_which_a_worker_dies_fails_alone(
    project: Project, interpreter: Interpreter, journal: Journal, count: int
) -> None:
    random = Random(count)
    models = [f"m{i}" for i in range(count)]
    kinds = [*DEATHS, *FAILURES]
    ways = {f"{model}-{random.choice(CONDITIONS)}": kinds[i % len(kinds)] for i, model in enumerate(models)}
    mortals(project, ways, models)
    status, output = interpreter.pytest(project.path, *ARGUMENTS, "-n", 2 if count < 10 else 4, "--mae-run", "run")
    everything = {f"{model}-{condition}" for model in models for condition in (*CONDITIONS, "clean-0.00")}
    innocent = everything - ways.keys()
    rows = project.rows()
    lost = len(innocent - rows.keys())
    silent = len(ways.keys() - set(failed(output))) if status == 1 else count
    assert status == 1, output
    assert failed(output) == sorted(ways)
    assert died_in(output) == sorted(cell for cell, way in ways.items() if way in DEATHS)
    assert rows.keys() == innocent
    # none but the clean ones was run twice
    assert [cell for cell in passes(project) if "clean" not in cell] == sorted(
        cell for cell in everything if "clean" not in cell
    )
    # the run can be gone on with, and then is what one without a death is
    project.write("deaths.json", "{}")
    (project.path / "log.txt").unlink()
    status, output = interpreter.pytest(project.path, *ARGUMENTS, "--mae-run", "run", "--mae-resume")
    assert status == 0, output
    assert {cell for cell in passes(project) if "clean" not in cell} == ways.keys()
    assert interpreter.pytest(project.path, *ARGUMENTS, "--mae-run", "whole")[0] == 0
    assert project.rows() == project.rows("whole")
    journal(
        Injection(
            "worker",
            f"one of {len(CONDITIONS)} cells of a model ends or hangs its pytest-xdist worker: {', '.join(kinds)}",
            count,
            "the cell has failed and is named, another worker runs the model's other cells, the run fails and can be "
            "resumed",
            lost,
            silent,
        )
    )


@pytest.mark.faults
def test_model_whose_clean_pass_ends_workers_is_given_up(
    project: Project, interpreter: Interpreter, journal: Journal
) -> None:
    mortals(project, {"deadly-clean-0.00": "kill"}, ["deadly", "meek"])
    status, output = interpreter.pytest(project.path, *ARGUMENTS, "-n", 2, "--mae-run", "run")
    assert status == 1
    assert len(died_in(output)) == 2
    assert passes(project).count("deadly-clean-0.00") == 2
    assert failed(output) == sorted(f"deadly-{condition}" for condition in CONDITIONS)
    assert output.count("not run: deadly ended 2 workers before anything of it had finished") == len(CONDITIONS) - 2
    lost = {f"meek-{condition}" for condition in (*CONDITIONS, "clean-0.00")} - project.rows().keys()
    journal(
        Injection(
            "worker",
            "the clean pass of a model kills every worker",
            1,
            "two workers die of it, then all its cells have failed and are named; other models are finished",
            len(lost),
        )
    )


@pytest.mark.faults
def test_workers_are_replaced_as_often_as_is_asked_for(project: Project, interpreter: Interpreter) -> None:
    models = [f"m{i}" for i in range(4)]
    ways = {f"{model}-gaussian_blur-3.00": "kill" for model in models}
    mortals(project, ways, models)
    limit = ("--max-worker-restart", 1)
    status, output = interpreter.pytest(project.path, *ARGUMENTS, *limit, "-n", 1, "--mae-run", "run")
    assert status == 1
    assert "maximum crashed workers reached: 1" in output
    assert len(died_in(output)) == 2
    project.write("deaths.json", "{}")
    status, output = interpreter.pytest(project.path, *ARGUMENTS, "--mae-run", "run", "--mae-resume")
    assert status == 0
    assert len(project.rows()) == 4 * (len(CONDITIONS) + 1)


@pytest.mark.faults
def test_workers_that_die_as_they_begin_are_not_replaced_for_ever(
    project: Project, interpreter: Interpreter, journal: Journal
) -> None:
    mortals(project, {}, ["m"])
    conftest = (project.path / "conftest.py").read_text()
    dying = "\nimport os\n\nif 'PYTEST_XDIST_WORKER' in os.environ:\n    os._exit(1)\n"
    project.write("conftest.py", conftest + dying)
    status, output = interpreter.pytest(project.path, *ARGUMENTS, "-n", 2, "--mae-run", "run")
    assert status == 1
    assert "5 workers died before they had collected any test" in output
    journal(
        Injection(
            "worker",
            "every worker dies while it reads conftest.py",
            5,
            "the run ends and says so",
            silent=int(status == 0),
        )
    )


@pytest.mark.faults
@pytest.mark.parametrize("way", [way for way in {**DEATHS, **FAILURES} if "hang" in way])
def test_cell_that_hangs_without_workers_is_ended_and_the_run_can_be_resumed(
    project: Project, interpreter: Interpreter, journal: Journal, way: str
) -> None:
    mortals(project, {"m-box_blur-3.50": way}, ["m"])
    status, output = interpreter.pytest(project.path, *ARGUMENTS, "--mae-run", "run")
    assert "cell m-box_blur-3.50 took longer than 2 s" in output or "Timeout" in output
    # what can be interrupted fails, of the rest the process goes
    assert status == (1 if way in FAILURES else {"hang outside of Python": 70, "hang with every thread": 1}[way])
    finished = {"m-clean-0.00", *(f"m-{condition}" for condition in CONDITIONS[:3])}
    assert project.rows().keys() >= finished
    project.write("deaths.json", "{}")
    assert interpreter.pytest(project.path, *ARGUMENTS, "--mae-run", "run", "--mae-resume")[0] == 0
    lost = {"m-clean-0.00", *(f"m-{condition}" for condition in CONDITIONS)} - project.rows().keys()
    journal(
        Injection(
            "worker",
            f"a cell of a run without workers: {way}",
            1,
            "the cell has failed and is named" if way in FAILURES else "the process ends and says where it was",
            len(lost),
        )
    )
