"""The pytest command that evaluates what was asked for by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mae_bench.degradations import CORRUPTIONS, DEGRADATIONS
from mae_bench.degradations.selection import condition_named, kinds_named

TESTS = ("benchmarks",)
"""What pytest collects in a project: its folder of tests."""
ROOT = (".",)
"""What it collects in one that has no such folder, and a conftest.py."""
BUNDLED = "mae_bench.pytest_plugin.bundled"
"""The module of tests, and plugin with the bundled models, for where there is no project."""


def folder_of_tests() -> tuple[str, ...] | None:
    """What pytest collects in the working directory, if it is that of a project."""
    if Path(*TESTS).is_dir():
        return TESTS
    return ROOT if Path("conftest.py").is_file() else None


def without_tests() -> list[str]:
    """What pytest collects where there are no tests: those of the package, without settings and conftest.py of the
    folders that it happens to be installed below.
    """
    return ["--noconftest", "-c", os.devnull, "--rootdir", ".", "-p", BUNDLED, "--pyargs", BUNDLED]


def pytest_command(
    suite: str | None,
    models: Sequence[str] = (),
    data: Path | None = None,
    limit: int | None = None,
    full: bool = False,
    degradations: Sequence[str] = (),
    tests: Sequence[str] = TESTS,
) -> list[str]:
    """The pytest command that evaluates the cells of ``models`` under ``degradations``, which are families, groups,
    degradations or conditions, as in :func:`mae_bench.degradations.selection.selected`; of none given, all. The suite
    is the project's where none is named. A model's name that no fixture could have is timm's.

    Raises:
        SelectionError: there is no such degradation.

    >>> import shlex
    >>> print(shlex.join(pytest_command("fashion_mnist", ["cnn_s0"], degradations=["token_drop"])))
    python -m pytest benchmarks -m 'not representation' -k '[cnn_s0- and -token_drop-' --mae-suite fashion_mnist
    """
    cells = dict.fromkeys(part for name in degradations for part in _parts(name))
    either = [" or ".join(names) for names in ([f"[{model}-" for model in models], cells)]
    wanted = [text for text in either if text]
    command = ["python", "-m", "pytest", *tests, "-m", "not representation"]
    if wanted:
        whole = " and ".join(f"({text})" if " " in text and len(wanted) > 1 else text for text in wanted)
        command += ["-k", f"({whole})" if whole.startswith("-") else whole]  # which would look like an option
    command += ["--mae-suite", suite] if suite is not None else []
    for model in models:
        if not model.isidentifier():
            command += ["--mae-model", model]
    command += ["--mae-data", str(data)] if data is not None else []
    command += ["--mae-limit", str(limit)] if limit is not None else []
    return command + ["--mae-full"] * full


def _parts(name: str) -> list[str]:
    """What of the ids of cells stands for a family, group, degradation or condition: marks and files are named like
    families too, and a part of a name may be another's.

    Raises:
        SelectionError: there is no such degradation.
    """
    if not (kinds := kinds_named(name)):
        kind, level = condition_named(name)
        return [f"-{kind.name}-{level}]"]
    shared = DEGRADATIONS.keys() & CORRUPTIONS.keys()  # whose levels tell which: s1 to s5 are severities
    return [
        f"-{kind.name}-s" if kind.by_severity and kind.name in shared
        else f"-{kind.name}- and not -{kind.name}-s" if kind.name in shared
        else f"-{kind.name}-"
        for kind in kinds
    ]  # fmt: skip
