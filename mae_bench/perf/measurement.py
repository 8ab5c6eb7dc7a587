"""One number that was measured, with its noise band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mae_bench.perf.timing import Spread

FASTER, LONGER, SMALLER = "times as fast", "times as long", "times as much"
"""Units of ratios: how many times as fast ``mae_bench`` is as a peer; how many times as long, or as much, something
takes as what it is held against.
"""
RATIOS = (FASTER, LONGER, SMALLER)
RATE = "images/s"
PREDICTIONS = "predictions"
"""Unit of how many are others."""
UNITS = {
    FASTER: True,
    LONGER: False,
    SMALLER: False,
    RATE: True,
    "s": False,
    "ms": False,
    "MB": False,
    "modules": False,
    PREDICTIONS: False,
}
"""Units, and whether more of them is better."""


@dataclass(frozen=True)
class Measurement:
    """``case`` is what was done and on what, ``subject`` who did it or who it is held against. ``values`` are those of
    the rounds; ``goal`` is a key of :data:`mae_bench.perf.goals.GOALS`, ``method`` says how it was computed where there
    are several ways.
    """

    section: str
    case: str
    subject: str
    unit: str
    value: float
    low: float
    high: float
    values: tuple[float, ...] = ()
    goal: str = ""
    method: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.section, self.case, self.subject, self.unit

    @property
    def is_ratio(self) -> bool:
        return self.unit in RATIOS

    @property
    def more_is_better(self) -> bool:
        return UNITS[self.unit]

    @classmethod
    def of(cls, section: str, case: str, subject: str, unit: str, spread: Spread, goal: str = "") -> Measurement:
        return cls(section, case, subject, unit, spread.value, spread.low, spread.high, spread.values, goal)

    @classmethod
    def rate(cls, section: str, case: str, subject: str, seconds: Sequence[float], method: str = "") -> Measurement:
        """Images per second of what took so many ``seconds`` per image in each round."""
        spread = Spread.of([1 / each for each in seconds])
        return cls(section, case, subject, RATE, spread.value, spread.low, spread.high, spread.values, method=method)


@dataclass
class Findings:
    """What a section leaves: measurements, and what is to be known about them."""

    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
