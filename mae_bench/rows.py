"""The row of a finished cell: plain scalars under a schema version."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from mae_bench.cells import Level

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = 2

Status = Literal["ok", "partial", "not_applicable"]


@dataclass(frozen=True)
class ResultRow:
    """What was measured in one cell. ``None`` is the only "not applicable"; rates are in [0, 1].

    ``status`` is ``partial`` where fewer than ``n_expected`` images of the suite were evaluated. ``distinct`` of the
    ``n`` images are no copies of others: intervals are as wide as those say. Layer indicators are those of the last
    block. ``seed`` is that of the degradation. ``machine`` is the processor or the GPU, ``libraries`` are versions of
    what computes beside torch; both are empty, and ``distinct`` is None, where schema 1 did not record them.

    Raises:
        ValueError: a field is NaN, infinite, or not a plain Python scalar; the message names the field.
    """

    suite: str
    model: str
    family: str
    degradation: str
    level: float
    unit: str
    condition: str
    status: Status
    n: int
    n_expected: int
    distinct: int | None
    top1: float | None
    top1_low: float | None
    top1_high: float | None
    top5: float | None
    top5_low: float | None
    top5_high: float | None
    nll: float | None
    ece: float | None
    retained: float | None
    flip_rate: float | None
    near_ties: int | None
    alignment_cls: float | None
    alignment_mean_patch: float | None
    alignment_centered_cls: float | None
    alignment_centered_mean_patch: float | None
    correlation_cls: float | None
    correlation_mean_patch: float | None
    retention: float | None
    retention_adjusted: float | None
    newly_active: float | None
    seconds: float
    images_per_second: float | None
    device: str
    dtype: str
    batch_size: int
    threads: int
    seed: int
    subset: str
    view: str
    classes: int
    degradation_version: int
    indicator_version: int
    manifest_hash: str
    label_map: str
    weights_hash: str
    preprocessing: str
    parameters: int
    torch_version: str
    mae_bench_version: str
    machine: str
    libraries: str
    run_id: str
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and type(value) not in (str, int, float):
                raise ValueError(
                    f"row field {field.name!r} holds {type(value).__name__}, not a plain str, int or float"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"row field {field.name!r} is {value}: a result that is not finite is not a result")
        if self.status not in get_args(Status):
            raise ValueError(f"row field 'status' is {self.status!r}, not one of {', '.join(get_args(Status))}")

    def to_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ResultRow:
        """The row that ``record`` holds, upgraded to the current schema.

        Raises:
            ValueError: fields are missing or unknown, or the schema is newer than this package.
        """
        record = upgrade(record)
        names = {field.name for field in fields(cls)}
        if missing := names - record.keys():
            raise ValueError(f"row lacks the fields {', '.join(sorted(missing))}")
        if unknown := record.keys() - names:
            raise ValueError(f"row has unknown fields {', '.join(sorted(unknown))}")
        return cls(**record)


@dataclass(frozen=True)
class CellResult:
    """A row and what stands behind it.

    ``prediction`` (n,) is the class predicted for each image by position in the suite's classes; an output
    that stands for none of them is ``-1 - output``. ``indicators`` are the records of
    :func:`mae_bench.indicators.profile.profile`. ``block_sums`` are sums per block of 256 images of what the row
    reports. ``reason`` says why a row is ``not_applicable``.
    """

    row: ResultRow
    prediction: np.ndarray
    indicators: list[dict[str, Any]]
    block_sums: dict[str, list[float]]
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "row": self.row.to_dict(),
            "prediction": self.prediction.tolist(),
            "block_sums": self.block_sums,
            "indicators": self.indicators,
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> CellResult:
        """What :meth:`to_dict` gave, its row upgraded to the current schema.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: ``record`` is something else.
        """
        import numpy as np

        row = ResultRow.from_dict(record["row"])
        degradation, level = row.condition.rsplit("-", 1)
        if degradation != row.degradation or level != str(Level(row.level, Level.parse(level).severity)):
            raise ValueError(f"its condition {row.condition} is not {row.degradation} at level {row.level}")
        prediction = record["prediction"]
        if len(prediction) != row.n or not all(type(output) is int for output in prediction):
            raise ValueError(f"{row.n} images need as many predictions, each an integer")
        if not all(abs(output) < 2**15 for output in prediction):
            raise ValueError("a prediction is none of any model's outputs")
        for name, sums in record["block_sums"].items():
            if not all(type(value) in (int, float) for value in sums):
                raise ValueError(f"block sums {name!r} are to be numbers")
        check_records(record["indicators"])
        reason = record.get("reason")
        if reason is not None and type(reason) is not str:
            raise ValueError(f"its reason is {type(reason).__name__}, not a text")
        array = np.array(prediction, dtype=np.int64)
        return cls(row, array, list(record["indicators"]), dict(record["block_sums"]), reason)


_KINDS: dict[str, tuple[type, ...]] = {
    "indicator": (str,),
    "layer": (int,),
    "head": (int, type(None)),
    "token": (str,),
    "value": (int, float, type(None)),
    "low": (int, float, type(None)),
    "high": (int, float, type(None)),
    "reason": (str, type(None)),
}
RECORD = tuple(_KINDS)
"""Entries of a record of an indicator (:class:`mae_bench.indicators.profile.Record`)."""


def check_records(records: list[dict[str, Any]]) -> None:
    """Raises:
    ValueError: one of ``records`` is none of an indicator.
    """
    for record in records:
        if record.keys() != _KINDS.keys() or not all(type(record[name]) in kind for name, kind in _KINDS.items()):
            raise ValueError(f"a record of an indicator consists of {', '.join(RECORD)}")


def upgrade(record: dict[str, Any]) -> dict[str, Any]:
    """``record`` in the current schema.

    Raises:
        ValueError: the record carries no schema version, or one that this package does not know.
    """
    version = record.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(
            f"row schema {version!r} is not known here (known: 1 to {SCHEMA_VERSION}): "
            "use the mae_bench version that wrote it, or a newer one"
        )
    for older in range(version, SCHEMA_VERSION):
        record = _UPGRADES[older](record)
    return record


def _from_1(record: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 added which machine it was, and how many images are no copies."""
    unknown = {"distinct": None, "machine": "", "libraries": ""}
    return {**unknown, **record, "schema_version": 2}


_UPGRADES = {1: _from_1}
"""From each older schema to the one after it."""


IDENTITY = (
    "suite",
    "model",
    "degradation",
    "level",
    "unit",
    "manifest_hash",
    "label_map",
    "weights_hash",
    "preprocessing",
    "degradation_version",
    "seed",
    "dtype",
    "device",
    "view",
    "subset",
    "schema_version",
    "indicator_version",
    "torch_version",
    "mae_bench_version",
)
"""Fields that must agree before a finished cell is taken for another."""

FINGERPRINT = (
    "machine",
    "libraries",
    "torch_version",
    "mae_bench_version",
    "device",
    "dtype",
    "threads",
    "batch_size",
)
"""Fields under which the same weights must give the same predictions of the same images."""


def identity_difference(row: ResultRow, other: dict[str, Any]) -> list[str]:
    """Names of the identity fields in which ``row`` and ``other`` (field to value) differ."""
    return [name for name in IDENTITY if name in other and getattr(row, name) != other[name]]
