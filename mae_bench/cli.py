"""The command line: ``mae-bench``, or ``python -m mae_bench``."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mae_bench.errors import BenchError
from mae_bench.markup import terminal_text
from mae_bench.perf import Section

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mae_bench.suites import Suite


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
app.add_typer(train, name="train")


# --------------------------------------------------------------------------- what shells complete


def _beginning(incomplete: str, names: Callable[[], Iterable[str]]) -> list[str]:
    try:
        return [name for name in names() if name.startswith(incomplete)]
    except BenchError:  # which the command itself will say
        return []


def _suite_names(incomplete: str) -> list[str]:
    from mae_bench.suites import every_suite

    return _beginning(incomplete, every_suite)


def _model_names(incomplete: str) -> list[str]:
    from mae_bench.models import bundled_names

    return _beginning(incomplete, lambda: bundled_names(encoders=True))


def _degradation_names(incomplete: str) -> list[str]:
    from mae_bench.cells import GROUPS
    from mae_bench.degradations import every, families

    return _beginning(incomplete, lambda: dict.fromkeys([*families(), *GROUPS, *(kind.name for kind in every())]))


SuiteName = Annotated[
    str,
    typer.Option(
        help="Suite whose training images are used: fashion_mnist or cifar10.",
        autocompletion=lambda incomplete: _beginning(incomplete, lambda: ("cifar10", "fashion_mnist")),
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the recipe.")]
Data = Annotated[
    Path | None, typer.Option(help="Folder of the training images (Fashion-MNIST: /usr/share/datasets/fashion-mnist).")
]
Out = Annotated[Path, typer.Option(help="Where weights, card, curve and checkpoints go.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of torch.")]
_DATA = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
_OUT = Path("results/training")
_PERFORMANCE = Path("results/performance")


class Equal(StrEnum):
    """What a supervised training has in common with the fine-tuned model."""

    flops = "flops"
    epochs = "epochs"


@contextmanager
def _reported(command: str) -> Iterator[None]:
    """Errors as one sentence, and exit code 2."""
    try:
        yield
    except (BenchError, FileNotFoundError) as error:
        typer.echo(f"mae-bench {command}: {error}", err=True)
        raise typer.Exit(2) from error


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


@app.command()
def run(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A bundled model, a fixture of the project, or one of timm's by its full name; repeatable.",
            autocompletion=_model_names,
        ),
    ] = None,
    degradation: Annotated[
        list[str] | None,
        typer.Option(
            help="A family, group, degradation, or degradation-level; repeatable.", autocompletion=_degradation_names
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Suite of images to evaluate on (default the project's, else fashion_mnist).",
            autocompletion=_suite_names,
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

    with _reported("run"):
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


@app.command()
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

    with _reported("models"):
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


@app.command()
def suites() -> None:
    """List the suites of images: the side that levels are meant for, how many images a default run takes, the package
    each is from, and what --mae-data holds.

    Example:

        mae-bench suites
    """
    from tabulate import tabulate

    from mae_bench.suites import every_suite

    with _reported("suites"):
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


@app.command()
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
    with _reported("degradations"):
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
    with _reported("degradations"):
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


@app.command()
def claims(
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Run directory with all images, levels and seeds and its representations; repeatable."),
    ] = None,
    trajectories: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints <model>@<share>.safetensors to evaluate.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Images that checkpoints are evaluated on; 0 = all.")] = 1024,
    suite: Annotated[
        str, typer.Option(help="Suite that the claims are decided on.", autocompletion=_suite_names)
    ] = "fashion_mnist",
    data: Annotated[Path | None, typer.Option(help="Directory of the suite's images, for checkpoints.")] = None,
    out: Annotated[Path | None, typer.Option(help="Committed results (default results/<suite>).")] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="ARM=MODEL: take this model for the arm, and write claims-MODEL.md alone; repeatable."),
    ] = None,
    threads: Threads = 1,
) -> None:
    """Decide the claims of the literature from committed results, and write claims.md and claims.csv beside them.

    With --run, evidence.npz is made from those runs first; without, the one that is there is used. What is known of
    checkpoints stays, unless --trajectories names them again.

    Examples, the second on ImageNet against another supervised model:

        mae-bench claims --run results/runs/full
        mae-bench claims --suite imagenet --arm supervised=deit_base
    """
    import tempfile

    from mae_bench.baseline import Baseline
    from mae_bench.claims import findings, to_csv, to_markdown
    from mae_bench.contrasts import ClaimError, Measured
    from mae_bench.evidence import Evidence
    from mae_bench.store import RunDirectory, write_together
    from mae_bench.suites import suite_entry

    with _reported("claims"):
        folder = out or Path("results") / suite
        baseline = Baseline.load(folder, suite)
        if baseline is None:
            raise ClaimError(f"{folder} holds no committed outcomes: make them with --mae-update-baseline first")
        written: dict[Path, bytes] = {}
        if run:
            for path in run:
                if not (path / "cells").is_dir() and not (path / "representations").is_dir():
                    raise ClaimError(f"--run {path}: not a run directory; pytest benchmarks --mae-run DIR makes one")
            # those that were evaluated before are kept, unless others are named
            before = folder / "evidence.npz"
            along = Evidence.load(before).trajectories if before.exists() else None
            if trajectories is not None:
                import torch

                from mae_bench.settings import Settings
                from mae_bench.trajectories import evaluated

                torch.set_num_threads(threads)
                with tempfile.TemporaryDirectory() as scratch:
                    settings = Settings(limit=limit, threads=threads)
                    images = suite_entry(suite).load(data)
                    along = evaluated(trajectories, images, settings, Path(scratch), typer.echo)
            made = Evidence.of(suite, [RunDirectory(path) for path in run], along)
            written[folder / "evidence.npz"] = made.to_bytes()
            write_together(written)
        elif not (folder / "evidence.npz").exists():
            raise ClaimError(f"{folder} holds no evidence.npz: name the run that it is made from with --run DIR")
        evidence = Evidence.load(folder / "evidence.npz")
        taken = [one.rpartition("=") for one in arm or ()]
        for of_arm, _, model in taken:
            evidence = evidence.in_arm(model, of_arm)
        measured = Measured.of(baseline, evidence)
        found = findings(measured)
        page = folder / "-".join(["claims", *(model for _, _, model in taken)])
        written = {page.with_name(f"{page.name}.md"): to_markdown(measured, found).encode()}
        if not taken:
            written[folder / "claims.csv"] = to_csv(found).encode()
        write_together(written)
    typer.echo(f"{len(found)} contrasts decided: {page}.md")


@app.command()
def figures(
    suite: Annotated[
        str, typer.Option(help="Suite whose committed results are drawn.", autocompletion=_suite_names)
    ] = "fashion_mnist",
    results: Annotated[Path | None, typer.Option(help="Committed results (default results/<suite>).")] = None,
    out: Annotated[Path | None, typer.Option(help="Where SVG and PNG go (default RESULTS/figures).")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Bundled model whose classes are mapped; repeatable.", autocompletion=_model_names),
    ] = None,
) -> None:
    """Draw committed results: accuracy by level, layer profiles, retention by head, attention distance, a map of
    classes by layer, and the degradations.

    Example:

        mae-bench figures --suite fashion_mnist --out figures
    """
    from mae_bench.baseline import Baseline
    from mae_bench.evidence import Evidence
    from mae_bench.suites import suite_entry

    with _reported("figures"):
        from mae_bench.figures import FigureError, class_map, degradation_strip, drawn, save

        folder = results or Path("results") / suite
        target = out or folder / "figures"
        baseline = Baseline.load(folder, suite)
        if baseline is None or not (folder / "evidence.npz").exists():
            raise FigureError(
                f"{folder} needs cells.csv, outcomes.npz and evidence.npz: make them with --mae-update-baseline and "
                "mae-bench claims"
            )
        paths = drawn(baseline, Evidence.load(folder / "evidence.npz"), target)
        entry = suite_entry(suite)
        if entry.bundled:
            loaded = entry.load(None)
            paths += save(degradation_strip(loaded), target, "degradations")
            for name in model or ("mae_ft_s0", "supervised_s0"):
                tokens, labels = _class_tokens(loaded, name)
                figure = class_map(tokens, labels, loaded.manifest.classes, name, "cls")
                paths += save(figure, target, f"classes_{name}")
    typer.echo("\n".join(map(str, paths)))


def _class_tokens(suite: Suite, name: str) -> tuple[dict[int, Tensor], np.ndarray]:
    """CLS tokens of a bundled model by layer on the sample of clean images, and their labels."""
    import tempfile

    from mae_bench.evaluation import Evaluation
    from mae_bench.models.pool import Pool
    from mae_bench.models.registry import ModelEntry
    from mae_bench.models.zoo import bundled
    from mae_bench.settings import Settings

    model = Pool("cpu").load(ModelEntry(name), lambda: bundled(name))
    with tempfile.TemporaryDirectory() as scratch:
        evaluation = Evaluation(suite, model, Settings(limit=1), Path(scratch), "figures")
        try:
            tokens = evaluation.clean_tokens("cls")
        finally:
            evaluation.close()
        return tokens, evaluation.sample.labels.numpy()


@app.command()
def selfcheck(
    run: Annotated[Path, typer.Argument(help="Run directory, or folder of committed results.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Compare a finished run with the published numbers of its models, each within its stated tolerance.

    Where a number differs, what is known to differ in the protocol stands beside it, and the exit code is 1.

    Example:

        mae-bench selfcheck results/runs/full
    """
    from mae_bench.selfcheck import selfcheck as checks_of
    from mae_bench.selfcheck import to_markdown, to_text

    with _reported("selfcheck"):
        checks = checks_of(run)
        typer.echo(to_markdown(checks) if markdown else to_text(checks))
    if any(check.verdict == "differs" for check in checks):
        raise typer.Exit(1)


