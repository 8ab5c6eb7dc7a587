"""Cells of the evaluation matrix: one model x one degradation at one level.

The only place that formats or parses their ids.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

FAMILIES = ("clean", "blur", "occlusion", "token_drop", "imagenet_c", "c_extra", "cbar", "geometry")
"""A row's family is the family of the file that holds its test."""


def family_place(family: str) -> tuple[int, str]:
    """Where ``family`` stands in tables: those above in their order, then those that packages add, by name.

    >>> sorted(["rain", "occlusion", "fog_of_mine", "blur"], key=family_place)
    ['blur', 'occlusion', 'fog_of_mine', 'rain']
    """
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)), family


GROUPS = ("noise", "weather", "digital")
"""Further marks that cells of imagenet_c and c_extra carry beside their family (``blur`` is both)."""

MARKS = (*FAMILIES, *GROUPS, "representation")

_LEVEL = re.compile(r"s[1-5]|s[1-4]\.[0-9][0-9]|(0|[1-9][0-9]{0,12})\.[0-9][0-9]")
"""With more digits a number would not be the level that is written so: floats have no hundredths there."""


@dataclass(frozen=True, order=True)
class Level:
    """How strong a degradation is: pixels or a fraction with two decimals, or an ImageNet-C severity, which may lie
    between the published five.

    >>> str(Level(0.5)), str(Level(3, severity=True)), str(Level(2.5, severity=True)), Level.parse("2.00")
    ('0.50', 's3', 's2.50', Level(value=2.0, severity=False))
    """

    value: float
    severity: bool = False

    def __str__(self) -> str:
        if self.severity:
            return f"s{self.value:.0f}" if float(self.value).is_integer() else f"s{self.value:.2f}"
        return f"{self.value:.2f}"

    @classmethod
    def parse(cls, text: str) -> Level:
        """The level that ``text`` names.

        Raises:
            ValueError: ``text`` is neither a severity from ``s1`` to ``s5`` nor a number with two decimals.
        """
        if not _LEVEL.fullmatch(text) or (text[0] == "s" and text.endswith(".00")):
            shown = text[:80]
            raise ValueError(f"{shown!r} is not a level: write s1 to s5, or a number with two decimals such as 0.50")
        return cls(float(text[1:]), severity=True) if text[0] == "s" else cls(float(text))


@dataclass(frozen=True, order=True)
class Cell:
    """One entry of the matrix; its id is the bracketed part of the pytest node id.

    >>> Cell.parse("mae_ft_s0-random_patch-0.50")
    Cell(model='mae_ft_s0', degradation='random_patch', level=Level(value=0.5, severity=False))
    >>> Cell.parse("mae_ft_s0-random_patch-0.50").id
    'mae_ft_s0-random_patch-0.50'
    """

    model: str
    degradation: str
    level: Level

    @property
    def id(self) -> str:
        return f"{self.model}-{self.condition}"

    @property
    def condition(self) -> str:
        """Degradation and level without the model, as in ``random_patch-0.50``."""
        return f"{self.degradation}-{self.level}"

    @classmethod
    def parse(cls, text: str) -> Cell:
        """The cell whose id is ``text``.

        Raises:
            ValueError: ``text`` is not ``model-degradation-level``.
        """
        parts = text.rsplit("-", 2)
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"{text[:80]!r} is not the id of a cell: expected model-degradation-level")
        return cls(parts[0], parts[1], Level.parse(parts[2]))


def near_name(name: str, known: Iterable[str]) -> str:
    """A hint for an error message about an unknown ``name``.

    >>> near_name("fashon_mnist", ["fashion_mnist", "imagefolder"])
    'did you mean fashion_mnist? Known: fashion_mnist, imagefolder'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    listing = f"Known: {', '.join(names)}" if names else "None is known"
    return f"did you mean {close[0]}? {listing}" if close else listing
