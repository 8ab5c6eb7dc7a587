"""The committed results of a suite, and what may be compared with them or replace them."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mae_bench.errors import BenchError
from mae_bench.history import BaselineError, Update, check_may_update, commit, history_of, located, locked, moment
from mae_bench.labelled_images import LabelledImages
from mae_bench.markup import csv_text, csv_value, markdown_text, terminal_text
from mae_bench.outcomes import ABSENT, Outcomes
from mae_bench.regression import Rule, Shift, Verdict, indicator_shifts, verdict
from mae_bench.rows import FINGERPRINT, CellResult, ResultRow
from mae_bench.store import cell_of

COMPARABLE = ("degradation_version", "seed", "view", "label_map")
"""Fields that must agree between a cell and the baseline's before their outcomes may be paired (the level is
part of the cell's id)."""


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
    """Rows and outcomes as committed in ``path``, and the updates that made them."""

    path: Path
    rows: dict[str, ResultRow]
    outcomes: Outcomes
    history: tuple[Update, ...] = ()

    @classmethod
    def load(cls, path: Path, suite: str | None) -> Baseline | None:
        """The baseline in ``path`` between two updates, or None where there is none. ``suite`` None takes any.

        Raises:
            BaselineError: a file is missing, unreadable or another than the last update wrote, or the baseline is of
                another suite.
            StoreError: the outcomes are unreadable or of another schema.
        """
        while True:
            before = moment(path)
            try:
                baseline = cls._read(path, suite)
            except BenchError:
                if moment(path) == before:
                    raise
            else:
                if moment(path) == before:
                    return baseline

    @classmethod
    def _read(cls, path: Path, suite: str | None) -> Baseline | None:
        history = history_of(path)
        files = located(path, history)
        if not files:
            return None
        outcomes = Outcomes.load(files["outcomes.npz"])
        rows = read_rows(files["cells.csv"])
        suites = {outcomes.suite, *(row.suite for row in rows)}
        if suite is None and len(suites) > 1:
            raise BaselineError(f"baseline {path} is of several suites, {', '.join(sorted(suites))}; restore it")
        if suite is not None and suites != {suite}:
            raise BaselineError(
                f"baseline {path} is of suite {', '.join(sorted(suites))}, the run is of {suite}: "
                "name another with --mae-baseline DIR, or none"
            )
        named = {cell_of(row).id: row for row in rows}
        if named.keys() != outcomes.prediction.keys() or len(named) != len(rows):
            raise BaselineError(f"baseline {path}: cells.csv and outcomes.npz hold different cells; restore both")
        return cls(path, named, outcomes, history)

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

    def differing(self, row: ResultRow) -> dict[str, tuple[str, str]]:
        """What was known or done otherwise where the baseline's cell was evaluated: field to its value here and there.

        Empty where the same weights must give the same predictions, and where the baseline lacks the cell.
        """
        there = self.rows.get(cell_of(row).id)
        return {} if there is None else differing(row, there)

    def compare(
        self, result: CellResult, ids: Sequence[str], rule: Rule, duplicate_of: np.ndarray | None = None
    ) -> Verdict | Incomparable:
        """The verdict on a finished cell whose images are ``ids``, or why it has none.

        Of images that are copies of each other the first that is compared speaks for all: ``duplicate_of`` (images,)
        holds the position of the first of each group among ``ids``; without it the baseline's groups are taken. Where
        nothing differs that could change a prediction, none may have changed.
        """
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
        held = self.outcomes.prediction[cell][then] != ABSENT
        here, then = here[held], then[held]
        if not len(here):
            return Incomparable(cell, "images", f"{len(ids)} images", "none of them")
        groups = self.outcomes.duplicate_of[then] if duplicate_of is None else duplicate_of[here]
        first = np.sort(np.unique(groups, return_index=True)[1])
        here, then = here[first], then[first]
        note = "" if result.row.weights_hash == there.weights_hash else "weights changed"
        return verdict(
            cell,
            self.outcomes.prediction[cell][then],
            result.prediction[here],
            self.outcomes.labels[then],
            rule,
            note,
            repeatable=is_repeated(result.row, there),
        )

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


