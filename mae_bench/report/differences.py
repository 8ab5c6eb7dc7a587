"""The page of a paired comparison: one file that needs no network, with every number behind its charts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from mae_bench.cells import Level
from mae_bench.markup import terminal_text
from mae_bench.paired_comparison import OVERALL, PairedComparison
from mae_bench.report.charts import COLOURS, PANEL, TEXT, Chart, described, keys
from mae_bench.report.page import Table, rendered
from mae_bench.store import write_atomically

OUTCOMES = ("B better", "may be chance", "B worse")
"""What an interval says by itself, before anything is corrected for how many there are."""


def write_differences(found: PairedComparison, place: Path) -> None:
    """Write the page of what was ``found`` to ``place``.

    Raises:
        ReportError: a chart cannot be drawn.
        StoreError: the page cannot be written.
    """
    write_atomically(place, page(found).encode())


def page(found: PairedComparison) -> str:
    """The HTML of a comparison. Whatever was named by others is text in it."""
    drawn = [chart for chart in (families(found), *levels(found)) if chart is not None]
    order = {"worse": 0, "better": 1}
    cells = sorted(found.cells, key=lambda cell: (order.get(cell.judgement, 2), -abs(cell.difference)))
    shifts = sorted(found.shifts, key=lambda moved: -abs(moved[1].difference))
    return rendered(
        "differences.html.jinja",
        drawn,
        {},
        found=found,
        answer=found.answer,
        where=_where(found),
        levels=[chart for chart in drawn if chart.name != "families"],
        means=Table("means", "Families, and what they amount to", found.mean_header, found.mean_lines(found.means)),
        cells=Table("differences", "Every cell, the worst first", found.cell_header, found.cell_lines(cells)),
        shifts=Table(
            "shifts",
            "Indicators that moved, the most first",
            ("model", *found.shift_header[1:]),
            found.shift_lines(shifts),
        ),
        incomparable=Table(
            "incomparable",
            "Cells that both sides have and that could not be compared",
            ("model", *found.incomparable_header[1:]),
            found.incomparable_lines(found.incomparable),
        ),
    )


def _where(found: PairedComparison) -> str:
    """The cell that loses most and the one that gains most."""
    said = []
    for judgement, words in (("worse", "Most is lost"), ("better", "Most is gained")):
        cell = next((cell for cell in found.notable if cell.judgement == judgement), None)
        if cell is not None:
            model = terminal_text(str(cell.pair))
            said.append(f"{words} in {cell.condition} of {model}, {100 * cell.difference:+.1f} points.")
    return " ".join(said) or "No cell is worse, and none is better."


def families(found: PairedComparison) -> Chart | None:
    """The difference of each family with its interval, a small chart for each model."""
    lines = [
        {
            "model": "all models" if one.pair is None else terminal_text(str(one.pair)),
            "family": one.family,
            "difference": 100 * one.difference,
            "low": 100 * one.low,
            "high": 100 * one.high,
            "outcome": OUTCOMES[0] if one.low > 0 else OUTCOMES[2] if one.high < 0 else OUTCOMES[1],
        }
        for one in found.means
    ]
    if not lines:
        return None
    table = pd.DataFrame(lines)
    names = list(dict.fromkeys(table["model"]))
    order = [*dict.fromkeys(one.family for one in found.means if one.family != OVERALL), OVERALL]
    key = alt.Legend(orient="bottom", title=None)
    base = alt.Chart(table).encode(
        y=alt.Y("family:N", sort=order, title=None),
        color=alt.Color(
            "outcome:N",
            scale=alt.Scale(domain=[*OUTCOMES], range=[COLOURS[0], COLOURS[7], COLOURS[1]]),
            legend=key,
        ),
    )
    none = alt.Chart(table).mark_rule(color=TEXT, opacity=0.6).encode(x=alt.datum(0))
    intervals = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="points, B less A, with 95 % intervals"), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=55, opacity=1).encode(
        x="difference:Q",
        shape=alt.Shape(
            "outcome:N",
            scale=alt.Scale(domain=[*OUTCOMES], range=["triangle-right", "circle", "triangle-left"]),
            legend=key,
        ),
    )
    one = len(names) == 1
    chart: Any = (none + intervals + points).properties(width=3 * PANEL if one else int(1.4 * PANEL))
    chart = chart.facet(facet=alt.Facet("model:N", title=None, sort=names), columns=1 if one else 3)
    words = (
        "Difference of the mean top-1 of each family in points, B less A, with 95 % intervals over images; "
        "right of 0 B is better."
    )
    return described("families", "Families", words, chart, table)


def levels(found: PairedComparison) -> list[Chart]:
    """Of each family the difference of each cell against the level, a small chart for each degradation."""
    made = []
    names = list(dict.fromkeys(terminal_text(str(cell.pair)) for cell in found.cells))
    for family in dict.fromkeys(cell.family for cell in found.cells if cell.family != "clean"):
        lines = [
            {
                "degradation": cell.condition.rsplit("-", 1)[0],
                "level": Level.parse(cell.condition.rsplit("-", 1)[1]).value,
                "model": terminal_text(str(cell.pair)),
                "difference": 100 * cell.difference,
                "low": 100 * cell.low,
                "high": 100 * cell.high,
                "verdict": cell.judgement,
            }
            for cell in found.cells
            if cell.family == family
        ]
        if not lines:
            continue
        table, model = pd.DataFrame(lines), keys(names)
        base = alt.Chart(table).encode(
            x=alt.X("level:Q", title=None, scale=alt.Scale(zero=False, padding=8), axis=alt.Axis(tickCount=4)),
            color=model["color"],
        )
        none = alt.Chart(table).mark_rule(color=TEXT, opacity=0.6).encode(y=alt.datum(0))
        value = alt.Y("difference:Q", title="points, B less A")
        drawn: Any = (
            none
            + base.mark_rule(strokeWidth=1.5, opacity=0.7).encode(y="low:Q", y2="high:Q")
            + base.mark_line(strokeWidth=1.2, opacity=0.7).encode(y=value)
            + base.mark_point(filled=True, size=35, opacity=1).encode(y=value, shape=model["shape"])
        )
        chart = (
            drawn.properties(width=PANEL, height=110)
            .facet(facet=alt.Facet("degradation:N", title=None), columns=4)
            .resolve_scale(x="independent")
        )
        words = f"Difference of top-1 in points, B less A, under {family}, against the level, with 95 % intervals."
        made.append(described(f"levels-{family}", family, words, chart, table))
    return made
