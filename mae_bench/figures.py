"""Pictures of committed results, and of what degradations do to an image."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mae_bench.baseline import Baseline
from mae_bench.cells import Cell, Level
from mae_bench.degradations import DEGRADATIONS, Setting, degradation, every
from mae_bench.degradations.ladders import GRIDS, levels
from mae_bench.errors import BenchError
from mae_bench.evidence import Evidence
from mae_bench.indicators.alignment import is_constant
from mae_bench.markup import terminal_text
from mae_bench.rows import ResultRow
from mae_bench.store import write_together
from mae_bench.suites import Suite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

ARMS = ("mae_ft", "mae_probe", "mae_pretrained", "supervised", "supervised_ep", "cnn")
_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#d55e00", "#e69f00", "#666666")
"""The colours of Okabe and Ito, told apart with any colour vision."""
_DASHES = ("-", "--", "-.", "-", "--", ":")
_MARKERS = ("o", "s", "^", "D", "v", "x")
_SHOWN = ("gaussian_blur", "random_patch", "token_drop")
"""Degradations whose layers are shown: one of each kind."""


class FigureError(BenchError):
    """A picture that cannot be drawn."""


STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "svg.hashsalt": "mae_bench",
    "svg.fonttype": "none",
}
"""Of every picture."""


SCATTERED = ("alignment_mean_patch", "alignment_centered_mean_patch", "retention", "retention_adjusted", "newly_active")
"""Fields of a row that are held against its top-1."""


def _styled() -> Any:
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise FigureError('matplotlib is not installed: pip install "mae-bench[figures]"') from error
    return mpl.rc_context(STYLE)


def _panels(lines: int, columns: int, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, made without pyplot: nothing global to choose, to change or to close."""
    size = options.pop("figsize")
    with _styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        return figure, figure.subplots(lines, columns, squeeze=False, **options)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``figure`` as SVG and PNG, its labels as they are: nothing between two dollars is a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set(parse_math=False, usetex=False)
    written = {}
    with _styled():
        for kind, metadata in (("svg", {"Date": None}), ("png", None)):
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata=metadata, dpi=110)
            written[folder / f"{name}.{kind}"] = content.getvalue()
    write_together(written)
    return list(written)


def drawn(baseline: Baseline, evidence: Evidence, folder: Path) -> list[Path]:
    """Every figure that committed results hold, in ``folder``."""
    figures: dict[str, Callable[[], Figure]] = {
        "accuracy": lambda: accuracy(baseline.rows.values(), evidence),
        "indicators": lambda: indicators(baseline.rows.values(), evidence),
        "alignment": lambda: layer_profiles(evidence, "alignment_centered", "alignment, centred"),
        "separability": lambda: layer_profiles(evidence, "separability_excess", "separability over chance", clean=True),
        "retention": lambda: retention_maps(evidence),
        "attention_distance": lambda: attention_distance(evidence),
    }
    return [path for name, draw in figures.items() for path in save(draw(), folder, name)]


def style(arm: str) -> dict[str, Any]:
    i = ARMS.index(arm) if arm in ARMS else len(ARMS) - 1
    return {"color": _COLOURS[i], "linestyle": _DASHES[i], "marker": _MARKERS[i], "markersize": 4, "label": arm}


