"""What an index remembers of files is what reading them again would say."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mae_bench.images import ImageError, content_hash
from mae_bench.suites.index import GRAIN, remembered

# the folders are shared by the examples of one law on purpose
LAW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LONG_AGO = 10**18


class Examiner:
    """Hashes files and remembers which."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, file: Path) -> str:
        self.asked.append(file.name)
        return content_hash(file.read_bytes())


def written(path: Path, content: bytes, when: int = LONG_AGO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(when, when))
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [written(tmp_path / "data" / "abc"[i % 3] / f"{i}", bytes([i])) for i in range(9)]


def hashes(files: list[Path]) -> list[str]:
    return [content_hash(file.read_bytes()) for file in files]


def ask(files: list[Path], what: str = "hash") -> tuple[list[str], list[str]]:
    """The answers, and which files had to be read for them."""
    examiner = Examiner()
    root = files[0].parents[1]
    return remembered(what, root, files, examiner), sorted(examiner.asked)


EVERY = [str(i) for i in range(9)]


def test_file_is_read_once(files: list[Path]) -> None:
    assert ask(files) == (hashes(files), EVERY)
    assert ask(files) == (hashes(files), [])


def test_answers_are_in_the_order_of_the_files(files: list[Path]) -> None:
    ask(files)
    assert ask(files[::-1]) == (hashes(files)[::-1], [])
    assert ask(files[3:5]) == (hashes(files)[3:5], [])


CHANGES: dict[str, tuple[Callable[[list[Path]], object], list[str]]] = {
    "size": (lambda files: written(files[2], b"longer"), ["2"]),
    "time of change": (lambda files: written(files[2], b"x", LONG_AGO + 1), ["2"]),
    "time set back": (lambda files: written(files[2], b"x", LONG_AGO - 1), ["2"]),
    "two": (lambda files: [written(files[i], b"longer") for i in (2, 7)], ["2", "7"]),
    "none": (lambda files: files[2].chmod(0o600), []),
}


@pytest.mark.parametrize("what", CHANGES)
def test_file_that_changed_is_read_again_and_no_other(what: str, files: list[Path]) -> None:
    change, again = CHANGES[what]
    ask(files)
    change(files)
    assert ask(files) == (hashes(files), again)
    assert ask(files) == (hashes(files), [])


def test_new_file_is_read_and_one_that_is_gone_forgotten(files: list[Path]) -> None:
    ask(files)
    files[3].unlink()
    rest = files[:3] + files[4:]
    assert ask(rest) == (hashes(rest), [])
    written(files[3], b"\3")
    assert ask(files) == (hashes(files), ["3"])


def test_file_that_may_change_again_within_the_grain_of_a_clock_is_not_remembered(files: list[Path]) -> None:
    now = time.time_ns()
    written(files[4], b"new", now)
    written(files[5], b"older", now - int((GRAIN + 60) * 1e9))
    assert ask(files) == (hashes(files), EVERY)
    written(files[4], b"NEW", now)
    assert ask(files) == (hashes(files), ["4"])


def test_questions_and_folders_are_told_apart(files: list[Path], tmp_path: Path) -> None:
    ask(files)
    assert ask(files, "another question")[1] == EVERY
    others = [written(tmp_path / "other" / "abc"[i % 3] / f"{i}", bytes([i + 100])) for i in range(9)]
    assert ask(others) == (hashes(others), EVERY)


def test_folder_is_the_same_by_another_way(files: list[Path], tmp_path: Path) -> None:
    ask(files)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    linked = [tmp_path / "link" / file.relative_to(tmp_path / "data") for file in files]
    assert ask(linked) == (hashes(files), [])


def index_file(cache: Path) -> Path:
    (path,) = (cache / "index").glob("*.index")
    return path


