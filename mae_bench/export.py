"""A leaderboard as others keep theirs: timm's CSV of results, the model index of a Hugging Face model card, LaTeX."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from mae_bench.cells import near_name
from mae_bench.errors import BenchError
from mae_bench.images import View
from mae_bench.leaderboard import Leaderboard, Standing, scored_families
from mae_bench.markup import csv_text, terminal_text
from mae_bench.report.pictures import parsed_view
from mae_bench.rows import ResultRow
from mae_bench.side import Side
from mae_bench.store import cell_of
from mae_bench.suites import suite_entry

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CLEAN = "clean-0.00"


class ExportError(BenchError):
    """Results that the asked format has no place for."""


def board_of(side: Side) -> Leaderboard:
    """The leaderboard of all models of a ``side``.

    Raises:
        ExportError: none of them has a clean cell.
    """
    suite_entry(side.outcomes.suite)
    if not any(row.family == "clean" and row.top1 is not None for row in side.rows.values()):
        raise ExportError(
            f"{side.name}: no clean cell is finished, and every format begins with it; run it, or name another"
        )
    return Leaderboard.of(side.rows.values(), side.outcomes)


def _chosen(board: Leaderboard, models: Collection[str]) -> set[str]:
    """``models``, or all where none is named.

    Raises:
        ExportError: one is not on the leaderboard.
    """
    known = [standing.model for standing in board.standings]
    for model in models:
        if model not in known:
            raise ExportError(
                f"--model {terminal_text(model)}: it is not among the results; {terminal_text(near_name(model, known))}"
            )
    return set(models or known)


# --------------------------------------------------------------------------- timm


def timm_csv(board: Leaderboard, models: Collection[str] = (), condition: str | None = None) -> str:
    """The table as timm has its results on a set of images: top-1 and top-5 in percent with three decimals, the best
    first, parameters in millions, and what the model saw.

    Clean, with the mean top-1 of each family behind it, empty where cells of it are missing; or under a ``condition``
    such as ``random_patch-0.50``, with the differences from the clean top-1, top-5 and rank (of better rank: ``+``)
    behind it, as timm has them for sets other than ImageNet's. Of ``models`` alone where some are named; ranks are
    among all.

    Raises:
        ExportError: no model has the condition, or a model is not among the results.
    """
    import pandas as pd

    chosen, clean = _chosen(board, models), _ranked(board, CLEAN)
    before = {row.model: (rank, row) for rank, row in enumerate(clean)}
    robust = {standing.model: standing.robust for standing in board.standings}
    partial = {standing.model: standing.partial for standing in board.standings}
    lines = []
    for rank, row in enumerate(clean if condition is None else _ranked(board, condition)):
        if row.model not in chosen:
            continue
        seen = _view(row)
        line = {
            "model": csv_text(row.model),
            "top1": _percent(row.top1),
            "top1_err": _error(row.top1),
            "top5": _percent(row.top5),
            "top5_err": _error(row.top5),
            "param_count": f"{row.parameters / 1e6:,.2f}",
            "img_size": str(seen.width) if seen.height == seen.width else f"{seen.height}x{seen.width}",
            "crop_pct": f"{seen.crop_pct:.3f}",
            "interpolation": seen.interpolation,
        }
        if condition is None:
            line |= {
                f"{family}_top1": _percent(None if family in partial[row.model] else robust[row.model].get(family))
                for family in board.families
            }
        else:
            best, reference = before[row.model]
            line["top1_diff"] = _difference(row.top1, reference.top1)
            line["top5_diff"] = _difference(row.top5, reference.top5)
            line["rank_diff"] = f"{best - rank:+d}" if best != rank else "0"
        lines.append(line)
    text: str = pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")
    return text


def _ranked(board: Leaderboard, condition: str) -> list[ResultRow]:
    """The cells of the models under ``condition``, as timm sorts them."""
    found = [row for row in board.rows if row.condition == condition]
    if not found:
        name = condition.rpartition("-")[0]
        levels = {row.condition for row in board.rows if row.degradation == name}
        known = near_name(condition, levels or {row.degradation for row in board.rows})
        raise ExportError(f"--condition {terminal_text(condition)}: no cell is of it; {known}")
    return sorted(found, key=lambda row: (-(row.top1 or 0.0), -(row.top5 or 0.0), row.model))


def _view(row: ResultRow) -> View:
    """Raises:
    ExportError: the row does not say what the model saw.
    """
    try:
        return parsed_view(row.view)
    except ValueError as error:
        raise ExportError(f"{cell_of(row).id}: {error}, so the image size is not known; run the cell again") from error


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.3f}"


def _error(rate: float | None) -> str:
    return "" if rate is None else f"{100 - 100 * rate:.3f}"


def _difference(rate: float | None, before: float | None) -> str:
    return "" if rate is None or before is None else f"{100 * (rate - before):+z.3f}"


# --------------------------------------------------------------------------- Hugging Face


def model_index(board: Leaderboard, models: Collection[str] = ()) -> str:
    """The metadata of a model card, in YAML: clean top-1 and top-5, the mean top-1 of each family, and the score, as
    fractions, with the 95 % interval where there is one. Each says on how many images.

    Raises:
        ExportError: not one model is named where there are several, or it is not among the results.
    """
    from huggingface_hub import ModelCardData

    chosen = _chosen(board, models)
    if len(chosen) != 1:
        known = ", ".join(terminal_text(standing.model) for standing in board.standings)
        raise ExportError(f"a model card is of one model: choose one of {known} with --model NAME")
    (standing,) = (standing for standing in board.standings if standing.model in chosen)
    results = [*_clean_results(board, standing), *_family_results(board, standing)]
    text: str = ModelCardData(model_name=standing.model, eval_results=results).to_yaml()
    return f"{text}\n"


def _clean_results(board: Leaderboard, standing: Standing) -> list[EvalResult]:
    (row,) = (row for row in _ranked(board, CLEAN) if row.model == standing.model)
    found = [_result(board, "clean", {}, "top-1", *standing.clean)]
    if row.top5 is not None:
        found.append(_result(board, "clean", {}, "top-5", row.top5, row.top5_low, row.top5_high))
    return found


def _family_results(board: Leaderboard, standing: Standing) -> list[EvalResult]:
    found = [
        _result(board, family, {"cells": standing.averaged[family]}, "mean top-1", standing.robust[family])
        for family in board.families
        if family in standing.robust
    ]
    if standing.score is not None and standing.score_interval is not None:
        over = {"families": ", ".join(scored_families(board.standings))}
        found.append(_result(board, "score", over, "mean top-1 of families", standing.score, *standing.score_interval))
    return found


def _result(
    board: Leaderboard,
    config: str,
    details: Mapping[str, str | int],
    name: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="image-classification",
        task_name="Image classification",
        dataset_type=board.suite,
        dataset_name=f"{board.suite}, {config}",
        dataset_config=config,
        dataset_args={"images": board.images, **details},
        metric_type="accuracy",
        metric_name=name,
        metric_value=round(value, 6),
        metric_args=None if low is None or high is None else {"low": round(low, 6), "high": round(high, 6)},
    )


# --------------------------------------------------------------------------- LaTeX


def latex(board: Leaderboard, models: Collection[str] = ()) -> str:
    r"""The leaderboard as a table of LaTeX in the style of booktabs: rank, score and clean top-1 with 95 % intervals,
    and the mean top-1 of each family, in percent. Of ``models`` alone where some are named; ranks are among all.

    Raises:
        ExportError: a model is not among the results.
    """
    import pandas as pd

    chosen = _chosen(board, models)
    lines = [line for line, standing in zip(board.cells(), board.standings, strict=True) if standing.model in chosen]
    kept = ["#", "model", *(name for name in board.header if name.endswith("(%)"))]
    frame = pd.DataFrame(lines, columns=board.header)[kept]
    style = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    # names of suites and of families are the harness's own, and hold nothing else that LaTeX reads
    caption = board.caption.replace("_", r"\_")
    table: str = style.to_latex(
        hrules=True,
        caption=f"Top-1 in percent, with 95~\\% intervals. {caption}",
        label=f"tab:{board.suite}",
        position_float="centering",
        column_format="rl" + "r" * (len(kept) - 2),
    )
    return f"% \\usepackage{{booktabs}}\n{table}"
