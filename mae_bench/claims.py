"""Claims of arXiv 2602.03531 as contrasts: what is compared, by which statistic, in which direction, from what size on.

Each contrast is stated here before it is measured. Statistics are oriented so that a positive value speaks for the
claim. Nothing heavy is imported until a contrast is decided, so that contrasts can be collected as tests.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from mae_bench.cells import Cell, Level, near_name
from mae_bench.degradations import DEGRADATIONS, FILLS
from mae_bench.errors import BenchError

if TYPE_CHECKING:
    import numpy as np

    from mae_bench.baseline import Baseline
    from mae_bench.evidence import Evidence
    from mae_bench.rows import ResultRow
    from mae_bench.store import Outcomes, RunDirectory

CLAIMS = {
    1: "MAE classifies well under blur and occlusion after pretraining and fine-tuning (here: better than the same "
    "network trained supervised with equal compute).",
    2: "The pretrained encoder builds its latent space class-aware over depth: classes lie in subspaces that become "
    "increasingly separable.",
    3: "MAE attends globally, early and persistently, in contrast to a supervised ViT.",
    4: "Two sensitivity indicators, directional alignment and head-wise retention of active features, tell what a "
    "degradation costs.",
}
SEEDS_NEEDED = 3
ROW_KIND = "mean_patch"

Models = tuple[str, ...]
Statistic = Callable[["Measured", Models], "float | None"]
ImageInterval = Callable[["Measured", Sequence[Models]], "tuple[float, float] | None"]
Groups = list[list[float]]


class ClaimError(BenchError):
    """Claims that cannot be decided from the files that are there."""


@dataclass(frozen=True)
class Contrast:
    """One comparison. ``design`` is ``two`` (Welch's t between the seeds of two arms), ``one`` (t over the seeds of one
    arm) or ``paired`` (t over the statistic of models of equal seed). ``smallest`` is the smallest effect of interest
    in ``unit``. Contrasts of one ``group`` say the same by another fill, token or indicator: where they disagree the
    claim turns with it. ``image_interval`` is given where the one over images is not the jackknife's.
    ``degradation`` names that of the cells which the statistic reads, where it does not read all, and ``layers`` the
    indicator and the token of the blocks, on clean images.
    """

    name: str
    claim: int
    group: str
    statement: str
    design: str
    arms: tuple[str, ...]
    smallest: float
    unit: str
    statistic: Statistic
    image_interval: ImageInterval | None = None
    degradation: str | None = None
    layers: tuple[str, str] | None = None


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


@dataclass
class Measured:
    """Outcomes and evidence of a suite as contrasts read them; ``kept`` (images,) says which images count."""

    outcomes: Outcomes
    evidence: Evidence
    kept: np.ndarray | slice = field(default_factory=lambda: slice(None))

    @classmethod
    def of(cls, baseline: Baseline, evidence: Evidence) -> Measured:
        """What is committed of a suite.

        Raises:
            ClaimError: outcomes and evidence are of other weights of a model.
        """
        for row in baseline.rows.values():
            training = evidence.trainings.get(row.model)
            if training is not None and training.weights != row.weights_hash:
                raise ClaimError(
                    f"{baseline.path}: the outcomes of {row.model} are of weights {row.weights_hash}, the evidence is "
                    f"of {training.weights}: make both from one run, with --mae-update-baseline and mae-bench claims"
                )
        return cls(baseline.outcomes, evidence)

    @cached_property
    def degradations(self) -> dict[str, list[str]]:
        """Conditions of each degradation that the outcomes hold, by rising level."""
        found: dict[str, set[str]] = {}
        for cell in self.outcomes.prediction:
            condition = "-".join(cell.rsplit("-", 2)[1:])
            found.setdefault(condition.rsplit("-", 1)[0], set()).add(condition)
        return {name: sorted(each, key=lambda c: Level.parse(c.rsplit("-", 1)[1])) for name, each in found.items()}

    @cached_property
    def _scores(self) -> dict[tuple[str, str], np.ndarray | None]:
        return {}

    def scores(self, model: str, degradation: str) -> np.ndarray | None:
        """(kept images,) each image's share of the degradation's levels that ``model`` classified rightly; None unless
        all of them were run on all images.
        """
        import numpy as np

        from mae_bench.store import ABSENT

        key = (model, degradation)
        if key not in self._scores:
            cells = [f"{model}-{condition}" for condition in self.degradations.get(degradation, [])]
            whole = bool(cells) and all(
                cell in self.outcomes.prediction and not (self.outcomes.prediction[cell] == ABSENT).any()
                for cell in cells
            )
            right = np.mean([self.outcomes.correct(cell) for cell in cells], axis=0)[self.kept] if whole else None
            self._scores[key] = right
        return self._scores[key]

    def clean(self, model: str) -> np.ndarray | None:
        """(kept images,) whether the clean image was classified rightly."""
        return self.scores(model, "clean")

    def rate(self, hits: Sequence[int]) -> float | None:
        """Top-1 on the images kept, from hits in each of the first blocks that checkpoints were evaluated on; None
        where a block is kept in part.
        """
        import numpy as np

        from mae_bench.images import BLOCK

        kept = np.zeros(len(self.outcomes.ids), dtype=bool)
        kept[self.kept] = True
        images = self.evidence.trajectories.images
        blocks = [kept[i : min(i + BLOCK, images)] for i in range(0, images, BLOCK)]
        if any(block.any() != block.all() for block in blocks):
            return None
        counted = [(n, len(block)) for n, block in zip(hits, blocks, strict=True) if block.all()]
        return sum(n for n, _ in counted) / sum(size for _, size in counted) if counted else None

    @cached_property
    def replicates(self) -> list[Measured]:
        """What is measured without each of ten groups of images: every tenth block, or where there are fewer than ten
        blocks a tenth of the images. Indicators are left out where they are not known without a group.
        """
        import numpy as np

        from mae_bench.images import BLOCK
        from mae_bench.statistics import JACKKNIFE_GROUPS

        images = len(self.outcomes.ids)
        position = np.arange(images)
        blocks = -(-images // BLOCK)
        in_blocks = blocks >= JACKKNIFE_GROUPS
        groups = position // BLOCK % JACKKNIFE_GROUPS if in_blocks else position * JACKKNIFE_GROUPS // images
        found = []
        for group in range(JACKKNIFE_GROUPS if images >= JACKKNIFE_GROUPS else 0):
            evidence = self.evidence.without(group)
            if in_blocks:
                self._add_sums(evidence, np.arange(blocks) % JACKKNIFE_GROUPS != group)
            found.append(Measured(self.outcomes, evidence, groups != group))
        return found

    def _add_sums(self, evidence: Evidence, kept: np.ndarray) -> None:
        """Put into ``evidence`` the indicators of the last block that follow from sums over the ``kept`` blocks."""
        from mae_bench.indicators.profile import column

        of_sums = {
            (name, token): (f"{name}_{token}", "images")
            for name in ("alignment", "alignment_centered")
            for token in (ROW_KIND, "cls")
        }
        of_sums["retention", ROW_KIND] = ("active_overlap", "active_clean")
        for cell, sums in self.outcomes.block_sums.items():
            model, degradation, level = cell.rsplit("-", 2)
            condition = f"{degradation}-{level}"
            last = max(self.evidence.layers(model, condition, "retention", ROW_KIND), default=None)
            if last is None:
                continue
            named = evidence.values.setdefault(model, {}).setdefault(condition, {})
            for (name, token), (above, below) in of_sums.items():
                if above in sums and len(sums[above]) == len(kept):
                    value = float(sums[above][kept].sum() / sums[below][kept].sum())
                    named[column(name, last, token)] = (value, math.nan, math.nan)


# --------------------------------------------------------------------------- 1: accuracy


def raw(measured: Measured, models: Models, degradation: str) -> float | None:
    """Mean top-1 over the levels of ``degradation``."""
    scores = measured.scores(models[0], degradation)
    return None if scores is None else float(scores.mean())


def retained(measured: Measured, models: Models, degradation: str) -> float | None:
    """:func:`raw` over the clean top-1."""
    clean, scores = measured.clean(models[0]), measured.scores(models[0], degradation)
    return None if clean is None or scores is None or not clean.any() else float(scores.mean() / clean.mean())


def both_right(measured: Measured, models: Models, degradation: str) -> float | None:
    """Difference of mean top-1 between two models on the images that both get right when clean."""
    images = _both(measured, models, degradation)
    return None if images is None else float(images.mean())


def effective(measured: Measured, models: Models, degradation: str, baseline: str) -> float | None:
    """Effective robustness (Taori et al. 2020, arXiv 2007.00644): top-1 under ``degradation`` beyond what the clean
    top-1 foretells by the line that trainings of the arm ``baseline`` draw on the logit scale, from their checkpoints
    to their ends; mean over the checkpoints and the end of the model's own training. A model of that arm is held
    against the line of its other seeds.
    """
    import numpy as np

    (model,) = models
    others = (other for other in measured.evidence.models(baseline).values() if other != model)
    line = [point for other in others for point in _along(measured, other, degradation)]
    mine = _along(measured, model, degradation)
    if not mine or len(line) < 4:
        return None
    images = measured.evidence.trajectories.images
    x, y = (_logit(np.array(rates), images) for rates in zip(*line, strict=True))
    slope, intercept = np.polyfit(x, y, 1)
    clean, degraded = (np.array(rates) for rates in zip(*mine, strict=True))
    foretold = 1 / (1 + np.exp(-(slope * _logit(clean, images) + intercept)))
    return float((degraded - foretold).mean())


def _along(measured: Measured, model: str, degradation: str) -> list[tuple[float, float]]:
    """Clean and degraded top-1 along a training, on the images and levels that its checkpoints were evaluated on."""
    from mae_bench.images import BLOCK
    from mae_bench.store import ABSENT

    along = measured.evidence.trajectories
    tried = {c for shares in along.correct.values() for hits in shares.values() for c in hits}
    conditions = sorted(c for c in tried if c.rsplit("-", 1)[0] == degradation)
    stages = list(along.correct.get(model, {}).values())
    end = {}
    for condition in ("clean-0.00", *conditions):
        prediction = measured.outcomes.prediction.get(f"{model}-{condition}")
        if prediction is not None and not (prediction[: along.images] == ABSENT).any():
            right = (prediction == measured.outcomes.labels)[: along.images]
            end[condition] = tuple(int(right[i : i + BLOCK].sum()) for i in range(0, along.images, BLOCK))
    points = []
    for hits in (*stages, end):
        rates = [measured.rate(hits[c]) for c in ("clean-0.00", *conditions) if c in hits]
        known = [rate for rate in rates if rate is not None]
        if conditions and len(known) == 1 + len(conditions):
            points.append((known[0], sum(known[1:]) / len(conditions)))
    return points


def _logit(rates: np.ndarray, images: int) -> np.ndarray:
    """Log odds, kept finite by half an image."""
    import numpy as np

    share = np.clip(rates, 0.5 / images, 1 - 0.5 / images)
    return np.asarray(np.log(share / (1 - share)))


def _both(measured: Measured, models: Models, degradation: str) -> np.ndarray | None:
    """Per image that both models get right when clean: the difference of their :meth:`Measured.scores`."""
    clean = [c for model in models if (c := measured.clean(model)) is not None]
    scores = [s for model in models if (s := measured.scores(model, degradation)) is not None]
    if len(clean) < 2 or len(scores) < 2:
        return None
    right: np.ndarray = (clean[0] == 1) & (clean[1] == 1)
    return None if right.sum() < 2 else (scores[0] - scores[1])[right]


# --------------------------------------------------------------------------- 2 and 3: layers


def slope_over_depth(measured: Measured, models: Models, indicator: str, token: str) -> float | None:
    """Least-squares change of ``indicator`` on clean images from the first to the last block."""
    import numpy as np

    values = _blocks(measured, models[0], indicator, token)
    return None if values is None else float(np.polyfit(np.linspace(0, 1, len(values)), values, 1)[0])


def rank_over_depth(measured: Measured, models: Models, indicator: str, token: str) -> float | None:
    """Spearman's rank correlation of ``indicator`` on clean images with depth."""
    values = _blocks(measured, models[0], indicator, token)
    return None if values is None else _spearman(range(len(values)), values)


