"""``--mae-run s3://...``: what a session finishes is sent to an object store as it comes."""

from __future__ import annotations

import pytest

from mae_bench.errors import BenchError
from mae_bench.mirror import Mirror
from mae_bench.pytest_plugin.harness import Harness


class Mirroring:
    """Sends after each test what it left in the run directory, and at the end, where it has to succeed, the tables."""

    def __init__(self, harness: Harness, mirror: Mirror) -> None:
        self.harness = harness
        self.mirror = mirror
        self.problem = ""

    def pytest_runtest_logfinish(self) -> None:
        self._send()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self._send() and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.problem:
            terminalreporter.section("mae_bench: object store")
            terminalreporter.write_line(self.problem + " All has been sent in the end." * self.mirror.complete)

    def _send(self) -> bool:
        """Whether all is sent. What lies in the folder of a session that has not begun is not its own."""
        if "run_directory" not in vars(self.harness) or self.harness.lost:
            return True
        try:
            self.mirror.send()
        except BenchError as error:
            self.problem = str(error)
            return False
        return True