@LAW
@given(st.data())
def test_damaged_index_is_made_again(cache: Path, tmp_path: Path, data: st.DataObject) -> None:
    files = [written(tmp_path / "data" / "a" / f"{i}", bytes([i])) for i in range(3)]
    ask(files)
    path = index_file(cache)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["changed", "cut", "zeroed", "longer"])):
        case "changed":
            content[place] ^= data.draw(st.integers(1, 255))
        case "cut":
            del content[place:]
        case "zeroed":
            content[place:] = bytes(len(content) - place)
        case _:
            content += b"\0"
    if bytes(content) == path.read_bytes():  # it was zero before
        return
    path.write_bytes(content)
    assert ask(files) == (hashes(files), ["0", "1", "2"])
    assert ask(files) == (hashes(files), [])


def test_index_of_another_folder_is_not_taken_for_that_of_this(files: list[Path], cache: Path, tmp_path: Path) -> None:
    """Whatever a file is named, it says itself what it is of."""
    others = [written(tmp_path / "other" / "abc"[i % 3] / f"{i}", bytes([i + 100])) for i in range(9)]
    ask(others)
    foreign = index_file(cache)
    content = foreign.read_bytes()
    foreign.unlink()
    ask(files)
    index_file(cache).write_bytes(content)
    assert ask(files) == (hashes(files), EVERY)


def test_folder_may_be_named_by_any_bytes(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    files = [written(root / "a" / "1", b"one")]
    assert ask(files) == (hashes(files), ["1"])
    assert ask(files) == (hashes(files), [])


def test_index_that_is_whole_is_not_written_again(files: list[Path], cache: Path) -> None:
    ask(files)
    os.utime(index_file(cache), ns=(LONG_AGO, LONG_AGO))
    ask(files)
    assert index_file(cache).stat().st_mtime_ns == LONG_AGO


def test_vanished_file_is_named(files: list[Path]) -> None:
    files[5].unlink()
    with pytest.raises(ImageError, match=r"cannot be read .*; restore it") as caught:
        ask(files)
    assert str(files[5]) in str(caught.value)


def test_failure_of_a_question_leaves_no_index(files: list[Path], cache: Path) -> None:
    def failing(file: Path) -> str:
        if file.name in "57":
            raise ImageError(f"{file.name} is broken")
        return "fine"

    with pytest.raises(ImageError, match="5 is broken"):
        remembered("hash", files[0].parents[1], files, failing)
    assert list((cache / "index").glob("*.index")) == []
    assert ask(files) == (hashes(files), EVERY)


def test_cache_that_cannot_be_written_to_is_named_with_the_remedy(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAE_BENCH_CACHE", str(written(tmp_path / "file", b"")))
    with pytest.raises(ImageError, match="in the environment variable MAE_BENCH_CACHE") as caught:
        ask(files)
    assert str(tmp_path / "file") in str(caught.value)


def test_full_disk_leaves_the_old_index(files: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(files)
    before = index_file(cache).read_bytes()
    written(files[0], b"longer")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ImageError, match="No space left"):
            ask(files)
    assert index_file(cache).read_bytes() == before
    assert list((cache / "index").glob("*.partial")) == []
    assert ask(files) == (hashes(files), ["0"])


def test_threads_that_ask_at_once_read_each_file_once(files: list[Path]) -> None:
    examiner, answers = Examiner(), []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        answers.append(remembered("hash", files[0].parents[1], files, examiner))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [hashes(files)] * 4
    assert sorted(examiner.asked) == EVERY


PROCESS = """
import sys
from pathlib import Path
from mae_bench.images import content_hash
from mae_bench.suites.index import remembered

root, log = Path(sys.argv[1]), Path(sys.argv[2])

def examine(file):
    with log.open("a") as lines:
        lines.write(file.name + "\\n")
    return content_hash(file.read_bytes())

sys.stdin.read(1)
print(*remembered("hash", root, sorted(root.glob("*/*")), examine))
"""


def test_processes_that_ask_at_once_read_each_file_once(files: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "data"), str(tmp_path / "log")]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    expected = " ".join(hashes(sorted(files)))
    assert [process.communicate()[0].strip() for process in running] == [expected] * 2
    assert sorted((tmp_path / "log").read_text().split()) == EVERY
