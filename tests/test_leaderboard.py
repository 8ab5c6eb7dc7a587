"""Leaderboards: summary numbers worked out by hand, ranks, tie groups, and tables that no name can break."""

from __future__ import annotations

import gc
import io
import itertools
import random
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mae_bench.leaderboard
from mae_bench.cells import Level
from mae_bench.degradations import DEGRADATIONS, Degradation
from mae_bench.degradations.ladders import levels
from mae_bench.labelled_images import LabelledImages
from mae_bench.leaderboard import (
    Leaderboard,
    Standing,
    area_under_curve,
    bootstrap_means,
    default_conditions,
    image_scores,
    level_at_half,
    tied_with_leader,
)
from mae_bench.markup import csv_text, terminal_text
from mae_bench.outcomes import Outcomes
from mae_bench.rows import CellResult
from mae_bench.suites import SUITES
from references import page

LAW = settings(max_examples=100, derandomize=True)
MakeResult = Callable[..., CellResult]
Right = int | Sequence[bool] | np.ndarray

SMALL = ("clean", "box_blur", "stripes")
BLUR = ("box_blur-1.75", "box_blur-5.25", "box_blur-10.50")
OCCLUSION = ("stripes-0.10", "stripes-0.50", "stripes-0.90")


@pytest.fixture(autouse=True)
def small_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two families of one degradation at three levels each can be worked out by hand."""
    few_kinds(monkeypatch, SMALL)


def few_kinds(monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> None:
    """A matrix of the degradations of these names alone."""
    kept = [(kind, level) for name in names for kind, level in every_condition(DEGRADATIONS[name])]
    full = [(kind, level) for name in names for kind, level in every_condition(DEGRADATIONS[name], full=True)]
    monkeypatch.setattr(mae_bench.leaderboard, "conditions", lambda _, all_of_them=False: full if all_of_them else kept)


def every_condition(kind: Degradation, full: bool = False) -> list[tuple[Degradation, Level]]:
    return [(kind, level) for level in levels(kind, SUITES["fashion_mnist"], full)]


@pytest.fixture(autouse=True, scope="module")
def little_to_collect() -> Iterator[None]:
    """statsmodels collects garbage at every multiple test, which takes long where torch's objects are gone through."""
    import statsmodels.stats.multitest  # noqa: F401

    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def board(cell_result: MakeResult) -> Callable[..., Leaderboard]:
    """Builds the leaderboard of models that classify, in each condition, the given images rightly (a number: the
    first so many). ``changes`` are further fields of rows, by (model, condition).
    """

    def build(
        right: Mapping[str, Mapping[str, Right]],
        images: int = 20,
        changes: Mapping[tuple[str, str], dict[str, Any]] | None = None,
    ) -> Leaderboard:
        labels = np.arange(images) % 10
        results = []
        for model, conditions in right.items():
            for condition, hits in conditions.items():
                mask = np.arange(images) < hits if isinstance(hits, int) else np.asarray(hits, dtype=bool)
                prediction = np.where(mask, labels, (labels + 1) % 10)
                own = (changes or {}).get((model, condition), {})
                results.append(cell_result(f"{model}-{condition}", prediction, labels, **own))
        ids, classes = [f"{i:032x}-0" for i in range(images)], [str(i) for i in range(10)]
        outcomes = Outcomes.of(results, LabelledImages.of(ids, labels, classes))
        return Leaderboard.of([result.row for result in results], outcomes)

    return build


def curves(clean: Right, blur: Sequence[Right], occlusion: Sequence[Right]) -> dict[str, Right]:
    return {"clean-0.00": clean, **dict(zip(BLUR, blur, strict=True)), **dict(zip(OCCLUSION, occlusion, strict=True))}


def standing(leaderboard: Leaderboard, model: str) -> Standing:
    [found] = [s for s in leaderboard.standings if s.model == model]
    return found


# --------------------------------------------------------------------------- summary numbers

THREE = {
    "steep": curves(18, (16, 12, 8), (18, 10, 2)),
    "flat": curves(20, (10, 10, 10), (20, 20, 20)),
    "weak": curves(4, (4, 2, 0), (4, 4, 1)),
}


