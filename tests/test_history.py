"""Who changed a baseline, when and why: one line more per update, and files that are another's are noticed."""

from __future__ import annotations

import csv
import hashlib
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.history import (
    HISTORY,
    BaselineError,
    Update,
    check_may_update,
    commit,
    history_of,
    in_continuous_integration,
    located,
    locked,
)
from mae_bench.images import cache_folder

LAW = settings(max_examples=20, derandomize=True)
WORDS = st.text(st.characters(exclude_categories=["Cs"]))
FILES = ("cells.csv", "outcomes.npz")


@pytest.fixture(autouse=True)
def outside_continuous_integration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


def update_of(contents: dict[str, bytes], reason: str = "new weights", run_id: str = "full") -> Update:
    hashes = {
        f"{name.partition('.')[0]}_sha256": hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }
    return Update("2026-07-01T12:00:00+00:00", reason, run_id, "0" * 40, "0.2.0", "vit blur, vit clean", 3, 5, **hashes)


def contents(text: str) -> dict[str, bytes]:
    return {name: f"{name} {text}\n".encode() for name in FILES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A baseline after two updates."""
    path = tmp_path / "results"
    for text in ("first", "second"):
        commit(path, contents(text), update_of(contents(text)))
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --------------------------------------------------------------------------- the file


@LAW
@given(st.lists(st.tuples(WORDS, WORDS, st.integers(0, 10**6), st.binary()), min_size=1, max_size=4))
def test_history_holds_every_update_and_only_grows(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, str, int, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("history") / "results"
    made: list[Update] = []
    before = b""
    for reason, run_id, cells, content in drawn:
        files = {name: name.encode() + content for name in FILES}
        made.append(replace(update_of(files, reason, run_id), cells_after=cells))
        commit(folder, files, made[-1])
        assert list(history_of(folder)) == made
        assert {name: path.read_bytes() for name, path in located(folder, made).items()} == files
        assert everything(folder).keys() == {*FILES, HISTORY}
        after = (folder / HISTORY).read_bytes()
        assert after.startswith(before)
        assert after.count(b"\n") == len(made) + 1
        before = after


def test_history_is_a_table_that_no_spreadsheet_computes(tmp_path: Path) -> None:
    commit(tmp_path, contents("x"), update_of(contents("x"), reason='=HYPERLINK("x")\n, "yes"', run_id="@run"))
    with (tmp_path / HISTORY).open(newline="") as file:
        (record,) = csv.DictReader(file)
    assert record.keys() == asdict(update_of(contents("x"))).keys()
    assert record["reason"] == '\'=HYPERLINK("x")\\n, "yes"'
    assert record["run_id"] == "'@run"
    assert record["cells_sha256"] == hashlib.sha256(contents("x")["cells.csv"]).hexdigest()


def test_line_that_lost_its_end_stays_a_line(folder: Path) -> None:
    path = folder / HISTORY
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    commit(folder, contents("third"), update_of(contents("third")))
    assert [update.cells_sha256 for update in history_of(folder)] == [
        hashlib.sha256(contents(text)["cells.csv"]).hexdigest() for text in ("first", "second", "third")
    ]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda _: b"", 1),
        (lambda text: text.splitlines(keepends=True)[0], 1),
        (lambda text: text.replace(b"reason", b"why", 1), 1),
        (lambda text: text.replace(b",3,5,", b",three,5,"), 2),
        (lambda text: text + b"2026,because\n", 4),
        (lambda text: text + b'"', 4),
    ],
    ids=["empty", "header alone", "other columns", "no number", "short line", "open quote"],
)
def test_history_that_is_none_is_refused_naming_the_line(
    folder: Path, damage: Callable[[bytes], bytes], line: int
) -> None:
    path = folder / HISTORY
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BaselineError, match=rf"history\.csv, line {line}: .*restore the file") as caught:
        history_of(folder)
    assert str(path) in str(caught.value)


def test_history_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / HISTORY).write_bytes(b"\xff")
    with pytest.raises(BaselineError, match="restore the file"):
        history_of(folder)


# --------------------------------------------------------------------------- the files that it speaks of


@LAW
@given(name=st.sampled_from(FILES), data=st.data())
def test_any_byte_that_is_changed_by_other_means_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("history") / "results"
    commit(folder, contents("x"), update_of(contents("x")))
    content = bytearray(contents("x")[name])
    start = data.draw(st.integers(0, len(content)))
    content[start : data.draw(st.integers(start, len(content)))] = data.draw(st.binary(max_size=3))
    (folder / name).write_bytes(content)
    if bytes(content) == contents("x")[name]:
        located(folder, history_of(folder))
        return
    with pytest.raises(
        BaselineError, match="was changed by other means than --mae-update-baseline: restore it"
    ) as caught:
        located(folder, history_of(folder))
    assert str(folder / name) in str(caught.value)


def test_the_files_of_an_update_before_the_last_are_another_s(folder: Path) -> None:
    for name, content in contents("first").items():
        (folder / name).write_bytes(content)
    with pytest.raises(BaselineError, match=r"cells\.csv was changed by other means"):
        located(folder, history_of(folder))


@pytest.mark.parametrize("with_history", [True, False])
def test_files_that_are_missing(folder: Path, with_history: bool) -> None:
    if not with_history:
        (folder / HISTORY).unlink()
    assert located(folder, history_of(folder)) == {name: folder / name for name in FILES}
    (folder / "cells.csv").unlink()
    with pytest.raises(BaselineError, match=r"cells\.csv is missing; restore it, or remove the directory"):
        located(folder, history_of(folder))
    (folder / "outcomes.npz").unlink()
    assert located(folder, history_of(folder)) == {}


def test_a_baseline_that_was_removed_goes_on_with_its_history(folder: Path) -> None:
    for name in FILES:
        (folder / name).unlink()
    commit(folder, contents("third"), update_of(contents("third")))
    assert len(history_of(folder)) == 3


def test_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(BaselineError, match="cannot be written") as caught:
        commit(blocked / "results", contents("x"), update_of(contents("x")))
    assert str(blocked / "results") in str(caught.value)


# --------------------------------------------------------------------------- one at a time


def test_a_baseline_is_held_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "link").symlink_to(tmp_path / "results")
    with locked(tmp_path / "results"):
        (path,) = (cache_folder() / "baselines").iterdir()
        for spelling in ("link", "results/../results", "results"):
            with locked(tmp_path / spelling):
                pass
        with pytest.raises(Timeout):
            FileLock(path).acquire(timeout=0)
        with locked(tmp_path / "others"):
            assert len(list((cache_folder() / "baselines").iterdir())) == 2
    with FileLock(path).acquire(timeout=0):
        pass
    assert not (tmp_path / "results").exists()


def test_lock_that_cannot_be_written_is_an_error_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAE_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(BaselineError, match="name a writable folder in the environment variable MAE_BENCH_CACHE"):
        locked(tmp_path).__enter__()


# --------------------------------------------------------------------------- who may


@pytest.fixture
def tree(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository around the baseline, all of it in a commit."""
    person = {f"GIT_{who}_{what}": f"{who}@{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for name, value in (person | {"GIT_CONFIG_GLOBAL": "/dev/null"}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "model.py").write_text("weights = 1\n")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    assert folder.is_relative_to(tmp_path)
    return tmp_path


def test_revision_is_that_of_the_tree(tree: Path, folder: Path) -> None:
    head = subprocess.run(["git", "-C", tree, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    (folder / "leaderboard.md").write_text("not yet in a commit")
    (tree / "runs").mkdir()
    (tree / "runs/log").write_text("written by the run")
    assert check_may_update(folder, "new weights", tree, tree / "runs") == head.stdout.strip()


def test_without_git_there_is_no_revision(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_may_update(folder, "new weights", tmp_path) == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_may_update(folder, "new weights", tmp_path) == ""


@pytest.mark.parametrize("reason", ["", " ", "\t\n"])
def test_an_update_says_why(tmp_path: Path, folder: Path, reason: str) -> None:
    with pytest.raises(BaselineError, match=r"needs a reason.*add --mae-reason TEXT"):
        check_may_update(folder, reason, tmp_path)


def test_an_update_has_a_baseline(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="needs a baseline directory, not --mae-baseline none"):
        check_may_update(None, "new weights", tmp_path)


@pytest.mark.parametrize("name", ["model.py", "other.py", "results.py", "new\x1b[2J.py"])
def test_a_baseline_is_made_with_what_is_in_a_commit(tree: Path, folder: Path, name: str) -> None:
    (tree / name).write_text("weights = 2\n")
    with pytest.raises(BaselineError, match=r"1 files in .* are in no commit, such as .*: commit them") as caught:
        check_may_update(folder, "new weights", tree)
    assert name.replace("\x1b", r"\x1b") in str(caught.value)
    (tree / ".gitignore").write_text("*.py\n.gitignore\n")
    if name != "model.py":  # which is tracked
        check_may_update(folder, "new weights", tree)


@pytest.mark.parametrize("name", FILES)
def test_what_others_changed_is_not_built_upon(tmp_path: Path, folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"by hand")
    with pytest.raises(BaselineError, match="was changed by other means"):
        check_may_update(folder, "new weights", tmp_path)


@pytest.mark.parametrize(
    ("value", "inside"),
    [("true", True), ("1", True), ("TRUE", True), ("yes", True), ("", False), ("0", False), ("False", False)],
)
def test_a_gate_does_not_move_its_own_mark(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, value: str, inside: bool
) -> None:
    monkeypatch.setenv("CI", value)
    assert in_continuous_integration() is inside
    if inside:
        with pytest.raises(BaselineError, match="--mae-update-baseline is refused where CI is set"):
            check_may_update(folder, "new weights", tmp_path)
    else:
        check_may_update(folder, "new weights", tmp_path)
