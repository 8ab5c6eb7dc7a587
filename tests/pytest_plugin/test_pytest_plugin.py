"""What a user's own project needs, what it gets, and what a project without models notices: nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from mae_bench.pytest_plugin.options import OPTIONS

if TYPE_CHECKING:
    from tests.conftest import Project

VIT = '''
@model_fixture
def my_vit():
    """Shown in the leaderboard."""
    import timm

    shape = dict(num_classes=2, img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=2)
    model = timm.create_model("vit_tiny_patch16_224", **shape)
    model.head.bias.data += 0.01  # as if it had been trained
    return model
'''
MERGED = ["cells.parquet", "indicators.parquet", "leaderboard.md", "manifest.json", "outcomes.npz"]


def only_run(project: Project) -> str:
    """The one run directory below results/runs, relative to the project."""
    (run,) = (project.path / "results/runs").iterdir()
    return str(run.relative_to(project.path))


def sections(result: pytest.RunResult) -> list[str]:
    """Titles of what the plugin adds at the end."""
    return re.findall(r"^=+ (mae_bench: .*?) =+$", result.stdout.str(), re.MULTILINE)


def test_a_blurred_cell_says_how_its_images_were_blurred(project: Project) -> None:
    project.matrix("blur")
    result = project.run("-v", "-k", "blur", "--junitxml=x.xml")
    result.stdout.fnmatch_lines_random(
        [
            "*colour-gaussian_blur-* PASSED top-1 * %, toeplitz *",
            "*colour-defocus_blur-* PASSED top-1 * %, shift-and-add *",
        ]
    )
    assert "&quot;method&quot;: &quot;toeplitz&quot;" in (project.path / "x.xml").read_text()


def test_a_model_and_three_lines_in_an_empty_directory_make_a_leaderboard(project: Project) -> None:
    project.conftest(VIT)
    project.images(classes="ab")
    project.test("occlusion")
    # three cells of twenty-seven, since a transformer takes its time
    result = project.run("--mae-suite", "imagefolder", "--mae-data", "data", "-v", "-k", "random_patch-")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "test_x.py::test_cell[[]my_vit-random_patch-0.10[]] PASSED top-1 * %*",
            "test_x.py::test_cell[[]my_vit-random_patch-0.50[]] PASSED top-1 * %*",
            "test_x.py::test_cell[[]my_vit-random_patch-0.90[]] PASSED top-1 * %*",
            "*mae_bench: leaderboard*",
            "imagefolder: all 10 images, 4 cells.",
            "*my_vit *",
        ]
    )
    run = only_run(project)
    assert set(MERGED) <= {path.name for path in (project.path / run).iterdir()}
    cells = project.cells(run)
    assert sorted(cells) == [
        "my_vit-clean-0.00",
        *(f"my_vit-random_patch-{level}" for level in ("0.10", "0.50", "0.90")),
    ]

    # the merged tables hold what the files of the cells hold
    table = pd.read_parquet(project.path / run / "cells.parquet")
    assert sorted(table.columns) == sorted(cells["my_vit-clean-0.00"]["row"])
    for row in table.to_dict("records"):
        on_file = cells[f"{row['model']}-{row['condition']}"]["row"]
        assert {name: None if pd.isna(value) else value for name, value in row.items()} == on_file
    indicators = pd.read_parquet(project.path / run / "indicators.parquet")
    assert {"cell", "layer", "head", "token", "value"} <= set(indicators.columns)
    on_file = [record for cell in cells.values() for record in cell["indicators"]]
    assert len(indicators) == len(on_file) > 0
    assert indicators["value"].isna().sum() == sum(record["value"] is None for record in on_file)
    with np.load(project.path / run / "outcomes.npz") as outcomes:
        for cell, prediction in zip(outcomes["cells"], outcomes["prediction"], strict=True):
            assert prediction.tolist() == cells[str(cell)]["prediction"]
            right = int((prediction == outcomes["labels"]).sum())
            assert right == round(cells[str(cell)]["row"]["top1"] * 10)
    assert "| my_vit |" in re.sub(" +", " ", (project.path / run / "leaderboard.md").read_text())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pyproject.toml", '[tool.pytest]\nmae_suite = "imagefolder"\nmae_data = "data"\nmae_seed = 3\n'),
        ("pytest.ini", "[pytest]\nmae_suite = imagefolder\nmae_data = data\nmae_seed = 3\n"),
    ],
    ids=["pyproject", "ini"],
)
def test_options_are_also_ini_keys(project: Project, monkeypatch: pytest.MonkeyPatch, file: str, text: str) -> None:
    project.models("colour")
    project.images()
    project.test("clean", name="tests/test_x.py")
    project.write(file, text)
    # paths in the file are relative to the file, and so are the results, wherever pytest is started
    monkeypatch.chdir(project.path / "tests")
    result = project.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["imagefolder: all 15 images, 1 cells.", "*colour *"])
    run = only_run(project)
    assert [row["seed"] for row in project.rows(run).values()] == [3]
    assert f"Results: {project.path / run}" in result.outlines


def test_the_command_line_goes_before_the_ini_file_and_its_paths_belong_to_the_working_directory(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.matrix("clean")
    project.images(folder="tests/data", per_class=2)
    project.test("clean", name="tests/test_y.py")
    monkeypatch.chdir(project.path / "tests")
    result = project.run("--mae-data", "data", "--mae-run", "run")
    assert result.ret == 0
    assert {row["n_expected"] for row in project.rows("tests/run").values()} == {6}


def test_lists_and_switches_can_be_given_in_an_ini_file(project: Project) -> None:
    project.matrix("blur")
    project.write(
        "pyproject.toml",
        '[tool.pytest]\nmae_suite = "imagefolder"\nmae_data = "data"\n'
        'mae_full = true\nmae_model = ["vit_base_patch16*"]\n',
    )
    (project.path / "pytest.ini").unlink()
    result = project.run("--co", "-q")
    assert "test_x.py::test_cell[colour-gaussian_blur-2.00]" in result.outlines  # a level of the whole ladder only
    assert any(line.startswith("test_x.py::test_cell[vit_base_patch16_224.") for line in result.outlines)


def test_help_explains_every_option_and_its_ini_key(project: Project) -> None:
    text = project.run("--help").stdout.str()
    for option in OPTIONS:
        assert re.search(rf"^ +--mae-{option.name}\b", text, re.MULTILINE), option.name
        assert re.search(rf"^ +{option.key} \(", text, re.MULTILINE), option.key


def test_family_marks_are_registered(project: Project) -> None:
    project.matrix("clean")
    project.write("pytest.ini", "[pytest]\nstrict = true\nmae_suite = imagefolder\nmae_data = data\n")
    assert project.run("-W", "error").ret == 0
    markers = project.run("--markers").stdout.str()
    for mark in ("clean", "blur", "occlusion", "token_drop", "imagenet_c", "noise", "weather", "digital"):
        assert f"@pytest.mark.{mark}: " in markers


ELSEWHERE = """
import pytest


