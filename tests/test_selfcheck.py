"""A run that is right agrees with the literature, one that is wrong differs, and what cannot be compared is not."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.baseline import table
from mae_bench.published import ALEXNET_ERRORS, ANCHORS, EXTENT, IMAGENET_VIEW, Anchor
from mae_bench.rows import RECORD
from mae_bench.selfcheck import (
    REGENERATED_TOLERANCE,
    Check,
    check,
    protocol_differences,
    sampling_error,
    selfcheck,
    to_markdown,
    to_text,
)
from mae_bench.store import RunDirectory, StoreError
from references import page

if TYPE_CHECKING:
    from mae_bench.rows import ResultRow

MAE_VIEW = "224x224 bicubic center 0.875"
DEIT_VIEW = "224x224 bicubic center 0.9"


def anchor(model: str, score: str, suite: str = "imagenet", condition: str = "clean-0.00") -> Anchor:
    (found,) = (
        a for a in ANCHORS if model in a.models and (a.score, a.suite, a.condition) == (score, suite, condition)
    )
    return found


@pytest.fixture
def row(cell_result: Callable[..., Any]) -> Callable[..., ResultRow]:
    """Builds the row of a cell on the whole of a suite."""
    template: ResultRow = cell_result("m-clean-0.00").row

    def build(model: str, condition: str = "clean-0.00", suite: str = "imagenet", **changes: Any) -> ResultRow:
        degradation, level = condition.rsplit("-", 1)
        images, classes = EXTENT[suite]
        made: dict[str, Any] = {
            "model": model, "suite": suite, "condition": condition, "degradation": degradation,
            "level": float(level.removeprefix("s")), "n": images, "n_expected": images, "classes": classes,
            "view": IMAGENET_VIEW, "dtype": "float32", "seed": 0,
            "family": {"clean": "clean", "random_patch": "occlusion"}.get(degradation, "imagenet_c"),
        }  # fmt: skip
        return replace(template, **made | changes)

    return build


def mae_base(row: Callable[..., ResultRow], **changes: Any) -> ResultRow:
    found = {"top1": 0.83664, "top5": 0.9653, "nll": 0.731, "view": MAE_VIEW}
    return row("mae_vit_base", **found | changes)


def corrupted(row: Callable[..., ResultRow], model: str, error: float, **changes: Any) -> list[ResultRow]:
    """A clean cell and the 75 of ImageNet-C, in each of which the error is as far from AlexNet's as ``error`` says."""
    rows = [row(model, **changes | {"top1": 0.7615})]
    for name, errors in ALEXNET_ERRORS.items():
        for severity, theirs in enumerate(errors, start=1):
            rows.append(row(model, f"{name}-s{severity}", **changes | {"top1": 1 - error * theirs / 100}))
    return rows


def correlations(cell: str, token: str, value: float | None, last: int = 13) -> dict[str, list[dict[str, Any]]]:
    """The records of a cell, in which the last layer's ``token`` alone has the ``value``."""
    records = [
        dict.fromkeys(RECORD) | {"indicator": indicator, "layer": layer, "token": kind, "value": 0.99}
        for indicator in ("alignment", "correlation")
        for layer in range(last + 1)
        for kind in ("cls", "mean_patch", "patch")
    ]
    for record in records:
        if (record["indicator"], record["layer"], record["token"]) == ("correlation", last, token):
            record |= {"value": value, "reason": "constant"}
    return {cell: records}


def verdicts(checks: list[Check]) -> dict[str, str]:
    return {f"{one.score} {one.anchor.condition}".strip(): one.verdict for one in checks}


# --------------------------------------------------------------------------- clean numbers


