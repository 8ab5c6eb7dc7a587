"""What was once found out about files, kept in the cache for as long as they stay as they are: a second start on the
same images reads none of them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mae_bench.images import ImageError, cache_folder, content_hash, cores, locked, written_whole

GRAIN = 2.0
"""Seconds within which a file can change twice without its time of change telling: the coarsest clock of a file
system.
"""


def remembered(what: str, root: Path, files: Sequence[Path], examine: Callable[[Path], Any]) -> list[Any]:
    """``examine(file)`` of each of ``files`` below ``root``, asked anew only where a file's size or time of change is
    another than when it was asked last. ``what`` names the question; answers are values that JSON has.

    Raises:
        ImageError: a file cannot be read, or the cache cannot be written to.
    """
    key = hashlib.sha256(f"{what} {root.resolve()}".encode()).hexdigest()[:16]
    path = cache_folder() / "index" / f"{key}.json"
    with locked(path):
        known = _read(path)
        stamps = {}
        for file in files:
            try:
                found = file.stat()
            except OSError as error:
                raise ImageError(f"{file}: cannot be read ({error}); restore it") from error
            stamps[file.relative_to(root).as_posix()] = [found.st_size, found.st_mtime_ns]
        kept = {name: known[name] for name, stamp in stamps.items() if name in known and known[name][:2] == stamp}
        with ThreadPoolExecutor(cores()) as pool:
            new = [name for name in stamps if name not in kept]
            answers = dict(zip(new, pool.map(examine, (root / name for name in new)), strict=True))
        settled = time.time_ns() - GRAIN * 1e9
        index = kept | {name: [*stamps[name], answers[name]] for name in new if stamps[name][1] < settled}
        if index != known:
            _write(path, index)
    return [answers[name] if name in answers else kept[name][2] for name in stamps]


def _read(path: Path) -> dict[str, list[Any]]:
    """Size, time of change and answer by name of file; nothing where the index is missing or damaged."""
    if not path.exists():
        return {}
    checksum, _, content = path.read_bytes().partition(b"\n")
    if content_hash(content) != checksum.decode(errors="replace"):
        return {}
    index: dict[str, list[Any]] = json.loads(content)
    return index


def _write(path: Path, index: dict[str, list[Any]]) -> None:
    content = json.dumps(index, separators=(",", ":")).encode()
    with written_whole(path) as file:
        file.write(content_hash(content).encode() + b"\n" + content)
