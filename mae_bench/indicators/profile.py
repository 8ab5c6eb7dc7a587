"""Layer profiles: every indicator of every layer, head and token kind in long form, from sums per block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mae_bench.indicators import alignment, retention
from mae_bench.indicators.block_sums import BlockSums
from mae_bench.models.taps import KINDS, POOLED
from mae_bench.statistics import block_interval

Key = tuple[int, str]


@dataclass(frozen=True)
class Record:
    """One value; ``head`` None means all heads together. ``low`` and ``high`` are its 95 % interval over images
    (Student's t over blocks), for means over images on at least four blocks. A null carries its ``reason``.
    """

    indicator: str
    layer: int
    head: int | None
    token: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        # there are hundreds in a cell, and dataclasses.asdict copies every number as if it held others
        return dict(vars(self))


def column(indicator: str, layer: int, token: str, head: int | None = None) -> str:
    """Name of the value of a record among those of its cell.

    >>> column("attention_distance", 2, "patch", head=0)
    'attention_distance|2|0|patch'
    """
    return f"{indicator}|{layer}|{'' if head is None else head}|{token}"


def token_records(
    layer: int, token: str, sums: BlockSums | None, absent: str, added: Sequence[str] = ()
) -> list[Record]:
    """Alignment of one layer and token kind, and of pooled ones what is ``added``; without ``sums`` nulls with the
    reason ``absent``.
    """
    names = (*alignment.INDICATORS, *(added if token in POOLED else ()))
    if sums is None:
        return [Record(name, layer, None, token, reason=absent) for name in names]
    images = sums.per_block("images")
    count, weights = float(sums.total("images")), [int(n) for n in images]
    records = []
    for name in names:
        interval = block_interval((sums.per_block(name) / images).tolist(), weights)
        low, high = interval or (None, None)
        value = float(sums.total(name)) / count
        reason = "few_blocks" if interval is None else None
        records.append(Record(name, layer, None, token, value, low, high, reason))
    return records


def head_records(block: int, token: str, sums: BlockSums | None, absent: str) -> list[Record]:
    """Retention of one block and token kind, all heads together and each; without ``sums`` nulls as above."""
    if sums is None:
        return [Record(name, block, None, token, reason=absent) for name in retention.INDICATORS]
    observations = float(sums.total("observations"))
    counts = [sums.total(name) for name in ("overlap", "clean", "degraded")]
    heads: list[tuple[int | None, retention.Retention]] = [(None, retention.retention_values(observations, *counts))]
    heads += enumerate(retention.head_retentions(observations, *counts))
    return [
        Record(name, block, head, token, value, reason=values.reason if value is None else None)
        for head, values in heads
        for name in retention.INDICATORS
        for value in [getattr(values, name)]
    ]


def profile(
    blocks: int,
    tokens: Mapping[Key, BlockSums],
    heads: Mapping[Key, BlockSums],
    token_reason: Mapping[Key, str],
    head_reason: str | None,
    added: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Records of a model of ``blocks`` blocks, as dictionaries. ``token_reason`` and ``head_reason`` say why sums
    are absent; where they say nothing, the layer has no such token. ``added`` names indicators of packages.
    """
    records: list[Record] = []
    for layer in range(blocks + 2):
        for token in KINDS:
            absent = token_reason.get((layer, token), f"no {token} token")
            records += token_records(layer, token, tokens.get((layer, token)), absent, added)
    for block in range(1, blocks + 1):
        for token in KINDS:
            absent = head_reason or f"no {token} token"
            records += head_records(block, token, heads.get((block, token)), absent)
    return [record.to_dict() for record in records]
