"""What one pytest session knows of its run."""

from __future__ import annotations

import difflib
import math
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from mae_bench.cells import Cell, near_name
from mae_bench.errors import BenchError
from mae_bench.models import ModelError
from mae_bench.models.registry import ModelEntry, Registry
from mae_bench.pytest_plugin.options import OPTIONS, value_of
from mae_bench.suites import SuiteEntry, suite_entry

if TYPE_CHECKING:
    from mae_bench.baseline import Baseline
    from mae_bench.claims import Finding
    from mae_bench.evidence import Evidence
    from mae_bench.executors.local import LocalExecutor
    from mae_bench.mirror import Mirror
    from mae_bench.regression import Rule
    from mae_bench.sinks import Sink
    from mae_bench.store import RunDirectory


NO_GRAPHS = "--mae-cuda-graphs: this run is on a CPU, which has none; leave it out, or use --mae-device cuda"


@dataclass
class Harness:
    """What one pytest session knows of its run: ``collected`` are the ids of its cells, ``represented`` maps models to
    the conditions whose representation it asks for, ``lacking`` are families that tests ask for and that have no cells.
    ``mirror`` sends the files of the run to an object store where the run is to be there. ``sinks`` take what it
    finishes, each under what the user wrote. ``lost`` says why what the run has finished is not at hand, if it is not.
    """

    config: pytest.Config
    suite: SuiteEntry
    options: dict[str, Any]
    run_path: Path
    mirror: Mirror | None = None
    sinks: dict[str, Sink] = field(default_factory=dict)
    registry: Registry = field(default_factory=Registry)
    collected: set[str] = field(default_factory=set)
    represented: dict[str, set[str]] = field(default_factory=dict)
    lacking: set[str] = field(default_factory=set)
    began: bool = False
    lost: str = ""

    @classmethod
    def of(cls, config: pytest.Config) -> Harness:
        options = {option.name: value_of(config, option) for option in OPTIONS}
        try:
            suite = suite_entry(options["suite"])
        except BenchError as error:
            raise pytest.UsageError(f"--mae-suite: {error}") from error
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", options["device"]):
            hint = near_name(options["device"], ("auto", "cpu", "cuda", "cuda:0"))
            raise pytest.UsageError(f"--mae-device {options['device']}: {hint}")
        if not re.fullmatch(r"auto|[1-9]\d*", options["batch-size"]):
            raise pytest.UsageError(f"--mae-batch-size {options['batch-size']}: give auto or a positive number")
        if options["cuda-graphs"] and options["device"] == "cpu":
            raise pytest.UsageError(NO_GRAPHS)
        for name, bound in (("limit", 2**31), ("seed", 2**32)):
            if options[name] is not None and not 0 <= options[name] < bound:
                raise pytest.UsageError(f"--mae-{name} {options[name]}: give a number from 0 to {bound - 1}")
        for name in ("min-drop", "tolerance"):
            if not 0 <= options[name] <= 100:
                raise pytest.UsageError(f"--mae-{name} {options[name]}: give points of accuracy, from 0 to 100")
        if not 0 <= options["cell-timeout"] < math.inf:
            raise pytest.UsageError(
                f"--mae-cell-timeout {options['cell-timeout']}: give seconds, or 0 for as long as it takes"
            )
        if options["executor"] == "ray":
            _check_for_cluster(config, options)
        worker = getattr(config, "workerinput", None)
        if worker is not None:
            options["resume"] = worker.get("mae_resume", options["resume"])
            return cls(config, suite, options, Path(worker["mae_run"]))
        sinks = _sinks(options["sink"], cls.root(config) / "results")
        if isinstance(options["run"], str):
            from mae_bench.mirror import Mirror

            try:
                mirror = Mirror(options["run"])
            except BenchError as error:
                raise pytest.UsageError(f"--mae-run {error}") from error
            return cls(config, suite, options, mirror.folder, mirror, sinks)
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        run_path = options["run"] or cls.root(config) / "results" / "runs" / f"{stamp}-{secrets.token_hex(2)}"
        return cls(config, suite, options, run_path, sinks=sinks)

    @staticmethod
    def root(config: pytest.Config) -> Path:
        """Where ``results/`` lies: beside the ini file, without one in the working directory."""
        return config.rootpath if config.inipath is not None else config.invocation_params.dir

    @property
    def baseline_path(self) -> Path | None:
        given = self.options["baseline"]
        if given == "none":
            return None
        return Path(given) if given is not None else self.root(self.config) / "results" / self.suite.name

    @cached_property
    def baseline(self) -> Baseline | None:
        from mae_bench.baseline import Baseline

        return Baseline.load(self.baseline_path, self.suite.name) if self.baseline_path is not None else None

    @cached_property
    def evidence_path(self) -> Path | None:
        """The evidence beside the baseline, where there is some."""
        path = self.baseline_path / "evidence.npz" if self.baseline_path is not None else None
        return path if path is not None and path.exists() else None

    @cached_property
    def evidence(self) -> Evidence:
        """Raises:
        BenchError: it is unreadable.
        """
        from mae_bench.evidence import Evidence

        assert self.evidence_path is not None
        return Evidence.load(self.evidence_path)

    @cached_property
    def decided(self) -> tuple[dict[str, Finding], dict[str, str]]:
        """Every contrast as the committed files decide it now, and the verdicts that are committed beside them.

        Raises:
            BenchError: a file is missing or unreadable.
        """
        from mae_bench.claims import findings, stored_verdicts
        from mae_bench.contrasts import ClaimError, Measured

        path = self.evidence_path
        assert path is not None
        table = path.with_name("claims.csv")
        if self.baseline is None or not table.exists():
            raise ClaimError(f"{path} needs cells.csv, outcomes.npz and claims.csv beside it: restore them")
        found = findings(Measured.of(self.baseline, self.evidence))
        return {f.contrast.name: f for f in found}, stored_verdicts(table.read_text())

    @cached_property
    def rule(self) -> Rule:
        from mae_bench.regression import Rule

        names = [entry.name for entry, _ in self.registry.entries.values()]
        cells = self.baseline.cells_of([*names, *self.timm_models]) if self.baseline is not None else 0
        # as a fraction of images is written, so that a drop of just as many points is not below it
        least, most = (round(self.options[name] / 100, 12) for name in ("min-drop", "tolerance"))
        return Rule(max(1, cells), least, most)

    @cached_property
    def timm_models(self) -> dict[str, ModelEntry]:
        """Models that ``--mae-model`` adds. Only this option imports timm at collection."""
        found = {}
        for pattern in self.options["model"]:
            import timm

            names = timm.list_models(pattern, pretrained=True)
            if not names:
                close = difflib.get_close_matches(pattern, timm.list_models(pretrained=True), n=1)
                hint = f"did you mean {close[0]}?" if close else "timm.list_models(pretrained=True) lists them"
                raise ModelError(f"--mae-model {pattern}: no pretrained timm model matches; {hint}")
            try:
                found.update({name: ModelEntry(name, summary="pretrained, from timm") for name in names})
            except ModelError as error:
                raise ModelError(
                    f"--mae-model {pattern}: {str(error).partition(';')[0]}; narrow the pattern, or return the timm "
                    "model from an @model_fixture of another name"
                ) from error
        return found

    @cached_property
    def weights(self) -> tuple[dict[str, Path], list[Path]]:
        """Files of ``--mae-weights`` by the model that they are for, and those of the MAE authors, whose names say it.

        Raises:
            ModelError: there is no such file, no such model, or it is not said which model a file is for.
        """
        base = self.config.invocation_params.dir
        named: dict[str, Path] = {}
        authors: list[Path] = []
        known = {*self.timm_models, *self.registry.entries, *([self.suite.salience] if self.suite.salience else [])}
        for given in self.options["weights"]:
            name, _, file = given.rpartition("=")
            path = base / Path(file).expanduser()
            if not path.is_file():
                raise ModelError(f"--mae-weights {given}: there is no file {path}")
            if name and name not in known:
                raise ModelError(f"--mae-weights {given}: no model is called {name!r}: {near_name(name, known)}")
            if name or len(self.timm_models) == 1:
                named[name or next(iter(self.timm_models))] = path
                continue
            from mae_bench.models.checkpoints import PUBLISHED_NAMES

            if path.name not in PUBLISHED_NAMES:
                raise ModelError(
                    f"--mae-weights {given}: say which model the file is for, as NAME={file}; only "
                    f"{', '.join(sorted(PUBLISHED_NAMES))} are known by their names"
                )
            authors.append(path)
        return named, authors

    def models(self, path: Path, encoders: bool = False) -> list[ModelEntry]:
        """Models that tests in the file ``path`` evaluate, those without a head only with ``encoders``.

        Raises:
            BenchError: there is none, or a name is unknown.
        """
        registered = self.registry.models(self.suite.name, path, self.options["full"], encoders)
        found = [*registered, *(e for e in self.timm_models.values() if e not in registered)]
        if not found:
            others = sorted({s for entry, _ in self.registry.entries.values() for s in entry.suites or ()})
            bound = f" (registered models are bound to {', '.join(others)})" if others else ""
            raise ModelError(
                f"no model is registered for suite {self.suite.name!r}{bound}: add an @model_fixture to a conftest.py"
            )
        return found

    @cached_property
    def run_directory(self) -> RunDirectory:
        """The directory of this run, held against other sessions, with what is to be finished in it."""
        from mae_bench.store import RunDirectory

        is_worker = hasattr(self.config, "workerinput")
        resume = self.options["resume"] or is_worker
        if self.mirror is not None:  # what an earlier session left here gives way to what is there
            run = RunDirectory.create(self.run_path, resume=True)
            run.hold()
            self.mirror.begin(resume)
            run.check(resume)
            return run
        run = RunDirectory.create(self.run_path, resume)
        if not is_worker:
            run.hold()
        return run

    @cached_property
    def plan(self) -> None:
        """Written when it is first asked for: what this session set out to finish."""
        represented = [f"{model}-{condition}" for model, each in self.represented.items() for condition in each]
        self.run_directory.write_plan(self.collected, represented)

    @property
    def limit(self) -> int:
        """Images of a cell that are asked for; 0 for all."""
        given: int | None = self.options["limit"]
        return self.suite.default_limit if given is None else given

    @cached_property
    def executor(self) -> LocalExecutor:
        from mae_bench.machine import ask_for_large_pages, cores, keep_freed_memory

        ask_for_large_pages()  # before the first tensor
        keep_freed_memory()
        from mae_bench.executors.local import LocalExecutor, resolved_device, resolved_dtype
        from mae_bench.settings import Settings
        from mae_bench.store import RunDirectory

        batch = self.options["batch-size"]
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        told: dict[str, Any] = getattr(self.config, "workerinput", {})
        device = resolved_device(self.options["device"], told.get("mae_place", 0))
        if self.options["cuda-graphs"] and device == "cpu":
            raise BenchError(NO_GRAPHS)
        settings = Settings(
            device=device,
            dtype=resolved_dtype(self.options["dtype"], device),
            batch_size=0 if batch == "auto" else int(batch),
            seed=self.options["seed"],
            limit=self.limit,
            threads=told.get("mae_threads") or max(1, cores() // workers),
            suite_view=self.options["view"] == "suite",
            jackknife=self.options["full"],
            compiles=self.options["compile"],
            memory_format=self.options["memory-format"],
            graphs=self.options["cuda-graphs"],
            prefetch=self.options["prefetch"] == "stream",
        )
        run = RunDirectory(self.run_path)  # made when the first cell runs
        return LocalExecutor(
            self.suite,
            self.options["data"],
            settings,
            run,
            self.options["resume"],
            self.represented,
            Decoding(self.config).report,
            self.weights[0],
            told.get("mae_session", ""),
            told.get("mae_joint", ""),
        )

    def check_before_run(self) -> None:
        """Whatever would spoil the run and can be seen before its first cell.

        Raises:
            UsageError: with the message to show.
        """
        try:
            self.suite.check(self.options["data"])
            _ = self.weights
            from mae_bench.history import check_may_update, in_continuous_integration

            if self.options["update-baseline"]:
                reason = self.options["reason"] or ""
                check_may_update(self.baseline_path, reason, self.root(self.config), self.run_path)
            elif self.baseline_path is not None and self.baseline is None and in_continuous_integration():
                raise BenchError(f"{self.how_to_make_a_baseline()}; --mae-baseline none runs without one")
            if self.baseline_path is not None and self.run_path.resolve() == self.baseline_path.resolve():
                raise BenchError(
                    f"--mae-run {self.run_path} is the baseline, whose files a run would write over: name another"
                )
            _ = self.run_directory
        except BenchError as error:
            raise pytest.UsageError(str(error)) from error
        self.began = True

    def how_to_make_a_baseline(self) -> str:
        return (
            f"there is no baseline in {self.baseline_path}: make one with --mae-limit 0 --mae-update-baseline "
            "--mae-reason TEXT and commit it"
        )

    def load(self, name: str, request: pytest.FixtureRequest) -> None:
        """Have the executor hold the model called ``name``.

        Raises:
            BenchError: it is unknown or cannot be used.
        """
        if name in self.timm_models:

            def build() -> object:
                from mae_bench.models.checkpoints import pretrained

                return pretrained(name, *([self.weights[0][name]] if name in self.weights[0] else []))

            self.executor.load(self.timm_models[name], build)
        else:
            self.registry.get(name)
            request.getfixturevalue(name)  # the fixture loads itself, so that pytest resolves what it asks for

    def end(self) -> None:
        """Let go of what only a running session needs: its scratch, and its hold on the run directory."""
        if "run_directory" in vars(self) and not hasattr(self.config, "workerinput"):
            self.run_directory.remove_scratch()
            self.run_directory.release()
            if self.mirror is not None and self.mirror.complete:
                self.mirror.forget()

    @property
    def place(self) -> str:
        """Where the run is, as a terminal may be given it."""
        from mae_bench.markup import terminal_text

        return terminal_text(self.mirror.url if self.mirror is not None else str(self.run_path))

    def deadline(self, cell: Cell) -> AbstractContextManager[None]:
        """Ends what ``cell`` does after ``--mae-cell-timeout`` seconds: it, or where nothing else helps this process,
        whose other cells are then run by the worker that takes its place, or by ``--mae-resume``.
        """
        from mae_bench.executors.deadline import deadline, end_process

        def give_up(message: str) -> None:
            kept = f"finished cells are kept in {self.run_path}"
            end_process(self.said_on, f"mae_bench: {message}: its process is ended; {kept}, --mae-resume goes on")

        return deadline(self.options["cell-timeout"], f"cell {cell.id}", give_up, traceback_on=self.said_on)

    @cached_property
    def said_on(self) -> int:
        """File descriptor of the standard error that pytest does not capture, if it was asked for in time."""
        return os.dup(2)

    def release_unless(self, name: str | None) -> None:
        """Free the model held unless it is the one called ``name``."""
        if "executor" in vars(self) and self.executor.held not in (None, name):
            self.executor.release()


class Decoding:
    """Says on the terminal how far the images of a suite are decoded, past pytest's capture; workers have none."""

    def __init__(self, config: pytest.Config) -> None:
        self.terminal: Any = config.pluginmanager.getplugin("terminalreporter")
        self.capture: Any = config.pluginmanager.getplugin("capturemanager")
        self.progress: Any = config.pluginmanager.getplugin("mae_bench_progress")
        self.said = time.monotonic()

    def report(self, done: int, total: int) -> None:
        """A line every few seconds, so that what ends sooner says nothing."""
        if self.terminal is None or time.monotonic() - self.said < 5:
            return
        self.said = time.monotonic()
        suspended = self.capture.global_and_fixture_disabled() if self.capture is not None else nullcontext()
        with suspended:
            if self.progress is not None:
                self.progress.erase()
            self.terminal.ensure_newline()
            self.terminal.write_line(f"mae_bench: {done:,} of {total:,} images decoded")


HARNESS = pytest.StashKey[Harness]()


def _check_for_cluster(config: pytest.Config, options: Mapping[str, Any]) -> None:
    """Raises:
    UsageError: one of the ``options`` does not go with ``--mae-executor ray``.
    """
    if options["ray-cpus"] < 1:
        raise pytest.UsageError(f"--mae-ray-cpus {options['ray-cpus']}: give a positive number")
    if ":" in options["device"]:
        raise pytest.UsageError(
            f"--mae-device {options['device']}: on a Ray cluster each task has a GPU of its own; use --mae-device cuda"
        )
    address = options["ray-address"] or ""
    if address.startswith("ray://"):
        raise pytest.UsageError(
            f"--mae-ray-address {address}: pytest has to run on a node of the cluster; give auto or HOST:PORT"
        )
    if getattr(config.option, "tx", None) or getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("--mae-executor ray: leave out -n, since a cluster has workers of its own")
    if getattr(config.option, "usepdb", False):
        raise pytest.UsageError("--mae-executor ray: leave out --pdb, since cells run in other processes")


def _sinks(given: Sequence[str], folder: Path) -> dict[str, Sink]:
    """Those that ``given`` names.

    Raises:
        UsageError: one cannot be used.
    """
    if not given:
        return {}
    from mae_bench.sinks import sink

    try:
        return {text: sink(text, folder) for text in given}
    except BenchError as error:
        raise pytest.UsageError(f"--mae-sink {error}") from error


def fail(error: BenchError, cause: BaseException | None = None) -> NoReturn:
    """Fail the test with the message of ``error`` alone: without ``from``, pytest would show its history too."""
    message = "\n".join([str(error), *getattr(error, "__notes__", ())])
    raise pytest.fail.Exception(message, pytrace=False) from cause
