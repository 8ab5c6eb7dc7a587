"""``--mae-executor ray`` over a stand-in for Ray that runs its tasks in this process: what the session of a worker
reports is what this one says.
"""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mae_bench.pytest_plugin.cluster import Given, work
from references.ray import Ray, RayError

if TYPE_CHECKING:
    from tests.conftest import Project

USAGE = pytest.ExitCode.USAGE_ERROR
RAY = ("--mae-executor", "ray", "--mae-baseline", "none")
OTHERS = """
import pytest


def test_plain():
    pass


@pytest.mark.representation
def test_representation(representation):
    representation.check()


def test_of_the_model(evaluation):
    assert evaluation.images == 15
"""
BROKEN = '''
@model_fixture
def broken():
    """One that cannot be built."""
    raise OSError("its weights are not there")
'''


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    """Ray with two places."""
    stand_in = Ray([{"CPU": 2.0}])
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    return stand_in


KINDS = ("failure", "error", "skipped")
"""What junit.xml has in a test that did not pass."""


def outcomes(path: Path) -> dict[str, tuple[str, str]]:
    """What junit.xml says became of each test, with the message, in order."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = [
            (child.tag, child.get("message") or "") for child in case if child.tag in ("failure", "error", "skipped")
        ]
        found[str(case.get("name"))] = kinds[0] if kinds else ("passed", "")
    return found


def said(result: pytest.RunResult) -> str:
    return re.sub(r"\s+", " ", f"{result.stdout} {result.stderr}")


def test_a_run_on_a_cluster_says_and_writes_what_one_without_does(project: Project, ray: Ray) -> None:
    project.matrix("blur", models=("bright", "dim"))
    with (project.path / "conftest.py").open("a") as file:
        file.write(BROKEN)
    project.test("clean", name="test_a.py")
    project.write("test_y.py", OTHERS)
    project.write("wrong.json", json.dumps({"dim-gaussian_blur-3.00": None}))
    chosen = ("-k", "gaussian_blur-3 or test_cell and clean or plain or of_the_model and bright")
    found = {}
    for name, more in (("serial", ()), ("run", ("--mae-executor", "ray"))):
        result = project.run(*chosen, "--junitxml", f"{name}.xml", "--mae-run", name, "--mae-baseline", "none", *more)
        found[name] = (result.ret, result.parseoutcomes(), outcomes(project.path / f"{name}.xml"))
    serial, run = found["serial"], found["run"]
    assert run == serial
    assert {kind: count for kind, count in serial[1].items() if kind != "deselected"} == {"passed": 6, "failed": 5}
    assert "the network broke down" in serial[2]["test_cell[dim-gaussian_blur-3.00]"][1]
    assert "its weights are not there" in serial[2]["test_cell[broken-clean-0.00]"][1]
    assert project.rows("run") == project.rows("serial")
    plan = [json.loads((project.path / name / "plan.json").read_text()) for name in found]
    assert plan[0] == plan[1]
    manifest = json.loads((project.path / "run/manifest.json").read_text())
    assert manifest["cluster"]["task"] == {"CPU": 1, "GPU": 0}
    assert (manifest["cluster"]["tasks"], manifest["cluster"]["workers_died"]) == (3, 0)
    assert manifest["settings"]["threads"] == 1
    assert ray.shut_down == 1


@pytest.mark.thorough
@pytest.mark.usefixtures("ray")
def test_models_are_shared_out_where_there_are_fewer_than_places(project: Project) -> None:
    project.matrix("blur")
    result = project.run(*RAY, "--mae-run", "run", "-k", "gaussian_blur")
    assert result.ret == 0
    assert "2 tasks on 1 nodes, 2 at once" in said(result)
    assert len(project.rows()) == 4
    assert project.log.count("build colour") == 2
    # the second is given what the clean pass of the first left
    assert project.log.count("forward colour 15") == 4


@pytest.mark.parametrize(("limit", "tasks"), [("0", 5), ("512", 3)])
def test_tasks_share_a_cell_where_there_are_fewer_cells_than_places(
    project: Project, ray: Ray, limit: str, tasks: int
) -> None:
    project.matrix("blur")
    project.test("clean", name="test_a.py")
    ray.nodes()[0]["Resources"]["CPU"] = 5.0
    chosen = ("-k", "clean or gaussian_blur-3", "--mae-baseline", "none", "--mae-limit", limit)
    assert project.run(*chosen, "--mae-run", "serial").ret == 0
    assert project.run(*chosen, "--mae-executor", "ray", "--mae-run", "run").ret == 0
    # the blurred cell first, and of few images it alone, which has as many tasks as blocks at most
    manifest = json.loads((project.path / "run/manifest.json").read_text())
    assert manifest["cluster"]["tasks"] == tasks
    assert project.rows("run") == project.rows("serial")
    assert not (project.path / "run/scratch").exists()


@pytest.mark.thorough
@pytest.mark.usefixtures("ray")
def test_a_shard_is_the_same_on_a_cluster(project: Project) -> None:
    project.matrix("blur", models=("bright", "dim"))
    for shard in ("1/3", "2/3", "3/3"):
        assert project.run(*RAY, "--mae-run", shard[0], "--mae-shard", shard, "-k", "gaussian").ret == 0
    ran = [cell for shard in "123" for cell in project.rows(shard) if "clean" not in cell]
    assert sorted(ran) == sorted({*ran})
    assert len(ran) == 6


@pytest.mark.usefixtures("ray")
def test_a_run_ends_at_the_first_failure_where_that_is_asked_for(project: Project) -> None:
    project.matrix("blur", models=("bright", "dim"))
    project.write("wrong.json", json.dumps({"bright-gaussian_blur-3.00": None}))
    result = project.run(*RAY, "--mae-run", "run", "-x")
    assert result.ret == 1
    assert result.parseoutcomes() == {"passed": 1, "failed": 1}
    assert "stopping after 1 failures" in said(result)


@pytest.mark.usefixtures("ray")
def test_an_image_that_cannot_be_read_ends_the_run_as_ever(project: Project) -> None:
    project.matrix("blur", models=("bright", "dim"))
    project.write("data/b/0.png", "no picture")
    runs = [project.run("--mae-baseline", "none", "--mae-run", "serial"), project.run(*RAY, "--mae-run", "run")]
    assert [run.ret for run in runs] == [1, 1]
    assert [run.parseoutcomes() for run in runs] == [{"failed": 1}] * 2
    assert "0.png" in said(runs[1])


@pytest.mark.thorough
@pytest.mark.usefixtures("ray")
def test_a_worker_that_dies_is_told_of_and_what_it_left_is_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.matrix("blur", models=("bright", "dim"))
    deaths = {"dim-gaussian_blur-3.00": 1, "bright-gaussian_blur-6.00": 9}

    from mae_bench.pytest_plugin import cluster

    class Mortal(cluster.Worker):
        def pytest_runtest_logstart(self, nodeid: str) -> None:
            cell = nodeid.partition("[")[2].removesuffix("]")
            if deaths.get(cell):
                deaths[cell] -= 1
                pytest.exit("dies")

    def mortal(given: Given, items: Any, say: Any) -> str:
        before = dict(deaths)
        problem = work(given, items, say)
        if before != deaths:
            raise RayError("the worker died")
        return problem

    monkeypatch.setattr(cluster, "Worker", Mortal)
    monkeypatch.setattr(cluster, "work", mortal)
    result = project.run(*RAY, "--mae-run", "run", "-k", "gaussian")
    assert result.ret == 1
    assert result.parseoutcomes() == {"passed": 5, "failed": 1, "deselected": 18}
    assert "FAILED test_x.py::test_cell[bright-gaussian_blur-6.00] - 3 worker(s) died in" in said(result)
    assert "4 workers died, and others went on where they were" in said(result)
    assert "1 of 6 cells have no result" in said(result)
    account = json.loads((project.path / "run/manifest.json").read_text())["cluster"]
    assert account["workers_died"] == 4
    assert account["retried"] == [
        f"test_x.py::test_cell[{cell}]" for cell in ("bright-gaussian_blur-6.00", "dim-gaussian_blur-3.00")
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mae-executor", "rai"), ["--mae-executor rai", "did you mean ray?"]),
        (("--mae-executor", "ray", "-n", "2"), ["leave out -n"]),
        (("--mae-executor", "ray", "--pdb"), ["leave out --pdb"]),
        (("--mae-executor", "ray", "--mae-device", "cuda:1"), ["a GPU of its own", "use --mae-device cuda"]),
        (("--mae-executor", "ray", "--mae-ray-cpus", "0"), ["--mae-ray-cpus 0", "positive"]),
        (("--mae-executor", "ray", "--mae-ray-cpus", "3"), ["asks for 3 CPUs", "2 CPUs, 0 GPUs"]),
        (("--mae-executor", "ray", "--mae-device", "cuda"), ["asks for 1 CPU and 1 GPU", "--mae-device cpu"]),
        (("--mae-executor", "ray", "--mae-ray-address", "ray://head:10001"), ["ray://head:10001", "HOST:PORT"]),
    ],
    ids=lambda value: "=".join(value[2:]) if value[0].startswith("--mae") else "",
)
def test_what_can_never_be_is_refused(project: Project, ray: Ray, arguments: tuple[str, ...], words: list[str]) -> None:
    project.matrix("clean")
    result = project.run(*arguments)
    assert result.ret == USAGE
    assert all(word in said(result) for word in words)
    assert "Traceback" not in said(result)
    assert project.log == []
    assert not (project.path / "results").exists()
    assert len(ray.began) == ray.shut_down


def test_a_session_that_is_refused_leaves_the_run_of_another_alone(project: Project, ray: Ray) -> None:
    project.matrix("clean")
    assert project.run(*RAY, "--mae-run", "run").ret == 0
    before = (project.path / "run/manifest.json").read_bytes()
    result = project.run(*RAY, "--mae-run", "run")
    assert result.ret == USAGE
    assert "is not empty" in said(result)
    assert (project.path / "run/manifest.json").read_bytes() == before
    assert ray.shut_down == 2


def test_listing_joins_no_cluster(project: Project, ray: Ray) -> None:
    project.matrix("clean")
    result = project.run("--mae-executor", "ray", "--co", "-q")
    assert "test_x.py::test_cell[colour-clean-0.00]" in result.outlines
    assert ray.began == []


def test_a_project_without_cells_joins_no_cluster(project: Project, ray: Ray) -> None:
    project.write("test_plain.py", "def test_plain():\n    pass\n")
    assert project.run("--mae-executor", "ray").ret == 0
    assert ray.began == []


@pytest.mark.parametrize("folder", ["elsewhere", "."])
def test_a_node_that_does_not_see_the_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".session").write_bytes(b"another session's")
    given = Given((), str(tmp_path / folder), (), (), {}, str(tmp_path), b"mine", "", 1)
    problem = work(given, ["a"], lambda *_: None)
    assert f"does not see {tmp_path}" in problem
    assert "NFS" in problem


@pytest.mark.usefixtures("ray")
def test_items_that_a_node_does_not_collect_fail_with_what_was_printed_there(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.matrix("clean")
    with (project.path / "conftest.py").open("a") as file:
        file.write(
            "\nimport os\n\nif os.environ.get('MAE_BENCH_ELSEWHERE'):\n    raise ImportError('no such library')\n"
        )
    from mae_bench.pytest_plugin import cluster

    def elsewhere(given: Given, items: Any, say: Any) -> str:
        monkeypatch.setenv("MAE_BENCH_ELSEWHERE", "1")
        return work(given, items, say)

    monkeypatch.setattr(cluster, "work", elsewhere)
    result = project.run(*RAY, "--mae-run", "run")
    assert result.ret == 1
    assert result.parseoutcomes() == {"failed": 1}
    assert "ended with status 4" in said(result)
    assert "no such library" in said(result)
