"""Real Ray clusters of this machine, with GPUs in name alone: what a run on them gives is what one without gives,
whoever is killed.
"""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Project

pytestmark = pytest.mark.cluster

REPRESENTATION = """
import pytest


@pytest.mark.representation
def test_representation(representation):
    representation.check()


def test_plain():
    pass
"""
BROKEN = '''
@model_fixture
def broken():
    """One that cannot be built."""
    raise OSError("its weights are not there")
'''
MORTAL = """
import json
import os
import signal

import networks

HERE = networks.HERE
FORWARD = networks.MeanColour.forward


def forward(self, images):
    # deaths.json says in which cells processes kill themselves, and how many do; "driver" in which one kills the driver
    cell = os.environ["PYTEST_CURRENT_TEST"].partition("[")[2].partition("]")[0]
    # a worker that takes the place of another is given what the clean pass of that one left
    clean = HERE / "run/cells" / self.name / "clean-0.00.json"
    if len(images) > 2 and clean.exists():
        deaths = json.loads((HERE / "deaths.json").read_text()).get(cell, 0)
        networks.note(f"try {cell}")
        if deaths == "driver":
            os.kill(int((HERE / "driver.pid").read_text()), signal.SIGKILL)
        elif (HERE / "log.txt").read_text().splitlines().count(f"try {cell}") <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
    return FORWARD(self, images)


networks.note(f"process {os.getpid()}")
networks.MeanColour.forward = forward
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster with two CPUs and two GPUs, neither of which need be there."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 2, "num_gpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        yield cluster.address
        cluster.shutdown()


def arguments(address: str, run: str = "run") -> tuple[str, ...]:
    return "--mae-executor", "ray", "--mae-ray-address", address, "--mae-run", run


LEVELS = {"gaussian_blur": ("1.00", "3.00", "6.00"), "box_blur": ("3.50", "10.50", "21.00")}
KINDS = ("failure", "error", "skipped")
"""What junit.xml has in a test that did not pass."""


def outcomes(path: Path) -> dict[str, tuple[str, str]]:
    """What junit.xml says became of each test, with the message."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = [
            (child.tag, child.get("message") or "") for child in case if child.tag in ("failure", "error", "skipped")
        ]
        found[str(case.get("name"))] = kinds[0] if kinds else ("passed", "")
    return found


def said(result: pytest.RunResult) -> str:
    return re.sub(r"\s+", " ", f"{result.stdout} {result.stderr}")


def account(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project.path / "run/manifest.json").read_text())["cluster"]
    return found


def mortals(project: Project, deaths: dict[str, Any], *models: str) -> None:
    """A project of ``models`` whose processes are killed in cells."""
    project.matrix("blur", models=models)
    project.write("mortal.py", MORTAL)
    project.write("deaths.json", json.dumps(deaths))
    with (project.path / "networks.py").open("a") as file:
        file.write("\n\nimport mortal\n")


