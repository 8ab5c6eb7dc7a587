"""What git says of a tree: its commit, everything that is not in it, and nothing that a repository's settings run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mae_bench import revision
from mae_bench.revision import Commit, Revision, RevisionError

NAMES = (
    "plain",
    "two words",
    "new\nline",
    "quote'\"",
    "ünï☃",
    "a -> b",
    "-x",
    "1 .M",
    "? y",
    ":(top)z",
    "folder/deep/er",
)
"""Each of these once broke a parser of paths."""
BYTES = os.fsdecode(b"no \xff text")


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the settings of the machine nor a repository around the temporary folder count."""
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    person = {f"GIT_{who}_{what}": f"{who}@{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    quiet = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(tmp_path.parent),
    }
    for name, value in (person | quiet).items():
        monkeypatch.setenv(name, value)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one commit of one file."""
    top = tmp_path / "tree"
    top.mkdir()
    git(top, "init", "--quiet")
    put(top, "kept.py")
    git(top, "add", ".")
    git(top, "commit", "--quiet", "-m", "first")
    return top


def put(folder: Path, name: str, text: str = "") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or name.encode("ascii", "backslashreplace").decode())
    return path


def found(folder: Path) -> Revision:
    state = Revision.of(folder)
    assert state is not None
    return state


@pytest.mark.parametrize("what", ["modified", "removed", "staged", "renamed", "untracked", "made executable"])
def test_whatever_is_in_no_commit_is_named_as_it_is_written(tree: Path, what: str) -> None:
    names = [*NAMES, BYTES]
    for name in names:
        put(tree, name)
    if what not in ("staged", "untracked"):
        git(tree, "add", "--all")
        git(tree, "commit", "--quiet", "-m", "second")
    for name in names:
        if what == "modified":
            put(tree, name, "else")
        elif what == "removed":
            (tree / name).unlink()
        elif what == "made executable":
            (tree / name).chmod(0o755)
        elif what == "renamed":
            (tree / name).rename(tree / f"{name}.new")
    if what in ("staged", "renamed"):
        git(tree, "add", "--all")
    renamed = [f"{name}.new" for name in names if what == "renamed"]
    assert sorted(found(tree).changed) == sorted(names + renamed)


def test_files_in_conflict_are_named(tree: Path) -> None:
    git(tree, "checkout", "--quiet", "-b", "one")
    put(tree, "kept.py", "one")
    git(tree, "commit", "--quiet", "-am", "one")
    git(tree, "checkout", "--quiet", "-b", "other", "HEAD~")
    put(tree, "kept.py", "other")
    git(tree, "commit", "--quiet", "-am", "other")
    assert subprocess.run(["git", "-C", tree, "merge", "one"], capture_output=True, check=False).returncode
    assert found(tree).changed == ("kept.py",)


def test_a_tree_whose_files_are_all_in_its_commit_or_ignored_has_no_changes(tree: Path) -> None:
    put(tree, ".gitignore", "*.log\nruns/\n")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "second")
    put(tree, "a.log")
    put(tree, "runs/1/row.json")
    os.utime(tree / "kept.py", (1, 1))  # another time, the same content
    assert found(tree) == Revision(tree.resolve(), git(tree, "rev-parse", "HEAD"))


def test_commit_is_empty_before_the_first(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    put(tmp_path, "new")
    assert found(tmp_path) == Revision(tmp_path.resolve(), "", ("new",))


def test_the_tree_is_found_from_any_folder_in_it(tree: Path) -> None:
    put(tree, "below/untracked")
    assert found(tree / "below") == found(tree)


def test_where_there_is_no_tree_or_no_git_there_is_no_revision(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Revision.of(tmp_path) is None
    assert Revision.of(tree / ".git") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Revision.of(tree) is None


def test_the_repository_of_a_hook_is_not_taken_for_that_of_the_folder(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "--quiet", "other")
    for name, value in (("DIR", ".git"), ("WORK_TREE", ""), ("INDEX_FILE", ".git/index")):
        monkeypatch.setenv(f"GIT_{name}", str(tmp_path / "other" / value))
    assert found(tree).top == tree.resolve()
    assert len(found(tree).commit) == 40


def test_what_the_run_writes_itself_is_outside_nothing(tree: Path, tmp_path: Path) -> None:
    written = ("results/suite/cells.csv", "runs/1/row.json", "tests/__pycache__/test_x.cpython-313.pyc")
    for name in (*written, "results/suites", "runs/2"):
        put(tree, name)
    (tmp_path / "link").symlink_to(tree)
    state = found(tmp_path / "link")
    for top in (tree, tmp_path / "link"):
        assert state.changed_outside(top / "results/suite", top / "runs/1") == ["results/suites", "runs/2"]
    assert state.changed_outside(tmp_path / "elsewhere") == [n for n in sorted(state.changed) if "pycache" not in n]


def test_nothing_that_the_settings_of_a_repository_name_is_run_and_nothing_is_written(tree: Path) -> None:
    canary = tree.parent / "canary"
    script = put(tree.parent, "script", f'#!/bin/sh\ntouch "{canary}"\n')
    script.chmod(0o755)
    git(tree, "config", "core.fsmonitor", str(script))
    hooks = tree.parent / "hooks"
    hooks.mkdir()
    (hooks / "post-index-change").symlink_to(script)
    git(tree, "config", "core.hooksPath", str(hooks))
    git(tree, "status")
    assert canary.exists()
    canary.unlink()

    os.utime(tree / "kept.py", (1, 1))  # git would note that it has looked
    index = (tree / ".git/index").read_bytes()
    assert found(tree).changed == ()
    assert not canary.exists()
    assert (tree / ".git/index").read_bytes() == index
    git(tree, "status")
    assert (tree / ".git/index").read_bytes() != index


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [(".git/config", "[core", "bad config"), (".git/index", "no index at all, yet longer", "index")],
)
def test_a_repository_that_git_cannot_read_is_an_error_with_its_words(
    tree: Path, name: str, text: str, words: str
) -> None:
    put(tree, name, text)
    with pytest.raises(RevisionError, match=words) as caught:
        Revision.of(tree)
    assert str(tree) in str(caught.value)


def test_a_tree_whose_repository_is_gone_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, ".git", "gitdir: nowhere\n")
    with pytest.raises(RevisionError, match=r"not a git repository: .*nowhere"):
        Revision.of(tmp_path)


def test_a_repository_of_another_person_is_an_error_with_the_way_out(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(RevisionError, match=r"safe\.directory"):
        Revision.of(tree)


def test_git_is_not_waited_for_without_end(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(str(arguments), timeout)

    monkeypatch.setattr(revision.subprocess, "run", never)
    with pytest.raises(RevisionError, match="took more than 60 s") as caught:
        Revision.of(tree)
    assert str(tree) in str(caught.value)


# --------------------------------------------------------------------------- what lies in other revisions


def commit_of(folder: Path, name: str) -> Commit:
    found = Commit.named(folder, name)
    assert found is not None
    return found


def test_files_of_a_commit_are_what_was_committed_to_the_byte(tree: Path) -> None:
    contents = {}
    for number, name in enumerate(n for n in (*NAMES, BYTES) if "/" not in n):
        contents[name] = bytes([number]) + b"\r\n\0\xff"
        (tree / "below").mkdir(exist_ok=True)
        (tree / "below" / name).write_bytes(contents[name])
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "second")
    for path in (tree / "below").iterdir():
        path.write_bytes(b"else")
    second = commit_of(tree, "HEAD")
    assert second.files("below", contents.keys()) == second.files("below/", contents.keys()) == contents
    assert commit_of(tree / "below", second.hash[:12]).files(".", {"kept.py"}) == {}
    assert commit_of(tree / "below", "HEAD").files("./", {"-x"}) == {"-x": contents["-x"]}
    assert commit_of(tree, "HEAD~1").files("below", contents.keys()) == {}
    assert second.folders("") == ["below"]
    assert second.files("below/-x", {"-x"}) == {}


def test_no_filter_of_a_repository_is_run_over_what_is_read(tree: Path) -> None:
    canary = tree.parent / "canary"
    script = put(tree.parent, "script", f'#!/bin/sh\ntouch "{canary}"\ncat\n')
    script.chmod(0o755)
    put(tree, ".gitattributes", "* filter=own text eol=crlf diff=own\n")
    put(tree, "kept.py", "one\ntwo\n")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "second")
    for kind in ("filter.own.smudge", "filter.own.clean", "diff.own.textconv"):
        git(tree, "config", kind, str(script))
    assert commit_of(tree, "HEAD").files("", {"kept.py"}) == {"kept.py": b"one\ntwo\n"}
    assert not canary.exists()


@pytest.mark.parametrize("name", ["nowhere", "", "-x", "HEAD..HEAD", "HEAD:kept.py", "HEAD^{tree}", "a b"])
def test_what_is_no_commit_is_refused(tree: Path, name: str) -> None:
    with pytest.raises(RevisionError) as caught:
        Commit.named(tree, name)
    assert str(caught.value).startswith(f"{name}: ")


def test_without_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    assert Commit.named(tmp_path, "HEAD") is None
