"""The pytest plugin: options, model fixtures, the matrix of cells, the gate, and what is printed at the end.

Nothing heavy is imported until a cell runs, so that collection stays light.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, overload

import pytest

from mae_bench.cells import FAMILIES, GROUPS, Cell, near_name
from mae_bench.degradations import EVERY, Degradation, degradation
from mae_bench.degradations.ladders import RARE, levels
from mae_bench.errors import BenchError
from mae_bench.images import ImageError
from mae_bench.models import ModelError
from mae_bench.models.registry import ModelEntry, Registry
from mae_bench.suites import SuiteEntry, suite_entry

if TYPE_CHECKING:
    from mae_bench.baseline import Baseline
    from mae_bench.claims import Finding
    from mae_bench.comparison import Comparison
    from mae_bench.evaluate import CellResult, Evaluation
    from mae_bench.evidence import Evidence
    from mae_bench.executors.local import LocalExecutor
    from mae_bench.regression import Rule
    from mae_bench.representation import Representation
    from mae_bench.store import RunDirectory

# --------------------------------------------------------------------------- options

_MARKS = {
    **{family: f"cells of the {family} family" for family in FAMILIES},
    **{group: f"ImageNet-C cells of the {group} group, the extra ones too" for group in GROUPS},
    "representation": "items about what happens inside a model",
    "claims": "claims of the literature, decided from committed results",
}


@dataclass(frozen=True)
class Option:
    """A command-line option ``--mae-x`` that is also the ini key ``mae_x``."""

    name: str
    kind: str
    default: Any
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"mae_{self.name.replace('-', '_')}"


OPTIONS = (
    Option("suite", "string", "fashion_mnist", "suite of images to evaluate on", "NAME"),
    Option("data", "path", None, "directory of the suite's images", "DIR"),
    Option("limit", "int", None, "images, rounded up to whole blocks of 256, at least two; 0 = all", "N"),
    Option("full", "bool", False, "every level and every training seed"),
    Option("model", "args", [], "add the pretrained timm models whose names match; repeatable", "GLOB"),
    Option(
        "weights",
        "args",
        [],
        "weights of a model: NAME=FILE; FILE alone for the one --mae-model, or as the MAE authors name it; repeatable",
        "FILE",
    ),
    Option("device", "string", "auto", "auto, cpu, cuda or cuda:i", "DEVICE"),
    Option(
        "dtype",
        "string",
        "auto",
        "of the forward pass; auto is bfloat16 on a GPU, float32 elsewhere",
        "TYPE",
        ("auto", "float32", "bfloat16", "float16"),
    ),
    Option("compile", "bool", False, "have torch compile what lies between the taps of a model"),
    Option("batch-size", "string", "auto", "images per forward pass, or auto", "N"),
    Option("seed", "int", 0, "of the degradations", "N"),
    Option("view", "string", "model", "resize and crop of the model, or one for all", "VIEW", ("model", "suite")),
    Option("run", "path", None, "run directory (default results/runs/<run id>)", "DIR"),
    Option("resume", "bool", False, "reuse the finished cells of the run directory"),
    Option("baseline", "path", None, "committed results to compare with (default results/<suite>), or none", "DIR"),
    Option("update-baseline", "bool", False, "put the complete model-families of this run into the baseline"),
    Option("min-drop", "float", 0.3, "least drop in points that can be a regression", "P"),
    Option("tolerance", "float", 1.0, "points of top-1 that a passing cell surely has not lost", "P"),
    Option("strict", "bool", False, "inconclusive cells fail too"),
    Option("gate-indicators", "bool", False, "indicators that moved fail the run too"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mae_bench", "robustness benchmark (mae_bench)")
    kinds: dict[str, Any] = {"int": int, "float": float}
    for option in OPTIONS:
        flag, text = f"--mae-{option.name}", option.help
        if option.choices:
            text += f" ({', '.join(option.choices)})"
        if option.default not in (None, False, []):
            text += f"; default {option.default}"
        if option.kind == "bool":
            group.addoption(flag, dest=option.key, action="store_true", default=None, help=text)
        elif option.kind == "args":
            group.addoption(flag, dest=option.key, action="append", default=None, metavar=option.metavar, help=text)
        else:
            convert = kinds.get(option.kind, str)
            group.addoption(flag, dest=option.key, type=convert, default=None, metavar=option.metavar, help=text)
        kind: Any = "string" if option.kind == "path" else option.kind
        parser.addini(option.key, text, type=kind, default=None if option.kind != "args" else [])


def _value(config: pytest.Config, option: Option) -> Any:
    """The command line's value, else the ini file's, else the default. Paths on the command line are relative
    to the working directory, those in an ini file to that file.
    """
    given = config.getoption(option.key)
    base = config.invocation_params.dir
    if given is None:
        try:
            given = config.getini(option.key)
        except (pytest.UsageError, TypeError, ValueError) as error:
            raise pytest.UsageError(f"{option.key} in {config.inipath}: {error}") from error
        base = config.inipath.parent if config.inipath is not None else base
    if given is None or (option.kind in ("string", "path") and given == ""):
        given = option.default
    if given is not None and option.choices and given not in option.choices:
        raise pytest.UsageError(f"--mae-{option.name} {given}: {near_name(str(given), option.choices)}")
    if option.kind == "path" and given is not None and not (option.name == "baseline" and given == "none"):
        return base / Path(given).expanduser()
    return given


# --------------------------------------------------------------------------- registration


@overload
def model_fixture(function: Callable[..., Any], /) -> Any: ...
@overload
def model_fixture(
    *,
    suite: str | tuple[str, ...] | None = None,
    head: bool = True,
    arm: str | None = None,
    training_seed: int | None = None,
    full: bool = False,
) -> Callable[[Callable[..., Any]], Any]: ...
def model_fixture(
    function: Callable[..., Any] | None = None,
    /,
    *,
    suite: str | tuple[str, ...] | None = None,
    head: bool = True,
    arm: str | None = None,
    training_seed: int | None = None,
    full: bool = False,
) -> Any:
    """Register the function, in a conftest.py or a plugin, as a model of the matrix and as a pytest fixture.

    It returns (or yields, to clean up afterwards) a timm model or a :class:`mae_bench.Classifier`. The model is
    built when its first cell runs and freed after its last. Fixtures that it asks for should be of session scope,
    since it outlives the test that built it. One model is held at a time: of two that one test asks for, the first
    is released, and its clean-up has run, before the test begins.

    Args:
        suite: name or names of the suites it belongs to; by default whichever is selected.
        head: False for an encoder, which joins representation items only.
        arm, training_seed: repeated trainings of one recipe; only the first seed of an arm runs without
            ``--mae-full``.
        full: True for a model that runs with ``--mae-full`` alone.

    Raises:
        ModelError: the function's name contains a family's name, or a suite is unknown.

    >>> @model_fixture(suite="fashion_mnist")
    ... def tiny():
    ...     "Shown in the leaderboard."
    >>> tiny.mae_entry.suites
    ('fashion_mnist',)
    """
    register = functools.partial(_register, suite=suite, head=head, arm=arm, training_seed=training_seed, full=full)
    return register if function is None else register(function)


def _register(
    function: Callable[..., Any],
    *,
    suite: str | tuple[str, ...] | None,
    head: bool,
    arm: str | None,
    training_seed: int | None,
    full: bool,
) -> Any:
    suites = (suite,) if isinstance(suite, str) else suite
    for name in suites or ():
        suite_entry(name)
    summary = (inspect.getdoc(function) or "").partition("\n")[0]
    entry = ModelEntry(function.__name__, suites, head, arm, training_seed, full, summary)
    signature = inspect.signature(function)
    own_request = "request" in signature.parameters

    @functools.wraps(function)
    def load(request: pytest.FixtureRequest, **needed: Any) -> object:
        if own_request:
            needed["request"] = request
        harness = request.config.stash[HARNESS]
        try:
            return harness.executor.load(entry, lambda: function(**needed)).returned
        except BenchError as error:
            _fail(error)

    if not own_request:
        request = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)
        signature = signature.replace(parameters=[*signature.parameters.values(), request])
    load.__signature__ = signature  # type: ignore[attr-defined]
    fixture: Any = pytest.fixture(load)
    fixture.mae_entry = entry
    return fixture


class Discovery:
    """Finds model fixtures in conftest files and plugins as pytest registers them."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness

    def pytest_plugin_registered(self, plugin: object) -> None:
        file = getattr(plugin, "__file__", None)
        is_conftest = file is not None and Path(file).name == "conftest.py"
        for value in list(vars(plugin).values()) if hasattr(plugin, "__dict__") else []:
            # statically, since asking `pytest.mark` for an attribute makes a mark, and a lazy module an import
            entry = inspect.getattr_static(value, "mae_entry", None)
            if isinstance(entry, ModelEntry):
                try:
                    self.harness.registry.add(entry, Path(file).parent if is_conftest and file else None)
                except ModelError as error:
                    raise pytest.UsageError(str(error)) from error


