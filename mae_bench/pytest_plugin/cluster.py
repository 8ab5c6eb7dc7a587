"""``--mae-executor ray``: the items of models run in sessions of pytest on a Ray cluster, which are to this one what
pytest-xdist's workers are to theirs, and this session says of each what its worker has reported, in its own order.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mae_bench.errors import BenchError
from mae_bench.grouping import grouped
from mae_bench.images import BLOCK, PROBE_BLOCKS
from mae_bench.pytest_plugin.collection import matrix_path, model_of
from mae_bench.pytest_plugin.harness import Harness

if TYPE_CHECKING:
    from mae_bench.executors.cluster import Cluster, Say
    from mae_bench.mirror import Mirror

PASSED_ON = ("MAE_BENCH_", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "CI")
"""Beginnings of the names of environment variables that a worker has from this session, not from its node."""
SHOWN = 2000
"""Last characters of what the session of a worker printed that are shown where it could not run its items."""


class Driver:
    """Sends the items of models to a cluster before the first is due, and waits for the reports of each when it is."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.cluster: Cluster | None = None
        self.session = secrets.token_hex(4)
        self._left: Counter[str | None] = Counter()
        self._told: list[str] = []
        self._started = False

    @pytest.hookimpl(tryfirst=True)  # before there is a run directory
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Join the cluster, and refuse what it can never do."""
        if session.config.option.collectonly or session.testsfailed or not any(map(model_of, session.items)):
            return
        from mae_bench.executors.cluster import Cluster

        options = self.harness.options
        gpu = {"cpu": False, "auto": None}.get(options["device"], True)
        try:
            self.cluster = Cluster(options["ray-address"], gpu, options["ray-cpus"])
        except BenchError as error:
            raise pytest.UsageError(str(error)) from error

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Have the cluster begin, and end what it still does when this session has what it wants."""
        try:
            if self.cluster is not None:
                self._start(session, self.cluster)
            return (yield)
        finally:
            self._end()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Say of an item what its worker has reported."""
        if self.cluster is None or model_of(item) is None:
            return None
        from mae_bench.executors.cluster import Failure

        hook, config = item.ihook, item.config
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        try:
            said = self.cluster.report(item.nodeid)
        except BenchError as error:
            said = Failure(str(error))
            item.session.shouldfail = "the cluster has gone"
        if isinstance(said, Failure):
            failed = pytest.TestReport(item.nodeid, item.location, {}, "failed", said.text, "call")
            hook.pytest_runtest_logreport(report=failed)
        else:
            for data in said["reports"]:
                report = config.hook.pytest_report_from_serializable(config=config, data=data)
                hook.pytest_runtest_logreport(report=report)
            if said["shouldfail"]:
                item.session.shouldfail = said["shouldfail"]
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        self._count_down(model_of(item))
        return True

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._told:
            terminalreporter.section("mae_bench: cluster")
            terminalreporter.write_line("\n".join(self._told))

    def pytest_unconfigure(self) -> None:
        self._end()

    def _start(self, session: pytest.Session, cluster: Cluster) -> None:
        from mae_bench.executors.cluster import Group
        from mae_bench.store import SESSION

        harness, config = self.harness, session.config
        try:
            _ = harness.plan
            token = (harness.run_path / SESSION).read_bytes()
            if harness.mirror is not None:
                harness.mirror.send()
        except (BenchError, OSError) as error:
            raise pytest.UsageError(str(error)) from error
        items = [item for item in session.items if model_of(item)]
        paths = [matrix_path(item) for item in items]
        groups = [
            Group(paths[group[0]][0], tuple(items[position].nodeid for position in group))
            for group in grouped(paths, cluster.at_once)
        ]
        # where there are more places than cells, several tasks share the images of one; a clean one comes last, whose
        # first images a process of each node passes alone
        clean = {items[i].nodeid for i, path in enumerate(paths) if path[1:2] == ("clean",)}
        divisible = {items[i].nodeid for i, path in enumerate(paths) if path[1:]}
        if harness.limit and harness.limit <= PROBE_BLOCKS * BLOCK:
            divisible -= clean
        single = [group for group in groups if len(group.items) == 1 and divisible.issuperset(group.items)]
        single.sort(key=lambda group: clean.issuperset(group.items))
        spare = max(0, cluster.at_once - len(groups))
        if harness.limit:  # more tasks than blocks of images would find nothing to do
            spare = min(spare, len(single) * (max(2, -(-harness.limit // BLOCK)) - 1))
        # which they do under the locks of a file system, and a block in each forward pass
        batch = harness.options["batch-size"]
        alone = harness.mirror is not None or (batch != "auto" and int(batch) > BLOCK)
        helping = [] if alone else list(islice(cycle(single), spare))
        joint = {item for group in helping for item in group.items}
        given = Given(
            arguments=tuple(map(str, config.invocation_params.args)),
            folder=str(config.invocation_params.dir),
            command=tuple(sys.argv),
            path=tuple(str(Path(entry).absolute()) for entry in sys.path),
            environment=passed_on(),
            run=harness.mirror.url if harness.mirror is not None else str(harness.run_path.absolute()),
            token=token,
            session=self.session,
            threads=harness.options["ray-cpus"],
            joint=frozenset(joint),
        )
        self._left = Counter(path[0] for path in paths)
        self._started = True
        cluster.start([*groups, *helping], partial(work, given))

    def _count_down(self, model: str | None) -> None:
        """One item less of a model; after its last what its workers have shared, node by node, is removed."""
        self._left[model] -= 1
        if model is None or self._left[model]:
            return
        remove_clean_passes(self.harness.run_path, self.session, model)
        mirror = self.harness.mirror
        if mirror is not None and self.cluster is not None:
            self.cluster.everywhere(partial(forget_model, mirror.url, passed_on(), self.session, model))

    def _end(self) -> None:
        """Leave the cluster, and write down what it took."""
        cluster, self.cluster = self.cluster, None
        if cluster is None:
            return
        cluster.stop()
        mirror = self.harness.mirror
        if self._started and mirror is not None:
            cluster.everywhere(partial(forget, mirror.url, passed_on()))
        cluster.close()
        if not self._started:  # what it would have written to is another session's
            return
        from mae_bench.store import RunDirectory

        run, ledger = RunDirectory(self.harness.run_path), cluster.ledger
        account = {
            "address": cluster.address,
            "nodes": cluster.nodes,
            "task": cluster.task,
            "tasks": ledger.tasks,
            "workers_died": cluster.deaths,
            "retried": sorted(ledger.again),
        }
        try:
            if mirror is not None:
                mirror.fetch()
        except BenchError as error:
            self.harness.lost = str(error)
        try:
            if (manifest := run.manifest()) is not None:
                run.write_manifest(manifest | {"cluster": account})
        except BenchError as error:
            self._told.append(str(error))
        self._told.append(f"{ledger.tasks} tasks on {cluster.nodes} nodes, {cluster.at_once} at once")
        if cluster.deaths:
            died = ", ".join(f"{item} ({count})" for item, count in sorted(ledger.deaths.items()))
            self._told.append(f"{cluster.deaths} workers died, and others went on where they were: {died}")


# --------------------------------------------------------------------------- in a task


@dataclass(frozen=True)
class Given:
    """What the session of a worker has from the one that sent it: the ``arguments`` of pytest, the ``folder`` and the
    module search ``path`` that they are meant for, and the ``run``: a directory, by whose ``token`` it is known, or its
    address in an object store. Workers
    of one ``session`` on one node share the clean passes of models, and wherever they are the images of the items that
    are ``joint``.
    """

    arguments: tuple[str, ...]
    folder: str
    command: tuple[str, ...]
    path: tuple[str, ...]
    environment: dict[str, str]
    run: str
    token: bytes
    session: str
    threads: int
    joint: frozenset[str] = frozenset()


def work(given: Given, items: Sequence[str], say: Say) -> str:
    """Run ``items`` in a session of pytest in this process, and say what it reports of each; why some are not reported,
    or nothing.
    """
    from mae_bench.mirror import Mirror, is_url
    from mae_bench.store import SESSION

    mirror = None
    try:
        os.chdir(given.folder)
        os.environ.update(given.environment)
        if is_url(given.run):
            mirror = Mirror(given.run)
            mirror.fetch(missing=True)
            seen = True
        else:
            seen = (Path(given.run) / SESSION).read_bytes() == given.token
    except BenchError as error:
        return f"node {socket.gethostname()}: {error}"
    except OSError:
        seen = False
    if not seen:
        return (
            f"node {socket.gethostname()} does not see {given.run} and {given.folder} as they are here: put the "
            "project and --mae-run where every node of the cluster sees them, such as NFS"
        )
    sys.path.extend(entry for entry in given.path if entry not in sys.path)
    sys.argv[:] = given.command  # which the manifest of the run shows
    worker = Worker(given, items, say, mirror)
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
        status = pytest.main(list(given.arguments), plugins=[worker])
    left = set(items) - worker.reported
    if not left:
        return ""
    shown = printed.getvalue()[-SHOWN:]
    return f"its session on node {socket.gethostname()} ended with status {int(status)} and without it:\n{shown}"


def passed_on() -> dict[str, str]:
    """Environment variables that a worker has from this session."""
    return {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}


def forget(url: str, environment: dict[str, str]) -> None:
    """Remove what a node has kept of the run at ``url``."""
    from mae_bench.mirror import Mirror

    os.environ.update(environment)
    Mirror(url).forget()


def forget_model(url: str, environment: dict[str, str], session: str, model: str) -> None:
    """Remove what the workers of a node have shared of ``model``."""
    from mae_bench.mirror import Mirror

    os.environ.update(environment)
    remove_clean_passes(Mirror(url).folder, session, model)


def remove_clean_passes(path: Path, session: str, model: str) -> None:
    from mae_bench.store import RunDirectory

    run = RunDirectory(path)
    for folder in run.scratch.glob(f"*-{session}"):
        shutil.rmtree(run.clean_pass(folder.name, model), ignore_errors=True)


class Worker:
    """Makes a session of pytest run these ``items`` alone, as part of another one's run, which lies in a ``mirror``
    where its nodes have no file system in common.
    """

    def __init__(self, given: Given, items: Sequence[str], say: Say, mirror: Mirror | None = None) -> None:
        self.given = given
        self.mirror = mirror
        self.items = items
        self.say = say
        self.reported: set[str] = set()
        self._reports: list[Any] = []
        self._session: pytest.Session | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        # by this, plugins know that another session keeps the books
        config.workerinput = {  # type: ignore[attr-defined]
            "workerid": f"ray{os.getpid()}",
            "workercount": 1,
            "testrunuid": Path(self.given.run).name,
            "mae_run": str(self.mirror.folder) if self.mirror is not None else self.given.run,
            "mae_resume": True,
            "mae_threads": self.given.threads,
            "mae_session": f"{socket.gethostname()}-{self.given.session}",  # between nodes, roundings may differ
            "mae_joint": self.given.session if self.given.joint.issuperset(self.items) else "",
        }
        config.option.basetemp = None  # which workers would remove for each other

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session
        session.config.pluginmanager.register(Selection(self.items), "mae_bench_selection")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        assert self._session is not None
        config = self._session.config
        self._reports.append(config.hook.pytest_report_to_serializable(config=config, report=report))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        assert self._session is not None
        if self.mirror is not None:  # before it is said to be finished
            (item,) = (item for item in self._session.items if item.nodeid == nodeid)
            try:
                self.mirror.send(model_of(item))
            except BenchError as error:
                config = self._session.config
                failed = pytest.TestReport(nodeid, item.location, {}, "failed", str(error), "teardown")
                self._reports.append(config.hook.pytest_report_to_serializable(config=config, report=failed))
        reports, self._reports = self._reports, []
        self.reported.add(nodeid)
        self.say(nodeid, {"reports": reports, "shouldfail": str(self._session.shouldfail or "")})


class Selection:
    """Leaves of all that is selected the items of a task, after everyone else, :class:`Order` too."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, None, None]:
        yield
        known = {item.nodeid: item for item in items}
        items[:] = [known[nodeid] for nodeid in self.ids if nodeid in known]
