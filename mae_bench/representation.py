"""What the layers of a model make of the classes under a degradation: how far apart they are, where the heads look,
what is kept. One representation belongs to one cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_bench.errors import BenchError
from mae_bench.images import BLOCK
from mae_bench.indicators.attention import uniform_distance
from mae_bench.indicators.profile import Record, column
from mae_bench.indicators.separability import SeparabilityValues, separability_profile, tenths
from mae_bench.models.taps import KINDS, Features
from mae_bench.randomness import random_uniform
from mae_bench.reference import keyed, mapped, mapped_again, with_names
from mae_bench.rows import check_records
from mae_bench.statistics import JACKKNIFE_GROUPS, jackknife_interval, mean_interval, wilson
from mae_bench.suites import Suite

IMAGES_PER_CLASS = 100
"""Images of each class, the first in the manifest's order, on which classes are told apart, whatever the limit."""
ATTENTION_IMAGES = BLOCK
"""Leading images whose attention maps are read."""

SEPARABILITY = (
    "separability",
    "separability_permuted",
    "separability_excess",
    "separability_within",
    "subspace_accuracy",
    "fisher_ratio",
    "knn_accuracy",
)
ATTENTION = ("attention_distance", "attention_distance_ratio", "attention_entropy")
Key = tuple[int, str]


class RepresentationError(BenchError):
    """A value that no representation has."""


@dataclass(frozen=True)
class Representation:
    """Records (as :class:`mae_bench.indicators.profile.Record`) of a cell with the fields that identify it.
    ``replicates`` hold, by :func:`mae_bench.indicators.profile.column`, a value without each of ten groups of images.
    """

    identity: dict[str, Any]
    records: list[dict[str, Any]]
    replicates: dict[str, list[float]] = field(default_factory=dict)

    def value(self, indicator: str, layer: int, token: str, head: int | None = None) -> float | None:
        """One value; ``head`` None means all heads together. None where it is not applicable, as its record says.

        Raises:
            RepresentationError: there is no such indicator, layer, token or head; those that there are are named.
        """
        left, of = self.records, ""
        for name, choice in (("indicator", indicator), ("layer", layer), ("token", token), ("head", head)):
            there = dict.fromkeys(record[name] for record in left)
            left = [record for record in left if record[name] == choice]
            if not left:
                known = ", ".join(str(each) for each in there)
                raise RepresentationError(f"{of or 'the representation'} has no {name} {choice}: name one of {known}")
            of = f"{of}, {name} {choice}" if of else str(choice)
        found: float | None = left[0]["value"]
        return found

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Representation:
        """Raises:
        ValueError: ``record`` is not what :meth:`to_dict` gives.
        """
        if not {"identity", "records"} <= record.keys() <= {f.name for f in fields(cls)}:
            raise ValueError("not a representation")
        check_records(record["records"])
        return cls(**record)