# --------------------------------------------------------------------------- one run


@dataclass
class Harness:
    """What one pytest session knows of its run: ``collected`` are the ids of its cells, ``represented`` maps models to
    the conditions whose representation it asks for, ``lacking`` are families that tests ask for and that have no cells.
    """

    config: pytest.Config
    suite: SuiteEntry
    options: dict[str, Any]
    run_path: Path
    registry: Registry = field(default_factory=Registry)
    collected: set[str] = field(default_factory=set)
    represented: dict[str, set[str]] = field(default_factory=dict)
    lacking: set[str] = field(default_factory=set)
    began: bool = False

    @classmethod
    def of(cls, config: pytest.Config) -> Harness:
        options = {option.name: _value(config, option) for option in OPTIONS}
        try:
            suite = suite_entry(options["suite"])
        except BenchError as error:
            raise pytest.UsageError(f"--mae-suite: {error}") from error
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", options["device"]):
            hint = near_name(options["device"], ("auto", "cpu", "cuda", "cuda:0"))
            raise pytest.UsageError(f"--mae-device {options['device']}: {hint}")
        if not re.fullmatch(r"auto|[1-9]\d*", options["batch-size"]):
            raise pytest.UsageError(f"--mae-batch-size {options['batch-size']}: give auto or a positive number")
        for name, bound in (("limit", 2**31), ("seed", 2**32)):
            if options[name] is not None and not 0 <= options[name] < bound:
                raise pytest.UsageError(f"--mae-{name} {options[name]}: give a number from 0 to {bound - 1}")
        for name in ("min-drop", "tolerance"):
            if not 0 <= options[name] <= 100:
                raise pytest.UsageError(f"--mae-{name} {options[name]}: give points of accuracy, from 0 to 100")
        worker = getattr(config, "workerinput", None)
        if worker is not None:
            run_path = Path(worker["mae_run"])
        else:
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            run_path = options["run"] or cls.root(config) / "results" / "runs" / f"{stamp}-{secrets.token_hex(2)}"
        harness = cls(config, suite, options, run_path)
        if options["update-baseline"]:
            from mae_bench.baseline import in_continuous_integration

            if in_continuous_integration():
                raise pytest.UsageError(
                    "--mae-update-baseline is refused where CI is set: a gate must not move its own mark"
                )
            if options["baseline"] == "none":
                raise pytest.UsageError("--mae-update-baseline needs a baseline directory, not --mae-baseline none")
        return harness

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
        return Rule(max(1, cells), self.options["min-drop"] / 100, self.options["tolerance"] / 100)

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
        from mae_bench.store import RunDirectory

        is_worker = hasattr(self.config, "workerinput")
        return RunDirectory.create(self.run_path, resume=self.options["resume"] or is_worker)

    @cached_property
    def executor(self) -> LocalExecutor:
        from mae_bench.evaluate import Settings
        from mae_bench.executors.local import LocalExecutor, resolved_device, resolved_dtype
        from mae_bench.store import RunDirectory

        limit, batch = self.options["limit"], self.options["batch-size"]
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        device = resolved_device(self.options["device"])
        settings = Settings(
            device=device,
            dtype=resolved_dtype(self.options["dtype"], device),
            batch_size=0 if batch == "auto" else int(batch),
            seed=self.options["seed"],
            limit=self.suite.default_limit if limit is None else limit,
            threads=max(1, cores // workers),
            suite_view=self.options["view"] == "suite",
            jackknife=self.options["full"],
            compiles=self.options["compile"],
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
        )

    def check_before_run(self) -> None:
        """Whatever would spoil the run and can be seen before its first cell.

        Raises:
            UsageError: with the message to show.
        """
        try:
            self.suite.check(self.options["data"])
            _ = self.weights
            path = self.run_path
            if path.is_dir() and any(path.iterdir()) and not self.options["resume"]:
                raise BenchError(
                    f"run directory {path} is not empty: add --mae-resume to go on with it, or name another"
                )
            from mae_bench.baseline import in_continuous_integration

            missing = self.baseline_path is not None and self.baseline is None
            if missing and in_continuous_integration() and not self.options["update-baseline"]:
                raise BenchError(f"{self.how_to_make_a_baseline()}; --mae-baseline none runs without one")
        except BenchError as error:
            raise pytest.UsageError(str(error)) from error
        self.began = True

    def how_to_make_a_baseline(self) -> str:
        return (
            f"there is no baseline in {self.baseline_path}: make one with --mae-limit 0 --mae-update-baseline "
            "and commit it"
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

    def release_unless(self, name: str | None) -> None:
        """Free the model held unless it is the one called ``name``."""
        if "executor" in vars(self) and self.executor.held not in (None, name):
            self.executor.release()


class Decoding:
    """Says on the terminal how far the images of a suite are decoded, past pytest's capture; workers have none."""

    def __init__(self, config: pytest.Config) -> None:
        self.terminal: Any = config.pluginmanager.getplugin("terminalreporter")
        self.capture: Any = config.pluginmanager.getplugin("capturemanager")
        self.said = time.monotonic()

    def report(self, done: int, total: int) -> None:
        """A line every few seconds, so that what ends sooner says nothing."""
        if self.terminal is None or time.monotonic() - self.said < 5:
            return
        self.said = time.monotonic()
        suspended = self.capture.global_and_fixture_disabled() if self.capture is not None else nullcontext()
        with suspended:
            self.terminal.ensure_newline()
            self.terminal.write_line(f"mae_bench: {done:,} of {total:,} images decoded")


PARAMETERS = ("mae_bench_cell", "mae_bench_represented", "mae_bench_model", "mae_bench_claim")
"""Hidden fixtures that are parametrized."""
NO_CELLS = "no_cells"
"""Id of the one item, deselected, of a test whose families have no cells in this run."""
NO_EVIDENCE = "no_evidence"
"""Id of the one claim that is collected, and skipped, where there is nothing to decide from."""
REPRESENTED_FAMILIES = ("clean", "blur", "occlusion", "token_drop")
HARNESS = pytest.StashKey[Harness]()


class BoundCell:
    """The ``cell`` of a test: one model x degradation x level, ready to run."""

    def __init__(self, cell: Cell, request: pytest.FixtureRequest) -> None:
        self.cell = cell
        self._request = request
        self._harness = request.config.stash[HARNESS]

    def run(self) -> CellResult:
        """Evaluate the cell, or take it from the resumed run; its row is on disk when this returns. A cell that the
        model cannot have skips the test, with the reason.
        """
        self._images()
        try:
            self._harness.load(self.cell.model, self._request)
            result, note = self._harness.executor.run(self.cell)
        except ImageError as error:
            self._end(error)
        except BenchError as error:
            _fail(error)
        self._say("mae_cell", {"cell": self.cell.id, "top1": result.row.top1, "note": note})
        if result.row.status == "not_applicable":
            pytest.skip(f"not applicable: {result.reason}")
        return result

    def check(self) -> None:
        """Run the cell and judge it against the baseline; a regression fails the test with its table."""
        harness = self._harness
        ids = self._images()
        try:
            if harness.baseline is not None:
                manifest = harness.executor.suite.manifest
                harness.baseline.check_images(ids, manifest.labels, manifest.classes)
        except BenchError as error:
            self._end(error)
        result = self.run()
        if harness.baseline is None:
            return
        from mae_bench.comparison import Comparison, verdict_table

        comparison = Comparison().add(result, ids, harness.baseline, harness.rule)
        self._say("mae_comparison", comparison.to_dict())
        failing = ("regression", "inconclusive") if harness.options["strict"] else ("regression",)
        failed = [verdict for verdict in comparison.verdicts if verdict.judgement in failing]
        if failed and not harness.options["update-baseline"]:
            pytest.fail(verdict_table(failed), pytrace=False)

    def _images(self) -> tuple[str, ...]:
        """Ids of the suite's images, once there is a place for results."""
        try:
            _ = self._harness.run_directory
            return self._harness.executor.suite.manifest.ids
        except BenchError as error:
            self._end(error)

    def _end(self, error: BenchError) -> NoReturn:
        """Fail the test and end the run, since every other cell would fail alike."""
        self._request.session.shouldfail = "no cell of this run can be evaluated"
        _fail(error)

    def _say(self, key: str, value: dict[str, Any]) -> None:
        # plain text, so that it survives the way from a worker to the controller
        self._request.node.user_properties.append((key, json.dumps(value)))


class BoundRepresentation(BoundCell):
    """The ``representation`` of a test: one model x degradation x level, of whose layers, heads and tokens it is."""

    def run(self) -> Representation:  # type: ignore[override]
        """Its records, on disk when this returns; an item that the model cannot have skips the test."""
        self._images()
        harness = self._harness
        try:
            harness.load(self.cell.model, self._request)
            executor = harness.executor
            representation = executor.represent(self.cell, self.cell.id in harness.collected)
            kind = degradation(self.cell.degradation, self.cell.level.severity)
            reason = executor.evaluation.not_applicable(kind)
        except ImageError as error:
            self._end(error)
        except BenchError as error:
            _fail(error)
        self._say("mae_representation", {"cell": self.cell.id})
        if reason is not None:
            pytest.skip(f"not applicable: {reason}")
        return representation

    def check(self) -> None:
        """Measure it; there is nothing to judge but that it can be measured."""
        self.run()


class BoundClaim:
    """The ``claim`` of a test: one contrast, to be decided from the committed outcomes and evidence."""

    def __init__(self, name: str, request: pytest.FixtureRequest) -> None:
        self.name = name
        self._request = request
        self._harness = request.config.stash[HARNESS]

    def check(self) -> None:
        """Fail where the verdict is another than the committed one, or where a cell that this run evaluated lies off
        the interval that is committed for it.
        """
        harness = self._harness
        if self.name == NO_EVIDENCE:
            pytest.skip(
                f"{harness.baseline_path} holds no evidence.npz: evaluate with --mae-limit 0 --mae-full, then use "
                "mae-bench claims"
            )
        from mae_bench.claims import contradicted
        from mae_bench.store import RunDirectory

        try:
            found, stored = harness.decided
            finding = found[self.name]
            if (before := stored.get(self.name, "nothing")) != finding.confirmed:
                estimate = "none" if finding.estimate is None else f"{finding.estimate:.5g}"
                _fail(
                    BenchError(
                        f"{self.name}: committed is {before!r}, outcomes and evidence now say {finding.confirmed!r} "
                        f"(estimate {estimate}, interval {finding.low} to {finding.high}); make claims.md again with "
                        "mae-bench claims if that is meant"
                    )
                )
            assert harness.baseline is not None
            contradiction = contradicted(
                finding.contrast,
                harness.baseline.rows,
                harness.evidence,
                RunDirectory(harness.run_path),
                harness.collected,
            )
            if contradiction is not None:
                _fail(BenchError(contradiction))
        except BenchError as error:
            _fail(error)


@pytest.fixture
def mae_bench_claim(request: pytest.FixtureRequest) -> str:
    """Name of a contrast. Parametrized in place of ``claim``."""
    return str(request.param)


@pytest.fixture
def claim(mae_bench_claim: str, request: pytest.FixtureRequest) -> BoundClaim:
    """One contrast of :mod:`mae_bench.contrasts`."""
    return BoundClaim(mae_bench_claim, request)


@pytest.fixture
def mae_bench_represented(request: pytest.FixtureRequest) -> str:
    """Id of a cell. Parametrized in place of ``representation``."""
    return str(request.param)


@pytest.fixture
def representation(mae_bench_represented: str, request: pytest.FixtureRequest) -> BoundRepresentation:
    """The representation of one cell; a test that asks for it is run at clean and at the middle and the top level of
    blur, occlusion and token_drop (all levels with ``--mae-full``), for encoders too.
    """
    return BoundRepresentation(Cell.parse(mae_bench_represented), request)


@pytest.fixture
def mae_bench_cell(request: pytest.FixtureRequest) -> str:
    """Id of a cell. Parametrized in place of ``cell``, so that a project's own ``cell`` is left alone."""
    return str(request.param)


@pytest.fixture
def mae_bench_model(request: pytest.FixtureRequest) -> str:
    """Name of a model. Parametrized in place of ``evaluation``."""
    return str(request.param)


@pytest.fixture
def cell(mae_bench_cell: str, request: pytest.FixtureRequest) -> BoundCell:
    """One cell of the matrix; a test that asks for it carries a family mark and is run for every cell."""
    return BoundCell(Cell.parse(mae_bench_cell), request)


@pytest.fixture
def evaluation(mae_bench_model: str, request: pytest.FixtureRequest) -> Evaluation:
    """The evaluation of one model on the selected suite; a test that asks for it is run for every model."""
    try:
        harness = request.config.stash[HARNESS]
        _ = harness.run_directory
        harness.load(mae_bench_model, request)
        return harness.executor.evaluation
    except BenchError as error:
        _fail(error)


@pytest.fixture(scope="session")
def mae_weights(pytestconfig: pytest.Config) -> Callable[[str], list[Path]]:
    """``mae_weights(name)`` gives the file of ``--mae-weights`` for the model of that name, else those that have a name
    of the MAE authors.
    """
    try:
        named, authors = pytestconfig.stash[HARNESS].weights
    except BenchError as error:
        _fail(error)
    return lambda name: [named[name]] if name in named else authors


@pytest.fixture(scope="session")
def mae_probe(pytestconfig: pytest.Config) -> Callable[..., object]:
    """Reads an encoder that was only pretrained: ``mae_probe(encoder, name=..., per_class=..., kind="linear")`` fits a
    linear classifier, or with ``kind="knn"`` a vote of neighbours, to so many training images of each class of the
    suite, and gives the whole as a model. What was fitted is kept in the cache.
    """
    return pytestconfig.stash[HARNESS].executor.probed


def _fail(error: BenchError, cause: BaseException | None = None) -> NoReturn:
    """Fail the test with the message of ``error`` alone: without ``from``, pytest would show its history too."""
    message = "\n".join([str(error), *getattr(error, "__notes__", ())])
    raise pytest.fail.Exception(message, pytrace=False) from cause


# --------------------------------------------------------------------------- hooks


def pytest_configure(config: pytest.Config) -> None:
    for mark, text in _MARKS.items():
        config.addinivalue_line("markers", f"{mark}: {text}")
    harness = Harness.of(config)
    config.stash[HARNESS] = harness
    config.pluginmanager.register(Discovery(harness), "mae_bench_discovery")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Gate(harness), "mae_bench_gate")
    if config.pluginmanager.has_plugin("xdist"):
        config.pluginmanager.register(Distribution(harness), "mae_bench_distribution")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = [name for name in PARAMETERS if name in metafunc.fixturenames]
    if not wanted:
        return
    harness = metafunc.config.stash[HARNESS]
    try:
        if "mae_bench_claim" in wanted:
            from mae_bench.contrasts import CONTRASTS

            ids = list(CONTRASTS) if harness.evidence_path is not None else [NO_EVIDENCE]
            metafunc.parametrize("mae_bench_claim", ids, indirect=True, ids=ids)
        models = harness.models(metafunc.definition.path) if wanted != ["mae_bench_claim"] else []
        if "mae_bench_model" in wanted:
            ids = [entry.name for entry in models]
            metafunc.parametrize("mae_bench_model", ids, indirect=True, ids=ids)
        if "mae_bench_cell" in wanted:
            harness.suite.check(harness.options["data"])
            kinds = _kinds(metafunc.definition)
            ladder = [(kind, level) for kind in kinds for level in levels(kind, harness.suite, harness.options["full"])]
            cells: list[Any] = [
                pytest.param(Cell(entry.name, kind.name, level).id, marks=[getattr(pytest.mark, m) for m in kind.marks])
                for entry in models
                for kind, level in ladder
            ]
            if not ladder:
                harness.lacking.update(kind.family for kind in kinds)
                cells = [NO_CELLS]
            ids = [cell if isinstance(cell, str) else str(cell.values[0]) for cell in cells]
            metafunc.parametrize("mae_bench_cell", cells, indirect=True, ids=ids)
        if "mae_bench_represented" in wanted:
            harness.suite.check(harness.options["data"])
            entries = harness.models(metafunc.definition.path, encoders=True)
            ids = [cell.id for entry in entries for cell in _represented(entry.name, harness)]
            metafunc.parametrize("mae_bench_represented", ids, indirect=True, ids=ids)
    except BenchError as error:
        raise pytest.Collector.CollectError(str(error)) from error


def _represented(model: str, harness: Harness) -> Iterable[Cell]:
    """Cells whose representation is collected: clean, and of each degradation all levels but the lowest."""
    full = harness.options["full"]
    for kind in EVERY:
        if kind.family in REPRESENTED_FAMILIES:
            ladder = levels(kind, harness.suite, full)
            for level in ladder if full or kind.family == "clean" else ladder[1:]:
                yield Cell(model, kind.name, level)


def _kinds(definition: pytest.Item) -> list[Degradation]:
    """Degradations of the families that a test's marks name, or where they name none of the groups."""
    marks = [mark.name for mark in definition.iter_markers()]
    families = [family for family in FAMILIES if family in marks]
    groups = [group for group in GROUPS if group in marks]
    if not families and not groups:
        near = [mark for mark in marks if difflib.get_close_matches(mark, (*FAMILIES, *GROUPS))]
        hint = near_name(near[0], (*FAMILIES, *GROUPS)) if near else f"families are {', '.join(FAMILIES)}"
        raise BenchError(f"{definition.name} asks for `cell` but carries no family mark: {hint}")
    return [kind for kind in EVERY if kind.family in families or (not families and kind.group in groups)]


class Order:
    """Brings the items of a model together, where its first stands, after everyone else has ordered them, and claims
    behind the cells that they are about.
    """

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, None, None]:
        yield
        without = [item for item in items if _params_of(item).get("mae_bench_cell") == NO_CELLS]
        if without:
            items[:] = [item for item in items if item not in without]
            without[0].config.hook.pytest_deselected(items=without)
        groups: dict[object, list[pytest.Item]] = {}
        for item in items:
            groups.setdefault(_model_of(item) or item, []).append(item)
        together = [item for group in groups.values() for item in group]
        items[:] = sorted(together, key=lambda item: "mae_bench_claim" in getattr(item, "fixturenames", ()))


