"""How near the corruptions are to the published ones is held to bounds, as measured now and on the committed page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from mae_bench.degradations import blur, noise, weather
from mae_bench.degradations.severity import SEVERITIES, SeverityTable
from references import fidelity
from references.fidelity import (
    DISTANCES,
    ERRORS,
    NAMES,
    SEVERITY,
    SIDES,
    SMALLEST,
    TEXTURES,
    other_draws,
    photographs,
    same_draws,
    texture_distance,
)

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = Path(__file__).parent.parent.parent / "docs/fidelity.md"
RANDOM = [name for name in NAMES if fidelity.is_random(name) and name != "frost"]
QUICK = (1, 3, 5)


@dataclass(frozen=True)
class Bound:
    """The greatest mean error, in steps of 8 bits, inside and at the border: of results given the same draws, and of
    what is kept of them.
    """

    error: float = 0.001
    kept: float = 0.03


BOUNDS = {name: Bound() for name in NAMES} | {
    # a single value of another draw is up to 255 steps off
    "impulse_noise": Bound(error=0.01),
    "snow": Bound(error=0.01),
    "glass_blur": Bound(error=0.005, kept=0.05),
    # cut to 8 bits by ImageMagick
    "motion_blur": Bound(error=0.51, kept=0.1),
    # OpenCV's places of 1/32 pixel
    "elastic_transform": Bound(error=0.15, kept=0.8),
    # whole numbers but for their last bits
    "defocus_blur": Bound(kept=0.25),
    "brightness": Bound(kept=0.3),
    "saturate": Bound(kept=1.0),
}

SIGMAS = 5.0
"""Standard errors by which the power in no octave may be off."""

LOOK = {"mean": 4.0, "quantile": 12.0, "correlation": 0.1, "deviation": 1.12, "octave": 1.16}
"""Of frost's textures: largest differences, and ratios or their inverse."""
