"""Corruption errors of ImageNet-C: normalised by AlexNet's, their mean over fifteen corruptions, and what it may be
called.

Source: Hendrycks and Dietterich 2019, arXiv 1903.12261. Errors and accuracies are in percent throughout.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from mae_bench.cells import near_name
from mae_bench.markup import markdown_text
from mae_bench.published import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    ALEXNET_EXTRA_ERRORS,
    ALEXNET_MEAN_ERRORS,
    EXTENT,
    IMAGENET_VIEW,
)
from mae_bench.rows import ResultRow

SEVERITIES = (1, 2, 3, 4, 5)
FIFTEEN = tuple(ALEXNET_ERRORS)
EXTRA = tuple(ALEXNET_EXTRA_ERRORS)

Errors = Mapping[str, Mapping[float, float]]
"""Top-1 error in percent by corruption and severity."""

ScoreName = Literal["mCE", "mCE_regenerated"]


# --------------------------------------------------------------------------- from errors


def corruption_error(corruption: str, errors: Mapping[float, float]) -> float:
    """CE in percent: the sum of the top-1 ``errors`` (severity to percent) over AlexNet's. AlexNet has 100, lower is
    better.

    Raises:
        ValueError: the corruption is unknown, a severity is missing or not one of the five, or an error is no
            percentage.

    >>> corruption_error("fog", {1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0, 5: 50.0})  # doctest: +ELLIPSIS
    36.61...
    """
    return 100 * _mean_error(corruption, errors) / ALEXNET_MEAN_ERRORS[corruption]


def relative_corruption_error(corruption: str, errors: Mapping[float, float], clean_error: float) -> float:
    """Relative CE in percent: as :func:`corruption_error`, but of what the ``errors`` exceed the ``clean_error`` by, in
    the model and in AlexNet. 0 where the corruption does no harm.

    Raises:
        ValueError: as :func:`corruption_error`.
    """
    _check_percentage("the clean error", clean_error)
    excess = _mean_error(corruption, errors) - clean_error
    return 100 * excess / (ALEXNET_MEAN_ERRORS[corruption] - ALEXNET_CLEAN_ERROR)


def mean_corruption_error(errors: Errors) -> float:
    """mCE in percent: the mean CE over the fifteen corruptions.

    Raises:
        ValueError: ``errors`` are not of exactly the fifteen, or as :func:`corruption_error`.
    """
    _check_names(errors, FIFTEEN)
    return fmean(corruption_error(name, errors[name]) for name in FIFTEEN)


def relative_mean_corruption_error(errors: Errors, clean_error: float) -> float:
    """Relative mCE in percent: the mean relative CE over the fifteen corruptions.

    Raises:
        ValueError: as :func:`mean_corruption_error`.
    """
    _check_names(errors, FIFTEEN)
    return fmean(relative_corruption_error(name, errors[name], clean_error) for name in FIFTEEN)


def mean_corruption_accuracy(errors: Errors, corruptions: Collection[str] = FIFTEEN) -> float:
    """Mean top-1 accuracy in percent over the severities and the ``corruptions``, normalised by nothing.

    Raises:
        ValueError: ``errors`` are not of exactly these corruptions, or as :func:`corruption_error`.
    """
    _check_names(errors, corruptions)
    return 100 - fmean(_mean_error(name, errors[name]) for name in corruptions)


def _mean_error(corruption: str, errors: Mapping[float, float]) -> float:
    if corruption not in ALEXNET_MEAN_ERRORS:
        raise ValueError(f"unknown corruption {corruption!r}: {near_name(corruption, ALEXNET_MEAN_ERRORS)}")
    if missing := [severity for severity in SEVERITIES if severity not in errors]:
        raise ValueError(f"{corruption}: severities {', '.join(map(str, missing))} are missing; all five are needed")
    if other := errors.keys() - set(SEVERITIES):
        raise ValueError(f"{corruption}: {min(other):g} is not one of the severities 1 to 5")
    for severity in SEVERITIES:
        _check_percentage(f"the error of {corruption} at severity {severity}", errors[severity])
    return fmean(errors[severity] for severity in SEVERITIES)


def _check_percentage(what: str, value: float) -> None:
    if not 0 <= value <= 100:
        raise ValueError(f"{what} is {value}, which is no percentage")


def _check_names(errors: Errors, corruptions: Collection[str]) -> None:
    missing = [name for name in corruptions if name not in errors]
    other = [name for name in errors if name not in corruptions]
    if missing or other:
        parts = [f"{', '.join(missing)} missing"] * bool(missing) + [f"{', '.join(other)} not among them"] * bool(other)
        raise ValueError(f"the mean is over {len(corruptions)} corruptions: {'; '.join(parts)}")


# --------------------------------------------------------------------------- from rows


@dataclass(frozen=True)
class CorruptionScores:
    """What one model's cells of ImageNet-C amount to, in percent.

    ``accuracy`` and ``accuracy_extra`` are the mean corruption accuracies of the fifteen and of the four extra
    corruptions; None where cells are missing. ``name`` is what the mean corruption error ``mce`` may be called: ``mCE``
    for the stored set, ``mCE_regenerated`` for corruptions generated from ImageNet under the view that the stored set
    was made from. Where it may be called neither, ``reason`` says why, and there are no corruption errors.
    """

    model: str
    suite: str
    accuracy: float | None
    accuracy_extra: float | None
    name: ScoreName | None = None
    reason: str | None = None
    ce: dict[str, float] = field(default_factory=dict)
    mce: float | None = None
    relative_mce: float | None = None

    @classmethod
    def of(cls, rows: Iterable[ResultRow]) -> CorruptionScores | None:
        """The scores of one model's ``rows``; None where none is of an ImageNet-C corruption. Severities between the
        five are left out.

        Raises:
            ValueError: the rows are of several models or suites.
        """
        rows = [row for row in rows if row.top1 is not None]
        cells = [row for row in rows if row.family in ("imagenet_c", "c_extra") and row.level in SEVERITIES]
        if not cells:
            return None
        owners = {(row.model, row.suite) for row in rows}
        if len(owners) > 1:
            raise ValueError(f"corruption scores are of one model on one suite, not of {sorted(owners)}")
        model, suite = owners.pop()
        errors: dict[str, dict[float, float]] = {}
        for row in cells:
            errors.setdefault(row.degradation, {})[row.level] = 100 * (1 - (row.top1 or 0.0))
        fifteen, extra = ({name: errors[name] for name in names if name in errors} for names in (FIFTEEN, EXTRA))
        reason = _reason(suite, [row for row in cells if row.family == "imagenet_c"], fifteen)
        accuracy, accuracy_extra = _accuracy(cells, fifteen, FIFTEEN), _accuracy(cells, extra, EXTRA)
        if reason is not None:
            return cls(model, suite, accuracy, accuracy_extra, reason=reason)
        clean = [100 * (1 - (row.top1 or 0.0)) for row in rows if row.family == "clean" and row.n == EXTENT[suite][0]]
        return cls(
            model,
            suite,
            accuracy,
            accuracy_extra,
            "mCE" if suite == "imagenet_c" else "mCE_regenerated",
            None,
            {name: corruption_error(name, fifteen[name]) for name in FIFTEEN},
            mean_corruption_error(fifteen),
            relative_mean_corruption_error(fifteen, clean[0]) if clean else None,
        )


def corruption_scores(rows: Iterable[ResultRow]) -> dict[str, CorruptionScores]:
    """The scores of every model that has some, in the order of the rows."""
    by_model: dict[str, list[ResultRow]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row)
    found = {model: CorruptionScores.of(mine) for model, mine in by_model.items()}
    return {model: scores for model, scores in found.items() if scores is not None}


def _missing(errors: Errors, corruptions: Collection[str]) -> list[str]:
    return [f"{name}-s{s}" for name in corruptions for s in SEVERITIES if s not in errors.get(name, {})]


def _accuracy(cells: Collection[ResultRow], errors: Errors, corruptions: Collection[str]) -> float | None:
    if _missing(errors, corruptions) or len({(row.n, row.view) for row in cells if row.degradation in corruptions}) > 1:
        return None
    return mean_corruption_accuracy(errors, corruptions)


def _reason(suite: str, cells: Collection[ResultRow], fifteen: Errors) -> str | None:
    """Why the mean corruption error of ``cells`` would be no mCE; None where it is one."""
    if suite not in ("imagenet", "imagenet_c"):
        return f"AlexNet's errors, by which mCE is normalised, are of ImageNet, not of {suite}"
    for name in ("weights_hash", "preprocessing", "dtype", "device", "seed"):
        if len(values := {getattr(row, name) for row in cells}) > 1:
            return f"the cells are of several runs: {name} is {' and '.join(sorted(map(str, values)))}"
    if missing := _missing(fifteen, FIFTEEN):
        return f"{len(missing)} of {len(FIFTEEN) * len(SEVERITIES)} cells are missing, such as {missing[0]}"
    images, classes = EXTENT[suite]
    views = {row.view for row in cells}
    for row in cells:
        if (row.n, row.classes) != (images, classes):
            return (
                f"mCE is of all {images:,} images of {classes:,} classes, {row.condition} of {row.n:,} images of "
                f"{row.classes:,} classes"
            )
        if suite == "imagenet" and row.view != IMAGENET_VIEW:
            return f"{row.condition} was generated under the view {row.view}; --mae-view suite gives {IMAGENET_VIEW}"
    return f"cells are of several views, {' and '.join(sorted(views))}" if len(views) > 1 else None


# --------------------------------------------------------------------------- table


def to_markdown(scores: Mapping[str, CorruptionScores]) -> str:
    """Tables of the ``scores`` by model: means, then CE by corruption where it is defined; below, why it is not
    where it is not.
    """
    from tabulate import tabulate

    names = [name for name in ("mCE", "mCE_regenerated") if any(s.name == name for s in scores.values())]
    header = ["model", *(text for name in names for text in (name, f"relative {name}"))]
    header += ["mean accuracy, 15 (%)", "mean accuracy, 4 extra (%)"]
    lines = []
    for model, one in scores.items():
        errors = [_text(value if one.name == name else None) for name in names for value in (one.mce, one.relative_mce)]
        lines.append([markdown_text(model), *errors, _text(one.accuracy), _text(one.accuracy_extra)])
    parts = [tabulate(lines, headers=header, tablefmt="github", disable_numparse=True)]
    normalised = {model: one for model, one in scores.items() if one.name is not None}
    if normalised:
        table = [[name, *(_text(one.ce[name]) for one in normalised.values())] for name in FIFTEEN]
        header = ["CE (%)", *map(markdown_text, normalised)]
        parts.append(tabulate(table, headers=header, tablefmt="github", disable_numparse=True))
    parts.append(_legend(scores))
    return "\n\n".join(parts)


def _legend(scores: Mapping[str, CorruptionScores]) -> str:
    sentences = ["*mean accuracy*: top-1 over the five severities, the 15 corruptions and the 4 extra apart."]
    names = {one.name for one in scores.values()}
    if names != {None}:
        sentences.append(
            "*CE*: error over AlexNet's, in percent, lower is better; *mCE*: its mean over the 15; *relative*: of what "
            "errors exceed the clean ones by."
        )
    if "mCE_regenerated" in names:
        sentences.append("*mCE_regenerated*: of corruptions generated here, not of the stored set.")
    reasons: dict[str, list[str]] = {}
    for model, one in scores.items():
        if one.reason is not None:
            reasons.setdefault(one.reason, []).append(markdown_text(model))
    sentences += [f"No mCE of {', '.join(models)}: {markdown_text(reason)}." for reason, models in reasons.items()]
    return " ".join(sentences)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
