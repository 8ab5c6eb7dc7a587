"""Charts of a report, each with the table behind it. Colours are those of Okabe and Ito, told apart with any colour
vision; lines and marks take the colour of the page's text, so that they are seen on light and on dark.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from mae_bench.indicators import BUILT_IN
from mae_bench.markup import terminal_text
from mae_bench.report import ReportError
from mae_bench.report.contents import Contents

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#8c564b", "#7f7f7f")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "triangle-right")
TEXT = "currentColor"
"""What SVG calls the colour of the text around it."""
PANEL = 170
"""Width of a small chart in pixels."""
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "aria": False,  # the page describes each chart, and has its table
    "view": {"stroke": None},
    "axis": {
        "labelColor": TEXT,
        "titleColor": TEXT,
        "titleFontWeight": "normal",
        "domainColor": TEXT,
        "tickColor": TEXT,
        "gridColor": TEXT,
        "gridOpacity": 0.15,
    },
    "legend": {
        "labelColor": TEXT,
        "titleColor": TEXT,
        "titleFontWeight": "normal",
        "labelLimit": 240,
        "columnPadding": 24,
    },
    "header": {"labelColor": TEXT, "titleColor": TEXT},
    "title": {"color": TEXT},
}


@dataclass(frozen=True)
class Chart:
    """``specification`` is Vega-Lite's; ``description`` says in words what is drawn, ``table`` holds its numbers."""

    name: str
    title: str
    description: str
    specification: dict[str, Any]
    table: pd.DataFrame

    def to_svg(self) -> str:
        """Raises:
        ReportError: it cannot be drawn.
        """
        import vl_convert

        try:
            svg: str = vl_convert.vegalite_to_svg(json.dumps(self.specification))
        except ValueError as error:
            raise ReportError(
                f"the chart {self.name!r} cannot be drawn ({error}): --mae-report none leaves the report out"
            ) from error
        return svg


def charts(contents: Contents) -> list[Chart]:
    """Those of which the run has numbers."""
    made = [standings(contents), *curves(contents), profiles(contents), retention(contents), attention(contents)]
    return [chart for chart in [*made, scatter(contents), *added_profiles(contents)] if chart is not None]


def described(name: str, title: str, description: str, chart: Any, table: pd.DataFrame) -> Chart:
    """An Altair ``chart`` of ``table`` in the style of the page."""
    specification: dict[str, Any] = chart.properties(usermeta={"embedOptions": {"renderer": "svg"}}).to_dict()
    specification["config"] = CONFIG
    return Chart(name, title, description, specification, table)


def _models(contents: Contents, legend: bool = True) -> dict[str, Any]:
    """Colour and shape of each model, the same in every chart."""
    return keys(_names(contents), legend)


