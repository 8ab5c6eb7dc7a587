"""Files that are whole or not there: a reader, a crash or a full disk leaves the old one or the new one."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[io.BufferedWriter]:
    """A file that takes the place of ``path`` once all is in it and on the disk, and leaves nothing behind otherwise.

    Until then it lies in the same folder under a name that nobody can guess or have put a link at
    (``.rows.json.k2_x7a1q.partial``), and only its owner can read it; in the end everybody can.

    Raises:
        OSError: the disk is full, or the folder missing or not writable; an older file is left as it was.

    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "rows.json"
    >>> with written_whole(path) as file:
    ...     _ = file.write(b"{}")
    ...     path.exists()
    False
    >>> path.read_bytes()
    b'{}'
    >>> folder.cleanup()
    """
    # cut, because 255 bytes are all that a name may have
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name[:50]}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.chmod(partial, 0o644)
            os.fsync(file.fileno())
        os.replace(partial, path)
        fsync_folder(path.parent)
    finally:
        Path(partial).unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """A folder that takes the place of ``path``, which is missing or an empty folder, once all is in it, and leaves
    nothing behind otherwise. Until then it has a name as in :func:`written_whole`. The folders above it are made.

    Raises:
        OSError: the disk is full, the folder above not writable, or there is something at ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=f".{path.name[:50]}.", suffix=".partial", dir=path.parent))
    try:
        yield private
        os.chmod(private, 0o755)
        os.replace(private, path)
        fsync_folder(path.parent)
    finally:
        shutil.rmtree(private, ignore_errors=True)


def fsync_folder(path: Path) -> None:
    """Put on the disk which files are in the folder at ``path``: without it a new name may be gone after a power cut,
    though what it names was synced.

    Raises:
        OSError: the disk cannot be written to.
    """
    if os.name == "nt":  # a folder cannot be opened there, and names are journalled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