@app.command()
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
    with _reported("merge"):
        from mae_bench.merge import merge as write_merged

        merged = write_merged(run, out)
    cells, representations = len(merged.cell_files()), len(merged.representation_files())
    typer.echo(f"{terminal_text(str(out))}: {cells} cells, {representations} representations")


@app.command()
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
    with _reported("compare"):
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


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Run directory, folder of committed results, or REV:FOLDER.")],
    into: Annotated[
        Format, typer.Option("--format", help="timm's CSV, a Hugging Face model card's metadata, or a LaTeX table.")
    ],
    model: Annotated[
        list[str] | None, typer.Option(help="This model alone; repeatable.", autocompletion=_model_names)
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
    with _reported("export"):
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


@app.command()
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

    with _reported("report"), tempfile.TemporaryDirectory() as folder:
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


@app.command()
def verify(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Check that a run is whole: every file as it was written and in its place, numbers that agree with images and
    tables, nothing missing that was planned.

    A line for each finding says what, where and what to do; with any the exit code is 1, where DIR is no run 2.

    Example:

        mae-bench verify results/runs/full
    """
    from mae_bench.verify import verification

    with _reported("verify"):
        found = verification(run)
    for finding in found.findings:
        typer.echo(terminal_text(finding))
    partial = f" ({found.partial} of a part of the images)" if found.partial else ""
    contents = f"{found.cells} cells{partial}, {found.representations} representations"
    typer.echo(f"{terminal_text(str(run))}: {contents}, {len(found.findings) or 'no'} findings")
    if found.findings:
        raise typer.Exit(1)


@app.command()
def gather(
    run: Annotated[list[Path], typer.Argument(help="Run directories.")],
    out: Annotated[Path, typer.Option(help="New folder for the rows of all of them.")],
) -> None:
    """Keep the rows of many runs together as Parquet, to be asked by `mae-bench query`.

    Example:

        mae-bench gather results/runs/* --out results/rows
    """
    with _reported("gather"):
        from mae_bench.warehouse import row_tables, rows_of, write_warehouse

        write_warehouse(row_tables(rows_of(run)), out)
    size = sum(file.stat().st_size for file in out.rglob("*.parquet"))
    typer.echo(f"{terminal_text(str(out))}: {size:,} bytes of {len(run)} runs")


@app.command()
def query(
    folder: Annotated[Path, typer.Argument(help="What mae-bench gather wrote.")],
    sql: Annotated[str | None, typer.Argument(help="A question about the table `cells`, in DuckDB's SQL.")] = None,
    suite: Annotated[
        str,
        typer.Option(help="Suite of the leaderboard that is shown without a question.", autocompletion=_suite_names),
    ] = "imagenet",
) -> None:
    """Ask gathered rows: the ranking of a suite's models by score, or any question in SQL. Needs the extra:
    pip install "mae-bench\\[query]".

    Examples:

        mae-bench query results/rows --suite fashion_mnist
        mae-bench query results/rows "select model, top1 from cells"
    """
    from tabulate import tabulate

    with _reported("query"):
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


@app.command()
def plan(
    models: Annotated[str, typer.Option(help="Models, separated by commas: names of fixtures, or timm's.")],
    suite: Annotated[
        str, typer.Option(help="Suite that they are evaluated on.", autocompletion=_suite_names)
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

    with _reported("plan"):
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


@app.command()
def perf(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:i.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Small and short: no more than a sign of life.")] = False,
    only: Annotated[list[Section] | None, typer.Option(help="Measure this section alone; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds whose medians count.")] = 5,
    out: Annotated[Path, typer.Option(help="Where page, record and chart go, named after the device.")] = _PERFORMANCE,
    against: Annotated[
        Path | None, typer.Option(help="Record (.json) of an earlier run on this machine, to compare this one with.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Measure nothing, and write here where the time of a cell goes, by function.")
    ] = None,
) -> None:
    """Measure what degradations, cells and the harness cost, side by side with their peers, and hold it against the
    goals.

    Page, record and chart are written after every section, and sections that are not measured again stay: a run that
    was stopped goes on with --only. With --against, ratios that moved beyond the noise bands of both runs are named,
    and where one did for the worse the exit code is 1. The peers are an extra: pip install "mae-bench\\[peers]".

    Example:

        mae-bench perf --only engine --against results/performance/cpu.json
    """
    from mae_bench.machine import ask_for_large_pages

    ask_for_large_pages()  # before the first tensor, as a session of pytest does
    import torch

    from mae_bench.executors.local import resolved_device

    with _reported("perf"):
        if profile is not None:
            from mae_bench.perf.profile import SUBJECTS, profile_text
            from mae_bench.store import write_together

            texts = {profile / f"profile-{subject}.txt": profile_text(subject) for subject in SUBJECTS}
            write_together({path: text.encode() for path, text in texts.items()})
            typer.echo("\n".join(map(str, texts)))
            return
        from mae_bench.perf import comparison
        from mae_bench.perf.conditions import Conditions
        from mae_bench.perf.page import goals_table
        from mae_bench.perf.record import Record
        from mae_bench.perf.sections import measure

        before = None if against is None else Record.read(against)  # which may be the file that is written
        conditions = Conditions(torch.device(resolved_device(device)), rounds, quick)
        record = measure(conditions, out, [one.value for one in only or ()], lambda line: typer.echo(line, err=True))
        typer.echo(goals_table(record))
        if before is None:
            return
        compared = comparison.compared(before, record)
    typer.echo(comparison.to_text(compared))
    if compared.is_worse:
        raise typer.Exit(1)


# --------------------------------------------------------------------------- training


def _train(command: str, arm: str, suite: str, seed: int, data: Path | None, out: Path, threads: int) -> None:
    with _reported(f"train {command}"):
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


def main() -> None:
    app()
