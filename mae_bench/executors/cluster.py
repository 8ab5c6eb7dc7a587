"""Items on many machines: groups of them become Ray tasks, and what a dead worker left undone is done by another.

An item is known by its id alone, and what is reported of it is handed on as it comes. Ray is imported when a cluster is
asked for (extra ``[cluster]``).
"""

from __future__ import annotations

import math
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mae_bench.errors import BenchError

ATTEMPTS = 3
"""Workers that may die in one item, or of a model of which nothing has ever finished, before it is given up."""
BACKLOG = 2
"""Tasks that are handed to the cluster for each that it can run at once, so that none of its places waits."""
PATIENCE = 10.0
"""Seconds in which somebody has to answer at the address of a cluster."""
OBJECT_STORE = 100 * 2**20
"""Bytes of shared memory for the objects of a cluster that is started here: tasks exchange ids and reports."""
Say = Callable[[str, Any], None]
Run = Callable[[Sequence[str], Say], str]
"""Runs items by their ids, says what there is to report of each, and returns why it could not, or nothing."""


class ClusterError(BenchError):
    """A cluster that cannot be used."""


# --------------------------------------------------------------------------- what is left when a worker dies


@dataclass(frozen=True)
class Group:
    """Items of one model that one task runs, so that it loads the model once."""

    model: str
    items: tuple[str, ...]


@dataclass
class Ledger:
    """What of the groups that were sent out has no report yet, and in which items workers died.

    ``left`` holds for the number of a task the ids of its items that are still to come, in their order, ``again`` the
    items that were begun again.
    """

    left: dict[int, list[str]] = field(default_factory=dict)
    model: dict[int, str] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)
    tasks: int = 0
    again: set[str] = field(default_factory=set)
    _finished: set[str] = field(default_factory=set)
    _barren: Counter[str] = field(default_factory=Counter)

    def begin(self, group: Group) -> int:
        """Number of the task that runs ``group``."""
        self.tasks += 1
        self.left[self.tasks] = list(group.items)
        self.model[self.tasks] = group.model
        return self.tasks

    def finish(self, task: int, item: str) -> None:
        """There is a report of ``item``."""
        self.left[task].remove(item)
        self._finished.add(self.model[task])

    def end(self, task: int) -> list[str]:
        """Items of a task that has ended of itself, and of which it has reported nothing."""
        del self.model[task]
        return self.left.pop(task)

    def die(self, task: int) -> tuple[Group | None, dict[str, str]]:
        """What is to be run again since the worker of ``task`` died in the first item that it had not reported, and why
        others are not.
        """
        model = self.model[task]
        items = self.end(task)
        if not items:
            return None, {}
        died_in = items[0]
        self.deaths[died_in] += 1
        given_up: dict[str, str] = {}
        if model not in self._finished:
            self._barren[model] += 1
            if self._barren[model] >= ATTEMPTS:
                given_up = dict.fromkeys(
                    items,
                    f"not run: {model} ended {self._barren[model]} workers before anything of it had finished; "
                    "--mae-resume tries it",
                )
        if self.deaths[died_in] >= ATTEMPTS or given_up:
            given_up[died_in] = (
                f"{self.deaths[died_in]} worker(s) died in it: killed, perhaps for memory, or native code crashed; "
                "what is finished is kept, and --mae-resume runs the rest"
            )
        # what another task still works on is given up by nobody
        shared = {item for item in given_up if any(item in left for left in self.left.values())}
        items = [item for item in items if item not in given_up]
        given_up = {item: why for item, why in given_up.items() if item not in shared}
        if died_in in items:
            self.again.add(died_in)
        return (Group(model, tuple(items)) if items else None), given_up


# --------------------------------------------------------------------------- the cluster


@dataclass(frozen=True)
class Failure:
    """Why there is no report of an item."""

    text: str


