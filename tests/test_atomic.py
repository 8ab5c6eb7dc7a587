"""A file is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest

from mae_bench.atomic import folder_written_whole, fsync_folder, written_whole


def write(path: Path, content: bytes = b"new") -> None:
    with written_whole(path) as file:
        file.write(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("old", [None, b"old"], ids=["new", "replaced"])
def test_what_was_written_is_there_and_nothing_else(old: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
        path.chmod(0o600)
    write(path, bytes(100_000))
    assert path.read_bytes() == bytes(100_000)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names(tmp_path) == ["file"]


def test_while_it_is_written_nobody_else_can_read_it_or_foretell_its_name(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", []
    for _ in range(2):
        with written_whole(path) as file:
            file.write(b"secret")
            file.flush()
            (partial,) = set(tmp_path.iterdir()) - {path}
            seen.append(partial.name)
            assert stat.S_IMODE(partial.stat().st_mode) == 0o600
            assert partial.read_bytes() == b"secret"
    assert seen[0] != seen[1]
    assert all(name.startswith(".file.") and name.endswith(".partial") for name in seen)


def test_link_at_the_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "foreign").write_bytes(b"foreign")
    (tmp_path / "file").symlink_to(tmp_path / "foreign")
    write(tmp_path / "file")
    assert (tmp_path / "foreign").read_bytes() == b"foreign"
    assert not (tmp_path / "file").is_symlink()


@pytest.mark.parametrize("name", ["n" * 255, "\u00e9" * 127, "new.\n*?[a]"], ids=["long", "many bytes", "odd"])
def test_any_name_that_a_file_can_have_will_do(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError, GeneratorExit])
def test_whatever_interrupts_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error, match="in between"), written_whole(path) as file:  # noqa: PT012 - half of it is written
        file.write(b"half")
        raise error("in between")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


CALLS = [(os, "chmod"), (os, "fsync"), (os, "replace")]


@pytest.mark.parametrize(("module", "name"), CALLS, ids=[name for _, name in CALLS])
def test_call_that_fails_leaves_the_old_file(
    module: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(OSError, match="No space left"):
            write(path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("place", ["absent/file", "blocked/file"])
def test_folder_that_cannot_be_written_to_is_an_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_bytes(b"")
    with pytest.raises(OSError, match=r"absent|blocked"):
        write(tmp_path / place)
    assert names(tmp_path) == ["blocked"]


def test_content_is_on_the_disk_before_the_name_is_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "file", []
    sync, replace = os.fsync, os.replace

    def spy_on_sync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        done.append("folder" if stat.S_ISDIR(found.st_mode) else f"{found.st_size} bytes")
        sync(descriptor)

    def spy_on_replace(source: str, target: Path) -> None:
        done.append("replaced")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_on_sync)
    monkeypatch.setattr(os, "replace", spy_on_replace)
    write(path)
    assert done == ["3 bytes", "replaced", "folder"]


def test_no_descriptor_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("refused")

    before = len(os.listdir("/proc/self/fd"))
    for patched in ((), CALLS):
        for module, name in patched:
            monkeypatch.setattr(module, name, refuse)
        for _ in range(3):
            try:
                write(tmp_path / "file")
            except PermissionError:
                assert patched
    with pytest.raises(PermissionError):
        fsync_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_folder_that_is_missing_cannot_be_synced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fsync_folder(tmp_path / "absent")


def test_temporary_file_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "refused")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(PermissionError, match="refused"):
        write(tmp_path / "file")
    assert names(tmp_path) == []


@pytest.mark.parametrize("before", [None, "empty"])
def test_a_folder_is_there_once_all_is_in_it(before: str | None, tmp_path: Path) -> None:
    place = tmp_path / "above" / "folder"
    if before is not None:
        place.mkdir(parents=True)
    with folder_written_whole(place) as folder:
        (folder / "one").write_bytes(b"1")
        assert not place.exists() or names(place) == []
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (names(place), names(place.parent)) == (["one"], ["folder"])
    assert stat.S_IMODE(place.stat().st_mode) == 0o755


def fill(path: Path, failure: BaseException | None = None) -> None:
    with folder_written_whole(path) as folder:
        (folder / "one").write_bytes(b"1")
        if failure is not None:
            raise failure


@pytest.mark.parametrize("failure", [OSError("no room"), KeyboardInterrupt()])
def test_a_folder_that_is_not_finished_leaves_nothing(failure: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(failure)):
        fill(tmp_path / "folder", failure)
    assert names(tmp_path) == []


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_bytes(b"old")
    with pytest.raises(OSError, match="not empty"):
        fill(tmp_path / "folder")
    assert (names(tmp_path), names(tmp_path / "folder")) == (["folder"], ["old"])
