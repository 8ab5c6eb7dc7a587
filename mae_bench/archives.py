"""NumPy archives from unknown hands: nothing in them is executed, and none takes more memory than it may."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

MOST = 1 << 32
"""Bytes of all arrays together: more than the outcomes of 40,000 cells on ImageNet's 50,000 images."""


def arrays(path: Path, most: int = MOST) -> dict[str, np.ndarray]:
    """What ``numpy.savez`` put into the archive at ``path``, by name. What its arrays say that they measure is known
    before anything is unpacked.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such archive, damaged, holds objects, or unpacks to more than ``most`` bytes.
    """
    try:
        with path.open("rb") as source, ZipFile(source) as archive:
            members = archive.infolist()
            names = [member.filename.removesuffix(".npy") for member in members]
            if len(set(names)) != len(names):
                raise ValueError("it holds an array twice")
            declared = sum(member.file_size for member in members)
            if declared > most:
                raise ValueError(f"its arrays would take {declared:,} bytes, more than {most:,}")
            found = {}
            for name, member in zip(names, members, strict=True):
                content = archive.read(member)
                _check(name, content)
                found[name] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
            return found
    except (
        BadZipFile,
        EOFError,
        LookupError,
        MemoryError,
        RuntimeError,
        SyntaxError,
        TypeError,
        struct.error,
        tokenize.TokenError,
        zlib.error,
    ) as error:
        raise ValueError(str(error)) from error


def _check(name: str, content: bytes) -> None:
    """Raises:
    ValueError: the array of that name is of objects, or says that it is larger or smaller than its content.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array {name!r} is of the unknown format {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"array {name!r} holds objects, which are never unpickled")
    held = len(content) - file.tell()
    if math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"array {name!r} has {held:,} bytes for shape {shape} of {dtype}")
