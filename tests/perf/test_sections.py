"""Sections are on the disk as soon as they are done, under one set of conditions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from mae_bench import cli
from mae_bench.perf import SECTIONS, PerfError, profile, sections
from mae_bench.perf.conditions import Conditions, one_thread
from mae_bench.perf.measurement import LONGER, Findings, Measurement
from mae_bench.perf.record import Record
from mae_bench.perf.sections import measure, sections_of

CPU = Conditions(torch.device("cpu"))


class Measured:
    """Sections that cost nothing: what each finds, and which were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.value, self.broken = 1.0, ""

    def __call__(self, name: str, _: Conditions) -> Findings:
        self.asked.append(name)
        assert torch.get_num_threads() == 1
        if name == self.broken:
            raise PerfError(f"{name} cannot be measured")
        unit = "MB" if name == "memory" else LONGER
        return Findings([Measurement(name, "1 case", "subject", unit, self.value, self.value - 0.1, self.value + 0.1)])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    made = Measured()
    monkeypatch.setattr(sections, "measured", made)
    monkeypatch.setattr(sections, "chart", lambda _: (b"<svg/>", ""))
    return made


def perf(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["perf", *map(str, arguments)])


def test_the_command_line_knows_every_section() -> None:
    refusal = perf("--only", "nothing")
    assert refusal.exit_code == 2
    assert tuple(re.findall(r"'(\w+)'", refusal.output.partition("is not one of")[2])) == SECTIONS


def test_every_section_has_a_module() -> None:
    for name in SECTIONS:
        module = sections.import_module(f"mae_bench.perf.{sections.MODULES[name]}")
        assert name == module.SECTION
        assert callable(module.measured)


def test_which_sections_are_measured() -> None:
    assert sections_of(CPU) == list(SECTIONS)
    assert sections_of(CPU, ["workers", "engine"]) == ["engine", "workers"]
    quick = sections_of(Conditions(torch.device("cpu"), quick=True))
    assert set(quick) < set(SECTIONS)
    gpu = Conditions(torch.device("cuda"))
    assert sections_of(gpu) == ["degradations", "corruptions", "engine", "options"]
    with pytest.raises(PerfError, match="--only memory: is measured with --device cpu"):
        sections_of(gpu, ["memory"])


def test_a_run_writes_record_page_and_chart(measured: Measured, tmp_path: Path) -> None:
    told: list[str] = []
    record = measure(CPU, tmp_path / "new", tell=told.append)
    assert measured.asked == list(SECTIONS)
    assert told == [f"{name} ..." for name in SECTIONS]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"cpu.json", "cpu.md", "cpu.svg"}
    assert Record.read(tmp_path / "new" / "cpu.json") == record
    assert "![ratios beside the goals](cpu.svg)" in (tmp_path / "new" / "cpu.md").read_text()


def test_what_was_measured_before_a_failure_is_kept_and_gone_on_with(measured: Measured, tmp_path: Path) -> None:
    measured.broken = "harness"
    with pytest.raises(PerfError, match="harness cannot be measured"):
        measure(CPU, tmp_path)
    assert list(Record.read(tmp_path / "cpu.json").sections) == ["degradations", "corruptions", "engine", "options"]
    measured.broken, measured.value = "", 2.0
    record = measure(CPU, tmp_path, ["harness", "engine"])
    assert {m.section: m.value for m in record.measurements} == {
        "degradations": 1.0, "corruptions": 1.0, "engine": 2.0, "options": 1.0, "harness": 2.0,
    }  # fmt: skip


@pytest.mark.usefixtures("measured")
def test_sections_of_other_conditions_are_not_mixed(tmp_path: Path) -> None:
    measure(CPU, tmp_path, ["engine"])
    told: list[str] = []
    record = measure(Conditions(torch.device("cpu"), rounds=7), tmp_path, ["harness"], told.append)
    assert list(record.sections) == ["harness"]
    assert "cpu.json is of other conditions (rounds): it is replaced" in told[0]


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_the_command_prints_the_goals_and_compares(measured: Measured, tmp_path: Path) -> None:
    first = perf("--out", tmp_path, "--only", "engine")
    assert first.exit_code == 0, first.output
    assert "| figure" in first.stdout
    record = tmp_path / "cpu.json"
    same = perf("--out", tmp_path / "new", "--only", "engine", "--against", record)
    assert same.exit_code == 0
    assert "0 of 1 ratios moved" in same.stdout
    measured.value = 2.0
    slower = perf("--out", tmp_path / "new", "--only", "engine", "--against", record)
    assert slower.exit_code == 1
    assert "worse: engine, 1 case, subject" in slower.stdout
    measured.value = 0.5
    faster = perf("--out", tmp_path, "--only", "engine", "--against", record)  # which it then replaces
    assert faster.exit_code == 0
    assert "better: engine, 1 case, subject" in faster.stdout


def test_the_command_refuses_what_it_cannot_compare_before_it_measures(measured: Measured, tmp_path: Path) -> None:
    result = perf("--against", tmp_path / "none.json", "--out", tmp_path)
    assert result.exit_code == 2
    assert "is no record of mae-bench perf" in result.stderr
    assert not measured.asked
    assert perf("--only", "speed").exit_code == 2


def test_another_machine_is_refused(measured: Measured, record: Callable[..., Record], tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(record(Measurement("engine", "1 case", "subject", LONGER, 1.0, 0.9, 1.1)).to_json())
    result = perf("--out", tmp_path / "new", "--only", "engine", "--against", path)
    assert result.exit_code == 2
    assert "two runs of different machine cannot be compared: a processor before" in result.stderr
    assert measured.asked == ["engine"]


def test_profiles_are_written_instead(measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "profile_text", lambda subject: f"profile of {subject}")
    result = perf("--profile", tmp_path / "new")
    assert result.exit_code == 0, result.output
    files = sorted((tmp_path / "new").iterdir())
    assert [file.name for file in files] == ["profile-bundled.txt", "profile-vit224.txt"]
    assert files[0].read_text() == "profile of bundled"
    assert not measured.asked
