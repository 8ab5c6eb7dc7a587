"""The git revision that a working tree is of, and what in the tree is not in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mae_bench.errors import BenchError

TIMEOUT = 60
"""Seconds that git may take over a tree."""

_FIELDS_BEFORE_PATH = {"1": 8, "u": 10, "?": 1}
"""By kind of a line of ``git status --porcelain=v2``, of changed, unmerged and untracked files."""


class RevisionError(BenchError):
    """There is a git repository, and git cannot say how its tree stands."""


@dataclass(frozen=True)
class Revision:
    """A working tree at ``top``: the ``commit`` that is checked out, empty before the first, and the paths below
    ``top`` that are ``changed`` since: tracked files whatever the change, and untracked ones that git does not ignore.
    """

    top: Path
    commit: str
    changed: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Revision | None:
        """How the tree that ``folder`` lies in stands, or None where it lies in none or git is not installed.

        Nothing is written to the repository, and no hook or monitor that its settings name is run.

        Raises:
            RevisionError: git refuses the repository, or takes longer than :data:`TIMEOUT`.
        """
        top = _git(folder, "rev-parse", "--show-toplevel")
        if top is None:
            return None
        state = _git(
            folder, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all", "--no-renames", "--no-column"
        )
        assert state is not None, "git found the tree a moment ago"
        commit, changed = "", []
        for line in state.split("\0"):
            kind, _, rest = line.partition(" ")
            if rest.startswith("branch.oid "):
                commit = rest.removeprefix("branch.oid ").replace("(initial)", "")
            elif kind in _FIELDS_BEFORE_PATH:
                changed.append(line.split(" ", _FIELDS_BEFORE_PATH[kind])[-1])
        return cls(Path(top.removesuffix("\n")), commit, tuple(changed))

    def changed_outside(self, *folders: Path) -> list[str]:
        """The changed paths that lie in none of ``folders``, bytecode aside, which Python makes as it runs."""
        inside = [folder.resolve() for folder in folders]
        return [
            path
            for path in self.changed
            if "__pycache__" not in PurePosixPath(path).parts
            and not any((self.top / path).is_relative_to(folder) for folder in inside)
        ]


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints about ``folder``, or None where there is no git or no tree.

    Raises:
        RevisionError: as above.
    """
    program = shutil.which("git")
    if program is None:
        return None
    # within a hook of another repository these would name that one
    bound = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in bound}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    safely = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
    try:
        done = subprocess.run(
            [program, "--no-pager", "-C", os.fspath(folder), *safely, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RevisionError(
            f"git {arguments[0]} took more than {TIMEOUT} s over {folder}: see what it waits for by running it there"
        ) from error
    said = os.fsdecode(done.stderr).strip()
    if done.returncode == 0:
        return os.fsdecode(done.stdout)
    if "not a git repository (or any" in said or "must be run in a work tree" in said:
        return None
    raise RevisionError(f"git cannot tell how the tree at {folder} stands: {said or f'exit code {done.returncode}'}")