def test_summary_numbers_are_those_worked_out_by_hand(board: Callable[..., Leaderboard]) -> None:
    leaderboard = board(THREE)
    assert leaderboard.families == ("blur", "occlusion")
    assert (leaderboard.images, leaderboard.images_expected) == (20, 20)

    steep = standing(leaderboard, "steep")
    assert steep.clean[0] == 0.9
    assert steep.robust == pytest.approx({"blur": (0.8 + 0.6 + 0.4) / 3, "occlusion": (0.9 + 0.5 + 0.1) / 3})
    assert steep.retained == pytest.approx({"blur": 0.6 / 0.9, "occlusion": 0.5 / 0.9})
    # trapezia from the clean point on: 1.75 x .85 + 3.5 x .7 + 5.25 x .5 over 10.5; .1 x .9 + .4 x .7 + .4 x .3 over .9
    assert steep.auc == pytest.approx({"blur": 6.5625 / 10.5, "occlusion": 0.49 / 0.9})
    assert steep.score == pytest.approx((0.6 + 0.5) / 2)

    flat = standing(leaderboard, "flat")
    assert flat.robust == pytest.approx({"blur": 0.5, "occlusion": 1.0})
    assert flat.auc == pytest.approx({"blur": (1.75 * 0.75 + 8.75 * 0.5) / 10.5, "occlusion": 1.0})
    assert flat.score == pytest.approx(0.75)

    assert standing(leaderboard, "weak").score == pytest.approx((0.1 + 0.15) / 2)
    assert [s.model for s in leaderboard.standings] == ["flat", "steep", "weak"]


def test_indicators_and_speed_are_summed_up_over_cells(board: Callable[..., Leaderboard]) -> None:
    values = {"box_blur-1.75": 0.9, "box_blur-5.25": 0.6, "stripes-0.10": 0.2}
    changes: dict[tuple[str, str], dict[str, Any]] = {
        ("steep", condition): {"alignment_mean_patch": v, "retention_adjusted": v / 2, "images_per_second": 1000 * v}
        for condition, v in values.items()
    }
    found = standing(board(THREE, changes=changes), "steep")
    assert found.alignment == pytest.approx({"blur": 0.75, "occlusion": 0.2})
    assert found.retention_adjusted == pytest.approx({"blur": 0.375, "occlusion": 0.1})
    assert found.alignment_centered == {"blur": None, "occlusion": None}
    assert found.images_per_second == statistics.median([900, 600, 200, 100, 100, 100, 100])


def tables(markdown: str) -> list[list[list[str]]]:
    """The cells of every table of a Markdown text, split at pipes; rulers left out."""
    blocks = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    found = []
    for lines in blocks:
        assert re.fullmatch(r"\|(?:[:-]+\|)+", lines[1])
        rows = [line.split("|") for line in lines if line != lines[1]]
        assert all(row[0] == row[-1] == "" for row in rows)
        found.append([[cell.strip() for cell in row[1:-1]] for row in rows])
    return found


def test_markdown_shows_every_condition_with_area_and_level_at_half(board: Callable[..., Leaderboard]) -> None:
    changes: dict[tuple[str, str], dict[str, Any]] = {
        ("steep", "stripes-0.90"): {"alignment_centered_mean_patch": 0.25, "retention_adjusted": 0.125},
        ("steep", "stripes-0.10"): {"alignment_centered_mean_patch": 0.75, "retention_adjusted": 0.5},
    }
    text = board(THREE, changes=changes).to_markdown()
    main, blur, occlusion = tables(text)
    assert [row[1] for row in main] == ["model", "flat", "steep", "weak"]
    assert blur[0][:6] == ["model", "1.75", "5.25", "10.5", "AUC", "level at half"]
    # halfway between .9 and chance (.1) lies .5: midway between the levels 5.25 (.6) and 10.5 (.4), and at level .5
    assert blur[2][:6] == ["steep", "80.0", "60.0", "40.0", "0.625", "7.88"]
    assert occlusion[2] == ["steep", "90.0", "50.0", "10.0", "0.544", "0.50", "0.250", "0.125"]
    # halfway between 1 and chance lies .55, which lies between the clean point and the first level
    assert blur[1][5] == f"{1.75 * 0.9:.2f}"
    assert occlusion[1][5] == "beyond"
    assert "**stripes** (level in fraction of area" in text
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Leaderboard: fashion_mnist", "## blur", "## occlusion",
    ]  # fmt: skip


