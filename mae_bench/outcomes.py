"""Which class each image was predicted as, cell by cell."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mae_bench.archives import arrays
from mae_bench.labelled_images import LabelledImages, check_copies, first_copies
from mae_bench.rows import SCHEMA_VERSION, CellResult
from mae_bench.store import StoreError, cell_of, write_atomically

ABSENT = -(2**15)
"""Stands in :attr:`Outcomes.prediction` for an image that the cell did not evaluate."""


def _unknown() -> np.ndarray:
    return np.zeros(0, dtype=np.int32)


@dataclass
class Outcomes:
    """Per cell the class predicted for each image, and sums per block of 256 images: what paired comparisons need.

    ``prediction[cell]`` (images,) int16 holds positions in ``classes``, ``-1 - output`` for outputs that stand
    for no class, and :data:`ABSENT`. ``block_sums[cell][name]`` is (blocks,) float32. ``duplicate_of`` (images,) int32
    is the position of the first image of each group of copies; where it is not given, the ids tell.
    """

    suite: str
    ids: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    prediction: dict[str, np.ndarray] = field(default_factory=dict)
    block_sums: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    duplicate_of: np.ndarray = field(default_factory=_unknown)

    def __post_init__(self) -> None:
        """Raises:
        ValueError: ``duplicate_of`` is not of these images.
        """
        if len(self.duplicate_of) == 0:
            self.duplicate_of = first_copies(self.ids.astype("U").tolist())
        check_copies(self.duplicate_of, len(self.ids))

    @classmethod
    def of(cls, results: Sequence[CellResult], images: LabelledImages) -> Outcomes:
        """Those of ``results`` of one suite, whose images these are.

        Raises:
            StoreError: a result is of more images than there are.
        """
        ids = images.ids
        outcomes = cls(
            results[0].row.suite if results else "",
            np.array(ids, dtype="S"),
            images.labels.astype(np.int16),
            np.array(images.classes, dtype="U"),
            duplicate_of=images.duplicate_of.astype(np.int32),
        )
        for result in results:
            name = cell_of(result.row).id
            if len(result.prediction) > len(ids):
                raise StoreError(
                    f"{name} is of {len(result.prediction)} images, but there are {len(ids)}: run the cell again"
                )
            prediction = np.full(len(ids), ABSENT, dtype=np.int16)
            prediction[: len(result.prediction)] = result.prediction
            outcomes.prediction[name] = prediction
            outcomes.block_sums[name] = {
                key: np.array(value, dtype=np.float32) for key, value in result.block_sums.items()
            }
        return outcomes

    def correct(self, cell: str) -> np.ndarray:
        """(images,) whether ``cell`` classified each image rightly; absent images count as wrong."""
        return np.asarray(self.prediction[cell] == self.labels)

    def save(self, path: Path) -> None:
        write_atomically(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """A NumPy archive; the same content gives the same bytes."""
        cells = sorted(self.prediction)
        names = sorted({name for sums in self.block_sums.values() for name in sums})
        blocks = max((len(v) for sums in self.block_sums.values() for v in sums.values()), default=0)
        table = np.full((len(cells), len(names), blocks), np.nan, dtype=np.float32)
        for i, cell in enumerate(cells):
            for name, values in self.block_sums[cell].items():
                table[i, names.index(name), : len(values)] = values
        stack = [self.prediction[cell] for cell in cells]
        with tempfile.SpooledTemporaryFile() as file:
            np.savez_compressed(
                file,
                schema_version=np.array(SCHEMA_VERSION),
                suite=np.array(self.suite),
                ids=self.ids,
                labels=self.labels,
                classes=self.classes,
                duplicate_of=self.duplicate_of,
                cells=np.array(cells, dtype="U"),
                prediction=np.array(stack, dtype=np.int16).reshape(len(cells), len(self.ids)),
                block_sum_names=np.array(names, dtype="U"),
                block_sums=table,
            )
            file.seek(0)
            return file.read()

    @classmethod
    def load(cls, path: Path) -> Outcomes:
        """What :meth:`save` wrote, now or under an earlier schema.

        Raises:
            StoreError: the file is something else, or of a schema that is not known here.
        """
        try:
            held = arrays(path)
            version = int(held["schema_version"])
            if not 1 <= version <= SCHEMA_VERSION:
                raise StoreError(
                    f"{path}: schema {version}, this mae_bench reads 1 to {SCHEMA_VERSION}: use the version that wrote "
                    "it, or make the baseline again with --mae-update-baseline"
                )
            _check_outcomes(held, version)
            outcomes = cls(str(held["suite"]), held["ids"], held["labels"], held["classes"])
            if version > 1:
                outcomes.duplicate_of = held["duplicate_of"]
            names = held["block_sum_names"].tolist()
            for cell, prediction, table in zip(
                held["cells"].tolist(), held["prediction"], held["block_sums"], strict=True
            ):
                outcomes.prediction[cell] = prediction
                sums = {name: values[~np.isnan(values)] for name, values in zip(names, table, strict=True)}
                outcomes.block_sums[cell] = {name: values for name, values in sums.items() if len(values)}
            return outcomes
        except StoreError:
            raise
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path}: not a file of outcomes ({error}); restore it or make the baseline again"
            ) from error


def _check_outcomes(held: Mapping[str, np.ndarray], version: int) -> None:
    """Raises:
    LookupError: an array is missing.
    ValueError: one is of another type or shape than :meth:`Outcomes.to_bytes` gives it, or its values are out of range.
    """
    images, cells, names = ((len(np.atleast_1d(held[key])),) for key in ("ids", "cells", "block_sum_names"))
    kinds: dict[str, tuple[str, tuple[int, ...]]] = {
        "suite": ("U", ()),
        "ids": ("S", images),
        "labels": ("int16", images),
        "classes": ("U", held["classes"].shape[:1]),
        "cells": ("U", cells),
        "prediction": ("int16", cells + images),
        "block_sum_names": ("U", names),
        "block_sums": ("float32", cells + names + held["block_sums"].shape[2:3]),
    }
    if version > 1:
        kinds["duplicate_of"] = ("int32", images)
    for name, (kind, shape) in kinds.items():
        array = held[name]
        if kind not in (array.dtype.kind, array.dtype.name) or array.shape != shape:
            raise ValueError(f"its arrays do not fit each other: {name} is {array.dtype}{array.shape}")
    if held["classes"].ndim != 1 or held["block_sums"].ndim != 3:
        raise ValueError("its arrays do not fit each other")
    for name in ("ids", "cells", "block_sum_names"):
        if len(np.unique(held[name])) != len(held[name]):
            raise ValueError(f"{name} holds one twice")
    for name in ("labels", "prediction"):
        if (held[name] >= len(held["classes"])).any():
            raise ValueError(f"{name} holds none of its {len(held['classes'])} classes")
    if (held["labels"] < 0).any():
        raise ValueError("labels holds none of its classes")
    if version > 1:
        check_copies(held["duplicate_of"], *images)
