"""Which model leads while a run is not finished, as far as that can be said."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from statistics import fmean
from typing import NamedTuple


class Leader(NamedTuple):
    """A model with its ``score`` so far, in [0, 1], and how many it was ``compared`` with."""

    model: str
    score: float
    compared: int


Found = Mapping[tuple[str, str], float]
"""Top-1 by family and condition."""


def leader(found: Mapping[str, Found], finished: Collection[str]) -> Leader | None:
    """The model with the largest mean over families of the mean top-1 of a family's conditions, or None where there is
    nothing to compare.

    ``found`` has what each model has reached so far in the families that are ranked. Models are compared on the
    conditions that all of them have, and one that is not ``finished`` only where none is: on its first few conditions,
    which may be the easy ones, nobody leads.

    >>> blur, noise = ("blur", "box_blur-1.00"), ("noise", "impulse-s3")
    >>> leader({"vit": {blur: 0.8, noise: 0.4}, "cnn": {blur: 0.9, noise: 0.1}, "new": {blur: 1.0}}, {"vit", "cnn"})
    Leader(model='vit', score=0.6000000000000001, compared=1)
    """
    compared = {model: mine for model, mine in found.items() if model in finished and mine}
    compared = compared or {model: mine for model, mine in found.items() if mine}
    if not compared:
        return None
    shared = set.intersection(*(set(mine) for mine in compared.values()))
    if not shared:
        return None
    best = max(compared, key=lambda model: _score({key: compared[model][key] for key in shared}))
    return Leader(best, _score({key: compared[best][key] for key in shared}), len(compared) - 1)


def _score(found: Found) -> float:
    families = {family for family, _ in found}
    return fmean(fmean(top1 for (of, _), top1 in found.items() if of == family) for family in sorted(families))
