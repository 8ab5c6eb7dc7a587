"""Which worker is sent which item, whoever dies and whenever."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdist.remote import Producer

from mae_bench.models.registry import ModelEntry, Registry
from mae_bench.pytest_plugin.distribution import DEATHS, Distribution

if TYPE_CHECKING:
    from tests.conftest import Project


class Worker:
    """What pytest-xdist's controller sees of a worker, and what the worker does: it runs an item once it knows the one
    after it, or that there is none.
    """

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.ever_sent: list[int] = []
        self.ready = self.shutting_down = False
        self.gateway = SimpleNamespace(id="gw")
        self.workerinput: dict[str, Any] = {}

    def send_runtest_some(self, indices: list[int]) -> None:
        assert not self.shutting_down
        self.sent += indices
        self.ever_sent += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def next(self) -> int | None:
        return self.sent[0] if len(self.sent) > 1 or (self.sent and self.shutting_down) else None


class Session:
    """pytest-xdist's distributed session without processes: what ``DSession`` tells a scheduler, and in which order."""

    def __init__(self, ids: list[str], models: list[str], workers: int, folder: Path) -> None:
        registry = Registry()
        for model in models:
            registry.add(ModelEntry(model), None)
        self.unrun: list[str] = []
        hook = SimpleNamespace(pytest_runtest_logreport=lambda report: self.unrun.append(report.nodeid))
        values = {"dist": "load", "tx": ["popen"] * workers, "maxschedchunk": None}
        config: Any = SimpleNamespace(hook=hook, getvalue=values.__getitem__, getoption=values.__getitem__)
        harness: Any = SimpleNamespace(
            registry=registry,
            options={"model": []},
            timm_models={},
            run_path=folder,
            config=config,
            began=True,
            lacking=set(),
        )
        self.distribution = Distribution(harness)
        self.scheduler = self.distribution.pytest_xdist_make_scheduler(config, Producer("test", enabled=False))
        self.ids = ids
        self.running: list[Worker] = []
        self.shutting_down = False
        self.done: list[str] = []
        self.died_in: list[str] = []
        self.starting: list[Worker] = []
        for _ in range(workers):
            self.start()
        for worker in [*self.starting, *self.starting]:
            self.go_on(worker)

    def start(self) -> None:
        self.starting.append(Worker())
        self.distribution.pytest_configure_node(self.starting[-1])

    def go_on(self, worker: Worker) -> None:
        """Let a worker that starts be ready, and after that have collected."""
        if not worker.ready:
            worker.ready = True
            if self.shutting_down:
                worker.shutdown()
            else:
                self.scheduler.add_node(worker)
        else:
            self.starting.remove(worker)
            self.running.append(worker)
            if not self.shutting_down:
                self.scheduler.add_node_collection(worker, self.ids)
                if self.scheduler.collection_is_completed:
                    self.scheduler.schedule()
        self.look()

    def run(self, worker: Worker) -> None:
        """One item; a worker that has run all it will be sent ends."""
        if worker.next is None:
            assert worker.shutting_down
            self.running.remove(worker)
            self.distribution.pytest_testnodedown(worker, None)
            if worker in self.scheduler.nodes:
                assert self.scheduler.remove_node(worker) is None
        else:
            index = worker.sent.pop(0)
            self.done.append(self.ids[index])
            self.scheduler.mark_test_complete(worker, index)
        self.look()

    def die(self, worker: Worker) -> None:
        running = worker in self.running
        self.distribution.pytest_testnodedown(worker, None)
        (self.running if running else self.starting).remove(worker)
        died_in = self.scheduler.remove_node(worker) if worker in self.scheduler.nodes else None
        assert died_in == (self.ids[worker.sent[0]] if worker.sent else None)
        if died_in is not None:
            self.died_in.append(died_in)
            self.distribution.pytest_handlecrashitem(died_in, SimpleNamespace(longrepr=""))
        self.shutting_down = False
        self.start()
        self.look()

    def look(self) -> None:
        if self.scheduler.tests_finished and not self.shutting_down:
            self.shutting_down = True
            for worker in self.scheduler.nodes:
                worker.shutdown()

    @property
    def able(self) -> list[Worker]:
        """Workers that do something without being told anything more."""
        return [worker for worker in self.running if worker.next is not None or worker.shutting_down]


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=60),
)
def test_every_item_is_run_once_or_has_ended_a_worker_whoever_dies_and_whenever(
    sizes: list[int], others: int, workers: int, events: list[tuple[int, int]]
) -> None:
    models = [f"m{i}" for i in range(len(sizes))]
    ids = [f"test_x.py::test_cell[{m}-box_blur-{k}.00]" for m, n in zip(models, sizes, strict=True) for k in range(n)]
    ids += [f"test_y.py::test_{i}" for i in range(others)]
    session = Session(ids, models, workers, Path("nowhere"))
    done_before: list[str] = []
    for kind, which in events:
        given_up = len(session.unrun)
        if kind == 0 and session.starting:
            session.go_on(session.starting[which % len(session.starting)])
        elif kind == 1 and (alive := session.running + session.starting):
            session.die(alive[which % len(alive)])
        elif session.able:
            session.run(session.able[which % len(session.able)])
        if given_up != len(session.unrun):
            done_before = list(session.done)
        # a worker that takes the place of another has its GPU
        places = [worker.workerinput["mae_place"] for worker in session.running + session.starting]
        assert len(set(places)) == len(places)
        assert set(places) <= set(range(workers))
    finish(session)
    ended = Counter(session.done + session.died_in + session.unrun)
    assert ended == Counter(ids)
    # cells of a model that has finished something are never given up
    for item in session.unrun:
        model = model_of(item)
        assert not [done for done in done_before if model_of(done) == model]
        assert len([death for death in session.died_in if model_of(death) == model]) >= DEATHS


