"""Python in a process of its own, with what it used of the processor."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mae_bench.perf import PerfError


@dataclass(frozen=True)
class Finished:
    """What a process said, its seconds by the clock on the wall, and those that it had the processor for."""

    output: str
    elapsed: float
    processor: float


def finished(arguments: Sequence[str], folder: Path, cores: Collection[int] = ()) -> Finished:
    """Python with ``arguments`` in ``folder``, on the given ``cores`` where any are.

    Raises:
        PerfError: it ended with another exit code than 0; the message holds the end of what it said.
    """
    environment = dict(os.environ, MAE_BENCH_CACHE=str(folder / "cache"))
    # options of the caller's pytest, and what an xdist worker tells its children, are none of theirs
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_CURRENT_TEST", "CI"):
        environment.pop(name, None)
    with tempfile.TemporaryFile(dir=folder) as said:
        started = time.perf_counter()
        with _pinned(cores):
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT
            )
        _, status, used = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        output = said.read().decode(errors="replace")
    if process.returncode:
        command = " ".join(["python", *arguments])
        raise PerfError(f"{command} ended with exit code {process.returncode}: {output[-2000:].strip()}")
    return Finished(output, elapsed, used.ru_utime + used.ru_stime)


@contextmanager
def _pinned(cores: Collection[int]) -> Iterator[None]:
    """Inside, processes are started on ``cores``."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