def keys(names: Sequence[str], legend: bool = True) -> dict[str, Any]:
    """Colour and shape of each of ``names``, the values of a column ``model``."""
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    shapes = [SHAPES[(i + i // len(COLOURS)) % len(SHAPES)] for i in range(len(names))]
    key = alt.Legend(orient="bottom", columns=4, title=None) if legend else None
    return {
        "color": alt.Color("model:N", scale=alt.Scale(domain=[*names], range=colours), legend=key),
        "shape": alt.Shape("model:N", scale=alt.Scale(domain=[*names], range=shapes), legend=key),
    }


def _lines(base: Any, model: dict[str, Any]) -> Any:
    """Points of ``base`` in the colour and the shape of each model, joined by lines."""
    coloured = base.encode(color=model["color"])
    points = coloured.mark_point(filled=True, size=35, opacity=1).encode(shape=model["shape"])
    return coloured.mark_line(strokeWidth=1.5) + points


def standings(contents: Contents) -> Chart | None:
    """Score and clean top-1 of each model with their intervals."""
    lines = []
    for standing in contents.leaderboard.standings:
        (low, high), model = standing.clean[1:], terminal_text(standing.model)
        lines.append({"model": model, "what": "clean", "value": standing.clean[0], "low": low, "high": high})
        if standing.score is not None and standing.score_interval is not None:
            low, high = standing.score_interval
            lines.append({"model": model, "what": "score", "value": standing.score, "low": low, "high": high})
    table = _percent(pd.DataFrame(lines), "value", "low", "high")
    if table.empty:
        return None
    base = alt.Chart(table).encode(
        y=alt.Y("model:N", sort=_names(contents), title=None, axis=alt.Axis(labelLimit=240)),
        color=alt.Color(
            "what:N", scale=alt.Scale(domain=["score", "clean"], range=[COLOURS[1], COLOURS[0]]),
            legend=alt.Legend(orient="bottom", title=None),
        ),
        tooltip=["model", "what", *(alt.Tooltip(f"{name}:Q", format=".1f") for name in ("value", "low", "high"))],
    )  # fmt: skip
    chart = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="percent, with 95 % intervals", scale=alt.Scale(zero=False)), x2="high:Q"
    ) + base.mark_point(filled=True, size=60).encode(
        x="value:Q",
        shape=alt.Shape("what:N", scale=alt.Scale(domain=["score", "clean"], range=["circle", "diamond"]), legend=None),
    )
    words = "The robustness score and the clean top-1 of each model in percent, with their 95 % intervals."
    return described("standings", "Standings", words, chart.properties(width=520), table)


def curves(contents: Contents) -> list[Chart]:
    """Of each family top-1 against the level, a small chart for each degradation."""
    made = []
    for family in contents.leaderboard.families:
        of_family = contents.cells[contents.cells["family"] == family]
        table = of_family[["degradation", "level", "unit", "model", "top1", "top1_low", "top1_high"]]
        table = _percent(table, "top1", "top1_low", "top1_high")
        model = _models(contents)
        base = alt.Chart(table).encode(
            x=alt.X("level:Q", title=None, axis=alt.Axis(tickCount=4)),
            y=alt.Y("top1:Q", title="top-1 (%)", scale=alt.Scale(domain=[0, 100])),
            tooltip=["model", "degradation", "level", "unit", *_tips("top1", "top1_low", "top1_high")],
        )
        chart = (
            _lines(base, model)
            .properties(width=PANEL, height=110)
            .facet(facet=alt.Facet("degradation:N", title=None), columns=4)
            .resolve_scale(x="independent")
        )
        words = f"Top-1 in percent of each model under {family}, against the level of each degradation."
        made.append(described(f"curves-{family}", family, words, chart, table))
    return made


def accuracy(contents: Contents) -> alt.FacetChart:
    """Top-1 against the level from 0, which is clean, with its 95 % interval: a chart by itself, whose panels are
    degradations.
    """
    names = ["model", "level", "top1", "top1_low", "top1_high"]
    clean = pd.DataFrame([row.to_dict() | {"model": terminal_text(model)} for model, row in contents.clean.items()])
    pieces = []
    for (name, unit), of_kind in contents.cells.groupby(["degradation", "unit"], sort=False):
        piece = pd.concat([clean.loc[clean["model"].isin(of_kind["model"]), names], of_kind[names]])
        pieces.append(piece.assign(degradation=f"{name}, {unit}"))
    table = _percent(pd.concat(pieces, ignore_index=True), "top1", "top1_low", "top1_high")
    model = _models(contents)
    base = alt.Chart(table).encode(
        x=alt.X("level:Q", title="level", axis=alt.Axis(tickCount=4)),
        y=alt.Y("top1:Q", title="top-1 (%)", scale=alt.Scale(domain=[0, 100])),
        tooltip=["model", "degradation", "level", *_tips("top1", "top1_low", "top1_high")],
    )
    shade = _models(contents, legend=False)["color"]
    band = base.mark_area(opacity=0.15).encode(y="top1_low:Q", y2="top1_high:Q", color=shade)
    layers = (_lines(base, model) + band).properties(width=PANEL, height=110)
    panels = alt.Facet("degradation:N", title=None, sort=list(table["degradation"].unique()))
    chart: alt.FacetChart = layers.facet(facet=panels, columns=min(3, len(pieces))).resolve_scale(x="independent")
    return chart


def profiles(contents: Contents) -> Chart | None:
    """Centred alignment of the mean patch token along the layers."""
    words = (
        "Directional alignment of clean and degraded images, the mean patch token about its mean over images, along "
        "the layers of each model: the mean over the cells of each family. 1 is no change of direction."
    )
    title = "Alignment along the layers"
    return _along_layers(contents, "alignment_centered", "profiles", title, "alignment, centred", words)


def added_profiles(contents: Contents) -> list[Chart]:
    """The same of each indicator that packages added to the run."""
    made = []
    for i, name in enumerate(sorted(set(contents.indicators["indicator"]) - set(BUILT_IN))):
        shown = terminal_text(name)
        words = f"{shown} of the mean patch token, along the layers of each model: the mean over the cells of a family."
        made.append(_along_layers(contents, name, f"added-{i}", f"{shown} along the layers", shown, words))
    return [chart for chart in made if chart is not None]


def _along_layers(contents: Contents, indicator: str, name: str, title: str, what: str, words: str) -> Chart | None:
    """An ``indicator`` of the mean patch token along the layers; ``what`` is what the axis is called."""
    known = contents.indicators
    known = known[(known["indicator"] == indicator) & (known["token"] == "mean_patch")]
    if known.empty:
        return None
    table = _means(known, "family", "model", "layer")
    model = _models(contents)
    base = alt.Chart(table).encode(
        x=alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("value:Q", title=what),
        tooltip=["model", "family", "layer", *_tips("value", digits=3)],
    )
    layers = _lines(base, model).properties(width=PANEL, height=130)
    chart = layers.facet(facet=alt.Facet("family:N", title=None), columns=4)
    return described(name, title, words, chart, table)


def retention(contents: Contents) -> Chart | None:
    """Adjusted retention of each head of each block."""
    known = contents.indicators
    known = known[
        (known["indicator"] == "retention_adjusted") & (known["token"] == "mean_patch") & known["head"].notna()
    ]
    if known.empty:
        return None
    table = _means(known, "model", "layer", "head")
    table["head"] = table["head"].astype(int)
    chart = (
        alt.Chart(table)
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="block", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("head:O", title="head"),
            color=alt.Color(
                "value:Q", scale=alt.Scale(scheme="cividis"), legend=alt.Legend(title="retention", orient="bottom")
            ),
            tooltip=["model", "layer", "head", *_tips("value", digits=3)],
        )
        .properties(width=PANEL, height=110)
        .facet(facet=alt.Facet("model:N", title=None, sort=_names(contents)), columns=4)
    )
    words = (
        "Retention of the active features of each head of each block, adjusted for chance, the mean over all degraded "
        "cells of a model: 1 is all, 0 what chance keeps."
    )
    return described("retention", "What each head retains", words, chart, table)


