"""What takes too long is stopped; what cannot be stopped is given up, and with it its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from mae_bench.executors.deadline import EXIT_CODE, DeadlineError, deadline


def unexpected(message: str) -> None:
    raise AssertionError(message)


def test_python_code_is_interrupted_and_named() -> None:
    with (
        pytest.raises(DeadlineError, match=r"cell vit-clean-0\.00 took longer than 0\.05 s and was stopped"),
        deadline(0.05, "cell vit-clean-0.00", unexpected),
    ):
        threading.Event().wait()


def test_a_loop_is_interrupted() -> None:
    def count() -> None:
        with deadline(0.05, "a cell", unexpected):
            while True:
                pass

    with pytest.raises(DeadlineError):
        count()


def test_what_is_in_time_goes_on_as_if_nothing_were(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGALRM)
    with deadline(60, "a cell", unexpected):
        done = True
    assert done
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert not [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, threading.Timer) and thread.is_alive() and not thread.finished.is_set()
    ]
    monkeypatch.setattr(signal, "setitimer", unexpected)
    with deadline(0, "a cell", unexpected):  # no limit sets no timer
        pass


def test_own_error_of_the_block_stays() -> None:
    with pytest.raises(ZeroDivisionError), deadline(60, "a cell", unexpected):
        _ = 1 / 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_cannot_be_interrupted_is_given_up() -> None:
    """In another thread than the main one no signal arrives."""
    given_up: list[str] = []
    told = threading.Event()

    def hang() -> None:
        with deadline(0.01, "a cell", lambda message: (given_up.append(message), told.set()), grace=0.01):
            told.wait()

    thread = threading.Thread(target=hang)
    thread.start()
    thread.join()
    assert given_up == ["a cell took longer than 0.01 s and cannot be interrupted (--mae-cell-timeout)"]


HANGING = """
import ctypes, os, signal
from mae_bench.executors.deadline import deadline, end_process
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # as code that never comes back to Python
with deadline(0.05, "cell hanging-clean-0.00", lambda message: end_process(2, message), grace=0.05):
    ctypes.CDLL(None).pause()
"""


HOLDING = """
import ctypes, signal
from mae_bench.executors.deadline import deadline, end_process
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
with deadline(0.05, "a cell", lambda message: end_process(2, message), grace=0.05):
    ctypes.PyDLL(None).pause()  # which keeps every other thread of Python waiting
"""


def test_process_that_lets_no_thread_run_is_ended_with_its_traceback() -> None:
    ended = subprocess.run([sys.executable, "-c", HOLDING], capture_output=True, text=True, env=os.environ, check=False)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "line 6 in <module>" in ended.stderr


def test_process_that_hangs_outside_of_python_is_ended_with_a_word() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, env=os.environ, check=False)
    assert ended.returncode == EXIT_CODE
    assert "cell hanging-clean-0.00 took longer than 0.05 s and cannot be interrupted" in ended.stderr