def test_main_table_says_ranks_rates_and_size(board: Callable[..., Leaderboard]) -> None:
    leaderboard = board(THREE, changes={("steep", "clean-0.00"): {"parameters": 1234567}})
    line = dict(zip(leaderboard.header, leaderboard.cells()[1], strict=True))
    assert line["model"] == "steep"
    assert line["score (%)"].startswith("55.0 [")
    assert line["clean (%)"] == "90.0 [90.0, 90.0]"
    assert (line["blur (%)"], line["blur kept"]) == ("60.0", "0.667")
    assert (line["occlusion (%)"], line["occlusion kept"]) == ("50.0", "0.556")
    assert line["params"] == "1,234,567"
    assert line["images/s"] == "100"
    assert all(model in leaderboard.to_text() for model in THREE)


def test_csv_holds_the_numbers_that_the_table_rounds(board: Callable[..., Leaderboard]) -> None:
    leaderboard = board(THREE)
    frame = pd.read_csv(io.StringIO(leaderboard.to_csv()))
    assert frame["model"].tolist() == ["flat", "steep", "weak"]
    assert frame["rank"].tolist() == [1, 2, 3]
    for record, s in zip(frame.to_dict("records"), leaderboard.standings, strict=True):
        assert s.score_interval is not None
        assert [record["score"], record["score_low"], record["score_high"]] == pytest.approx(
            [s.score, *s.score_interval], rel=1e-5
        )
        assert [record["clean"], record["clean_low"], record["clean_high"]] == pytest.approx(s.clean, rel=1e-5)
        for family in ("blur", "occlusion"):
            for name in ("robust", "retained", "auc"):
                assert record[f"{family}_{name}"] == pytest.approx(getattr(s, name)[family], rel=1e-5)
    assert frame["images"].unique().tolist() == [20]


def test_caption_says_what_the_table_is_of(board: Callable[..., Leaderboard]) -> None:
    of_score = "The score is over blur, occlusion."
    assert board(THREE).caption == f"fashion_mnist: all 20 images, 21 cells. {of_score}"
    changes = {(model, c): {"n_expected": 10_000} for model, conditions in THREE.items() for c in conditions}
    assert (
        board(THREE, changes=changes).caption == f"fashion_mnist: the first 20 of 10,000 images, 21 cells. {of_score}"
    )


def test_nothing_and_several_suites_have_no_leaderboard(cell_result: MakeResult) -> None:
    outcomes = Outcomes("fashion_mnist", np.array([]), np.array([]), np.array([]))
    with pytest.raises(ValueError, match="of one suite"):
        Leaderboard.of([], outcomes)
    rows = [cell_result("a-clean-0.00", suite=suite).row for suite in ("fashion_mnist", "imagefolder")]
    with pytest.raises(ValueError, match="'fashion_mnist', 'imagefolder'"):
        Leaderboard.of(rows, outcomes)


# --------------------------------------------------------------------------- who is ranked, and on what


def test_model_with_a_missing_cell_is_marked_and_not_ranked(board: Callable[..., Leaderboard]) -> None:
    """Dropping the hardest cell must not move a model up."""
    without = {c: hits for c, hits in THREE["flat"].items() if c != "box_blur-10.50"}
    leaderboard = board({**THREE, "flat": without})
    assert [s.model for s in leaderboard.standings] == ["steep", "weak", "flat"]
    flat = standing(leaderboard, "flat")
    assert (flat.score, flat.score_interval, flat.partial, flat.tied) == (None, None, ("blur",), False)
    last = dict(zip(leaderboard.header, leaderboard.cells()[-1], strict=True))
    assert (last["#"], last["score (%)"]) == ("", "partial")
    frame = leaderboard.to_frame().set_index("model")
    assert frame.loc["flat", "partial"] == "blur"
    assert pd.isna(frame.loc["flat", "rank"])
    assert frame.loc["steep", "rank"] == 1
    # the others are ranked as if it were not there
    alone = board({name: THREE[name] for name in ("steep", "weak")})
    assert alone.standings == leaderboard.standings[:2]


