"""Memory runs out, on the device or on the host: the run goes on with half as many images at a time and says so in its
rows, or ends in one clear error; what was finished is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from faults.prepared import Interpreter
from faults.reliability import Injection
from mae_bench.cells import Cell
from mae_bench.errors import BenchError
from mae_bench.executors.local import LocalExecutor
from mae_bench.models.classifier import Classifier
from mae_bench.models.registry import ModelEntry
from mae_bench.rows import CellResult
from mae_bench.settings import Settings
from mae_bench.store import RunDirectory
from mae_bench.suites import Suite, SuiteEntry

Journal = Callable[[Injection], None]
Build = Callable[..., Any]

CELLS = [Cell.parse(f"vit-{condition}") for condition in ("clean-0.00", "gaussian_blur-1.00", "token_drop-0.50")]
AT_ONCE = 64
MOMENTARY = ("seconds", "images_per_second", "run_id", "batch_size")

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("could not create a primitive"),
)
"""What is said where memory runs out: of a card, by Python, by torch, by C++, and by oneDNN."""


@dataclass(frozen=True)
class InMemory(SuiteEntry):
    """The entry of a suite that is in memory, whose decoded images runs share. What it holds is noise, of which no
    network is expected to know.
    """

    suite: Suite | None = None

    def load(self, data: Path | None) -> Suite:  # noqa: ARG002
        assert self.suite is not None
        return replace(self.suite, entry=self)


class Narrow(nn.Module):
    """From the forward pass ``since`` on, counted after those that try the model out, a pass of more than ``room``
    images ends in ``error``.
    """

    def __init__(
        self, network: nn.Module, since: float = math.inf, room: int = 0, error: Exception = ERRORS[0]
    ) -> None:
        super().__init__()
        self.network, self.since, self.room, self.error = network, since, room, error
        self.passes = self.raised = 0
        network.register_forward_pre_hook(self.limit)

    def limit(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.passes += len(args[0]) > 2
        if self.passes >= self.since and len(args[0]) > self.room:
            self.raised += 1
            raise self.error


class Bench:
    """Runs of the same cells of the same network, each in a directory of its own."""

    def __init__(self, entry: InMemory, build: Build, path: Path) -> None:
        self.entry, self.build, self.path = entry, build, path
        self.undisturbed = cache(self._undisturbed)

    def executor(self, narrow: Narrow, batch_size: int) -> LocalExecutor:
        run = RunDirectory.create(self.path / str(len(list(self.path.glob("*")))), resume=False)
        executor = LocalExecutor(self.entry, None, Settings(batch_size=batch_size), run, resume=False)
        model = Classifier(narrow.network, mean=(0.5,), std=(0.5,), input_size=(1, 28, 28))
        executor.load(ModelEntry("vit"), lambda: model)
        narrow.passes = 0
        return executor

    def _undisturbed(self, batch_size: int) -> tuple[list[CellResult], list[int]]:
        """What the cells are, and how many passes each had."""
        narrow = Narrow(self.build())
        executor = self.executor(narrow, batch_size)
        results, passes = [], []
        for cell in CELLS:
            results.append(executor.run(cell)[0])
            passes.append(narrow.passes)
        executor.release()
        return results, passes


def equal(one: CellResult, other: CellResult) -> bool:
    """But for what batches of other sizes change by rounding."""
    rows = [result.row.to_dict() for result in (one, other)]
    numbers = all(
        rows[0][name] == pytest.approx(rows[1][name], abs=1e-4) if isinstance(rows[0][name], float)
        else rows[0][name] == rows[1][name]
        for name in rows[0].keys() - MOMENTARY
    )  # fmt: skip
    return numbers and one.row.top1 == other.row.top1 and bool(np.array_equal(one.prediction, other.prediction))


@pytest.fixture
def bench(random_suite: Build, small_vit: Build, tmp_path: Path) -> Bench:
    """Three cells of three passes each."""
    entry = InMemory("random_images", 28, 0, False, "noise", adversarial=True, suite=random_suite(150))
    (tmp_path / "runs").mkdir()
    return Bench(entry, small_vit, tmp_path / "runs")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("count", [8, pytest.param(40, marks=pytest.mark.faults)])
def test_a_run_that_has_too_little_memory_goes_on_with_smaller_batches(
    count: int, bench: Bench, journal: Journal
) -> None:
    _, passes = bench.undisturbed(AT_ONCE)
    lost = silent = short = 0
    sizes = set()
    for number in range(count):
        generator = np.random.default_rng(number)
        since, room = int(generator.integers(1, passes[-1] + 1)), int(generator.integers(10, AT_ONCE))
        narrow = Narrow(bench.build(), since, room, ERRORS[number % len(ERRORS)])
        executor = bench.executor(narrow, AT_ONCE)
        for place, cell in enumerate(CELLS):
            result, _ = executor.run(cell)
            size = result.row.batch_size
            sizes.add(size)
            silent += (size < AT_ONCE) != (narrow.raised > 0)
            lost += not equal(result, bench.undisturbed(size)[0][place])
        short += narrow.raised > 0
        executor.release()
    assert short > count / 2
    journal(
        Injection(
            failure="memory",
            what="a forward pass, of all passes of three cells any, has room for fewer images than before",
            count=short,
            behaviour=f"The batch is halved until it fits (down to {min(sizes)} images) and stands in the row; "
            "top-1 and predictions are those of a run at that size, other numbers within 1e-4; "
            "cells that were finished are as they were.",
            lost=lost,
            silent=silent,
        )
    )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("count", [5, pytest.param(20, marks=pytest.mark.faults)])
def test_a_model_of_which_no_image_fits_ends_in_one_error_and_keeps_what_was_finished(
    count: int, bench: Bench, journal: Journal
) -> None:
    whole, passes = bench.undisturbed(AT_ONCE)
    lost = silent = 0
    for number in range(count):
        since = int(np.random.default_rng(number).integers(1, passes[-1] + 1))
        executor = bench.executor(Narrow(bench.build(), since, 0, ERRORS[number % len(ERRORS)]), AT_ONCE)
        for place, cell in enumerate(CELLS):
            try:
                result, _ = executor.run(cell)
                silent += passes[place] >= since
                lost += not equal(result, whole[place])
            except BenchError as error:
                silent += "no memory left for a forward pass of a single image" not in str(error)
                lost += passes[place] < since
        finished = {cell.condition for cell, known in zip(CELLS, passes, strict=True) if known < since}
        on_disk = {path.stem for path in executor.run_directory.path.glob("cells/*/*.json")}
        lost += not finished <= on_disk
        silent += not on_disk <= finished
        executor.release()
    journal(
        Injection(
            failure="memory",
            what="from some forward pass on there is no room for a single image",
            count=count,
            behaviour="The cell ends in an error that names the model, the device and what was said of memory; cells "
            "that were finished stay on the disk.",
            lost=lost,
            silent=silent,
        )
    )


# --------------------------------------------------------------------------- a host that really has none

LIMITED = """
import json, re, resource
from pathlib import Path

