"""What the benchmark costs beside the forward passes, measured side by side with its peers in one run.

A section (:data:`SECTIONS`) times pieces of work in turns (:mod:`mae_bench.perf.timing`) and gives measurements, which
make a record, a page, a chart, and a comparison with an earlier run of the same machine.
"""

from __future__ import annotations

from enum import StrEnum

from mae_bench.errors import BenchError


class Section(StrEnum):
    """What can be measured alone, in the order of the page."""

    degradations = "degradations"
    corruptions = "corruptions"
    engine = "engine"
    options = "options"
    harness = "harness"
    collection = "collection"
    memory = "memory"
    workers = "workers"


SECTIONS = tuple(section.value for section in Section)
"""Their names."""


class PerfError(BenchError):
    """A measurement that cannot be made or compared."""
