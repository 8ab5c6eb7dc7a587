"""The git revision that a working tree is of, what in the tree is not in it, and what lies in other revisions."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection
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
        for line in os.fsdecode(state).split("\0"):
            kind, _, rest = line.partition(" ")
            if rest.startswith("branch.oid "):
                commit = rest.removeprefix("branch.oid ").replace("(initial)", "")
            elif kind in _FIELDS_BEFORE_PATH:
                changed.append(line.split(" ", _FIELDS_BEFORE_PATH[kind])[-1])
        return cls(Path(os.fsdecode(top).removesuffix("\n")), commit, tuple(changed))

    def changed_outside(self, *folders: Path) -> list[str]:
        """The changed paths that lie in none of ``folders``, bytecode aside, which Python makes as it runs."""
        inside = [folder.resolve() for folder in folders]
        return [
            path
            for path in self.changed
            if "__pycache__" not in PurePosixPath(path).parts
            and not any((self.top / path).is_relative_to(folder) for folder in inside)
        ]


@dataclass(frozen=True)
class Commit:
    """A commit of the repository that ``folder`` lies in; the working tree is not touched, and is not looked at."""

    folder: Path
    hash: str

    @classmethod
    def named(cls, folder: Path, name: str) -> Commit | None:
        """The commit that git knows as ``name``: a branch, a tag, a hash, ``HEAD~1``. None where ``folder`` lies in no
        repository or git is not installed.

        Raises:
            RevisionError: git knows none, or refuses the repository.
        """
        if name.startswith("-"):  # which git would take for an option
            raise RevisionError(f"{name}: no name of a revision begins so")
        try:
            found = _git(folder, "rev-parse", "--verify", f"{name}^{{commit}}")
        except RevisionError as error:
            raise RevisionError(
                f"{name}: git knows no such revision here; fetch it, or name another ({error})"
            ) from error
        return None if found is None else cls(folder, os.fsdecode(found).strip())

    def folders(self, path: str) -> list[str]:
        """Names of the folders in the folder ``path``; none where the commit has no such folder."""
        return [name for name, kind, _ in self._entries(path) if kind == "tree"]

    def files(self, path: str, names: Collection[str]) -> dict[str, bytes]:
        """Content of those of ``names`` that are files in the folder ``path``, as committed: no filter is applied, so
        that of a file kept by Git LFS there is the pointer alone.

        ``path`` counts from the top of the repository, or, where it begins with ``./`` or ``../``, from the folder.

        Raises:
            RevisionError: git refuses.
        """
        blobs = {name: blob for name, kind, blob in self._entries(path) if kind == "blob" and name in names}
        return {name: _git(self.folder, "cat-file", "blob", blob) or b"" for name, blob in blobs.items()}

    def _entries(self, path: str) -> list[tuple[str, str, str]]:
        """Name, kind and object of each entry of the folder ``path``."""
        try:
            listing = _git(self.folder, "ls-tree", "-z", "--full-tree", f"{self.hash}:{path}")
        except RevisionError as error:
            if "Not a valid object name" in str(error) or "not a tree object" in str(error):
                return []
            raise
        entries = []
        for line in os.fsdecode(listing or b"").split("\0")[:-1]:
            (_, kind, blob), name = line.partition("\t")[0].split(" "), line.partition("\t")[2]
            entries.append((name, kind, blob))
        return entries


def _git(folder: Path, *arguments: str) -> bytes | None:
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
        return done.stdout
    if "not a git repository (or any" in said or "must be run in a work tree" in said:
        return None
    raise RevisionError(f"git cannot tell how the tree at {folder} stands: {said or f'exit code {done.returncode}'}")