def pytest_sessionstart(session: pytest.Session) -> None:
    # the last of several such wrappers has the last word; pytest's own, for --ff, is registered at configuration
    session.config.pluginmanager.register(Order(), "mae_bench_order")


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Which families were asked for and have no cells, and what would give them some."""
    harness = config.stash[HARNESS]
    rare = sorted(harness.lacking & set(RARE)) if not harness.suite.stored else []
    never = sorted(harness.lacking - set(rare))
    lines = [f"mae_bench: cells of {', '.join(rare)} are collected with --mae-full"] if rare else []
    if never:
        lines.append(f"mae_bench: suite {harness.suite.name} has no cells of {', '.join(never)}")
    return lines


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    harness = config.stash[HARNESS]
    for item in session.items:
        params = _params_of(item)
        if "mae_bench_cell" in params:
            harness.collected.add(params["mae_bench_cell"])
        if "mae_bench_represented" in params:
            cell = Cell.parse(params["mae_bench_represented"])
            harness.represented.setdefault(cell.model, set()).add(cell.condition)
    is_worker = hasattr(config, "workerinput")
    if not config.option.collectonly and not is_worker and any(_model_of(item) for item in session.items):
        harness.check_before_run()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """After its last cell a model is cleaned up and freed; what goes wrong there is an error of that cell."""
    raised: BaseException | None = None
    try:
        return (yield)
    except BaseException as error:
        raised = error
        raise
    finally:
        try:
            item.config.stash[HARNESS].release_unless(_model_of(nextitem) if nextitem is not None else None)
        except BenchError as error:
            _fail(error, raised)


def pytest_report_teststatus(report: pytest.TestReport | pytest.CollectReport) -> Any:
    """In verbose output, a cell that passes says its top-1. One that fails says it in its table, and keeps the line by
    which other tools know it.
    """
    if isinstance(report, pytest.TestReport) and report.when == "call" and report.passed:
        top1 = _said(report, "mae_cell").get("top1")
        if top1 is not None and not hasattr(report, "wasxfail"):
            return report.outcome, ".", f"PASSED top-1 {100 * top1:.1f} %"
    return None


def _said(report: pytest.TestReport, key: str) -> dict[str, Any]:
    said: dict[str, Any] = next((json.loads(str(value)) for name, value in report.user_properties if name == key), {})
    return said


def _params_of(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _model_of(item: pytest.Item) -> str | None:
    """Name of the model that ``item`` evaluates."""
    params = _params_of(item)
    cell_id = params.get("mae_bench_cell", params.get("mae_bench_represented"))
    return params.get("mae_bench_model") if cell_id is None else Cell.parse(cell_id).model


# --------------------------------------------------------------------------- the end of a run


class Gate:
    """Gathers verdicts, from this process or from workers, settles them when all have come, and prints tables."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.comparisons: dict[str, dict[str, Any]] = {}
        self.notes: dict[str, str] = {}
        self.claims: list[str] = []
        self.sections: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed and (claim := _said(report, "mae_claim")):
            self.claims.append(claim["claim"])
        said = _said(report, "mae_cell")
        if report.when == "call" and said:
            self.harness.began = True  # though the controller of workers may not know whose cells these are
            # a cell counts once, however many tests run it
            self.notes[said["cell"]] = self.notes.get(said["cell"]) or said["note"]
            if comparison := _said(report, "mae_comparison"):
                self.comparisons[said["cell"]] = comparison

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        harness = self.harness
        failures = []
        try:
            harness.release_unless(None)
            if harness.began and (harness.run_path / "images.json").exists():
                failures = self._settle() + self._contradictions()
        except BenchError as error:
            failures = [str(error)]
        self.sections += [("mae_bench: failed", failure) for failure in failures]
        if failures and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for title, text in self.sections:
            terminalreporter.section(title)
            terminalreporter.write_line(text)

    def _settle(self) -> list[str]:
        """Merge the run, write and show its leaderboard, compare; the reasons why the run fails as a whole."""
        from mae_bench.baseline import in_continuous_integration
        from mae_bench.comparison import Comparison
        from mae_bench.executors.local import images_of, remove_scratch
        from mae_bench.leaderboard import Leaderboard
        from mae_bench.store import Outcomes, RunDirectory, of_one_setting, write_atomically

        harness = self.harness
        run = RunDirectory(harness.run_path)
        remove_scratch(run)
        images = images_of(run)
        assert images is not None
        stored = run.cells()
        run.merge_representations()
        results = of_one_setting(stored, self.notes)
        if not results:
            return []
        run.merge(*images, results)
        if len(results) < len(stored):
            left = f"{len(stored) - len(results)} cells in {run.path} were evaluated with other settings"
            self.sections.append(("mae_bench: left out", f"{left} and are in no table below"))
        board = Leaderboard.of([r.row for r in results], Outcomes.of(harness.suite.name, results, *images))
        write_atomically(run.path / "leaderboard.md", board.to_markdown().encode())
        self.sections.append(("mae_bench: leaderboard", f"{board.caption}\n\n{board.to_text()}\n\nResults: {run.path}"))
        if notes := [note for note in self.notes.values() if note]:
            self.sections.append(("mae_bench: not resumed", "\n".join(notes)))
        if harness.baseline_path is None:
            return []
        failures = []
        if harness.baseline is None and not harness.options["update-baseline"]:
            self.sections.append(("mae_bench: baseline", harness.how_to_make_a_baseline()))
            if in_continuous_integration():
                failures.append("where CI is set a missing baseline fails; --mae-baseline none runs without one")
        elif harness.baseline is not None:
            comparison = Comparison()
            for record in self.comparisons.values():
                comparison.extend(Comparison.from_dict(record))
            failures = self._compare(comparison, results, images[0])
        if harness.options["update-baseline"]:
            self.sections.append(("mae_bench: baseline updated", self._update(results, images)))
            return []
        return failures

    def _contradictions(self) -> list[str]:
        """How cells of this run contradict claims that a worker decided before another had evaluated the cells."""
        harness = self.harness
        if not self.claims or not harness.config.pluginmanager.has_plugin("dsession"):
            return []
        from mae_bench.claims import contradicted
        from mae_bench.contrasts import contrast_named
        from mae_bench.store import RunDirectory

        assert harness.baseline is not None
        run, rows = RunDirectory(harness.run_path), harness.baseline.rows
        asked = (contradicted(contrast_named(name), rows, harness.evidence, run, self.notes) for name in self.claims)
        return list(dict.fromkeys(words for words in asked if words is not None))

    def _compare(self, comparison: Comparison, results: list[CellResult], ids: list[str]) -> list[str]:
        from mae_bench.comparison import Comparison
        from mae_bench.store import cell_of

        baseline, rule = self.harness.baseline, self.harness.rule
        assert baseline is not None
        collected = {v.cell for v in comparison.verdicts} | {i.cell for i in comparison.incomparable}
        for result in results:
            if result.row.family == "clean" and cell_of(result.row).id not in collected:
                comparison.references += Comparison().add(result, ids, baseline, rule).verdicts
        self.sections.append((f"mae_bench: against {baseline.path}", comparison.to_text(rule)))
        failures = []
        if later := comparison.later(rule):
            failures.append(f"regressions by Holm's later steps: {', '.join(v.cell for v in later)}")
        if comparison.nothing_comparable:
            fields = ", ".join(sorted({i.field for i in comparison.incomparable}))
            failures.append(
                f"no cell is comparable with {baseline.path}: they differ in {fields}; run as the baseline was, "
                "name another with --mae-baseline DIR, or none"
            )
        if comparison.shifts and self.harness.options["gate-indicators"]:
            failures.append(f"{len(comparison.shifts)} indicators moved (--mae-gate-indicators)")
        return failures

    def _update(self, results: list[CellResult], images: tuple[list[str], Any, list[str]]) -> str:
        from mae_bench.baseline import Baseline, save, updated
        from mae_bench.leaderboard import Leaderboard, default_conditions
        from mae_bench.store import write_atomically

        harness = self.harness
        path = harness.baseline_path
        assert path is not None
        full = harness.options["full"]
        expected = {(r.row.model, r.row.family): default_conditions(r.row.family, harness.suite, full) for r in results}
        replacement, put_in, refused = updated(harness.baseline, path, results, expected, images)
        save(replacement)
        baseline = Baseline.load(path, harness.suite.name)  # as anyone will read it, to the digits on disk
        assert baseline is not None
        board = Leaderboard.of(baseline.rows.values(), baseline.outcomes)
        write_atomically(path / "leaderboard.md", board.to_markdown().encode())
        write_atomically(path / "leaderboard.csv", board.to_csv().encode())
        lines = [f"written to {path}: {', '.join(put_in)}", *(f"left as it was: {reason}" for reason in refused)]
        return "\n".join(lines)


