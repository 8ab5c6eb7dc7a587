"""Values of options that cannot be, and the run directory: refused, resumed, unwritable."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Project

USAGE = pytest.ExitCode.USAGE_ERROR


def forwards(project: Project) -> int:
    """Images classified so far."""
    return sum(int(line.split()[-1]) for line in project.log if line.startswith("forward"))


def said(result: pytest.RunResult) -> str:
    """All that was printed, in one line."""
    return re.sub(r"\s+", " ", f"{result.stdout} {result.stderr}")


# --------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mae-suite", "imagefoldr"), ("unknown suite 'imagefoldr'", "did you mean imagefolder?")),
        (("--mae-dtype", "float23"), ("--mae-dtype float23", "did you mean float32?", "bfloat16")),
        (("--mae-view", "models"), ("--mae-view models", "did you mean model?", "suite")),
        (("--mae-device", "cud"), ("--mae-device cud", "did you mean cuda?")),
        (("--mae-device", "cuda:x"), ("--mae-device cuda:x", "did you mean cuda")),
        (("--mae-cuda-graphs", "--mae-device", "cpu"), ("--mae-cuda-graphs", "this run is on a CPU")),
        (("--mae-batch-size", "0"), ("--mae-batch-size 0", "auto or a positive number")),
        (("--mae-batch-size", "-64"), ("--mae-batch-size -64", "auto or a positive number")),
        (("--mae-batch-size", "many"), ("--mae-batch-size many", "auto or a positive number")),
        (("--mae-limit", "-1"), ("--mae-limit -1", "from 0")),
        (("--mae-limit", "few"), ("--mae-limit", "invalid int value: 'few'")),
        (("--mae-seed", "-1"), ("--mae-seed -1", "from 0")),
        (("--mae-seed", str(2**32)), (f"--mae-seed {2**32}", f"to {2**32 - 1}")),
        (("--mae-tolerance", "101"), ("--mae-tolerance 101", "from 0 to 100")),
        (("--mae-tolerance", "nan"), ("--mae-tolerance nan", "from 0 to 100")),
        (("--mae-min-drop", "-0.1"), ("--mae-min-drop -0.1", "from 0 to 100")),
        (("--mae-baseline", "none", "--mae-update-baseline"), ("needs a baseline directory",)),
    ],
    ids=lambda value: "=".join(value) if value[0].startswith("--mae") else "",
)
def test_a_value_that_cannot_be_is_refused_with_those_that_can(
    project: Project, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    project.matrix("clean")
    result = project.run(*arguments)
    assert result.ret == USAGE
    for word in words:
        assert word in said(result)
    assert "Traceback" not in said(result)
    assert project.log == []
    assert not (project.path / "results").exists()


@pytest.mark.parametrize("line", ["mae_limit = few", "mae_tolerance = much", "mae_full = perhaps", "mae_dtype = float"])
def test_a_value_of_the_ini_file_that_cannot_be_is_refused(project: Project, line: str) -> None:
    project.matrix("clean")
    with (project.path / "pytest.ini").open("a") as file:
        file.write(f"{line}\n")
    result = project.run()
    assert result.ret == USAGE
    key, _, value = line.partition(" = ")
    assert re.search(rf"{key} in {project.path}/pytest.ini|--{key.replace('_', '-')}", said(result))
    assert value in said(result)
    assert "Traceback" not in said(result)


def test_a_device_that_is_not_there_is_named(project: Project) -> None:
    project.matrix("blur")
    result = project.run("--mae-device", "cuda:99")
    assert result.ret != 0
    assert result.parseoutcomes() == {"failed": 1}  # and the other cells are spared
    assert re.search(
        r"--mae-device cuda:99: torch \S+ sees \d+ CUDA devices here; use --mae-device auto or cpu", said(result)
    )


def test_a_pattern_that_matches_no_timm_model_is_refused_with_the_nearest(project: Project) -> None:
    project.matrix("clean")
    result = project.run("--mae-model", "resnet50.a1_in1")
    assert result.ret != 0
    assert "--mae-model resnet50.a1_in1: no pretrained timm model matches; did you mean resnet50.a1_in1k?" in said(
        result
    )


def test_a_pattern_adds_the_timm_models_that_match_to_the_matrix(project: Project) -> None:
    project.matrix("clean")
    lines = project.run("--co", "-q", "--mae-model", "resnet18.a?_in1k", "--mae-model", "vgg11.*").outlines
    names = {line.partition("[")[2].removesuffix("-clean-0.00]") for line in lines if "test_cell[" in line}
    assert {"colour", "resnet18.a1_in1k", "resnet18.a2_in1k", "resnet18.a3_in1k", "vgg11.tv_in1k"} == names


def test_the_settings_of_a_run_are_in_its_manifest_and_rows(project: Project) -> None:
    project.matrix("clean")
    options = ("--mae-seed", "7", "--mae-batch-size", "4", "--mae-dtype", "bfloat16", "--mae-view", "suite")
    project.run("--mae-run", "run", "--mae-device", "cpu", *options).assert_outcomes(passed=1)
    (row,) = project.rows().values()
    assert (row["seed"], row["batch_size"], row["dtype"], row["device"]) == (7, 4, "bfloat16", "cpu")
    assert row["view"].startswith("224x224 bilinear")
    manifest = json.loads((project.path / "run/manifest.json").read_text())
    assert (manifest["run_id"], manifest["suite"], manifest["images"]) == ("run", "imagefolder", 15)
    assert manifest["settings"]["seed"] == 7
    assert {"mae_bench", "torch", "timm", "kornia", "pytest"} <= manifest["versions"].keys()
    batches = [int(line.split()[-1]) for line in project.log if line.startswith("forward")]
    assert batches == [4, 4, 4, 3]


def test_a_limit_is_rounded_up_to_the_blocks_that_calibrate(project: Project) -> None:
    project.matrix("clean", per_class=200)
    result = project.run("--mae-run", "run", "--mae-limit", "1")
    (row,) = project.rows().values()
    assert (row["n"], row["n_expected"], row["status"]) == (512, 600, "partial")
    assert row["subset"] == "first 512 of 600"
    assert "the first 512 of 600 images" in said(result)


def test_the_bundled_suite_needs_no_data_and_a_limit_takes_its_first_blocks(project: Project) -> None:
    grey = '''
@model_fixture(suite="fashion_mnist")
def grey():
    """As it is bundled."""
    from mae_bench.models.zoo import bundled

    return bundled("cnn_s0")
'''
    project.conftest(grey)
    project.test("clean")
    project.run("--mae-limit", "1", "--mae-run", "run").assert_outcomes(passed=1)
    (row,) = project.rows().values()
    assert (row["n"], row["n_expected"]) == (512, 10_000)
    # the subset is stratified
    labels = json.loads((project.path / "run/images.json").read_text())["labels"][:512]
    assert set(Counter(labels).values()) == {51, 52}


# --------------------------------------------------------------------------- run directories


def test_a_run_directory_that_is_not_empty_is_refused_and_left_as_it_was(project: Project) -> None:
    project.matrix("clean")
    project.run("--mae-run", "run")
    before = {path: path.read_bytes() for path in (project.path / "run").rglob("*") if path.is_file()}
    arguments = ("--mae-run", "run", "--mae-seed", "1", "--mae-limit", "0", "--mae-update-baseline")
    result = project.run(*arguments, "--mae-reason", "a test")
    assert result.ret == USAGE
    assert f"run directory {project.path / 'run'} is not empty: add --mae-resume" in said(result)
    assert {path: path.read_bytes() for path in (project.path / "run").rglob("*") if path.is_file()} == before
    assert "mae_bench: leaderboard" not in said(result)
    assert not (project.path / "results").exists()


def test_listing_the_tests_of_a_finished_run_changes_nothing(project: Project) -> None:
    project.matrix("clean")
    project.run("--mae-run", "run")
    before = {path: path.read_bytes() for path in (project.path / "run").rglob("*") if path.is_file()}
    result = project.run("--mae-run", "run", "--mae-resume", "--mae-update-baseline", "--co", "-q")
    assert result.ret == 0
    assert "mae_bench:" not in said(result)
    assert {path: path.read_bytes() for path in (project.path / "run").rglob("*") if path.is_file()} == before
    assert not (project.path / "results").exists()


def test_a_file_in_place_of_the_run_directory_is_named(project: Project) -> None:
    project.matrix("blur")
    project.write("run", "a file")
    result = project.run("--mae-run", "run")
    assert result.ret == USAGE
    assert f"run directory {project.path / 'run'} is not writable" in said(result)
    assert "choose another with --mae-run" in said(result)
    assert "Traceback" not in said(result)
    assert (project.path / "run").read_text() == "a file"


def test_resume_starts_a_new_run_where_there_is_none(project: Project) -> None:
    project.matrix("clean")
    project.run("--mae-run", "run", "--mae-resume").assert_outcomes(passed=1)
    assert len(project.rows()) == 1


def test_a_resumed_run_computes_nothing_again_and_shows_the_same(project: Project) -> None:
    project.matrix("clean", "blur")
    first = project.run("--mae-run", "run")
    files = {path: path.read_bytes() for path in (project.path / "run/cells").rglob("*.json")}
    images = forwards(project)
    assert images == 13 * 15
    second = project.run("--mae-run", "run", "--mae-resume")
    second.assert_outcomes(passed=13)
    assert forwards(project) == images
    assert {path: path.read_bytes() for path in (project.path / "run/cells").rglob("*.json")} == files
    assert "not resumed" not in said(second)
    tables = [
        text.partition("mae_bench: leaderboard")[2].partition("Results")[0] for text in map(said, (first, second))
    ]
    assert tables[0] == tables[1]
    assert "13 cells" in tables[0]


def test_an_interrupted_run_is_completed_to_what_a_whole_one_gives(project: Project) -> None:
    project.matrix("clean", "blur")
    project.run("--mae-run", "whole").assert_outcomes(passed=13)
    project.write("wrong.json", json.dumps({"colour-box_blur-10.50": None}))
    project.run("--mae-run", "run", "-x").assert_outcomes(passed=5, failed=1)
    assert len(project.rows()) == 5
    (project.path / "wrong.json").unlink()
    (project.path / "run/cells/colour/gaussian_blur-1.00.json").unlink()
    images = forwards(project)
    project.run("--mae-run", "run", "--mae-resume").assert_outcomes(passed=13)
    # nine cells and the clean pass that they need
    assert forwards(project) - images == 10 * 15
    assert project.rows() == project.rows("whole")


def test_a_cell_of_other_settings_is_run_again_and_the_field_is_named(project: Project) -> None:
    project.matrix("clean", "blur")
    project.run("--mae-run", "run", "-k", "gaussian")
    result = project.run("--mae-run", "run", "--mae-resume", "--mae-seed", "1", "-k", "gaussian_blur-1.00")
    result.assert_outcomes(passed=1, deselected=12)
    assert "mae_bench: not resumed" in said(result)
    assert "colour-gaussian_blur-1.00 was run again: seed 1 here, 0 stored" in said(result)
    assert project.rows()["colour-gaussian_blur-1.00"]["seed"] == 1
    assert project.rows()["colour-gaussian_blur-6.00"]["seed"] == 0


def test_cells_of_other_images_are_not_resumed(project: Project) -> None:
    project.matrix("clean")
    project.run("--mae-run", "run")
    project.images(folder="others", seed=1)
    result = project.run("--mae-run", "run", "--mae-resume", "--mae-data", "others")
    assert re.search(r"colour-clean-0.00 was run again: manifest_hash \w+ here, \w+ stored", said(result))
    assert forwards(project) == 30


def test_a_finished_cell_that_cannot_be_read_is_run_again_and_named(project: Project) -> None:
    project.matrix("clean")
    project.run("--mae-run", "run")
    whole = project.rows()
    project.write("run/cells/colour/clean-0.00.json", '{"row": {}')
    result = project.run("--mae-run", "run", "--mae-resume")
    assert result.ret == 0
    assert "colour-clean-0.00 was run again: its file is damaged (" in said(result)
    assert project.rows() == whole
    assert forwards(project) == 30


def test_cells_that_an_earlier_run_left_under_other_settings_are_in_no_table(project: Project) -> None:
    project.matrix("clean", "blur")
    project.run("--mae-run", "run")
    kept = len(list((project.path / "run/cells").rglob("*.json")))
    result = project.run("--mae-run", "run", "--mae-resume", "--mae-seed", "1", "-k", "gaussian_blur-1.00")
    assert result.ret == 0
    # the cell that was asked for and the clean one it refers to are of the new seed, the others stay as they were
    assert f"{kept - 2} cells in {project.path / 'run'} were evaluated with other settings" in said(result)
    assert "imagefolder: all 15 images, 2 cells." in said(result)


def test_a_test_that_only_borrows_a_model_leaves_no_results(project: Project) -> None:
    project.matrix("clean")
    project.write("test_model.py", "def test_model(colour):\n    assert colour is not None\n")
    project.run("test_model.py").assert_outcomes(passed=1)
    assert not (project.path / "results").exists()
