"""Which conditions of a suite a few names stand for: families, groups, degradations, or single levels."""

from __future__ import annotations

from collections.abc import Sequence

from mae_bench.cells import GROUPS, Level, near_name
from mae_bench.degradations import Degradation, degradation, every
from mae_bench.degradations.ladders import conditions, levels
from mae_bench.errors import BenchError
from mae_bench.suites import SuiteEntry

Condition = tuple[Degradation, Level]


class SelectionError(BenchError):
    """A name that stands for no condition of a suite."""


def selected(names: Sequence[str] | None, suite: SuiteEntry) -> list[Condition]:
    """The conditions of ``suite`` that ``names`` stand for, clean first and each once; without names those of its
    default matrix. A name is a degradation (``gaussian_blur``) or a family (``blur``) or group (``weather``) of them,
    at every level of the suite's ladder, or a condition (``gaussian_blur-2.00``, ``fog-s3``), whose level need not be
    on the ladder. Where a blur is both a plain kernel and a corruption, its name alone is the kernel.

    Raises:
        SelectionError: a name is unknown, a level outside its domain, or the suite has no cells of it.

    >>> from mae_bench.suites import suite_entry
    >>> [f"{kind.name}-{level}" for kind, level in selected(["box_blur-1.75", "fog-s3"], suite_entry("fashion_mnist"))]
    ['clean-0.00', 'box_blur-1.75', 'fog-s3']
    """
    chosen = conditions(suite) if names is None else [one for name in names for one in _named(name, suite)]
    return list(dict.fromkeys([(degradation("clean"), Level(0.0)), *chosen]))


def _named(name: str, suite: SuiteEntry) -> list[Condition]:
    """Raises:
    SelectionError: as :func:`selected`.
    """
    kinds = kinds_named(name)
    if not kinds:
        return [_single(name, suite)]
    found = [(kind, level) for kind in kinds for level in levels(kind, suite, full=True)]
    if not found:
        raise SelectionError(_none_of(name, suite))
    return found


def kinds_named(name: str) -> list[Degradation]:
    """The degradations of a family or group, or the one that is called so; none where it is the name of a condition.

    >>> [(kind.name, kind.family) for kind in kinds_named("defocus_blur")]
    [('defocus_blur', 'blur')]
    """
    if name in {kind.family for kind in every()}:
        return [kind for kind in every() if kind.family == name]
    if name in GROUPS:
        return [kind for kind in every() if kind.group == name]
    return [kind for kind in every() if kind.name == name][:1]


def condition_named(name: str) -> Condition:
    """The condition that is written as degradation and level, of whatever suite.

    Raises:
        SelectionError: there is no such degradation, or the level is outside its domain.

    >>> kind, level = condition_named("defocus_blur-s3")
    >>> kind.family, level.value
    ('imagenet_c', 3.0)
    """
    of, _, text = name.rpartition("-")
    if not kinds_named(of):
        known = {name for kind in every() for name in (kind.name, *kind.marks)}
        raise SelectionError(f"unknown degradation {name!r}: {near_name(of or name, known)}")
    try:
        level = Level.parse(text)
        kind = degradation(of, level.severity)
        kind.check(level)
    except ValueError as error:
        raise SelectionError(f"degradation {name!r}: {error}") from error
    return kind, level


def _single(name: str, suite: SuiteEntry) -> Condition:
    """Raises:
    SelectionError: as :func:`selected`.
    """
    kind, level = condition_named(name)
    ladder = levels(kind, suite, full=True)
    if not ladder or (suite.stored and level not in ladder):
        raise SelectionError(_none_of(name, suite))
    return kind, level


def _none_of(name: str, suite: SuiteEntry) -> str:
    having = dict.fromkeys(kind.family for kind, _ in conditions(suite, full=True))
    return f"suite {suite.name!r} has no cells of {name!r}: it has {', '.join(having)}"
