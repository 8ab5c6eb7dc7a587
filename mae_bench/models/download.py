"""Published weights from their address: resumed where they were cut off, and checked before anybody sees them."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from mae_bench.models import ModelError

TIMEOUT = 30.0
"""Seconds without a byte after which a connection is given up."""
ATTEMPTS = 3
"""Connections in a row that bring nothing before it is called a failure."""
CHUNK = 1 << 20

Opener = Callable[..., Any]
"""``urllib.request.urlopen``, or what stands in for it: called with a request and ``timeout``."""


class _ConnectionLostError(Exception):
    """There is no connection, or it ended before the file did."""


def fetched(url: str, md5_prefix: str, folder: Path, opener: Opener = urllib.request.urlopen) -> Path:
    """The file at ``url`` in ``folder`` under its own name, downloaded unless it is there. What is cut off stays beside
    it as ``.partial`` and is gone on with, by this call or a later one; processes wait for each other.

    Args:
        url: https, or http on this machine.
        md5_prefix: first hexadecimal digits of the file's MD5; a file that is there already is checked too.

    Raises:
        ModelError: the address is not one of those, cannot be reached, or does not give that file; or the folder cannot
            be written.
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
    os.replace(partial, path)


def check_md5(path: Path, prefix: str, remedy: str) -> None:
    """Raises:
    ModelError: the MD5 of the file at ``path`` begins otherwise; both are named, and the ``remedy``.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if not found.startswith(prefix):
        raise ModelError(f"{path}: its MD5 begins {found[: len(prefix)]}, expected {prefix}: {remedy}")


def _check_scheme(url: str) -> None:
    address = urllib.parse.urlsplit(url)
    here = address.scheme == "http" and address.hostname in ("127.0.0.1", "localhost")
    if address.scheme != "https" and not here:
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
    in_vain, furthest = 0, _size(partial)
    while True:
        have = _size(partial)
        try:
            return _append(url, partial, have, opener)
        except urllib.error.HTTPError as error:
            error.close()
            out_of_range = error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have > 0
            if out_of_range and error.headers.get("Content-Range") == f"bytes */{have}":
                return None  # nothing was missing
            if not out_of_range:
                raise ModelError(f"{url} could not be fetched ({error}): {_by_hand(partial.parent)}") from error
            partial.unlink()
        except _ConnectionLostError as error:
            in_vain = 0 if _size(partial) > furthest else in_vain + 1
            furthest = max(furthest, _size(partial))
            if in_vain == ATTEMPTS:
                raise ModelError(f"{url} could not be fetched ({error}): {_by_hand(partial.parent)}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(url: str, partial: Path, have: int, opener: Opener) -> None:
    """One connection: what is missing after the first ``have`` bytes, or all where the server does not resume."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with _opened(request, opener) as response:
        _check_scheme(response.url)  # it may have been redirected
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if resumed and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            partial.unlink(missing_ok=True)
            raise _ConnectionLostError("the server gave another part than was asked for")
        expected = response.headers.get("Content-Length")
        brought = 0
        with partial.open("ab" if resumed else "wb") as file:
            while chunk := _read(response):
                file.write(chunk)
                brought += len(chunk)
    if expected is not None and brought < int(expected):
        raise _ConnectionLostError(f"the connection ended after {brought} of {expected} bytes")


def _opened(request: urllib.request.Request, opener: Opener) -> Any:
    try:
        return opener(request, timeout=TIMEOUT)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLostError(str(error) or type(error).__name__) from error


def _read(response: Any) -> bytes:
    try:
        chunk: bytes = response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLostError(str(error) or type(error).__name__) from error
    return chunk
