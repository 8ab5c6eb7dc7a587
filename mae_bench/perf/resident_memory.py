"""What a run holds in memory by its number of images, the pages of mapped files aside, which the system takes back."""

from __future__ import annotations

import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mae_bench.perf import PerfError
from mae_bench.perf.conditions import Conditions
from mae_bench.perf.measurement import SMALLER, Findings, Measurement
from mae_bench.perf.processes import finished
from mae_bench.perf.timing import Spread, ratio

SECTION = "memory"
IMAGES = (1_000, 3_000, 10_000)
STATUS = Path("/proc/self/status")
EVERY = 0.01
"""Seconds between two looks at the status."""


def measured(conditions: Conditions) -> Findings:
    """A process for each number of images, which evaluates the clean cell and a degraded one of the bundled model."""
    if not STATUS.exists():
        return Findings(notes=[f"resident memory is not measured: this system has no {STATUS}"])
    counts = IMAGES[:: conditions.either(1, 2)]
    taken = {count: Spread.of([_peak_of_process(count)]) for count in counts}
    found = [Measurement.of(SECTION, f"{count:,} images", "mae_bench", "MB", spread) for count, spread in taken.items()]
    growth = ratio(taken[counts[-1]].values, taken[counts[0]].values)
    case = f"{counts[-1]:,} images against {counts[0]:,}"
    found.append(Measurement.of(SECTION, case, "mae_bench", SMALLER, growth, "memory"))
    note = "greatest RssAnon of the process while it evaluates the clean and a degraded cell, PyTorch and all"
    return Findings(found, [note])


def _peak_of_process(images: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        said = finished(["-m", __name__, str(images)], Path(folder)).output
    return float(said.split()[-1])


def anonymous(status: str) -> float:
    """MB of anonymous pages that /proc/<pid>/status tells of.

    Raises:
        PerfError: it tells nothing of them.

    >>> anonymous("VmRSS:\\t  900 kB\\nRssAnon:\\t    2000 kB\\n")
    2.0
    """
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise PerfError(f"{STATUS} has no line RssAnon: this kernel does not tell mapped pages from others")
    return int(found[1]) / 1000


@contextmanager
def peak() -> Iterator[list[float]]:
    """The greatest anonymous memory of this process inside, as the only entry of the list once it is left."""
    most: list[float] = [0.0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY):
            most[0] = max(most[0], anonymous(STATUS.read_text()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()
        most[0] = max(most[0], anonymous(STATUS.read_text()))


def evaluate(images: int, scratch: Path) -> None:
    """The clean cell and a degraded one of the bundled model on the first ``images`` of the bundled suite."""
    from mae_bench.evaluation import Evaluation
    from mae_bench.models.pool import Pool
    from mae_bench.models.registry import ModelEntry
    from mae_bench.models.zoo import bundled
    from mae_bench.perf.conditions import one_thread
    from mae_bench.perf.engine import BUNDLED, CELL
    from mae_bench.settings import Settings
    from mae_bench.suites import SUITES

    with one_thread():
        suite = SUITES["fashion_mnist"].load(None)
        model = Pool("cpu").load(ModelEntry(BUNDLED), lambda: bundled(BUNDLED))
        evaluation = Evaluation(suite, model, Settings(limit=images), scratch, "perf")
        try:
            evaluation.run(*CELL)
        finally:
            evaluation.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, peak() as most:
        evaluate(int(sys.argv[1]), Path(folder))
    sys.stdout.write(f"{most[0]}\n")
