"""JSON that says itself whether it is whole: its first entry is the SHA-256 of the rest."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from mae_bench.rows import SCHEMA_VERSION

_SEAL = re.compile(rb'\{"sha256": "([0-9a-f]{64})", ')


def sealed(record: Mapping[str, Any]) -> bytes:
    """``record`` as a line of JSON with its schema version, under a seal.

    The seal is of the line as it would be without the seal, byte by byte.

    Raises:
        ValueError: a number is not finite.

    >>> print(sealed({"top1": 0.5}).decode(), end="")  # doctest: +ELLIPSIS
    {"sha256": "7a98c016c965...", "schema_version": 2, "top1": 0.5}
    """
    body = (json.dumps({"schema_version": SCHEMA_VERSION, **record}, allow_nan=False) + "\n").encode()
    return b'{"sha256": "%s", %s' % (hashlib.sha256(body).hexdigest().encode(), body[1:])


def unsealed(content: bytes) -> tuple[dict[str, Any], int]:
    """The record in what :func:`sealed` gave, and its schema version; of what was written before there were seals, the
    record as it is and version 1.

    Raises:
        ValueError: the content is not as it was sealed, no JSON object, of a newer schema, or holds a number that is
            not finite.

    >>> unsealed(sealed({"top1": 0.5})), unsealed(b'{"top1": 0.5}')
    (({'top1': 0.5}, 2), ({'top1': 0.5}, 1))
    """
    seal = _SEAL.match(content)
    body = content if seal is None else b"{" + content[seal.end() :]
    if seal is not None and hashlib.sha256(body).hexdigest().encode() != seal[1]:
        raise ValueError("its content is not what its sha256 says")
    try:
        record = json.loads(body.decode(), parse_constant=_refused, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"it holds {type(record).__name__}, not an object")
    version = record.pop("schema_version", 1)
    if (seal is None) != (version == 1) or "sha256" in record:
        raise ValueError("its sha256 is damaged or missing")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(f"schema {version!r} is not known here (known: 1 to {SCHEMA_VERSION}), use a newer mae_bench")
    return record, version


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def _refused(text: str) -> float:
    raise ValueError(f"{text} is not finite")