def test_published_numbers_agree_with_themselves(row: Callable[..., ResultRow]) -> None:
    checks = check([mae_base(row)])
    assert verdicts(checks) == dict.fromkeys(["top1 clean-0.00", "top5 clean-0.00", "nll clean-0.00"], "agrees")
    assert all(one.difference == pytest.approx(0) and one.differences == () for one in checks)
    assert [one.found for one in checks] == pytest.approx([83.664, 96.53, 0.731])


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"top1": 0.83664 + 0.001}, "agrees"),
        ({"top1": 0.83664 - 0.001}, "agrees"),
        ({"top1": 0.83664 + 0.0011}, "differs"),
        ({"top1": 0.83664 - 0.0011}, "differs"),
    ],
)
def test_tolerance_ends_where_it_says(row: Callable[..., ResultRow], changes: dict[str, Any], verdict: str) -> None:
    assert verdicts(check([mae_base(row, **changes)]))["top1 clean-0.00"] == verdict


def test_each_score_is_judged_by_itself(row: Callable[..., ResultRow]) -> None:
    assert verdicts(check([mae_base(row, nll=0.76)])) == {
        "top1 clean-0.00": "agrees",
        "top5 clean-0.00": "agrees",
        "nll clean-0.00": "differs",
    }


@pytest.mark.parametrize(
    "name", ["deit_base", "deit_base_patch16_224.fb_in1k", "resnet50", "resnet50.tv_in1k", "beit_base", "hiera_base"]
)
def test_model_is_known_by_its_fixture_and_by_timms_name(row: Callable[..., ResultRow], name: str) -> None:
    known = anchor(name, "top1")
    (one,) = check([row(name, top1=known.value / 100, view=known.view)])
    assert (one.model, one.verdict) == (name, "agrees")


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "vit_base_patch16_224.mae", "my_model", "deit_base2"])
def test_other_weights_are_other_models(row: Callable[..., ResultRow], name: str) -> None:
    assert check([row(name, top1=0.5)]) == []


@pytest.mark.parametrize("suite", ["imagenet_a", "imagenet_r", "imagenet_sketch"])
def test_shifted_suites_have_their_own_numbers(row: Callable[..., ResultRow], suite: str) -> None:
    known = anchor("deit_base", "top1", suite)
    cell = row("deit_base", suite=suite, top1=known.value / 100, view=DEIT_VIEW)
    (one,) = check([cell])
    assert (one.anchor, one.verdict) == (known, "agrees")
    (far,) = check([replace(cell, top1=known.value / 100 + 0.004)])
    assert far.verdict == "differs"


# --------------------------------------------------------------------------- what differs in the protocol


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"view": "224x224 bilinear center 0.875"}, ["interpolation bilinear instead of bicubic"]),
        ({"view": "224x224 bicubic center 0.9"}, ["crop 0.9 instead of 0.875"]),
        ({"view": "224x224 bicubic squash 0.875"}, ["crop mode squash instead of center"]),
        ({"view": "384x384 bicubic center 0.875"}, ["image size 384x384 instead of 224x224"]),
        (
            {"view": "224x224 bilinear center 1.0"},
            ["interpolation bilinear instead of bicubic", "crop 1.0 instead of 0.875"],
        ),
        ({"dtype": "bfloat16"}, ["computed in bfloat16"]),
        ({"n": 1024, "status": "partial"}, ["1,024 images instead of 50,000"]),
        ({"n": 5000, "n_expected": 5000}, ["5,000 images instead of 50,000"]),
        ({}, []),
    ],
)  # fmt: skip
def test_difference_of_protocol_is_named(
    row: Callable[..., ResultRow], changes: dict[str, Any], named: list[str]
) -> None:
    top1 = check([mae_base(row, **changes)])[0]
    assert list(top1.differences) == named
    assert top1.verdict == "agrees"
    wrong = check([mae_base(row, **changes | {"top1": 0.7})])[0]
    assert list(wrong.differences) == named
    assert wrong.verdict == "differs"


def test_part_of_the_classes_is_another_task(row: Callable[..., ResultRow]) -> None:
    for one in check([mae_base(row, classes=100, n=5000)]):
        assert one.verdict == "not comparable"
        assert one.differences == ("100 classes instead of 1,000", "5,000 images instead of 50,000")


