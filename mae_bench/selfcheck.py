"""A finished run held against published numbers: what agrees, what differs, and how the protocols differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mae_bench.baseline import read_rows
from mae_bench.corruption_error import CorruptionScores
from mae_bench.markup import markdown_text, terminal_text
from mae_bench.published import ANCHORS, EXTENT, Anchor
from mae_bench.rows import ResultRow
from mae_bench.store import RunDirectory, StoreError, cell_of

REGENERATED_TOLERANCE = 2.0
"""Points that scores of corruptions generated here may lie from those of the stored set, whose random draws, libraries
and JPEG compression were others.
"""

ERRORS = 2.0
"""Standard errors by which the tolerance of a number over part of the images is widened."""

Indicators = Mapping[str, Sequence[Mapping[str, Any]]]
"""Records of :class:`mae_bench.rows.CellResult` by cell id."""

Verdict = Literal["agrees", "differs", "not comparable"]


@dataclass(frozen=True)
class Check:
    """One measured number beside a published one, both in the anchor's unit.

    ``score`` is what was found, such as ``mCE_regenerated`` beside a published mCE. ``differences`` name how the
    protocols differ, or why the numbers are not comparable.
    """

    model: str
    anchor: Anchor
    score: str
    found: float | None
    tolerance: float
    verdict: Verdict
    differences: tuple[str, ...] = ()

    @property
    def difference(self) -> float | None:
        return None if self.found is None else self.found - self.anchor.value


# --------------------------------------------------------------------------- checks


def selfcheck(path: Path, anchors: Iterable[Anchor] = ANCHORS) -> list[Check]:
    """The checks of the run directory, or of the folder of committed results, at ``path``.

    Raises:
        StoreError: it is neither, or a file in it cannot be read.
        BaselineError: its table cannot be read.
    """
    if (path / "cells").is_dir():
        results = RunDirectory(path).cells()
        indicators = {cell_of(result.row).id: result.indicators for result in results}
        return check([result.row for result in results], anchors, indicators)
    if (path / "cells.csv").is_file():
        return check(read_rows(path / "cells.csv"), anchors)
    raise StoreError(
        f"{path} holds no results: name the directory of a run (with cells/ in it) or of committed results (with "
        "cells.csv)"
    )


def check(
    rows: Iterable[ResultRow], anchors: Iterable[Anchor] = ANCHORS, indicators: Indicators | None = None
) -> list[Check]:
    """A check for each of ``anchors`` of which ``rows`` hold the measured side; none for what was not measured.

    *agrees*: found and published lie within the anchor's tolerance, which for part of the images is wider by
    :data:`ERRORS` standard errors (of the share, with the correction for a finite population), and for corruptions
    generated here is :data:`REGENERATED_TOLERANCE`. *differs*: they do not. *not comparable*: they are numbers of
    different things. Correlations are those of the feature that the head reads, which a row does not hold: they need
    the ``indicators`` of the cells.
    """
    by_model: dict[str, list[ResultRow]] = {}
    for row in rows:
        if row.status != "not_applicable":
            by_model.setdefault(row.model, []).append(row)
    checks = []
    for anchor in anchors:
        for model in anchor.models:
            mine = by_model.get(model, [])
            if anchor.condition:
                cells = [row for row in mine if (row.suite, row.condition) == (anchor.suite, anchor.condition)]
                checks += [_check_cell(row, anchor, indicators or {}) for row in cells]
            else:
                checks += _check_corruptions(mine, anchor)
    return checks


def _check_cell(row: ResultRow, anchor: Anchor, indicators: Indicators) -> Check:
    found: float | None
    if anchor.score.startswith("correlation"):
        found, absent = _correlation(anchor.score.removeprefix("correlation_"), indicators.get(cell_of(row).id, ()))
    else:
        found, absent = getattr(row, anchor.score), f"the cell has no {anchor.score}"
    if found is not None and anchor.unit == "%":
        found *= 100
    return _check(row, anchor, anchor.score, found, absent, anchor.tolerance, [])


def _check_corruptions(rows: Sequence[ResultRow], anchor: Anchor) -> list[Check]:
    """The stored set and what was generated from ImageNet, where there are cells of them among ``rows``."""
    checks = []
    for suite in ("imagenet_c", "imagenet"):
        cells = [row for row in rows if row.suite == suite]
        scores = CorruptionScores.of(cells)
        first = next((row for row in cells if row.family == "imagenet_c"), None)
        if scores is None or first is None:
            continue
        found, score = (scores.accuracy, "mca") if anchor.score == "mca" else (scores.mce, scores.name or "mCE")
        stored = suite == anchor.suite
        tolerance = anchor.tolerance if stored else REGENERATED_TOLERANCE
        differences = [] if stored else ["corruptions generated here instead of the stored set"]
        absent = scores.reason or "cells are missing"
        checks.append(_check(first, anchor, score, found, absent, tolerance, differences))
    return checks


def _check(
    row: ResultRow,
    anchor: Anchor,
    score: str,
    found: float | None,
    absent: str,
    tolerance: float,
    differences: Sequence[str],
) -> Check:
    """``absent`` says why nothing was ``found``, ``differences`` are known beside those of the ``row``."""
    images, classes = EXTENT[anchor.suite]
    differences = (*differences, *protocol_differences(row, anchor))
    widening = sampling_error(anchor, row.n, images)
    if row.classes != classes:
        hindrance = f"{row.classes:,} classes instead of {classes:,}"
    elif found is None:
        hindrance = absent
    elif widening is None:
        hindrance = f"part of the images, and how {score} varies between images is not published"
    else:
        tolerance += ERRORS * widening
        # a number at the very edge of the tolerance is inside whatever its binary digits say
        agrees = abs(found - anchor.value) <= tolerance + 1e-9
        return Check(row.model, anchor, score, found, tolerance, "agrees" if agrees else "differs", differences)
    return Check(row.model, anchor, score, found, tolerance, "not comparable", (hindrance, *differences))


def sampling_error(anchor: Anchor, images: int, of: int) -> float | None:
    """Standard error, in the anchor's unit, of its score over ``images`` drawn from the ``of`` that it was published
    for; None where the spread is not known.

    >>> top1, _, loss = ANCHORS[:3]
    >>> round(sampling_error(top1, 1024, 50_000), 2), sampling_error(loss, 1024, 50_000), sampling_error(loss, 9, 9)
    (1.14, None, 0.0)
    """
    if images >= of:
        return 0.0
    spread = anchor.spread
    if anchor.unit == "%":
        share = anchor.value / 100
        spread = 100 * (share * (1 - share)) ** 0.5
    return None if spread is None else float(spread * ((of - images) / (of - 1) / images) ** 0.5)


def protocol_differences(row: ResultRow, anchor: Anchor) -> tuple[str, ...]:
    """How the cell's protocol differs from the published one, as far as the ``row`` tells."""
    images, _ = EXTENT[anchor.suite]
    differences = []
    if row.n != images:
        differences.append(f"{row.n:,} images instead of {images:,}")
    for part, here, there in zip(
        ("image size", "interpolation", "crop mode", "crop"), row.view.split(), anchor.view.split(), strict=False
    ):
        if here != there:
            differences.append(f"{part} {here} instead of {there}")
    if row.dtype != "float32":
        differences.append(f"computed in {row.dtype}")
    if anchor.runs > 1:
        differences.append(f"one random draw per image (seed {row.seed}) instead of the mean of {anchor.runs}")
    return tuple(differences)


