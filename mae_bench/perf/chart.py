"""A record as a picture: loops beside the forward pass, blurs by sigma, corruptions by peer, memory by images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mae_bench.figures import STYLE
from mae_bench.perf.goals import GOALS
from mae_bench.perf.measurement import FASTER, LONGER, RATE, Measurement
from mae_bench.perf.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, GOAL = "#0072b2", "#d55e00"
PEERS = ("#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#666666")
"""The colours of Okabe and Ito, told apart with any colour vision."""
LEAST = 0.8
"""Multiples of a forward pass at which the axis of loops begins: what takes a small part of one is no loop."""


def chart(record: Record) -> tuple[bytes, str]:
    """The picture as SVG, or empty with the reason."""
    found = record.measurements
    blurs = [m for m in found if m.section == "degradations" and m.case.startswith("gaussian_blur-")]
    beside_peers = {m.case for m in blurs if m.unit == FASTER and m.case.endswith("3x224x224")}
    panels = [
        (draw, shown)
        for draw, shown in (
            (_engine, [m for m in found if m.section == "engine" and m.unit == LONGER and m.value > LEAST]),
            (_blur, [m for m in blurs if m.unit == RATE and m.case in beside_peers and m.subject != "a copy"]),
            (_corruptions, [m for m in found if m.section == "corruptions" and m.unit == FASTER]),
            (_memory, [m for m in found if m.section == "memory" and m.case.endswith(" images")]),
        )
        if shown
    ]
    if not panels:
        return b"", "None of what was measured has a picture."
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return b"", 'There is no chart, since matplotlib was absent: pip install "mae-bench[figures]".'
    with mpl.rc_context({**STYLE, "font.size": 9}):
        lines = -(-len(panels) // 2)
        columns = min(2, len(panels))
        figure = Figure(figsize=(6.6 * columns, 4.2 * lines), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False)
        for ax, (draw, shown) in zip(axes.flat, panels, strict=False):
            draw(ax, shown, record.device)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue(), ""


def _bars(
    ax: Axes, measured: Sequence[Measurement], names: Sequence[str], bound: float, colours: Sequence[str]
) -> None:
    """Horizontal bars with their noise bands, from above, and the goal as a line."""
    places = range(len(measured))
    values = [one.value for one in measured]
    errors = [[one.value - one.low for one in measured], [one.high - one.value for one in measured]]
    ax.barh(places, values, xerr=errors, color=colours, height=0.7, error_kw={"linewidth": 1, "capsize": 2})
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    ax.axvline(bound, color=GOAL, linewidth=1.2, label=f"goal: {bound:g}")
    for place, one in zip(places, measured, strict=True):
        ax.annotate(f"{one.value:.3g}", (one.high, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    ax.grid(visible=False, axis="y")


def _engine(ax: Axes, measured: Sequence[Measurement], device: str) -> None:
    """Loops of the case that has most of them, at 224 pixels where there are such."""
    cases = [m.case for m in measured]
    case = max(cases, key=lambda name: (cases.count(name), "224" in name))
    shown = [m for m in measured if m.case == case]
    colours = [OURS if m.subject.startswith("a cell") else PEERS[4] for m in shown]
    goal = GOALS["pooled cuda" if device == "cuda" else "pooled float32"]
    _bars(ax, shown, [m.subject for m in shown], goal.bound, colours)
    ax.set_xlim(LEAST, 1.12 * max(m.high for m in shown))
    ax.set_xlabel("multiples of the pure forward pass")
    ax.set_title(case, fontsize=10)
    ax.legend(frameon=False, loc="lower right")


def _blur(ax: Axes, rates: Sequence[Measurement], _: str) -> None:
    """Images per second by sigma, ours and the peers that blur with the same kernel."""
    for subject, colour in zip(dict.fromkeys(m.subject for m in rates), (OURS, *PEERS), strict=False):
        mine = [m for m in rates if m.subject == subject]
        sigmas = [float(m.case.partition("-")[2].partition(",")[0]) for m in mine]
        errors = [[m.value - m.low for m in mine], [m.high - m.value for m in mine]]
        ax.errorbar(sigmas, [m.value for m in mine], errors, color=colour, marker="o", markersize=4, label=subject)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("sigma (px)")
    ax.set_ylabel("images per second")
    ax.set_title("exact Gaussian blur, 224 px", fontsize=10)
    ax.legend(frameon=False)


def _corruptions(ax: Axes, measured: Sequence[Measurement], _: str) -> None:
    """How many times as fast each corruption is, and all together."""
    colours = [OURS if m.goal == "each corruption" else PEERS[0] for m in measured]
    _bars(ax, measured, [m.case for m in measured], GOALS["each corruption"].bound, colours)
    ax.set_xscale("log")
    ax.set_xlim(right=1.6 * max(m.high for m in measured))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("times as fast as imagecorruptions")
    ax.set_title("ImageNet-C's corruptions, 224 px", fontsize=10)
    ax.legend(frameon=False, loc="lower right")


def _memory(ax: Axes, measured: Sequence[Measurement], _: str) -> None:
    """Megabytes by the number of images."""
    images = [int(m.case.partition(" ")[0].replace(",", "")) for m in measured]
    ax.plot(images, [m.value for m in measured], color=OURS, marker="o")
    bound = GOALS["memory"].bound
    ax.axhline(bound * measured[0].value, color=GOAL, linewidth=1.2, label=f"goal: {bound:g} times the first")
    ax.set_ylim(0, 1.25 * max(m.value for m in measured))
    ax.set_xlabel("images")
    ax.set_ylabel("MB of anonymous pages")
    ax.set_title("resident memory", fontsize=10)
    ax.legend(frameon=False, loc="lower right")
