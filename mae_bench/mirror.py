"""Folders that also lie in an object store, where every node of a cluster sees them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mae_bench.atomic import written_whole
from mae_bench.cached import key
from mae_bench.errors import BenchError
from mae_bench.file_names import file_name
from mae_bench.images import cache_folder
from mae_bench.store import LOCK, SESSION

UNSENT = ".unsent"
"""Says that something in the folder could not be sent."""
OWN = ("scratch", LOCK, SESSION, UNSENT)
"""What of a run directory concerns this machine alone, and is not mirrored."""


class MirrorError(BenchError):
    """An object store that cannot be used."""


class Mirror:
    """A ``folder`` of this machine whose files are sent to ``url``, such as ``s3://bucket/runs/july``, and fetched from
    there. Any store that fsspec knows will do; what it needs to be told is in its own environment variables.

    An object is there whole or not at all, as a file of the folder is. The store has no locks.

    >>> import fsspec, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mirror = Mirror("memory://runs/july", Path(folder))
    ...     _ = (mirror.folder / "rows.csv").write_text("a,b")
    ...     mirror.send()
    >>> fsspec.open("memory://runs/july/rows.csv", "rt").open().read()
    'a,b'
    """

    def __init__(self, url: str, folder: Path | None = None) -> None:
        """
        Raises:
            MirrorError: nothing is known of such stores.
        """
        protocol, _, place = url.partition("://")
        name = place.rstrip("/").rpartition("/")[2]
        if name in ("", ".", ".."):
            raise MirrorError(f"{url}: name a folder in it, as s3://bucket/runs/july")
        self.url = f"{protocol}://{place.rstrip('/')}"
        self.folder = folder or cache_folder() / "mirrors" / key(self.url) / name
        self._sent: dict[str, tuple[int, int]] = {}
        self._fetched: dict[str, str] = {}
        try:
            import fsspec

            more = {"auto_mkdir": True} if protocol == "file" else {}
            self._store, self._root = fsspec.core.url_to_fs(self.url, **more)
        except (ImportError, OSError, ValueError) as error:
            raise MirrorError(
                f"{url}: {error}; S3 needs python -m pip install 'mae-bench[s3]', and a folder needs nothing"
            ) from error

    def begin(self, resume: bool) -> None:
        """Have the folder hold what the store holds, and nothing else. What an earlier session could not send is sent
        before, unless there is something of the name by now.

        Raises:
            MirrorError: without ``resume`` something is there, or waits to be sent; the store cannot be read or written
                to, or the folder not be written to.
        """
        with self._reaching("cannot be fetched"):
            there, here = dict(self._there()), dict(self._here())
            unsent = here.keys() - there.keys() if (self.folder / UNSENT).exists() else set()
            if (there or unsent) and not resume:
                more = f", and {len(unsent)} files in {self.folder} wait to be sent there" * bool(unsent)
                raise MirrorError(f"{self.url} is not empty{more}: add --mae-resume to go on with it, or name another")
            self._store.pipe_file(f"{self._root}/.writable", b"")
            self._store.rm_file(f"{self._root}/.writable")
            for name in sorted(unsent):
                self._store.pipe_file(f"{self._root}/{name}", (self.folder / name).read_bytes())
            for left in self.folder.iterdir():
                if left.name in (LOCK, SESSION):
                    continue
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()
        self.fetch()

    def fetch(self, missing: bool = False) -> None:
        """Have every file of the store in the folder as it is there; with ``missing`` only those that the folder lacks,
        since other processes of this machine may have made them anew.

        Raises:
            MirrorError: the store cannot be read, or the folder not be written to.
        """
        with self._reaching("cannot be fetched"):
            self._store.invalidate_cache()
            for name, version in self._there():
                path = self.folder / name
                if path.exists() and (missing or self._fetched.get(name) == version):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(path) as file:
                    file.write(self._store.cat_file(f"{self._root}/{name}"))
                self._fetched[name] = version
                self._sent[name] = _version(path)

    def send(self, model: str | None = None) -> None:
        """Have the store hold what has changed in the folder since the last call, and no longer what is gone; of what
        is kept model by model only that of ``model``, if one is named.

        Raises:
            MirrorError: the store cannot be written to; another call tries it again.
        """
        files = dict(self._here())
        here = {name: version for name, version in files.items() if model is None or _is_of(name, model)}
        try:
            with self._reaching("cannot be written to", f"what was not sent is in {self.folder}"):
                for name in sorted(here):
                    if self._sent.get(name) != here[name]:
                        self._store.pipe_file(f"{self._root}/{name}", (self.folder / name).read_bytes())
                        self._sent[name] = here[name]
                for name in sorted(self._sent.keys() - here.keys()) if model is None else ():
                    self._store.rm_file(f"{self._root}/{name}")
                    del self._sent[name]
        except MirrorError:
            (self.folder / UNSENT).touch()
            raise
        if files == self._sent:
            (self.folder / UNSENT).unlink(missing_ok=True)

    @property
    def complete(self) -> bool:
        """Whether all that is in the folder has been sent."""
        return dict(self._here()) == self._sent

    def forget(self) -> None:
        """Remove the folder, unless a session of this machine holds it or something in it could not be sent."""
        if not self.folder.exists() or (self.folder / UNSENT).exists():
            return
        try:
            with FileLock(self.folder / LOCK, timeout=0):
                shutil.rmtree(self.folder, ignore_errors=True)
        except (OSError, Timeout):
            return

    @contextmanager
    def _reaching(self, what: str, more: str = "") -> Iterator[None]:
        """Whatever goes wrong inside is an error of this store: each kind of them has errors of its own."""
        try:
            yield
        except MirrorError:
            raise
        except Exception as error:
            said = str(error).strip() or type(error).__name__
            remedy = "check the address, the credentials and the network; --mae-resume goes on with what is there"
            raise MirrorError(f"{self.url}: {what} ({said}); {f'{more}. ' * bool(more)}{remedy}") from error

    def _there(self) -> Iterator[tuple[str, str]]:
        """Names of what is in the store, with all that is said of each, some of which every change changes."""
        found: dict[str, Any] = self._store.find(self._root, detail=True)
        for path, said in found.items():
            name = path[len(self._root) :].strip("/")
            if ".." in name.split("/"):
                raise MirrorError(f"{path} would lie outside of the folder")
            if not _is_own(name):
                yield name, repr(sorted((field, str(value)) for field, value in said.items()))

    def _here(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Names of what is in the folder, with what a change of each changes."""
        for folder, folders, files in os.walk(self.folder):
            if Path(folder) == self.folder:
                folders[:] = [each for each in folders if each not in OWN]
            for file in files:
                path = Path(folder, file)
                name = path.relative_to(self.folder).as_posix()
                if not _is_own(name):
                    try:
                        yield name, _version(path)
                    except FileNotFoundError:  # another process has just removed or replaced it
                        continue


def is_url(place: str) -> bool:
    """Whether ``place`` is in an object store.

    >>> is_url("s3://bucket/runs/july"), is_url("results/runs/july")
    (True, False)
    """
    return "://" in place


def _is_own(name: str) -> bool:
    """Whether a file concerns this machine alone, or is not yet whole."""
    first, last = name.partition("/")[0], name.rpartition("/")[2]
    return first in OWN or last.startswith(".writable") or (last.startswith(".") and last.endswith(".partial"))


def _is_of(name: str, model: str) -> bool:
    """Whether the file is that of the run, or of ``model``."""
    _, *below = name.split("/")
    own = file_name(model)
    return not below or below[0] == (own if len(below) > 1 else f"{own}.json")


def _version(path: Path) -> tuple[int, int]:
    said = path.stat()
    return said.st_mtime_ns, said.st_size
