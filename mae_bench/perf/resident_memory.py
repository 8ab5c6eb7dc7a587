"""What a run holds in memory by its number of images, the pages of mapped files aside, which the system takes back."""

from __future__ import annotations

import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mae_bench.evaluation import Evaluation
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.models.zoo import bundled
from mae_bench.perf import PerfError
from mae_bench.perf.conditions import Conditions, one_thread
from mae_bench.perf.engine import BUNDLED, CELL, LARGE, smooth_suite, trained
from mae_bench.perf.measurement import SMALLER, Findings, Measurement
from mae_bench.perf.processes import finished
from mae_bench.perf.timing import Spread, ratio
from mae_bench.settings import Settings
from mae_bench.suites import SUITES

SECTION = "memory"
IMAGES = (1_000, 3_000, 10_000)
LARGE_IMAGES = 640
"""Images of 224 pixels: the probe subset, whose patch tokens are kept and compared, and half a block behind it."""
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
    if not conditions.quick:
        large = Spread.of([_peak_of_process(LARGE_IMAGES, LARGE["cpu"])])
        case = f"{LARGE_IMAGES} images of 224 px, {LARGE['cpu']}"
        found.append(Measurement.of(SECTION, case, "mae_bench", "MB", large))
    note = "greatest RssAnon of the process while it evaluates the clean and a degraded cell, PyTorch and all"
    return Findings(found, [note])


def _peak_of_process(images: int, model: str = BUNDLED) -> float:
    with tempfile.TemporaryDirectory() as folder:
        said = finished(["-m", __name__, str(images), model], Path(folder)).output
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


def peak_of(images: int, model: str, scratch: Path) -> float:
    """MB at most while the clean cell and a degraded one of ``model`` are evaluated on the first ``images``: of the
    bundled suite by a bundled model, of smooth ones of 224 pixels by one of timm's.
    """
    small = model == BUNDLED
    with one_thread():
        suite = SUITES["fashion_mnist"].load(None) if small else smooth_suite(images)
        pool = Pool("cpu")
        loaded = pool.load(ModelEntry(model), lambda: bundled(model) if small else trained(model))
        evaluation = Evaluation(suite, loaded, Settings(limit=images), scratch, "perf")
        try:
            with peak() as most:
                evaluation.run(*CELL)
        finally:
            evaluation.close()
    return most[0]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(f"{peak_of(int(sys.argv[1]), sys.argv[2], Path(folder))}\n")
