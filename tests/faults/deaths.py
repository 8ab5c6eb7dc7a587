"""Ways in which a process ends, does not go on, or ends those that it belongs to."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path


def segfault() -> None:
    ctypes.string_at(0)


def hang_in_a_loop() -> None:
    while True:
        pass


def hang_in_a_wait() -> None:
    threading.Event().wait()


def hang_outside_of_python() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    ctypes.CDLL(None).pause()


def hang_with_every_thread() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    ctypes.PyDLL(None).pause()  # it keeps the lock without which no thread of Python goes on


DEATHS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "segfault": segfault,
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "exit well": lambda: os._exit(0),
    "hang outside of Python": hang_outside_of_python,
    "hang with every thread": hang_with_every_thread,
}
"""Those that end the process, the last two of them by its time limit."""
FAILURES: dict[str, Callable[[], object]] = {
    "leave": lambda: sys.exit("a library wants to leave"),
    "hang in a loop": hang_in_a_loop,
    "hang in a wait": hang_in_a_wait,
}
"""Those that the process survives."""


PROCESSES = Path("processes")
"""Folder with a file for every process of a run, which is named by its number and says what it is."""


def send(signal_number: int, *kinds: str) -> None:
    """Send a signal to the processes of a run, to this one last."""
    pids = {int(file.name): file.read_text() for file in PROCESSES.iterdir()}
    for pid in sorted(pids, key=lambda pid: pid == os.getpid()):
        if pids[pid] in kinds:
            os.kill(pid, signal_number)


INTERRUPTIONS: dict[str, Callable[[], object]] = {
    "interrupt the controller": lambda: send(signal.SIGINT, "controller"),
    "interrupt everyone": lambda: send(signal.SIGINT, "worker", "controller"),
    "kill the controller": lambda: send(signal.SIGKILL, "controller"),
}
"""Those that come from outside, at the moment that a cell chooses."""
