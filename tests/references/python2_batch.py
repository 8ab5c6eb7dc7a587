"""A batch of CIFAR byte by byte as the cPickle of Python 2 wrote it (protocol 2), which no Python can do any more."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np


class Memo:
    """Numbers what has been written; cPickle counts from 1."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> bytes:
        self.count += 1
        return b"q" + bytes([self.count]) if self.count < 256 else b"r" + struct.pack("<I", self.count)


def text(content: bytes, memo: Memo) -> bytes:
    length = b"U" + bytes([len(content)]) if len(content) < 256 else b"T" + struct.pack("<I", len(content))
    return length + content + memo()


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def listed(items: Sequence[bytes]) -> bytes:
    """Appended by the thousand."""
    return b"".join(b"(" + b"".join(items[i : i + 1000]) + b"e" for i in range(0, len(items), 1000))


def array(values: np.ndarray, memo: Memo) -> bytes:
    """Bytes (N, M) as the NumPy of that time described them."""
    rows, columns = values.shape
    fortran = not values.flags.c_contiguous
    parts = [
        b"cnumpy.core.multiarray\n_reconstruct\n" + memo(),
        b"cnumpy\nndarray\n" + memo(),
        b"K\x00\x85" + memo(),
        text(b"b", memo),
        b"\x87" + memo() + b"R" + memo(),
        b"(K\x01" + number(rows) + number(columns) + b"\x86" + memo(),
        b"cnumpy\ndtype\n" + memo(),
        text(b"u1", memo),
        b"K\x00K\x01\x87" + memo() + b"R" + memo(),
        b"(K\x03" + text(b"|", memo) + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00t" + memo() + b"b",
        b"\x88" if fortran else b"\x89",
        text(values.tobytes("F" if fortran else "C"), memo),
        b"t" + memo() + b"b",
    ]
    return b"".join(parts)


def python2_batch(data: np.ndarray, labels: Sequence[int], names: Sequence[bytes], key: bytes = b"labels") -> bytes:
    """Pixels (N, 3072) uint8, their labels and the names of their files."""
    memo = Memo()
    parts = [
        b"\x80\x02}" + memo() + b"(",
        text(b"batch_label", memo) + text(b"testing batch 1 of 1", memo),
        text(key, memo) + b"]" + memo() + listed([number(label) for label in labels]),
        text(b"data", memo) + array(data, memo),
        text(b"filenames", memo) + b"]" + memo() + listed([text(name, memo) for name in names]),
        b"u.",
    ]
    return b"".join(parts)
