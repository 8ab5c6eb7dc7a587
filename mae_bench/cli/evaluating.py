"""``mae-bench run``: an evaluation, by the pytest command that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mae_bench.cli.program import degradation_names, model_names, reported, suite_names
from mae_bench.errors import BenchError
from mae_bench.markup import terminal_text


def run(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A bundled model, a fixture of the project, or one of timm's by its full name; repeatable.",
            autocompletion=model_names,
        ),
    ] = None,
    degradation: Annotated[
        list[str] | None,
        typer.Option(
            help="A family, group, degradation, or degradation-level; repeatable.", autocompletion=degradation_names
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Suite of images to evaluate on (default the project's, else fashion_mnist).",
            autocompletion=suite_names,
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Directory of the suite's images, if they are not bundled.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=0, help="Images, rounded up to whole blocks of 256, at least two; 0 = all.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Every level, every family and every training seed.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run directory (default results/runs/<run id>).")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the cells; needs pytest-xdist.")] = 1,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:i.")] = None,
    tests: Annotated[
        Path | None,
        typer.Option(help="Folder of the project's tests (default benchmarks, else . where a conftest.py lies)."),
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="PYTEST", help="Further options of pytest, behind two dashes.")
    ] = None,
) -> None:
    """Evaluate models under degradations: print the pytest command for it, and run it.

    In a project its models are evaluated by its tests; anywhere else, bundled models and timm's by tests of the
    package. The exit code is pytest's: 0 where all is well, 1 where a cell failed or is worse than the baseline, 5
    where nothing was selected.

    Examples:

        mae-bench run --model mae_ft_s0 --degradation occlusion --limit 512
        mae-bench run --model cnn_s0 --degradation gaussian_blur-3.00 --out runs/a
        mae-bench run --suite imagefolder --data DIR --model resnet50.a1_in1k
        mae-bench run --model mae_ft_s0 --workers 2 -- -v --mae-strict
    """
    import shlex
    import subprocess
    import sys

    with reported("run"):
        from mae_bench.command import folder_of_tests, pytest_command, without_tests

        if tests is not None and not tests.exists():
            raise BenchError(f"--tests {tests}: there is no such folder; name the one of the project's tests")
        own = folder_of_tests() if tests is None else (str(tests),)
        command = pytest_command(
            suite, _known(model or (), own is not None), data, limit, full, degradation or (), own or without_tests()
        )
        if suite is not None or own is None:  # else it is in a project's settings, which pytest reads
            _check_cells(degradation or (), suite or "fashion_mnist", full)
        if own is None and not model:
            raise BenchError(
                "there are neither a folder benchmarks of tests nor a conftest.py here that would name models: name "
                "one with --model (`mae-bench models` lists those that are bundled), or the folder with --tests"
            )
    command += ["--mae-run", str(out)] if out is not None else []
    command += ["--mae-device", device] if device is not None else []
    command += ["-n", str(workers)] if workers > 1 else []
    command += arguments or ()
    typer.echo(terminal_text(shlex.join(command)))
    with subprocess.Popen([sys.executable, *command[1:]]) as process:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # which pytest has had too, and ends by in its own way
                continue
    if code == 5:
        typer.echo("mae-bench run: pytest selected nothing; `pytest --co -q` lists what there is", err=True)
    raise typer.Exit(code if code >= 0 else 128 - code)


def _check_cells(names: Sequence[str], suite: str, full: bool) -> None:
    """Raises:
    BenchError: pytest has no cells of one of these degradations, or there is no such suite.
    """
    from mae_bench.degradations.ladders import conditions
    from mae_bench.degradations.selection import selected
    from mae_bench.suites import suite_entry

    entry = suite_entry(suite)
    matrix = conditions(entry, full)
    for name in names:
        wanted = selected([name], entry)[name not in ("clean", "clean-0.00") :]  # which comes first in any case
        if not any(one in matrix for one in wanted):
            remedy = "name a level of its ladder" if full else "add --full, or name a level of its ladder"
            raise BenchError(f"--degradation {name}: pytest has no such cell on {suite}; {remedy}")


def _known(names: Sequence[str], has_tests: bool) -> Sequence[str]:
    """``names``, once those that no fixture has are ruled out where that can be told.

    Raises:
        BenchError: one is neither bundled nor, by its form, one of timm's.
    """
    from mae_bench.cells import near_name
    from mae_bench.models import bundled_names

    for name in names:
        if not has_tests and name.isidentifier() and name not in bundled_names():
            hint = near_name(name, bundled_names())
            raise BenchError(
                f"--model {name}: no bundled model; {hint}. One of timm's is named in full, NAME.TAG; for one of a "
                "project, run this where its conftest.py lies, or add --tests DIR, the folder of its tests"
            )
    return names