def _correlation(token: str, records: Sequence[Mapping[str, Any]]) -> tuple[float | None, str]:
    """The correlation of the feature that the head reads, which is the last layer; else why there is none."""
    layers = {r["layer"]: r for r in records if r["indicator"] == "correlation" and r["token"] == token}
    if not layers:
        return None, "the feature that the head reads is not among these results; check the directory of the run"
    last = layers[max(layers)]
    return last["value"], f"the feature that the head reads has no correlation ({last['reason']})"


# --------------------------------------------------------------------------- reports


def to_text(checks: Sequence[Check]) -> str:
    """The checks as a table for a terminal, and what they amount to."""
    return _report(checks, "simple", terminal_text)


def to_markdown(checks: Sequence[Check]) -> str:
    """The checks as a Markdown table, and what they amount to."""
    return _report(checks, "github", markdown_text)


def _report(checks: Sequence[Check], table_format: str, shown: Callable[[str], str]) -> str:
    from tabulate import tabulate

    if not checks:
        return "Nothing to compare: no published number is known of any cell and model that was measured."
    lines = [list(map(shown, _line(one))) for one in checks]
    header = ["model", "suite", "number", "found", "published", "difference", "tolerance", "verdict"]
    header += ["protocol", "source"]
    table = tabulate(lines, headers=header, tablefmt=table_format, disable_numparse=True)
    protocols = dict.fromkeys(shown(f"{one.anchor.source}: {one.anchor.protocol}") for one in checks)
    counts = Counter(one.verdict for one in checks)
    return "\n\n".join(
        [
            table,
            "Published protocols:\n\n" + "\n".join(f"- {protocol}" for protocol in protocols),
            f"{counts['agrees']} agree, {counts['differs']} differ, {counts['not comparable']} not comparable.",
        ]
    )


def _line(one: Check) -> list[str]:
    anchor = one.anchor
    digits = 2 if anchor.unit == "%" else 3
    number = f"{one.score} {anchor.condition}".strip() + (f" ({anchor.unit})" if anchor.unit else "")
    return [
        one.model,
        anchor.suite,
        number,
        "-" if one.found is None else f"{one.found:.{digits}f}",
        f"{anchor.value:g}",
        "-" if one.difference is None else f"{one.difference:+z.{digits}f}",
        f"{one.tolerance:.{digits}f}",
        one.verdict,
        "; ".join(one.differences) or "as published",
        anchor.source,
    ]
