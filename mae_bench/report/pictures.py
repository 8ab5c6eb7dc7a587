"""Images of a suite in a report: one at every level of every degradation, and those that are lost most often."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mae_bench.cells import Level
from mae_bench.errors import BenchError
from mae_bench.images import View
from mae_bench.report.contents import Contents
from mae_bench.rows import ResultRow
from mae_bench.store import cell_of
from mae_bench.suites import suite_entry

if TYPE_CHECKING:
    from torch import Tensor

    from mae_bench.suites import Suite

SIDE = 96
"""Pixels of the longer side of a picture, at most."""
_VIEW = re.compile(r"(\d+)x(\d+) (\S+) (\S+) ([\d.]+)")


@dataclass(frozen=True)
class Pictures:
    """Pictures as ``data:`` addresses. ``gallery`` maps a degradation to its levels and what the first image of the
    suite looks like at each, ``worst`` the position of an image to it; ``missing`` says why there are none.
    """

    gallery: Mapping[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    worst: Mapping[int, str] = field(default_factory=dict)
    view: str = ""
    missing: str = ""

    @classmethod
    def of(cls, contents: Contents, data: Path | None) -> Pictures:
        """Those of a run, as the best of its models saw them; none where the images are not at hand."""
        row = contents.clean[contents.models[0]]
        try:
            view = parsed_view(row.view)
            suite = suite_entry(row.suite).load(data or _given(contents))
            if suite.manifest_hash != row.manifest_hash:
                raise BenchError("the images at hand are others than those of the run")
            see = view.transform()
            worst = {i: _address(see(suite.read(i))) for i in contents.worst_images}
            return cls(_gallery(contents, suite, row, see(suite.read(0))), worst, row.view)
        except (BenchError, ValueError) as error:
            return cls(missing=f"No images are shown: {error}.")


def _given(contents: Contents) -> Path | None:
    data = contents.manifest.get("data")
    return Path(data) if isinstance(data, str) else None


def parsed_view(text: str) -> View:
    """The view that is written as ``text``.

    Raises:
        ValueError: it is none.

    >>> parsed_view("224x224 bicubic center 0.9")
    View(height=224, width=224, interpolation='bicubic', crop_pct=0.9, crop_mode='center', before=None)
    """
    view = None
    for part in text.split(", then "):
        found = _VIEW.fullmatch(part)
        if found is None:
            raise ValueError(f"{text!r} is no view")
        height, width, interpolation, mode, share = found.groups()
        view = View(int(height), int(width), interpolation, float(share), mode, view)
    assert view is not None
    return view


def _gallery(
    contents: Contents, suite: Suite, row: ResultRow, seen: np.ndarray
) -> dict[tuple[str, str], dict[str, str]]:
    """By family and degradation the levels of the run, with the picture at each. Degradations that look at more than
    the pixels of an image, or that take tokens, are left out.
    """
    import torch

    from mae_bench.degradations import Setting, degradation

    pixels = torch.from_numpy(np.array(seen))[None].float() / 255
    keys = torch.from_numpy(suite.manifest.keys[:1])
    setting = Setting(keys, row.seed, suite.entry.reference_size, suite.mean)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for cell in sorted({(r.family, r.degradation, cell_of(r).level) for r in contents.rows if r.family != "clean"}):
        family, name, level = cell
        kind = degradation(name, level.severity)
        if kind.on_tokens or kind.by_salience or (suite.stored is not None and level.severity):
            continue
        shown = found.setdefault((family, name), {str(Level(0.0)): _address(seen)})
        shown[str(level)] = _address(_levels(kind.apply(pixels, level, setting)[0]))
    return found


def _levels(image: Tensor) -> np.ndarray:
    levels: np.ndarray = (image * 255).round().byte().numpy()
    return levels


def _address(pixels: np.ndarray) -> str:
    """``pixels`` (C, H, W) uint8 as a picture: small ones as they are, larger ones as a photograph is kept."""
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small = max(picture.size) < SIDE
    picture.save(file, "PNG", optimize=True) if small else picture.save(file, "WEBP", quality=75)
    kind = "png" if small else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