def accuracy(rows: Iterable[ResultRow], evidence: Evidence) -> Figure:
    """Top-1 against level, one panel per degradation; a line is the mean over the seeds of an arm, its band their
    range, or where there is one seed the 95 % interval over images.
    """
    rows = [row for row in rows if row.top1 is not None and not Cell.parse(f"m-{row.condition}").level.severity]
    names = [name for name in DEGRADATIONS if name != "clean" and any(row.degradation == name for row in rows)]
    if not names:
        raise FigureError("there is no degraded cell to draw: evaluate some first")
    columns = min(5, len(names))
    lines = -(-len(names) // columns)
    figure, axes = _panels(
        lines,
        columns,
        figsize=(2.6 * columns, 2.5 * lines + 0.6),
        sharey=True,
    )
    for ax, name in zip(axes.flat, names, strict=False):
        for arm in ARMS:
            _accuracy_line(ax, rows, name, arm, list(evidence.models(arm).values()))
        ax.set_title(name, fontsize=10)
        ax.set_xlabel(degradation(name).unit, fontsize=9)
        ax.set_ylim(0, 100)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("top-1 (%)")
    _legend(figure, axes.flat[0])
    note = "bands: range over training seeds; where an arm has one seed, 95 % interval over images"
    figure.suptitle(note, fontsize=9, color="#444444")
    return figure


def _accuracy_line(ax: Axes, rows: Sequence[ResultRow], name: str, arm: str, models: Sequence[str]) -> None:
    curves: dict[float, list[ResultRow]] = {}
    for row in rows:
        if row.model in models and (row.degradation == name or row.family == "clean"):
            curves.setdefault(row.level, []).append(row)
    if len(curves) < 2:
        return
    x = sorted(curves)
    rates = [[100 * (row.top1 or 0.0) for row in curves[level]] for level in x]
    single = all(len(each) == 1 for each in rates)
    low = [100 * (curves[v][0].top1_low or 0.0) if single else min(r) for v, r in zip(x, rates, strict=True)]
    high = [100 * (curves[v][0].top1_high or 0.0) if single else max(r) for v, r in zip(x, rates, strict=True)]
    ax.plot(x, [float(np.mean(each)) for each in rates], linewidth=1.5, **style(arm))
    ax.fill_between(x, low, high, color=style(arm)["color"], alpha=0.2, linewidth=0)


def indicators(rows: Iterable[ResultRow], evidence: Evidence) -> Figure:
    """Top-1 against what the last block keeps, one panel per indicator; each point is a degraded cell of one seed of an
    arm, the first.
    """
    rows = [row for row in rows if row.top1 is not None and row.family != "clean"]
    found = [name for name in SCATTERED if any(getattr(row, name) is not None for row in rows)]
    if not found:
        raise FigureError("there is no degraded cell with an indicator to draw: evaluate some first")
    figure, axes = _panels(1, len(found), figsize=(2.9 * len(found), 3.4), sharey=True)
    for ax, name in zip(axes.flat, found, strict=True):
        for arm in ARMS:
            model = next(iter(evidence.models(arm).values()), None)
            points = [
                (value, 100 * row.top1)
                for row in rows
                if row.model == model and row.top1 is not None and (value := getattr(row, name)) is not None
            ]
            if points:
                shown = {**style(arm), "linestyle": "none", "markersize": 3, "alpha": 0.7}
                ax.plot(*zip(*points, strict=True), **shown)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("mean patch, last block", fontsize=9)
        ax.set_ylim(0, 100)
    axes[0, 0].set_ylabel("top-1 (%)")
    _legend(figure, max(axes.flat, key=lambda ax: len(ax.lines)))
    return figure


def layer_profiles(evidence: Evidence, indicator: str, label: str, clean: bool = False) -> Figure:
    """``indicator`` by layer, mean patch token, one panel per condition and one line per model."""
    conditions = (["clean-0.00"] if clean else []) + _shown_conditions(evidence)
    figure, axes = _panels(
        1,
        len(conditions),
        figsize=(3.0 * len(conditions), 3.4),
        sharey=True,
    )
    for ax, condition in zip(axes[0], conditions, strict=True):
        for arm in ARMS[:5]:
            for seed, model in evidence.models(arm).items():
                layers = evidence.layers(model, condition, indicator, "mean_patch")
                if layers:
                    look = style(arm) | {"label": arm if seed == min(evidence.models(arm)) else None}
                    ax.plot(list(layers), list(layers.values()), linewidth=1.2, **look)
        ax.set_title(condition, fontsize=10)
        ax.set_xlabel("layer (0: input, last: what the head reads)", fontsize=8)
    axes[0, 0].set_ylabel(label)
    _legend(figure, axes[0, -1])
    return figure


def retention_maps(evidence: Evidence) -> Figure:
    """Adjusted retention of each head and block as heat maps: one row per arm (first seed), one column a condition."""
    arms = [arm for arm in ("mae_pretrained", "mae_ft", "supervised") if evidence.models(arm)]
    if not arms:
        raise FigureError("no model says of which arm it is: give arm= and training_seed= to @model_fixture")
    conditions = _shown_conditions(evidence)
    figure, axes = _panels(
        len(arms), len(conditions), figsize=(3.0 * len(conditions) + 0.8, 2.1 * len(arms) + 0.4),
    )  # fmt: skip
    image = None
    for i, arm in enumerate(arms):
        model = next(iter(evidence.models(arm).values()))
        for j, condition in enumerate(conditions):
            ax = axes[i, j]
            heads = evidence.heads(model, condition, "retention_adjusted", "mean_patch")
            ax.set_title(f"{arm}, {condition}", fontsize=9)
            ax.grid(visible=False)
            if not heads:
                ax.text(0.5, 0.5, "not measured", ha="center", va="center", transform=ax.transAxes)
                continue
            table = np.full((max(h for _, h in heads) + 1, max(b for b, _ in heads)), np.nan)
            for (block, head), value in heads.items():
                table[head, block - 1] = value
            image = ax.imshow(table, vmin=0, vmax=1, cmap="cividis", aspect="auto")
            ax.set_xticks(range(table.shape[1]), range(1, table.shape[1] + 1))
            ax.set_yticks(range(table.shape[0]))
            ax.set_xlabel("block", fontsize=9)
            ax.set_ylabel("head", fontsize=9)
            for (block, head), value in heads.items():
                colour = "white" if value < 0.5 else "black"
                ax.text(block - 1, head, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    if image is not None:
        figure.colorbar(image, ax=axes, label="retention, adjusted (1: all kept)", shrink=0.8)
    return figure


def attention_distance(evidence: Evidence) -> Figure:
    """Attention distance of each head by block on clean images, one panel per arm, in units of uniform attention."""
    arms = [arm for arm in ("mae_pretrained", "mae_ft", "supervised", "supervised_ep") if evidence.models(arm)]
    if not arms:
        raise FigureError("no model says of which arm it is: give arm= and training_seed= to @model_fixture")
    figure, axes = _panels(
        1,
        len(arms),
        figsize=(2.9 * len(arms), 3.2),
        sharey=True,
    )
    for ax, arm in zip(axes[0], arms, strict=True):
        look = style(arm)
        for shift, (seed, model) in enumerate(evidence.models(arm).items()):
            heads = evidence.heads(model, "clean-0.00", "attention_distance_ratio", "patch")
            place = [block + 0.12 * shift for block, _ in heads]
            ax.scatter(
                place, list(heads.values()), s=22, color=look["color"], marker=_MARKERS[shift % 6], label=f"seed {seed}"
            )
        ax.axhline(1, color="#444444", linewidth=0.8)
        ax.set_title(arm, fontsize=10)
        ax.set_xlabel("block")
        ax.legend(fontsize=8, frameon=False)
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low, high + 0.25 * (high - low))  # room for the legends
    axes[0, 0].set_ylabel("attention distance / uniform")
    return figure


def class_map(tokens: dict[int, Tensor], labels: np.ndarray, classes: Sequence[str], model: str, token: str) -> Figure:
    """The two leading principal components of a token (N, D) by layer, coloured by class; layers where it is the same
    for every image are left out.
    """
    tokens = {layer: values for layer, values in tokens.items() if not is_constant(values)}
    figure, axes = _panels(
        2,
        -(-len(tokens) // 2),
        figsize=(2.6 * -(-len(tokens) // 2), 5.6),
    )
    for ax, (layer, values) in zip(axes.flat, tokens.items(), strict=False):
        centred = values.double() - values.double().mean(0)
        plane = (centred @ centred.svd().V[:, :2]).numpy()
        for k in range(len(classes)):
            mine = plane[labels == k]
            look = {"color": _COLOURS[k % 6], "marker": _MARKERS[(k + k // 6) % 6]}
            ax.scatter(*mine.T, s=7, linewidth=0.8, rasterized=True, **look)
        ax.set_title(f"layer {layer}", fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
    for ax in axes.flat[len(tokens) :]:
        ax.set_visible(False)
    figure.suptitle(f"{terminal_text(model)}: principal components of {token}", fontsize=11)
    # of labels that marks have of their own, a legend leaves out those that begin with an underscore
    marks, names = list(axes.flat[0].collections), list(map(terminal_text, classes))
    figure.legend(marks, names, loc="outside lower center", ncols=5, fontsize=8, frameon=False, markerscale=2)
    return figure


def degradation_strip(suite: Suite, position: int = 0, seed: int = 0) -> Figure:
    """The image at ``position`` of ``suite`` under every degradation of pixels, at each level of its ladder."""
    import torch

    image = suite.read(position)
    pixels = torch.from_numpy(np.array(image)).float() / 255
    pixels = pixels[None, None] if pixels.ndim == 2 else pixels.movedim(-1, 0)[None]
    key = torch.from_numpy(suite.manifest.keys[position : position + 1])
    setting = Setting(key, seed, suite.entry.reference_size, suite.mean)
    size = suite.entry.reference_size
    kinds = [kind for kind in every() if kind.family != "clean" and levels(kind, suite.entry, full=True)]
    rungs = max(len(levels(kind, suite.entry, full=True)) for kind in kinds)
    figure, axes = _panels(
        len(kinds),
        rungs + 1,
        figsize=(1.15 * (rungs + 1) + 1.6, 1.25 * len(kinds)),
    )
    for row, kind in zip(axes, kinds, strict=True):
        ladder = (Level(0.0), *levels(kind, suite.entry, full=True))
        for ax, level in zip(row, ladder, strict=False):
            degraded = pixels if level.value == 0 else kind.apply(pixels, level, setting)
            shown = _without_tokens(pixels, level, setting, size) if kind.on_tokens else degraded
            _show(ax, shown[0])
            ax.set_title(f"{level.value:g}", fontsize=7, pad=2)
        row[0].set_ylabel(f"{kind.name}\n({kind.unit})", rotation=0, ha="right", va="center", fontsize=8)
    return figure


def _without_tokens(pixels: Tensor, level: Level, setting: Setting, size: int) -> Tensor:
    """What is left of an image whose tokens are dropped: the others are not painted over, they are not there."""
    from mae_bench.degradations.occlusion import hidden_tokens

    if level.value == 0:
        return pixels
    grid = GRIDS[size]
    cells = hidden_tokens(level.value, setting, (grid, grid)).reshape(grid, grid)
    rows, columns = ((np.arange(side) * grid) // side for side in pixels.shape[-2:])
    mask = cells[rows][:, columns]
    return pixels.where(~mask, float("nan"))


def _show(ax: Axes, image: Tensor) -> None:
    import matplotlib as mpl

    values = np.ma.masked_invalid(image.movedim(0, -1).squeeze(-1).numpy())
    grey = mpl.colormaps["gray"].with_extremes(bad="#f2d8c8")
    ax.imshow(values, cmap=grey, vmin=0, vmax=1, interpolation="nearest")
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.set_yticks([])


def _shown_conditions(evidence: Evidence) -> list[str]:
    """Of each of the shown degradations the middle one of the conditions that representations were made of."""
    have = {c for of_model in evidence.values.values() for c, named in of_model.items() if named}
    found = []
    for name in _SHOWN:
        mine = sorted((c for c in have if c.rsplit("-", 1)[0] == name), key=lambda c: Level.parse(c.rsplit("-", 1)[1]))
        if mine:
            found.append(mine[len(mine) // 2])
    if not found:
        raise FigureError(f"the evidence holds none of {', '.join(_SHOWN)}: make it again with mae-bench claims")
    return found


def _legend(figure: Figure, ax: Axes) -> None:
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names) or 1, fontsize=9, frameon=False)