def finish(session: Session) -> None:
    """Without any more deaths."""
    while session.starting or session.running:
        if session.starting:
            session.go_on(session.starting[0])
        else:
            assert session.able, "every worker waits"
            session.run(session.able[0])


def model_of(item: str) -> str:
    return item.partition("[")[2].partition("-")[0]


CONDITIONS = ("clean-0.00", "box_blur-1.00", "box_blur-2.00", "motion_blur-1.00", "stripes-0.25", "random_patch-0.50")


def matrix(sizes: list[int], represented: int = 0) -> list[str]:
    """Ids of so many cells of each of several models, some of them with their representation."""
    cells = [f"m{i}-{condition}" for i, size in enumerate(sizes) for condition in CONDITIONS[:size]]
    ids = [f"test_x.py::test_cell[{cell}]" for cell in cells]
    ids += [f"test_r.py::test_representation[{cell}]" for cell in cells if CONDITIONS.index(cell[3:]) < represented]
    return sorted(ids, key=model_of)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, len(CONDITIONS)), min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(1, 4),
    st.lists(st.integers(0, 9), max_size=60),
)
def test_a_model_is_shared_once_all_have_been_begun_and_then_so_long_as_there_is_something_to_share(
    sizes: list[int], represented: int, workers: int, events: list[int]
) -> None:
    ids = matrix(sizes, represented)
    session = Session(ids, [f"m{i}" for i in range(len(sizes))], workers, Path("nowhere"))
    everyone = list(session.running)
    cell_of = [item.partition("[")[2] for item in ids]
    owners: dict[str, set[Worker]] = {}
    seen: dict[Worker, int] = dict.fromkeys(everyone, 0)
    let_go: set[Worker] = set()

    def look() -> None:
        for worker in everyone:
            for index in worker.ever_sent[seen[worker] :]:
                owners.setdefault(model_of(ids[index]), set()).add(worker)
            seen[worker] = len(worker.ever_sent)
        sent = {cell_of[index] for worker in everyone for index in worker.ever_sent}
        unsent = Counter(cell.partition("-")[0] for cell in set(cell_of) - sent)
        if any(len(each) > 1 for each in owners.values()):
            assert len(owners) == len(sizes), "a model was shared while another had not been begun"
        for worker in everyone:
            if worker.shutting_down and worker not in let_go:
                let_go.add(worker)
                assert max(unsent.values(), default=0) <= 1, "a worker was let go while there was something to share"
                held = model_of(ids[worker.ever_sent[-1]]) if worker.ever_sent else ""
                assert not unsent[held], "a worker was let go while there was something left of its model"

    look()
    for which in events:
        if session.able:
            session.run(session.able[which % len(session.able)])
            look()
    finish(session)
    assert Counter(session.done) == Counter(ids)
    for cell in cell_of:  # a cell and its representation are never parted
        assert len({w for w in everyone for index in w.ever_sent if cell_of[index] == cell}) == 1


