"""Commands that list what there is: models, suites, degradations."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer

from mae_bench.cli.program import reported
from mae_bench.errors import BenchError
from mae_bench.markup import terminal_text


def models() -> None:
    """List the models that ship with the package.

    Arm, seed, architecture, parameters, clean top-1 on the suite's images where they are committed in results/ and on
    the validation images, and how each was made.

    Example:

        mae-bench models
    """
    from tabulate import tabulate

    from mae_bench.models.zoo import cards

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    with reported("models"):
        clean = _committed_clean()
        lines = [
            (
                card.name,
                card.arm,
                card.seed,
                card.architecture,
                f"{card.parameters:,}",
                percent(clean.get(card.name)),
                percent(card.validation_top1),
                card.summary,
            )
            for card in cards()
        ]
    headers = ["model", "arm", "seed", "architecture", "parameters", "clean top-1", "validation", "made by"]
    typer.echo(tabulate(lines, headers=headers, disable_numparse=True))


def _committed_clean() -> dict[str, float]:
    """Clean top-1 by model from the results below the working directory."""
    from mae_bench.baseline import read_rows

    tables = Path("results").glob("*/cells.csv")
    rows = [row for table in sorted(tables) for row in read_rows(table)]
    return {row.model: row.top1 for row in rows if row.family == "clean" and row.top1 is not None}


def suites() -> None:
    """List the suites of images: the side that levels are meant for, how many images a default run takes, the package
    each is from, and what --mae-data holds.

    Example:

        mae-bench suites
    """
    from tabulate import tabulate

    from mae_bench.suites import every_suite

    with reported("suites"):
        entries = every_suite().values()
    lines = [
        (
            entry.name,
            entry.reference_size,
            entry.default_limit or "all",
            " ".join(entry.stored) or "-",
            terminal_text(entry.package or "mae_bench"),
            terminal_text(entry.summary),
        )
        for entry in entries
    ]
    typer.echo(tabulate(lines, headers=["suite", "px", "images", "as published", "from", ""], disable_numparse=True))


def degradations(
    preview: Annotated[
        Path | None, typer.Option(help="Write a picture of an image of the bundled suite under each, PNG or SVG.")
    ] = None,
    position: Annotated[int, typer.Option(min=0, help="Which image of the suite to show.")] = 0,
) -> None:
    """List every degradation: family, unit, the levels of the bundled suite's ladder, and the package it is from.

    Example:

        mae-bench degradations --preview degradations.png
    """
    from tabulate import tabulate

    from mae_bench.degradations import every
    from mae_bench.degradations.ladders import ladder
    from mae_bench.suites import SUITES

    entry = SUITES["fashion_mnist"]
    with reported("degradations"):
        kinds = [kind for kind in every() if kind.family != "clean"]
    lines = [
        (
            kind.name,
            kind.family,
            kind.group,
            terminal_text(kind.unit),
            " ".join(map(str, ladder(kind, entry.reference_size))),
            terminal_text(kind.package or "mae_bench"),
        )
        for kind in kinds
    ]
    headers = ["degradation", "family", "group", "unit of level", "levels", "from"]
    typer.echo(tabulate(lines, headers=headers, disable_numparse=True))
    if preview is None:
        return
    with reported("degradations"):
        if preview.suffix not in (".png", ".svg"):
            raise BenchError(f"--preview {preview}: name a .png or .svg file")
        from mae_bench.figures import degradation_strip
        from mae_bench.store import write_atomically

        suite = entry.load(None)
        if position >= len(suite.manifest.ids):
            raise BenchError(f"--position {position}: the suite has {len(suite.manifest.ids)} images, from 0 on")
        figure = degradation_strip(suite, position)
        content = io.BytesIO()
        figure.savefig(content, dpi=110, format=preview.suffix[1:])
        write_atomically(preview, content.getvalue())
    typer.echo(f"written to {preview}")
