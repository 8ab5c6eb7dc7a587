"""The images of a suite as a run writes them down: ids, labels, classes, and which are copies of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mae_bench.images import Manifest


def first_copies(ids: Sequence[str]) -> np.ndarray:
    """(images,) int32: for each image the position of the first of those with its content, which is its own where it is
    no copy. ``ids`` are content hash and occurrence number.

    >>> first_copies(["0a-0", "0b-0", "0a-1"]).tolist()
    [0, 1, 0]
    """
    first: dict[str, int] = {}
    return np.array([first.setdefault(i.rpartition("-")[0] or i, k) for k, i in enumerate(ids)], dtype=np.int32)


def check_copies(duplicate_of: np.ndarray, images: int) -> None:
    """Raises:
    ValueError: an image does not point at itself or at one before it that does.
    """
    if duplicate_of.shape != (images,) or not np.issubdtype(duplicate_of.dtype, np.integer):
        raise ValueError(f"duplicate_of is {duplicate_of.dtype}{duplicate_of.shape}, not a position for each image")
    within = ((duplicate_of >= 0) & (duplicate_of <= np.arange(images))).all()
    if not within or (duplicate_of[duplicate_of] != duplicate_of).any():
        raise ValueError("duplicate_of does not point at the first of each group of copies")


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """The images of a suite in the manifest's order: ``ids``, ``labels`` (images,) int64 as positions in ``classes``,
    and ``duplicate_of`` (images,) int32, the position of the first image of each group of copies.
    """

    ids: list[str]
    labels: np.ndarray
    classes: list[str]
    duplicate_of: np.ndarray

    @classmethod
    def of(
        cls, ids: Sequence[str], labels: np.ndarray, classes: Sequence[str], duplicate_of: np.ndarray | None = None
    ) -> LabelledImages:
        """Images of these ``ids`` and ``labels``. Where nothing is known of copies, the ids tell.

        Raises:
            ValueError: ``duplicate_of`` is not of these images.
        """
        copies = first_copies(ids) if duplicate_of is None else duplicate_of
        check_copies(copies, len(ids))
        return cls(list(ids), labels, list(classes), copies.astype(np.int32))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> LabelledImages:
        """What :meth:`to_dict` gave. Where it says nothing of copies, the ids tell.

        Raises:
            ValueError, LookupError, TypeError, ArithmeticError: ``record`` is something else.
        """
        ids, labels, classes = (list(record[name]) for name in ("ids", "labels", "classes"))
        if not all(type(name) is str for name in ids + classes) or not all(type(label) is int for label in labels):
            raise ValueError("ids and classes are to be texts, labels integers")
        if len(set(ids)) != len(ids) or len(labels) != len(ids):
            raise ValueError(f"{len(ids)} ids, {len(set(ids))} of them different, and {len(labels)} labels")
        if not all(0 <= label < len(classes) for label in labels):
            raise ValueError(f"a label is none of {len(classes)} classes")
        given = record.get("duplicate_of")
        if given is not None and not all(type(position) is int for position in given):
            raise ValueError("duplicate_of is to be integers")
        duplicate_of = None if given is None else np.array(given, dtype=np.int64)
        return cls.of(ids, np.array(labels, dtype=np.int64), classes, duplicate_of)

    @cached_property
    def manifest_hash(self) -> str:
        """That of the manifest which lists these images."""
        return Manifest(tuple(self.classes), tuple(self.ids), self.labels).hash

    def to_dict(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes),
            "ids": list(self.ids),
            "labels": self.labels.tolist(),
            "duplicate_of": self.duplicate_of.tolist(),
        }
