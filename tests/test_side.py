"""What is compared is found where it lies: in a run, in a folder of committed results, or in a git revision."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mae_bench.errors import BenchError
from mae_bench.rows import CellResult
from mae_bench.side import Side, SideError, sides
from references.runs import Sessions

CELLS = ("vit-clean-0.00", "vit-gaussian_blur-3.00", "vit-random_patch-0.50")


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the settings of the machine nor a repository around the temporary folder count."""
    monkeypatch.delenv("CI", raising=False)
    person = {f"GIT_{who}_{what}": f"{who}@{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for name, value in (person | quiet | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def sessions(cell_result: Callable[..., CellResult]) -> Sessions:
    return Sessions(cell_result)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def tree(sessions: Sessions, tmp_path: Path) -> Path:
    """A repository whose results changed in its last commit."""
    top = tmp_path / "tree"
    (top / "results").mkdir(parents=True)
    git(top, "init", "--quiet", "--initial-branch", "main")
    for turned, tag in ((0, "old"), (4, "new")):
        sessions.commit(top / "results" / "fashion_mnist", CELLS, turned)
        git(top, "add", ".")
        git(top, "commit", "--quiet", "-m", tag)
        git(top, "tag", tag)
    return top


def test_a_run_is_what_its_cells_say(sessions: Sessions, tmp_path: Path) -> None:
    sessions.leave(tmp_path / "run", CELLS)
    side = Side.load("run", tmp_path)
    assert (side.name, side.models, sorted(side.rows)) == ("run", ["vit"], sorted(CELLS))
    for name in CELLS:
        assert side.outcomes.prediction[name].tolist() == sessions.result(name).prediction.tolist()
    assert side.outcomes.duplicate_of.tolist() == sessions.images.duplicate_of.tolist()
    assert side.left_out == ()


def test_cells_that_were_evaluated_otherwise_are_left_out_and_named(sessions: Sessions) -> None:
    clean, blur, patch = CELLS
    for changes in ({"weights_hash": "before"}, {"dtype": "bfloat16"}, {"manifest_hash": "of other images"}):
        results = [sessions.result(clean), sessions.result(blur, **changes), sessions.result(patch)]
        side = Side.of("run", results, sessions.images)
        assert (sorted(side.rows), side.left_out) == ([clean, patch], (blur,))


def test_each_revision_is_as_it_was_committed(sessions: Sessions, tree: Path) -> None:
    before = sessions.result(CELLS[0]).prediction
    after = np.r_[(before[:4] + 1) % 3, before[4:]]
    for place, prediction in (
        ("old:results/fashion_mnist", before),
        ("HEAD~1", before),
        (f"{git(tree, 'rev-parse', 'old')}:results/fashion_mnist/", before),
        ("main", after),
        ("HEAD:./results/fashion_mnist", after),
        ("results/fashion_mnist", after),
    ):
        side = Side.load(place, tree)
        assert side.outcomes.prediction[CELLS[0]].tolist() == prediction.tolist()
    # from a folder below, paths still count from the top
    assert Side.load("main", tree / "results").rows == Side.load("main", tree).rows
    assert Side.load("main:./fashion_mnist", tree / "results").rows == Side.load("main", tree).rows
    assert Side.load("old", tree).name == "old:results/fashion_mnist"


def test_the_working_tree_is_neither_touched_nor_looked_at(tree: Path) -> None:
    before = Side.load("old", tree).rows
    cells = tree / "results" / "fashion_mnist" / "cells.csv"
    cells.write_text("spoilt")
    index = (tree / ".git" / "index").read_bytes()
    assert Side.load("old", tree).rows == before
    assert cells.read_text() == "spoilt"
    assert (tree / ".git" / "index").read_bytes() == index
    with pytest.raises(BenchError, match="changed by other means"):
        Side.load("results/fashion_mnist", tree)


def test_a_revision_without_a_folder_is_of_the_suite_of_the_other_side(
    sessions: Sessions, tree: Path, tmp_path: Path
) -> None:
    sessions.commit(tree / "results" / "cifar10", CELLS, suite="cifar10")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "another suite")
    with pytest.raises(SideError, match=r"not clear, it has main:results/cifar10, main:results/fashion_mnist"):
        Side.load("main", tree)
    sessions.leave(tmp_path / "run", CELLS)
    for places in (("main", str(tmp_path / "run")), (str(tmp_path / "run"), "main"), ("main:results/cifar10", "main")):
        a, b = sides(*places, tree)
        assert a.outcomes.suite == b.outcomes.suite


def test_a_folder_comes_before_a_revision_of_its_name(sessions: Sessions, tree: Path) -> None:
    sessions.leave(tree / "old", CELLS[:1])
    assert sorted(Side.load("old", tree).rows) == [CELLS[0]]


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere", "nowhere is no folder, and no revision either: .*git knows no such revision"),
        ("n" * 300, "n is no folder, and no revision either"),
        ("old:elsewhere", "old:elsewhere: the revision has no results there; name a folder with cells.csv in it"),
        ("old:README.md", "old:README.md: the revision has no results there"),
        ("old:", "old:: the revision has no results there"),
        ("--upload-pack=x", "no name of a revision begins so"),
        (":results/fashion_mnist", "is no folder, and no revision either"),
        ("results", "results holds no results: name the directory of a run"),
        ("results/fashion_mnist/cells.csv", "is a file: name the folder"),
        ("first", "first: which results in results/ are meant is not clear, it has none; name REV:FOLDER"),
        ("cut", r"cut:results/fashion_mnist.*cells.csv was changed by other means.*, or name another revision$"),
        ("lost", r"lost:results/fashion_mnist.*outcomes.npz is missing.*, or name another revision$"),
        ("run", "vit.clean-0.00.json: not a cell that can be read .*; remove it and run the cell again"),
        ("bare", "bare: images.json is missing; run again with --mae-resume"),
    ],
)
def test_a_place_without_sound_results_is_refused_with_a_remedy(
    sessions: Sessions, tree: Path, place: str, words: str
) -> None:
    results = tree / "results" / "fashion_mnist"
    git(
        tree,
        "tag",
        "-f",
        "first",
        git(tree, "commit-tree", git(tree, "hash-object", "-t", "tree", "-w", os.devnull), "-m", "x"),
    )
    (tree / "README.md").write_text("text")
    git(tree, "checkout", "--quiet", "-b", "cut")
    damaged(results / "cells.csv")
    git(tree, "commit", "--quiet", "-am", "cut")
    git(tree, "checkout", "--quiet", "-b", "lost", "main")
    git(tree, "rm", "--quiet", "results/fashion_mnist/outcomes.npz")
    git(tree, "commit", "--quiet", "-m", "lost")
    git(tree, "checkout", "--quiet", "main")
    damaged(sessions.leave(tree / "run", CELLS).path / "cells" / "vit" / "clean-0.00.json")
    (tree / "bare" / "cells").mkdir(parents=True)
    with pytest.raises(BenchError, match=words):
        Side.load(place, tree)


def test_without_a_repository_only_folders_are_found(tmp_path: Path) -> None:
    with pytest.raises(SideError, match="no folder, and there is no git repository here"):
        Side.load("HEAD", tmp_path)


def test_a_run_without_a_finished_cell_is_refused(sessions: Sessions) -> None:
    with pytest.raises(SideError, match="run holds no finished cell"):
        Side.of("run", [], sessions.images)
