"""Commands on runs: merge, compare, export, report, verify, gather and query."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mae_bench.cli.program import model_names, reported, suite_names
from mae_bench.errors import BenchError
from mae_bench.markup import terminal_text


def merge(
    run: Annotated[list[Path], typer.Argument(help="Run directories, whole runs or shards of one; any order.")],
    out: Annotated[Path, typer.Option(help="New run directory for all of them together.")],
) -> None:
    """Join runs and shards into one run directory, and make its tables.

    What a cell measured has to be the same wherever it was finished; of how long it took one is taken. Runs of other
    images, or of settings that no table can mix, are refused.

    Example:

        mae-bench merge results/runs/a results/runs/b --out results/runs/both
    """
    with reported("merge"):
        from mae_bench.merge import merge as write_merged

        merged = write_merged(run, out)
    cells, representations = len(merged.cell_files()), len(merged.representation_files())
    typer.echo(f"{terminal_text(str(out))}: {cells} cells, {representations} representations")


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Run directory, folder of committed results, or REV:FOLDER.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same; a revision alone means its results/<suite>.")],
    model: Annotated[
        list[str] | None, typer.Option(help="OLD=NEW: compare model OLD of A with NEW of B; repeatable.")
    ] = None,
    min_drop: Annotated[float, typer.Option(min=0, help="Least difference in points that counts.")] = 0.3,
    tolerance: Annotated[float, typer.Option(min=0, help="Points of top-1 that may be lost or gained.")] = 1.0,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write a page too, FILE.html or FILE.md.")] = None,
) -> None:
    """Say whether B is better than A, cell by cell, family by family and as a whole, on the images that both have.

    A and B are each a run directory, a folder of committed results, or a git revision of one, which is read without
    touching the working tree. Where something is significantly worse the exit code is 1.

    Examples, the second of whether a new model is better than an old one:

        mae-bench compare HEAD results/runs/july
        mae-bench compare HEAD HEAD --model supervised_s0=mae_ft_s0
    """
    with reported("compare"):
        from mae_bench.paired_comparison import Pair, PairedComparison
        from mae_bench.side import sides
        from mae_bench.store import write_atomically

        if out is not None and out.suffix not in (".html", ".md"):
            raise BenchError(f"--out {out}: name a .html or .md file")
        pairs = [Pair.parse(text) for text in model or ()]
        found = PairedComparison.of(*sides(a, b, Path()), pairs, min_drop / 100, tolerance / 100)
        if out is not None and out.suffix == ".html":
            from mae_bench.report.differences import write_differences

            write_differences(found, out)
        elif out is not None:
            write_atomically(out, found.to_markdown().encode())
    typer.echo(found.to_markdown() if markdown else found.to_text())
    if found.is_worse:
        raise typer.Exit(1)


class Format(StrEnum):
    """How results are handed on."""

    timm = "timm"
    model_index = "model-index"
    latex = "latex"


def export(
    run: Annotated[str, typer.Argument(help="Run directory, folder of committed results, or REV:FOLDER.")],
    into: Annotated[
        Format, typer.Option("--format", help="timm's CSV, a Hugging Face model card's metadata, or a LaTeX table.")
    ],
    model: Annotated[
        list[str] | None, typer.Option(help="This model alone; repeatable.", autocompletion=model_names)
    ] = None,
    condition: Annotated[
        str | None, typer.Option(help="For timm: results under this degradation and level, not clean ones.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file (default: print).")] = None,
) -> None:
    """Hand on results as others keep theirs.

    Examples: a table for a paper, timm's columns under a degradation, a model card's metadata:

        mae-bench export results/fashion_mnist --format latex --out table.tex
        mae-bench export RUN --format timm --condition random_patch-0.50
        mae-bench export HEAD --format model-index --model mae_ft_s0
    """
    with reported("export"):
        from mae_bench import export as formats
        from mae_bench.side import Side
        from mae_bench.store import write_atomically

        if condition is not None and into is not Format.timm:
            raise BenchError(f"--condition {condition}: {into.value} has all conditions; leave it out, or use timm")
        board, chosen = formats.board_of(Side.load(run, Path())), model or ()
        if into is Format.timm:
            text = formats.timm_csv(board, chosen, condition)
        else:
            text = (formats.model_index if into is Format.model_index else formats.latex)(board, chosen)
        if out is not None:
            write_atomically(out, text.encode())
    if out is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(f"written to {terminal_text(str(out))}")
    if board.images < board.images_expected:
        typer.echo(f"of {board.images:,} of {board.images_expected:,} images", err=True)


def report(
    run: Annotated[list[Path], typer.Argument(help="Run directory, or several that can be merged.")],
    out: Annotated[Path | None, typer.Option(help="Page to write (default report.html in the one run).")] = None,
    data: Annotated[Path | None, typer.Option(help="Directory of the suite's images (default as it ran).")] = None,
) -> None:
    """Write the page of a run: standings, where each model breaks, what changed, what happens inside. It is one file,
    which needs no network.

    Examples:

        mae-bench report results/runs/july
        mae-bench report runs/a runs/b --out both.html
    """
    import tempfile

    with reported("report"), tempfile.TemporaryDirectory() as folder:
        from mae_bench.merge import merge as write_merged
        from mae_bench.report import REPORT
        from mae_bench.report.contents import Contents
        from mae_bench.report.page import write_report
        from mae_bench.store import RunDirectory

        whole = run[0]
        if len(run) > 1:
            if out is None:
                raise BenchError("several runs have no place for a page: name one with --out FILE")
            whole = write_merged(run, Path(folder) / " and ".join(dict.fromkeys(path.name for path in run))).path
        place = out or whole / REPORT
        write_report(Contents.of(RunDirectory(whole)), place, data)
    typer.echo(terminal_text(str(place)))


def verify(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Check that a run is whole: every file as it was written and in its place, numbers that agree with images and
    tables, nothing missing that was planned.

    A line for each finding says what, where and what to do; with any the exit code is 1, where DIR is no run 2.

    Example:

        mae-bench verify results/runs/full
    """
    from mae_bench.verify import verification

    with reported("verify"):
        found = verification(run)
    for finding in found.findings:
        typer.echo(terminal_text(finding))
    partial = f" ({found.partial} of a part of the images)" if found.partial else ""
    contents = f"{found.cells} cells{partial}, {found.representations} representations"
    typer.echo(f"{terminal_text(str(run))}: {contents}, {len(found.findings) or 'no'} findings")
    if found.findings:
        raise typer.Exit(1)


