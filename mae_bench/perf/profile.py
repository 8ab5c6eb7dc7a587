"""Where the time of one degraded cell goes, function by function and operator by operator, as text."""

from __future__ import annotations

import cProfile
import io
import pstats
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from mae_bench.evaluation import Evaluation
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.models.zoo import bundled
from mae_bench.perf import PerfError
from mae_bench.perf.conditions import one_thread
from mae_bench.perf.engine import BUNDLED, CELL, LARGE, smooth_suite, trained
from mae_bench.settings import Settings
from mae_bench.suites import SUITES, Suite

SUBJECTS = {"bundled": 1024, "vit224": 128}
"""What can be profiled, to the images of its cell: a bundled model on the bundled suite, and a large one on made-up
images of 224 pixels, all of which are of the probe subset.
"""
FOLDER = "/mae_bench/"


def profile_text(subject: str, images: int = 0, top: int = 25) -> str:
    """The ``top`` functions and operators by the processor time that they take themselves, in one degraded cell of one
    of :data:`SUBJECTS`, on one thread; its clean pass is over before. ``images`` 0 means as many as are usual.

    Raises:
        PerfError: there is no such subject.
    """
    if subject not in SUBJECTS:
        raise PerfError(f"{subject!r} cannot be profiled: name one of {', '.join(SUBJECTS)}")
    count = images or SUBJECTS[subject]
    suite, name, build = _subject(subject, count)
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        model = Pool("cpu").load(ModelEntry(name), build)
        evaluation = Evaluation(suite, model, Settings(limit=count), Path(scratch), "profile")
        try:
            evaluation.run(*CELL)  # with it the clean pass, and what happens once in a process
            functions = _functions(lambda: evaluation.run(*CELL), top)
            operators = _operators(lambda: evaluation.run(*CELL), top)
        finally:
            evaluation.close()
    cell = f"{name}, {CELL[0]}-{CELL[1]}, {evaluation.images:,} images of {evaluation.inputs.view.width} pixels"
    versions = f"torch {torch.__version__}, one thread, batches of {evaluation.batch_size}"
    by_function = f"# Functions (cProfile, processor time)\n{functions}"
    return f"{cell}\n{versions}\n\n{by_function}\n# Operators (torch.profiler)\n{operators}"


def _subject(subject: str, images: int) -> tuple[Suite, str, Callable[[], object]]:
    if subject == "bundled":
        return SUITES["fashion_mnist"].load(None), BUNDLED, lambda: bundled(BUNDLED)
    name = LARGE["cpu"]
    return smooth_suite(images), name, lambda: trained(name)


def _functions(do: Callable[[], object], top: int) -> str:
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(do)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(top)
    lines = (_without_folder(line).rstrip() for line in text.getvalue().splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def _without_folder(line: str) -> str:
    """A line of a profile, which says of the package's own files where they are in it, of others what they are called.

    >>> _without_folder("  0.1  /home/me/mae_bench/evaluation.py:7(run)")
    '  0.1  mae_bench/evaluation.py:7(run)'
    """
    return re.sub(
        r"(?<= )/\S+/", lambda found: found[0][found[0].rfind(FOLDER) + 1 :] if FOLDER in found[0] else "", line
    )


def _operators(do: Callable[[], object], top: int) -> str:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        do()
    table: str = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=top, max_name_column_width=45)
    return "\n".join(line.rstrip() for line in table.splitlines()) + "\n"
