"""The pytest command that evaluates what was asked for by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mae_bench.cells import GROUPS
from mae_bench.degradations import families

TESTS = ("benchmarks",)
"""What pytest collects in a project: its folder of tests."""
BUNDLED = "mae_bench.pytest_plugin.bundled"
"""The module of tests, and plugin with the bundled models, for where there is no such folder."""


def without_tests() -> list[str]:
    """What pytest collects where there are no tests: those of the package, without settings and conftest.py of the
    folders that it happens to be installed below.
    """
    return ["--noconftest", "-c", os.devnull, "--rootdir", ".", "-p", BUNDLED, "--pyargs", BUNDLED]


def pytest_command(
    suite: str,
    models: Sequence[str] = (),
    data: Path | None = None,
    limit: int | None = None,
    full: bool = False,
    degradations: Sequence[str] = (),
    tests: Sequence[str] = TESTS,
) -> list[str]:
    """The pytest command that evaluates the cells of ``models`` under ``degradations``, which are families, groups,
    degradations or conditions; of none given, all. A model's name that no fixture could have is timm's.

    >>> import shlex
    >>> print(shlex.join(pytest_command("fashion_mnist", ["cnn_s0"], degradations=["occlusion"])))
    python -m pytest benchmarks -m 'not representation' -k '[cnn_s0- and occlusion' --mae-suite fashion_mnist
    """
    either = [" or ".join(names) for names in ([f"[{model}-" for model in models], list(map(_chosen, degradations)))]
    wanted = [text for text in either if text]
    command = ["python", "-m", "pytest", *tests, "-m", "not representation"]
    if wanted:
        command += ["-k", " and ".join(f"({text})" if " or " in text and len(wanted) > 1 else text for text in wanted)]
    command += ["--mae-suite", suite]
    for model in models:
        if not model.isidentifier():
            command += ["--mae-model", model]
    command += ["--mae-data", str(data)] if data is not None else []
    command += ["--mae-limit", str(limit)] if limit is not None else []
    return command + ["--mae-full"] * full


def _chosen(name: str) -> str:
    """What of the ids and marks of cells stands for a family, group, degradation or condition."""
    if name in families() or name in GROUPS:
        return name
    return f"-{name}]" if "-" in name else f"-{name}-"