def test_a_family_that_a_model_was_not_run_on_counts_for_none(board: Callable[..., Leaderboard]) -> None:
    leaderboard = board({**THREE, "flat": {c: h for c, h in THREE["flat"].items() if c not in OCCLUSION}})
    flat = standing(leaderboard, "flat")
    assert flat.partial == ()
    assert "occlusion" not in flat.robust
    assert leaderboard.caption.endswith("The score is over blur.")
    for s in leaderboard.standings:
        assert s.score == pytest.approx(s.robust["blur"])
    lines = [dict(zip(leaderboard.header, cells, strict=True)) for cells in leaderboard.cells()]
    assert next(line for line in lines if line["model"] == "flat")["occlusion (%)"] == "-"


def test_model_with_a_part_of_a_family_is_not_ranked(board: Callable[..., Leaderboard]) -> None:
    leaderboard = board({**THREE, "flat": {c: h for c, h in THREE["flat"].items() if c not in OCCLUSION[1:]}})
    flat = standing(leaderboard, "flat")
    assert (flat.partial, flat.score) == (("occlusion",), None)
    assert leaderboard.caption.endswith("The score is over blur, occlusion.")


def test_model_that_saw_fewer_images_is_not_ranked(board: Callable[..., Leaderboard], cell_result: MakeResult) -> None:
    complete = board(THREE)
    short = [cell_result(f"short-{c}", [0] * 10, [0] * 10, n_expected=20).row for c in THREE["flat"]]
    labels = np.arange(20) % 10
    results = [
        cell_result(f"{m}-{c}", np.where(np.arange(20) < hits, labels, labels + 1), labels)
        for m, conditions in THREE.items()
        for c, hits in conditions.items()
    ]
    outcomes = Outcomes.of(results, LabelledImages.of([str(i) for i in range(20)], labels, ["0"]))
    leaderboard = Leaderboard.of([*complete.rows, *short], outcomes)
    assert [s.model for s in leaderboard.standings] == ["flat", "steep", "weak", "short"]
    assert standing(leaderboard, "short").partial == ("blur", "occlusion")
    assert standing(leaderboard, "short").score is None


def test_without_a_complete_model_nobody_is_ranked(board: Callable[..., Leaderboard]) -> None:
    leaderboard = board({m: {c: h for c, h in hits.items() if c != BLUR[0]} for m, hits in THREE.items()})
    assert [(s.model, s.score) for s in leaderboard.standings] == [("flat", None), ("steep", None), ("weak", None)]
    assert len(tables(leaderboard.to_markdown())) == 3


def test_clean_cells_alone_make_a_table_without_ranks(board: Callable[..., Leaderboard]) -> None:
    leaderboard = board({m: {"clean-0.00": hits["clean-0.00"]} for m, hits in THREE.items()})
    assert [(s.model, s.score) for s in leaderboard.standings] == [("flat", None), ("steep", None), ("weak", None)]


def test_models_with_other_levels_are_compared_on_the_shared_ones(board: Callable[..., Leaderboard]) -> None:
    """Easy extra levels must not raise a model's mean above one that ran the default matrix."""
    more = {"box_blur-3.50": 20, "box_blur-7.00": 20, "stripes-0.25": 20}
    plain, extended = board(THREE), board({**THREE, "steep": THREE["steep"] | more})
    for model in THREE:
        for name in ("robust", "retained", "auc", "score", "partial"):
            assert getattr(standing(extended, model), name) == getattr(standing(plain, model), name)
    # where all have them, they count
    everywhere = board({m: hits | more for m, hits in THREE.items()})
    assert standing(everywhere, "steep").robust["blur"] == pytest.approx((0.8 + 1 + 0.6 + 1 + 0.4) / 5)


