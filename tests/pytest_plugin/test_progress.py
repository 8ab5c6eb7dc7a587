"""The line below what pytest prints: what it foretells, when it is drawn, and that nothing is left of it."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_bench.pytest_plugin.leader import Leader, leader
from mae_bench.pytest_plugin.pace import Pace
from mae_bench.pytest_plugin.progress import Progress, is_wanted, progress_line, shortened
from references.screen import Screen, watched

if TYPE_CHECKING:
    from tests.conftest import Project

# --------------------------------------------------------------------------- what it foretells

TASKS = st.tuples(st.sampled_from(("test_cell", "test_representation")), st.sampled_from("abc"), st.sampled_from("xyz"))
SECONDS = st.floats(0.01, 1e5)


@given(tasks=st.lists(TASKS, min_size=1, max_size=40), first=SECONDS, each=SECONDS, data=st.data())
def test_with_constant_rates_what_is_left_is_known_to_the_second(
    tasks: list[tuple[str, str, str]], first: float, each: float, data: st.DataObject
) -> None:
    """Of a clock that only items turn, and a model whose first item takes longer than the others."""
    tasks.sort(key=lambda task: task[1])
    takes = [first if i == 0 or tasks[i - 1][1] != task[1] else each for i, task in enumerate(tasks)]
    pace, done = Pace(tasks), data.draw(st.integers(0, len(tasks)))
    for task, seconds in zip(tasks[:done], takes[:done], strict=True):
        pace.finish(task, seconds)
    assert (pace.done, pace.total) == (done, len(tasks))
    left = pace.seconds_left(sum(takes[:done]))
    others = [i for i, task in enumerate(tasks) if i and tasks[i - 1][1] == task[1]]
    known = done > 0 and (not any(i >= done for i in others) or any(i < done for i in others))
    assert left == (pytest.approx(sum(takes[done:]), abs=1e-6) if known else None)


@given(
    tasks=st.lists(TASKS, min_size=1, max_size=30),
    workers=st.integers(1, 4),
    data=st.data(),
)
def test_what_is_left_is_never_negative_and_more_is_never_sooner(
    tasks: list[tuple[str, str, str]], workers: int, data: st.DataObject
) -> None:
    pace, more, slower = Pace(tasks), Pace([*tasks, tasks[-1]]), Pace(tasks)
    elapsed = 0.0
    for task in tasks[: data.draw(st.integers(0, len(tasks)))]:
        seconds = data.draw(SECONDS)
        elapsed += seconds / workers
        for each in (pace, more, slower):
            each.finish(task, seconds, images=10)
        left = pace.seconds_left(elapsed)
        assert left is None or left >= 0
        if left is not None and (longer := more.seconds_left(elapsed)) is not None:
            assert longer >= left
            assert (slower.seconds_left(2 * elapsed) or 0.0) >= left
        assert 0 < pace.done <= pace.total
        assert pace.images_per_second(elapsed) == pytest.approx(10 * pace.done / elapsed)
    if pace.done == pace.total:
        assert pace.seconds_left(elapsed) == 0


def test_what_degradations_take_is_told_apart_and_workers_side_by_side_are_seen() -> None:
    slow, quick = ("test_cell", "vit", "slow"), ("test_cell", "vit", "quick")
    pace = Pace([slow] * 4 + [quick] * 4)
    for task, seconds in ((slow, 100.0), (slow, 10.0), (quick, 1.0), (quick, 1.0)):
        pace.finish(task, seconds, images=512)
    assert pace.seconds_left(112.0) == pytest.approx(2 * 10 + 2 * 1)
    assert pace.seconds_left(56.0) == pytest.approx((2 * 10 + 2 * 1) / 2)
    assert pace.images_per_second(56.0) == pytest.approx(4 * 512 / 56)


def test_what_was_reused_is_done_and_says_nothing_of_the_rest() -> None:
    task = ("test_cell", "vit", "x")
    pace = Pace([task] * 6)
    for _ in range(3):
        pace.finish(task, 0.01, images=512, reused=True)
    assert (pace.done, pace.seconds_left(0.03), pace.images_per_second(0.03)) == (3, None, None)
    pace.finish(task, 30.0, images=512)
    pace.finish(task, 5.0, images=512)
    assert pace.seconds_left(35.03) == pytest.approx(5.0)
    assert pace.images_per_second(35.03) == pytest.approx(1024 / 35)


# --------------------------------------------------------------------------- who leads

KEYS = st.tuples(st.sampled_from(("blur", "occlusion")), st.sampled_from("123"))
FOUND = st.dictionaries(st.sampled_from("abc"), st.dictionaries(KEYS, st.integers(0, 20).map(lambda n: n / 20)))


@given(FOUND, st.sets(st.sampled_from("abc")))
def test_the_leader_is_the_best_of_those_that_can_be_compared(found: Any, finished: set[str]) -> None:
    def score(model: str, keys: Sequence[tuple[str, str]]) -> float:
        by_family: dict[str, list[float]] = {}
        for family, condition in keys:
            by_family.setdefault(family, []).append(found[model][family, condition])
        return fmean(fmean(values) for values in by_family.values())

    whole = [model for model in found if found[model] and model in finished]
    some = whole or [model for model in found if found[model]]
    shared = [key for key in found[some[0]] if all(key in found[model] for model in some)] if some else []
    said = leader(found, finished)
    if not shared:
        assert said is None
        return
    assert said is not None
    assert said.score == pytest.approx(max(score(model, shared) for model in some))
    assert score(said.model, shared) == pytest.approx(said.score)
    assert said.compared == len(some) - 1


def test_a_model_that_has_only_begun_does_not_lead_those_that_are_finished() -> None:
    easy, hard = ("blur", "box_blur-1.00"), ("blur", "box_blur-9.00")
    found = {"whole": {easy: 0.9, hard: 0.1}, "begun": {easy: 1.0}}
    assert leader(found, {"whole"}) == Leader("whole", 0.5, compared=0)
    assert leader(found, set()) == Leader("begun", 1.0, compared=1)  # on what both have


def test_a_line_is_cut_to_the_terminal_and_a_name_steers_nothing() -> None:
    line = progress_line(1, 2, None, None, Leader("\x1b[2J模型", 0.5, compared=1))
    assert r"\x1b[2J模型" in line
    assert "\x1b" not in line
    for columns in range(90):
        cut = shortened(line, columns)
        assert sum(2 if "\u2e80" < c < "\uffff" else 1 for c in cut) <= columns


# --------------------------------------------------------------------------- when it is drawn


def test_only_somebody_who_looks_on_is_shown_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(reporter: Any = None, without: Sequence[str] = (), **changes: Any) -> Any:
        quiet = {
            "verbose": 0,
            "capture": "fd",
            "usepdb": False,
            "trace": False,
            "log_cli_level": None,
            "log_cli": False,
        }
        options = SimpleNamespace(**{name: value for name, value in (quiet | changes).items() if name not in without})
        manager = SimpleNamespace(getplugin=lambda _: reporter)
        return SimpleNamespace(pluginmanager=manager, option=options, getini=lambda name: getattr(options, name))

    def reporter(kind: type = pytest.TerminalReporter, isatty: bool = True) -> Any:
        made = kind.__new__(kind)
        made.isatty = lambda: isatty
        return made

    class Sugar(pytest.TerminalReporter):
        pass

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("CI", "")
    assert is_wanted(config(reporter()))
    assert is_wanted(config(reporter(), verbose=1))
    assert not is_wanted(config(reporter(isatty=False)))
    assert not is_wanted(config(None))  # -p no:terminal
    assert not is_wanted(config(reporter(Sugar)))
    quiet: list[dict[str, Any]] = [{"verbose": -1}, {"capture": "no"}, {"usepdb": True}, {"trace": True}]
    quiet += [{"log_cli": True}, {"log_cli_level": "INFO"}]
    for changes in quiet:
        assert not is_wanted(config(reporter(), **changes)), changes
    assert is_wanted(config(reporter(), without=("log_cli", "log_cli_level")))  # -p no:logging
    assert is_wanted(config(reporter(), without=("usepdb", "trace")))  # -p no:debugging
    assert not is_wanted(config(reporter(), without=("capture",)))  # -p no:capture: tests print
    monkeypatch.setenv("CI", "true")
    assert not is_wanted(config(reporter()))
    monkeypatch.setenv("CI", "")
    monkeypatch.setenv("TERM", "dumb")
    assert not is_wanted(config(reporter()))


class Terminal:
    """What a reporter has written, on a screen."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen

    def write_raw(self, content: str, *, flush: bool = False) -> None:
        assert flush
        self.screen.feed(content)


