"""Downloads from a server on this machine that cuts connections, ignores ranges and serves wrong bytes."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_bench.models import ModelError, download
from mae_bench.models.download import ATTEMPTS, fetched

CONTENT = bytes(range(256)) * 40
MD5 = hashlib.md5(CONTENT).hexdigest()[:6]


class Server(HTTPServer):
    """Serves ``content`` at any path; ``answers`` change how the next requests are answered, one after the other."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.answers: list[dict[str, Any]] = []
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights/some.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        answer = self.server.answers.pop(0) if self.server.answers else {}
        content = self.server.content
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        status, body = 200, content
        if "status" in answer:
            status, body = answer["status"], b""
        elif asked and not answer.get("ignores_range"):
            status, body = (206, content[start:]) if start < len(content) else (416, b"")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", answer.get("range", f"bytes {start}-{len(content) - 1}/{len(content)}"))
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(content)}")
        if "location" in answer:
            self.send_header("Location", answer["location"])
        self.end_headers()
        self.wfile.write(body[: answer.get("cut", len(body))])

    def log_message(self, *_: object) -> None:
        """Nothing of it belongs on the terminal."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def left(folder: Path) -> set[str]:
    """Names of the files in a folder, locks aside."""
    return {path.name for path in folder.iterdir()} - {"some.pth.lock"}


def test_a_file_is_fetched_once_and_then_found(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "checkpoints"
    path = fetched(server.url, MD5, folder)
    assert path == folder / "some.pth"
    assert path.read_bytes() == CONTENT
    assert fetched(server.url, MD5, folder) == path
    assert server.ranges == [None]
    assert left(folder) == {"some.pth"}


def test_a_file_that_is_there_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "some.pth").write_bytes(CONTENT)

    def offline(*_: object, **__: object) -> None:
        pytest.fail("the network was asked")

    assert fetched("https://example.org/some.pth", MD5, tmp_path, offline).read_bytes() == CONTENT
    assert left(tmp_path) == {"some.pth"}


def test_a_connection_that_is_cut_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.answers = [{"cut": 4000}, {"cut": 1}, {"cut": 3000}]
    assert fetched(server.url, MD5, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=4000-", "bytes=4001-", "bytes=7001-"]
    assert left(tmp_path) == {"some.pth"}


def test_what_an_earlier_call_left_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.answers = [{"cut": 4000}, *[{"cut": 0}] * ATTEMPTS]
    with pytest.raises(ModelError, match=r"could not be fetched \(the connection ended after 0 of 6240 bytes\)"):
        fetched(server.url, MD5, tmp_path)
    assert left(tmp_path) == {"some.pth.partial"}
    assert fetched(server.url, MD5, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, *["bytes=4000-"] * (ATTEMPTS + 1)]
    assert left(tmp_path) == {"some.pth"}


def test_a_server_that_ignores_the_range_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "some.pth.partial").write_bytes(b"x" * 5000)
    server.answers = [{"ignores_range": True}]
    assert fetched(server.url, MD5, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=5000-"]


def test_a_server_that_ignores_the_range_and_cuts_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answers = [{"ignores_range": True, "cut": cut} for cut in (900, 800, 900, 700, 900, 900, 900)]
    with pytest.raises(ModelError, match="the connection ended after 700 of 10240 bytes"):
        fetched(server.url, MD5, tmp_path)


def test_another_range_than_was_asked_for_is_not_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "some.pth.partial").write_bytes(CONTENT[:5000])
    server.answers = [{"range": "bytes 4000-10239/10240"}]
    assert fetched(server.url, MD5, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=5000-", None]


def test_a_partial_file_that_misses_nothing_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "some.pth.partial").write_bytes(CONTENT)
    assert fetched(server.url, MD5, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=10240-"]


def test_a_partial_file_that_is_too_long_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "some.pth.partial").write_bytes(CONTENT + b"more")
    assert fetched(server.url, MD5, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=10244-", None]


def test_wrong_bytes_are_deleted_and_both_hashes_named(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"?"
    found = hashlib.md5(server.content).hexdigest()[:6]
    with pytest.raises(ModelError, match=f"its MD5 begins {found}, expected {MD5}: it was deleted") as caught:
        fetched(server.url, MD5, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "--mae-weights FILE" in str(caught.value)
    assert left(tmp_path) == set()


def test_a_wrong_file_that_is_there_is_named_and_left(server: Server, tmp_path: Path) -> None:
    (tmp_path / "some.pth").write_bytes(b"my own")
    with pytest.raises(ModelError, match=f"expected {MD5}: take it away") as caught:
        fetched(server.url, MD5, tmp_path)
    assert str(tmp_path / "some.pth") in str(caught.value)
    assert server.ranges == []
    assert (tmp_path / "some.pth").read_bytes() == b"my own"


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_is_not_repeated(server: Server, tmp_path: Path, status: int) -> None:
    server.answers = [{"status": status}]
    with pytest.raises(ModelError, match=f"could not be fetched .HTTP Error {status}"):
        fetched(server.url, MD5, tmp_path)
    assert server.ranges == [None]


def test_without_a_server_the_address_the_folder_and_the_option_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as gone:
        url = gone.url
    with pytest.raises(ModelError, match="refused") as caught:
        fetched(url, MD5, tmp_path)
    for part in (url, f"by hand into {tmp_path}", "--mae-weights FILE"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/some.pth", "ftp://example.org/some.pth", "file:///etc/passwd", "some.pth",
        "http://127.0.0.1.example.org/some.pth",
    ],
)  # fmt: skip
def test_only_https_is_opened(tmp_path: Path, url: str) -> None:
    with pytest.raises(ModelError, match="is not an https address"):
        fetched(url, MD5, tmp_path, lambda *_, **__: pytest.fail("it was opened"))
    assert left(tmp_path) == set()


class Response:
    """What a fake connection gives: ``body`` in chunks, then ``end``."""

    def __init__(self, url: str, status: int, headers: dict[str, str], body: bytes, end: Exception | None) -> None:
        self.url, self.status, self.end = url, status, end
        self.headers = Message()
        for name, value in headers.items():
            self.headers[name] = value
        self.chunks = [body[i : i + 7] for i in range(0, len(body), 7)]

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def read(self, size: int) -> bytes:  # noqa: ARG002 - a connection may give less
        if self.chunks:
            return self.chunks.pop(0)
        if self.end is not None:
            raise self.end
        return b""


def opener(cuts: list[tuple[int, Exception | None]], content: bytes) -> Callable[..., Response]:
    """Connections that end after so many bytes, then whole ones."""

    def opened(request: Request, timeout: float) -> Response:
        assert timeout == download.TIMEOUT
        asked = request.get_header("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        length, end = cuts.pop(0) if cuts else (len(content), None)
        headers = {"Content-Length": str(len(content) - start), "Content-Range": f"bytes {start}-/{len(content)}"}
        return Response(request.full_url, 206 if asked else 200, headers, content[start:][:length], end)

    return opened


ENDS = st.sampled_from([None, TimeoutError("timed out"), ConnectionResetError(), http.client.IncompleteRead(b"")])


@given(st.binary(min_size=1, max_size=100), st.lists(st.tuples(st.integers(1, 30), ENDS), max_size=4))
def test_however_a_connection_ends_the_file_is_whole(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cuts: list[tuple[int, Exception | None]]
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    ends = [(length, end) for length, end in cuts if length < len(content)]
    # what was brought before may leave no more than the next connection brings: a further range is out of bounds
    while sum(length for length, _ in ends) >= len(content):
        ends.pop()
    md5 = hashlib.md5(content).hexdigest()[:6]
    assert fetched("https://example.org/a/some.pth", md5, folder, opener(ends, content)).read_bytes() == content
    assert left(folder) == {"some.pth"}


def test_a_timeout_is_given_up_after_some_connections(tmp_path: Path) -> None:
    calls = []

    def silent(*_: object, **__: object) -> None:
        calls.append(1)
        raise TimeoutError("timed out")

    with pytest.raises(ModelError, match=r"could not be fetched \(timed out\)"):
        fetched("https://example.org/some.pth", MD5, tmp_path, silent)
    assert len(calls) == ATTEMPTS


# --------------------------------------------------------------------------- servers that mean harm


def answered(status: int, headers: dict[str, str], body: bytes, url: str = "") -> Callable[..., Response]:
    return lambda request, timeout: Response(url or request.full_url, status, headers, body, None)  # noqa: ARG005


def test_a_redirection_to_an_open_connection_is_refused(tmp_path: Path) -> None:
    redirected = answered(200, {}, CONTENT, "http://example.org/some.pth")
    with pytest.raises(ModelError, match=r"http://example\.org/some\.pth is not an https address"):
        fetched("https://example.org/some.pth", MD5, tmp_path, redirected)
    assert left(tmp_path) == set()


@pytest.mark.parametrize(
    "location",
    ["http://example.org/some.pth", "ftp://example.org/some.pth", "file:///etc/passwd", "data:,x", "http://[", "//x:y"],
)
def test_where_a_server_leads_is_looked_at_before_it_is_asked(server: Server, tmp_path: Path, location: str) -> None:
    server.answers = [{"status": 302, "location": location}]
    with pytest.raises(ModelError, match=r"is not an https address|could not be fetched"):
        fetched(server.url, MD5, tmp_path)
    assert server.ranges == [None]
    assert left(tmp_path) == set()


def test_a_server_elsewhere_leads_nobody_to_this_machine(server: Server) -> None:
    elsewhere = Request("https://example.org/some.pth")
    body = io.BytesIO()
    with pytest.raises(ModelError, match=r"leads to http://127.0.0.1:\d+/weights/some.pth, which is on this machine"):
        download._Redirections().redirect_request(elsewhere, body, 302, "Found", Message(), server.url)
    assert body.closed


def test_a_packed_body_is_refused_with_its_packing(tmp_path: Path) -> None:
    packed = gzip.compress(CONTENT)
    headers = {"Content-Encoding": "gzip", "Content-Length": str(len(packed))}
    with pytest.raises(ModelError, match="packed as gzip, which was not asked for"):
        fetched("https://example.org/some.pth", MD5, tmp_path, answered(200, headers, packed))
    assert left(tmp_path) == set()


def test_a_body_without_an_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MOST", 1000)

    class Endless(Response):
        def read(self, size: int) -> bytes:
            return bytes(min(size, 100))

    def endless(request: Request, timeout: float) -> Response:  # noqa: ARG001
        return Endless(request.full_url, 200, {}, b"", None)

    with pytest.raises(ModelError, match="there is no end to it after 1,100 bytes"):
        fetched("https://example.org/some.pth", MD5, tmp_path, endless)
    assert left(tmp_path) == set()


def test_a_body_that_would_be_enormous_is_not_begun(tmp_path: Path) -> None:
    headers = {"Content-Length": str(10**13)}
    with pytest.raises(ModelError, match="it would be of 10,000,000,000,000 bytes"):
        fetched("https://example.org/some.pth", MD5, tmp_path, answered(200, headers, CONTENT))
    assert left(tmp_path) == set()


def test_a_body_longer_than_its_length_is_refused(tmp_path: Path) -> None:
    headers = {"Content-Length": "100"}
    with pytest.raises(ModelError, match="there is no end to it after"):
        fetched("https://example.org/some.pth", MD5, tmp_path, answered(200, headers, CONTENT))
    assert left(tmp_path) == set()


HEADERS = st.dictionaries(
    st.sampled_from(["Content-Length", "Content-Range", "Content-Encoding", "Transfer-Encoding"]),
    st.sampled_from(
        ["-1", "1e3", "\u0661", "nan", "9" * 30, "bytes 0-", "bytes */", f"bytes 0-/{len(CONTENT)}", "gzip"]
    )
    | st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=8),
)


@given(st.sampled_from([200, 206]), HEADERS, st.sampled_from([0, 5000]), st.sampled_from([CONTENT, CONTENT[5000:]]))
def test_whatever_a_server_says_the_file_is_the_published_one_or_none(
    tmp_path_factory: pytest.TempPathFactory, status: int, headers: dict[str, str], have: int, body: bytes
) -> None:
    folder = tmp_path_factory.mktemp("said")
    if have:
        (folder / "some.pth.partial").write_bytes(CONTENT[:have])
    try:
        path = fetched("https://example.org/some.pth", MD5, folder, answered(status, headers, body))
    except ModelError:
        assert not (folder / "some.pth").exists()
    else:
        assert path.read_bytes() == CONTENT


# --------------------------------------------------------------------------- others on this machine


def test_what_is_not_whole_is_private_and_what_is_whole_is_not(tmp_path: Path) -> None:
    partial, modes = tmp_path / "some.pth.partial", []

    class Watched(Response):
        def read(self, size: int) -> bytes:
            modes.append(stat.S_IMODE(partial.stat().st_mode))
            return super().read(size)

    def watched(request: Request, timeout: float) -> Response:  # noqa: ARG001
        return Watched(request.full_url, 200, {"Content-Length": "10240"}, CONTENT, None)

    path = fetched("https://example.org/some.pth", MD5, tmp_path, watched)
    assert set(modes) == {0o600}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def link(partial: Path, own: Path) -> None:
    partial.symlink_to(own)


def second_name(partial: Path, own: Path) -> None:
    os.link(own, partial)


def writable(partial: Path, own: Path) -> None:
    partial.write_bytes(own.read_bytes())
    partial.chmod(0o666)


def pipe(partial: Path, own: Path) -> None:  # noqa: ARG001
    os.mkfifo(partial)


@pytest.mark.parametrize("put", [link, second_name, writable, pipe])
def test_what_others_may_have_put_there_is_not_gone_on_with(
    server: Server, tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    own = tmp_path / "own.txt"
    own.write_bytes(b"x" * 5000)
    put(tmp_path / "some.pth.partial", own)
    assert fetched(server.url, MD5, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None]
    assert own.read_bytes() == b"x" * 5000
    assert not (tmp_path / "some.pth").is_symlink()


def test_the_file_is_on_the_disk_before_it_has_its_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("file" if descriptor else ""))
    monkeypatch.setattr(download, "fsync_folder", lambda folder: done.append(folder.name))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("name") or replace(*paths))
    fetched(server.url, MD5, tmp_path)
    assert done == ["file", "name", tmp_path.name]


def test_a_redirection_on_this_machine_is_followed(server: Server, tmp_path: Path) -> None:
    server.answers = [{"status": 302, "location": server.url.replace("weights", "elsewhere")}]
    assert fetched(server.url, MD5, tmp_path).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ModelError, match="cannot be kept in") as caught:
        fetched(server.url, MD5, tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)
    assert server.ranges == []


def test_a_full_disk_is_not_taken_for_a_lost_connection(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_opened_partial", lambda *_: os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"))
    with pytest.raises(ModelError, match=r"cannot be kept in .*No space left on device"):
        fetched(server.url, MD5, tmp_path)
    assert server.ranges == [None]
    assert not (tmp_path / "some.pth").exists()


def test_callers_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetched(server.url, MD5, tmp_path).read_bytes())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert server.ranges == [None]
