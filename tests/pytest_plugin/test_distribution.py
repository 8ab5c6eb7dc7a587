"""Which worker is sent which item, whoever dies and whenever."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from xdist.remote import Producer

from mae_bench.models.registry import ModelEntry, Registry
from mae_bench.pytest_plugin.distribution import DEATHS, Distribution


class Worker:
    """What pytest-xdist's controller sees of a worker, and what the worker does: it runs an item once it knows the one
    after it, or that there is none.
    """

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.ready = self.shutting_down = False
        self.gateway = SimpleNamespace(id="gw")

    def send_runtest_some(self, indices: list[int]) -> None:
        assert not self.shutting_down
        self.sent += indices

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
        options = SimpleNamespace(loadscopereorder=True, tx=["popen"] * workers, maxworkerrestart=None)
        config: Any = SimpleNamespace(
            option=options, hook=hook, getvalue=lambda name: {"dist": "load", "tx": options.tx}[name]
        )
        harness: Any = SimpleNamespace(
            registry=registry, options={"model": []}, timm_models={}, run_path=folder, config=config, began=True
        )
        self.distribution = Distribution(harness)
        self.scheduler = self.distribution.pytest_xdist_make_scheduler(config, Producer("test", enabled=False))
        self.ids = ids
        self.running: list[Worker] = []
        self.shutting_down = False
        self.done: list[str] = []
        self.died_in: list[str] = []
        self.starting = [Worker() for _ in range(workers)]
        for worker in [*self.starting, *self.starting]:
            self.go_on(worker)

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
            if worker in self.scheduler.nodes:
                assert self.scheduler.remove_node(worker) is None
        else:
            index = worker.sent.pop(0)
            self.done.append(self.ids[index])
            self.scheduler.mark_test_complete(worker, index)
        self.look()

    def die(self, worker: Worker) -> None:
        running = worker in self.running
        (self.running if running else self.starting).remove(worker)
        died_in = self.scheduler.remove_node(worker) if worker in self.scheduler.nodes else None
        assert died_in == (self.ids[worker.sent[0]] if worker.sent else None)
        if died_in is not None:
            self.died_in.append(died_in)
            self.distribution.pytest_handlecrashitem(died_in, SimpleNamespace(longrepr=""))
        self.shutting_down = False
        self.starting.append(Worker())
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
    folder = Path("nowhere")
    models = [f"m{i}" for i in range(len(sizes))]
    ids = [f"test_x.py::test_cell[{m}-box_blur-{k}.00]" for m, n in zip(models, sizes, strict=True) for k in range(n)]
    ids += [f"test_y.py::test_{i}" for i in range(others)]
    session = Session(ids, models, workers, folder)
    for kind, which in events:
        if kind == 0 and session.starting:
            session.go_on(session.starting[which % len(session.starting)])
        elif kind == 1 and (alive := session.running + session.starting):
            session.die(alive[which % len(alive)])
        elif session.able:
            session.run(session.able[which % len(session.able)])
    while session.starting or session.running:  # and no more deaths
        if session.starting:
            session.go_on(session.starting[0])
        else:
            assert session.able, "every worker waits"
            session.run(session.able[0])
    ended = Counter(session.done + session.died_in + session.unrun)
    assert ended == Counter(ids)
    # cells of a model that has finished something are never given up
    for item in session.unrun:
        model = item.partition("[")[2].partition("-")[0]
        assert not [done for done in session.done if f"[{model}-" in done]
        assert len([death for death in session.died_in if f"[{model}-" in death]) >= DEATHS
