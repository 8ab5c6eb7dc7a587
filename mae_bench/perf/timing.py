"""Pieces of work in turns within one run, and what their noise lets be said of the ratio of two of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from scipy.stats import binom

Clock = Callable[[Callable[[], object]], float]
"""Seconds that a call takes."""

BAND = 0.9
"""Confidence of a noise band, where there are enough pairs for one."""


@dataclass(frozen=True)
class Work:
    """``do`` deals with so many ``images`` at once."""

    do: Callable[[], object]
    images: int = 1


@dataclass(frozen=True)
class Spread:
    """The median of ``values`` within the band that the median of further ones is expected in."""

    value: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises:
        ValueError: there are none.

        >>> Spread.of([1.0, 1.2, 1.1, 1.1, 1.3])
        Spread(value=1.1, low=1.0, high=1.3, values=(1.0, 1.2, 1.1, 1.1, 1.3))
        """
        if not values:
            raise ValueError("no values have no median")
        return cls(statistics.median(values), *band(values), tuple(values))


def band(values: Sequence[float]) -> tuple[float, float]:
    """The exact interval, from one of the ``values`` to another, that holds the median of what they are drawn from with
    a probability of at least :data:`BAND`, whatever the distribution (that of the sign test); of fewer than five values
    the least and the greatest.

    Up to seven values it reaches from the least to the greatest, so that the bands of n and n values drawn alike miss
    each other with a probability of 2 / binom(2n, n): 1 in 126 for five.

    >>> band([3.0, 1.0, 2.0, 5.0, 4.0]), band([3, 1, 2, 5, 4, 9, 8, 0])
    ((1.0, 5.0), (1, 8))
    """
    ordered = sorted(values)
    left_out = _left_out(len(ordered))
    return ordered[left_out], ordered[len(ordered) - 1 - left_out]


@cache
def _left_out(count: int) -> int:
    """How many of ``count`` values lie outside their band on either side."""
    outside = 0
    while binom.cdf(outside, count, 0.5) <= (1 - BAND) / 2:
        outside += 1
    return max(0, outside - 1)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """The ratios of pairs that were timed in the same rounds."""
    return Spread.of([above / below for above, below in zip(numerator, denominator, strict=True)])


def interleaved(
    work: Mapping[str, Work], clock: Clock, rounds: int, least: float = 0.0, warm_up: bool = True
) -> dict[str, tuple[float, ...]]:
    """Seconds per image of each piece of ``work`` in each round. All take their turn in every round, so that what slows
    the machine slows all, and every other round goes through them backwards.

    ``warm_up`` has each done once before, uncounted, which also tells how often it is to be done in a round to take
    ``least`` seconds there.
    """
    times = dict.fromkeys(work, 1)
    if warm_up:
        for name, piece in work.items():
            piece.do()
            once = clock(piece.do) if least else 0.0
            times[name] = max(1, round(least / once)) if once else 1
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds):
        for name in list(work)[:: -1 if turn % 2 else 1]:
            piece, again = work[name], times[name]
            seconds[name].append(clock(_repeated(piece.do, again)) / again / piece.images)
    return {name: tuple(values) for name, values in seconds.items()}


def _repeated(do: Callable[[], object], times: int) -> Callable[[], object]:
    def all_times() -> None:
        for _ in range(times):
            do()

    return all_times


def processor_seconds(do: Callable[[], object]) -> float:
    """Time that this process has the processor for, all its threads together: what others do does not count."""
    started = time.process_time()
    do()
    return time.process_time() - started


def gpu_seconds(do: Callable[[], object]) -> float:
    """Time between two events on the stream of the current CUDA device."""
    import torch

    event: Any = torch.cuda.Event
    started, ended = event(enable_timing=True), event(enable_timing=True)
    started.record()
    do()
    ended.record()
    torch.cuda.synchronize()
    return float(started.elapsed_time(ended)) / 1000
