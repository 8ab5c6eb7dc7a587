"""Corruption errors obey their laws, and only the stored set has an mCE."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.corruption_error import (
    EXTRA,
    FIFTEEN,
    CorruptionScores,
    corruption_error,
    corruption_scores,
    mean_corruption_accuracy,
    mean_corruption_error,
    relative_corruption_error,
    relative_mean_corruption_error,
    to_markdown,
)
from mae_bench.markup import terminal_text
from mae_bench.published import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    ALEXNET_EXTRA_ERRORS,
    IMAGENET_VIEW,
)
from references import page

if TYPE_CHECKING:
    from mae_bench.rows import ResultRow

LAW = settings(max_examples=60, derandomize=True)
PERCENT = st.floats(0, 100)
FIVE = st.lists(PERCENT, min_size=5, max_size=5).map(lambda values: dict(zip(range(1, 6), values, strict=True)))
ALL_FIFTEEN = st.fixed_dictionaries(dict.fromkeys(FIFTEEN, FIVE))
OTHER_VIEW = "224x224 bicubic center 0.9"

Errors = dict[str, dict[int, float]]


def alexnet() -> Errors:
    return {name: dict(zip(range(1, 6), errors, strict=True)) for name, errors in ALEXNET_ERRORS.items()}


def constant(error: float, names: Iterable[str] = FIFTEEN) -> Errors:
    return {name: dict.fromkeys(range(1, 6), error) for name in names}


def slow_mce(errors: Errors) -> float:
    """The definition, number by number."""
    total = 0.0
    for name, by_severity in errors.items():
        numerator = denominator = 0.0
        for severity in (1, 2, 3, 4, 5):
            numerator += by_severity[severity]
            denominator += ALEXNET_ERRORS[name][severity - 1]
        total += numerator / denominator
    return 100 * total / 15


def slow_relative_mce(errors: Errors, clean: float) -> float:
    total = 0.0
    for name, by_severity in errors.items():
        numerator = denominator = 0.0
        for severity in (1, 2, 3, 4, 5):
            numerator += by_severity[severity] - clean
            denominator += ALEXNET_ERRORS[name][severity - 1] - 43.5
        total += numerator / denominator
    return 100 * total / 15


# --------------------------------------------------------------------------- laws


def test_alexnet_has_a_hundred() -> None:
    errors = alexnet()
    for name in FIFTEEN:
        assert corruption_error(name, errors[name]) == pytest.approx(100)
        assert relative_corruption_error(name, errors[name], ALEXNET_CLEAN_ERROR) == pytest.approx(100)
    for name, mean in ALEXNET_EXTRA_ERRORS.items():
        assert corruption_error(name, dict.fromkeys(range(1, 6), mean)) == pytest.approx(100)
    assert mean_corruption_error(errors) == pytest.approx(100)
    assert relative_mean_corruption_error(errors, ALEXNET_CLEAN_ERROR) == pytest.approx(100)
    assert mean_corruption_accuracy(errors) == pytest.approx(100 - 78.899307, abs=1e-6)


def test_perfect_model_has_nothing_and_a_hopeless_one_more_than_alexnet() -> None:
    assert mean_corruption_error(constant(0.0)) == 0
    assert relative_mean_corruption_error(constant(0.0), 0.0) == 0
    assert mean_corruption_accuracy(constant(0.0)) == 100
    assert mean_corruption_accuracy(constant(100.0)) == 0
    assert mean_corruption_error(constant(100.0)) > 100


def test_corruptions_that_do_no_harm_have_no_relative_error() -> None:
    assert relative_mean_corruption_error(constant(20.0), 20.0) == 0
    assert relative_corruption_error("fog", constant(10.0)["fog"], 20.0) < 0


@LAW
@given(ALL_FIFTEEN, PERCENT)
def test_scores_are_those_of_the_slow_definition(errors: Errors, clean: float) -> None:
    assert mean_corruption_error(errors) == pytest.approx(slow_mce(errors))
    assert relative_mean_corruption_error(errors, clean) == pytest.approx(slow_relative_mce(errors, clean), abs=1e-6)
    everything = [error for by_severity in errors.values() for error in by_severity.values()]
    assert mean_corruption_accuracy(errors) == pytest.approx(100 - sum(everything) / 75)


@LAW
@given(ALL_FIFTEEN, st.permutations(FIFTEEN), st.permutations(range(1, 6)))
def test_order_is_irrelevant(errors: Errors, names: Sequence[str], severities: Sequence[int]) -> None:
    shuffled = {name: {severity: errors[name][severity] for severity in severities} for name in names}
    assert mean_corruption_error(shuffled) == mean_corruption_error(errors)
    assert relative_mean_corruption_error(shuffled, 20.0) == relative_mean_corruption_error(errors, 20.0)
    assert mean_corruption_accuracy(shuffled) == mean_corruption_accuracy(errors)


@LAW
@given(FIVE, st.sampled_from(FIFTEEN + EXTRA), st.integers(1, 5))
def test_error_rises_with_each_severity_and_scales(errors: dict[int, float], name: str, severity: int) -> None:
    halved = {s: e / 2 for s, e in errors.items()}
    assert corruption_error(name, halved) == pytest.approx(corruption_error(name, errors) / 2)
    assert corruption_error(name, errors | {severity: 100.0}) >= corruption_error(name, errors)
    assert corruption_error(name, halved | {severity: 60.0}) > corruption_error(name, halved)


def test_sum_over_severities_is_divided_and_not_the_single_ones() -> None:
    """The mean of five quotients would be another number."""
    errors = {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 100.0}
    assert corruption_error("brightness", errors) == pytest.approx(100 * 100 / (5 * 56.4592))


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("score", [mean_corruption_error, lambda errors: relative_mean_corruption_error(errors, 20.0)])
def test_sixteenth_corruption_is_refused(score: Callable[[Errors], float]) -> None:
    for name in (*EXTRA, "fogg"):
        with pytest.raises(ValueError, match=f"over 15 corruptions: {name} not among them"):
            score(alexnet() | constant(50.0, [name]))


@pytest.mark.parametrize("missing", FIFTEEN)
def test_mean_of_fourteen_is_refused(missing: str) -> None:
    errors = {name: by_severity for name, by_severity in alexnet().items() if name != missing}
    for score in (mean_corruption_error, mean_corruption_accuracy):
        with pytest.raises(ValueError, match=f"{missing} missing"):
            score(errors)


def test_extra_corruptions_have_a_mean_of_their_own() -> None:
    assert mean_corruption_accuracy(constant(40.0, EXTRA), EXTRA) == pytest.approx(60)
    with pytest.raises(ValueError, match="over 4 corruptions: saturate missing; fog not among them"):
        mean_corruption_accuracy(constant(40.0, ("fog", *EXTRA[:3])), EXTRA)


@pytest.mark.parametrize("severity", range(1, 6))
def test_missing_severity_is_named(severity: int) -> None:
    errors = {s: 50.0 for s in range(1, 6) if s != severity}
    with pytest.raises(ValueError, match=f"snow: severities {severity} are missing"):
        corruption_error("snow", errors)
    with pytest.raises(ValueError, match=f"snow: severities {severity} are missing"):
        mean_corruption_error(alexnet() | {"snow": errors})


def test_what_is_no_error_in_percent_is_refused() -> None:
    five = dict.fromkeys(range(1, 6), 50.0)
    with pytest.raises(ValueError, match="unknown corruption 'fogg': did you mean fog"):
        corruption_error("fogg", five)
    with pytest.raises(ValueError, match=r"fog: 2\.5 is not one of the severities"):
        corruption_error("fog", five | {2.5: 50.0})
    for value in (-0.1, 100.1, float("nan")):
        with pytest.raises(ValueError, match=r"fog at severity 3 is .* no percentage"):
            corruption_error("fog", five | {3: value})
        with pytest.raises(ValueError, match=r"clean error is .* no percentage"):
            relative_corruption_error("fog", five, value)


# --------------------------------------------------------------------------- from rows


@pytest.fixture
def rows_of(cell_result: Callable[..., Any]) -> Callable[..., list[ResultRow]]:
    """Builds the clean row and those of all nineteen corruptions, with AlexNet's errors for the fifteen and 40 % for
    the four.
    """
    template: ResultRow = cell_result("m-clean-0.00").row

    def build(suite: str, model: str = "alexnet", **changes: Any) -> list[ResultRow]:
        made: dict[str, Any] = {
            "suite": suite, "model": model, "n": 50_000, "n_expected": 50_000, "classes": 1000, "view": IMAGENET_VIEW
        }  # fmt: skip
        base = replace(template, **made | changes)
        rows = [replace(base, top1=1 - ALEXNET_CLEAN_ERROR / 100)]
        for family, errors in (("imagenet_c", alexnet()), ("c_extra", constant(40.0, EXTRA))):
            for name, by_severity in errors.items():
                for severity, error in by_severity.items():
                    level = {"level": float(severity), "unit": "severity", "condition": f"{name}-s{severity}"}
                    rows.append(replace(base, family=family, degradation=name, top1=1 - error / 100, **level))
        return rows

    return build


def scores_of(rows: Iterable[ResultRow]) -> CorruptionScores:
    scores = CorruptionScores.of(rows)
    assert scores is not None
    return scores


@pytest.mark.parametrize(("suite", "name"), [("imagenet_c", "mCE"), ("imagenet", "mCE_regenerated")])
def test_complete_set_has_the_name_of_its_suite(rows_of: Callable[..., list[ResultRow]], suite: str, name: str) -> None:
    rows = rows_of(suite)
    scores = scores_of(rows)
    assert (scores.model, scores.suite, scores.name, scores.reason) == ("alexnet", suite, name, None)
    assert scores.mce == pytest.approx(100)
    assert scores.relative_mce == pytest.approx(100)
    assert scores.ce == pytest.approx(dict.fromkeys(FIFTEEN, 100.0))
    assert scores.accuracy == pytest.approx(100 - 78.899307, abs=1e-6)
    assert scores.accuracy_extra == pytest.approx(60)
    assert scores_of(reversed(rows)) == scores


def test_stored_set_may_be_seen_under_any_one_view(rows_of: Callable[..., list[ResultRow]]) -> None:
    rows = rows_of("imagenet_c", view=OTHER_VIEW)
    assert scores_of(rows).name == "mCE"
    rows[7] = replace(rows[7], view=IMAGENET_VIEW)
    scores = scores_of(rows)
    assert scores.name is None
    assert scores.accuracy is None
    assert "several views" in (scores.reason or "")


@pytest.mark.parametrize(
    ("suite", "changes", "reason"),
    [
        ("imagenet", {"view": OTHER_VIEW}, f"under the view {OTHER_VIEW}; --mae-view suite"),
        ("imagenet_c", {"n": 1024}, "all 50,000 images of 1,000 classes, gaussian_noise-s1 of 1,024 images"),
        ("imagenet", {"n": 5000, "n_expected": 5000}, "all 50,000 images .* of 5,000 images of 1,000 classes"),
        ("imagenet_c", {"classes": 100}, "of 50,000 images of 100 classes"),
        ("cifar10_c", {"n": 10_000, "classes": 10}, "of ImageNet, not of cifar10_c"),
        ("imagefolder", {}, "of ImageNet, not of imagefolder"),
    ],
)  # fmt: skip
def test_what_is_no_mce_has_mean_accuracies_alone(
    rows_of: Callable[..., list[ResultRow]], suite: str, changes: dict[str, Any], reason: str
) -> None:
    scores = scores_of(rows_of(suite, **changes))
    assert scores.name is None
    assert re.search(reason, scores.reason or "")
    assert (scores.ce, scores.mce, scores.relative_mce) == ({}, None, None)
    assert scores.accuracy == pytest.approx(100 - 78.899307, abs=1e-6)
    assert scores.accuracy_extra == pytest.approx(60)


def test_missing_cell_leaves_no_mean(rows_of: Callable[..., list[ResultRow]]) -> None:
    rows = [row for row in rows_of("imagenet_c") if row.condition != "frost-s2"]
    scores = scores_of(rows)
    assert scores.reason == "1 of 75 cells are missing, such as frost-s2"
    assert (scores.name, scores.accuracy) == (None, None)
    assert scores.accuracy_extra == pytest.approx(60)
    only_extra = scores_of(row for row in rows if row.family == "c_extra")
    assert only_extra.reason == "75 of 75 cells are missing, such as gaussian_noise-s1"
    assert only_extra.accuracy_extra == pytest.approx(60)
    assert scores_of(row for row in rows if row.condition != "spatter-s5").accuracy_extra is None


def test_partial_cell_spoils_the_whole(rows_of: Callable[..., list[ResultRow]]) -> None:
    rows = rows_of("imagenet_c")
    rows[30] = replace(rows[30], n=512, status="partial")
    scores = scores_of(rows)
    assert scores.name is None
    assert f"{rows[30].condition} of 512 images" in (scores.reason or "")
    assert scores.accuracy is None


def test_extra_corruptions_decide_nothing(rows_of: Callable[..., list[ResultRow]]) -> None:
    rows = [replace(r, n=512, top1=0.1) if r.family == "c_extra" else r for r in rows_of("imagenet_c")]
    assert scores_of(rows).mce == pytest.approx(100)
    without = [row for row in rows if row.family != "c_extra"]
    assert scores_of(without).mce == pytest.approx(100)
    assert scores_of(without).accuracy_extra is None


def test_plain_blur_and_severities_between_are_left_out(rows_of: Callable[..., list[ResultRow]]) -> None:
    rows = rows_of("imagenet_c")
    fog = next(row for row in rows if row.condition == "fog-s2")
    between = replace(fog, level=2.5, condition="fog-s2.50", top1=0.0)
    plain = replace(
        fog, family="blur", degradation="gaussian_blur", level=2.0, unit="px", condition="gaussian_blur-2.00", top1=0.0
    )
    assert scores_of([*rows, between, plain]) == scores_of(rows)
    assert CorruptionScores.of([rows[0], between, plain]) is None


def test_no_clean_cell_no_relative_error(rows_of: Callable[..., list[ResultRow]]) -> None:
    rows = rows_of("imagenet_c")
    assert scores_of(rows[1:]).relative_mce is None
    assert scores_of([replace(rows[0], n=1024), *rows[1:]]).relative_mce is None
    assert scores_of(rows[1:]).mce == pytest.approx(100)


def test_cells_that_a_model_cannot_have_count_as_missing(rows_of: Callable[..., list[ResultRow]]) -> None:
    rows = rows_of("imagenet_c")
    impossible = [replace(row, status="not_applicable", n=0, top1=None) for row in rows]
    assert CorruptionScores.of(impossible) is None
    assert scores_of([*rows[:5], *impossible[5:]]).name is None


def test_models_and_suites_are_not_mixed(rows_of: Callable[..., list[ResultRow]]) -> None:
    for other in (rows_of("imagenet_c", model="b"), rows_of("imagenet")):
        with pytest.raises(ValueError, match="of one model on one suite"):
            CorruptionScores.of([*rows_of("imagenet_c"), *other])


def test_scores_come_by_model(rows_of: Callable[..., list[ResultRow]]) -> None:
    clean_alone = rows_of("imagenet_c", model="c")[:1]
    found = corruption_scores([*rows_of("imagenet_c", model="b"), *clean_alone, *rows_of("imagenet_c", model="a")])
    assert list(found) == ["b", "a"]
    assert found["a"] == scores_of(rows_of("imagenet_c", model="a"))


# --------------------------------------------------------------------------- table


def lines(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith("|-")
    ]


def test_table_shows_means_and_each_corruption(rows_of: Callable[..., list[ResultRow]]) -> None:
    text = to_markdown(corruption_scores([*rows_of("imagenet_c", model="a"), *rows_of("imagenet_c", model="b", n=512)]))
    table = lines(text)
    assert table[0] == ["model", "mCE", "relative mCE", "mean accuracy, 15 (%)", "mean accuracy, 4 extra (%)"]
    assert table[1] == ["a", "100.0", "100.0", "21.1", "60.0"]
    assert table[2] == ["b", "-", "-", "21.1", "60.0"]
    assert table[3] == ["CE (%)", "a"]
    assert table[4:] == [[name, "100.0"] for name in FIFTEEN]
    assert "No mCE of b: mCE is of all 50,000 images" in text
    assert "regenerated" not in text


def test_table_keeps_the_two_names_apart(rows_of: Callable[..., list[ResultRow]]) -> None:
    stored, made = scores_of(rows_of("imagenet_c", model="a")), scores_of(rows_of("imagenet", model="b"))
    text = to_markdown({"a": stored, "b": made})
    table = lines(text)
    assert table[0][1:5] == ["mCE", "relative mCE", "mCE_regenerated", "relative mCE_regenerated"]
    assert [row[1:5] for row in table[1:3]] == [["100.0", "100.0", "-", "-"], ["-", "-", "100.0", "100.0"]]
    assert "of corruptions generated here" in text


def test_table_without_any_mce_names_none(rows_of: Callable[..., list[ResultRow]]) -> None:
    text = to_markdown(corruption_scores(rows_of("imagenet", view=OTHER_VIEW)))
    assert lines(text) == [
        ["model", "mean accuracy, 15 (%)", "mean accuracy, 4 extra (%)"], ["alexnet", "21.1", "60.0"]
    ]  # fmt: skip
    assert f"No mCE of alexnet: gaussian_noise-s1 was generated under the view {OTHER_VIEW}" in text
    assert "*CE*" not in text


@pytest.mark.parametrize("name", ["a|b", "<b>", "||<", "$x$", "__init__", "a\nb", "\u202eb"])
def test_no_model_name_breaks_the_table(rows_of: Callable[..., list[ResultRow]], name: str) -> None:
    for changes in ({}, {"n": 512}):
        seen = page.read(to_markdown(corruption_scores(rows_of("imagenet_c", model=name, **changes))))
        assert seen.tables[0][1][0] == terminal_text(name)
        assert all(len(row) == len(table[0]) for table in seen.tables for row in table)
        assert set(seen.tags) == {"table", "thead", "tbody", "tr", "th", "td", "p", "em"}
        assert changes or seen.tables[1][0] == ["CE (%)", terminal_text(name)]
        assert not changes or f"No mCE of {terminal_text(name)}: " in seen.text
