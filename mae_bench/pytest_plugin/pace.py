"""How fast a session gets done what it set out to do, and how long the rest will take at that pace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

Task = tuple[str, ...]
"""What an item does: its test, the model that it evaluates, and the degradation, if it is about one."""


@dataclass(frozen=True)
class Mean:
    """Of ``count`` durations that sum up to ``seconds``."""

    count: int = 0
    seconds: float = 0.0

    def __add__(self, seconds: float) -> Mean:
        return Mean(self.count + 1, self.seconds + seconds)

    @property
    def value(self) -> float | None:
        return self.seconds / self.count if self.count else None


class Pace:
    """Counts down ``tasks``, each of which is an item of a session.

    What an item will take is the mean of those of the same test, model and degradation; where none has finished yet, of
    the same test and model; then of the same test; then of all. The first item of a model in a process builds it and
    sees the clean images, so that these have a mean of their own. An item that was reused from an earlier session is
    done, and says nothing of the others. That workers run side by side is seen in how much more was done than time
    went by.

    >>> pace = Pace([("test_cell", "vit", "box_blur")] * 4)
    >>> pace.finish(("test_cell", "vit", "box_blur"), 5.0, images=1024)
    >>> pace.finish(("test_cell", "vit", "box_blur"), 2.0, images=1024)
    >>> pace.done, pace.total, pace.seconds_left(elapsed=7.0)
    (2, 4, 4.0)
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._left = Counter(tasks)
        self.total = self._left.total()
        self._known: dict[Task, Mean] = {}
        self._first = Mean()
        self._begun: set[tuple[str, str]] = set()
        self._busy = 0.0
        self._evaluating = 0.0
        self._images = 0

    @property
    def done(self) -> int:
        return self.total - self._left.total()

    def finish(self, task: Task, seconds: float, images: int = 0, worker: str = "", reused: bool = False) -> None:
        """Count an item that took its ``worker`` so many seconds, in which so many images were evaluated."""
        self._left[task] -= 1
        self._busy += seconds
        if reused:
            return
        if images:
            self._evaluating += seconds
            self._images += images
        by = (worker, task[1])
        if by not in self._begun:
            self._begun.add(by)
            self._first += seconds
            return
        for end in range(len(task) + 1):
            self._known[task[:end]] = self._known.get(task[:end], Mean()) + seconds

    def seconds_left(self, elapsed: float) -> float | None:
        """Seconds until all is done, when what is done has taken ``elapsed`` ones; None until that is known."""
        if not self._busy:
            return None
        begun = {model for _, model in self._begun}
        sum_left = 0.0
        for task, count in (+self._left).items():
            if task[1] not in begun:  # the first of its model
                begun.add(task[1])
                count -= 1
                if self._first.value is None:
                    return None
                sum_left += self._first.value
            if count:
                usual = self._usual(task)
                if usual is None:
                    return None
                sum_left += count * usual
        return sum_left * max(0.0, elapsed) / self._busy

    def images_per_second(self, elapsed: float) -> float | None:
        """Images that all workers together evaluate in a second; None until an item has evaluated some."""
        seconds = self._evaluating * elapsed / self._busy if self._busy else 0.0
        return self._images / seconds if seconds > 0 else None

    def _usual(self, task: Task) -> float | None:
        known = (self._known.get(task[:end]) for end in range(len(task), -1, -1))
        return next((mean.value for mean in known if mean is not None), None)
