"""A record is read as it was written, and nothing else is taken for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mae_bench.perf import PerfError
from mae_bench.perf.conditions import Conditions
from mae_bench.perf.measurement import Findings, Measurement
from mae_bench.perf.record import Record, versions


def test_what_is_written_is_read(record: Callable[..., Record], whole: list[Measurement], tmp_path: Path) -> None:
    made = record(*whole, notes={"engine": ["a note"]})
    made = made.with_section(
        "harness", Findings([replace(whole[0], section="harness", values=(1.0, 2.0), method="fft")])
    )
    path = tmp_path / "cpu.json"
    path.write_text(made.to_json())
    assert Record.read(path) == made


def test_sections_keep_their_order_and_are_replaced(record: Callable[..., Record], whole: list[Measurement]) -> None:
    made = record(*whole)
    again = made.with_section("degradations", Findings(notes=["new"]))
    assert list(again.sections) == list(made.sections)
    assert again.sections["degradations"] == Findings(notes=["new"])
    assert made.sections["degradations"].measurements  # the one before is as it was


def test_a_record_knows_where_it_was_made() -> None:
    made = Record.begun(Conditions(torch.device("cpu"), 7, True))
    assert (made.device, made.rounds, made.quick, made.sections) == ("cpu", 7, True, {})
    assert made.machine
    assert made.versions == versions()
    assert {"python", "mae_bench", "torch", "kornia"} <= made.versions.keys()
    assert "mae_bench" not in made.surroundings()  # which is what is compared


@pytest.mark.parametrize(
    "change",
    [
        lambda known: known | {"schema": 2},
        lambda known: {name: value for name, value in known.items() if name != "machine"},
        lambda known: known | {"sections": {"engines": {"measurements": [], "notes": []}}},
        lambda known: known | {"sections": {"engine": {"measurements": [{"value": 1}], "notes": []}}},
        lambda known: known | {"sections": {"engine": []}},
        lambda known: [known],
    ],
    ids=["schema", "field", "section", "measurement", "findings", "list"],
)
def test_what_is_no_record_is_refused_by_its_path(
    record: Callable[..., Record], tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(change(json.loads(record().to_json()))))
    with pytest.raises(PerfError, match=r"old\.json is no record of mae-bench perf"):
        Record.read(path)


def test_an_unknown_unit_is_refused(record: Callable[..., Record], whole: list[Measurement], tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(record(replace(whole[0], unit="furlongs")).to_json())
    with pytest.raises(PerfError, match="no unit 'furlongs'"):
        Record.read(path)


@pytest.mark.parametrize("content", ["", "no json", "\x00"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(content)
    with pytest.raises(PerfError, match="is no record"):
        Record.read(path)
    with pytest.raises(PerfError, match="is no record"):
        Record.read(tmp_path / "missing.json")


def test_numbers_that_are_none_are_not_written(record: Callable[..., Record], whole: list[Measurement]) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        record(replace(whole[0], value=float("nan"))).to_json()
