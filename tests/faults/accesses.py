"""What a process does to files, so that it can be ended at any moment of it.

Python tells an audit hook before a file is opened, renamed or removed, whichever module does it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

CHANGES = {"os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def watch(folders: Iterable[Path], told: Callable[[str, str], None]) -> None:
    """Have ``told`` of whatever this process is about to change in ``folders``, and of what it puts on the disk."""
    within = tuple(str(folder) for folder in folders)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in CHANGES and event != "open":
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        if path.startswith(within) and (event != "open" or (int(str(arguments[2])) & WRITING)):
            told(event, path)

    fsync = os.fsync

    def synced(descriptor: int) -> None:
        told("os.fsync", "")
        fsync(descriptor)

    os.fsync = synced
    sys.addaudithook(hook)


def record(folders: Iterable[Path], log: Path) -> None:
    """Write every access to ``log``, one a line, with the seconds of a processor that were used before it."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT)

    def write(event: str, _: str) -> None:
        os.write(file, f"{event} {time.process_time()}\n".encode())

    watch(folders, write)


def die_at(folders: Iterable[Path], number: int, torn: int = 0) -> None:
    """Kill this process at its access of that ``number``; or with ``torn``, at the first write after it that would make
    a file longer than so many bytes, of which these are written.
    """
    count = 0

    def die(_: str, __: str) -> None:
        nonlocal count
        count += 1
        if count == number and torn:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (torn, torn))
        elif count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(folders, die)


def interrupt_at(folders: Iterable[Path], number: int) -> None:
    """Interrupt this process at its access of that ``number``, as Ctrl-C does."""
    count = 0

    def interrupt(_: str, __: str) -> None:
        nonlocal count
        count += 1
        if count == number:
            signal.raise_signal(signal.SIGINT)  # here: what is sent to a process may come to any thread, and later

    watch(folders, interrupt)


def die_after(seconds: float) -> None:
    """Let the kernel end this process once it has used so many ``seconds`` of a processor."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
