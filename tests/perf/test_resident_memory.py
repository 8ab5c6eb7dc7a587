"""Memory is read from what the kernel says, mapped pages aside."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_bench.perf import PerfError, resident_memory
from mae_bench.perf.conditions import Conditions
from mae_bench.perf.measurement import SMALLER
from mae_bench.perf.resident_memory import STATUS, anonymous, peak

needs_status = pytest.mark.skipif(not STATUS.exists(), reason="this system has no /proc")
MB = 1_000_000


@needs_status
def test_what_is_allocated_is_seen_and_what_is_mapped_is_not(tmp_path: Path) -> None:
    (tmp_path / "mapped").write_bytes(bytes(60 * MB))
    before = anonymous(STATUS.read_text())
    with peak() as most:
        assert np.memmap(tmp_path / "mapped", mode="r").sum() == 0
    assert most[0] < before + 20
    # from the kernel: what has been freed in this process before may be used again, and is no more memory
    pages = mmap.mmap(-1, 60 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with peak() as most:
        np.frombuffer(pages, dtype=np.uint8)[:] = 1
    assert most[0] > before + 40


def test_a_kernel_that_does_not_tell_is_named() -> None:
    with pytest.raises(PerfError, match="no line RssAnon"):
        anonymous("VmRSS:\t 900 kB\n")


def test_growth_is_of_the_most_images_over_the_fewest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resident_memory, "STATUS", tmp_path)
    monkeypatch.setattr(resident_memory, "_peak_of_process", lambda images, *_: 200 + images / 1000)
    found = resident_memory.measured(Conditions(torch.device("cpu"))).measurements
    assert [(m.case, m.value) for m in found if m.unit == "MB"] == [
        ("1,000 images", 201.0), ("3,000 images", 203.0), ("10,000 images", 210.0),
        ("640 images of 224 px, vit_tiny_patch16_224", 200.64),
    ]  # fmt: skip
    [growth] = [m for m in found if m.unit == SMALLER]
    assert (growth.value, growth.goal) == (210 / 201, "memory")


def test_a_system_without_proc_measures_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resident_memory, "STATUS", tmp_path / "none")
    found = resident_memory.measured(Conditions(torch.device("cpu")))
    assert not found.measurements
    assert "not measured" in found.notes[0]


@needs_status
@pytest.mark.thorough
def test_a_process_tells_its_peak() -> None:
    assert resident_memory._peak_of_process(300) > 50