def run(hook: Any, work: Callable[[], None]) -> None:
    next(hook)
    work()
    with pytest.raises(StopIteration):
        next(hook)


@given(
    rows=st.integers(2, 6),
    writes=st.lists(st.sampled_from(("x", "xxxxx", "\r\n", "test_x.py ", "\r\nlines\r\nand lines\r\n")), max_size=30),
)
def test_a_screen_looks_as_without_it_once_it_is_gone(rows: int, writes: list[str]) -> None:
    """Wherever the cursor is, and whatever scrolls, the text of a run is the same but for how far it was scrolled."""
    bare, screen, item = Screen(rows, 40), Screen(rows, 40), "test_x.py::test_cell[a-box_blur-1.00]"
    terminal = Terminal(screen)
    config: Any = SimpleNamespace(pluginmanager=SimpleNamespace(getplugin=lambda _: terminal))
    progress = Progress(config, clock=lambda: 0.0)
    progress.distribution = SimpleNamespace(path=lambda _: ("a", "blur", "box_blur", "1.00"))
    progress.pytest_xdist_node_collection_finished([item])
    for text in writes:
        bare.feed(text)
        run(progress.pytest_runtest_logstart(), lambda text=text: screen.feed(text))  # type: ignore[misc]
        assert "0 of 1 cells" in screen.text
    progress.erase()
    assert screen.text == bare.text


