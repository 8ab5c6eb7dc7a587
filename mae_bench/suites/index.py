"""What was once found out about files, kept in the cache for as long as they stay as they are: a second start on the
same images reads none of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mae_bench import cached
from mae_bench.images import ImageError, cache_folder, locked, written_whole
from mae_bench.machine import cores

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
    identity = f"{what} {root.resolve()}"
    path = cache_folder() / "index" / f"{cached.key(identity)}.index"
    with locked(path):
        # size, time of change and answer by name of file; of none where the index is missing or damaged
        content = cached.kept(path, identity)
        known: dict[str, list[Any]] = {} if content is None else json.loads(content)
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
            with written_whole(path) as partial:
                partial.write(cached.stamped(json.dumps(index, separators=(",", ":")).encode(), identity))
    return [answers[name] if name in answers else kept[name][2] for name in stamps]
