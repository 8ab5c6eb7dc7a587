"""``mae-bench compare`` as a user types it, in a real repository."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from mae_bench.cli import app
from mae_bench.rows import CellResult
from references import page
from references.runs import Sessions, some_images

CELLS = tuple(f"{model}-{c}" for model in ("cnn", "vit") for c in ("clean-0.00", "box_blur-1.75", "stripes-0.25"))
IMAGES = 120


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the settings of the machine nor a repository around the temporary folder count."""
    monkeypatch.delenv("CI", raising=False)
    person = {f"GIT_{who}_{what}": f"{who}@{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for name, value in (person | quiet | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}).items():
        monkeypatch.setenv(name, value)


class Perfect(Sessions):
    """Every image is right in every cell, but for what is turned."""

    def result(self, name: str, run_id: str = "run", **changes: object) -> CellResult:
        result = super().result(name, run_id, **changes)
        result.prediction[:] = self.images.labels
        return result


@pytest.fixture
def tree(cell_result: Callable[..., CellResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that one is in: at ``good`` all is right, at ``bad`` and in the tree 40 images of each cell are not,
    and the run ``runs/good`` was not committed.
    """
    sessions = Perfect(cell_result, some_images(IMAGES, 0))
    git(tmp_path, "init", "--quiet")
    for turned, tag in ((0, "good"), (40, "bad")):
        sessions.commit(tmp_path / "results" / "fashion_mnist", CELLS, turned)
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "-m", tag)
        git(tmp_path, "tag", tag)
    sessions.leave(tmp_path / "runs" / "good", CELLS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True)


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("a", "b", "code", "words"),
    [
        ("good", "HEAD", 1, "B is worse as a whole, -33.33 points"),
        ("HEAD", "good", 0, "B is better as a whole, +33.33 points"),
        ("results/fashion_mnist", "runs/good", 0, "Of 6 cells: 6 better."),
        ("good:results/fashion_mnist", "runs/good", 0, "Nothing changed. Of 6 cells: 6 unchanged."),
        ("runs/good", "results/fashion_mnist", 1, "Of 6 cells: 6 worse."),
        ("bad", "results/fashion_mnist", 0, "Nothing changed."),
    ],
)
def test_a_run_committed_results_and_a_revision_are_compared_in_any_order(
    a: str, b: str, code: int, words: str
) -> None:
    result = compare(a, b)
    assert result.exit_code == code, result.output
    assert words in result.stdout
    assert result.stderr == ""


@pytest.mark.usefixtures("tree")
def test_what_counts_is_what_the_options_say() -> None:
    assert compare("good", "HEAD", "--min-drop", 34).exit_code == 0
    assert "6 no difference shown" in compare("good", "HEAD", "--min-drop", 34).stdout
    assert "6 within tolerance" in compare("good", "HEAD", "--min-drop", 34, "--tolerance", 50).stdout


@pytest.mark.usefixtures("tree")
def test_two_models_of_one_place_are_compared() -> None:
    result = compare("HEAD", "HEAD", "--model", "cnn=vit")
    assert result.exit_code == 0
    assert "cnn -> vit" in result.stdout
    several = compare("good", "HEAD", "--model", "vit=vit", "--model", "cnn=vit")
    assert several.exit_code == 1
    assert all(words in several.stdout for words in ("cnn -> vit", "all 2"))


def test_a_page_is_written_and_the_table_printed(tree: Path) -> None:
    result = compare("good", "HEAD", "--markdown", "--out", "new/page.md")
    assert result.exit_code == 1
    written = (tree / "new" / "page.md").read_text()
    assert result.stdout == written + "\n"
    tables = page.read(written).tables
    assert tables[0][0][:2] == ["model", "family"]
    assert len(tables[1]) == 1 + len(CELLS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("good", "nowhere"), "nowhere is no folder, and no revision either"),
        (("good", "HEAD", "--model", "cnn"), "--model cnn: write OLD=NEW"),
        (("good", "HEAD", "--model", "cnn=vitt"), "has no model vitt; did you mean vit"),
        (("good", "HEAD", "--out", "page.pdf"), "--out page.pdf: name a .html or .md file"),
        (("good", "results"), "results holds no results"),
        (("good", "runs/bad"), "images.json: cannot be read"),
        (("good", "spoilt"), "was changed by other means"),
    ],
)
def test_what_cannot_be_done_is_said_with_a_remedy(tree: Path, arguments: tuple[str, ...], words: str) -> None:
    for source, name in (("runs/good", "runs/bad"), ("results/fashion_mnist", "spoilt")):
        (tree / name).mkdir()
        for path in (tree / source).rglob("*"):
            if path.is_file():
                place = tree / name / path.relative_to(tree / source)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(path.read_bytes()[:-1] if path.suffix in (".json", ".npz") else path.read_bytes())
    result = compare(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("mae-bench compare: ")
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_runs_of_other_images_are_refused(tree: Path, cell_result: Callable[..., CellResult]) -> None:
    images = some_images(IMAGES, 0)
    other = type(images)(images.ids, np.roll(images.labels, 1), images.classes, images.duplicate_of)
    Perfect(cell_result, other).leave(tree / "runs" / "other", CELLS)
    result = compare("good", "runs/other")
    assert result.exit_code == 2
    assert "know 120 images under different classes" in result.stderr
