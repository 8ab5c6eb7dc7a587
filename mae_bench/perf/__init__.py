"""What the benchmark costs beside the forward passes, measured side by side with its peers in one run.

A section (:data:`SECTIONS`) times pieces of work in turns (:mod:`mae_bench.perf.timing`) and gives measurements, which
make a record, a page, a chart, and a comparison with an earlier run of the same machine.
"""

from __future__ import annotations

from mae_bench.errors import BenchError

SECTIONS = ("degradations", "corruptions", "engine", "harness", "collection", "memory", "workers")
"""What can be measured alone, in the order of the page."""


class PerfError(BenchError):
    """A measurement that cannot be made or compared."""