@pytest.mark.parametrize("first_finishes", [True, False])
def test_a_model_is_given_up_after_so_many_deaths_unless_something_of_it_has_finished(first_finishes: bool) -> None:
    session = Session(matrix([6]), ["m0"], 1, Path("nowhere"))
    if first_finishes:
        session.run(session.running[0])
    for _ in range(DEATHS):
        assert not session.unrun
        session.die(session.running[0])
        for _ in range(2):  # ready, and then collected
            if session.starting:
                session.go_on(session.starting[0])
    finish(session)
    assert len(session.died_in) == DEATHS
    assert len(session.unrun) == (0 if first_finishes else 6 - DEATHS)
    assert Counter(session.done + session.died_in + session.unrun) == Counter(session.ids)


def test_workers_that_are_as_many_as_models_each_have_one() -> None:
    session = Session(matrix([6, 6, 6]), ["m0", "m1", "m2"], 3, Path("nowhere"))
    everyone = list(session.running)
    while session.running:  # all of them equally fast
        for worker in list(session.running):
            session.run(worker)
    assert [{model_of(session.ids[index]) for index in worker.ever_sent} for worker in everyone] == [
        {"m0"}, {"m1"}, {"m2"},
    ]  # fmt: skip


@given(st.integers(1, 60), st.integers(1, 8))
def test_equally_fast_workers_share_one_model_equally(cells: int, workers: int) -> None:
    ids = [f"test_x.py::test_cell[m0-box_blur-{k}.00]" for k in range(cells)]
    session = Session(ids, ["m0"], workers, Path("nowhere"))
    rounds = 0
    while session.running:
        rounds += bool(session.able)
        for worker in list(session.able):
            session.run(worker)
    # the last round is that in which workers end; the one before it may lack cells that had been sent in advance
    assert rounds <= -(-cells // workers) + 2


def test_a_worker_is_kept_at_a_family_where_there_are_several() -> None:
    session = Session(matrix([6]), ["m0"], 2, Path("nowhere"))
    everyone = list(session.running)
    finish(session)
    sent = [{session.ids[index].partition("m0-")[2][:-1] for index in worker.ever_sent} for worker in everyone]
    assert sent[1] >= {"stripes-0.25", "random_patch-0.50"}


def test_what_is_crossed_with_another_parameter_is_of_its_cell_and_what_names_none_of_the_whole_model() -> None:
    distribution = Session(["test_x.py::test_a"], ["m0", "m-0", "0"], 1, Path("nowhere")).distribution
    cell = ("m-0", "blur", "box_blur", "1.00")
    for name in ("m-0-box_blur-1.00", "m-0-box_blur-1.00-x", "x-m-0-box_blur-1.00", "x-m-0-box_blur-1.00-y"):
        assert distribution.path(f"test_x.py::test_cell[{name}]") == cell
    assert distribution.path("test_x.py::test_throughput[m-0]") == ("m-0",)
    assert distribution.path("test_x.py::test_cell[late-box_blur-1.00]") == ("late", "blur", "box_blur", "1.00")
    assert distribution.path("test_x.py::test_plain[x]") is None
    assert distribution.path("test_x.py::test_plain") is None


@pytest.mark.thorough  # starts two workers
def test_two_workers_share_one_model_and_its_clean_pass(project: Project) -> None:
    project.matrix("clean", "blur", per_class=180)  # beyond the images that one of them passes alone
    assert project.run("--mae-run", "alone").ret == 0
    forward = Counter(line for line in project.log if line.startswith("forward"))
    (project.path / "log.txt").unlink()
    result = project.run("-n", "2", "-v", "--mae-run", "shared")
    assert result.ret == 0
    assert {line.split("]")[0] for line in result.outlines if "PASSED" in line} == {"[gw0", "[gw1"}
    # nothing ran twice, the clean pass neither, though both built the model
    assert Counter(line for line in project.log if line.startswith("forward")) == forward
    assert project.log.count("build colour") == 2
    assert project.rows("shared") == project.rows("alone")
    assert not (project.path / "shared" / "scratch").exists()


NOTES = """
import atexit
import os
import sys

atexit.register(
    lambda: open(os.environ.get("PYTEST_XDIST_WORKER", "controller"), "w").write(str("torch" in sys.modules))
)
"""


@pytest.mark.thorough  # starts a worker
def test_the_process_that_hands_cells_out_imports_no_network_library(project: Project) -> None:
    project.matrix("clean")
    with (project.path / "conftest.py").open("a") as file:
        file.write(NOTES)
    assert project.pytester.runpytest_subprocess("-n", "1").ret == 0
    assert (project.path / "controller").read_text() == "False"
