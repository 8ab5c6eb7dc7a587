"""The tables of the literature agree with themselves, and no number of theirs can be mistaken for another's."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from mae_bench.cells import Cell
from mae_bench.degradations import CORRUPTIONS
from mae_bench.models.registry import ModelEntry
from mae_bench.published import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    ALEXNET_EXTRA_ERRORS,
    ALEXNET_MEAN_ERRORS,
    ANCHORS,
    EXTENT,
    TOLERANCE,
    Anchor,
)
from mae_bench.rows import ResultRow

# the means that the literature prints beside the errors per severity
PRINTED = {
    "gaussian_noise": 88.6428, "shot_noise": 89.4468, "impulse_noise": 92.2640, "defocus_blur": 81.9880,
    "glass_blur": 82.6268, "motion_blur": 78.5948, "zoom_blur": 79.8360, "snow": 86.6816, "frost": 82.6572,
    "fog": 81.9324, "brightness": 56.4592, "contrast": 85.3204, "elastic_transform": 64.6056, "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}  # fmt: skip


def test_errors_of_alexnet_have_the_printed_means() -> None:
    means = {name: round(sum(errors) / 5, 4) for name, errors in ALEXNET_ERRORS.items()}
    assert means == PRINTED
    assert all(len(errors) == 5 for errors in ALEXNET_ERRORS.values())
    everything = [sum(errors) / 5 for errors in ALEXNET_ERRORS.values()] + list(ALEXNET_EXTRA_ERRORS.values())
    assert round(sum(everything[:15]) / 15, 3) == 78.899
    assert round(sum(everything) / 19, 3) == 78.122


def test_mean_errors_are_of_all_nineteen() -> None:
    assert {name: round(mean, 4) for name, mean in ALEXNET_MEAN_ERRORS.items()} == PRINTED | ALEXNET_EXTRA_ERRORS
    assert all(ALEXNET_CLEAN_ERROR < mean < 100 for mean in ALEXNET_MEAN_ERRORS.values())


def test_corruptions_are_those_that_are_generated() -> None:
    for names, family in ((ALEXNET_ERRORS, "imagenet_c"), (ALEXNET_EXTRA_ERRORS, "c_extra")):
        assert set(names) == {name for name, kind in CORRUPTIONS.items() if kind.family == family}


@pytest.mark.parametrize("anchor", ANCHORS, ids=lambda a: f"{a.models[0]} {a.suite} {a.score} {a.condition}".strip())
def test_anchor_can_be_compared(anchor: Anchor) -> None:
    assert anchor.suite in EXTENT
    assert anchor.tolerance > 0
    assert anchor.protocol
    assert anchor.source
    assert re.match(r"224x224( (bilinear|bicubic) center 0\.(875|9))?$", anchor.view)
    if anchor.condition:
        assert Cell.parse(f"m-{anchor.condition}").condition == anchor.condition
        assert anchor.score in {field.name for field in fields(ResultRow)}
    else:
        assert anchor.score in ("mCE", "mca")
    if anchor.unit == "%":
        assert 0 < anchor.value <= 100
    else:
        assert 0 < anchor.value < 1
        assert anchor.unit == ("nats" if anchor.score == "nll" else "")
        assert (anchor.spread is None) == (anchor.score == "nll")


def test_no_two_anchors_are_of_the_same_number() -> None:
    found = [(model, a.suite, a.condition, a.score) for a in ANCHORS for model in a.models]
    assert len(set(found)) == len(found)


def test_names_are_those_of_runs_unless_weights_were_kept() -> None:
    for name in {name for anchor in ANCHORS for name in anchor.models}:
        if "(" in name:
            with pytest.raises(ValueError, match="white space"):
                ModelEntry(name)
        else:
            assert ModelEntry(name).name == name


def test_timm_knows_the_names_and_the_views() -> None:
    import timm

    from mae_bench.images import View

    checked = 0
    for anchor in ANCHORS:
        for name in anchor.models:
            if "." in name:
                config = timm.get_pretrained_cfg(name)
                _, height, width = config.input_size
                view = str(View(height, width, config.interpolation, config.crop_pct, config.crop_mode))
                if anchor.condition == "clean-0.00":  # corrupted and occluded images have the view of their protocol
                    assert view.startswith(anchor.view)
                    checked += 1
    assert checked > 15


@pytest.mark.parametrize(
    ("model", "score", "value"),
    [
        ("mae_vit_base", "top1", 83.664), ("mae_vit_large", "top1", 85.952), ("mae_vit_huge", "top1", 86.928),
        ("mae_vit_base", "top5", 96.530), ("mae_vit_large", "nll", 0.646), ("mae_vit_base", "mCE", 51.7),
        ("mae_vit_large", "mCE", 41.8), ("mae_vit_huge", "mCE", 33.8), ("resnet50", "mCE", 76.7),
        ("resnet50.tv_in1k", "top1", 100 - 23.85), ("deit_base", "mCE", 48.5), ("deit_small", "mCE", 54.6),
        ("vit_base_augreg_in1k", "top1", 79.154), ("deit3_base", "top1", 83.8), ("beit_base", "top1", 85.238),
    ],
)  # fmt: skip
def test_numbers_that_a_reader_would_look_up(model: str, score: str, value: float) -> None:
    suite = "imagenet_c" if score == "mCE" else "imagenet"
    condition = "" if score == "mCE" else "clean-0.00"
    (found,) = (
        a for a in ANCHORS if (a.suite, a.condition, a.score) == (suite, condition, score) and model in a.models
    )
    assert found.value == pytest.approx(value)


def test_value_that_is_printed_with_one_digit_has_room_for_half_of_it() -> None:
    clean = [a for a in ANCHORS if (a.suite, a.condition, a.unit) == ("imagenet", "clean-0.00", "%")]
    rounded = {anchor.value for anchor in clean if anchor.tolerance > TOLERANCE["clean"]}
    assert rounded == {82.3, 82.6, 83.1, 84.5, 84.9}
    assert all(a.tolerance == pytest.approx(TOLERANCE["clean"] + 0.05 * (a.value in rounded)) for a in clean)
