"""The command line: ``mae-bench``, or ``python -m mae_bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from mae_bench.cli.evaluating import run
from mae_bench.cli.findings import claims, figures, selfcheck
from mae_bench.cli.listings import degradations, models, suites
from mae_bench.cli.performance import perf
from mae_bench.cli.planning import plan
from mae_bench.cli.program import Program, filled
from mae_bench.cli.runs import compare, export, gather, merge, query, report, verify
from mae_bench.cli.training import train

app = Program(
    help=filled(
        """A pytest-style robustness benchmark for vision models. Evaluation is `pytest benchmarks`, or for those who do
        not know pytest `mae-bench run`, which prints the command that it stands for.

        Example:

            mae-bench run --model mae_ft_s0 --degradation occlusion --limit 512
        """
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from mae_bench import __version__

        typer.echo(f"mae-bench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    pass


# in the order in which help lists them
for _command in (
    run,
    models,
    suites,
    degradations,
    claims,
    figures,
    selfcheck,
    merge,
    compare,
    export,
    report,
    verify,
    gather,
    query,
    plan,
    perf,
):
    app.command()(_command)
app.add_typer(train, name="train")


def main() -> None:
    app()
