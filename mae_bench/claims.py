"""Claims decided: what becomes of each contrast, what contradicts it, and the page and the table that say so."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mae_bench.cells import Cell
from mae_bench.contrasts import CLAIMS, CONTRASTS, ClaimError, Contrast, Measured, Models
from mae_bench.markup import markdown_text

if TYPE_CHECKING:
    from mae_bench.evidence import Evidence
    from mae_bench.rows import ResultRow
    from mae_bench.store import RunDirectory

SEEDS_NEEDED = 3

Groups = list[list[float]]


@dataclass(frozen=True)
class Finding:
    """What became of a contrast: mean ``estimate`` with its 95 % interval over seeds, the interval over images within
    seeds, each seed's value, the ``verdict``, Holm's p over all contrasts, and the smallest effect that the design
    finds with 80 % power. None is what could not be computed.
    """

    contrast: Contrast
    estimate: float | None
    low: float | None
    high: float | None
    image_low: float | None
    image_high: float | None
    per_seed: tuple[float, ...]
    p_value: float | None
    holm: float | None
    detectable: float | None
    verdict: str

    @property
    def confirmed(self) -> str:
        """The verdict, marked where a ``holds`` is not confirmed by Holm's procedure over all contrasts."""
        if self.verdict == "holds" and (self.holm is None or self.holm > 0.05):
            return "holds (not by Holm)"
        return self.verdict


# --------------------------------------------------------------------------- verdicts


def verdict(estimate: float, low: float | None, high: float | None, smallest: float, seeds: int) -> str:
    """*holds*: the interval lies above 0 and the estimate is at least ``smallest``; *does not hold*: the interval lies
    below ``smallest``; else *inconclusive*. Fewer than three seeds: *single checkpoint*.

    >>> verdict(0.05, 0.02, 0.08, 0.01, seeds=3), verdict(0.0, -0.005, 0.005, 0.01, seeds=3)
    ('holds', 'does not hold')
    """
    if seeds < SEEDS_NEEDED or low is None or high is None:
        return "single checkpoint"
    if low > 0 and estimate >= smallest:
        return "holds"
    return "does not hold" if high < smallest else "inconclusive"


def findings(measured: Measured, contrasts: Iterable[Contrast] | None = None) -> list[Finding]:
    """Every contrast decided. Holm's procedure runs over all that have a p-value."""
    from mae_bench.statistics import holm

    found = [_finding(measured, contrast) for contrast in contrasts or CONTRASTS.values()]
    tested = [f.p_value for f in found if f.p_value is not None]
    adjusted = iter(holm(tested))
    return [Finding(**{**vars(f), "holm": next(adjusted) if f.p_value is not None else None}) for f in found]


def _finding(measured: Measured, contrast: Contrast) -> Finding:
    groups, per_seed = _by_seed(measured, contrast)
    if not all(groups):
        return Finding(contrast, None, None, None, None, None, per_seed, None, None, None, "not measured")
    estimate = _estimate(groups)
    image_low, image_high = _over_images(measured, contrast, groups) or (None, None)
    low, high, p_value, detectable = _seed_interval(estimate, groups)
    judged = verdict(estimate, low, high, contrast.smallest, min(len(group) for group in groups))
    return Finding(contrast, estimate, low, high, image_low, image_high, per_seed, p_value, None, detectable, judged)


def _by_seed(measured: Measured, contrast: Contrast) -> tuple[Groups, tuple[float, ...]]:
    """What is compared, the statistic by seed of one group or of two, and its contrast by seed."""
    by_arm = [measured.evidence.models(arm) for arm in contrast.arms]
    pairs = _pairs(measured, contrast)
    if contrast.design != "two":
        each = [contrast.statistic(measured, pair) for pair in pairs]
        per_seed = tuple(v for v in each if v is not None)
        return [list(per_seed)], per_seed
    values = {m: contrast.statistic(measured, (m,)) for models in by_arm for m in models.values()}
    groups = [[v for m in models.values() if (v := values[m]) is not None] for models in by_arm]
    differences = [(values[a], values[b]) for a, b in pairs]
    return groups, tuple(a - b for a, b in differences if a is not None and b is not None)


