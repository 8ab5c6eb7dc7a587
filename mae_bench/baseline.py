"""The committed results of a suite, and what may be compared with them or replace them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mae_bench.errors import BenchError
from mae_bench.evaluate import CellResult
from mae_bench.regression import Rule, Shift, Verdict, indicator_shifts, verdict
from mae_bench.rows import ResultRow
from mae_bench.store import ABSENT, Outcomes, cell_of, write_together

COMPARABLE = ("degradation_version", "seed", "view", "label_map")
"""Fields that must agree between a cell and the baseline's before their outcomes may be paired (the level is
part of the cell's id)."""


class BaselineError(BenchError):
    """A baseline that is absent where it is needed, unreadable, of another suite, or may not be replaced."""


def in_continuous_integration() -> bool:
    """Whether the environment variable ``CI`` is set to anything but ``0`` or ``false``."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


@dataclass(frozen=True)
class Incomparable:
    """A cell that was not compared; ``field`` names why, ``new`` says that the baseline lacks it altogether."""

    cell: str
    field: str
    here: str
    there: str
    new: bool = False


@dataclass
class Baseline:
    """Rows and outcomes as committed in ``path``."""

    path: Path
    rows: dict[str, ResultRow]
    outcomes: Outcomes

    @classmethod
    def load(cls, path: Path, suite: str) -> Baseline | None:
        """The baseline in ``path``, or None where there is none.

        Raises:
            BaselineError: a file is missing or unreadable, or the baseline is of another suite.
            StoreError: the outcomes are unreadable or of another schema.
        """
        table, arrays = path / "cells.csv", path / "outcomes.npz"
        if not table.exists() and not arrays.exists():
            return None
        for file in (table, arrays):
            if not file.exists():
                raise BaselineError(f"baseline {path}: {file.name} is missing; restore it, or remove the directory")
        outcomes = Outcomes.load(arrays)
        rows = read_rows(table)
        suites = {outcomes.suite, *(row.suite for row in rows)}
        if suites != {suite}:
            raise BaselineError(
                f"baseline {path} is of suite {', '.join(sorted(suites))}, the run is of {suite}: "
                "name another with --mae-baseline DIR, or none"
            )
        named = {cell_of(row).id: row for row in rows}
        if named.keys() != outcomes.prediction.keys():
            raise BaselineError(f"baseline {path}: cells.csv and outcomes.npz hold different cells; restore both")
        return cls(path, named, outcomes)

    def cells_of(self, models: Iterable[str]) -> int:
        """How many cells of ``models`` are held that may be judged."""
        names = set(models)
        return sum(row.model in names and row.status != "not_applicable" for row in self.rows.values())

    def check_images(
        self, ids: Sequence[str], labels: np.ndarray | None = None, classes: Sequence[str] | None = None
    ) -> None:
        """Raises:
        BaselineError: not one of the images ``ids`` is in the baseline, or it knows them under other ``labels``, or
            other ``classes``.
        """
        if not set(self.outcomes.ids.tolist()) & {i.encode() for i in ids}:
            raise BaselineError(
                f"baseline {self.path} and this run have no image in common, so nothing can be compared: "
                "name another with --mae-baseline DIR, or none"
            )

        if classes is not None and list(classes) != self.outcomes.classes.tolist():
            raise BaselineError(
                f"baseline {self.path} has classes {', '.join(self.outcomes.classes.tolist()[:5])}..., this run "
                f"{', '.join(list(classes)[:5])}...: make it again, name another with --mae-baseline DIR, or none"
            )
        if labels is not None:
            known = dict(zip(self.outcomes.ids.tolist(), self.outcomes.labels.tolist(), strict=True))
            here = zip(ids, labels.tolist(), strict=True)
            moved = [image for image, label in here if known.get(image.encode(), label) != label]
            if moved:
                raise BaselineError(
                    f"baseline {self.path} knows {len(moved)} images under another class, such as {moved[0]}: "
                    "make it again, name another with --mae-baseline DIR, or none"
                )

    def compare(self, result: CellResult, ids: Sequence[str], rule: Rule) -> Verdict | Incomparable:
        """The verdict on a finished cell whose images are ``ids``, or why it has none."""
        cell = cell_of(result.row).id
        there = self.rows.get(cell)
        if there is None:
            return self._missing(result.row, cell)
        for name in COMPARABLE:
            mine, theirs = getattr(result.row, name), getattr(there, name)
            if mine != theirs:
                return Incomparable(cell, name, str(mine), str(theirs))
        position = {image: i for i, image in enumerate(self.outcomes.ids.tolist())}
        pairs = [
            (i, position[image.encode()])
            for i, image in enumerate(ids[: len(result.prediction)])
            if image.encode() in position
        ]
        here, then = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        before = self.outcomes.prediction[cell][then]
        held = before != ABSENT
        if not held.any():
            return Incomparable(cell, "images", f"{len(ids)} images", "none of them")
        note = "" if result.row.weights_hash == there.weights_hash else "weights changed"
        labels = self.outcomes.labels[then[held]]
        return verdict(cell, before[held], result.prediction[here[held]], labels, rule, note)

    def shifts(self, result: CellResult) -> list[Shift]:
        """Indicators of a compared cell that moved; only where both evaluated the same images in the same order."""
        cell = cell_of(result.row).id
        there = self.rows.get(cell)
        if there is None or there.manifest_hash != result.row.manifest_hash:
            return []
        if there.indicator_version != result.row.indicator_version:
            return []
        after = {name: np.array(values, dtype=np.float32) for name, values in result.block_sums.items()}
        return indicator_shifts(cell, self.outcomes.block_sums[cell], after)

    def _missing(self, row: ResultRow, cell: str) -> Incomparable:
        held = {r.condition for r in self.rows.values() if r.model == row.model and r.degradation == row.degradation}
        if held:
            levels = ", ".join(sorted(condition.rsplit("-", 1)[1] for condition in held))
            return Incomparable(cell, "level", row.condition.rsplit("-", 1)[1], levels)
        what = "degradation" if any(r.model == row.model for r in self.rows.values()) else "model"
        return Incomparable(cell, what, getattr(row, what), "not in the baseline", new=True)


def updated(
    baseline: Baseline | None,
    path: Path,
    results: Sequence[CellResult],
    expected: dict[tuple[str, str], set[str]],
    images: tuple[Sequence[str], np.ndarray, Sequence[str]],
) -> tuple[Baseline, list[str], list[str]]:
    """The baseline with complete model-families of ``results`` put in; what was put in; what was not, and why.

    ``expected`` maps (model, family) to the conditions that make it complete, ``images`` are ids, labels and
    class names of the suite. A model-family is complete when each of its conditions, and each that the
    baseline holds of it, ran on all images.

    Raises:
        BaselineError: under ``CI``; or the baseline is of other images and some of its cells would stay.
    """
    if in_continuous_integration():
        raise BaselineError("--mae-update-baseline is refused where CI is set: a gate must not move its own mark")
    old = dict(baseline.rows) if baseline is not None else {}
    by_family: dict[tuple[str, str], dict[str, CellResult]] = {}
    for result in results:
        by_family.setdefault((result.row.model, result.row.family), {})[result.row.condition] = result
    taken: list[CellResult] = []
    put_in, refused = [], []
    for key, ran in sorted(by_family.items()):
        name = " ".join(key)
        held = {row.condition for row in old.values() if (row.model, row.family) == key}
        missing = (expected.get(key, set()) | held) - ran.keys()
        partial = [r.row.condition for r in ran.values() if r.row.status == "partial"]
        if partial:
            refused.append(
                f"{name}: ran on {ran[partial[0]].row.n} of {ran[partial[0]].row.n_expected} images; use --mae-limit 0"
            )
        elif missing:
            hint = " (add --mae-full)" if missing & held else ""
            refused.append(f"{name}: {len(missing)} cells did not run, such as {min(missing)}{hint}")
        else:
            taken.extend(ran.values())
            put_in.append(name)
    new = Outcomes.of(results[0].row.suite, taken, *images) if taken else None
    if new is None:
        raise BaselineError("no model-family is complete, so the baseline stays as it was: " + "; ".join(refused))
    rows = {cell_of(result.row).id: result.row for result in taken}
    families = {(row.model, row.family) for row in rows.values()}
    kept = {cell: row for cell, row in old.items() if (row.model, row.family) not in families}
    if baseline is not None and kept:
        if baseline.outcomes.ids.tolist() != new.ids.tolist():
            raise BaselineError(
                f"baseline {path} is of other images and {len(kept)} of its cells were not run again: "
                "run them too, or remove the directory to start anew"
            )
        for cell in kept:
            new.prediction[cell] = baseline.outcomes.prediction[cell]
            new.block_sums[cell] = baseline.outcomes.block_sums[cell]
    return Baseline(path, kept | rows, new), put_in, refused


def save(baseline: Baseline) -> None:
    """Write ``cells.csv`` and ``outcomes.npz`` together."""
    write_together(
        {
            baseline.path / "cells.csv": table(baseline.rows.values()).encode(),
            baseline.path / "outcomes.npz": baseline.outcomes.to_bytes(),
        }
    )


def table(rows: Iterable[ResultRow]) -> str:
    """Rows as CSV, sorted by cell, floats to six digits, nulls empty."""
    text = io.StringIO()
    names = [f.name for f in fields(ResultRow)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in sorted(rows, key=cell_of):
        writer.writerow([_text(getattr(row, name)) for name in names])
    return text.getvalue()


def read_rows(path: Path) -> list[ResultRow]:
    """The rows of a CSV that :func:`table` wrote.

    Raises:
        BaselineError: a line is not such a row; the message names it.
    """
    try:
        text = path.read_bytes().decode()
    except ValueError as error:
        raise BaselineError(f"{path}: {error}; restore the file") from error
    rows = []
    with io.StringIO(text, newline="") as file:
        for number, record in enumerate(csv.DictReader(file), start=2):
            try:
                rows.append(ResultRow.from_dict({name: _value(name, text) for name, text in record.items()}))
            except (ValueError, TypeError) as error:
                raise BaselineError(f"{path}, line {number}: {error}; restore the file") from error
    return rows


_TYPES = {f.name: str(f.type) for f in fields(ResultRow)}


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _value(name: str, text: str) -> Any:
    kind = _TYPES.get(name, "str")
    if text == "" and "None" in kind:
        return None
    if kind.startswith("int"):
        return int(text)
    return float(text) if kind.startswith("float") else text
