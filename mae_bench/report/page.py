"""A report as one page: a template filled with tables, charts and pictures, and the scripts and styles it needs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from mae_bench import cached
from mae_bench.atomic import written_whole
from mae_bench.cells import Cell
from mae_bench.images import cache_folder
from mae_bench.machine import version_of
from mae_bench.markup import terminal_text
from mae_bench.regression import Judgement
from mae_bench.report.charts import Chart, charts
from mae_bench.report.contents import Contents
from mae_bench.report.pictures import Pictures
from mae_bench.store import write_atomically

INSIDE = ("profiles", "added-", "retention", "attention", "scatter")
"""Names, or their beginnings, of charts about what happens inside."""
SHOWN_AT_MOST = 200
"""Lines of a table of verdicts."""


@dataclass(frozen=True)
class Table:
    """``lines`` of text under ``header``; ``name`` is that of the element, ``caption`` what it is of."""

    name: str
    caption: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]


def write_report(contents: Contents, place: Path, data: Path | None = None) -> None:
    """Write the report of ``contents`` to ``place``. ``data`` is where the images of the suite lie, by default where
    they lay when it ran.

    Raises:
        ReportError: a chart cannot be drawn.
        StoreError: the report cannot be written.
    """
    write_atomically(place, page(contents, Pictures.of(contents, data)).encode())


def page(contents: Contents, pictures: Pictures) -> str:
    """The HTML of a report. Whatever was named by others is text in it."""
    drawn = charts(contents)
    return rendered(
        "page.html.jinja",
        drawn,
        {chart.name: chart.specification for chart in drawn},
        contents=contents,
        pictures=pictures,
        answers=answers(contents),
        leaderboard=Table(
            "leaderboard", contents.leaderboard.caption, contents.leaderboard.header, contents.leaderboard.cells()
        ),
        breaking=breaking_table(contents),
        changes=changes_table(contents),
        classes=classes_table(contents),
        worst=[_worst(contents, pictures, i) for i in contents.worst_images],
        curves=[chart for chart in drawn if chart.name.startswith("curves-")],
        inside=[chart.name for chart in drawn if chart.name.startswith(INSIDE)],
        manifest=json.dumps(contents.manifest, indent=2),
        vega=Markup(_vega()),
    )


def rendered(template: str, drawn: Sequence[Chart], specifications: Mapping[str, Any], **values: object) -> str:
    """A ``template`` of this folder filled with ``values``, which are text in it, and with the charts ``drawn``: with
    their ``specifications`` a reader's browser draws them anew, so that they say what is under the pointer.
    """
    environment = Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["seen"] = lambda text: terminal_text(str(text))
    return environment.get_template(template).render(
        charts={chart.name: chart for chart in drawn},
        behind={chart.name: behind(chart) for chart in drawn},
        svg={chart.name: Markup(chart.to_svg()) for chart in drawn},
        specifications=specifications,
        style=Markup(_file("page.css")),
        script=Markup(_file("page.js")),
        **values,
    )


def _file(name: str) -> str:
    return files("mae_bench.report").joinpath(name).read_text()


def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script. To put it together takes seconds, so it is kept."""
    import vl_convert

    identity = f"vega of vl-convert {version_of('vl-convert-python')}"
    path = cache_folder() / f"{cached.key(identity)}.js"
    content = cached.kept(path, identity)
    if content is None:
        # a page ends a script at this, wherever it stands
        content = vl_convert.javascript_bundle().replace("</script", "<\\/script").encode()  # type: ignore[call-arg]
        with suppress(OSError):  # where nothing can be kept it is put together every time
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                file.write(cached.stamped(content, identity))
    return content.decode()


# --------------------------------------------------------------------------- what is said


def answers(contents: Contents) -> list[tuple[str, str]]:
    """The three questions, each with what the run says of it."""
    return [
        ("Which model should I trust?", _leader(contents)),
        ("Where does it break?", _breaks(contents)),
        ("Is today's change real?", _change(contents)),
    ]


def _leader(contents: Contents) -> str:
    standings = contents.leaderboard.standings
    first = standings[0]
    name = terminal_text(first.model)
    if first.score is None or first.score_interval is None:
        best = f"By clean top-1 {name} leads, with {_percent(first.clean[0])} %."
        return f"{best} No model has a whole family of degradations, so none is ranked by robustness."
    low, high = first.score_interval
    said = f"{name} has the highest score, {_percent(first.score)} % ({_percent(low)} to {_percent(high)})."
    tied = [terminal_text(s.model) for s in standings[1:] if s.tied]
    if tied:
        return f"{said} Its lead over {_listed(tied)} may be chance."
    second = next((s for s in standings[1:] if s.score is not None), None)
    if second is None:
        return f"{said} No other model is ranked."
    points = 100 * (first.score - (second.score or 0))
    return (
        f"{said} It leads {terminal_text(second.model)}, the next, by {points:.1f} points, which is more than chance."
    )