# --------------------------------------------------------------------------- as a user sees it


def shown(project: Project, *arguments: str, environment: dict[str, str], rows: int = 12) -> tuple[list[str], str]:
    """What is seen while pytest runs, and what is there when it has ended."""
    screen = Screen(rows, 100)
    variables = {**os.environ, "TERM": "xterm", "CI": "", **environment}
    command = [sys.executable, "-m", "pytest", "--rootdir", str(project.path), str(project.path), *arguments]
    seen = list(watched(command, screen, variables))
    return seen, screen.text


@pytest.mark.thorough  # starts pytest, and workers
@pytest.mark.parametrize("arguments", [(), ("-v",), ("-n", "2")], ids=["dots", "verbose", "workers"])
def test_on_a_terminal_a_line_says_how_far_a_run_is_and_is_gone_at_the_end(
    project: Project, arguments: tuple[str, ...]
) -> None:
    project.matrix("blur", "token_drop", models=("colour", "other"))
    given = ("--mae-data", str(project.path / "data"), "--mae-run", str(project.path / "run"))
    seen, end = shown(project, *given, *arguments, environment={})
    lines = [line for text in seen for line in text.splitlines() if " cells  |" in line]
    assert lines
    counts = [tuple(map(int, re.findall(r"^(\d+) of (\d+) cells", line)[0])) for line in lines]
    assert counts == sorted(counts)
    assert {total for _, total in counts} == {len(project.cells()) - 2}  # that of clean ones is no item
    assert counts[-1][0] == counts[-1][1]
    assert any(re.search(r"(colour|other) (leads )?so far,? \d+\.\d %", line) for line in lines)
    assert re.search(r"\|  ETA 0 s  \|", lines[-1])
    for text in seen:  # one at most
        assert sum(" cells  |" in line for line in text.splitlines()) <= 1
    assert " cells  |" not in end
    assert re.search(r"=+ .*passed.* in .*=+", end)
    if "-v" not in arguments:
        assert re.search(r"^(test_x\.py )?[.s]+ +\[100%\]$", end, re.MULTILINE)


@pytest.mark.thorough  # starts pytest
@pytest.mark.parametrize(
    ("arguments", "environment"),
    [((), {"CI": "true"}), (("-q",), {}), (("-p", "no:terminal"), {}), (("--mae-progress", "none"), {}), (("-s",), {})],
    ids=["ci", "quiet", "no terminal", "none", "capture"],
)
def test_whoever_wants_no_line_has_none(
    project: Project, arguments: tuple[str, ...], environment: dict[str, str]
) -> None:
    project.matrix("clean")
    given = ("--mae-data", str(project.path / "data"), "--mae-run", str(project.path / "run"))
    none = ("--mae-baseline", "none")
    seen, _ = shown(project, *given, *none, *arguments, environment=environment)
    assert project.rows()
    assert not any(" cells  |" in text for text in seen)


@pytest.mark.thorough  # starts pytest
@pytest.mark.parametrize(
    "plugin", ["logging", "debugging", "capture", "terminal", "xdist", "warnings", "cacheprovider"]
)
def test_without_a_plugin_of_pytest_a_session_on_a_terminal_ends_as_ever(project: Project, plugin: str) -> None:
    project.write("test_x.py", "def test_passes():\n    pass\n")
    end = [sys.executable, "-c", "import pytest, sys; print('code', int(pytest.main(sys.argv[1:])))"]
    command = [*end, "--rootdir", str(project.path), str(project.path), "-p", f"no:{plugin}"]
    screen = Screen(12, 100)
    *_, last = watched(command, screen, {**os.environ, "TERM": "xterm", "CI": "", "PYTEST_ADDOPTS": ""})
    assert last.splitlines()[-1] == "code 0"


def test_a_report_says_how_many_images_and_whether_they_were_evaluated_now(project: Project) -> None:
    from mae_bench.pytest_plugin.gate import said

    class Listener:
        def __init__(self) -> None:
            self.told: list[dict[str, Any]] = []

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call":
                self.told.append(said(report, "mae_cell"))

    project.matrix("clean", "blur")
    first, second = Listener(), Listener()
    project.run("--mae-run", "run", "-k", "box_blur", plugins=(first,))
    project.run("--mae-run", "run", "--mae-resume", plugins=(second,))
    assert {(told["images"], told["reused"]) for told in first.told} == {(15, False)}
    reused = Counter(told["reused"] for told in second.told)
    assert reused[True] == len(first.told) + 1 > 1  # the clean one came with them
    assert reused[False] > 0