def _pairs(measured: Measured, contrast: Contrast) -> list[Models]:
    """Models of equal seed, one of each arm."""
    by_arm = [measured.evidence.models(arm) for arm in contrast.arms]
    seeds = sorted(set.intersection(*(set(models) for models in by_arm)))
    return [tuple(models[seed] for models in by_arm) for seed in seeds]


def _estimate(groups: Groups) -> float:
    means = [sum(group) / len(group) for group in groups]
    return means[0] - (means[1] if len(means) == 2 else 0.0)


def _over_images(measured: Measured, contrast: Contrast, groups: Groups) -> tuple[float, float] | None:
    """95 % interval over images within the seeds, by the jackknife; None where the statistic is not known without each
    group of images.
    """
    from mae_bench.statistics import jackknife_interval

    if contrast.image_interval is not None:
        return contrast.image_interval(measured, _pairs(measured, contrast))
    parts = []
    for replicate in measured.replicates:
        without, _ = _by_seed(replicate, contrast)
        if [len(group) for group in without] != [len(group) for group in groups]:
            return None
        parts.append(_estimate(without))
    return jackknife_interval(_estimate(groups), parts) if parts else None


def _seed_interval(
    estimate: float, groups: Sequence[Sequence[float]]
) -> tuple[float | None, float | None, float | None, float | None]:
    """95 % t interval of ``estimate`` over seeds (Welch's for two groups), two-sided p-value, and the effect that such
    a design finds with 80 % power; all None for fewer than two seeds. Seeds without spread, as where each has the
    largest rank correlation there is, have neither p-value nor such an effect.
    """
    import numpy as np
    from scipy.stats import t

    if min(len(group) for group in groups) < 2:
        return None, None, None, None
    variances = [float(np.var(group, ddof=1)) / len(group) for group in groups]
    error = sum(variances) ** 0.5
    if error <= 1e-12 * max(1.0, abs(estimate)):
        return estimate, estimate, None, None
    freedom = sum(variances) ** 2 / sum(v**2 / (len(g) - 1) for v, g in zip(variances, groups, strict=True))
    half = float(t.ppf(0.975, freedom)) * error
    p_value = 2 * float(t.sf(abs(estimate) / error, freedom))
    return estimate - half, estimate + half, p_value, half + float(t.ppf(0.8, freedom)) * error


def contradicted(
    contrast: Contrast,
    rows: Mapping[str, ResultRow],
    evidence: Evidence,
    run: RunDirectory,
    cells: Collection[str],
) -> str | None:
    """How ``run`` contradicts what the contrast was decided from: the first of its ``cells``, or of its layers, whose
    interval does not meet the committed one of ``rows`` or ``evidence``. Models of other weights are other models.
    """
    models = [model for arm in contrast.arms for model in evidence.models(arm).values()]
    if contrast.layers is not None:
        found = (_contradicted_layer(contrast, contrast.layers, evidence, run, model) for model in models)
        return next((words for words in found if words is not None), None)
    for name, row in rows.items():
        read = contrast.degradation is None or row.degradation in (contrast.degradation, "clean")
        if not read or row.model not in models or row.top1_low is None or row.top1_high is None:
            continue
        mine = run.read_cell(Cell.parse(name)) if name in cells else None
        own = None if mine is None or mine.row.weights_hash != row.weights_hash else mine.row
        if own is None or own.top1_low is None or own.top1_high is None:
            continue
        if own.top1_low > row.top1_high or own.top1_high < row.top1_low:
            return (
                f"{name}: top-1 {own.top1:.4f} of {own.n} images is off the committed interval {row.top1_low:.4f} to "
                f"{row.top1_high:.4f} of {row.n}, which {contrast.name} was decided from"
            )
    return None


