"""Machines that compute alike have one name, others another."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mae_bench.machine import KEPT_BY, ask_for_large_pages, libraries, machine, processor

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


AGAIN = """
import resource
from mae_bench.machine import keep_freed_memory
keep_freed_memory()
import torch
pages = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers = [torch.ones(2_000_000) for _ in range(30)]
    del layers
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(pages[0], pages[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is asked of glibc")
@pytest.mark.parametrize(("decided", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_memory_that_is_taken_again_is_not_new_unless_users_decide(decided: dict[str, str], kept: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in KEPT_BY}
    told = subprocess.run(
        [sys.executable, "-c", AGAIN], env=environment | decided, capture_output=True, text=True, check=True
    )
    first, last = map(int, told.stdout.split())
    assert first > 100  # 240 MB, in large pages where the kernel gives them to all
    assert (last < 0.1 * first) is kept
