"""``mae-bench plan``: what a grid costs before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_bench.cli.program import reported, suite_names
from mae_bench.errors import BenchError


def plan(
    models: Annotated[str, typer.Option(help="Models, separated by commas: names of fixtures, or timm's.")],
    suite: Annotated[
        str, typer.Option(help="Suite that they are evaluated on.", autocompletion=suite_names)
    ] = "imagenet",
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that take one shard after another.")] = 1,
    full: Annotated[bool, typer.Option("--full", help="Every level and every family.")] = False,
    limit: Annotated[int | None, typer.Option(min=0, help="Images, as --mae-limit has them; 0 = all.")] = None,
    shards: Annotated[int, typer.Option(min=0, help="Shards; 0 = a model each, at least one for each GPU.")] = 0,
    rate: Annotated[list[str] | None, typer.Option(help="MODEL=IMAGES_PER_SECOND; repeatable.")] = None,
    rates: Annotated[
        list[Path] | None,
        typer.Option(help="Run, or folder of committed results, that rates are read from; repeatable."),
    ] = None,
    shape: Annotated[list[str] | None, typer.Option(help="MODEL=BLOCKSxWIDTHxPATCHES; repeatable.")] = None,
    data: Annotated[Path | None, typer.Option(help="Directory of the suite's images, for the script.")] = None,
    run: Annotated[Path | None, typer.Option(help="Where the script's runs go (default results/runs/<suite>).")] = None,
    slurm: Annotated[Path | None, typer.Option(help="Write the batch script to this file.")] = None,
) -> None:
    """Say what a grid costs: cells, forward passes, bytes, and from measured rates GPU-hours and makespan.

    With --slurm, write a script that submits the grid to Slurm in shards and joins them.

    Example:

        mae-bench plan --models resnet50,deit_base --gpus 64 --rate resnet50=2000
    """
    from mae_bench.command import pytest_command
    from mae_bench.plan import Grid, Rate, Shape, measured_at, planned_images, slurm_script, to_text
    from mae_bench.suites import suite_entry

    with reported("plan"):
        entry = suite_entry(suite)
        names = tuple(models.split(","))
        grid = Grid(entry, names, planned_images(entry, limit), gpus, full, shards)
        known, sizes = measured_at(rates or ())
        known |= {name: Rate(_number(text, "--rate"), "as given") for name, text in _assigned(rate, "--rate", names)}
        shapes = {name: Shape.parse(text) for name, text in _assigned(shape, "--shape", names)}
        if slurm is not None and data is None and not entry.bundled:
            raise BenchError(f"--slurm {slurm}: suite {suite} reads images from disk, name their directory with --data")
        typer.echo(to_text(grid, known, shapes, sizes))
        if slurm is not None:
            from mae_bench.store import write_atomically

            command = pytest_command(suite, names, data and data.absolute(), limit, full)
            where = (run or Path("results") / "runs" / suite).absolute()
            write_atomically(slurm, slurm_script(grid, command, where, known).encode())
            typer.echo(f"\nwritten to {slurm}: submit with bash {slurm}, options of sbatch behind it")


def _assigned(given: list[str] | None, option: str, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Name and value of each NAME=VALUE.

    Raises:
        BenchError: it is not written so, or of none of ``names``.
    """
    from mae_bench.cells import near_name

    pairs = []
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            raise BenchError(f"{option} {text}: write MODEL=VALUE of a model that is planned; {near_name(name, names)}")
        pairs.append((name, value))
    return pairs


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BenchError(f"{option} {text}: {text!r} is no number") from None