def _contradicted_layer(
    contrast: Contrast, layers: tuple[str, str], evidence: Evidence, run: RunDirectory, model: str
) -> str | None:
    cell = Cell.parse(f"{model}-clean-0.00")
    representation = run.read_representation(cell)
    if representation is None or representation.identity["weights_hash"] != evidence.trainings[model].weights:
        return None
    indicator, token = layers
    for layer, (low, high) in evidence.intervals(model, cell.condition, indicator, token).items():
        value = representation.value(indicator, layer, token)
        if value is None or not low <= value <= high:
            found = "null" if value is None else f"{value:.4f}"
            return (
                f"{cell.id}: {indicator} of {token} at layer {layer} is {found}, off the committed interval {low:.4f} "
                f"to {high:.4f}, which {contrast.name} was decided from"
            )
    return None


# --------------------------------------------------------------------------- tables


_NUMBERS = ("estimate", "low", "high", "image_low", "image_high")
COLUMNS = ("contrast", "verdict", "smallest", *_NUMBERS, "per_seed", "p", "holm", "detectable")


def to_csv(found: Sequence[Finding]) -> str:
    """One line per contrast, numbers to five digits: what later findings are held against."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for f in found:
        numbers = (f.estimate, f.low, f.high, f.image_low, f.image_high)
        seeds = " ".join(_digits(v) for v in f.per_seed)
        tail = (f.p_value, f.holm, f.detectable)
        stated = (f.contrast.name, f.confirmed, _digits(f.contrast.smallest))
        writer.writerow([*stated, *map(_digits, numbers), seeds, *map(_digits, tail)])
    return text.getvalue()


def stored_verdicts(text: str) -> dict[str, str]:
    """Verdict by contrast from what :func:`to_csv` gave.

    Raises:
        ClaimError: the text is something else, or holds a contrast that was stated otherwise, or is stated no more.
    """
    try:
        lines = list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise ClaimError(f"claims.csv cannot be read ({error}); make it again with mae-bench claims") from error
    if not lines or tuple(lines[0]) != COLUMNS:
        raise ClaimError("claims.csv is not a table of claims; make it again with mae-bench claims")
    for line in lines:
        known = CONTRASTS.get(line["contrast"])
        if known is None or _digits(known.smallest) != line["smallest"]:
            now = "is stated no more" if known is None else f"is now stated from {known.smallest:g} on"
            raise ClaimError(
                f"claims.csv holds {line['contrast']} with a smallest effect of {line['smallest']}, which {now}: make "
                "it again with mae-bench claims if that is meant"
            )
    return {line["contrast"]: line["verdict"] for line in lines}


def to_markdown(measured: Measured, found: Sequence[Finding]) -> str:
    """``claims.md``: per claim the count of verdicts, what it turns with, and every contrast."""
    from tabulate import tabulate

    from mae_bench.representation import ATTENTION_IMAGES, IMAGES_PER_CLASS

    images, along = len(measured.outcomes.ids), measured.evidence.trajectories.images
    parts = [
        f"# Claims on {markdown_text(measured.outcomes.suite)}",
        f"Computed from `outcomes.npz` and `evidence.npz` alone: top-1 of {images:,} images at every level; *at equal "
        f"clean top-1* of the first {along:,} images at the levels of the default matrix, along trainings; "
        f"separability of the first {IMAGES_PER_CLASS} images of each class, attention of the first "
        f"{ATTENTION_IMAGES}.",
        _clean_table(measured, found),
        "A positive estimate speaks for the claim. *Interval*: 95 % over training seeds (Welch's t for two arms, "
        "one-sample t otherwise). *Images*: 95 % over images within the seeds (a jackknife that leaves out a tenth of "
        "them at a time; for flips the mean of the cells' intervals, which is no narrower). *Holds*: the interval lies "
        "above 0 and the estimate is at least the smallest effect of interest; *does not hold*: the interval lies "
        "below that effect; else *inconclusive*; fewer than three seeds: *single checkpoint*. *Detectable*: the "
        "smallest effect that the design finds with 80 % power. *Holm p*: over all contrasts of this page; seeds "
        "without spread have none. Top-1 differences are in points.",
    ]
    for number, claim in CLAIMS.items():
        mine = [f for f in found if f.contrast.claim == number]
        parts += [f"## {number}. {claim}", _counts(mine)]
        if turns := turning(mine):
            parts.append("\n".join(f"* {line}" for line in turns))
        lines = [_line(f) for f in mine]
        header = ["contrast", "arms", "estimate", "interval", "images", "per seed"]
        header += ["smallest", "detectable", "Holm p", "verdict"]
        parts.append(tabulate(lines, headers=header, tablefmt="github", disable_numparse=True))
    return "\n\n".join(parts) + "\n"


def _clean_table(measured: Measured, found: Sequence[Finding]) -> str:
    """Clean top-1 of the arms compared, by seed: what differs before any degradation."""
    from tabulate import tabulate

    arms = {arm: measured.evidence.models(arm) for arm in _arms(found)}
    seeds = sorted({seed for models in arms.values() for seed in models})

    def percent(model: str | None) -> str:
        clean = None if model is None else measured.clean(model)
        return "-" if clean is None else f"{100 * clean.mean():.2f}"

    lines = [[arm, *(percent(models.get(seed)) for seed in seeds)] for arm, models in arms.items() if models]
    headers = ["clean top-1 (%)", *(f"seed {seed}" for seed in seeds)]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True) if lines else "No arm was run."


def turning(found: Sequence[Finding]) -> list[str]:
    """What a claim turns with: groups whose contrasts disagree, in verdict or beyond chance of images in sign, and
    contrasts whose seeds do.
    """
    lines = []
    groups: dict[str, list[Finding]] = {}
    for f in found:
        groups.setdefault(f.contrast.group, []).append(f)
    for group, members in groups.items():
        holding = [f.contrast.name for f in members if f.verdict == "holds"]
        failing = [f.contrast.name for f in members if f.verdict == "does not hold"]
        if holding and failing:
            lines.append(f"turns within *{group}*: holds for {', '.join(holding)}; does not for {', '.join(failing)}")
        above = [f.contrast.name for f in members if f.image_low is not None and f.image_low > 0]
        below = [f.contrast.name for f in members if f.image_high is not None and f.image_high < 0]
        if above and below and not (holding and failing):
            lines.append(
                f"these seeds' sign turns within *{group}*: positive for {', '.join(above)}; negative for "
                f"{', '.join(below)}"
            )
    split = [f.contrast.name for f in found if f.per_seed and min(f.per_seed) < 0 < max(f.per_seed)]
    if split:
        lines.append(f"the sign turns with the seed in {len(split)} of {len(found)}: {', '.join(split)}")
    return lines


def _counts(found: Sequence[Finding]) -> str:
    counts: dict[str, int] = {}
    for f in found:
        counts[f.confirmed] = counts.get(f.confirmed, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1])) + "."


def _line(f: Finding) -> list[str]:
    scale, digits = (100, 1) if f.contrast.unit == "top-1" else (1, 3)

    def number(value: float | None) -> str:
        return "-" if value is None else f"{scale * value:+.{digits}f}"

    def interval(low: float | None, high: float | None) -> str:
        return "-" if low is None or high is None else f"[{number(low)}, {number(high)}]"

    return [
        f"`{f.contrast.name}`: {f.contrast.statement}",
        (" - " if f.contrast.design == "two" else " and ").join(f.contrast.arms),
        number(f.estimate),
        interval(f.low, f.high),
        interval(f.image_low, f.image_high),
        " ".join(map(number, f.per_seed)) or "-",
        f"{scale * f.contrast.smallest:g}",
        "-" if f.detectable is None else f"{scale * f.detectable:.{digits}f}",
        "-" if f.holm is None else f"{f.holm:.2g}",
        f.confirmed,
    ]


def _arms(found: Iterable[Finding]) -> list[str]:
    return list(dict.fromkeys(arm for f in found for arm in f.contrast.arms))


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
