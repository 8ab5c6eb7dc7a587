"""A limit to how long a cell may take."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from mae_bench.errors import BenchError

GRACE = 5.0
"""Seconds after its deadline in which code that was told to stop may do so, before its process is ended."""
EXIT_CODE = 70
"""Of a process that was ended (EX_SOFTWARE of sysexits.h)."""


class DeadlineError(BenchError):
    """A cell that took longer than it may."""


def end_process(said_on: int, message: str) -> NoReturn:
    """End this process at once, which nothing that hangs in it can prevent; the file descriptor ``said_on`` is told."""
    with suppress(OSError):
        os.write(said_on, f"\n{message}\n".encode())
    os._exit(EXIT_CODE)


@contextmanager
def deadline(
    seconds: float, what: str, give_up: Callable[[str], None], grace: float = GRACE, traceback_on: int = 2
) -> Iterator[None]:
    """Stop what is done in the ``with`` block after so many ``seconds``; 0 means no limit.

    In the main thread Python code is interrupted, as are sleeps and waits. Where that does not help within ``grace``
    seconds, because a kernel or a library never returns, ``give_up`` is called from another thread. Code that does not
    let any other thread run is ended, with its traceback, after as long again.

    Raises:
        DeadlineError: the time is up; ``what`` it was is named.
    """
    if not seconds:
        yield
        return
    message = f"{what} took longer than {seconds:g} s"

    def interrupt(_: int, __: FrameType | None) -> NoReturn:
        raise DeadlineError(
            f"{message} and was stopped (--mae-cell-timeout); give it more time, or find out what hangs"
        )

    hangs = f"{message} and cannot be interrupted (--mae-cell-timeout)"
    watchdog = threading.Timer(seconds + grace, give_up, [hangs])
    watchdog.daemon = True
    interruptible = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, interrupt) if interruptible else None
    watchdog.start()
    faulthandler.dump_traceback_later(seconds + 2 * grace, exit=True, file=traceback_on)
    try:
        if interruptible:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        if interruptible:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
        watchdog.cancel()
        faulthandler.cancel_dump_traceback_later()
