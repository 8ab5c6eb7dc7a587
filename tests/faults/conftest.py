"""What every test of a failure does: write down what was injected, how often, and what was lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from faults.prepared import Interpreter
from faults.reliability import Injection

LOG = "MAE_BENCH_FAULTS_LOG"
"""Environment variable that names the log, which ``python -m faults.reliability`` makes a page of."""


@pytest.fixture
def journal() -> Callable[[Injection], None]:
    """Appends an injection to the log, where there is one, and fails the test where something was lost."""

    def note(injection: Injection) -> None:
        if log := os.environ.get(LOG):
            with Path(log).open("a") as file:  # one write of one line, so that processes do not mix theirs
                file.write(json.dumps(asdict(injection), default=int) + "\n")
        assert injection.lost == 0, f"{injection.failure}: {injection.lost} of {injection.count} lost something"
        assert injection.silent == 0, f"{injection.failure}: {injection.silent} of {injection.count} went unnoticed"

    return note


@pytest.fixture(scope="session", autouse=True)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter | None]:
    """The interpreter of :func:`interpreter`, which makes ready while tests run that do not need it."""
    if not any("interpreter" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    interpreter = Interpreter(tmp_path_factory.mktemp("interpreter"))
    yield interpreter
    interpreter.close()


@pytest.fixture
def interpreter(prepared: Interpreter | None) -> Interpreter:
    """Starts programs without their imports."""
    if not hasattr(os, "pidfd_open"):
        pytest.skip("a process is watched as only Linux lets it be")
    assert prepared is not None
    return prepared
