"""Commands of what committed results say: claims, figures, and whether published numbers were met."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_bench.cli.program import Threads, model_names, reported, suite_names

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mae_bench.suites import Suite


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
        str, typer.Option(help="Suite that the claims are decided on.", autocompletion=suite_names)
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

    with reported("claims"):
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


def figures(
    suite: Annotated[
        str, typer.Option(help="Suite whose committed results are drawn.", autocompletion=suite_names)
    ] = "fashion_mnist",
    results: Annotated[Path | None, typer.Option(help="Committed results (default results/<suite>).")] = None,
    out: Annotated[Path | None, typer.Option(help="Where SVG and PNG go (default RESULTS/figures).")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Bundled model whose classes are mapped; repeatable.", autocompletion=model_names),
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

    with reported("figures"):
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

    with reported("selfcheck"):
        checks = checks_of(run)
        typer.echo(to_markdown(checks) if markdown else to_text(checks))
    if any(check.verdict == "differs" for check in checks):
        raise typer.Exit(1)
