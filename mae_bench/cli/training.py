"""``mae-bench train``: the bundled models made again."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mae_bench.cli.program import Program, Threads, filled, reported, starting_with
from mae_bench.errors import BenchError

SuiteName = Annotated[
    str,
    typer.Option(
        help="Suite whose training images are used: fashion_mnist or cifar10.",
        autocompletion=lambda incomplete: starting_with(incomplete, lambda: ("cifar10", "fashion_mnist")),
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the recipe.")]
Data = Annotated[
    Path | None, typer.Option(help="Folder of the training images (Fashion-MNIST: /usr/share/datasets/fashion-mnist).")
]
Out = Annotated[Path, typer.Option(help="Where weights, card, curve and checkpoints go.")]
_DATA = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
_OUT = Path("results/training")


class Equal(StrEnum):
    """What a supervised training has in common with the fine-tuned model."""

    flops = "flops"
    epochs = "epochs"


train = Program(
    help=filled(
        """Make the bundled models again, each by its recipe. A run that was killed goes on where its last checkpoint
        is. Needs the extra: pip install "mae-bench\\[train]".

        Example:

            mae-bench train pretrain --seed 1
        """
    ),
    no_args_is_help=True,
)


def _train(command: str, arm: str, suite: str, seed: int, data: Path | None, out: Path, threads: int) -> None:
    with reported(f"train {command}"):
        from mae_bench.training.recipes import FineTuning, Supervised, recipe_of

        recipe = recipe_of(arm, suite, seed)
        folder = data or _DATA.get(suite)
        if folder is None:
            raise BenchError(f"the training images of {suite} lie where you put them: name their folder with --data")
        try:
            import torch

            from mae_bench.training import arms
        except ModuleNotFoundError as error:
            raise BenchError(f'{error.name} is not installed: pip install "mae-bench[train]"') from error
        torch.set_num_threads(threads)
        if command == "search":
            assert isinstance(recipe, FineTuning | Supervised)
            arms.search(recipe, folder, out, typer.echo)
        else:
            arms.train(recipe, folder, out, typer.echo)


@train.command()
def pretrain(
    suite: SuiteName = "fashion_mnist", seed: Seed = 0, data: Data = None, out: Out = _OUT, threads: Threads = 1
) -> None:
    """Pretrain a masked autoencoder and keep its encoder.

    Example:

        mae-bench train pretrain --seed 1
    """
    _train("pretrain", "mae_pretrained", suite, seed, data, out, threads)


@train.command()
def finetune(
    suite: SuiteName = "fashion_mnist", seed: Seed = 0, data: Data = None, out: Out = _OUT, threads: Threads = 1
) -> None:
    """Fine-tune the pretrained encoder of the same seed, found in --out or as bundled.

    Example:

        mae-bench train finetune --seed 1
    """
    _train("finetune", "mae_ft", suite, seed, data, out, threads)


@train.command()
def probe(
    suite: SuiteName = "fashion_mnist", seed: Seed = 0, data: Data = None, out: Out = _OUT, threads: Threads = 1
) -> None:
    """Fit a linear classifier on the frozen pretrained encoder of the same seed.

    Example:

        mae-bench train probe --seed 1
    """
    _train("probe", "mae_probe", suite, seed, data, out, threads)


@train.command()
def supervised(
    suite: SuiteName = "fashion_mnist",
    seed: Seed = 0,
    equal: Annotated[
        Equal, typer.Option(help="Spend the fine-tuned model's FLOPs, or its labelled epochs.")
    ] = Equal.flops,
    data: Data = None,
    out: Out = _OUT,
    threads: Threads = 1,
) -> None:
    """Train the same network from scratch.

    Example:

        mae-bench train supervised --seed 1 --equal flops
    """
    arm = "supervised" if equal is Equal.flops else "supervised_ep"
    _train("supervised", arm, suite, seed, data, out, threads)


@train.command()
def cnn(
    suite: SuiteName = "fashion_mnist", seed: Seed = 0, data: Data = None, out: Out = _OUT, threads: Threads = 1
) -> None:
    """Train the residual CNN.

    Example:

        mae-bench train cnn
    """
    _train("cnn", "cnn", suite, seed, data, out, threads)


@train.command()
def search(
    arm: Annotated[str, typer.Argument(help="mae_ft or supervised.")],
    suite: SuiteName = "fashion_mnist",
    seed: Seed = 0,
    data: Data = None,
    out: Out = _OUT,
    threads: Threads = 1,
) -> None:
    """Try three learning rates for a quarter of the steps and record their validation top-1.

    Example:

        mae-bench train search supervised
    """
    if arm not in ("mae_ft", "supervised"):
        typer.echo(f"mae-bench train search: no rate is searched for {arm!r}: name mae_ft or supervised", err=True)
        raise typer.Exit(2)
    _train("search", arm, suite, seed, data, out, threads)
