"""Two runs of one machine: which ratios moved further than the noise of both."""

from __future__ import annotations

from dataclasses import dataclass

from mae_bench.perf import PerfError
from mae_bench.perf.measurement import Measurement
from mae_bench.perf.page import number
from mae_bench.perf.record import Record


@dataclass(frozen=True)
class Move:
    """A ratio whose bands of two runs do not meet."""

    before: Measurement
    after: Measurement

    @property
    def is_worse(self) -> bool:
        return (self.after.value < self.before.value) is self.after.more_is_better

    def __str__(self) -> str:
        before, after = (
            f"{number(one.value)} ({number(one.low)} to {number(one.high)})" for one in (self.before, self.after)
        )
        change = "worse" if self.is_worse else "better"
        one = self.after
        return f"{change}: {one.section}, {one.case}, {one.subject}: {one.unit} {before} before, {after} now"


@dataclass(frozen=True)
class Comparison:
    """The ratios that ``moved`` of so many that are ``shared``, and which ``versions`` differ, to which a move may be
    due as well as to the code.
    """

    moved: list[Move]
    shared: int
    versions: list[str]

    @property
    def is_worse(self) -> bool:
        return any(move.is_worse for move in self.moved)


def compared(before: Record, after: Record) -> Comparison:
    """Ratios alone are compared, never times.

    Raises:
        PerfError: the records are of different machines or devices, one of them is quick, or no ratio is in both.
    """
    mine, theirs = after.surroundings(), before.surroundings()
    for name in ("machine", "device", "quick"):
        if mine[name] != theirs[name]:
            raise PerfError(
                f"two runs of different {name} cannot be compared: {theirs[name]} before, {mine[name]} now; compare "
                "runs of one machine and of one kind"
            )
    known = {one.key: one for one in before.measurements if one.is_ratio}
    pairs = [(known[one.key], one) for one in after.measurements if one.is_ratio and one.key in known]
    if not pairs:
        raise PerfError("the two runs have no ratio in common: measure the same sections in both")
    versions = [
        f"{name} {theirs.get(name, 'absent')} before, {mine.get(name, 'absent')} now"
        for name in sorted(mine | theirs)
        if mine.get(name) != theirs.get(name)
    ]
    moved = [Move(*pair) for pair in pairs if apart(*pair)]
    return Comparison(moved, len(pairs), versions)


def apart(one: Measurement, other: Measurement) -> bool:
    """Whether the bands of two measurements do not meet. Of five rounds drawn alike in both runs that happens once in
    126 times, by :func:`mae_bench.perf.timing.band`.
    """
    return one.high < other.low or other.high < one.low


def to_text(comparison: Comparison) -> str:
    lines = [f"another version: {line}" for line in comparison.versions]
    lines += map(str, sorted(comparison.moved, key=lambda move: not move.is_worse))
    lines.append(
        f"{len(comparison.moved)} of {comparison.shared} ratios moved beyond the noise bands of both runs, "
        f"{sum(move.is_worse for move in comparison.moved)} of them for the worse"
    )
    return "\n".join(lines)