def test_a_run_gives_what_one_without_a_cluster_gives(project: Project, address: str) -> None:
    project.matrix("blur", models=("bright", "dim"), per_class=120)
    project.test("clean", name="test_a.py")
    project.write("test_y.py", REPRESENTATION)
    baseline = ("--mae-limit", "0", "--mae-full", "--mae-update-baseline", "--mae-reason", "first", "-k", "test_cell")
    assert project.run(*baseline, "--mae-run", "baseline").ret == 0
    with (project.path / "conftest.py").open("a") as file:
        file.write(BROKEN)
    # drift: the weights are the same, and yet predictions changed; wrong: others, and a cell that breaks down
    project.write("drift.json", json.dumps({"dim-gaussian_blur-6.00": [0, 40]}))
    project.write("wrong.json", json.dumps({"bright-gaussian_blur-3.00": [0, 60], "bright-box_blur-10.50": None}))
    chosen = ("-k", "gaussian_blur or test_cell and (box_blur-10 or clean) or plain")
    found = {}
    for name, more in (("serial", ("--mae-run", "serial")), ("run", arguments(address))):
        result = project.run(*chosen, *more, "--junitxml", f"{name}.xml")
        tables = said(result).partition("mae_bench: against")[2].partition("short test summary")[0]
        found[name] = (result.ret, result.parseoutcomes(), outcomes(project.path / f"{name}.xml"), tables)
    serial, run = found["serial"], found["run"]
    assert run == serial
    assert serial[0] == 1
    assert "regression" in serial[2]["test_cell[bright-gaussian_blur-3.00]"][1]
    assert "the network broke down" in serial[2]["test_cell[bright-box_blur-10.50]"][1]
    assert "its weights are not there" in serial[2]["test_cell[broken-clean-0.00]"][1]
    assert serial[2]["test_cell[dim-gaussian_blur-6.00]"][0] == "failure"
    assert project.rows("run") == project.rows("serial")
    for path in (project.path / "serial/representations").rglob("*.json"):
        other = project.path / "run" / path.relative_to(project.path / "serial")
        assert json.loads(other.read_text()) == json.loads(path.read_text())
    assert account(project)["task"] == {"CPU": 1, "GPU": 1}
    assert account(project)["tasks"] == 3
    assert [project.log.count(f"build {name}") for name in ("bright", "dim")] == [3, 3]  # with that of the baseline
    assert not (project.path / "run/scratch").exists()


def test_killed_workers_are_counted_and_what_they_left_is_run(project: Project, address: str) -> None:
    cells = [f"{m}-gaussian_blur-{level}" for m in ("bright", "dim") for level in ("1.00", "3.00", "6.00")]
    mortals(project, {}, "bright", "dim")
    assert project.run("-k", "gaussian", "--mae-baseline", "none", "--mae-run", "serial").ret == 0
    (project.path / "log.txt").unlink()
    project.write("deaths.json", json.dumps({"dim-gaussian_blur-3.00": 1, "bright-gaussian_blur-3.00": 9}))
    result = project.run("-k", "gaussian", "--mae-baseline", "none", *arguments(address))
    assert result.ret == 1
    assert result.parseoutcomes() == {"passed": 5, "failed": 1, "deselected": 18}
    assert re.search(r"_ test_cell\[bright-gaussian_blur-3.00\] _+ 3 worker\(s\) died in it", said(result))
    assert "4 workers died, and others went on where they were" in said(result)
    tries = {cell: project.log.count(f"try {cell}") for cell in cells}
    assert tries == dict.fromkeys(cells, 1) | {"dim-gaussian_blur-3.00": 2, "bright-gaussian_blur-3.00": 3}
    assert account(project)["workers_died"] == 4
    rows = project.rows("serial")
    del rows["bright-gaussian_blur-3.00"]
    assert project.rows() == rows
    assert "1 of 6 cells have no result" in said(result)


def test_fifty_deaths_lose_nothing(project: Project, address: str) -> None:
    models = [f"model{number}" for number in range(9)]
    blurs = [f"{kind}-{level}" for kind, levels in LEVELS.items() for level in levels]
    cells = [f"{model}-{blur}" for model in models for blur in blurs]
    assert len(cells) == 54
    mortals(project, {}, *models)
    chosen = ("-k", " or ".join(LEVELS), "--mae-baseline", "none")
    assert project.run(*chosen, "--mae-run", "serial").ret == 0
    (project.path / "log.txt").unlink()
    project.write("deaths.json", json.dumps(dict.fromkeys(cells, 1)))
    result = project.run(*chosen, *arguments(address))
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] == 54
    assert account(project)["workers_died"] == 54
    assert {cell: project.log.count(f"try {cell}") for cell in cells} == dict.fromkeys(cells, 2)
    assert project.rows() == project.rows("serial")


