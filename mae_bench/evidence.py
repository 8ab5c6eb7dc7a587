"""What claims are decided from beside outcomes: indicators of cells and layers, and checkpoints along trainings."""

from __future__ import annotations

import json
import re
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from mae_bench.cells import Cell, Level
from mae_bench.store import RunDirectory, StoreError, cell_of

EVIDENCE_VERSION = 1
WITHOUT_HEADS = ("alignment", "alignment_centered", "correlation", "retention", "newly_active")
"""Indicators kept for all heads together only."""


def column(indicator: str, layer: int, token: str, head: int | None = None) -> str:
    """Name of a value in :attr:`Evidence.values`.

    >>> column("attention_distance", 2, "patch", head=0)
    'attention_distance|2|0|patch'
    """
    return f"{indicator}|{layer}|{'' if head is None else head}|{token}"


@dataclass(frozen=True)
class Training:
    """The arm and the seed of a model; None where its fixture does not say."""

    arm: str | None
    seed: int | None


@dataclass
class Trajectories:
    """Checkpoints along trainings: ``correct[model][share][condition]`` of the first ``images`` images were right."""

    images: int = 0
    correct: dict[str, dict[float, dict[str, int]]] = field(default_factory=dict)


@dataclass
class Evidence:
    """``values[model][condition][column]`` is (value, low, high), the bounds NaN where there are none."""

    suite: str
    trainings: dict[str, Training] = field(default_factory=dict)
    values: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = field(default_factory=dict)
    trajectories: Trajectories = field(default_factory=Trajectories)

    @classmethod
    def of(cls, suite: str, runs: Sequence[RunDirectory], trajectories: Trajectories | None = None) -> Evidence:
        """The evidence that ``runs`` left; of a cell that several hold, the last counts.

        Raises:
            StoreError: a run cannot be read.
        """
        evidence = cls(suite, trajectories=trajectories or Trajectories())
        for run in runs:
            evidence.trainings |= trainings(run)
            for result in run.cells():
                evidence._add(cell_of(result.row), result.indicators)
            for name, representation in run.representations().items():
                evidence._add(Cell.parse(name), representation.records)
        return evidence

    def _add(self, cell: Cell, records: Iterable[Mapping[str, Any]]) -> None:
        kept = self.values.setdefault(cell.model, {}).setdefault(cell.condition, {})
        for record in records:
            if record["value"] is None or (record["head"] is not None and record["indicator"] in WITHOUT_HEADS):
                continue
            bounds = (np.nan if record[key] is None else float(record[key]) for key in ("low", "high"))
            low, high = bounds
            name = column(record["indicator"], record["layer"], record["token"], record["head"])
            kept[name] = (float(record["value"]), low, high)

    def value(self, model: str, condition: str, name: str) -> float | None:
        """The value of a column, or None where it was not measured or has none."""
        found = self.values.get(model, {}).get(condition, {}).get(name)
        return None if found is None else found[0]

    def layers(self, model: str, condition: str, indicator: str, token: str) -> dict[int, float]:
        """An indicator of all heads together by layer, ascending."""
        pattern = re.compile(rf"{re.escape(indicator)}\|(\d+)\|\|{token}")
        named = ((pattern.fullmatch(name), v) for name, v in self.values.get(model, {}).get(condition, {}).items())
        return dict(sorted((int(match[1]), v[0]) for match, v in named if match))

    def heads(self, model: str, condition: str, indicator: str, token: str) -> dict[tuple[int, int], float]:
        """An indicator by block and head."""
        pattern = re.compile(rf"{re.escape(indicator)}\|(\d+)\|(\d+)\|{token}")
        named = ((pattern.fullmatch(name), v) for name, v in self.values.get(model, {}).get(condition, {}).items())
        return {(int(match[1]), int(match[2])): v[0] for match, v in named if match}

    def models(self, arm: str) -> dict[int, str]:
        """Models of ``arm`` by seed."""
        found = {t.seed: name for name, t in self.trainings.items() if t.arm == arm and t.seed is not None}
        return dict(sorted(found.items()))

    def to_bytes(self) -> bytes:
        """A NumPy archive; the same content gives the same bytes."""
        models = sorted(self.values)
        conditions = sorted({c for of_model in self.values.values() for c in of_model}, key=_condition_order)
        columns = sorted({n for of_model in self.values.values() for named in of_model.values() for n in named})
        table = np.full((len(models), len(conditions), len(columns), 3), np.nan, dtype=np.float32)
        place = {name: k for k, name in enumerate(columns)}
        for i, model in enumerate(models):
            for j, condition in enumerate(conditions):
                for name, triple in self.values[model].get(condition, {}).items():
                    table[i, j, place[name]] = triple
        known = sorted(self.trainings)
        shares = sorted({share for by_share in self.trajectories.correct.values() for share in by_share})
        along = sorted(self.trajectories.correct)
        tried = sorted(
            {c for by_share in self.trajectories.correct.values() for named in by_share.values() for c in named},
            key=_condition_order,
        )
        correct = np.full((len(along), len(shares), len(tried)), -1, dtype=np.int32)
        for i, model in enumerate(along):
            for j, share in enumerate(shares):
                for k, condition in enumerate(tried):
                    correct[i, j, k] = self.trajectories.correct[model].get(share, {}).get(condition, -1)
        with tempfile.SpooledTemporaryFile() as file:
            np.savez_compressed(
                file,
                evidence_version=np.array(EVIDENCE_VERSION),
                suite=np.array(self.suite),
                trained=np.array(known, dtype="U"),
                arms=np.array([self.trainings[name].arm or "" for name in known], dtype="U"),
                seeds=np.array([-1 if (s := self.trainings[name].seed) is None else s for name in known]),
                models=np.array(models, dtype="U"),
                conditions=np.array(conditions, dtype="U"),
                columns=np.array(columns, dtype="U"),
                values=table,
                trajectory_models=np.array(along, dtype="U"),
                trajectory_shares=np.array(shares, dtype=np.float64),
                trajectory_conditions=np.array(tried, dtype="U"),
                trajectory_images=np.array(self.trajectories.images),
                trajectory_correct=correct,
            )
            file.seek(0)
            return file.read()

    @classmethod
    def load(cls, path: Path) -> Evidence:
        """Raises:
        StoreError: the file is not what :meth:`to_bytes` gives, or of another version.
        """
        try:
            with path.open("rb") as source, np.load(source, allow_pickle=False) as file:
                version = int(file["evidence_version"])
                if version != EVIDENCE_VERSION:
                    raise StoreError(
                        f"{path}: version {version}, this mae_bench reads {EVIDENCE_VERSION}: make it again with "
                        "mae-bench claims"
                    )
                evidence = cls(str(file["suite"]))
                for name, arm, seed in zip(file["trained"], file["arms"], file["seeds"], strict=True):
                    evidence.trainings[str(name)] = Training(str(arm) or None, None if seed < 0 else int(seed))
                columns = [str(name) for name in file["columns"]]
                conditions = [str(name) for name in file["conditions"]]
                table = file["values"].astype(np.float64)
                for model, of_model in zip(file["models"], table, strict=True):
                    mine = evidence.values.setdefault(str(model), {})
                    for condition, of_condition in zip(conditions, of_model, strict=True):
                        measured = np.flatnonzero(~np.isnan(of_condition[:, 0]))
                        if len(measured):
                            mine[condition] = {columns[k]: tuple(of_condition[k].tolist()) for k in measured}
                evidence.trajectories.images = int(file["trajectory_images"])
                tried = [str(name) for name in file["trajectory_conditions"]]
                shares = [float(share) for share in file["trajectory_shares"]]
                for model, counts in zip(file["trajectory_models"], file["trajectory_correct"], strict=True):
                    evidence.trajectories.correct[str(model)] = {
                        share: {c: int(n) for c, n in zip(tried, row, strict=True) if n >= 0}
                        for share, row in zip(shares, counts, strict=True)
                        if (row >= 0).any()
                    }
                return evidence
        except StoreError:
            raise
        except (OSError, EOFError, LookupError, TypeError, ValueError, BadZipFile, zlib.error) as error:
            raise StoreError(f"{path}: not a file of evidence ({error}); restore it or make it again") from error


def trainings(run: RunDirectory) -> dict[str, Training]:
    """Arm and seed of the models that a run evaluated."""
    found = {}
    for path in sorted((run.path / "models").glob("*.json")):
        record = json.loads(path.read_text())
        found[record["name"]] = Training(record["arm"], record["training_seed"])
    return found


def _condition_order(condition: str) -> tuple[str, Level]:
    degradation, level = condition.rsplit("-", 1)
    return degradation, Level.parse(level)