def test_cells_that_do_not_apply_enter_no_mean(board: Callable[..., Leaderboard], cell_result: MakeResult) -> None:
    rows = [*board(THREE).rows, cell_result("steep-box_blur-3.50", status="not_applicable", top1=None).row]
    ids = [str(i) for i in range(20)]
    results = [cell_result(f"{m}-{c}", [0] * 20) for m in THREE for c in THREE[m]]
    outcomes = Outcomes.of(results, LabelledImages.of(ids, np.zeros(20), ["0"]))
    assert standing(Leaderboard.of(rows, outcomes), "steep").robust["blur"] == pytest.approx(0.6)


def test_family_that_a_model_cannot_have_does_not_make_it_partial(
    board: Callable[..., Leaderboard], cell_result: MakeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as complete, and has no mean."""
    few_kinds(monkeypatch, (*SMALL, "token_drop"))
    drops = default_conditions("token_drop", SUITES["fashion_mnist"])
    assert len(drops) == 3
    can, cannot, *_ = THREE
    rows = list(board(THREE).rows)
    images, expected = rows[0].n, rows[0].n_expected
    rows += [
        replace(cell_result(f"{can}-{c}", [0] * images).row, n_expected=expected, status=rows[0].status) for c in drops
    ]
    rows += [cell_result(f"{cannot}-{c}", status="not_applicable", top1=None).row for c in drops]
    results = [cell_result(f"{m}-{c}", [0] * images) for m in THREE for c in THREE[m]]
    outcomes = Outcomes.of(results, LabelledImages.of([str(i) for i in range(images)], np.zeros(images), ["0"]))
    found = Leaderboard.of(rows, outcomes)
    assert standing(found, cannot).partial == ()
    assert standing(found, cannot).score is not None
    assert "token_drop" not in standing(found, cannot).robust
    assert standing(found, can).partial == ()


def test_default_matrix_and_whole_matrix_are_those_of_the_ladders() -> None:
    suite = SUITES["fashion_mnist"]
    assert default_conditions("blur", suite) == set(BLUR)
    assert default_conditions("blur", suite, full=True) == {*BLUR, "box_blur-3.50", "box_blur-7.00"}
    assert default_conditions("clean", suite) == {"clean-0.00"}


def test_a_family_of_full_runs_is_complete_with_all_its_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    suite = SUITES["fashion_mnist"]
    assert len(default_conditions("geometry", suite)) == 3 * 5
    assert len(default_conditions("cbar", suite)) == 10 * 5
    assert len(default_conditions("imagenet_c", suite)) == 15
    assert len(default_conditions("imagenet_c", suite, full=True)) == 75


# --------------------------------------------------------------------------- scores, intervals, ties

MASKS = st.lists(st.booleans(), min_size=6, max_size=6)


@settings(max_examples=25, derandomize=True)
@given(st.lists(MASKS, min_size=14, max_size=14))
def test_score_is_the_mean_over_families_of_the_mean_over_cells(
    board: Callable[..., Leaderboard], masks: list[list[bool]]
) -> None:
    conditions = ("clean-0.00", *BLUR, *OCCLUSION)
    right = {m: dict(zip(conditions, part, strict=True)) for m, part in (("one", masks[:7]), ("other", masks[7:]))}
    leaderboard = board(right, images=6)
    for model, hits in right.items():
        slow = [
            statistics.mean(statistics.mean(hits[c][i] for c in family) for family in (BLUR, OCCLUSION))
            for i in range(6)
        ]
        found = standing(leaderboard, model)
        assert found.score == pytest.approx(statistics.mean(slow))
        assert found.score == pytest.approx(statistics.mean(found.robust.values()))
    scores = [s.score or 0.0 for s in leaderboard.standings]
    assert scores == sorted(scores, reverse=True)


@LAW
@given(st.lists(MASKS, min_size=5, max_size=5))
def test_score_of_an_image_is_the_mean_of_its_own_cells(masks: list[list[bool]]) -> None:
    shared = {"clean": {"clean-0.00"}, "blur": {"x-1.00", "x-2.00"}, "occlusion": {"y-0.10"}, "token_drop": {"z-0.10"}}
    cells = [f"vit-{condition}" for family in shared.values() for condition in sorted(family)]
    outcomes = Outcomes("fashion_mnist", np.arange(6), np.ones(6), np.array([]))
    outcomes.prediction = {cell: np.array(mask, dtype=np.int16) for cell, mask in zip(cells, masks, strict=True)}
    right = dict(zip(cells, masks, strict=True))
    # neither clean images nor dropped tokens count
    slow = [((right["vit-x-1.00"][i] + right["vit-x-2.00"][i]) / 2 + right["vit-y-0.10"][i]) / 2 for i in range(6)]
    assert image_scores(outcomes, "vit", shared).tolist() == slow


def test_interval_of_the_score_is_that_of_a_slow_bootstrap(board: Callable[..., Leaderboard]) -> None:
    """An image's cells are drawn together, so that cells that fail together widen the interval."""
    images = 60
    generator = np.random.default_rng(3)
    right = {
        m: {c: generator.random(images) < 0.7 for c in ("clean-0.00", *BLUR, *OCCLUSION)} for m in ("one", "other")
    }
    right["one"] |= dict.fromkeys(BLUR + OCCLUSION, right["one"][BLUR[0]])
    leaderboard = board(right, images=images)
    chance = random.Random(4)
    for model, hits in right.items():
        own = [statistics.mean(bool(hits[c][i]) for c in BLUR + OCCLUSION) for i in range(images)]
        means = sorted(statistics.mean(chance.choices(own, k=images)) for _ in range(4000))
        interval = standing(leaderboard, model).score_interval
        assert interval is not None
        # the 2.5 % points of 2,000 and of 4,000 resamples each lie within about 7 % of the standard error
        error = statistics.pstdev(own) / images**0.5
        assert interval == pytest.approx((means[100], means[3900]), abs=0.35 * error)
    widths = [np.ptp(standing(leaderboard, model).score_interval or ()) for model in ("one", "other")]
    assert widths[0] > 1.5 * widths[1]


def test_resamples_are_the_same_for_every_model() -> None:
    values = np.random.default_rng(0).random((50, 2))
    means = bootstrap_means(np.column_stack([values, values.sum(1), np.ones(50)]), resamples=200)
    assert means.shape == (200, 4)
    # a sum of columns is resampled like its summands only if their images are
    assert means[:, 0] + means[:, 1] == pytest.approx(means[:, 2])
    assert means[:, 3] == pytest.approx(np.ones(200))
    assert len(set(means[:, 0].tolist())) > 100
    # and the same again in another leaderboard
    assert bootstrap_means(values, 200) == pytest.approx(means[:, :2])
    assert np.abs(bootstrap_means(values, 200, seed=1) - means[:, :2]).max() > 0.01


def test_bootstrap_spreads_as_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(1).random((400, 1))
    means = bootstrap_means(values, resamples=2000)
    error = values.std() / 20
    assert means.mean() == pytest.approx(values.mean(), abs=4 * error / 2000**0.5)
    assert means.std() == pytest.approx(error, rel=4 / (2 * 2000) ** 0.5)


def slow_ties(scores: list[float], means: list[list[float]], alpha: float) -> list[bool]:
    """Two-sided bootstrap p-values of the differences from the leader, stepped down after Holm."""
    leader = scores.index(max(scores))
    p_values = {}
    for i in range(len(scores)):
        if i != leader:
            differences = [row[leader] - row[i] for row in means]
            tail = min(sum(d <= 0 for d in differences), sum(d >= 0 for d in differences)) / len(means)
            p_values[i] = min(1.0, 2 * tail + 1 / len(means))
    tied = [True] * len(scores)
    for step, i in enumerate(sorted(p_values, key=p_values.__getitem__)):
        if p_values[i] > alpha / (len(p_values) - step):
            break
        tied[i] = False
    return tied


def test_equal_models_tie_however_many_they_are() -> None:
    """Thirds are not exact, and a matrix product may round them otherwise in another column."""
    values = np.random.default_rng(0).integers(0, 28, (60, 1)) / 27
    for models in range(2, 14):
        equal = np.repeat(values, models, axis=1)
        means = bootstrap_means(equal, resamples=100)
        # the rounding at its worst: always to the same side
        means[:, -1] = np.nextafter(means[:, 0], 0)
        assert tied_with_leader(equal.mean(0), means).all()


@settings(max_examples=40, derandomize=True)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.2]))
def test_tie_group_is_that_of_the_slow_procedure(models: int, seed: int, alpha: float) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.random(models)
    means = scores + generator.normal(0, generator.choice([0.01, 0.2]), (100, models))
    assert tied_with_leader(scores, means, alpha).tolist() == slow_ties(scores.tolist(), means.tolist(), alpha)


