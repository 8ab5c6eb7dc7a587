"""What claims are decided from beside outcomes: indicators of cells and layers, and checkpoints along trainings."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mae_bench.archives import arrays
from mae_bench.cells import Cell, Level, near_name
from mae_bench.images import BLOCK
from mae_bench.indicators.profile import column
from mae_bench.statistics import JACKKNIFE_GROUPS
from mae_bench.store import RunDirectory, StoreError, cell_of

EVIDENCE_VERSION = 1
WITHOUT_HEADS = ("alignment", "alignment_centered", "correlation", "retention", "newly_active")
"""Indicators kept for all heads together only."""


@dataclass(frozen=True)
class Training:
    """The arm and the seed of a model, None where its fixture does not say, and the hash of its weights."""

    arm: str | None
    seed: int | None
    weights: str = ""


@dataclass
class Trajectories:
    """Checkpoints along trainings: ``correct[model][share][condition]`` says for each block of the first ``images``
    images how many were right.
    """

    images: int = 0
    correct: dict[str, dict[float, dict[str, tuple[int, ...]]]] = field(default_factory=dict)


@dataclass
class Evidence:
    """``values[model][condition][column]`` is (value, low, high), the bounds NaN where there are none, and
    ``replicates[model][condition][column]`` the value without each of ten groups of images.
    """

    suite: str
    trainings: dict[str, Training] = field(default_factory=dict)
    values: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = field(default_factory=dict)
    replicates: dict[str, dict[str, dict[str, tuple[float, ...]]]] = field(default_factory=dict)
    trajectories: Trajectories = field(default_factory=Trajectories)

    @classmethod
    def of(cls, suite: str, runs: Sequence[RunDirectory], trajectories: Trajectories | None = None) -> Evidence:
        """The evidence that ``runs`` left; of a cell that several hold, the last counts.

        Raises:
            StoreError: a run cannot be read, is of another suite or of a part of its images, or what the runs hold of a
                model is of several weights; or two models are of one arm and seed.
        """
        evidence = cls(suite, trajectories=trajectories or Trajectories())
        for run in runs:
            for name, training in trainings(run).items():
                known = evidence.trainings.setdefault(name, training)
                if known != training:
                    raise StoreError(f"{run.path}: {name} is {training}, and {known} in another run: name runs of one")
            for name, representation in run.representations().items():
                cell = Cell.parse(name)
                evidence._check(run, cell, representation.identity)
                evidence._add(cell, representation.records)
                if representation.replicates:
                    parts = {each: tuple(values) for each, values in representation.replicates.items()}
                    evidence.replicates.setdefault(cell.model, {})[cell.condition] = parts
        # what both hold, the cells have of all images
        for run in runs:
            for result in run.cells():
                evidence._check(run, cell_of(result.row), vars(result.row))
                if result.row.status == "partial":
                    raise StoreError(
                        f"{run.path}: {cell_of(result.row).id} is of {result.row.n} of {result.row.n_expected} images: "
                        "evaluate with --mae-limit 0"
                    )
                evidence._add(cell_of(result.row), result.indicators)
        places: dict[tuple[str, int], str] = {}
        for name, training in evidence.trainings.items():
            if training.arm is None or training.seed is None:
                continue
            other = places.setdefault((training.arm, training.seed), name)
            if other != name:
                raise StoreError(
                    f"{other} and {name} are both of arm {training.arm!r}, seed {training.seed}: give one another seed"
                )
        return evidence

    def _check(self, run: RunDirectory, cell: Cell, identity: Mapping[str, Any]) -> None:
        """Raises:
        StoreError: a cell or representation of ``run`` is of another suite, or of other weights than its model.
        """
        if identity["suite"] != self.suite:
            other = identity["suite"]
            raise StoreError(f"{run.path}: {cell.id} is of suite {other}, not {self.suite}: name other runs")
        if cell.model not in self.trainings:
            missing = run.model_path(cell.model)
            raise StoreError(f"{missing} is missing, so the arm of {cell.id} is not known: evaluate it again")
        if identity["weights_hash"] != self.trainings[cell.model].weights:
            raise StoreError(
                f"{run.path}: {cell.id} was evaluated with other weights than the last of {cell.model} there: remove "
                "it, and evaluate it again"
            )

    def without(self, group: int) -> Evidence:
        """The evidence without one of the groups of images, as far as there are replicates of it."""
        left = {
            model: {
                condition: {name: (parts[group], math.nan, math.nan) for name, parts in named.items()}
                for condition, named in of_model.items()
            }
            for model, of_model in self.replicates.items()
        }
        return Evidence(self.suite, self.trainings, left, trajectories=self.trajectories)

    def in_arm(self, model: str, arm: str) -> Evidence:
        """The evidence with ``model`` as the one training of ``arm``, in place of those that are in it.

        Raises:
            StoreError: nothing is known of the model.
        """
        if model not in self.trainings:
            raise StoreError(f"the evidence knows no model {model!r}: {near_name(model, self.trainings)}")
        others = {
            name: replace(training, arm=None, seed=None) if training.arm == arm else training
            for name, training in self.trainings.items()
        }
        seeds = [t.seed for t in self.trainings.values() if t.arm == arm and t.seed is not None]
        others[model] = replace(self.trainings[model], arm=arm, seed=min(seeds, default=0))
        return replace(self, trainings=others)

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
        return {layer: value for layer, (value, _, _) in self._by_layer(model, condition, indicator, token).items()}

    def intervals(self, model: str, condition: str, indicator: str, token: str) -> dict[int, tuple[float, float]]:
        """The intervals of :meth:`layers`, where there are any."""
        found = self._by_layer(model, condition, indicator, token)
        return {layer: (low, high) for layer, (_, low, high) in found.items() if not math.isnan(low)}

    def _by_layer(
        self, model: str, condition: str, indicator: str, token: str
    ) -> dict[int, tuple[float, float, float]]:
        before, after = f"{indicator}|", f"||{token}"
        named = self.values.get(model, {}).get(condition, {})
        mine = {name: v for name, v in named.items() if name.startswith(before) and name.endswith(after)}
        return dict(sorted((int(name[len(before) : -len(after)]), v) for name, v in mine.items()))

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
        tables: dict[str, Any] = _table("value", self.values, 3) | _table(
            "replicate", self.replicates, JACKKNIFE_GROUPS
        )
        known = sorted(self.trainings)
        shares = sorted({share for by_share in self.trajectories.correct.values() for share in by_share})
        along = sorted(self.trajectories.correct)
        tried = sorted(
            {c for by_share in self.trajectories.correct.values() for named in by_share.values() for c in named},
            key=_condition_order,
        )
        correct = np.full(
            (len(along), len(shares), len(tried), -(-self.trajectories.images // BLOCK)), -1, dtype=np.int32
        )
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
                weights=np.array([self.trainings[name].weights for name in known], dtype="U"),
                **tables,
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
            file = arrays(path)
            version = int(file["evidence_version"])
            if version != EVIDENCE_VERSION:
                raise StoreError(
                    f"{path}: version {version}, this mae_bench reads {EVIDENCE_VERSION}: make it again with "
                    "mae-bench claims"
                )
            evidence = cls(str(file["suite"]))
            trained = (file[key] for key in ("trained", "arms", "seeds", "weights"))
            for name, arm, seed, weights in zip(*trained, strict=True):
                of_seed = None if seed < 0 else int(seed)
                evidence.trainings[str(name)] = Training(str(arm) or None, of_seed, str(weights))
            evidence.values = _of_table("value", file)
            evidence.replicates = _of_table("replicate", file)
            evidence.trajectories.images = int(file["trajectory_images"])
            tried = [str(name) for name in file["trajectory_conditions"]]
            shares = [float(share) for share in file["trajectory_shares"]]
            for model, counts in zip(file["trajectory_models"], file["trajectory_correct"], strict=True):
                evidence.trajectories.correct[str(model)] = {
                    share: {c: tuple(hits.tolist()) for c, hits in zip(tried, row, strict=True) if hits[0] >= 0}
                    for share, row in zip(shares, counts, strict=True)
                    if (row >= 0).any()
                }
            return evidence
        except StoreError:
            raise
        except (OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: not a file of evidence ({error}); restore it or make it again") from error


def _table(name: str, numbers: Mapping[str, Any], depth: int) -> dict[str, np.ndarray]:
    """``numbers[model][condition][column]``, each of ``depth`` numbers, as arrays called after ``name``."""
    models = sorted(numbers)
    conditions = sorted({c for of_model in numbers.values() for c in of_model}, key=_condition_order)
    columns = sorted({n for of_model in numbers.values() for named in of_model.values() for n in named})
    table = np.full((len(models), len(conditions), len(columns), depth), np.nan, dtype=np.float32)
    place = {each: k for k, each in enumerate(columns)}
    for i, model in enumerate(models):
        for j, condition in enumerate(conditions):
            for each, values in numbers[model].get(condition, {}).items():
                table[i, j, place[each]] = values
    axes = {"models": models, "conditions": conditions, "columns": columns}
    return {f"{name}s": table} | {f"{name}_{axis}": np.array(names, dtype="U") for axis, names in axes.items()}


def _of_table(name: str, file: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What :func:`_table` made arrays of."""
    columns = [str(each) for each in file[f"{name}_columns"]]
    numbers: dict[str, Any] = {}
    for model, of_model in zip(file[f"{name}_models"], file[f"{name}s"].astype(np.float64), strict=True):
        mine = numbers.setdefault(str(model), {})
        for condition, of_condition in zip(file[f"{name}_conditions"], of_model, strict=True):
            measured = np.flatnonzero(~np.isnan(of_condition[:, 0]))
            if len(measured):
                mine[str(condition)] = {columns[k]: tuple(of_condition[k].tolist()) for k in measured}
    return numbers


def trainings(run: RunDirectory) -> dict[str, Training]:
    """What a run knows of the trainings of the models that it evaluated."""
    return {
        name: Training(record["arm"], record["training_seed"], record["weights_hash"])
        for name, record in run.models().items()
    }


def _condition_order(condition: str) -> tuple[str, Level]:
    degradation, level = condition.rsplit("-", 1)
    return degradation, Level.parse(level)
