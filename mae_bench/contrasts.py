"""Claims of arXiv 2602.03531 as contrasts: what is compared, by which statistic, in which direction, from what size on.

Each contrast is stated here before it is measured. Statistics are oriented so that a positive value speaks for the
claim. Nothing heavy is imported until a contrast is decided, so that contrasts can be collected as tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from mae_bench.cells import Level, near_name
from mae_bench.degradations import DEGRADATIONS, FILLS
from mae_bench.errors import BenchError

if TYPE_CHECKING:
    import numpy as np

    from mae_bench.baseline import Baseline
    from mae_bench.evidence import Evidence
    from mae_bench.outcomes import Outcomes

CLAIMS = {
    1: "MAE classifies well under blur and occlusion after pretraining and fine-tuning (here: better than the same "
    "network trained supervised with equal compute).",
    2: "The pretrained encoder builds its latent space class-aware over depth: classes lie in subspaces that become "
    "increasingly separable.",
    3: "MAE attends globally, early and persistently, in contrast to a supervised ViT.",
    4: "Two sensitivity indicators, directional alignment and head-wise retention of active features, tell what a "
    "degradation costs.",
}
ROW_KIND = "mean_patch"

Models = tuple[str, ...]
Statistic = Callable[["Measured", Models], "float | None"]
ImageInterval = Callable[["Measured", Sequence[Models]], "tuple[float, float] | None"]


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
        """Conditions of each degradation that the outcomes hold, by rising level; a corruption of the same name, whose
        levels are severities, is another.
        """
        found: dict[str, set[str]] = {}
        for cell in self.outcomes.prediction:
            _, name, level = cell.rsplit("-", 2)
            if not Level.parse(level).severity:
                found.setdefault(name, set()).add(f"{name}-{level}")
        return {name: sorted(each, key=lambda c: Level.parse(c.rsplit("-", 1)[1])) for name, each in found.items()}

    @cached_property
    def _scores(self) -> dict[tuple[str, str], np.ndarray | None]:
        return {}

    def scores(self, model: str, degradation: str) -> np.ndarray | None:
        """(kept images,) each image's share of the degradation's levels that ``model`` classified rightly; None unless
        all of them were run on all images.
        """
        import numpy as np

        from mae_bench.outcomes import ABSENT

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
    from mae_bench.outcomes import ABSENT

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
        if kind.family not in ("blur", "occlusion", "token_drop") or kind.by_salience:
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


def contrast_named(name: str) -> Contrast:
    """Raises:
    ClaimError: there is none; the message names the nearest.
    """
    if name not in CONTRASTS:
        raise ClaimError(f"unknown contrast {name!r}: {near_name(name, CONTRASTS)}")
    return CONTRASTS[name]
