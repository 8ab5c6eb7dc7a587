"""Images from disk: strict decoding."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np


class ImageError(ValueError):
    """An image or image file that cannot be used; the message names it and the remedy."""


def read_idx(path: Path) -> np.ndarray:
    """Array of unsigned bytes in LeCun's idx format, gzip-compressed.

    Raises:
        ImageError: the file is not gzip, not idx of unsigned bytes, or shorter or longer than it declares.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{path}: not a readable gzip file ({error}); copy it again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ImageError(f"{path}: not an idx file of unsigned bytes; copy it again")
    dimensions = data[3]
    header = 4 + 4 * dimensions
    if len(data) < header:
        raise ImageError(f"{path}: the idx header is cut off; copy it again")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    values = np.frombuffer(data, dtype=np.uint8, offset=header)
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise ImageError(f"{path}: declares shape {shape} but holds {values.size} bytes; copy it again")
    return values.reshape(shape)