def test_part_of_the_images_widens_the_tolerance(row: Callable[..., ResultRow]) -> None:
    top1, top5, loss = check([mae_base(row, n=1024, top1=0.83664 + 0.02, nll=0.75)])
    error = 100 * (0.83664 * 0.16336 / 1024 * (50_000 - 1024) / 49_999) ** 0.5
    assert top1.tolerance == pytest.approx(0.1 + 2 * error)
    assert (top1.verdict, top5.verdict) == ("agrees", "agrees")
    assert loss.verdict == "not comparable"
    assert loss.differences[0] == "part of the images, and how nll varies between images is not published"
    assert check([mae_base(row, n=1024, top1=0.83664 + 0.025)])[0].verdict == "differs"


@settings(max_examples=60, derandomize=True)
@given(st.integers(1, 50_000), st.integers(1, 50_000))
def test_sampling_error_falls_to_nothing(one: int, other: int) -> None:
    known = anchor("mae_vit_base", "top1")
    few, many = sorted((one, other))
    errors = [sampling_error(known, images, 50_000) for images in (few, many, 50_000)]
    assert errors[2] == 0
    assert errors == sorted(errors, reverse=True)  # type: ignore[type-var]


def test_sampling_error_is_that_of_drawing_without_replacement() -> None:
    """All subsets of a small population, counted out."""
    known = replace(anchor("resnet50", "top1"), value=100 * 3 / 8)
    shares = [100 * statistics.fmean(subset) for subset in itertools.combinations([1, 1, 1, 0, 0, 0, 0, 0], 5)]
    assert sampling_error(known, 5, 8) == pytest.approx(statistics.pstdev(shares))


def test_published_image_size_alone_leaves_the_rest_open(row: Callable[..., ResultRow]) -> None:
    known = anchor("hiera_base", "top1")
    assert known.view == "224x224"
    assert protocol_differences(row("hiera_base", view=DEIT_VIEW), known) == ()
    assert protocol_differences(row("hiera_base", view="256x256 bicubic center 0.9"), known) == (
        "image size 256x256 instead of 224x224",
    )


# --------------------------------------------------------------------------- corruptions


@pytest.mark.parametrize(("error", "verdict"), [(0.767, "agrees"), (0.771, "agrees"), (0.773, "differs")])
def test_stored_set_is_held_against_mce(row: Callable[..., ResultRow], error: float, verdict: str) -> None:
    checks = check(corrupted(row, "resnet50", error, suite="imagenet_c"))
    (mce,) = (one for one in checks if one.score == "mCE")
    assert (mce.verdict, mce.differences, mce.tolerance) == (verdict, (), 0.5)
    assert mce.found == pytest.approx(100 * error)
    assert {one.score for one in checks} == {"mCE", "mca"}


def test_mean_corruption_accuracy_is_checked_too(row: Callable[..., ResultRow]) -> None:
    (mca,) = (one for one in check(corrupted(row, "resnet50", 0.767, suite="imagenet_c")) if one.score == "mca")
    assert mca.found == pytest.approx(100 - 0.767 * 78.899307)
    assert mca.verdict == "agrees"


@pytest.mark.parametrize(("error", "verdict"), [(0.786, "agrees"), (0.788, "differs")])
def test_generated_set_has_a_wider_tolerance_and_says_why(
    row: Callable[..., ResultRow], error: float, verdict: str
) -> None:
    (mce,) = (one for one in check(corrupted(row, "resnet50", error)) if one.score == "mCE_regenerated")
    assert (mce.verdict, mce.tolerance) == (verdict, REGENERATED_TOLERANCE)
    assert mce.differences == ("corruptions generated here instead of the stored set",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"view": DEIT_VIEW}, "gaussian_noise-s1 was generated under the view 224x224 bicubic center 0.9"),
        ({"n": 1024}, "mCE is of all 50,000 images of 1,000 classes, gaussian_noise-s1 of 1,024 images"),
    ],
)
def test_what_is_no_mce_is_not_compared_with_one(
    row: Callable[..., ResultRow], changes: dict[str, Any], reason: str
) -> None:
    (mce,) = (one for one in check(corrupted(row, "resnet50", 0.767, **changes)) if one.anchor.score == "mCE")
    assert (mce.score, mce.found, mce.verdict) == ("mCE", None, "not comparable")
    assert mce.differences[0].startswith(reason)
    (accuracy,) = (one for one in check(corrupted(row, "resnet50", 0.767, **changes)) if one.anchor.score == "mca")
    assert accuracy.verdict == "agrees"


