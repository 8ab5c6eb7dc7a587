"""Which cells are evaluated together: wherever a model has a cell it has to be built, and the clean images seen.

What is grouped are *paths*, tuples that lead from a model down to a cell (:func:`path_of`); a shorter one is about a
whole model or family. What has the same path, such as a cell and its representation, is never parted.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mae_bench.cells import Cell
from mae_bench.degradations import degradation
from mae_bench.errors import BenchError

Path = tuple[str, ...]
"""Model, family, degradation and level, or the first of these."""


class GroupingError(BenchError):
    """A shard that there cannot be."""


@dataclass(frozen=True)
class ShardNumber:
    """Number ``number``, from 1 on, of ``count`` parts of a matrix.

    Raises:
        GroupingError: there is no such part.

    >>> str(ShardNumber.parse("2/3"))
    '2/3'
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise GroupingError(f"{self} is no shard: of N shards there are 1/N to N/N")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> ShardNumber:
        if not re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", text):
            raise GroupingError(f"{text[:80]!r} is no shard: write K/N, such as 1/8 for the first of eight")
        number, _, count = text.partition("/")
        return cls(int(number), int(count))


def path_of(cell: Cell) -> Path:
    """Where ``cell`` stands.

    Raises:
        ValueError: there is no such degradation.

    >>> path_of(Cell.parse("vit-defocus_blur-s3"))
    ('vit', 'imagenet_c', 'defocus_blur', 's3')
    """
    family = degradation(cell.degradation, cell.level.severity).family
    return cell.model, family, cell.degradation, str(cell.level)


def grouped(paths: Sequence[Path], workers: int) -> list[list[int]]:
    """Positions of ``paths`` in groups of one model each, for ``workers`` that take one group after another.

    Whole models, while there is one for each worker. Else the largest group is halved until there is: between two
    families where it holds several, else between two degradations, else between two cells. Groups come in the order of
    their models, positions rise.

    >>> names = ("vit-clean-0.00", "vit-stripes-0.25", "vit-stripes-0.50", "cnn-clean-0.00", "cnn-stripes-0.25")
    >>> paths = [path_of(Cell.parse(name)) for name in names]
    >>> grouped(paths, workers=2)
    [[0, 1, 2], [3, 4]]
    >>> grouped(paths, workers=3)
    [[0], [1, 2], [3, 4]]
    """
    positions: dict[Path, list[int]] = {}
    for position, path in enumerate(paths):
        positions.setdefault(path, []).append(position)
    models: dict[str, list[Path]] = {}
    for path in positions:
        models.setdefault(path[0], []).append(path)
    # the largest first, of equal ones the first: where it stands, by model and by place among the model's paths
    heap = [(-len(group), (number, 0), _together(group)) for number, group in enumerate(models.values())]
    whole = [entry for entry in heap if len(entry[2]) == 1]
    heap = [entry for entry in heap if len(entry[2]) > 1]
    heapq.heapify(heap)
    while heap and len(heap) + len(whole) < workers:
        _, (number, start), group = heapq.heappop(heap)
        cut = _middle(group)
        for first, half in ((start, group[:cut]), (start + cut, group[cut:])):
            entry = (-len(half), (number, first), half)
            if len(half) > 1:
                heapq.heappush(heap, entry)
            else:
                whole.append(entry)
    groups = [group for _, _, group in sorted([*heap, *whole], key=lambda entry: entry[1])]
    return [sorted(position for path in group for position in positions[path]) for group in groups]


def _together(group: list[Path]) -> list[Path]:
    """The paths of a model with those of a family, and in it of a degradation, side by side, first come first."""
    first: dict[Path, int] = {}
    for place, path in enumerate(group):
        for depth in range(2, 5):
            first.setdefault(path[:depth], place)
    return sorted(group, key=lambda path: [first[path[:depth]] for depth in range(2, 5)])


def _middle(group: list[Path]) -> int:
    """Where a group of several paths is cut: of the places between the largest things that it holds several of, the one
    nearest to its middle.
    """
    for depth in range(2, 5):
        if cuts := [i for i in range(1, len(group)) if group[i][:depth] != group[i - 1][:depth]]:
            return min(cuts, key=lambda cut: abs(2 * cut - len(group)))
    raise AssertionError(f"{group} holds the same twice")


def sharded(paths: Sequence[Path], count: int) -> list[list[int]]:
    """Positions of ``paths``, rising, in each of ``count`` shards: each in one of them, and none of these empty while
    there are as many different paths.

    Groups (:func:`grouped`) go, the largest first, where the least is (R. L. Graham, *Bounds on multiprocessing timing
    anomalies*, 1969); a path weighs one pass over the images, and so does the clean pass of a model.

    >>> sharded([("vit", "blur"), ("cnn", "blur"), ("vit", "occlusion"), ("resnet", "blur")], 2)
    [[0, 2], [1, 3]]
    """
    groups = grouped(paths, count)
    passes = [1 + len({paths[position] for position in group}) for group in groups]
    shards: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, shard) for shard in range(count)]  # a heap
    for number in sorted(range(len(groups)), key=lambda number: -passes[number]):
        load, shard = loads[0]
        shards[shard] += groups[number]
        heapq.heapreplace(loads, (load + passes[number], shard))
    return [sorted(positions) for positions in shards]
