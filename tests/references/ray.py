"""Ray in this process: a task runs, as a whole, when somebody waits for it and nothing else is ready."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """As Ray's: a worker died."""


class RayTaskError(RayError):
    """As Ray's: the code of a task raised ``cause``."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Reference:
    """What a call of something remote gives."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call: Callable[[], Any] | None = call
        self.value: Any = None

    def settle(self) -> None:
        if self.call is not None:
            call, self.call = self.call, None
            try:
                self.value = call()
            except RayError as error:
                self.value = error
            except Exception as error:
                self.value = RayTaskError(error)


class Ray:
    """``choose`` picks, of so many tasks that could run next, one."""

    def __init__(self, nodes: Sequence[dict[str, float]], choose: Callable[[int], int] = lambda _: 0) -> None:
        self._nodes = [{"Alive": True, "Resources": node} for node in nodes]
        self._choose = choose
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda _, soft: soft)
        self.util = SimpleNamespace(scheduling_strategies=strategies)
        self.began: list[tuple[Any, ...]] = []
        self.options: list[dict[str, Any]] = []
        self.shut_down = 0

    def init(self, *place: str, **options: Any) -> None:
        self.began.append((*place, {**options, "usage_statistics": os.environ.get("RAY_USAGE_STATS_ENABLED")}))

    def shutdown(self) -> None:
        self.shut_down += 1

    def cancel(self, task: Reference, force: bool) -> None:
        assert force
        task.call = None

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "here")

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.options.append(options)

        def of(thing: Any) -> Any:
            if isinstance(thing, type):
                return SimpleNamespace(remote=lambda *given: Actor(thing(*given)))
            return SimpleNamespace(remote=lambda *given: Reference(lambda: thing(*given)))

        return of

    def wait(self, references: list[Reference], num_returns: int) -> tuple[list[Reference], list[Reference]]:
        assert num_returns == 1
        coming, *tasks = references
        ready = [task for task in tasks if task.call is None]
        if isinstance(coming, Taking) and coming.actor.has_some:
            chosen = coming
        elif ready:
            chosen = ready[self._choose(len(ready))]
        else:
            chosen = tasks[self._choose(len(tasks))]
            chosen.settle()
        return [chosen], [reference for reference in references if reference is not chosen]

    def get(self, reference: Reference) -> Any:
        reference.settle()
        if isinstance(reference.value, RayError):
            raise reference.value
        return reference.value


class Actor:
    """One whose methods are coroutines."""

    def __init__(self, thing: Any) -> None:
        self.put = SimpleNamespace(remote=lambda *given: self._now(thing.put(*given)))
        self.take = SimpleNamespace(remote=lambda: Taking(self, lambda: asyncio.run(thing.take())))
        self.thing = thing

    def _now(self, coroutine: Any) -> Reference:
        reference = Reference(lambda: asyncio.run(coroutine))
        reference.settle()
        return reference

    @property
    def has_some(self) -> bool:
        return bool(self.thing._said)


class Taking(Reference):
    """A call that waits until there is something to take."""

    def __init__(self, actor: Actor, call: Callable[[], Any]) -> None:
        super().__init__(call)
        self.actor = actor
