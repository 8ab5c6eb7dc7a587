"""A folder and its mirror: what is in one is in the other, whatever happened in between."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path

import fsspec
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from mae_bench.cells import Cell, Level
from mae_bench.mirror import UNSENT, Mirror, MirrorError
from mae_bench.store import LOCK, RunDirectory

NAMES = ("manifest.json", "cells/colour/clean-0.00.json", "cells/scratch/clean-0.00.json", "models/colour.json")
CHANGES = st.lists(st.tuples(st.sampled_from(NAMES), st.none() | st.binary(max_size=3)), max_size=12)


def somewhere() -> str:
    return f"memory://runs/{uuid.uuid4()}"


def objects(url: str) -> dict[str, bytes]:
    store, root = fsspec.core.url_to_fs(url)
    return {path[len(root) :].strip("/"): store.cat_file(path) for path in store.find(root)}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (LOCK, UNSENT)
    }


def write(folder: Path, name: str, content: bytes | None) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


@given(st.lists(CHANGES, max_size=4))
def test_what_is_sent_is_what_is_there_and_what_another_machine_fetches(rounds: list[list[tuple[str, bytes]]]) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        url = somewhere()
        here, there = Mirror(url, Path(one)), Mirror(url, Path(other))
        here.begin(resume=False)
        write(here.folder, "plan.json", b"{}")  # a folder in an object store is there when something is in it
        for changes in rounds:
            for name, content in changes:
                write(here.folder, name, content)
            here.send()
            assert here.complete
            assert objects(url) == files(here.folder)
            there.fetch()
            assert files(there.folder).items() >= files(here.folder).items()
            there.begin(resume=True)
            assert files(there.folder) == files(here.folder)


def test_what_concerns_one_machine_alone_stays_there(tmp_path: Path) -> None:
    mirror = Mirror(somewhere(), tmp_path)
    for name in (
        "scratch/clean/features",
        ".lock",
        ".session",
        ".writable_1",
        "cells/a/.b.json.x1.partial",
        "rows.csv",
    ):
        write(tmp_path, name, b"1")
    mirror.send()
    assert list(objects(mirror.url)) == ["rows.csv"]
    assert mirror.complete


@pytest.mark.parametrize("model", ["a", "a.json", "scratch", "vit.partial", "with/slash", "con"])
def test_of_one_model_only_its_own_is_sent_whatever_its_name(tmp_path: Path, model: str) -> None:
    mirror, run = Mirror(somewhere(), tmp_path), RunDirectory(tmp_path)
    cell = Cell(model, "clean", Level(0.0))
    of_model = [path.relative_to(tmp_path).as_posix() for path in (run.model_path(model), run.cell_path(cell))]
    for name in ("manifest.json", "models/b.json", "cells/b/x.json", *of_model):
        write(tmp_path, name, b"1")
    mirror.send(model)
    assert sorted(objects(mirror.url)) == sorted(["manifest.json", *of_model])
    assert not mirror.complete
    mirror.send("b")
    assert objects(mirror.url) == files(tmp_path)
    assert mirror.complete


def test_what_is_there_is_not_begun_again_and_what_is_not_sent_is_not_lost(tmp_path: Path) -> None:
    url = somewhere()
    mirror = Mirror(url, tmp_path / "one")
    mirror.folder.mkdir()
    write(mirror.folder, "old.json", b"left by a session that was killed, and may be told otherwise by now")
    mirror.begin(resume=False)
    assert files(mirror.folder) == {}
    write(mirror.folder, "a.json", b"1")
    mirror.send()
    with pytest.raises(MirrorError, match="is not empty: add --mae-resume"):
        Mirror(url, tmp_path / "other").begin(resume=False)
    (mirror.folder / UNSENT).touch()
    write(mirror.folder, "a.json", b"older")
    write(mirror.folder, "b.json", b"not sent")
    with pytest.raises(MirrorError, match=r"1 files in"):
        Mirror(url, mirror.folder).begin(resume=False)
    assert files(mirror.folder)["b.json"] == b"not sent"
    Mirror(url, mirror.folder).begin(resume=True)
    assert objects(url) == {"a.json": b"1", "b.json": b"not sent"} == files(mirror.folder)


def test_what_another_process_of_this_machine_has_made_is_not_replaced(tmp_path: Path) -> None:
    url = somewhere()
    one, other = Mirror(url, tmp_path), Mirror(url, tmp_path)
    write(tmp_path, "a.json", b"old")
    one.send()
    write(tmp_path, "a.json", b"new")
    other.fetch(missing=True)
    one.send()
    assert objects(url) == {"a.json": b"new"}


def test_what_could_not_be_sent_is_kept_and_sent_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(somewhere(), tmp_path)
    write(tmp_path, "a.json", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(mirror._store, "pipe_file", lambda *_: (_ for _ in ()).throw(OSError("no route")))
        with pytest.raises(MirrorError, match=r"cannot be written to .no route.; what was not sent is in"):
            mirror.send()
        assert not mirror.complete
        mirror.forget()
        assert (tmp_path / "a.json").exists()
    mirror.send()
    assert mirror.complete
    assert objects(mirror.url) == {"a.json": b"1"}
    mirror.forget()
    assert not tmp_path.exists()


def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    mirror = Mirror(somewhere(), tmp_path / "run")
    mirror._store.store[f"{mirror._root}/../../evil.json"] = fsspec.implementations.memory.MemoryFile(None, "x", b"1")
    with pytest.raises(MirrorError, match="outside of the folder"):
        mirror.fetch()
    assert not (tmp_path / "evil.json").exists()


def test_a_folder_is_forgotten_unless_a_session_holds_it(tmp_path: Path) -> None:
    mirror = Mirror(somewhere(), tmp_path / "run")
    write(mirror.folder, "a.json", b"1")
    with FileLock(mirror.folder / LOCK):
        mirror.forget()
        assert (mirror.folder / "a.json").exists()
    mirror.forget()
    assert not mirror.folder.exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nowhere://a/b", "Protocol not known: nowhere"),
        ("memory://", "name a folder in it, as s3://bucket/runs/july"),
        ("memory://runs/..", "name a folder in it"),
    ],
)
def test_a_place_that_cannot_be_is_refused(url: str, words: str) -> None:
    with pytest.raises(MirrorError, match=words):
        Mirror(url)
