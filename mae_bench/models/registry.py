"""Which models take part: frozen entries, found in conftest files, checked for clashes. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mae_bench.cells import MARKS, near_name
from mae_bench.degradations import families
from mae_bench.models import ModelError


@dataclass(frozen=True)
class ModelEntry:
    """A model fixture as registered.

    ``suites`` are those it is bound to (None: whichever is selected), ``head`` says whether it classifies,
    ``arm`` and ``training_seed`` place it among repeated trainings, ``full`` says that it joins full runs only,
    ``summary`` is its fixture's docstring.
    """

    name: str
    suites: tuple[str, ...] | None = None
    head: bool = True
    arm: str | None = None
    training_seed: int | None = None
    full: bool = False
    summary: str = ""

    def __post_init__(self) -> None:
        """Raises:
        ModelError: the name holds a mark's name, so that ``-k`` could not tell them apart, or whitespace, brackets or
            what cannot be seen.
        """
        taken = [mark for mark in (*MARKS, *families()) if mark in self.name.lower()]
        if taken:
            raise ModelError(
                f"model name {self.name!r} contains {taken[0]!r}, the name of a family: -k {taken[0]} would select "
                "all of its cells; rename the fixture"
            )
        unfit = not self.name or not self.name.isprintable()
        if unfit or any(c.isspace() or c in "[]/\\:" for c in self.name):
            raise ModelError(
                f"model name {self.name!r} must be free of white space, brackets, slashes, colons and characters that "
                "cannot be seen"
            )


@dataclass
class Registry:
    """Entries with the directory below which each is visible (None: everywhere)."""

    entries: dict[str, tuple[ModelEntry, Path | None]] = field(default_factory=dict)

    def add(self, entry: ModelEntry, base: Path | None) -> None:
        """Raises:
        ModelError: another model has the same name.
        """
        if entry.name in self.entries and self.entries[entry.name] != (entry, base):
            places = " and ".join(str(b or "a plugin") for b in (self.entries[entry.name][1], base))
            raise ModelError(f"two models are called {entry.name!r} (in {places}): rename one of the fixtures")
        self.entries[entry.name] = (entry, base)

    def models(self, suite: str, path: Path, full: bool, encoders: bool = False) -> list[ModelEntry]:
        """Models that tests in the file ``path`` evaluate on ``suite``, in order of registration, those without a head
        only with ``encoders``; unless ``full``, only the first training seed of each arm, and no model for full runs.
        """
        visible = [
            entry
            for entry, base in self.entries.values()
            if (base is None or path.is_relative_to(base))
            and (entry.head or encoders)
            and suite in (entry.suites or (suite,))
        ]
        return visible if full else first_seeds(entry for entry in visible if not entry.full)

    def get(self, name: str) -> ModelEntry:
        """Raises:
        ModelError: no model is called ``name``; the message names the nearest.
        """
        if name not in self.entries:
            raise ModelError(f"unknown model {name!r}: {near_name(name, self.entries)}")
        return self.entries[name][0]


def first_seeds(entries: Iterable[ModelEntry]) -> list[ModelEntry]:
    """Entries without those whose arm has one with a smaller training seed."""
    kept = list(entries)
    first: dict[str, int] = {}
    for entry in kept:
        if entry.arm is not None and entry.training_seed is not None:
            first[entry.arm] = min(entry.training_seed, first.get(entry.arm, entry.training_seed))
    return [
        entry
        for entry in kept
        if entry.training_seed is None or entry.training_seed == first.get(entry.arm or "", entry.training_seed)
    ]