@pytest.mark.parametrize(
    ("cell", "deaths"), [("colour-gaussian_blur-3.00", 0), ("colour-gaussian_blur-3.00", 1), ("colour-clean-0.00", 0)]
)
def test_workers_share_the_images_of_a_cell_where_there_are_more_of_them(
    project: Project, address: str, cell: str, deaths: int
) -> None:
    mortals(project, {}, "colour")
    project.test("clean", name="test_a.py")
    for name in "rgb":
        for number in range(1, 250):
            (project.path / f"data/{name}/more{number}.png").write_bytes(varied(project, name, number))
    chosen = ("-k", cell, "--mae-baseline", "none", "--mae-limit", "0", "--mae-batch-size", "256")
    assert project.run(*chosen, "--mae-run", "serial").ret == 0
    assert project.rows("serial")[cell]["n"] == 762
    forward = Counter(line for line in project.log if line.startswith("forward"))
    (project.path / "log.txt").unlink()
    project.write("deaths.json", json.dumps({cell: deaths}))
    result = project.run(*chosen, *arguments(address))
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] == 1
    assert project.rows() == project.rows("serial")
    # three blocks, each in one forward pass, and again where a worker died in it
    assert project.log.count(f"try {cell}") == ("clean" not in cell) * (3 + deaths)
    # clean images are passed once, whoever asks for them
    if not deaths:
        assert Counter(line for line in project.log if line.startswith("forward")) == forward
    assert account(project) | {"tasks": 2 + deaths, "workers_died": deaths} == account(project)
    assert not (project.path / "run/scratch").exists()


def varied(project: Project, name: str, number: int) -> bytes:
    """A picture like the first of a class, that is none of the others."""
    from PIL import Image

    with Image.open(project.path / f"data/{name}/0.png") as picture:
        turned = picture.copy()
    turned.putpixel((number % 16, number // 16), (number, 100, 100))
    content = io.BytesIO()
    turned.save(content, "PNG")
    return content.getvalue()


def test_a_run_whose_driver_is_killed_is_gone_on_with(project: Project, address: str) -> None:
    mortals(project, {}, "bright")
    assert project.run("-k", "gaussian", "--mae-baseline", "none", "--mae-run", "serial").ret == 0
    (project.path / "log.txt").unlink()
    project.write("deaths.json", json.dumps({"bright-gaussian_blur-6.00": "driver"}))
    chosen = ("-k", "gaussian", "--mae-baseline", "none", *arguments(address))
    # one task for all, so that it is known what is finished
    more = ("--mae-ray-cpus", "2")
    driver = subprocess.Popen(
        [sys.executable, "-m", "pytest", *chosen, *more], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    project.write("driver.pid", str(driver.pid))
    assert driver.wait() == -signal.SIGKILL
    wait_for_end_of_workers(project)
    before = {path: path.read_bytes() for path in (project.path / "run/cells").rglob("*.json")}
    assert len(before) >= 3
    project.write("deaths.json", "{}")
    tried = project.log.count("try bright-gaussian_blur-1.00")
    result = project.run(*chosen, "--mae-resume")
    assert result.ret == 0
    assert project.rows() == project.rows("serial")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert project.log.count("try bright-gaussian_blur-1.00") == tried  # what was finished is not run again


def wait_for_end_of_workers(project: Project) -> None:
    """Wait until nothing of a driver that was killed writes any more."""
    for line in project.log:
        if line.startswith("process "):
            try:
                descriptor = os.pidfd_open(int(line.split()[1]))
            except ProcessLookupError:
                continue
            assert select.select([descriptor], [], [], 60)[0], f"{line} goes on"
            os.close(descriptor)


def test_what_the_cluster_can_never_do_is_refused(project: Project, address: str) -> None:
    project.matrix("clean")
    result = project.run(*arguments(address), "--mae-ray-cpus", "3")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "asks for 3 CPUs and 1 GPU on one node" in said(result)
    assert "2 CPUs, 2 GPUs" in said(result)
    assert not (project.path / "run").exists()


def test_a_cluster_is_started_where_none_is_named(project: Project) -> None:
    project.matrix("clean")
    result = project.run("--mae-executor", "ray", "--mae-run", "run", "--mae-baseline", "none", "--mae-device", "cpu")
    assert result.ret == 0
    assert account(project) | {"nodes": 1, "address": None, "workers_died": 0} == account(project)
    assert account(project)["task"] == {"CPU": 1, "GPU": 0}
    assert len(project.rows()) == 1
    import ray

    assert not ray.is_initialized()