@pytest.mark.parametrize(("behind", "tied"), [(0, False), (15, False), (35, True), (500, True)])
def test_difference_is_judged_on_both_sides(behind: int, tied: bool) -> None:
    """Which of two models leads is not known beforehand: 35 resamples of 1,000 on the other side are p = .07."""
    means = np.column_stack([np.full(1000, 0.5), np.where(np.arange(1000) < behind, 0.6, 0.4)])
    assert tied_with_leader(np.array([0.5, 0.4]), means).tolist() == [True, tied]


def test_identical_models_tie_and_clearly_different_ones_do_not(board: Callable[..., Leaderboard]) -> None:
    twin = curves(18, (16, 14, 12), (18, 14, 10))
    leaderboard = board({"a": twin, "b": twin, "worse": THREE["weak"]})
    assert [(s.model, s.tied) for s in leaderboard.standings] == [("a", True), ("b", True), ("worse", False)]
    assert [line[0] for line in leaderboard.cells()] == ["1=", "1=", "3"]
    assert leaderboard.standings[0].score_interval == pytest.approx(leaderboard.standings[1].score_interval)
    assert leaderboard.to_frame()["tied_with_leader"].tolist() == [True, True, False]


def test_leader_alone_at_the_top_is_not_tied(board: Callable[..., Leaderboard]) -> None:
    leaderboard = board({name: THREE[name] for name in ("flat", "weak")})
    assert [(s.model, s.tied) for s in leaderboard.standings] == [("flat", False), ("weak", False)]
    assert [line[0] for line in leaderboard.cells()] == ["1", "2"]
    assert [line[0] for line in board({"flat": THREE["flat"]}).cells()] == ["1"]


