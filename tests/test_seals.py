"""Sealed JSON: read as it was written, and refused after any change."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.rows import SCHEMA_VERSION
from mae_bench.seals import sealed, unsealed

LAW = settings(max_examples=30, derandomize=True)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=3)
RECORDS = st.dictionaries(st.sampled_from(["row", "", "größe", '"']), VALUES)
RECORD = {"row": {"top1": 1e-05, "view": "größe"}, "prediction": [1, -2], "reason": None}


@LAW
@given(RECORDS)
def test_record_is_read_as_it_was_written(record: dict[str, Any]) -> None:
    content = sealed(record)
    assert unsealed(content) == (record, SCHEMA_VERSION)
    assert sealed(unsealed(content)[0]) == content
    assert content.count(b"\n") == 1


def test_seal_is_of_the_line_without_it() -> None:
    line = sealed(RECORD).decode()
    digest = json.loads(line)["sha256"]
    rest = line.replace(f'"sha256": "{digest}", ', "")
    assert json.loads(rest) == {"schema_version": SCHEMA_VERSION, **RECORD}
    assert hashlib.sha256(rest.encode()).hexdigest() == digest


def test_every_flip_of_a_bit_is_refused() -> None:
    content = sealed(RECORD)
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            with pytest.raises(ValueError, match=r"."):
                unsealed(bytes(damaged))


@LAW
@given(RECORDS, st.data())
def test_every_cut_is_refused(record: dict[str, Any], data: st.DataObject) -> None:
    content = sealed(record)
    with pytest.raises(ValueError, match=r"."):
        unsealed(content[: data.draw(st.integers(0, len(content) - 1))])


@LAW
@given(RECORDS)
def test_what_was_written_before_there_were_seals_is_of_version_1(record: dict[str, Any]) -> None:
    assert unsealed(json.dumps(record).encode()) == (record, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_number_that_is_not_finite_is_not_sealed(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        sealed({"nll": [1.0, value]})


def resealed(body: bytes) -> bytes:
    """What a writer who knows no rule but that of the seal would write."""
    return b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'", ' + body[1:]


@pytest.mark.parametrize("make", [bytes, resealed], ids=["without a seal", "under a seal"])
@pytest.mark.parametrize(
    ("rest", "why"),
    [
        (b'"a": NaN}', "NaN is not finite"),
        (b'"a": -Infinity}', "-Infinity is not finite"),
        (b'"a": 1e999}', "1e999 is not finite"),
        (b'"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'"a": ' + b"9" * 10_000 + b"}", "digits"),
        (b'"a": "\xff"}', "utf-8"),
        (b'"a": "\x00"}', "control character"),
        (b'"a": 1}{}', "Extra data"),
        (b'"schema_version": 99}', "schema 99 is not known here"),
        (b'"schema_version": 0}', "schema 0 is not known here"),
        (b'"schema_version": null}', "schema None is not known here"),
    ],
)
def test_hostile_json_is_refused(make: Any, rest: bytes, why: str) -> None:
    start = b'{"schema_version": 2, ' if make is resealed and b"version" not in rest else b"{"
    with pytest.raises(ValueError, match=rf"{why}|its sha256 is damaged or missing"):
        unsealed(make(start + rest))


@pytest.mark.parametrize(
    "content", [b"", b"3", b"[]", b"null", b'"text"', b"{", '{"a": 1}'.encode("utf-16"), b"\xef\xbb\xbf{}"]
)
def test_other_content_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unsealed(content)


def test_record_without_the_seal_that_it_had_is_refused() -> None:
    record = json.loads(sealed(RECORD))
    del record["sha256"]
    with pytest.raises(ValueError, match="its sha256 is damaged or missing"):
        unsealed(json.dumps(record).encode())
    with pytest.raises(ValueError, match="its sha256 is damaged or missing"):
        unsealed(resealed(b'{"row": 1}\n'))
