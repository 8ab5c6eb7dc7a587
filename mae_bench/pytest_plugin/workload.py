"""What is left to be sent to workers, and who is sent what next."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence

from mae_bench.grouping import Path, grouped

Part = list[tuple[Path, list[int]]]
"""Paths of one model, each with the positions of its items, which are never parted; or one item of no model."""


class Workload:
    """Positions of items, of which ``paths`` says what they are about (None: they evaluate no model).

    A worker takes a model that nobody has begun, the largest first, and is sent one path of it at a time; the others
    are reserved for it. Where none is left, it takes half of what another worker has reserved, so that nobody is idle
    while there is something to share. A single path it takes only of the model that it holds: another worker would have
    run it before it had built the model.
    """

    def __init__(self, paths: Sequence[Path | None]) -> None:
        self._paths = [path or () for path in paths]
        self._length = len(paths)
        self._untaken = deque(sorted(self._parts(range(len(paths))), key=len, reverse=True))
        self._reserved: dict[Hashable, Part] = {}
        self._held: dict[Hashable, str | None] = {}

    def __len__(self) -> int:
        """Items that were not sent."""
        return self._length

    def take(self, worker: Hashable) -> list[int]:
        """What ``worker`` is to be sent next; nothing where nothing is left for it."""
        part = self._reserved.get(worker) or self._part_for(self._held.get(worker))
        if not part:
            return []
        self._reserved[worker] = part
        path, positions = part.pop(0)
        self._held[worker] = path[0] if path else None
        self._length -= len(positions)
        return positions

    def give_back(self, worker: Hashable, unrun: Iterable[int]) -> None:
        """Let others run what is reserved for ``worker``, which is no more, and ``unrun``, which it was sent."""
        self._held.pop(worker, None)
        sent = list(unrun)
        self._length += len(sent)
        reserved = [position for _, positions in self._reserved.pop(worker, ()) for position in positions]
        self._untaken.extendleft(reversed(self._parts([*sent, *reserved])))

    def give_up(self, model: str) -> list[int]:
        """Positions of all items of ``model`` that were not sent, and never will be."""
        dropped: list[int] = []
        for part in (*self._untaken, *self._reserved.values()):
            if _model(part) == model:
                dropped += [position for _, positions in part for position in positions]
                part.clear()
        self._untaken = deque(part for part in self._untaken if part)
        self._length -= len(dropped)
        return sorted(dropped)

    def _parts(self, positions: Iterable[int]) -> list[Part]:
        parts: dict[Hashable, dict[Path, list[int]]] = {}
        for position in positions:
            path = self._paths[position]
            parts.setdefault(path[0] if path else position, {}).setdefault(path, []).append(position)
        return [list(part.items()) for part in parts.values()]

    def _part_for(self, held: str | None) -> Part:
        """A part for a worker that has none and holds the model ``held``."""
        if self._untaken:
            same = (part for part in self._untaken if held is not None and _model(part) == held)
            part = next(same, self._untaken[0])
            self._untaken.remove(part)
            return part
        shareable = [part for part in self._reserved.values() if len(part) > (_model(part) != held)]
        if not shareable:
            return []
        part = max(shareable, key=lambda part: (_model(part) == held, len(part)))
        # between families where there are several; the half that comes last, since its owner is at the first
        taken = set(grouped([path for path, _ in part], workers=2)[-1])
        found = [entry for place, entry in enumerate(part) if place in taken]
        part[:] = [entry for place, entry in enumerate(part) if place not in taken]
        return found


def _model(part: Part) -> str | None:
    return part[0][0][0] if part and part[0][0] else None
