"""A grid on many machines that fail now and then, as a discrete-event simulation: who does what until when, and what is
done again.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Work:
    """A group of cells for one node at a time, in seconds: what comes before its first cell (``start``: building the
    model, its clean pass), and ``cells`` one after another, each of which is kept once it is finished.
    """

    start: float
    cells: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return self.start + math.fsum(self.cells)


@dataclass(frozen=True)
class Failures:
    """A node fails after exponentially distributed hours of mean ``mtbf_hours``, and is back after ``repair_hours``.
    The group that it held is then taken by whichever node is free first, before what nobody has begun.
    """

    mtbf_hours: float = math.inf
    repair_hours: float = 0.5


@dataclass(frozen=True)
class Course:
    """What happened. Seconds of all nodes together: ``cells`` is what finished cells took, ``starts`` what came before
    first cells, ``lost`` what was done of cells, and before them, when a node failed. ``makespan`` is when the last
    cell was finished.
    """

    nodes: int
    makespan: float
    cells: float
    starts: float
    lost: float
    failures: int

    @property
    def ideal(self) -> float:
        """Makespan where nothing but cells takes time, and all nodes are busy to the end."""
        return self.cells / self.nodes


def simulated(groups: Sequence[Work], nodes: int, failures: Failures | None = None, seed: int = 0) -> Course:
    """The course of ``groups``, begun in their order, on ``nodes``; the same for equal arguments.

    >>> simulated([Work(1.0, (2.0, 2.0)), Work(1.0, (2.0,)), Work(0.0, (1.0,))], nodes=2)
    Course(nodes=2, makespan=5.0, cells=7.0, starts=2.0, lost=0.0, failures=0)
    """
    failures = failures or Failures()
    generator = np.random.default_rng(seed)
    free = [(0.0, node) for node in range(nodes)]  # a heap: when each node takes its next group
    left: list[tuple[float, int, int]] = []  # a heap: since when which group waits again, and its first unfinished cell
    waiting = 0  # the first group that nobody has begun
    makespan = starts = lost = 0.0
    failed = 0
    while waiting < len(groups) or left:
        now, node = heapq.heappop(free)
        if left and left[0][0] <= now:
            _, number, cell = heapq.heappop(left)
        elif waiting < len(groups):
            number, cell = waiting, 0
            waiting += 1
        else:  # nothing can be taken up before a group has lost its node
            heapq.heappush(free, (left[0][0], node))
            continue
        group = groups[number]
        lives = _lifetime(failures, generator)
        began = group.start <= lives
        end, done = (group.start if began else 0.0), cell
        while began and done < len(group.cells) and end + group.cells[done] <= lives:
            end += group.cells[done]
            done += 1
        if done == len(group.cells):
            makespan = max(makespan, now + end)
            starts += group.start
            heapq.heappush(free, (now + end, node))
            continue
        failed += 1
        starts += group.start if began else 0.0
        lost += lives - end
        heapq.heappush(left, (now + lives, number, done))
        heapq.heappush(free, (now + lives + 3600 * failures.repair_hours, node))
    cells = math.fsum(seconds for group in groups for seconds in group.cells)
    return Course(nodes, makespan, cells, starts, lost, failed)


def _lifetime(failures: Failures, generator: np.random.Generator) -> float:
    """Seconds until a node fails, from any moment on: the exponential distribution has no memory."""
    if math.isinf(failures.mtbf_hours):
        return math.inf
    return float(generator.exponential(3600 * failures.mtbf_hours))