class Cluster:
    """A Ray cluster: the one at ``address``, or one that is started on this machine and ends with this session.

    A task asks for ``cpus`` and, where ``gpu`` is true, for a GPU; None asks for one where the cluster has some.
    """

    def __init__(self, address: str | None, gpu: bool | None, cpus: int) -> None:
        self.address = address
        self.ledger = Ledger()
        self.reports: dict[str, Any] = {}
        self._settled: set[str] = set()
        self._waiting: deque[Group] = deque()
        self._running: dict[Any, int] = {}
        self._ray = _connected(address)
        try:
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            if gpu is None:
                gpu = any(node.get("GPU", 0) for node in nodes)
            self.task = {"CPU": cpus, "GPU": int(gpu)}
            self.nodes = len(nodes)
            self.at_once = places(nodes, self.task)
            if not self.at_once:
                raise ClusterError(_never(nodes, self.task, address))
        except BaseException:
            self.close()
            raise

    def start(self, groups: Iterable[Group], run: Run) -> None:
        """Have ``groups`` run by ``run``, which the nodes import by its name."""
        ray = self._ray
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # one place through which everything comes in its order, beside this process, which cannot outlive it
        self._inbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Inbox).remote()
        self._coming = self._inbox.take.remote()
        # Ray's own retries would not be counted, and would run again what is reported
        self._task = ray.remote(num_cpus=self.task["CPU"], num_gpus=self.task["GPU"], max_retries=0)(_run)
        self._run = run
        self._waiting.extend(groups)
        self._send()

    def report(self, item: str) -> Any:
        """What is reported of ``item``, or a :class:`Failure`, once it is known.

        Raises:
            ClusterError: the cluster has gone.
        """
        while item not in self.reports:
            self._step()
        return self.reports.pop(item)

    @property
    def deaths(self) -> int:
        """Workers that died in an item."""
        return self.ledger.deaths.total()

    def stop(self) -> None:
        """End what still runs."""
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running.clear()
        self._waiting.clear()

    def everywhere(self, function: Callable[[], None]) -> None:
        """Call ``function`` once on every node that answers in time."""
        ray = self._ray
        try:
            nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
            on = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
            task = ray.remote(num_cpus=0)(_call)
            tasks = [task.options(scheduling_strategy=on(node, soft=False)).remote(function) for node in nodes]
            ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE)
        except ray.exceptions.RayError:  # the cluster has gone, and with it what is on its nodes
            return

    def close(self) -> None:
        """End what still runs, and leave the cluster, or end it where it was started here."""
        self.stop()
        self._ray.shutdown()

    def _send(self) -> None:
        for group in list(islice(self._waiting, max(0, BACKLOG * self.at_once - len(self._running)))):
            self._waiting.popleft()
            number = self.ledger.begin(group)
            self._running[self._task.remote(number, self._run, group.items, self._inbox)] = number

    def _step(self) -> None:
        """Wait for the next thing to happen."""
        ray = self._ray
        try:
            (ready, *_), _ = ray.wait([self._coming, *self._running], num_returns=1)
            if ready in self._running:
                # it has ended, but what it said before may still be on its way: the end comes behind it
                number, problem, died = self._running.pop(ready), "", False
                try:
                    problem = ray.get(ready)
                except ray.exceptions.RayTaskError as error:
                    problem = f"its task raised {error.cause!r}" if error.cause else str(error)
                except ray.exceptions.RayError:
                    died = True
                ray.get(self._inbox.put.remote(number, None, (problem, died)))
                return
            said = ray.get(ready)
            self._coming = self._inbox.take.remote()
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"the cluster {self.address or 'of this machine'} has gone ({str(error).partition(chr(10))[0]}): "
                "what is finished is kept, and --mae-resume runs the rest"
            ) from error
        for number, item, report in said:
            if item is not None:
                self.ledger.finish(number, item)
                self._settle({item: report})
            else:
                self._end(number, *report)
        self._send()

    def _end(self, number: int, problem: str, died: bool) -> None:
        again, given_up = self.ledger.die(number) if died else (None, dict.fromkeys(self.ledger.end(number), problem))
        if again is not None:
            self._waiting.appendleft(again)
        self._settle({item: Failure(text) for item, text in given_up.items()})

    def _settle(self, reports: Mapping[str, Any]) -> None:
        """The first report counts of an item that several tasks run together."""
        self.reports |= {item: report for item, report in reports.items() if item not in self._settled}
        self._settled |= reports.keys()


class Inbox:
    """An actor that holds what tasks say until it is taken, in the order in which it came."""

    def __init__(self) -> None:
        import asyncio

        self._said: list[tuple[int, str | None, Any]] = []
        self._some = asyncio.Event()

    async def put(self, task: int, item: str | None, report: Any) -> None:
        self._said.append((task, item, report))
        self._some.set()

    async def take(self) -> list[tuple[int, str | None, Any]]:
        """All that has come since, once there is something."""
        await self._some.wait()
        self._some.clear()
        said, self._said = self._said, []
        return said


def _run(number: int, run: Run, items: Sequence[str], inbox: Any) -> str:
    """What a task does."""
    import ray

    return run(items, lambda item, report: ray.get(inbox.put.remote(number, item, report)))


def _call(function: Callable[[], None]) -> None:
    function()


def places(nodes: Iterable[Mapping[str, float]], task: Mapping[str, float]) -> int:
    """How many tasks that ask for so much find a place on ``nodes`` at once.

    >>> places([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0}], {"CPU": 2, "GPU": 0})
    5
    >>> places([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0}], {"CPU": 2, "GPU": 1})
    2
    """
    asked = {name: count for name, count in task.items() if count}
    return sum(min(math.floor(node.get(name, 0) / count) for name, count in asked.items()) for node in nodes)


def _never(nodes: Sequence[Mapping[str, float]], task: Mapping[str, float], address: str | None) -> str:
    """Why a task never finds a place."""
    asks = " and ".join(_counted(count, name) for name, count in task.items() if count)
    has = "; ".join(sorted({", ".join(_counted(node.get(name, 0), name) for name in task) for node in nodes}))
    where = f"the cluster at {address}" if address else "the cluster of this machine"
    return (
        f"--mae-executor ray: a task asks for {asks} on one node, and no node of {where} has that (they have {has}), "
        "so that it would wait for ever: use --mae-device cpu, fewer --mae-ray-cpus, or a cluster with such nodes"
    )


def _counted(count: float, name: str) -> str:
    return f"{count:g} {name}{'s' * (count != 1)}"


def _look_for(address: str) -> None:
    """Ray itself would look for minutes.

    Raises:
        ValueError: ``address`` is none.
        OSError: nobody answers there.
    """
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal():
        raise ValueError("give auto or HOST:PORT")
    socket.create_connection((host, int(port)), PATIENCE).close()


def _connected(address: str | None) -> Any:
    """Ray, connected.

    Raises:
        ClusterError: it is not installed, or there is no cluster at ``address``.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise ClusterError(
            f"--mae-executor ray needs Ray ({error}): python -m pip install 'mae-bench[cluster]'"
        ) from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        else:
            _look_for(address)
            ray.init(address, **quiet)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = f"no cluster can be reached at --mae-ray-address {address}" if address else "no cluster can be started"
        raise ClusterError(f"{where} ({error}): start one with `ray start --head`, or leave the address out") from error
    return ray
