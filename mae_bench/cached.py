"""What a file that can be made again begins with, so that a damaged one, or one of something else, is never used."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

MAGIC = b"MAEBENCH"
FORMAT = 1
"""Version of every cached file: those of another are made again."""
_START = struct.Struct("<8sIQ16s")
"""Magic, format version, length of the content, its digest."""
OVERHEAD = _START.size
"""Bytes that :func:`stamped` puts before a content."""


def key(identity: str) -> str:
    """16 hexadecimal digits that the file of ``identity``, a text that says all that its content is made of, is named
    by. A folder in it may be named by any bytes.
    """
    return hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16]


def stamped(content: bytes, identity: str) -> bytes:
    """``content`` as it is cached under ``identity``."""
    return _START.pack(MAGIC, FORMAT, len(content), _digest(content, identity)) + content


def kept(path: Path, identity: str, beyond: int = 0) -> bytes | None:
    """The content that was :func:`stamped` for ``identity`` in the file at ``path``, which ends ``beyond`` bytes after
    it; None where there is none that is whole: it is missing, unreadable, cut, changed, of another version or of
    something else. No more is read than the file is long, whatever it says of itself.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "answers"
    ...     _ = path.write_bytes(stamped(b"42", "life"))
    ...     kept(path, "life"), kept(path, "death"), kept(path, "life", beyond=1)
    (b'42', None, None)
    """
    try:
        with path.open("rb") as file:
            length = path.stat().st_size - OVERHEAD - beyond
            start = file.read(OVERHEAD)
            if length < 0 or len(start) < OVERHEAD:
                return None
            magic, version, declared, digest = _START.unpack(start)
            if (magic, version, declared) != (MAGIC, FORMAT, length):
                return None
            content = file.read(length)
    except OSError:  # what cannot be read is made again, and says so where it cannot be written either
        return None
    return content if _digest(content, identity) == digest else None


def _digest(content: bytes, identity: str) -> bytes:
    # the length says where the identity ends
    digest = hashlib.blake2b(len(content).to_bytes(8, "little"), digest_size=16)
    digest.update(identity.encode(errors="surrogateescape"))
    digest.update(content)
    return digest.digest()