def differing(here: ResultRow, there: ResultRow) -> dict[str, tuple[str, str]]:
    """What was known or done otherwise where the two cells were evaluated: field to its value here and there. What is
    unknown of both may differ.
    """
    values = {name: (str(getattr(here, name)), str(getattr(there, name))) for name in FINGERPRINT}
    return {
        name: (mine or "unknown", theirs or "unknown")
        for name, (mine, theirs) in values.items()
        if mine != theirs or not mine
    }


def is_repeated(here: ResultRow, there: ResultRow) -> bool:
    """Whether the same was computed in the same way, in batches of the same images."""
    same = ("weights_hash", "preprocessing", "label_map", "manifest_hash")
    return (
        here.dtype == "float32"
        and all(getattr(here, name) == getattr(there, name) for name in same)
        and not differing(here, there)
    )


def updated(
    baseline: Baseline | None,
    path: Path,
    results: Sequence[CellResult],
    expected: dict[tuple[str, str], set[str]],
    images: LabelledImages,
) -> tuple[Baseline, list[str], list[str]]:
    """The baseline with complete model-families of ``results`` put in; what was put in; what was not, and why.

    ``expected`` maps (model, family) to the conditions that make it complete, ``images`` are those of the suite. A
    model-family is complete when each of its conditions, and each that the baseline holds of it, ran on all of them.

    Raises:
        BaselineError: no model-family is complete; or the baseline is of other images and some of its cells would stay.
    """
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
    new = Outcomes.of(taken, images) if taken else None
    if new is None:
        raise BaselineError("no model-family is complete, so the baseline stays as it was: " + "; ".join(refused))
    rows = {cell_of(result.row).id: result.row for result in taken}
    families = {(row.model, row.family) for row in rows.values()}
    kept = {cell: row for cell, row in old.items() if (row.model, row.family) not in families}
    if baseline is not None and kept:
        if any(
            getattr(baseline.outcomes, name).tolist() != getattr(new, name).tolist()
            for name in ("ids", "labels", "classes")
        ):
            raise BaselineError(
                f"baseline {path} is of other images and {len(kept)} of its cells were not run again: "
                "run them too, or remove the directory to start anew"
            )
        for cell in kept:
            new.prediction[cell] = baseline.outcomes.prediction[cell]
            new.block_sums[cell] = baseline.outcomes.block_sums[cell]
    history = baseline.history if baseline is not None else ()
    return Baseline(path, kept | rows, new, history), put_in, refused


def save(
    baseline: Baseline, put_in: Sequence[str], reason: str, run_id: str, root: Path, run: Path | None = None
) -> Update:
    """Write the ``baseline`` that :func:`updated` gave, and why; the line that the history has now.

    ``root`` and ``run`` are as in :func:`check_may_update`, which is asked again.

    Raises:
        BaselineError: the update is refused, another came between reading and writing, or the disk is full; the files
            are as they were.
    """
    path = baseline.path
    with locked(path):
        revision = check_may_update(path, reason, root, run)
        before = Baseline.load(path, baseline.outcomes.suite)
        if (before.history if before is not None else ()) != baseline.history:
            raise BaselineError(f"baseline {path} was updated by another run in the meantime: update it again")
        contents = {"cells.csv": table(baseline.rows.values()).encode(), "outcomes.npz": baseline.outcomes.to_bytes()}
        update = Update(
            datetime.now(UTC).isoformat(timespec="seconds"),
            reason.strip(),
            run_id,
            revision,
            version("mae_bench"),
            ", ".join(put_in),
            len(before.rows) if before is not None else 0,
            len(baseline.rows),
            *(hashlib.sha256(content).hexdigest() for content in contents.values()),
        )
        commit(path, contents, update)
    return update


def adopt(path: Path, suite: str, reason: str, root: Path) -> Update:
    """Write the baseline in ``path`` again, the same in the current schema, with a line in its history.

    Raises:
        BaselineError: there is none, or as :func:`save`.
    """
    with locked(path):
        baseline = Baseline.load(path, suite)
        if baseline is None:
            raise BaselineError(f"there is no baseline in {path}: make one with --mae-limit 0 --mae-update-baseline")
        return save(baseline, [], reason, "", root)


