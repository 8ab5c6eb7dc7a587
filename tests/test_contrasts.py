"""Contrasts: stated before they are measured; statistics against scipy and by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mae_bench.baseline import Baseline
from mae_bench.contrasts import (
    CLAIMS,
    CONTRASTS,
    ClaimError,
    Contrast,
    Measured,
    contrast_named,
    effective,
    first_third,
    foretells_flip,
    foretells_flip_better,
    foretells_loss,
    foretells_loss_better,
    rank_over_depth,
    slope_over_depth,
    unspread,
)
from mae_bench.evidence import Evidence, Training, Trajectories
from mae_bench.indicators.profile import column
from mae_bench.outcomes import Outcomes
from mae_bench.rows import CellResult

IMAGES = 1000
SEEDS = (0, 1, 2)
LEVELS = ("0.10", "0.50", "0.90")


def measured(
    accuracy: Callable[[str, int, str], float],
    arms: tuple[str, ...] = ("mae_ft", "supervised"),
    seeds: tuple[int, ...] = SEEDS,
) -> Measured:
    """Outcomes under random_patch in which the first images are right, as many as ``accuracy`` says."""
    prediction = {}
    for arm in arms:
        for seed in seeds:
            for condition in ("clean-0.00", *(f"random_patch-{level}" for level in LEVELS)):
                right = round(IMAGES * accuracy(arm, seed, condition))
                prediction[f"{arm}_s{seed}-{condition}"] = np.where(np.arange(IMAGES) < right, 0, 1).astype(np.int16)
    outcomes = Outcomes("s", np.array([b"i"] * IMAGES), np.zeros(IMAGES, np.int16), np.array(["a", "b"]), prediction)
    trainings = {f"{arm}_s{seed}": Training(arm, seed) for arm in arms for seed in seeds}
    return Measured(outcomes, Evidence("s", trainings))


# --------------------------------------------------------------------------- stated before measured


def test_every_contrast_says_what_it_is_about() -> None:
    assert {contrast.claim for contrast in CONTRASTS.values()} == set(CLAIMS)
    for name, contrast in CONTRASTS.items():
        assert contrast.name == name
        assert contrast.smallest > 0
        assert contrast.design in ("one", "two", "paired")
        assert len(contrast.arms) == (1 if contrast.design == "one" else 2)
        assert contrast.statement
    statements = [(c.statement, c.arms) for c in CONTRASTS.values()]
    assert len(set(statements)) == len(statements)


def test_contrasts_are_known_without_a_network_library() -> None:
    heavy = {"torch", "timm", "pandas", "numpy"}
    code = f"import sys, mae_bench.claims, mae_bench.contrasts; print({heavy} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("set()\n", "")


def test_unknown_contrast_is_refused_with_the_nearest() -> None:
    with pytest.raises(ClaimError, match=r"did you mean raw-random_patch\?"):
        contrast_named("raw-random_pach")
    assert contrast_named("raw-stripes") is CONTRASTS["raw-stripes"]


# --------------------------------------------------------------------------- statistics


def odds(rate: float, factor: float) -> float:
    """The rate whose odds are ``factor`` times those of ``rate``."""
    return factor * rate / (1 - rate) / (1 + factor * rate / (1 - rate))


ALONG = 768
"""Images that checkpoints are evaluated on: three blocks."""


def with_trainings(degraded: Callable[[str, int, float], float]) -> Measured:
    """Two checkpoints along each training and its end; ``degraded`` gives the rate of an arm and seed from its clean
    rate. Each block has the same share of right images, and the images behind :data:`ALONG` are all wrong.
    """
    ends = {"supervised": 0.8, "mae_ft": 0.85}
    names = [(f"{arm}_s{seed}", arm, seed) for arm in ends for seed in SEEDS]

    def hits(rate: float) -> int:
        return round(256 * rate)

    prediction, correct = {}, {}
    for name, arm, seed in names:
        for condition in ("clean-0.00", *(f"random_patch-{level}" for level in LEVELS)):
            clean = ends[arm] + 0.01 * seed
            rate = clean if condition == "clean-0.00" else degraded(arm, seed, clean)
            right = np.arange(IMAGES) % 256 < hits(rate)
            prediction[f"{name}-{condition}"] = np.where(right & (np.arange(IMAGES) < ALONG), 0, 1).astype(np.int16)
        correct[name] = {
            share: {
                "clean-0.00": (hits(rate),) * 3,
                **{f"random_patch-{level}": (hits(degraded(arm, seed, rate)),) * 3 for level in LEVELS},
            }
            for share, rate in ((0.2, 0.5), (0.6, 0.7))
        }
    outcomes = Outcomes("s", np.array([b"i"] * IMAGES), np.zeros(IMAGES, np.int16), np.array(["a", "b"]), prediction)
    trainings = {name: Training(arm, seed) for name, arm, seed in names}
    return Measured(outcomes, Evidence("s", trainings, trajectories=Trajectories(ALONG, correct)))


def effects(given_: Measured) -> dict[str, list[float | None]]:
    return {
        arm: [effective(given_, (f"{arm}_s{seed}",), "random_patch", "supervised") for seed in SEEDS]
        for arm in ("supervised", "mae_ft")
    }


def test_model_on_the_line_of_its_baseline_is_not_effectively_robust() -> None:
    """Degraded odds are a tenth of the clean ones for the baseline, and three tenths for the other."""
    given_ = with_trainings(lambda arm, _, rate: odds(rate, 0.1 if arm == "supervised" else 0.3))
    found = effects(given_)
    assert found["supervised"] == pytest.approx([0, 0, 0], abs=0.005)
    for seed, gain in enumerate(found["mae_ft"]):
        rates = (0.5, 0.7, 0.85 + 0.01 * seed)
        assert gain == pytest.approx(np.mean([odds(r, 0.3) - odds(r, 0.1) for r in rates]), abs=0.005)
    given_.evidence.trajectories = Trajectories()
    assert effective(given_, ("mae_ft_s0",), "random_patch", "supervised") is None


def test_model_of_the_baseline_is_held_against_the_line_of_its_other_seeds() -> None:
    """One seed of the baseline is off the line of the other two; on a line of all three it would be less so."""
    given_ = with_trainings(lambda arm, seed, rate: odds(rate, 0.3 if (arm, seed) == ("supervised", 1) else 0.1))
    gain = effects(given_)["supervised"][1]
    assert gain == pytest.approx(np.mean([odds(r, 0.3) - odds(r, 0.1) for r in (0.5, 0.7, 0.81)]), abs=0.005)


def test_blocks_left_out_are_left_out_along_trainings_too() -> None:
    given_ = with_trainings(lambda _, __, rate: odds(rate, 0.1))
    hits = (100, 200, 256)
    assert given_.rate(hits) == pytest.approx(556 / ALONG)
    block = np.arange(IMAGES) // 256
    assert Measured(given_.outcomes, given_.evidence, block != 1).rate(hits) == pytest.approx(356 / 512)
    assert Measured(given_.outcomes, given_.evidence, np.arange(IMAGES) != 300).rate(hits) is None
    assert Measured(given_.outcomes, given_.evidence, block > 2).rate(hits) is None


def with_layers(values: list[float], indicator: str = "separability_excess") -> Measured:
    """A model whose blocks have ``values``, with an input and an output layer that are not blocks."""
    given_ = measured(lambda *_: 0.5, seeds=(0,))
    named = {column(indicator, layer, "cls"): (v, math.nan, math.nan) for layer, v in enumerate([9.0, *values, -9.0])}
    blocks = {column("attention_distance", b, "patch"): (0.3, math.nan, math.nan) for b in range(1, len(values) + 1)}
    given_.evidence.values["mae_ft_s0"] = {"clean-0.00": named | blocks}
    return given_


@settings(max_examples=50, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12, unique=True))
def test_slope_and_rank_are_those_of_the_blocks(values: list[float]) -> None:
    given_ = with_layers(values)
    depth = np.linspace(0, 1, len(values))
    slope = slope_over_depth(given_, ("mae_ft_s0",), "separability_excess", "cls")
    assert slope == pytest.approx(stats.linregress(depth, values).slope, abs=1e-9)
    rank = rank_over_depth(given_, ("mae_ft_s0",), "separability_excess", "cls")
    assert rank == pytest.approx(stats.spearmanr(depth, values).statistic)


def test_indicator_that_falls_as_accuracy_does_foretells_the_loss() -> None:
    rates = {"clean-0.00": 0.9, "random_patch-0.10": 0.8, "random_patch-0.50": 0.4, "random_patch-0.90": 0.2}
    given_ = measured(lambda _, __, condition: rates[condition])
    for model in given_.evidence.trainings:
        given_.evidence.values[model] = {
            condition: {
                column("alignment", 3, "mean_patch"): (rate, math.nan, math.nan),
                column("alignment_centered", 3, "mean_patch"): (-rate, math.nan, math.nan),
                column("retention", 3, "mean_patch"): (0.5, math.nan, math.nan),
                column("alignment_flip_auc", 3, "mean_patch"): (0.8, math.nan, math.nan),
            }
            for condition, rate in rates.items()
            if condition != "clean-0.00"
        }
    models = ("mae_ft_s0", "supervised_s0")
    assert foretells_loss(given_, models, "alignment") == pytest.approx(1)
    assert foretells_loss(given_, models, "alignment_centered") == pytest.approx(-1)
    assert foretells_loss(given_, models, "retention") is None  # the same everywhere
    assert foretells_loss_better(given_, models, "alignment", "alignment_centered") == pytest.approx(2)
    assert foretells_loss(given_, models, "alignment", "cls") is None
    assert foretells_flip(given_, models, "alignment") == pytest.approx(0.6)


def test_readings_are_compared_over_the_cells_that_have_both() -> None:
    """One of four cells lacks the second indicator; over the other three the first falls as the second rises."""
    rates = {"clean-0.00": 0.9, "random_patch-0.10": 0.8, "random_patch-0.50": 0.4, "random_patch-0.90": 0.2}
    given_ = measured(lambda _, __, condition: rates[condition], seeds=(0,))
    first = {"random_patch-0.10": 0.8, "random_patch-0.50": 0.4, "random_patch-0.90": 0.2}
    for model, lacking in (("mae_ft_s0", None), ("supervised_s0", "random_patch-0.10")):
        given_.evidence.values[model] = {
            condition: {column("retention", 3, "mean_patch"): (value, math.nan, math.nan)}
            | (
                {}
                if condition == lacking
                else {column("retention_adjusted", 3, "mean_patch"): (1 - value, math.nan, math.nan)}
            )
            for condition, value in first.items()
        }
    given_.evidence.values["supervised_s0"]["random_patch-0.10"] = {
        column("retention", 3, "mean_patch"): (0.0, math.nan, math.nan)  # which would spoil the rank
    }
    models = ("mae_ft_s0", "supervised_s0")
    assert foretells_loss(given_, models, "retention") < 1
    assert foretells_loss_better(given_, models, "retention_adjusted", "retention") == pytest.approx(-2)


def test_attention_of_the_first_third_and_its_evenness_are_by_hand() -> None:
    given_ = with_layers([0.1] * 6)
    distances = [0.9, 0.5, 0.4, 0.3, 0.2, 0.1]
    named = given_.evidence.values["mae_ft_s0"]["clean-0.00"]
    for block, value in enumerate(distances, start=1):
        named[column("attention_distance_ratio", block, "patch")] = (value, math.nan, math.nan)
    assert first_third(given_, ("mae_ft_s0",), "attention_distance_ratio") == pytest.approx(0.7)
    assert unspread(given_, ("mae_ft_s0",), "attention_distance_ratio") == pytest.approx(-np.std(distances))


def test_flips_foretold_better_are_the_difference() -> None:
    given_ = measured(lambda *_: 0.5, seeds=(0,))
    for model in given_.evidence.trainings:
        given_.evidence.values[model] = {
            "random_patch-0.50": {
                column("alignment_flip_auc", 3, "mean_patch"): (0.6, 0.5, 0.7),
                column("alignment_centered_flip_auc", 3, "mean_patch"): (0.75, 0.7, 0.8),
            }
        }
    found = foretells_flip_better(given_, ("mae_ft_s0", "supervised_s0"), "alignment_centered", "alignment")
    assert found == pytest.approx(2 * 0.15)


# --------------------------------------------------------------------------- what belongs together


def test_evidence_of_other_weights_than_the_outcomes_is_refused(
    cell_result: Callable[..., CellResult], tmp_path: Path
) -> None:
    row = cell_result("mae_ft_s0-clean-0.00", [0], weights_hash="w").row
    given_ = measured(lambda *_: 0.5)
    baseline = Baseline(tmp_path, {"mae_ft_s0-clean-0.00": row}, given_.outcomes)
    evidence = Evidence("s", {"mae_ft_s0": Training("mae_ft", 0, "w"), "encoder": Training("mae_pretrained", 0, "x")})
    assert Measured.of(baseline, evidence).evidence is evidence
    evidence.trainings["mae_ft_s0"] = Training("mae_ft", 0, "v")
    with pytest.raises(ClaimError, match="the outcomes of mae_ft_s0 are of weights w, the evidence is of v: make both"):
        Measured.of(baseline, evidence)


def test_contrast_is_frozen() -> None:
    assert isinstance(CONTRASTS["raw-stripes"], Contrast)
    with pytest.raises(AttributeError):
        CONTRASTS["raw-stripes"].smallest = 1.0  # type: ignore[misc]


def test_a_corruption_is_no_level_of_the_plain_degradation_of_its_name() -> None:
    right, wrong = np.zeros(IMAGES, np.int16), np.ones(IMAGES, np.int16)
    prediction = {"m-motion_blur-3.50": right, "m-motion_blur-s3": wrong, "m-fog-s3": wrong}
    outcomes = Outcomes("s", np.array([b"i"] * IMAGES), np.zeros(IMAGES, np.int16), np.array(["a", "b"]), prediction)
    measured = Measured(outcomes, Evidence("s", {"m": Training("arm", 0)}))
    assert measured.degradations == {"motion_blur": ["motion_blur-3.50"]}
    scores = measured.scores("m", "motion_blur")
    assert scores is not None
    assert scores.all()