# --------------------------------------------------------------------------- pytest-xdist


class Distribution:
    """Keeps all cells of a model on one xdist worker, so that it is loaded once, and gives workers one run."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker which run it belongs to."""
        node.workerinput["mae_run"] = str(self.harness.run_path)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Look, before the first test is sent out, at whatever would spoil the run."""
        if not self.harness.began and any(self._model(nodeid) for nodeid in ids):
            self.harness.check_before_run()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """A scheduler whose unit of work is a model. xdist's own ``--dist`` choices other than the default stay."""
        if config.getvalue("dist") != "load" or not self._known:
            return None
        from xdist.scheduler.loadscope import LoadScopeScheduling

        model = self._model

        class ModelScheduling(LoadScopeScheduling):  # type: ignore[misc]
            def _split_scope(self, nodeid: str) -> str:
                return model(nodeid) or nodeid

        return ModelScheduling(config, log)

    @cached_property
    def _known(self) -> list[str]:
        """Names of models, such that none stands behind one that it contains."""
        try:
            return sorted({*self.harness.registry.entries, *self.harness.timm_models}, key=len, reverse=True)
        except BenchError as error:
            raise pytest.UsageError(str(error)) from error

    def _model(self, nodeid: str) -> str | None:
        """Name of the model that the item evaluates, of which the controller knows the id alone."""
        name = nodeid.partition("[")[2].removesuffix("]")
        for model in self._known:  # its cell may be crossed with another parameter
            if f"-{model}-" in f"-{name}-":
                return model
        try:
            return Cell.parse(name).model if self._known else None  # of a conftest file that only workers read
        except ValueError:
            return None