@dataclass(frozen=True)
class Change:
    """A model-family on both sides of an update: its ``cells`` now, how many of them were ``added`` and how many others
    ``removed``, and its mean top-1, over the cells of both sides where there are some, else over each side's own.
    ``worst`` is the condition of both sides that loses most, or gains least, and ``worst_change`` by how much.
    """

    model: str
    family: str
    cells: int
    added: int
    removed: int
    before: float | None
    after: float | None
    worst: str | None = None
    worst_change: float | None = None

    @property
    def change(self) -> float | None:
        """None where no cell is on both sides, since others may be harder."""
        return self.after - self.before if self.worst and self.after is not None and self.before is not None else None


def changes(before: Baseline | None, after: Baseline) -> list[Change]:
    """What an update does to each model-family of which a row is another than it was."""
    sides = [before.rows if before is not None else {}, after.rows]
    families = {(row.model, row.family) for rows in sides for row in rows.values()}
    found = []
    for model, family in sorted(families):
        then, now = (
            {row.condition: row for row in rows.values() if (row.model, row.family) == (model, family)}
            for rows in sides
        )
        if then == now:
            continue
        old, new = ({name: row.top1 for name, row in rows.items() if row.top1 is not None} for rows in (then, now))
        both = sorted(old.keys() & new.keys())
        worst = min(both, key=lambda name: new[name] - old[name], default=None)
        found.append(
            Change(
                model,
                family,
                len(now),
                len(now.keys() - then.keys()),
                len(then.keys() - now.keys()),
                _mean([old[name] for name in both or old]),
                _mean([new[name] for name in both or new]),
                worst,
                new[worst] - old[worst] if worst is not None else None,
            )
        )
    return found


def change_table(found: Sequence[Change], markdown: bool = False) -> str:
    """Old and new side by side, one line per model-family; for the terminal, or in Markdown."""
    from tabulate import tabulate

    shown = markdown_text if markdown else terminal_text
    lines = [
        (
            shown(one.model),
            one.family,
            one.cells,
            one.added,
            one.removed,
            "-" if one.before is None else f"{100 * one.before:.2f} %",
            "-" if one.after is None else f"{100 * one.after:.2f} %",
            "-" if one.change is None else f"{100 * one.change:+.2f}",
            "-" if one.worst_change is None else f"{one.worst} {100 * one.worst_change:+.2f}",
        )
        for one in found
    ]
    headers = ["model", "family", "cells", "added", "removed", "before", "after", "points", "worst cell"]
    return tabulate(lines, headers=headers, tablefmt="pipe" if markdown else "simple", disable_numparse=True)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def table(rows: Iterable[ResultRow]) -> str:
    """Rows as CSV, sorted by cell, floats to six digits, nulls empty, text so that no spreadsheet computes it."""
    text = io.StringIO()
    names = [f.name for f in fields(ResultRow)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in sorted(rows, key=cell_of):
        writer.writerow([_text(getattr(row, name)) for name in names])
    return text.getvalue()


def read_rows(path: Path) -> list[ResultRow]:
    """The rows of a CSV that :func:`table` wrote, now or under an older schema.

    Raises:
        BaselineError: a line is not such a row; the message names it.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise BaselineError(f"{path}: {error}; restore the file") from error
    rows = []
    records = csv.reader(io.StringIO(text, newline=""))
    try:
        names = next(records, [])
        for record in records:
            if len(record) != len(names):
                raise ValueError(f"{len(record)} fields under {len(names)} columns")
            cells = zip(names, record, strict=True)
            row = ResultRow.from_dict({name: _value(name, cell) for name, cell in cells})
            cell_of(row)  # which its condition may be too damaged for
            rows.append(row)
    except (ValueError, TypeError, csv.Error) as error:
        raise BaselineError(f"{path}, line {records.line_num}: {error}; restore the file") from error
    return rows


_TYPES = {f.name: str(f.type) for f in fields(ResultRow)}


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return csv_text(value) if isinstance(value, str) else str(value)


def _value(name: str, cell: str) -> Any:
    kind = _TYPES.get(name, "str")
    if cell == "" and "None" in kind:
        return None
    if kind.startswith("int"):
        return int(cell)
    return float(cell) if kind.startswith("float") else csv_value(cell)