def test_incomplete_set_says_so(row: Callable[..., ResultRow]) -> None:
    checks = check(corrupted(row, "resnet50", 0.767, suite="imagenet_c")[:40])
    assert {one.score: one.verdict for one in checks} == {"mCE": "not comparable", "mca": "not comparable"}
    assert all("36 of 75 cells are missing" in one.differences[0] for one in checks)


def test_both_sets_in_one_folder_are_checked_apart(row: Callable[..., ResultRow]) -> None:
    rows = corrupted(row, "resnet50", 0.767, suite="imagenet_c") + corrupted(row, "resnet50", 0.78)
    found = {one.score: one.found for one in check(rows) if one.anchor.score == "mCE"}
    assert found == pytest.approx({"mCE": 76.7, "mCE_regenerated": 78.0})


def test_corruptions_that_were_not_run_are_not_mentioned(row: Callable[..., ResultRow]) -> None:
    assert {one.score for one in check([row("resnet50", top1=0.7615)])} == {"top1"}
    other = row("resnet50", "gaussian_noise-s1", suite="imagenet_c", family="c_extra", top1=0.5)
    assert check([other]) == []


# --------------------------------------------------------------------------- occlusion


@pytest.mark.parametrize(
    ("model", "condition", "published"),
    [
        ("deit_small", "random_patch-0.50", 70.0),
        ("resnet50", "random_patch-0.50", 0.1),
        ("deit_base", "random_patch-0.90", 37.0),
    ],
)
def test_accuracy_under_random_patches(
    row: Callable[..., ResultRow], model: str, condition: str, published: float
) -> None:
    named = "one random draw per image (seed 3) instead of the mean of 5"
    for found, verdict in ((published + 4.9, "agrees"), (published + 5.1, "differs")):
        (one,) = (one for one in check([row(model, condition, top1=found / 100, seed=3)]) if one.anchor.score == "top1")
        assert (one.verdict, one.anchor.value, one.differences) == (verdict, published, (named,))


@pytest.mark.parametrize(
    ("model", "token", "last", "published"),
    [("deit_base", "cls", 13, (0.90, 0.77, 0.56)), ("resnet50", "mean_patch", 5, (0.32, 0.13, 0.07))],
)
def test_correlation_is_that_of_what_the_head_reads(
    row: Callable[..., ResultRow], model: str, token: str, last: int, published: tuple[float, ...]
) -> None:
    for share, value in zip((0.25, 0.5, 0.75), published, strict=True):
        cell = row(model, f"random_patch-{share:.2f}", top1=0.001, correlation_cls=0.2, correlation_mean_patch=0.2)
        for found, verdict in ((value + 0.049, "agrees"), (value - 0.051, "differs")):
            records = correlations(f"{model}-{cell.condition}", token, found, last)
            (one,) = (one for one in check([cell], indicators=records) if one.anchor.score == f"correlation_{token}")
            assert (one.found, one.verdict) == (found, verdict)
            assert one.anchor.value == value


def test_correlation_of_part_of_the_images_is_allowed_its_sampling_error(row: Callable[..., ResultRow]) -> None:
    cell = row("deit_base", "random_patch-0.25", n=512)
    (one,) = check([cell], indicators=correlations("deit_base-random_patch-0.25", "cls", 0.9))
    assert one.tolerance == pytest.approx(0.05 + 2 * 0.21 * ((50_000 - 512) / 49_999 / 512) ** 0.5)