def first_third(measured: Measured, models: Models, indicator: str) -> float | None:
    """Mean of ``indicator`` over the first third of the blocks, heads averaged, on clean images."""
    import numpy as np

    values = list(measured.evidence.layers(models[0], "clean-0.00", indicator, "patch").values())
    return float(np.mean(values[: max(1, len(values) // 3)])) if values else None


def unspread(measured: Measured, models: Models, indicator: str) -> float | None:
    """Minus the standard deviation of ``indicator`` over blocks, heads averaged, on clean images: the higher, the more
    it persists.
    """
    import numpy as np

    values = list(measured.evidence.layers(models[0], "clean-0.00", indicator, "patch").values())
    return -float(np.std(values)) if len(values) > 1 else None


def _blocks(measured: Measured, model: str, indicator: str, token: str) -> list[float] | None:
    layers = measured.evidence.layers(model, "clean-0.00", indicator, token)
    blocks = len(measured.evidence.layers(model, "clean-0.00", "attention_distance", "patch"))
    values = [layers[block] for block in range(1, blocks + 1) if block in layers]
    return values if blocks > 1 and len(values) == blocks else None


# --------------------------------------------------------------------------- 4: indicators


def foretells_loss(measured: Measured, models: Models, indicator: str, token: str = ROW_KIND) -> float | None:
    """Spearman's rank correlation over all degraded cells of ``models`` between the accuracy lost and one minus
    ``indicator`` of ``token`` at the last block.
    """
    lost, values = _losses(measured, models, (indicator,), token)
    return _spearman([1 - value for (value,) in values], lost) if len(lost) > 2 else None


def foretells_loss_better(measured: Measured, models: Models, better: str, worse: str) -> float | None:
    """How much better ``better`` does than ``worse`` in :func:`foretells_loss`, over the cells that have both."""
    lost, values = _losses(measured, models, (better, worse), ROW_KIND)
    if len(lost) < 3:
        return None
    one, other = (_spearman([1 - value[k] for value in values], lost) for k in (0, 1))
    return None if one is None or other is None else one - other


def _losses(
    measured: Measured, models: Models, indicators: tuple[str, ...], token: str
) -> tuple[list[float], list[tuple[float, ...]]]:
    """Of each degraded cell that has all ``indicators`` of ``token`` at the last block: the accuracy lost, and them."""
    lost, values = [], []
    for cell in measured.outcomes.prediction:
        model, degradation, level = cell.rsplit("-", 2)
        if model not in models or degradation == "clean" or (clean := measured.clean(model)) is None:
            continue
        condition = f"{degradation}-{level}"
        last = max(measured.evidence.layers(model, condition, "retention", ROW_KIND), default=None)
        layers = [measured.evidence.layers(model, condition, indicator, token) for indicator in indicators]
        if last is not None and all(last in each for each in layers):
            lost.append(float(clean.mean()) - float(measured.outcomes.correct(cell)[measured.kept].mean()))
            values.append(tuple(each[last] for each in layers))
    return lost, values


def foretells_flip(measured: Measured, models: Models, indicator: str) -> float | None:
    """Mean over degraded cells of Somers' D (2 AUC - 1) between a low ``indicator`` of an image and a changed
    prediction.
    """
    import numpy as np

    values = [
        area
        for model in models
        for condition in measured.evidence.values.get(model, {})
        for area in measured.evidence.layers(model, condition, f"{indicator}_flip_auc", ROW_KIND).values()
    ]
    return 2 * float(np.mean(values)) - 1 if values else None


def _flip_over_images(measured: Measured, pairs: Sequence[Models], indicator: str) -> tuple[float, float] | None:
    """Mean of the 95 % intervals (DeLong's) of the cells of :func:`foretells_flip`. Cells share their images; so wide
    is the interval of a mean of perfectly correlated values, and that of any others is narrower.
    """
    import numpy as np

    found = [
        bounds
        for models in pairs
        for model in models
        for condition in measured.evidence.values.get(model, {})
        for bounds in measured.evidence.intervals(model, condition, f"{indicator}_flip_auc", ROW_KIND).values()
    ]
    if not found:
        return None
    low, high = np.mean(found, axis=0)
    return 2 * float(low) - 1, 2 * float(high) - 1


def foretells_flip_better(measured: Measured, models: Models, better: str, worse: str) -> float | None:
    """How much better ``better`` does than ``worse`` in :func:`foretells_flip`."""
    one, other = (foretells_flip(measured, models, name) for name in (better, worse))
    return None if one is None or other is None else one - other


def _spearman(x: Iterable[float], y: Iterable[float]) -> float | None:
    from scipy.stats import spearmanr

    first, second = list(x), list(y)
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


# --------------------------------------------------------------------------- the contrasts


def _accuracy() -> Iterable[Contrast]:
    arms = ("mae_ft", "supervised")
    for kind in DEGRADATIONS.values():
        if kind.family not in ("blur", "occlusion", "token_drop"):
            continue
        name = kind.name
        fill = next((f for f in FILLS if name.endswith(f"_{f}")), None)
        group = name.removesuffix(f"_{fill}") if fill else name

        def contrast(reading: str, statement: str, design: str, statistic: Statistic) -> Contrast:
            return Contrast(
                f"{reading}-{name}",  # noqa: B023 - called at once
                1,
                f"{reading} {group}",  # noqa: B023
                statement,
                design,
                arms,
                0.01,
                "top-1",
                statistic,
                degradation=name,  # noqa: B023
            )

        yield contrast("raw", f"top-1 under {name}", "two", partial(raw, degradation=name))
        yield contrast(
            "retained", f"share of the clean top-1 kept under {name}", "two", partial(retained, degradation=name)
        )
        yield contrast(
            "effective",
            f"top-1 under {name} at equal clean top-1",
            "two",
            partial(effective, degradation=name, baseline=arms[1]),
        )
        yield contrast(
            "both_right",
            f"top-1 under {name} on images that both get right when clean",
            "paired",
            partial(both_right, degradation=name),
        )


def _separability() -> Iterable[Contrast]:
    for token in ("cls", "mean_patch", "patch"):
        for indicator in ("separability_excess", "subspace_accuracy"):
            words = indicator.replace("_", " ")
            slope = partial(slope_over_depth, indicator=indicator, token=token)
            for arm in ("mae_pretrained", "mae_ft", "supervised"):
                yield Contrast(
                    f"slope-{indicator}-{token}-{arm}",
                    2,
                    f"slope of {words}, {arm}",
                    f"{words} of {token} grows over depth",
                    "one",
                    (arm,),
                    0.05,
                    "per depth",
                    slope,
                    layers=(indicator, token),
                )
            for arm in ("mae_pretrained", "mae_ft"):
                yield Contrast(
                    f"slope-{indicator}-{token}-{arm}-supervised",
                    2,
                    f"slope of {words}, {arm} against supervised",
                    f"{words} of {token} grows more over depth",
                    "two",
                    (arm, "supervised"),
                    0.05,
                    "per depth",
                    slope,
                    layers=(indicator, token),
                )
        yield Contrast(
            f"rank-separability_excess-{token}-mae_pretrained",
            2,
            "rank of separability excess with depth, mae_pretrained",
            f"separability excess of {token} rises from block to block",
            "one",
            ("mae_pretrained",),
            0.5,
            "rank correlation",
            partial(rank_over_depth, indicator="separability_excess", token=token),
            layers=("separability_excess", token),
        )


def _attention() -> Iterable[Contrast]:
    readings = (
        ("early", first_third, "attention_distance_ratio", 0.05, "attention distance of the first third of blocks"),
        ("early_entropy", first_third, "attention_entropy", 0.05, "attention entropy of the first third of blocks"),
        ("persistent", unspread, "attention_distance_ratio", 0.02, "evenness of attention distance over blocks"),
    )
    for name, statistic, indicator, smallest, words in readings:
        for arm in ("mae_pretrained", "mae_ft"):
            yield Contrast(
                f"{name}-{arm}-supervised",
                3,
                words,
                words,
                "two",
                (arm, "supervised"),
                smallest,
                "of uniform" if "distance" in indicator else "of uniform entropy",
                partial(statistic, indicator=indicator),
                layers=(indicator, "patch"),
            )


def _indicators() -> Iterable[Contrast]:
    arms = ("mae_ft", "supervised")
    for token in (ROW_KIND, "cls"):
        for indicator in ("alignment", "alignment_centered", "retention", "retention_adjusted"):
            yield Contrast(
                f"loss-{indicator}-{token}",
                4,
                "an indicator foretells the accuracy lost in a cell",
                f"low {indicator} of {token} foretells the accuracy lost in a cell",
                "paired",
                arms,
                0.5,
                "rank correlation",
                partial(foretells_loss, indicator=indicator, token=token),
            )
    for better, worse in (("alignment_centered", "alignment"), ("retention_adjusted", "retention")):
        yield Contrast(
            f"loss-{better}-over-{worse}",
            4,
            "the adjusted reading foretells the loss better",
            f"{better} foretells the accuracy lost better than {worse}",
            "paired",
            arms,
            0.05,
            "rank correlation",
            partial(foretells_loss_better, better=better, worse=worse),
        )
    for indicator in ("alignment", "alignment_centered"):
        yield Contrast(
            f"flip-{indicator}",
            4,
            "an image's alignment foretells its flip",
            f"low {indicator} of an image foretells its changed prediction",
            "paired",
            arms,
            0.2,
            "Somers' D",
            partial(foretells_flip, indicator=indicator),
            image_interval=partial(_flip_over_images, indicator=indicator),
        )
    yield Contrast(
        "flip-alignment_centered-over-alignment",
        4,
        "the centred reading foretells flips better",
        "alignment_centered foretells flips better than alignment",
        "paired",
        arms,
        0.05,
        "Somers' D",
        partial(foretells_flip_better, better="alignment_centered", worse="alignment"),
    )


CONTRASTS: dict[str, Contrast] = {
    contrast.name: contrast for part in (_accuracy, _separability, _attention, _indicators) for contrast in part()
}


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
    lines = list(csv.DictReader(io.StringIO(text)))
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
        f"# Claims on {measured.outcomes.suite}",
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
    """What a claim turns with: groups whose contrasts disagree, and contrasts whose seeds do."""
    lines = []
    groups: dict[str, list[Finding]] = {}
    for f in found:
        groups.setdefault(f.contrast.group, []).append(f)
    for group, members in groups.items():
        holding = [f.contrast.name for f in members if f.verdict == "holds"]
        failing = [f.contrast.name for f in members if f.verdict == "does not hold"]
        if holding and failing:
            lines.append(f"turns within *{group}*: holds for {', '.join(holding)}; does not for {', '.join(failing)}")
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
        f.contrast.statement,
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


def contrast_named(name: str) -> Contrast:
    """Raises:
    ClaimError: there is none; the message names the nearest.
    """
    if name not in CONTRASTS:
        raise ClaimError(f"unknown contrast {name!r}: {near_name(name, CONTRASTS)}")
    return CONTRASTS[name]