def attention(contents: Contents) -> Chart | None:
    """How far the heads of each block look, clean."""
    known = contents.inside
    known = known[(known["indicator"] == "attention_distance_ratio") & (known["family"] == "clean")]
    if known.empty:
        return None
    table = _means(known, "model", "layer")
    model = _models(contents)
    base = alt.Chart(table).encode(
        x=alt.X("layer:Q", title="block", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("value:Q", title="of uniform attention", scale=alt.Scale(zero=False)),
        tooltip=["model", "layer", *_tips("value", digits=3)],
    )
    chart = _lines(base, model)
    words = (
        "The mean distance that the heads of each block attend over in clean images, over that of uniform attention."
    )
    return described("attention", "Attention distance", words, chart.properties(width=420, height=200), table)


def scatter(contents: Contents) -> Chart | None:
    """What indicators say of a cell against what it keeps of the clean accuracy."""
    names = {"alignment_centered_mean_patch": "alignment, centred", "retention_adjusted": "retention, adjusted"}
    frame = contents.cells[["model", "family", "condition", "retained", *names]].rename(columns=names)
    table = frame.melt(["model", "family", "condition", "retained"], var_name="indicator", value_name="value").dropna()
    if table.empty:
        return None
    families = list(contents.leaderboard.families)
    colour = alt.Color(
        "family:N",
        scale=alt.Scale(domain=families, range=[COLOURS[i % len(COLOURS)] for i in range(len(families))]),
        legend=alt.Legend(orient="bottom", title=None),
    )
    chart = (
        alt.Chart(table)
        .mark_point(size=30, opacity=0.8)
        .encode(
            x=alt.X("value:Q", title=None),
            y=alt.Y("retained:Q", title="top-1 / clean top-1"),
            color=colour,
            shape=_models(contents, legend=False)["shape"],
            tooltip=["model", "condition", "indicator", *_tips("value", "retained", digits=3)],
        )
        .properties(width=320, height=240)
        .facet(facet=alt.Facet("indicator:N", title=None), columns=2)
        .resolve_scale(x="independent")
    )
    words = "Each cell by an indicator at the last block and by the share of the clean top-1 that it keeps."
    return described("scatter", "Indicators and accuracy", words, chart, table)


def _names(contents: Contents) -> list[str]:
    """Models as they are shown, best first."""
    return [*map(terminal_text, contents.models)]


def _tips(*names: str, digits: int = 1) -> list[Any]:
    return [alt.Tooltip(f"{name}:Q", format=f".{digits}f") for name in names]


def _means(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The mean value of each group, in the order in which they come."""
    return table.groupby([*names], sort=False)["value"].mean().reset_index()


def _percent(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    return table.assign(**{name: 100 * table[name] for name in names if name in table})