@dataclass(frozen=True)
class Sample:
    """The images on which classes are told apart: ``positions`` (N,) in the manifest, ascending, and their labels."""

    positions: np.ndarray
    labels: Tensor

    @classmethod
    def of(cls, suite: Suite) -> Sample:
        labels = suite.manifest.labels
        rank = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            rank[members] = np.arange(len(members))
        positions = np.flatnonzero(rank < IMAGES_PER_CLASS)
        return cls(positions, torch.from_numpy(labels[positions]))

    @property
    def blocks(self) -> range:
        """Blocks that hold the sample."""
        return range(int(self.positions[-1]) // BLOCK + 1)

    def window(self, start: int, stop: int) -> tuple[np.ndarray, slice]:
        """Which images of ``start`` to ``stop`` are in the sample, counted from ``start``, and their place in it."""
        first, last = np.searchsorted(self.positions, [start, stop])
        return self.positions[first:last] - start, slice(int(first), int(last))


@dataclass
class Collector:
    """Tokens of the sample, memory-mapped below ``folder``, and attention of the leading images, as blocks pass."""

    sample: Sample
    folder: Path
    tokens: dict[Key, np.memmap] = field(default_factory=dict)
    attention: dict[Key, list[Tensor]] = field(default_factory=dict)

    def add(self, start: int, features: Features, keys: Tensor) -> None:
        """Keep of the block that begins at image ``start`` what belongs to the sample; of the ``patch`` kind one token
        per image, drawn by the image's key in ``keys`` (B,).
        """
        inside, place = self.sample.window(start, start + len(keys))
        if not len(inside):
            return
        chosen = torch.from_numpy(inside).to(keys.device)
        draw = random_uniform(keys, 1, 0, "patch_sample")[:, 0][chosen]
        for key, values in features.tokens.items():
            values = values[chosen]
            if key[1] == "patch":
                token = (draw * values.shape[1]).long().clamp_max(values.shape[1] - 1)
                values = values[torch.arange(len(values), device=values.device), token]
            if key not in self.tokens:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.tokens[key] = mapped(self._file(key), (len(self.sample.positions), values.shape[1]), np.float32)
            self.tokens[key][place] = values.float().cpu().numpy()

    def add_attention(self, values: Mapping[Key, Tensor]) -> None:
        """Keep ``values[block, indicator]`` (B, heads) of some of the leading images."""
        for key, value in values.items():
            self.attention.setdefault(key, []).append(value.double().cpu())

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """By name what is not in its files, and of these the shapes."""
        shapes = {key: np.array(tokens.shape) for key, tokens in self.tokens.items()}
        attention = {key: torch.cat(parts).numpy() for key, parts in self.attention.items()}
        return with_names("collected", shapes) | with_names("attention", attention)

    @classmethod
    def finished(cls, sample: Sample, folder: Path, arrays: Mapping[str, np.ndarray]) -> Collector:
        """The one of which ``folder`` holds the files and ``arrays`` are :attr:`arrays`; nothing can be added to it.

        Raises:
            OSError, ValueError: a file is missing or has another size.
        """
        collector = cls(sample, folder)
        for key, shape in keyed("collected", arrays).items():
            collector.tokens[key] = mapped_again(collector._file(key), tuple(shape.tolist()), np.float32)
        for key, values in keyed("attention", arrays).items():
            collector.attention[key] = [torch.from_numpy(values)]
        return collector

    def _file(self, key: Key) -> Path:
        return self.folder / f"{key[0]}-{key[1]}.bin"


Replicates = dict[str, list[float]]
"""Values by :func:`mae_bench.indicators.profile.column`, each without one of ten groups of images."""


def separability_records(
    blocks: int,
    clean: Collector,
    degraded: Collector | None,
    constant: Iterable[Key],
    absent: str | None,
    device: torch.device,
    jackknife: bool = False,
) -> tuple[list[dict[str, Any]], Replicates]:
    """How well classes are told apart at each layer and kind of token; ``degraded`` None means the clean cell.
    ``absent`` says why a model has no tokens at all. ``jackknife`` asks for replicates, and from them for intervals of
    what has no other.
    """
    records: list[Record] = []
    replicates: Replicates = {}
    labels = clean.sample.labels.to(device)
    groups = tenths(labels)
    without = set(constant)
    for layer in range(blocks + 2):
        for kind in KINDS:
            key = (layer, kind)
            if absent is not None or key in without or key not in clean.tokens:
                reason = absent or ("constant" if key in without else f"no {kind} token")
                records += [Record(name, layer, None, kind, reason=reason) for name in SEPARABILITY]
                continue
            tokens = torch.from_numpy(np.array(clean.tokens[key])).to(device)
            other = None if degraded is None else torch.from_numpy(np.array(degraded.tokens[key])).to(device)
            values = separability_profile(tokens, labels, other)
            parts = _without_each(groups, tokens, labels, other) if jackknife else []
            for name in SEPARABILITY:
                record = _separability_record(name, layer, kind, values)
                named = [value for part in parts if (value := getattr(part, name)) is not None]
                if record.value is not None and len(named) == JACKKNIFE_GROUPS:
                    replicates[column(name, layer, kind)] = named
                    if record.low is None:
                        low, high = jackknife_interval(record.value, named)
                        record = replace(record, low=low, high=high)
                records.append(record)
    return [asdict(record) for record in records], replicates


def _without_each(groups: Tensor, tokens: Tensor, labels: Tensor, degraded: Tensor | None) -> list[SeparabilityValues]:
    """The profile without each group of images; none where a class is too small to do without."""
    if int(torch.unique(labels, return_counts=True)[1].min()) < 2 * JACKKNIFE_GROUPS:
        return []
    return [separability_profile(tokens, labels, degraded, groups == group) for group in range(JACKKNIFE_GROUPS)]


def _separability_record(name: str, layer: int, kind: str, values: SeparabilityValues) -> Record:
    value = getattr(values, name)
    if value is None:
        return Record(name, layer, None, kind, reason="undefined")
    hits = {"subspace_accuracy": values.subspace_hits, "knn_accuracy": values.knn_hits}.get(name)
    if hits is None:
        return Record(name, layer, None, kind, float(value))
    low, high = wilson(int(hits.sum()), len(hits))
    return Record(name, layer, None, kind, float(value), low, high)


def attention_records(
    blocks: int,
    collector: Collector,
    grid: tuple[int, int] | None,
    absent: str | None,
    jackknife: bool = False,
) -> tuple[list[dict[str, Any]], Replicates]:
    """Where the heads of each block look, with 95 % intervals over images (Student's t); head None is their mean, of
    which ``jackknife`` asks for replicates.
    """
    records: list[Record] = []
    replicates: Replicates = {}
    for block in range(1, blocks + 1):
        values = {name: parts for (at, name), parts in collector.attention.items() if at == block}
        if not values or grid is None:
            records += [Record(name, block, None, "patch", reason=absent or "no attention") for name in ATTENTION]
            continue
        per_image = {name: torch.cat(parts) for name, parts in values.items()}
        per_image["attention_distance_ratio"] = per_image["attention_distance"] / uniform_distance(grid)
        for name in ATTENTION:
            heads = per_image[name]
            for head, each in ((None, heads.mean(1)), *enumerate(heads.T)):
                low, high = mean_interval(each.numpy())
                records.append(Record(name, block, head, "patch", float(each.mean()), low, high))
            if jackknife and len(heads) > JACKKNIFE_GROUPS:
                groups = torch.arange(len(heads)) % JACKKNIFE_GROUPS
                parts = [float(heads[groups != group].mean()) for group in range(JACKKNIFE_GROUPS)]
                replicates[column(name, block, "patch")] = parts
    return [asdict(record) for record in records], replicates