def test_correlation_that_is_not_there_is_not_compared(row: Callable[..., ResultRow]) -> None:
    cell = row("deit_base", "random_patch-0.25", correlation_cls=0.9)
    (without,) = check([cell])
    assert (without.found, without.verdict) == (None, "not comparable")
    assert without.differences[0].startswith("the feature that the head reads is not among these results")
    (null,) = check([cell], indicators=correlations("deit_base-random_patch-0.25", "cls", None))
    assert null.verdict == "not comparable"
    assert null.differences[0] == "the feature that the head reads has no correlation (constant)"


# --------------------------------------------------------------------------- runs and reports


def test_cells_that_a_model_cannot_have_are_no_numbers(row: Callable[..., ResultRow]) -> None:
    assert check([mae_base(row, status="not_applicable", n=0, top1=None, top5=None, nll=None)]) == []


def test_score_that_a_cell_lacks_is_named(row: Callable[..., ResultRow]) -> None:
    _, top5, _ = check([mae_base(row, top5=None)])
    assert (top5.verdict, top5.difference, top5.differences) == ("not comparable", None, ("the cell has no top5",))


def test_run_directory_is_read_with_its_indicators(
    row: Callable[..., ResultRow], cell_result: Callable[..., Any], tmp_path: Path
) -> None:
    run = RunDirectory.create(tmp_path / "run", resume=False)
    labels = [0] * 500
    cell = row("deit_base", "random_patch-0.50", n=500, top1=1.0)
    records = correlations("deit_base-random_patch-0.50", "cls", 0.77)["deit_base-random_patch-0.50"]
    result = cell_result("deit_base-random_patch-0.50", labels, labels, indicators=records)
    run.write_cell(replace(result, row=cell))
    (one,) = selfcheck(run.path)
    assert (one.score, one.found, one.verdict) == ("correlation_cls", 0.77, "agrees")


def test_committed_results_are_read(row: Callable[..., ResultRow], tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text(table([mae_base(row)]))
    assert selfcheck(tmp_path) == check([mae_base(row)])


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_folder_without_results_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=f"{name} holds no results: name the directory of a run"):
        selfcheck(tmp_path / name)


def test_anchors_of_ones_own_may_be_given(row: Callable[..., ResultRow]) -> None:
    own = replace(anchor("resnet50", "top1"), models=("my_model",), value=50.0)
    (one,) = check([row("my_model", top1=0.5)], [own])
    assert one.verdict == "agrees"


@pytest.mark.parametrize("report", [to_text, to_markdown])
def test_nothing_to_compare_is_said(report: Callable[[list[Check]], str]) -> None:
    assert report(check([])).startswith("Nothing to compare")


def test_report_holds_both_numbers_and_what_they_amount_to(row: Callable[..., ResultRow]) -> None:
    checks = check([mae_base(row, n=1024, top1=0.7)])
    for text in (to_text(checks), to_markdown(checks)):
        line = next(line for line in text.splitlines() if "top1" in line)
        for part in ("mae_vit_base", "70.00", "83.664", "-13.66", "differs", "1,024 images instead of 50,000", "mae"):
            assert part in line
        assert text.endswith("1 agree, 1 differ, 1 not comparable.")
        assert text.count("all images, the model's own resize and crop") == 1


def test_difference_below_the_last_digit_has_no_sign(row: Callable[..., ResultRow]) -> None:
    assert "+0.00 " in to_text(check([row("resnet50", top1=0.7615 - 1e-12)]))


def test_no_name_breaks_the_table(row: Callable[..., ResultRow]) -> None:
    own = replace(anchor("resnet50", "top1"), models=("a|<b>\x1b[2J",), protocol="as *they* say\n\n# so")
    checks = check([row("a|<b>\x1b[2J", top1=0.7615)], [own])
    seen = page.read(to_markdown(checks))
    assert [row[0] for row in seen.tables[0]] == ["model", r"a|<b>\x1b[2J"]
    assert set(seen.tags) == {"table", "thead", "tbody", "tr", "th", "td", "p", "ul", "li"}
    for text in (seen.text, to_text(checks)):
        assert r"as *they* say\n\n# so" in text
    assert r"a|<b>\x1b[2J" in to_text(checks)