def test_difference_that_chance_explains_is_a_tie(board: Callable[..., Leaderboard]) -> None:
    """One image of 20 is no difference; the same images missed on top of others' in every cell are one."""
    leaderboard = board({"a": curves(18, (16, 16, 16), (16, 16, 16)), "b": curves(18, (15, 15, 15), (15, 15, 15))})
    assert [s.tied for s in leaderboard.standings] == [True, True]
    leaderboard = board({"a": curves(18, (16, 16, 16), (16, 16, 16)), "b": curves(18, (6, 6, 6), (6, 6, 6))})
    assert [s.tied for s in leaderboard.standings] == [False, False]


def test_leaderboard_does_not_depend_on_the_order_of_rows(board: Callable[..., Leaderboard]) -> None:
    reverse = {m: dict(reversed(THREE[m].items())) for m in reversed(THREE)}
    assert board(reverse) == board(THREE)
    assert board(reverse).to_markdown() == board(THREE).to_markdown()


# --------------------------------------------------------------------------- tables that hold


# what ModelEntry allows: no white space, brackets, slashes or colons
NAMES = st.text(st.characters(exclude_characters="[]/\\:", categories=("L", "N", "P", "S")), min_size=1, max_size=15)


@settings(max_examples=25, derandomize=True)
@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
@example(["a|b", "<script>alert(1)</script>".replace("/", "")])
@example(["||", "<"])
@example(["$x$", "__init__"])
@example(["\u202ea", "\x1b"])
@example(["=HYPERLINK(1)", 'a,b"'])
def test_no_model_name_breaks_a_table(board: Callable[..., Leaderboard], names: list[str]) -> None:
    leaderboard = board(dict(zip(names, (THREE["flat"], THREE["steep"]), strict=True)))
    text = leaderboard.to_markdown()
    seen = page.read(text)
    assert [len(table) for table in seen.tables] == [3, 3, 3]
    for table, column in zip(seen.tables, (1, 0, 0), strict=True):
        assert len({len(row) for row in table}) == 1
        assert [row[column] for row in table[1:]] == list(map(terminal_text, names))
    assert set(seen.tags) <= {"h1", "h2", "p", "strong", "em", "code", "table", "thead", "tbody", "tr", "th", "td"}
    frame = pd.read_csv(io.StringIO(leaderboard.to_csv()), keep_default_na=False, dtype={"model": str})
    assert frame["model"].tolist() == list(map(csv_text, names))
    for name in names:
        assert terminal_text(name) in leaderboard.to_text()


