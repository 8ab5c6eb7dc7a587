"""Published weights from their address: resumed where they were cut off, and checked before anybody sees them. What is
not whole yet can be read and written by its owner alone.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import stat
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from mae_bench.atomic import fsync_folder
from mae_bench.models import ModelError

TIMEOUT = 30.0
"""Seconds without a byte after which a connection is given up."""
ATTEMPTS = 3
"""Connections in a row that bring nothing before it is called a failure."""
CHUNK = 1 << 20
MOST = 8 << 30
"""Bytes of a download: thrice the largest file of weights that is fetched, and where a body without an end is cut."""

Opener = Callable[..., Any]
"""Called with a request and ``timeout``, as ``urllib.request.urlopen`` is."""


class _ConnectionLostError(Exception):
    """There is no connection, or it ended before the file did."""


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Followed only where the new address might have been asked for in the first place; the others are not asked."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        try:
            _check_scheme(newurl)
            if _is_here(newurl) and not _is_here(req.full_url):
                raise ModelError(
                    f"{req.full_url} leads to {newurl}, which is on this machine: it is not asked for that"
                )
        except ModelError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opened(request: urllib.request.Request, timeout: float) -> Any:
    """The response to ``request``, which only ever travels over https, or on this machine.

    Raises:
        ModelError: it is sent on to another kind of address.
        OSError, http.client.HTTPException, ValueError: there is no such response.
    """
    return urllib.request.build_opener(_Redirections).open(request, timeout=timeout)


def fetched(url: str, md5_prefix: str, folder: Path, opener: Opener = opened) -> Path:
    """The file at ``url`` in ``folder`` under its own name, downloaded unless it is there. What is cut off stays beside
    it as ``.partial`` and is gone on with, by this call or a later one; processes wait for each other.

    Args:
        url: https, or http on this machine.
        md5_prefix: first hexadecimal digits of the file's MD5; a file that is there already is checked too.

    Raises:
        ModelError: the address is not one of those or leads to one that is not, cannot be reached, or does not give
            that file; or the folder cannot be written.
    """
    _check_scheme(url)
    path = folder / urllib.parse.urlsplit(url).path.rpartition("/")[2]
    partial = path.with_name(f"{path.name}.partial")
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f"{path.name}.lock")):
                if not path.exists():  # which another process may have seen to
                    _complete(url, partial, opener)
                    _settle(partial, path, md5_prefix)
            return path
        check_md5(path, md5_prefix, "take it away to have it downloaded again")
    except OSError as error:
        raise ModelError(f"{url} cannot be kept in {folder} ({error}): {_by_hand(None)}") from error
    return path


def _settle(partial: Path, path: Path, md5_prefix: str) -> None:
    """Give the download its name, or delete it where it is not the file that was published."""
    try:
        check_md5(partial, md5_prefix, f"it was deleted; try again, {_by_hand(path.parent)}")
    except ModelError:
        partial.unlink()
        raise
    os.chmod(partial, 0o644)  # what is whole is no secret
    os.replace(partial, path)
    fsync_folder(path.parent)


def check_md5(path: Path, prefix: str, remedy: str) -> None:
    """Raises:
    ModelError: the MD5 of the file at ``path`` begins otherwise; both are named, and the ``remedy``.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if not found.startswith(prefix):
        raise ModelError(f"{path}: its MD5 begins {found[: len(prefix)]}, expected {prefix}: {remedy}")


def _is_here(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def _check_scheme(url: str) -> None:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme != "https" and not (scheme == "http" and _is_here(url)):
        raise ModelError(f"{url} is not an https address: weights are not fetched over an open connection")


def _by_hand(folder: Path | None) -> str:
    put = "" if folder is None else f"download it by hand into {folder}, or "
    return f"{put}give a copy with --mae-weights FILE"


def _complete(url: str, partial: Path, opener: Opener) -> None:
    """Bring ``partial`` to its full length, connecting again as long as that brings more of it.

    Raises:
        ModelError: it does not.
        OSError: it cannot be written.
    """
    in_vain, furthest = 0, _brought(partial)
    while True:
        have = _brought(partial)
        try:
            return _append(url, partial, have, opener)
        except urllib.error.HTTPError as error:
            error.close()
            out_of_range = error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have > 0
            if out_of_range and error.headers.get("Content-Range") == f"bytes */{have}":
                return None  # nothing was missing
            if not out_of_range:
                raise _failure(url, partial, error) from error
            partial.unlink()
        except _ConnectionLostError as error:
            in_vain = 0 if _brought(partial) > furthest else in_vain + 1
            furthest = max(furthest, _brought(partial))
            if in_vain == ATTEMPTS:
                raise _failure(url, partial, error) from error


def _failure(url: str, partial: Path, error: object) -> ModelError:
    return ModelError(f"{url} could not be fetched ({error}): {_by_hand(partial.parent)}")


def _brought(partial: Path) -> int:
    """How many bytes an earlier connection has left. What others may have put there counts for nothing: a link, a file
    of theirs, one that they can write to or have another name for.
    """
    try:
        found = partial.lstat()
    except FileNotFoundError:
        return 0
    if os.name != "nt" and (found.st_uid != os.geteuid() or found.st_mode & 0o022 or found.st_nlink > 1):
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _opened_partial(partial: Path, have: int) -> BinaryIO:
    """The file to go on with, or a new one in its place.

    Raises:
        OSError: somebody was quicker, or it cannot be written.
    """
    if have:
        descriptor = os.open(partial, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))
    else:
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    return os.fdopen(descriptor, "ab" if have else "wb")


def _append(url: str, partial: Path, have: int, opener: Opener) -> None:
    """One connection: what is missing after the first ``have`` bytes, or all where the server does not resume."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with _response(request, partial, opener) as response:
        _check_scheme(response.url)
        if encoding := response.headers.get("Content-Encoding"):
            raise _failure(url, partial, f"the server sends it packed as {encoding}, which was not asked for")
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if resumed and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            partial.unlink(missing_ok=True)
            raise _ConnectionLostError("the server gave another part than was asked for")
        kept = have if resumed else 0
        told = response.headers.get("Content-Length") or ""
        expected = int(told) if told.isdecimal() and len(told) < 20 else None
        if expected is not None and kept + expected > MOST:
            raise _failure(url, partial, f"it would be of {kept + expected:,} bytes, more than {MOST:,}")
        brought = 0
        with _opened_partial(partial, kept) as file:
            while chunk := _read(response):
                brought += len(chunk)
                if kept + brought > MOST or (expected is not None and brought > expected):
                    partial.unlink()
                    raise _failure(url, partial, f"there is no end to it after {kept + brought:,} bytes")
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    if expected is not None and brought < expected:
        raise _ConnectionLostError(f"the connection ended after {brought} of {expected} bytes")


def _response(request: urllib.request.Request, partial: Path, opener: Opener) -> Any:
    try:
        return opener(request, timeout=TIMEOUT)
    except (urllib.error.HTTPError, ModelError):
        raise
    except ValueError as error:  # an address that is none, to which the server leads
        raise _failure(request.full_url, partial, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLostError(str(error) or type(error).__name__) from error


def _read(response: Any) -> bytes:
    try:
        chunk: bytes = response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLostError(str(error) or type(error).__name__) from error
    return chunk