from mae_bench.cells import Cell
from mae_bench.errors import BenchError
from mae_bench.settings import Settings
from mae_bench.executors.local import LocalExecutor
from mae_bench.models.registry import ModelEntry
from mae_bench.models.zoo import bundled
from mae_bench.store import RunDirectory
from mae_bench.suites import suite_entry

CELLS = [Cell.parse(f"cnn-{{condition}}") for condition in ("clean-0.00", "gaussian_blur-1.00", "random_patch-0.50")]


def executor(batch_size):
    run = RunDirectory.create(Path("run"), resume=True)
    made = LocalExecutor(
        suite_entry("fashion_mnist"), None, Settings(limit=512, batch_size=batch_size), run, resume=True
    )
    made.load(ModelEntry("cnn"), lambda: bundled("cnn_s0"))
    return made


first = executor(64)
said = [["finished", result.row.batch_size, result.row.top1] for result, _ in map(first.run, CELLS[:2])]
first.release()
for path in Path("run/cells").glob("*/clean*"):
    path.unlink()  # so that the clean pass is made again, with less memory
second = executor(512)
second.evaluation.inputs.decode()
used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + ({room} << 20),) * 2)
for cell in CELLS:
    try:
        result, _ = second.run(cell)
        said.append(["row", result.row.batch_size, result.row.top1])
    except BenchError as error:
        said.append(["error", str(error), None])
print(json.dumps(said))
"""


@pytest.mark.faults  # starts interpreters
@pytest.mark.parametrize("rooms", [(0, 4, 8, 24, 48, 96, 2000)], ids=len)
def test_a_host_without_memory_ends_in_smaller_batches_or_one_error(
    rooms: tuple[int, ...], interpreter: Interpreter, tmp_path: Path, journal: Journal
) -> None:
    lost = silent = 0
    fates: dict[int, str] = {}
    for room in rooms:
        folder = tmp_path / str(room)
        folder.mkdir()
        with (folder / "said").open("w+") as output:
            status = interpreter.start(LIMITED.format(room=room), folder, output, {"OMP_NUM_THREADS": "1"}).wait()
            output.seek(0)
            printed = output.read()
        assert status == 0, printed
        finished, kept, *rest = json.loads(printed.splitlines()[-1])
        assert finished[0] == kept[0] == "finished"
        errors = {said for kind, said, _ in rest if kind == "error"}
        silent += not all("memory" in error and len(error) < 600 for error in errors)
        silent += any(kind == "row" and not 1 <= size <= 512 for kind, size, _ in rest)
        lost += any(
            top1 != known for (kind, _, top1), known in zip(rest, (finished[2], kept[2]), strict=False) if kind == "row"
        )
        lost += not (folder / "run/cells/cnn/gaussian_blur-1.00.json").exists()
        fates[room] = "an error" if errors else f"batches of {rest[-1][1]}"
    journal(
        Injection(
            failure="memory",
            what="a process may have no more than so many MiB of further memory (RLIMIT_AS)",
            count=len(rooms),
            behaviour="; ".join(f"{room} MiB: {fate}" for room, fate in fates.items())
            + ". Errors name memory and the remedy; finished cells stay.",
            lost=lost,
            silent=silent,
        )
    )
