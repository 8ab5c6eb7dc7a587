"""What the report of a run is made of, as it lies in the run directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mae_bench.comparison import COMPARISON, Comparison
from mae_bench.labelled_images import LabelledImages
from mae_bench.leaderboard import Leaderboard, level_at_half
from mae_bench.markup import terminal_text
from mae_bench.outcomes import Outcomes
from mae_bench.report import ReportError
from mae_bench.rows import CellResult, ResultRow
from mae_bench.store import RunDirectory, StoreError, cell_of, of_one_setting
from mae_bench.tables import indicator_table, representation_table

WORST = 12
"""Classes and images that are shown because most is lost of them."""


@dataclass(frozen=True)
class BreakingPoint:
    """What a degradation leaves of a model at its highest ``level``: ``top1``, and the share ``kept`` of the clean one;
    at the level ``half``, if at any, half of what is above chance is lost.
    """

    model: str
    family: str
    degradation: str
    unit: str
    level: float
    top1: float
    kept: float
    half: float | None


@dataclass(frozen=True)
class Contents:
    """A run: its ``manifest``, the ``images`` and ``results`` of its cells, the ``leaderboard`` and the ``outcomes``
    that these amount to, ``representations`` in long form, and the ``comparison`` with its baseline, where there is
    one.
    """

    name: str
    manifest: dict[str, Any]
    images: LabelledImages
    results: tuple[CellResult, ...]
    leaderboard: Leaderboard
    outcomes: Outcomes
    representations: pd.DataFrame
    comparison: Comparison | None

    @classmethod
    def of(cls, run: RunDirectory) -> Contents:
        """What lies in ``run``; of cells that were evaluated in several ways, those that were as the first.

        Raises:
            ReportError: no clean cell is finished.
            StoreError: a file is damaged.
        """
        images, stored = run.images(), run.cells()
        first = next((result.row for result in stored if result.row.family == "clean"), None)
        if images is None or first is None:
            raise ReportError(
                f"{run.path}: no clean cell is finished, so there is nothing to report; run some, or name another"
            )
        results = of_one_setting(stored, {cell_of(first).id})
        outcomes = Outcomes.of(results, images)
        return cls.around(run, images, results, Leaderboard.of([result.row for result in results], outcomes), outcomes)

    @classmethod
    def around(
        cls,
        run: RunDirectory,
        images: LabelledImages,
        results: Sequence[CellResult],
        leaderboard: Leaderboard,
        outcomes: Outcomes,
    ) -> Contents:
        """``results`` of ``run``, what they amount to, and what else lies there.

        Raises:
            StoreError: a file is damaged.
        """
        return cls(
            run.path.name,
            run.manifest() or {},
            images,
            tuple(results),
            leaderboard,
            outcomes,
            representation_table(run.representations()),
            _comparison(run.path / COMPARISON),
        )

    @cached_property
    def rows(self) -> list[ResultRow]:
        """Of cells that the models can have."""
        return [result.row for result in self.results if result.row.status != "not_applicable"]

    @cached_property
    def models(self) -> list[str]:
        """Best first."""
        return [standing.model for standing in self.leaderboard.standings]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A line for each cell but the clean ones, with names as they are shown."""
        frame = pd.DataFrame([row.to_dict() | {"model": terminal_text(row.model)} for row in self.rows])
        return frame[frame["family"] != "clean"]

    @cached_property
    def clean(self) -> dict[str, ResultRow]:
        return {row.model: row for row in self.rows if row.family == "clean"}

    @cached_property
    def indicators(self) -> pd.DataFrame:
        """Indicators of all layers and heads that have a value, with the model, as it is shown, and the family of their
        cell.
        """
        return self._described(indicator_table(self.results))

    @cached_property
    def inside(self) -> pd.DataFrame:
        """The same of representations."""
        return self._described(self.representations)

    def _described(self, table: pd.DataFrame) -> pd.DataFrame:
        of_cell = {cell_of(row).id: row for row in self.rows}
        known = table[table["cell"].isin(of_cell) & table["value"].notna()].copy()
        known["model"] = [terminal_text(of_cell[cell].model) for cell in known["cell"]]
        known["family"] = [of_cell[cell].family for cell in known["cell"]]
        return known.drop(columns="cell")

    # ----------------------------------------------------------------------- what is worst

    @cached_property
    def breaking_points(self) -> list[BreakingPoint]:
        """Of each model and degradation, worst first."""
        curves: dict[tuple[str, str, str], list[ResultRow]] = {}
        for row in self.rows:
            if row.family != "clean" and row.model in self.clean:
                curves.setdefault((row.model, row.family, row.degradation), []).append(row)
        found = []
        for (model, family, name), curve in curves.items():
            clean, top = self.clean[model].top1 or 0.0, max(curve, key=lambda row: row.level)
            top1 = {row.level: row.top1 for row in curve if row.top1 is not None}
            half = level_at_half(clean, top1, 1 / top.classes)
            kept = (top.top1 or 0.0) / clean if clean else 0.0
            found.append(BreakingPoint(model, family, name, top.unit, top.level, top.top1 or 0.0, kept, half))
        return sorted(found, key=lambda point: (point.kept, point.model, point.family, point.degradation))

    @cached_property
    def lost(self) -> tuple[np.ndarray, np.ndarray]:
        """(images,) in how many cells each image is lost, right when clean and wrong then, and of how many."""
        return self._lost(None)

    def _lost(self, family: str | None) -> tuple[np.ndarray, np.ndarray]:
        lost = np.zeros(len(self.images.ids), dtype=np.int64)
        of = np.zeros_like(lost)
        for row in self.rows:
            if row.family == "clean" or family not in (None, row.family) or row.model not in self.clean:
                continue
            before = self.outcomes.correct(cell_of(self.clean[row.model]).id)
            before[row.n :] = False
            of += before
            lost += before & ~self.outcomes.correct(cell_of(row).id)
        return lost, of

    @cached_property
    def worst_images(self) -> list[int]:
        """Positions of the images that are lost in the largest share of cells, of those that all models know."""
        lost, of = self.lost
        share = np.where(of == of.max(initial=1), lost / np.maximum(of, 1), -1.0)
        order = np.argsort(-share, kind="stable")
        return [int(i) for i in order[:WORST] if share[i] > 0]

    @cached_property
    def worst_classes(self) -> dict[str, dict[str, float]]:
        """Of each class, worst first, by family the share that is lost of the images that are right when clean, over
        all models and cells.
        """
        shares: dict[str, dict[str, float]] = {}
        for family in self.leaderboard.families:
            lost, of = self._lost(family)
            for k, name in enumerate(self.images.classes):
                of_class = self.outcomes.labels == k
                if of[of_class].sum():
                    shares.setdefault(name, {})[family] = float(lost[of_class].sum() / of[of_class].sum())
        return dict(sorted(shares.items(), key=lambda item: -sum(item[1].values()) / len(item[1])))


def _comparison(path: Path) -> Comparison | None:
    """Raises:
    StoreError: the file is damaged.
    """
    try:
        return Comparison.from_dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); remove it, or run again") from error
