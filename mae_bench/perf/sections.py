"""The sections of a run, one after the other, each on the disk as soon as it is done."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

from mae_bench.machine import keep_freed_memory
from mae_bench.perf import SECTIONS, PerfError
from mae_bench.perf.chart import chart
from mae_bench.perf.conditions import Conditions, one_thread
from mae_bench.perf.measurement import Findings
from mae_bench.perf.page import page
from mae_bench.perf.record import Record
from mae_bench.store import write_together

MODULES = {name: "resident_memory" if name == "memory" else name for name in SECTIONS}
ON_GPU = ("degradations", "corruptions", "engine", "options")
"""Sections that a GPU has something to do with."""
BESIDE_PEERS = ("degradations", "corruptions")
"""Sections in which memory comes as it does to users of the peers, not kept as in a session; they are the first."""
QUICK = ("degradations", "corruptions", "engine", "harness", "collection")
"""Sections that can be had in seconds."""


def sections_of(conditions: Conditions, only: Sequence[str] = ()) -> list[str]:
    """Those that are measured under ``conditions``, or of them ``only`` some.

    Raises:
        PerfError: one is asked for that has nothing to do with a GPU.
    """
    on_gpu = conditions.device.type == "cuda"
    if wrong := [name for name in only if on_gpu and name not in ON_GPU]:
        raise PerfError(f"--only {wrong[0]}: is measured with --device cpu; a GPU has no part in it")
    possible = ON_GPU if on_gpu else QUICK if conditions.quick else SECTIONS
    return [name for name in SECTIONS if name in (only or possible)]


def measure(
    conditions: Conditions, out: Path, only: Sequence[str] = (), tell: Callable[[str], object] = lambda _: None
) -> Record:
    """Measure sections, and write record, page and chart into ``out`` after each, named after the device. Sections that
    an earlier run left there under the same conditions stay, where they are not measured again.

    Raises:
        PerfError: a section cannot be measured; those before it are on the disk.
    """
    names = sections_of(conditions, only)
    record = Record.begun(conditions)
    path = out / f"{slug(conditions.device)}.json"
    if path.exists():
        before = Record.read(path)
        if differing(before, record):
            tell(f"{path} is of other conditions ({', '.join(differing(before, record))}): it is replaced")
        else:
            record = replace(record, sections=before.sections)
    with one_thread():
        for name in names:
            tell(f"{name} ...")
            if name not in BESIDE_PEERS:
                keep_freed_memory()
            record = record.with_section(name, measured(name, conditions))
            write(record, path)
    return record


def measured(name: str, conditions: Conditions) -> Findings:
    """What the section called ``name`` finds."""
    findings: Findings = import_module(f"mae_bench.perf.{MODULES[name]}").measured(conditions)
    return findings


def differing(one: Record, other: Record) -> list[str]:
    """What two records differ in before anything is measured: neither page nor ratio may mix that."""
    mine, theirs = one.surroundings() | one.versions, other.surroundings() | other.versions
    found = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
    return found + ["rounds"] * (one.rounds != other.rounds)


def write(record: Record, path: Path) -> None:
    """Put the record at ``path``, with its page and, where it can be drawn, its chart beside it."""
    drawn, why_not = chart(record)
    text = page(record, path.with_suffix(".svg").name if drawn else None, why_not)
    files = {path: record.to_json().encode(), path.with_suffix(".md"): text.encode()}
    if drawn:
        files[path.with_suffix(".svg")] = drawn
    write_together(files)


def slug(device: torch.device) -> str:
    """The name of files about ``device``: the GPU's, or ``cpu``.

    >>> slug(torch.device("cpu"))
    'cpu'
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
