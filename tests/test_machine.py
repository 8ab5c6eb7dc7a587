"""Machines that compute alike have one name, others another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mae_bench.machine import ask_for_large_pages, libraries, machine, processor

INTEL = """processor	: 0
vendor_id	: GenuineIntel
cpu family	: 6
model		: 85
model name	: Intel(R) Xeon(R) CPU @ 2.00GHz
stepping	: 3
cpu MHz		: 2000.178
flags		: fpu sse avx2 avx512f

processor	: 1
vendor_id	: GenuineIntel
cpu MHz		: 1999.999
"""


@pytest.fixture
def info(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(INTEL)
    return path


def test_processor_is_named(info: Path) -> None:
    assert processor(info).startswith("Intel(R) Xeon(R) CPU @ 2.00GHz [")
    assert machine("cpu") == machine("cpu") != ""


@pytest.mark.parametrize(
    ("here", "there"), [("avx512f", "avx512f avx512_vnni"), (": 85", ": 106"), ("stepping\t: 3", "stepping\t: 7")]
)
def test_rented_machines_of_one_name_are_told_apart_by_what_kernels_are_chosen_by(
    info: Path, here: str, there: str
) -> None:
    before = processor(info)
    info.write_text(INTEL.replace(here, there))
    assert processor(info) != before
    assert processor(info).split(" [")[0] == before.split(" [")[0]


def test_clock_and_number_of_cores_make_no_other_machine(info: Path) -> None:
    before = processor(info)
    info.write_text(INTEL.replace("2000.178", "2444.1").partition("\n\n")[0] + "\n")
    assert processor(info) == before


def test_without_linux_the_processor_has_some_name(tmp_path: Path) -> None:
    assert processor(tmp_path / "nothing") != ""


def test_libraries_are_named_with_their_versions() -> None:
    words = libraries().split()
    assert words[::2] == ["kornia", "numpy", "pillow", "timm", "torchvision"]
    assert all(version[0].isdigit() for version in words[1::2])


@pytest.mark.parametrize(
    ("kernel", "before", "after"),
    [
        ("always [madvise] never", None, "1"),
        ("[always] madvise never", None, "1"),
        ("always madvise [never]", None, None),
        (None, None, None),
        ("always [madvise] never", "0", "0"),
    ],
)
def test_large_pages_are_asked_for_where_they_can_be_had_and_nobody_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str | None, before: str | None, after: str | None
) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", before or "")  # so that what is set here does not stay
    if before is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    if kernel is not None:
        (tmp_path / "enabled").write_text(kernel + "\n")
    monkeypatch.setattr("mae_bench.machine.LARGE_PAGES", tmp_path / "enabled")
    ask_for_large_pages()
    assert os.environ.get("THP_MEM_ALLOC_ENABLE") == after
