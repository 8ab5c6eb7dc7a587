"""The command line: ``mae-bench``, or ``python -m mae_bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_bench.errors import BenchError

app = typer.Typer(
    help="A pytest-style robustness benchmark for vision models. Evaluation itself is `pytest benchmarks`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _program() -> None:
    """Keeps `mae-bench models` a subcommand however few there are."""


@app.command()
def models() -> None:
    """List the models that ship with the package: architecture, parameters, validation top-1, how they were made."""
    from tabulate import tabulate

    from mae_bench.models.zoo import cards

    lines = [
        (card.name, card.architecture, f"{card.parameters:,}", f"{100 * card.validation_top1:.2f} %", card.summary)
        for card in cards()
    ]
    headers = ["model", "architecture", "parameters", "validation top-1", "made by"]
    typer.echo(tabulate(lines, headers=headers, disable_numparse=True))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of the bundled model to make again, such as mae_ft_s0.")],
    data: Annotated[Path, typer.Option(help="Folder of the four Fashion-MNIST idx files.")] = Path(
        "/usr/share/datasets/fashion-mnist"
    ),
    out: Annotated[Path, typer.Option(help="Where weights, card, curve and checkpoints go.")] = Path(
        "results/training"
    ),
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
) -> None:
    """Train a bundled model by its recipe; a run that was killed goes on where its last checkpoint is.

    Needs the extra: pip install "mae-bench[train]".
    """
    from mae_bench.training.recipes import recipe_named

    try:
        chosen = recipe_named(recipe)
        try:
            import torch

            from mae_bench.training.loop import train as run
        except ModuleNotFoundError as error:
            raise BenchError(f'{error.name} is not installed: pip install "mae-bench[train]"') from error
        torch.set_num_threads(threads)
        run(chosen, data, out, typer.echo)
    except (BenchError, FileNotFoundError) as error:
        typer.echo(f"mae-bench train: {error}", err=True)
        raise typer.Exit(2) from error


def main() -> None:
    app()