@pytest.fixture
def evaluation():
    return 1


def test_own_fixture(evaluation):
    assert evaluation == 1


@pytest.mark.parametrize("cell", ["a-b-0.50", 2])
def test_own_parameter(cell):
    assert cell


class TestOwn:
    @pytest.fixture
    def cell(self):
        return 3

    def test_own_fixture_of_a_class(self, cell):
        assert cell == 4
"""


def said(result: pytest.RunResult) -> list[str]:
    """The lines of a report that do not tell the time or which plugins there are."""
    return [re.sub(r" in [\d.]+s", "", line) for line in result.outlines if not line.startswith("plugins:")]


def test_a_project_without_models_does_not_notice_the_plugin(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")  # where the plugin is at its strictest
    monkeypatch.delenv("PYTEST_ADDOPTS")  # which holds an option of it
    project.write("test_x.py", ELSEWHERE)
    with_plugin = project.run("-vv", "--tb=no")
    with_plugin.assert_outcomes(passed=3, failed=1)
    assert said(with_plugin) == said(project.run("-vv", "--tb=no", "-p", "no:mae_bench"))
    assert not (project.path / "results").exists()


@pytest.mark.thorough  # starts two workers
def test_a_project_without_models_does_not_notice_the_plugin_in_xdist_workers(project: Project) -> None:
    project.write("test_x.py", ELSEWHERE)
    result = project.run("-n", "2")
    result.assert_outcomes(passed=3, failed=1)
    assert sections(result) == []
    assert not (project.path / "results").exists()


def test_listing_the_tests_leaves_no_results(project: Project) -> None:
    project.matrix("clean", "blur")
    result = project.run("--co", "-q")
    assert result.ret == 0
    assert sum("test_cell[" in line for line in result.outlines) == 13
    assert sections(result) == []
    assert project.log == []
    assert not (project.path / "results").exists()


def test_a_selection_of_no_cell_leaves_no_results(project: Project) -> None:
    project.matrix("blur")
    project.write("test_plain.py", "def test_plain():\n    pass\n")
    result = project.run("-k", "plain")
    result.assert_outcomes(passed=1, deselected=12)
    assert sections(result) == []
    assert not (project.path / "results").exists()