# --------------------------------------------------------------------------- curves

CURVES = st.dictionaries(
    st.integers(1, 1000).map(lambda i: i / 100), st.integers(0, 100).map(lambda i: i / 100), min_size=1, max_size=6
)
ACCURACY = st.integers(0, 100).map(lambda i: i / 100)


def height(clean: float, top1: Mapping[float, float], level: float) -> float:
    """The polyline through (0, clean) and the points, at ``level``."""
    points = [(0.0, clean), *sorted(top1.items())]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= level <= x1:
            return y0 + (y1 - y0) * (level - x0) / (x1 - x0)
    raise AssertionError(level)


@LAW
@given(ACCURACY, CURVES)
def test_area_is_the_sum_of_the_trapezia(clean: float, top1: dict[float, float]) -> None:
    points = [(0.0, clean), *sorted(top1.items())]
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points))
    found = area_under_curve(clean, top1)
    assert found == pytest.approx(area / max(top1))
    assert found is not None
    assert min([clean, *top1.values()]) - 1e-12 <= found <= max([clean, *top1.values()]) + 1e-12


@LAW
@given(ACCURACY, CURVES, st.data())
def test_area_rises_with_accuracy_and_does_not_know_the_unit(
    clean: float, top1: dict[float, float], data: st.DataObject
) -> None:
    area = area_under_curve(clean, top1)
    assert area is not None
    level = data.draw(st.sampled_from(sorted(top1)))
    higher = area_under_curve(clean, top1 | {level: top1[level] + 0.1})
    assert higher is not None
    assert higher > area
    assert area_under_curve(clean, {8 * x: y for x, y in top1.items()}) == pytest.approx(area)
    assert area_under_curve(clean, dict(reversed(top1.items()))) == area


def test_no_cells_have_no_area() -> None:
    assert area_under_curve(0.9, {}) is None


@LAW
@given(ACCURACY, CURVES, st.sampled_from([0.001, 0.1, 0.5]))
@example(0.9, {1.0: 0.9, 2.0: 0.9}, 0.1)
@example(0.05, {1.0: 0.03}, 0.1)
@example(0.1, {1.0: 0.1, 2.0: 0.0}, 0.1)
def test_level_at_half_is_where_the_curve_first_comes_down_to_half(
    clean: float, top1: dict[float, float], chance: float
) -> None:
    half = level_at_half(clean, top1, chance)
    target = (clean + chance) / 2
    if clean <= chance:
        assert half == 0.0  # there is nothing above chance that could halve
    elif half is None:
        assert all(y > target - 1e-12 for y in top1.values())
    else:
        assert 0 < half <= max(top1)
        assert height(clean, top1, half) == pytest.approx(target)
        # a polyline that stays above at its corners stays above between them
        before = [y for x, y in top1.items() if x < half - 1e-9]
        assert all(y > target - 1e-12 for y in before)


@LAW
@given(ACCURACY, CURVES, st.data())
def test_level_at_half_never_falls_when_a_model_gets_better(
    clean: float, top1: dict[float, float], data: st.DataObject
) -> None:
    level = data.draw(st.sampled_from(sorted(top1)))
    half, better = level_at_half(clean, top1, 0.1), level_at_half(clean, top1 | {level: top1[level] + 0.2}, 0.1)
    beyond = float("inf")
    assert (beyond if better is None else better) >= (beyond if half is None else half) - 1e-9


def test_curve_that_stays_above_has_no_level_at_half() -> None:
    assert level_at_half(0.9, {1.0: 0.51, 2.0: 0.6}, 0.1) is None
    assert level_at_half(0.9, {}, 0.1) is None
