"""Tables of MATLAB are read as SciPy reads them, and no file is too deep or too large."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.suites import matlab
from mae_bench.suites.matlab import structures

WRITTEN_BY_MATLAB = sorted((Path(scipy.io.__file__).parent / "matlab/tests/data").glob("teststructarr_*.mat"))
"""By several versions, on machines of either byte order; they come with SciPy."""


@pytest.mark.skipif(not WRITTEN_BY_MATLAB, reason="this SciPy comes without its tests")
def test_table_is_read_as_matlab_wrote_it() -> None:
    read = 0
    for path in WRITTEN_BY_MATLAB:
        (expected,) = scipy.io.loadmat(path)["teststructarr"]
        for name in ("one", "two"):
            values = [element[name] for element in expected]
            if all(value.shape == (1, 1) or value.dtype.kind == "U" for value in values):
                plain = [value[0] if value.dtype.kind == "U" else float(value.item()) for value in values]
                assert structures(path.read_bytes(), "teststructarr", (name,)) == [(value,) for value in plain]
                read += 1
    assert read >= len(WRITTEN_BY_MATLAB)


def saved(table: np.ndarray, packed: bool, **others: Any) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, {**others, "table": table}, do_compression=packed)
    return file.getvalue()


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
NUMBERS = st.integers(-(2**31), 2**31 - 1) | st.floats(allow_nan=False, width=32)


@settings(max_examples=60, derandomize=True)
@given(st.lists(st.tuples(NUMBERS, TEXTS, st.lists(NUMBERS, max_size=3)), min_size=1, max_size=5), st.booleans())
def test_table_is_read_as_it_was_written(rows: list[tuple[Any, ...]], packed: bool) -> None:
    types = [("number", object), ("text", object), ("others", object)]
    table = np.array([(number, text, np.array(others)) for number, text, others in rows], dtype=types)
    content = saved(table[:, None], packed, first=np.eye(3), last=[1, 2])
    found = structures(content, "table", ("text", "number"))
    assert found == [(text, float(number)) for number, text, _ in rows]


WHOLE = saved(np.array([(1, "n1"), (2, "n2")], dtype=[("number", object), ("text", object)])[:, None], packed=False)


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(of_class: int, content: bytes, name: bytes = b"table") -> bytes:
    return element(14, element(6, struct.pack("<II", of_class, 0)) + element(5, bytes(8)) + element(1, name) + content)


def nested(depth: int) -> bytes:
    """Cells in cells in cells, which SciPy follows until its stack is full."""
    found = matrix(1, b"")
    for _ in range(depth):
        found = matrix(1, found)
    return WHOLE[:128] + element(15, zlib.compress(found))


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "it is no file of MATLAB's level 5"),
    "text": (lambda: b"<html>" * 100, "it is no file of MATLAB's level 5"),
    "cut": (lambda: WHOLE[:-20], "goes on beyond its end"),
    "another table": (lambda: WHOLE.replace(b"table", b"other"), "it has no table"),
    "another field": (lambda: WHOLE.replace(b"number\0", b"nombre\0"), "not in list"),
    "of cells": (lambda: WHOLE[:128] + matrix(1, b""), "table is no array of structures"),
    "of cells in cells": (lambda: nested(20_000), "table is no array of structures"),
    "of numbers": (lambda: saved(np.eye(3), packed=True), "table is no array of structures"),
    "of zeros": (lambda: WHOLE[:128] + zlib_element(bytes(matlab.MOST + 1)), "it unpacks to more than"),
    "enormous": (lambda: WHOLE + bytes(matlab.MOST), "or too large"),
    "damaged pack": (lambda: WHOLE[:128] + element(15, b"x" * 20), "it is damaged"),
    "fields without names": (lambda: WHOLE[:128] + matrix(2, element(5, bytes(4)) + element(1, b"")), "have no names"),
}  # fmt: skip


def zlib_element(content: bytes) -> bytes:
    return element(15, zlib.compress(content))


@pytest.mark.parametrize("what", REFUSED)
def test_file_that_is_another_is_refused(what: str) -> None:
    make, complaint = REFUSED[what]
    with pytest.raises(ValueError, match=complaint):
        structures(make(), "table", ("number", "text"))
