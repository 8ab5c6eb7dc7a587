"""Figures: every one is drawn, the same each time, from what the evidence holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from mae_bench import figures
from mae_bench.baseline import Baseline
from mae_bench.degradations import BUILT_IN
from mae_bench.degradations.ladders import levels
from mae_bench.evidence import Evidence, Training
from mae_bench.figures import FigureError
from mae_bench.indicators.profile import column
from mae_bench.labelled_images import LabelledImages
from mae_bench.markup import terminal_text
from mae_bench.outcomes import Outcomes
from mae_bench.rows import CellResult
from mae_bench.store import cell_of
from mae_bench.suites import Suite

ARMS = ("mae_pretrained", "mae_ft", "supervised")
CONDITIONS = ("clean-0.00", "gaussian_blur-1.50", "random_patch-0.50", "token_drop-0.50")


@pytest.fixture
def evidence() -> Evidence:
    """Three seeds of three arms of four blocks and two heads; what is drawn is a function of arm, seed and place."""
    found = Evidence("fashion_mnist")
    for i, arm in enumerate(ARMS):
        for seed in range(3):
            name = f"{arm}_s{seed}"
            found.trainings[name] = Training(arm, seed)
            named = {}
            for layer in range(6):
                for indicator in ("alignment_centered", "separability_excess"):
                    value = 0.2 + 0.1 * i + 0.02 * seed + 0.05 * layer
                    named[column(indicator, layer, "mean_patch")] = (value, np.nan, np.nan)
            for block in range(1, 5):
                for head in range(2):
                    named[column("retention_adjusted", block, "mean_patch", head)] = (0.1 * block, np.nan, np.nan)
                    named[column("attention_distance_ratio", block, "patch", head)] = (0.2 * block, np.nan, np.nan)
            found.values[name] = dict.fromkeys(CONDITIONS, named)
    return found


@pytest.fixture
def baseline(cell_result: Callable[..., CellResult], tmp_path: Path) -> Baseline:
    results = [
        cell_result(
            f"{arm}_s{seed}-{condition}", [0] * 10, [0] * 5 + [1] * 5, retention=0.1 + 0.2 * seed, newly_active=0.3
        )
        for arm in ARMS[1:]
        for seed in range(3)
        for condition in CONDITIONS
    ]
    outcomes = Outcomes.of(results, LabelledImages.of([str(i) for i in range(10)], np.zeros(10), ["a", "b"]))
    return Baseline(tmp_path, {cell_of(r.row).id: r.row for r in results}, outcomes)


@pytest.mark.thorough  # draws all of them twice
def test_every_figure_is_drawn_as_svg_and_png_and_the_same_each_time(
    baseline: Baseline, evidence: Evidence, tmp_path: Path
) -> None:
    names = ("accuracy", "indicators", "alignment", "separability", "retention", "attention_distance")
    first = figures.drawn(baseline, evidence, tmp_path / "one")
    second = figures.drawn(baseline, evidence, tmp_path / "two")
    assert [path.name for path in first] == [f"{name}.{suffix}" for name in names for suffix in ("svg", "png")]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        if one.suffix == ".png":
            with Image.open(one) as image:
                assert image.width > 500
                assert len(image.convert("L").getcolors(256) or ()) > 20
        else:
            assert "mae_ft" in one.read_text()


def test_accuracy_has_a_line_for_each_arm_that_ran(baseline: Baseline, evidence: Evidence, tmp_path: Path) -> None:
    figure = figures.accuracy(baseline.rows.values(), evidence)
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_visible()}
    assert set(panels) == {condition.rsplit("-", 1)[0] for condition in CONDITIONS[1:]}
    for ax in panels.values():
        assert [line.get_label() for line in ax.get_lines()] == ["mae_ft", "supervised"]
        assert ax.get_xlabel() in ("px", "fraction of area", "fraction of tokens")
    assert figure.axes[0].get_ylabel() == "top-1 (%)"
    figures.save(figure, tmp_path, "accuracy")


def test_indicators_are_held_against_the_top1_of_one_seed_of_each_arm(baseline: Baseline, evidence: Evidence) -> None:
    figure = figures.indicators(baseline.rows.values(), evidence)
    assert [ax.get_title() for ax in figure.axes] == ["retention", "newly_active"]
    for ax, value in zip(figure.axes, (0.1, 0.3), strict=True):
        lines: Any = ax.get_lines()
        assert [line.get_label() for line in lines] == ["mae_ft", "supervised"]
        for line in lines:
            assert [*map(tuple, np.round(line.get_xydata(), 6))] == [(value, 50.0)] * (len(CONDITIONS) - 1)
    with pytest.raises(FigureError, match="no degraded cell with an indicator"):
        figures.indicators([], evidence)


def test_profiles_show_each_model_at_its_values(evidence: Evidence, tmp_path: Path) -> None:
    figure = figures.layer_profiles(evidence, "separability_excess", "separability", clean=True)
    assert [ax.get_title() for ax in figure.axes] == list(CONDITIONS)
    lines: Any = figure.axes[0].get_lines()
    assert len(lines) == 9
    heights = sorted(tuple(np.round(line.get_ydata(), 6)) for line in lines)
    expected = sorted(
        tuple(round(v, 6) for v in evidence.layers(m, CONDITIONS[0], "separability_excess", "mean_patch").values())
        for m in evidence.trainings
    )
    assert heights == expected
    figures.save(figure, tmp_path, "profiles")


@pytest.mark.thorough  # draws hundreds of pictures
def test_strip_has_every_degradation_at_every_level(
    random_suite: Callable[..., Suite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_of_each = {(kind.family, kind.colour): kind for kind in BUILT_IN if not kind.by_salience}.values()
    monkeypatch.setattr(figures, "every", lambda: tuple(one_of_each))
    for channels in (1, 3):
        suite = random_suite(12, channels=channels)
        # corruptions need 16 pixels
        position = next(i for i in range(12) if min(suite.read(i).size) >= 16)
        figure = figures.degradation_strip(suite, position)
        kinds = [kind for kind in one_of_each if kind.family != "clean" and levels(kind, suite.entry, full=True)]
        assert len(figure.axes) == 6 * len(kinds)
        assert [ax.get_ylabel().split("\n")[0] for ax in figure.axes[::6]] == [kind.name for kind in kinds]
        figures.save(figure, tmp_path, "strip")


def test_class_map_has_a_panel_per_layer(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = {layer: torch.randn(40, 8, generator=generator) for layer in range(1, 4)}
    figure = figures.class_map(tokens, np.arange(40) % 2, ["a", "b"], "vit", "cls")
    assert [ax.get_title() for ax in figure.axes if ax.get_visible()] == ["layer 1", "layer 2", "layer 3"]
    figures.save(figure, tmp_path, "map")


HOSTILE = (
    "$x^2$",
    r"\$y$",
    "_private",
    "<script>alert(1)</script>",
    "a\0b\x1b[2J",
    "\u202eabc",
    "]]>",
    "-->",
    "&lt;",
    "",
)


def test_names_of_models_and_classes_are_text(tmp_path: Path) -> None:
    tokens = {1: torch.randn(60, 8, generator=torch.Generator().manual_seed(0))}
    figure = figures.class_map(tokens, np.arange(60) % len(HOSTILE), HOSTILE, "<b>$z$\n", "cls")
    picture, _ = figures.save(figure, tmp_path, "map")
    root = ElementTree.parse(picture).getroot()
    written = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert r"<b>$z$\n: principal components of cls" in written
    assert [terminal_text(name) for name in HOSTILE if name] == written[-len(HOSTILE) + 1 :]
    assert "script" not in {element.tag.rpartition("}")[2] for element in root.iter()}


def test_drawing_leaves_the_users_matplotlib_alone(evidence: Evidence, tmp_path: Path) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams), plt.get_fignums()
    figures.save(figures.retention_maps(evidence), tmp_path, "retention")
    assert (dict(mpl.rcParams), plt.get_fignums()) == before


def test_nothing_to_draw_is_named() -> None:
    empty = Evidence("s")
    with pytest.raises(FigureError, match="there is no degraded cell to draw"):
        figures.accuracy([], empty)
    with pytest.raises(FigureError, match="the evidence holds none of gaussian_blur"):
        figures.layer_profiles(empty, "alignment", "alignment")
    for draw in (figures.retention_maps, figures.attention_distance):
        with pytest.raises(FigureError, match="give arm= and training_seed="):
            draw(empty)
