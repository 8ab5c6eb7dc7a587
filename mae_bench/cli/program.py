"""What all commands have in common: their help, what shells complete, how errors are told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from mae_bench.errors import BenchError

Threads = Annotated[int, typer.Option(min=1, help="CPU threads of torch.")]


def filled(text: str) -> str:
    r"""``text`` with a line for each paragraph, which terminals break where they end; what is indented keeps its lines.

    >>> print(filled("Say whether B\nis better.\n\nExample:\n\n    mae-bench compare A B\n    mae-bench compare C D"))
    Say whether B is better.
    <BLANKLINE>
    Example:
    <BLANKLINE>
    mae-bench compare A B
    mae-bench compare C D
    """
    paragraphs = inspect.cleandoc(text).split("\n\n")
    parts = (inspect.cleandoc(part) if part.startswith(" ") else part.replace("\n", " ") for part in paragraphs)
    return "\n\n".join(parts)


class Program(typer.Typer):
    """Commands whose help is their docstring, :func:`filled`."""

    def command(  # type: ignore[override]
        self, name: str | None = None, **options: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            return super(Program, self).command(name, help=filled(function.__doc__ or ""), **options)(function)

        return register


@contextmanager
def reported(command: str) -> Iterator[None]:
    """Errors as one sentence, and exit code 2."""
    try:
        yield
    except (BenchError, FileNotFoundError) as error:
        typer.echo(f"mae-bench {command}: {error}", err=True)
        raise typer.Exit(2) from error


def starting_with(incomplete: str, names: Callable[[], Iterable[str]]) -> list[str]:
    """Those of ``names`` that a shell may complete to."""
    try:
        return [name for name in names() if name.startswith(incomplete)]
    except BenchError:  # which the command itself will say
        return []


def suite_names(incomplete: str) -> list[str]:
    from mae_bench.suites import every_suite

    return starting_with(incomplete, every_suite)


def model_names(incomplete: str) -> list[str]:
    from mae_bench.models import bundled_names

    return starting_with(incomplete, lambda: bundled_names(encoders=True))


def degradation_names(incomplete: str) -> list[str]:
    from mae_bench.cells import GROUPS
    from mae_bench.degradations import every, families

    return starting_with(incomplete, lambda: dict.fromkeys([*families(), *GROUPS, *(kind.name for kind in every())]))
