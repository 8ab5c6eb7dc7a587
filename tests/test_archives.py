"""NumPy archives: read as they were written, and refused before they take memory or execute anything."""

from __future__ import annotations

import io
import pickle
import tracemalloc
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from mae_bench.archives import arrays

LAW = settings(max_examples=20, derandomize=True)
DTYPES = st.sampled_from(["int16", "int32", "float32", "float64", "S5", "U3", "bool"]).map(np.dtype)
ARRAYS = arrays_of.arrays(DTYPES, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


@LAW
@given(st.dictionaries(st.sampled_from(["ids", "labels", "größe", "x/y"]), ARRAYS))
def test_arrays_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, np.ndarray]
) -> None:
    path = tmp_path_factory.mktemp("archive") / "a.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, **written)  # type: ignore[operator]
        read = arrays(path)
        assert read.keys() == written.keys()
        for name, array in written.items():
            assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(read[name], array)


def member(shape: str, descr: str = "|u1", content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An array in the .npy format that says that it is of any shape."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + content


def archive(path: Path, members: dict[str, bytes], compression: int = ZIP_DEFLATED) -> Path:
    with ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (member("(10**12,)".replace("10**12", str(10**12))), "has 0 bytes for shape"),
        (member("(3,)", content=b"12"), "has 2 bytes for shape"),
        (member("(1,)", content=b"12"), "has 2 bytes for shape"),
        (member("(-1,)", content=b"1"), "bytes for shape"),
        (member("(2,)", "|O", pickle.dumps([1, 2])), "holds objects, which are never unpickled"),
        (member("(1,)", content=b"1", version=b"\x07\x00"), "unknown format"),
        (member("(1,)", "|u1', 'descr': __import__('os')"), "."),
        (b"not an array", "magic"),
        (b"", "."),
    ],
)
def test_array_that_is_not_what_it_says_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        arrays(archive(tmp_path / "a.npz", {"a.npy": content}))


def test_more_than_may_be_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "bomb.npz", {"a.npy": member(f"({1 << 26},)", content=bytes(1 << 26))})
    assert bomb.stat().st_size < 1 << 17
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"would take 67,\d+,\d+ bytes, more than 1,048,576"):
            arrays(bomb, most=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    halves = archive(tmp_path / "halves.npz", {f"{i}.npy": member("(600,)", content=bytes(600)) for i in range(2)})
    with pytest.raises(ValueError, match="more than 1,000"):
        arrays(halves, most=1000)
    assert len(arrays(halves, most=2000)) == 2


def test_archive_that_understates_itself_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {"a.npy": member("(10,)", content=bytes(10))}, ZIP_STORED)
    content = bytearray(path.read_bytes())
    size = len(member("(10,)", content=bytes(10)))
    for place in range(len(content) - 4):  # in the header of the file and in the directory
        if int.from_bytes(content[place : place + 4], "little") == size:
            content[place : place + 4] = (size - 5).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        arrays(path)


def test_array_twice_is_refused(tmp_path: Path) -> None:
    content = member("(1,)", content=b"1")
    with pytest.raises(ValueError, match="holds an array twice"):
        arrays(archive(tmp_path / "a.npz", {"a.npy": content, "a": content}))


@settings(max_examples=100, derandomize=True)
@given(data=st.data())
def test_damage_ends_in_a_value_error_or_in_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("archive") / "a.npz"
    file = io.BytesIO()
    whole: dict[str, Any] = {"a": np.arange(20, dtype=np.int16), "b": np.array(["x", "yz"])}
    np.savez_compressed(file, **whole)
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read = arrays(path)
    except ValueError:
        return
    for name in read.keys() & whole.keys():
        np.testing.assert_array_equal(read[name], whole[name])


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        arrays(tmp_path / "a.npz")
