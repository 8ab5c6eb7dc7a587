"""Claims: verdicts from made-up outcomes whose answer is known, statistics against scipy and by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mae_bench.claims import findings, stored_verdicts, to_csv, to_markdown, turning, verdict
from mae_bench.contrasts import CLAIMS, ClaimError, Measured, foretells_loss
from mae_bench.evidence import Evidence, Training
from mae_bench.indicators.profile import column
from mae_bench.outcomes import Outcomes
from references import page
from tests.test_contrasts import IMAGES, LEVELS, SEEDS, measured


def finding_of(name: str, given_: Measured):  # type: ignore[no-untyped-def]
    return next(f for f in findings(given_) if f.contrast.name == name)


# --------------------------------------------------------------------------- verdicts


@settings(max_examples=300, derandomize=True)
@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.01, 0.5), st.integers(1, 5))
def test_verdict_follows_its_definition(estimate: float, half: float, smallest: float, seeds: int) -> None:
    found = verdict(estimate, estimate - half, estimate + half, smallest, seeds)
    if seeds < 3:
        assert found == "single checkpoint"
    elif estimate - half > 0 and estimate >= smallest:
        assert found == "holds"
    elif estimate + half < smallest:
        assert found == "does not hold"
    else:
        assert found == "inconclusive"


NOISE = (-0.004, 0.0, 0.005)


@pytest.mark.parametrize(("difference", "expected"), [(0.10, "holds"), (0.0, "does not hold"), (-0.1, "does not hold")])
def test_raw_accuracy_is_welch_over_seeds(difference: float, expected: str) -> None:
    def accuracy(arm: str, seed: int, condition: str) -> float:
        if condition == "clean-0.00":
            return 0.9
        return 0.5 + NOISE[seed] * (1 if arm == "mae_ft" else -0.5) * 0.5 + (difference if arm == "mae_ft" else 0.0)

    given_ = measured(accuracy)
    found = finding_of("raw-random_patch", given_)
    seeds = [
        [round(IMAGES * accuracy(arm, s, "random_patch-0.10")) / IMAGES for s in SEEDS] for arm in found.contrast.arms
    ]
    test = stats.ttest_ind(*seeds, equal_var=False)
    low, high = test.confidence_interval(0.95)
    assert found.estimate == pytest.approx(np.mean(seeds[0]) - np.mean(seeds[1]))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(test.pvalue)
    assert found.per_seed == pytest.approx(tuple(a - b for a, b in zip(*seeds, strict=True)))
    assert found.verdict == expected
    assert found.image_low is not None
    assert found.image_low <= found.estimate <= found.image_high
    kept = finding_of("retained-random_patch", given_)
    assert kept.estimate == pytest.approx(found.estimate / 0.9)


def test_one_seed_is_shown_and_not_judged() -> None:
    found = finding_of("raw-random_patch", measured(lambda arm, *_: 0.6 if arm == "mae_ft" else 0.5, seeds=(0,)))
    assert (found.estimate, found.low, found.verdict) == (pytest.approx(0.1), None, "single checkpoint")


def test_what_did_not_run_is_not_measured() -> None:
    found = finding_of("raw-stripes", measured(lambda *_: 0.5))
    assert (found.estimate, found.verdict, found.per_seed) == (None, "not measured", ())
    only = measured(lambda *_: 0.5, arms=("mae_ft",))
    assert finding_of("raw-random_patch", only).verdict == "not measured"


def test_images_that_both_get_right_are_counted_by_hand() -> None:
    """The supervised model gets 800 right when clean and 300 degraded, MAE 900 and 500: of the 800, 500 against 300."""

    def accuracy(arm: str, _: int, condition: str) -> float:
        clean = condition == "clean-0.00"
        return (0.9 if clean else 0.5) if arm == "mae_ft" else (0.8 if clean else 0.3)

    found = finding_of("both_right-random_patch", measured(accuracy))
    assert found.estimate == pytest.approx((500 - 300) / 800)
    assert found.image_low < found.estimate < found.image_high


def test_holm_is_over_all_contrasts_and_marks_what_it_does_not_confirm() -> None:
    def accuracy(arm: str, seed: int, condition: str) -> float:
        if condition == "clean-0.00":
            return 0.8 + 0.03 * (seed - 1) * (-1 if arm == "mae_ft" else 1)
        return 0.5 + 0.006 * (seed - 1) * (2 if arm == "mae_ft" else 1) + 0.03 * (arm == "mae_ft")

    given_ = measured(accuracy)
    found = findings(given_)
    tested = [f for f in found if f.p_value is not None]
    expected = np.minimum(1, np.maximum.accumulate(
        [(len(tested) - i) * p for i, p in enumerate(sorted(f.p_value for f in tested if f.p_value is not None))]
    ))  # fmt: skip
    assert sorted(f.holm for f in tested if f.holm is not None) == pytest.approx(expected.tolist())
    verdicts = {f.contrast.name: (f.verdict, f.confirmed) for f in found}
    assert verdicts["raw-random_patch"] == ("holds", "holds (not by Holm)")


def test_seeds_without_spread_have_no_p_and_are_not_confirmed() -> None:
    found = finding_of("raw-random_patch", measured(lambda arm, *_: 0.6 if arm == "mae_ft" else 0.5))
    assert (found.low, found.high) == (found.estimate, found.estimate)
    assert (found.p_value, found.holm, found.detectable) == (None, None, None)
    assert (found.verdict, found.confirmed) == ("holds", "holds (not by Holm)")


# --------------------------------------------------------------------------- intervals over images


@pytest.mark.parametrize("images", [1000, 2560])
def test_interval_over_images_of_a_difference_is_students_over_tenths(images: int) -> None:
    """A mean over equal groups of images is what the jackknife has in closed form."""
    generator = np.random.default_rng(0)
    names = [f"{arm}_s{seed}" for arm in ("mae_ft", "supervised") for seed in SEEDS]
    conditions = ("clean-0.00", *(f"random_patch-{level}" for level in LEVELS))
    prediction = {
        f"{name}-{condition}": generator.integers(0, 2, images).astype(np.int16)
        for name in names
        for condition in conditions
    }
    outcomes = Outcomes("s", np.array([b"i"] * images), np.zeros(images, np.int16), np.array(["a", "b"]), prediction)
    trainings = {name: Training(name.removesuffix(name[-3:]), int(name[-1])) for name in names}
    found = finding_of("raw-random_patch", Measured(outcomes, Evidence("s", trainings)))
    right = {
        arm: np.mean([prediction[f"{arm}_s{s}-random_patch-{level}"] == 0 for s in SEEDS for level in LEVELS], axis=0)
        for arm in ("mae_ft", "supervised")
    }
    difference = right["mae_ft"] - right["supervised"]
    tenth = np.arange(images) // 100 if images == 1000 else np.arange(images) // 256
    means = [difference[tenth == group].mean() for group in range(10)]
    low, high = stats.t.interval(0.95, 9, loc=np.mean(means), scale=stats.sem(means))
    assert (found.image_low, found.image_high) == pytest.approx((low, high))


def test_interval_over_images_of_layers_is_from_their_replicates() -> None:
    generator = np.random.default_rng(1)
    given_ = measured(lambda *_: 0.5, arms=("mae_pretrained",))
    parts = generator.normal(size=(3, 4, 10))
    for seed in SEEDS:
        name = f"mae_pretrained_s{seed}"
        of_block = {column("separability_excess", b, "cls"): parts[seed, b - 1] for b in range(1, 5)}
        of_block |= {column("attention_distance", b, "patch"): np.ones(10) for b in range(1, 5)}
        given_.evidence.replicates[name] = {"clean-0.00": {k: tuple(v) for k, v in of_block.items()}}
        means = {k: (float(np.mean(v)), math.nan, math.nan) for k, v in of_block.items()}
        given_.evidence.values[name] = {"clean-0.00": means}
    found = finding_of("slope-separability_excess-cls-mae_pretrained", given_)
    slopes = [np.mean([stats.linregress(np.linspace(0, 1, 4), parts[s, :, g]).slope for s in SEEDS]) for g in range(10)]
    error = math.sqrt(0.9 * np.sum((slopes - np.mean(slopes)) ** 2))
    half = stats.t.ppf(0.975, 9) * error
    assert found.image_low == pytest.approx(found.estimate - half)
    assert found.image_high == pytest.approx(found.estimate + half)
    given_.evidence.replicates.pop("mae_pretrained_s1")  # one seed that has none
    again = Measured(given_.outcomes, given_.evidence)
    assert finding_of("slope-separability_excess-cls-mae_pretrained", again).image_low is None


def test_interval_over_images_of_indicators_is_from_sums_of_blocks() -> None:
    """Of 12 blocks, each tenth of the images is every tenth block: what follows from sums has an interval."""
    blocks, images = 12, 12 * 256
    generator = np.random.default_rng(2)
    conditions = {"clean-0.00": 0.9, "random_patch-0.10": 0.7, "random_patch-0.50": 0.5, "random_patch-0.90": 0.3}
    prediction, sums, values = {}, {}, {}
    for name in ("mae_ft_s0", "supervised_s0"):
        for condition, rate in conditions.items():
            prediction[f"{name}-{condition}"] = (generator.uniform(size=images) > rate).astype(np.int16)
            if condition != "clean-0.00":
                sums[f"{name}-{condition}"] = {
                    "images": np.full(blocks, 256.0),
                    "alignment_mean_patch": 256 * generator.uniform(size=blocks),
                    "active_overlap": generator.uniform(10, 20, blocks),
                    "active_clean": generator.uniform(20, 30, blocks),
                }
                values.setdefault(name, {})[condition] = {
                    column(indicator, 3, "mean_patch"): (generator.uniform(), math.nan, math.nan)
                    for indicator in ("alignment", "retention", "retention_adjusted")
                }
    outcomes = Outcomes(
        "s", np.array([b"i"] * images), np.zeros(images, np.int16), np.array(["a", "b"]), prediction, sums
    )
    given_ = Measured(outcomes, Evidence("s", {n: Training(n[:-3], 0) for n in values}, values))
    kept = np.array([block % 10 != 1 for block in range(blocks)])
    replicate = given_.replicates[1]
    lost, low = {"alignment": [], "retention": []}, []
    for name in values:
        for condition in list(conditions)[1:]:
            cell = f"{name}-{condition}"
            whole = np.repeat(kept, 256)
            low.append((prediction[cell][whole] != 0).mean() - (prediction[f"{name}-clean-0.00"][whole] != 0).mean())
            lost["alignment"].append(-sums[cell]["alignment_mean_patch"][kept].mean())
            lost["retention"].append(-sums[cell]["active_overlap"][kept].sum() / sums[cell]["active_clean"][kept].sum())
    for indicator, expected in lost.items():
        found = foretells_loss(replicate, tuple(values), indicator)
        assert found == pytest.approx(stats.spearmanr(expected, low).statistic)
        assert finding_of(f"loss-{indicator}-mean_patch", given_).image_low is not None
    assert foretells_loss(given_, tuple(values), "retention_adjusted") is not None
    assert finding_of("loss-retention_adjusted-mean_patch", given_).image_low is None  # not known without a tenth


def test_interval_over_images_of_flips_is_the_mean_of_the_cells() -> None:
    given_ = measured(lambda *_: 0.5)
    for k, model in enumerate(given_.evidence.trainings):
        given_.evidence.values[model] = {
            "random_patch-0.50": {column("alignment_flip_auc", 3, "mean_patch"): (0.7, 0.6 + k / 100, 0.8 - k / 100)}
        }
    found = finding_of("flip-alignment", given_)
    assert (found.estimate, found.image_low, found.image_high) == pytest.approx((0.4, 0.25, 0.55))


# --------------------------------------------------------------------------- what belongs together


def test_contrast_that_was_stated_otherwise_is_named() -> None:
    text = to_csv(findings(measured(lambda *_: 0.5)))
    with pytest.raises(ClaimError, match=r"raw-stripes with a smallest effect of 0\.02, .* from 0\.01"):
        stored_verdicts(text.replace("raw-stripes,not measured,0.01", "raw-stripes,not measured,0.02"))
    with pytest.raises(ClaimError, match=r"holds raw-dots with a smallest effect of .* is stated no more"):
        stored_verdicts(text.replace("raw-stripes,", "raw-dots,"))


# --------------------------------------------------------------------------- tables


def test_verdicts_come_back_from_the_table() -> None:
    found = findings(measured(lambda arm, seed, _: 0.5 + 0.1 * (arm == "mae_ft") + NOISE[seed]))
    assert stored_verdicts(to_csv(found)) == {f.contrast.name: f.confirmed for f in found}
    for text in ("", "a,b\n1,2\n"):
        with pytest.raises(ClaimError, match="make it again with mae-bench claims"):
            stored_verdicts(text)


def test_page_holds_every_contrast_once_and_its_verdict() -> None:
    given_ = measured(lambda arm, seed, _: 0.5 + 0.1 * (arm == "mae_ft") + NOISE[seed])
    found = findings(given_)
    text = to_markdown(given_, found)
    assert "| mae_ft            | 59.60    | 60.00    | 60.50    |" in text  # clean top-1 by seed
    _, *claims = text.split("## ")
    lines = [line for part in claims for line in part.splitlines() if line[:2] == "| " and line[:10] != "| contrast"]
    assert len(lines) == len(found)
    for line, f in zip(lines, found, strict=True):
        assert f"`{f.contrast.name}`: {f.contrast.statement}" in line
        assert line.rstrip(" |").endswith(f.confirmed)
    for number, claim in CLAIMS.items():
        assert f"## {number}. {claim}" in text
    assert text == to_markdown(given_, findings(given_))


def test_the_name_of_the_suite_is_text() -> None:
    given_ = measured(lambda *_: 0.5)
    named = replace(given_, outcomes=replace(given_.outcomes, suite="*a*\n# <b>$x$"))
    heading = to_markdown(named, findings(given_)).splitlines()[0]
    assert page.read(heading).text == "Claims on *a*\\n# <b>$x$\n"
    assert page.read(heading).tags == ["h1"]


def test_claim_that_turns_is_shown_turning() -> None:
    found = findings(measured(lambda *_: 0.5))
    one, other = (replace(f, verdict=v, per_seed=s) for f, v, s in zip(
        [f for f in found if f.contrast.group == "raw random_patch"], ("holds", "does not hold"),
        ((0.1, 0.2), (-0.1, 0.1)),
        strict=False,
    ))  # fmt: skip
    assert turning([one, other]) == [
        f"turns within *raw random_patch*: holds for {one.contrast.name}; does not for {other.contrast.name}",
        f"the sign turns with the seed in 1 of 2: {other.contrast.name}",
    ]
    assert turning([one]) == []
    one, other = (replace(f, verdict="inconclusive", per_seed=()) for f in (one, other))
    above, below = replace(one, image_low=0.1, image_high=0.2), replace(other, image_low=-0.2, image_high=-0.1)
    assert turning([above, below]) == [
        f"these seeds' sign turns within *raw random_patch*: positive for {one.contrast.name}; negative for "
        f"{other.contrast.name}"
    ]
    assert turning([above, replace(below, image_high=0.1)]) == []