def gather(
    run: Annotated[list[Path], typer.Argument(help="Run directories.")],
    out: Annotated[Path, typer.Option(help="New folder for the rows of all of them.")],
) -> None:
    """Keep the rows of many runs together as Parquet, to be asked by `mae-bench query`.

    Example:

        mae-bench gather results/runs/* --out results/rows
    """
    with reported("gather"):
        from mae_bench.warehouse import row_tables, rows_of, write_warehouse

        write_warehouse(row_tables(rows_of(run)), out)
    size = sum(file.stat().st_size for file in out.rglob("*.parquet"))
    typer.echo(f"{terminal_text(str(out))}: {size:,} bytes of {len(run)} runs")


def query(
    folder: Annotated[Path, typer.Argument(help="What mae-bench gather wrote.")],
    sql: Annotated[str | None, typer.Argument(help="A question about the table `cells`, in DuckDB's SQL.")] = None,
    suite: Annotated[
        str,
        typer.Option(help="Suite of the leaderboard that is shown without a question.", autocompletion=suite_names),
    ] = "imagenet",
) -> None:
    """Ask gathered rows: the ranking of a suite's models by score, or any question in SQL. Needs the extra:
    pip install "mae-bench\\[query]".

    Examples:

        mae-bench query results/rows --suite fashion_mnist
        mae-bench query results/rows "select model, top1 from cells"
    """
    from tabulate import tabulate

    with reported("query"):
        from mae_bench.warehouse import answer, leaderboard

        if sql is None:
            headers = ["model", "score (%)", "clean (%)"]
            ranked = leaderboard(folder, suite)
            lines = [[place.model, f"{100 * place.score:.1f}", f"{100 * place.clean:.1f}"] for place in ranked]
        else:
            headers, found = answer(folder, sql)
            lines = [["" if value is None else str(value) for value in line] for line in found]
    shown = [[terminal_text(text) for text in line] for line in lines]
    typer.echo(tabulate(shown, headers=headers, disable_numparse=True))
