"""``mae-bench perf``: speed beside the peers and the goals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_bench.cli.program import reported
from mae_bench.perf import Section

_PERFORMANCE = Path("results/performance")


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
    from mae_bench.machine import ask_for_large_pages, keep_freed_memory

    ask_for_large_pages()  # before the first tensor, as a session of pytest does
    import torch

    from mae_bench.executors.local import resolved_device

    with reported("perf"):
        if profile is not None:
            from mae_bench.perf.profile import SUBJECTS, profile_text
            from mae_bench.store import write_together

            keep_freed_memory()
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
