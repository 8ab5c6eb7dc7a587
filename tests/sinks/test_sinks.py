"""What a sink is sent, in which order, and that nothing depends on it."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from mae_bench import entry_points, sinks
from mae_bench.degradations import every
from mae_bench.degradations.ladders import conditions, levels
from mae_bench.entry_points import EntryPointError, Registered
from mae_bench.pytest_plugin.sending import Sending
from mae_bench.sinks import SENT, SINKS, SinkEntry, SinkError, every_sink, measured, series, sink, step
from mae_bench.suites import SUITES

if TYPE_CHECKING:
    from mae_bench.leaderboard import Leaderboard
    from mae_bench.rows import ResultRow
    from tests.conftest import Project


class Recorder:
    """A sink that keeps what it is told, ``says`` where, and ``fails`` in the call that its place names."""

    fails: type[BaseException] = ConnectionError

    def __init__(self, place: str | None, folder: Path) -> None:
        self.place, self.folder = place, folder
        self.told: list[tuple[str, Any]] = []
        self.says: Any = "look into the recorder"

    def open(self, run_id: str, config: Mapping[str, Any]) -> None:
        self._take("open", (run_id, dict(config)))

    def cell(self, row: ResultRow) -> None:
        self._take("cell", row)

    def finish(self, leaderboard: Leaderboard, files: Sequence[Path]) -> str:
        self._take("finish", (leaderboard, {path.name: path.read_text() for path in files}))
        return self.says

    def _take(self, what: str, told: Any) -> None:
        self.told.append((what, told))
        if self.place == what:
            raise self.fails(f"no way\x1b[2J to {what}")


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Recorder]]:
    """Those that sessions of this test have made, as an installed package adds them."""
    made: list[Recorder] = []

    def recorder(place: str | None, folder: Path) -> Recorder:
        made.append(Recorder(place, folder))
        return made[-1]

    module = ModuleType("recorder")
    module.sink = recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recorder", module)
    entry = SinkEntry("recorder", "recorder", "keeps what it is told", "WHERE")
    monkeypatch.setattr(
        entry_points,
        "registered",
        lambda group, _: [Registered(group, "recorder", "acme", "1", entry)] * (group == sinks.ENTRY_POINTS),
    )
    every_sink.cache_clear()
    yield made
    every_sink.cache_clear()


# --------------------------------------------------------------------------- which there are


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("tensorbord", "unknown sink 'tensorbord': did you mean tensorboard?"),
        ("", "unknown sink ''"),
        ("tensorboard:", "write tensorboard:DIR, or tensorboard"),
        ("wandb:project", "write wandb"),
    ],
)
def test_a_sink_that_there_is_not_is_refused(given: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=words.replace("?", r"\?")):
        sink(given, tmp_path)


@pytest.mark.parametrize("name", SINKS)
def test_without_its_extra_a_sink_is_refused_at_the_start_with_what_installs_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sinks, "find_spec", lambda _: None)
    project.matrix("clean")
    result = project.run("--mae-sink", name, "--mae-run", "run")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f'--mae-sink {name}: {name} is not installed: pip install "mae-bench[{name}]"' in str(result.stderr)
    assert project.log == []


def test_each_sink_has_an_extra_of_its_name() -> None:
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert SINKS.keys() <= extras.keys()


def test_an_installed_package_adds_a_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "acme_sink-1.0.dist-info"
    record.mkdir()
    record.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: acme-sink\nVersion: 1.0\n")
    record.joinpath("entry_points.txt").write_text("[mae_bench.sinks]\nacme = acme_sink:ACME\n")
    tmp_path.joinpath("acme_sink.py").write_text(
        "from mae_bench.sinks import SinkEntry\n"
        "ACME = SinkEntry('acme', 'acme_sink', 'for tests', 'DIR')\n"
        "def sink(place, folder):\n"
        "    return place, folder\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    every_sink.cache_clear()
    try:
        assert every_sink()["acme"].package == "acme-sink 1.0"
        made: object = sink("acme:there", tmp_path)
        assert made == ("there", tmp_path)
    finally:
        every_sink.cache_clear()
        sys.modules.pop("acme_sink", None)


def test_a_package_cannot_take_the_name_of_a_sink_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, called in (("wandb", "wandb"), ("mine", "other")):
        one = Registered(sinks.ENTRY_POINTS, name, "acme", "1", SinkEntry(called, "acme", "x"))
        monkeypatch.setattr(entry_points, "registered", lambda *_, one=one: [one])
        every_sink.cache_clear()
        with pytest.raises(EntryPointError, match=f"entry point '{name}' in 'mae_bench.sinks', from package acme 1"):
            every_sink()
    every_sink.cache_clear()


# --------------------------------------------------------------------------- what is sent of a cell


def test_levels_are_steps_from_one_on_and_clean_images_are_step_zero(cell_result: Any) -> None:
    assert step(cell_result("m-clean-0.00").row) == 0
    for kind in every():
        found = levels(kind, SUITES["fashion_mnist"], full=True) if kind.family != "clean" else ()
        rows = [cell_result(f"m-{kind.name}-{level}").row for level in found]
        assert [step(row) for row in rows] == list(range(1, len(rows) + 1))
        assert {series(row) for row in rows} <= {f"m/{kind.family}/{kind.name}"}


@pytest.mark.parametrize("name", SUITES)
def test_no_two_cells_of_a_matrix_are_one_point(cell_result: Any, name: str) -> None:
    cells = [f"{model}-{kind.name}-{level}" for model in "ab" for kind, level in conditions(SUITES[name], full=True)]
    rows = [cell_result(cell, suite=name).row for cell in cells]
    assert len({(series(row), step(row)) for row in rows}) == len(set(cells)) == len(cells)


def test_what_a_row_does_not_have_is_not_sent(cell_result: Any) -> None:
    row = cell_result("m-box_blur-1.00", top1=0.25, nll=1.5, ece=None, retention=0.5).row
    assert measured(row) == {"top1": 0.25, "nll": 1.5, "retention": 0.5}
    assert set(SENT) <= row.to_dict().keys()


# --------------------------------------------------------------------------- of a session


def check(told: list[tuple[str, Any]], project: Project, run: str = "run") -> None:
    """That a sink was told of a run what lies in its directory."""
    kinds = [what for what, _ in told]
    assert kinds == ["open", *["cell"] * (len(kinds) - 2), "finish"]
    run_id, config = told[0][1]
    manifest = json.loads((project.path / run / "manifest.json").read_text())
    assert run_id == run == config["run_id"]
    assert config.items() <= manifest.items()
    rows = {f"{row.model}-{row.condition}": row.to_dict() for what, row in told if what == "cell"}
    on_disk = {cell: record["row"] for cell, record in project.cells(run).items()}
    assert rows == {cell: row for cell, row in on_disk.items() if row["status"] != "not_applicable"}
    assert len(rows) == len(kinds) - 2  # none twice
    board, files = told[-1][1]
    assert {row.model for row in board.rows} == {row["model"] for row in rows.values()}
    assert files["leaderboard.csv"] == board.to_csv()
    assert files["leaderboard.md"] == (project.path / run / "leaderboard.md").read_text()
    page = project.path / run / "report.html"
    assert files.get("report.html") == (page.read_text() if page.exists() else None)


def test_a_sink_is_told_of_a_run_what_lies_in_its_directory(project: Project, recorders: list[Recorder]) -> None:
    project.matrix("blur", "token_drop", models=("colour", "other"))
    given = ("--mae-sink", "recorder", "--mae-sink", "recorder:elsewhere")
    result = project.run("--mae-run", "run", "--mae-report", "page", *given)
    assert result.ret == 0
    assert (project.path / "run/report.html").exists()
    assert [one.place for one in recorders] == [None, "elsewhere"]
    for one in recorders:
        assert one.folder == project.path / "results"
        check(one.told, project)
    result.stdout.fnmatch_lines(["*= mae_bench: sinks =*", "recorder: look into the recorder"])


def test_a_resumed_run_is_sent_whole(project: Project, recorders: list[Recorder]) -> None:
    project.matrix("blur")
    project.run("--mae-run", "run", "-k", "box_blur")
    project.run("--mae-run", "run", "--mae-resume", "--mae-sink", "recorder")
    check(recorders[-1].told, project)


def test_cells_are_sent_as_they_finish(project: Project, recorders: list[Recorder]) -> None:
    seen: list[int] = []

    class Watch:
        @pytest.hookimpl(trylast=True)
        def pytest_runtest_logfinish(self) -> None:
            seen.append(sum(what == "cell" for what, _ in recorders[-1].told))

    project.matrix("blur")
    project.run("--mae-run", "run", "--mae-sink", "recorder", "-k", "box_blur", plugins=(Watch(),))
    assert seen == list(range(1, len(seen) + 1))


@pytest.mark.parametrize("fails", [ConnectionError, SystemExit])
@pytest.mark.parametrize("where", ["open", "cell", "finish"])
def test_a_sink_that_fails_is_named_and_changes_nothing(
    project: Project,
    recorders: list[Recorder],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    fails: type[BaseException],
) -> None:
    monkeypatch.setattr(Recorder, "fails", fails)
    project.matrix("blur")
    arguments = ("-k", "box_blur", "--mae-baseline", "none")
    without = project.run("--mae-run", "without", *arguments)
    result = project.run("--mae-run", "run", *arguments, "--mae-sink", f"recorder:{where}", "--mae-sink", "recorder")
    assert result.ret == without.ret == 0
    assert project.rows("run") == project.rows("without")
    assert result.parseoutcomes() == without.parseoutcomes()
    lines = [line for line in result.outlines if line.startswith("WARNING")]
    assert len(lines) == 1
    assert lines[0].startswith(f"WARNING: recorder:{where} failed ")
    assert lines[0].endswith(rf"{fails.__name__}: no way\x1b[2J to {where}")
    failed, other = recorders
    assert [what for what, _ in failed.told].count(where) == 1
    assert failed.told[-1][0] == where  # and is left alone from then on
    check(other.told, project)


@pytest.mark.parametrize(("says", "shown"), [(None, "sent"), ("a\x1b[2J\nb", r"a\x1b[2J\nb"), (3, "3")])
def test_what_a_sink_says_at_its_end_is_one_line_that_steers_nothing(
    project: Project, recorders: list[Recorder], says: Any, shown: str
) -> None:
    class Change:
        def pytest_sessionstart(self) -> None:
            recorders[-1].says = says

    project.matrix("clean")
    result = project.run("--mae-run", "run", "--mae-sink", "recorder", plugins=(Change(),))
    assert f"recorder: {shown}" in result.outlines


def test_a_sink_that_was_opened_is_ended_where_the_run_could_not_be_brought_together(
    project: Project, recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mae_bench.errors import BenchError

    def fail(*_: Any) -> None:
        raise BenchError("the disk is full")

    monkeypatch.setattr("mae_bench.tables.write_tables", fail)
    project.matrix("clean")
    result = project.run("--mae-run", "run", "--mae-sink", "recorder")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [what for what, _ in recorders[-1].told] == ["open", "cell", "finish"]
    board, files = recorders[-1].told[-1][1]
    assert (board.rows, files) == ((), {})
    result.stdout.fnmatch_lines(["WARNING: the run's cells could not be brought together*", "recorder: look into*"])


def test_without_room_for_the_table_a_sink_is_ended_all_the_same(
    project: Project, recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("mae_bench.pytest_plugin.sending.tempfile.TemporaryDirectory", fail)
    project.matrix("clean")
    result = project.run("--mae-run", "run", "--mae-sink", "recorder")
    assert result.ret == 0
    assert recorders[-1].told[-1][1][1].keys() == {"leaderboard.md"}
    result.stdout.fnmatch_lines(["WARNING: leaderboard.csv *OSError: no space left on device", "recorder: look into*"])


def test_without_a_sink_nothing_of_them_is_there_and_a_run_without_cells_sends_nothing(
    project: Project, recorders: list[Recorder]
) -> None:
    class Look:
        found: object = None

        def pytest_sessionstart(self, session: pytest.Session) -> None:
            plugins = session.config.pluginmanager.get_plugins()
            self.found = [plugin for plugin in plugins if isinstance(plugin, Sending)]

    look = Look()
    project.matrix("clean")
    project.run("--mae-run", "run", plugins=(look,))
    assert look.found == []
    project.run("--mae-run", "other", "--mae-sink", "recorder", "-k", "nothing")
    assert recorders[-1].told == []


@pytest.mark.thorough  # starts two workers
def test_of_workers_the_process_that_began_them_sends_alone(project: Project, recorders: list[Recorder]) -> None:
    project.matrix("blur", models=("colour", "other"))
    result = project.run("--mae-run", "run", "--mae-sink", "recorder", "-n", "2")
    assert result.ret == 0
    (one,) = recorders
    check(one.told, project)