def _breaks(contents: Contents) -> str:
    mine = [point for point in contents.breaking_points if point.model == contents.models[0]]
    if not mine:
        return "No degraded cell of the leading model is finished."
    places = [f"{point.degradation} ({point.unit}: {point.level:g}) leaves {100 * point.kept:.0f} %" for point in mine]
    return f"Of the clean top-1 of {terminal_text(contents.models[0])}, {_listed(places[:3])}."


def _change(contents: Contents) -> str:
    comparison = contents.comparison
    if comparison is None or not (comparison.verdicts or comparison.incomparable):
        return "The run was not compared with a baseline."
    counts = Counter(v.judgement for v in comparison.verdicts)
    said = _listed([f"{counts[judgement]} {judgement}" for judgement in get_args(Judgement) if counts[judgement]])
    left = len([one for one in comparison.incomparable if not one.new])
    more = f" {left} cells could not be compared." if left else ""
    return f"Of {len(comparison.verdicts)} cells that were compared with the baseline: {said}.{more}"


def _listed(words: Iterable[str]) -> str:
    *most, last = [*words] or [""]
    return f"{', '.join(most)} and {last}" if most else last


# --------------------------------------------------------------------------- tables


def breaking_table(contents: Contents) -> Table:
    lines = [
        [
            terminal_text(point.model),
            point.family,
            point.degradation,
            f"{point.level:g}",
            terminal_text(point.unit),
            _percent(point.top1),
            f"{point.kept:.3f}",
            "beyond" if point.half is None else f"{point.half:.2f}",
        ]
        for point in contents.breaking_points
    ]
    header = ["model", "family", "degradation", "highest level", "unit", "top-1 (%)", "kept", "level at half"]
    return Table("breaking", "What each degradation leaves at its highest level, worst first", header, lines)


def changes_table(contents: Contents) -> Table | None:
    if contents.comparison is None:
        return None
    worst = get_args(Judgement)[::-1]
    verdicts = sorted(contents.comparison.verdicts, key=lambda v: (worst.index(v.judgement), -v.drop, v.cell))
    lines = [
        [
            terminal_text(Cell.parse(v.cell).model),
            Cell.parse(v.cell).condition,
            _percent(v.before),
            _percent(v.after),
            f"{100 * (v.after - v.before):+.2f}",
            str(v.lost),
            str(v.gained),
            f"{v.p_value:.2g}",
            v.judgement,
        ]
        for v in verdicts[:SHOWN_AT_MOST]
    ]
    header = ["model", "cell", "before (%)", "after (%)", "points", "lost", "gained", "p", "verdict"]
    first = f", the first {len(lines)} of {len(verdicts)}" * (len(lines) < len(verdicts))
    caption = f"Cells against the baseline, worst first{first}"
    return Table("changes", caption, header, lines)


def classes_table(contents: Contents) -> Table:
    families = contents.leaderboard.families
    lines = [
        [terminal_text(name), *(_percent(shares.get(family)) for family in families)]
        for name, shares in contents.worst_classes.items()
    ]
    header = ["class", *(f"{family} (%)" for family in families)]
    return Table(
        "classes", "Of the images that are right when clean, the share that is lost, worst first", header, lines
    )


def behind(chart: Chart) -> Table:
    """The numbers of a chart."""
    lines = [[_shown(value) for value in line] for line in chart.table.astype(object).to_numpy().tolist()]
    return Table(f"behind-{chart.name}", f"{chart.title}: the numbers", [str(name) for name in chart.table], lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.4g}"
    return terminal_text(str(value))


def _worst(contents: Contents, pictures: Pictures, position: int) -> dict[str, str]:
    lost, of = contents.lost
    label = contents.images.classes[contents.images.labels[position]]
    return {
        "id": contents.images.ids[position],
        "label": terminal_text(label),
        "lost": f"lost in {lost[position]} of {of[position]} cells",
        "picture": pictures.worst.get(position, ""),
    }


def _percent(value: float | None) -> str:
    return "-" if value is None or pd.isna(value) else f"{100 * value:.1f}"
