"""The history of a baseline: one line per update, and what must hold before another is made.

The line is what makes an update: it states the hashes of the two files that belong to it. Until it is written the old
files are the baseline; from then on the new ones are, even where the process was killed before they had taken the
places of the old.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from mae_bench import cached
from mae_bench.atomic import fsync_folder, written_whole
from mae_bench.errors import BenchError
from mae_bench.images import cache_folder
from mae_bench.markup import csv_text, csv_value, terminal_text
from mae_bench.revision import Revision

HISTORY = "history.csv"
HASHES = {"cells.csv": "cells_sha256", "outcomes.npz": "outcomes_sha256"}
"""The files of a baseline, and the field of an :class:`Update` that states the SHA-256 of each."""


class BaselineError(BenchError):
    """A baseline that is absent where it is needed, unreadable, of another suite, or may not be replaced."""


@dataclass(frozen=True)
class Update:
    """A line of the history: when (UTC) and why, by which run, from which git revision (empty without git) and version
    of mae_bench; which model-families were put in; how many cells the baseline held before and after, and its files
    after.
    """

    date: str
    reason: str
    run_id: str
    revision: str
    mae_bench_version: str
    model_families: str
    cells_before: int
    cells_after: int
    cells_sha256: str
    outcomes_sha256: str


def in_continuous_integration() -> bool:
    """Whether the environment variable ``CI`` is set to anything but ``0`` or ``false``."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def check_may_update(path: Path | None, reason: str, root: Path, run: Path | None = None) -> str:
    """The git revision of the tree that ``root`` lies in, empty without git, once nothing speaks against an update.

    ``path`` is the baseline's folder, None where there is to be none; the files in it and in the directory of the
    ``run`` need no commit.

    Raises:
        BaselineError: under ``CI``, without a baseline or a reason, with changes that are in no commit, or where the
            baseline was changed by other means.
        RevisionError: git cannot say how the tree stands.
    """
    if in_continuous_integration():
        raise BaselineError("--mae-update-baseline is refused where CI is set: a gate must not move its own mark")
    if path is None:
        raise BaselineError("--mae-update-baseline needs a baseline directory, not --mae-baseline none")
    if not reason.strip():
        raise BaselineError(f"--mae-update-baseline needs a reason, which {HISTORY} keeps: add --mae-reason TEXT")
    tree = Revision.of(root)
    changed = tree.changed_outside(path, *([run] if run is not None else [])) if tree is not None else []
    if tree is not None and changed:
        raise BaselineError(
            f"--mae-update-baseline: {len(changed)} files in {tree.top} are in no commit, such as "
            f"{terminal_text(changed[0])}, so nobody could tell what the baseline was made with: commit them, or name "
            "them in .gitignore"
        )
    located(path, history_of(path))
    return tree.commit if tree is not None else ""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the baseline in ``folder`` against other updates on this machine, from reading it to the last file that is
    made of it; may be nested.

    Raises:
        BaselineError: the lock, which lies in the cache, cannot be written.
    """
    path = cache_folder() / "baselines" / f"{cached.key(os.fspath(folder.resolve()))}.lock"
    lock = FileLock(path, is_singleton=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise BaselineError(
            f"{path}: cannot be locked ({error}); name a writable folder in the environment variable MAE_BENCH_CACHE"
        ) from error
    try:
        yield
    finally:
        lock.release()


def history_of(folder: Path) -> tuple[Update, ...]:
    """The updates of the baseline in ``folder``, oldest first; none where it is from before there was a history.

    Raises:
        BaselineError: the history is not what :func:`commit` writes; the message names the line.
    """
    path = folder / HISTORY
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise BaselineError(f"{path}: {error}; restore the file") from error
    names = [field.name for field in fields(Update)]
    updates: list[Update] = []
    records = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        if next(records, None) != names:
            raise ValueError(f"not the columns {', '.join(names)}")
        for record in records:
            if len(record) != len(names):
                raise ValueError(f"{len(record)} fields under {len(names)} columns")
            values: dict[str, Any] = dict(zip(names, map(csv_value, record), strict=True))
            values |= {name: int(values[name]) for name in ("cells_before", "cells_after")}
            updates.append(Update(**values))
        if not updates:
            raise ValueError("no update is in it")
    except (ValueError, csv.Error) as error:
        raise BaselineError(f"{path}, line {max(1, records.line_num)}: {error}; restore the file") from error
    return tuple(updates)


def located(folder: Path, history: Sequence[Update]) -> dict[str, Path]:
    """Where each file of the baseline lies, as its last update left it; none where there is no baseline.

    Raises:
        BaselineError: one of the files is missing, or another than the update wrote.
    """
    found: dict[str, Path] = {}
    for name, stated in HASHES.items():
        path = folder / name
        if not history:
            found |= {name: path} if path.exists() else {}
            continue
        # what waits is looked at first, since it may take its place between two looks
        digests = {place: _sha256(place) for place in (_waiting(folder, name), path)}
        whole = [place for place, digest in digests.items() if digest == getattr(history[-1], stated)]
        if not whole and digests[path] is not None:
            raise BaselineError(
                f"{path} was changed by other means than --mae-update-baseline: restore it, or remove "
                f"{' and '.join(HASHES)} and update all of it again with a reason"
            )
        found |= {name: whole[0]} if whole else {}
    for name in HASHES if found else ():
        if name not in found:
            raise BaselineError(f"baseline {folder}: {name} is missing; restore it, or remove the directory")
    return found


def moment(folder: Path) -> tuple[object, ...]:
    """What changes whenever an update does something that a reader might see."""
    try:
        history = (folder / HISTORY).read_bytes()
    except OSError:
        history = b""
    return history, *(_waiting(folder, name).exists() for name in HASHES)


def commit(folder: Path, contents: Mapping[str, bytes], update: Update) -> None:
    """Make ``contents`` the files of the baseline in ``folder``, and ``update`` the last line of its history: all of
    it or, where the process is killed or the disk is full, nothing.

    Raises:
        BaselineError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _finish(folder)
        try:
            for name, content in contents.items():
                with written_whole(_waiting(folder, name)) as file:
                    file.write(content)
            with written_whole(folder / HISTORY) as file:
                file.write(_lengthened(folder / HISTORY, update))
        finally:
            _finish(folder)
    except OSError as error:
        raise BaselineError(f"{folder}: cannot be written ({error}); make room there and update again") from error


def _finish(folder: Path) -> None:
    """Put what waits in its place where the last line of the history is about it, else drop it."""
    history = history_of(folder)
    for name, stated in HASHES.items():
        waiting = _waiting(folder, name)
        digest = _sha256(waiting)
        if history and digest == getattr(history[-1], stated):
            os.replace(waiting, folder / name)
            fsync_folder(folder)
        else:
            waiting.unlink(missing_ok=True)


def _lengthened(path: Path, update: Update) -> bytes:
    """The history at ``path``, to the byte, and a line more."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    before = path.read_bytes() if path.exists() else b""
    if not before:
        writer.writerow(field.name for field in fields(Update))
    elif not before.endswith(b"\n"):
        text.write("\n")
    values = [getattr(update, field.name) for field in fields(Update)]
    writer.writerow(csv_text(value) if isinstance(value, str) else value for value in values)
    return before + text.getvalue().encode()


def _waiting(folder: Path, name: str) -> Path:
    """Where a file lies until the update that it belongs to is made."""
    return folder / f".{name}.next"


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
