"""An interpreter that has everything imported and waits: programs that would spend seconds on their imports begin at
once, each in a process of its own, which a test may kill.

It is started once. A program is a fork of it, with the standard streams, the working directory and the environment of
whoever asks. ``sys.executable`` of a program is a small file that asks for another one, so that pytest-xdist's workers,
which are started by that name, begin at once too.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO, Any, NoReturn

PREPARED = """
pytest xdist.remote hypothesis timm kornia torchvision.transforms pandas pyarrow.parquet scipy.stats tabulate
statsmodels.stats.multitest statsmodels.stats.proportion
mae_bench.executors.local mae_bench.leaderboard mae_bench.comparison mae_bench.baseline mae_bench.claims
"""
"""Modules that every program has, beside pytest's plugins."""
ASK = """#!{python} -IS
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect("{address}")
asked = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(connection, [json.dumps(asked).encode() + b"\\n"], [0, 1, 2])
for stream in (0, 1):
    os.close(stream)  # or whoever reads from the program would not see its end
status = json.loads(connection.makefile().readlines()[-1])
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


class Program:
    """One that runs."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.lines = connection.makefile()
        self.pid = int(self.lines.readline())

    def send(self, signal_number: int) -> None:
        os.kill(self.pid, signal_number)

    def wait(self) -> int:
        """Its exit status, or minus the signal that ended it."""
        with self.connection, self.lines:
            return int(self.lines.readline())


class Interpreter:
    """The one that waits, from where it is asked. It begins at once, and is waited for when it is first asked."""

    def __init__(self, folder: Path) -> None:
        self.address = folder / "socket"
        ask = folder / "python"
        ask.write_text(ASK.format(python=sys.executable, address=self.address))
        ask.chmod(0o755)
        arguments = [sys.executable, __file__, str(self.address), str(ask)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def close(self) -> None:
        """End it, and with it every program."""
        self._process.communicate()  # whose standard input ends here

    @cached_property
    def ready(self) -> bool:
        assert self._process.stdout is not None
        return self._process.stdout.readline() == b"ready\n"

    def start(self, code: str, folder: Path, output: IO[Any], environment: Mapping[str, str] | None = None) -> Program:
        """Run ``code`` in ``folder``; what it prints goes to ``output``."""
        assert self.ready
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.address))
        asked = {
            "arguments": ["-c", code],
            "folder": str(folder),
            "environment": {**os.environ, **(environment or {})},
        }
        with open(os.devnull) as nothing:
            streams = [nothing.fileno(), output.fileno(), output.fileno()]
            socket.send_fds(connection, [json.dumps(asked).encode() + b"\n"], streams)
        return Program(connection)

    def pytest(self, folder: Path, *arguments: object, **environment: str) -> tuple[int, str]:
        """Exit status and output of a run of pytest in ``folder``."""
        with tempfile.TemporaryFile("w+") as output:
            status = self.start(pytest_of(*arguments), folder, output, environment).wait()
            output.seek(0)
            return status, output.read()


def pytest_of(*arguments: object) -> str:
    """A program that runs pytest."""
    return f"import sys, pytest; sys.exit(pytest.main({[str(argument) for argument in arguments]}))"


# --------------------------------------------------------------------------- in the process that waits


def serve(address: str, executable: str) -> None:
    """Fork for everyone who asks, until standard input ends."""
    import gc
    import importlib

    sys.path[0] = str(Path(__file__).parents[1])
    for name in PREPARED.split():
        importlib.import_module(name)
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    importlib.import_module("PIL.Image").init()
    sys.executable = executable
    gc.collect()
    gc.freeze()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    os.write(1, b"ready\n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the programs
    while sys.stdin not in (ready := select.select([listening, sys.stdin], [], [])[0]):
        assert ready
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _keep(connection)
        connection.close()


def _keep(connection: socket.socket) -> NoReturn:
    """Run what is asked for in another process and say how it ends; it ends when nobody listens any more."""
    message, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not message.endswith(b"\n"):
        message += connection.recv(1 << 16)
    asked = json.loads(message)
    pid = os.fork()
    if pid == 0:
        connection.close()
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
        for stream in streams:
            os.close(stream)
        _become(asked["arguments"], asked["folder"], asked["environment"])
    for stream in (0, 1, *streams):
        os.close(stream)
    connection.send(b"%d\n" % pid)
    ended = os.pidfd_open(pid)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        connection.send(b"%d\n" % status)
    finally:
        os._exit(0)


def _become(arguments: Sequence[str], folder: str, environment: Mapping[str, str]) -> NoReturn:
    """Be an interpreter that was started with ``arguments``: options that do not matter, ``-c`` and a program."""
    status = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what it starts behind it
        place = arguments.index("-c")
        sys.argv = ["-c", *arguments[place + 2 :]]
        sys.path.insert(0, "")
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, mode, closefd=False) for i, mode in enumerate("rww"))
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
        exec(compile(arguments[place + 1], "<string>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(*sys.argv[1:])
