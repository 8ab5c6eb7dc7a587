"""The benchmark as a function, for a notebook or a script: the cells that pytest would run, by the same engine."""

from __future__ import annotations

import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from mae_bench.cells import Cell, near_name
from mae_bench.degradations.selection import selected
from mae_bench.errors import BenchError
from mae_bench.machine import cores
from mae_bench.markup import terminal_text
from mae_bench.models.subject import subjects_of
from mae_bench.restored import module_left_as_it_was, process_left_as_it_was
from mae_bench.results import Results
from mae_bench.suites import suite_entry

if TYPE_CHECKING:
    from torch import nn

    from mae_bench.settings import Settings
    from mae_bench.store import RunDirectory

Told = Callable[[int, int, str], None]
"""What is told of progress: how many cells are finished, of how many, and the id of the last one."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


class ArgumentError(BenchError):
    """An argument that cannot be used."""


def evaluate(
    model: nn.Module | str | Sequence[nn.Module | str] | Mapping[str, nn.Module | str],
    suite: str = "fashion_mnist",
    degradations: str | Sequence[str] | None = None,
    *,
    data: str | PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    run: str | PathLike[str] | None = None,
    progress: bool | Told | None = None,
) -> Results:
    """The cells of one or several models, clean and degraded, with the rows that ``pytest benchmarks`` gives them.

    Models are evaluated one after the other. They are left as they are: on their device, in training mode where they
    were, and torch with its number of threads.

    Args:
        model: a timm model, which brings its preprocessing, a :class:`mae_bench.Classifier` around any other network,
            the name of a bundled model or of one of timm's pretrained ones; or several, as a list or by name.
        suite: name of the suite of images; ``mae-bench suites`` lists them.
        degradations: names of degradations, families or groups, each at all levels of the suite, or single conditions
            such as ``"gaussian_blur-2.00"``; by default what ``pytest benchmarks`` runs. Clean images are always
            evaluated too.
        data: directory of the suite's images, where they are not bundled.
        limit: images, rounded up to whole blocks of 256, at least two; 0 for all; by default as many as pytest takes.
        seed: of the degradations.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        dtype: of the forward pass: ``auto`` (bfloat16 on a GPU, else float32), ``float32``, ``bfloat16`` or
            ``float16``.
        batch_size: images per forward pass; by default chosen.
        threads: of a CPU; by default as many as there are cores.
        run: a run directory, or where one is to be made, in which each cell is kept as soon as it is finished. What it
            holds of a model of the same name and weights on the same images with the same settings is not evaluated
            again, so that a call that was stopped goes on when it is repeated. The code of a network is not looked at:
            where it has changed, name another directory. By default what is finished is lost where a later cell
            cannot be.
        progress: True for a bar, False for none, or a function that is told how many cells are finished, of how many,
            and the id of the last; by default a bar where standard error is a terminal.

    Raises:
        BenchError: an argument, a model or the data cannot be used; the message names it and the remedy.

    >>> results = evaluate("mae_ft_s0", degradations=["gaussian_blur-2.00"], limit=512, threads=1)
    >>> results.to_frame()[["condition", "n", "top1"]].round(2)
                condition    n  top1
    0          clean-0.00  512  0.89
    1  gaussian_blur-2.00  512  0.50
    """
    entry = suite_entry(suite)
    conditions = selected([degradations] if isinstance(degradations, str) else degradations, entry)
    subjects = subjects_of(model)
    for name, value, least, bound in (
        ("limit", limit, 0, 2**31),
        ("seed", seed, 0, 2**32),
        ("batch_size", batch_size, 1, 2**31),
        ("threads", threads, 1, 2**31),
    ):
        if value is not None and not least <= value < bound:
            raise ArgumentError(f"{name} {value}: give a number from {least} to {bound - 1}")
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype {dtype!r}: {near_name(dtype, DTYPES)}")
    folder = None if data is None else Path(data).expanduser()
    cells = [Cell(subject.entry.name, kind.name, level) for subject in subjects for kind, level in conditions]
    with _explained(), process_left_as_it_was():
        entry.check(folder)
        settings = _settings(device, dtype, batch_size, seed, entry.default_limit if limit is None else limit, threads)
        with _directory(run) as directory:
            from mae_bench.executors.local import LocalExecutor
            from mae_bench.store import of_one_setting

            # of other calls, which the tables will hold too: what is damaged is better told now than in the end
            own = {directory.cell_path(cell) for cell in cells}
            others = [directory.read_cell_file(file) for file in directory.cell_files() if file not in own]
            directory.write_plan([cell.id for cell in cells], [])
            executor = LocalExecutor(entry, folder, settings, directory, resume=run is not None)
            finished = []
            with _told(progress, len(cells)) as told:
                for subject in subjects:
                    with module_left_as_it_was(subject.module):
                        try:
                            executor.load(subject.entry, subject.build)
                            executor.prepare()
                            for cell in (cell for cell in cells if cell.model == subject.entry.name):
                                finished.append(executor.run(cell)[0])
                                told(len(finished), len(cells), cell.id)
                        finally:
                            executor.release()
            images = directory.images()
            assert images is not None
            models = {name: record for name, record in directory.models().items() if name in {c.model for c in cells}}
            results = Results(tuple(finished), images, models, directory.manifest() or {})
            if run is not None:
                like = of_one_setting([*finished, *others], {cell.id for cell in cells})
                replace(results, cells=tuple(like)).write_tables(directory)
            return results


@contextmanager
def _directory(run: str | PathLike[str] | None) -> Iterator[RunDirectory]:
    """The directory of finished cells: the one that is named, in which no other session writes meanwhile, or one that
    goes when it is not needed any more.

    Raises:
        BenchError: what is named is there and no run directory, or cannot be used.
    """
    from mae_bench.store import LOCK, SESSION, RunDirectory

    if run is None:
        with tempfile.TemporaryDirectory(prefix="mae_bench-") as scratch:
            name = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
            yield RunDirectory.create(Path(scratch) / name, resume=False)
        return
    path = Path(run).expanduser().absolute()
    is_run = any((path / name).exists() for name in ("plan.json", "manifest.json"))
    if path.exists() and not is_run and (not path.is_dir() or {file.name for file in path.iterdir()} - {LOCK, SESSION}):
        raise ArgumentError(f"run {str(run)!r}: is there and is no run directory; name another place")
    directory = RunDirectory.create(path, resume=is_run)
    directory.hold()
    try:
        yield directory
    except BaseException as error:
        if directory.cell_files():
            error.add_note(f"What is finished is kept in {path}; without what stopped it the same call goes on.")
        raise
    finally:
        try:
            directory.remove_scratch()
        finally:
            directory.release()


def _settings(device: str, dtype: str, batch_size: int | None, seed: int, limit: int, threads: int | None) -> Settings:
    """Those of a session of pytest with the same options.

    Raises:
        BenchError: the device is not there.
    """
    from mae_bench.executors.local import resolved_device, resolved_dtype
    from mae_bench.settings import Settings

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ArgumentError(f"device {device!r}: {near_name(device, ('auto', 'cpu', 'cuda', 'cuda:0'))}")
    found = resolved_device(device)
    return Settings(
        device=found,
        dtype=resolved_dtype(dtype, found),
        batch_size=batch_size or 0,
        seed=seed,
        limit=limit,
        threads=threads or cores(),
    )


@contextmanager
def _explained() -> Iterator[None]:
    """An error that speaks of options of pytest says what they are here."""
    try:
        yield
    except BenchError as error:
        if "--mae-" in str(error):
            error.add_note("Options of pytest are arguments of evaluate: --mae-data DIR is data=DIR, and so on.")
        raise


@contextmanager
def _told(progress: bool | Told | None, total: int) -> Iterator[Told]:
    """What is to be told of each finished cell of ``total``."""
    if progress is None:
        progress = sys.stderr.isatty()
    if callable(progress):
        yield progress
        return
    if not progress:
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, total, cell: bar.update(task, completed=done, total=total, description=terminal_text(cell))


def _nothing(done: int, total: int, cell: str) -> None:
    """What is told where nobody listens."""
