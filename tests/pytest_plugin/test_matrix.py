"""Which cells are collected and selected, in which order they run, and how long a model lives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mae_bench.cells import MARKS, Cell
from mae_bench.degradations import BUILT_IN
from mae_bench.degradations.ladders import ladder

if TYPE_CHECKING:
    from tests.conftest import Project

REPOSITORY = Path(__file__).parents[2]
HEAVY = """
import sys


def pytest_unconfigure():
    print("heavy:", sorted({"torch", "torchvision", "timm", "kornia", "pandas"} & set(sys.modules)))
"""
BLURS = ("gaussian_blur", "box_blur", "motion_blur", "defocus_blur")


def condition_of(node_id: str) -> str:
    """The bracketed part of a node id."""
    return node_id.partition("[")[2].removesuffix("]")


def verbs(project: Project, name: str) -> list[str]:
    """What befell the model, images apart."""
    lines = (line.split() for line in project.log)
    return [line[0] for line in lines if line[1] == name and line[0] != "forward"]


class Observer:
    """Sees every test that is collected and those that are left after selection."""

    def __init__(self) -> None:
        self.collected: list[pytest.Item] = []
        self.selected: list[pytest.Item] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_itemcollected(self, item: pytest.Item) -> None:
        self.collected.append(item)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.selected = list(session.items)


# --------------------------------------------------------------------------- this repository's own matrix


def test_listing_the_matrix_imports_nothing_heavy(project: Project) -> None:
    project.write("heavy.py", HEAVY)
    arguments = ("-p", "heavy", "-p", "no:cacheprovider", "--co", "-q", REPOSITORY / "benchmarks")
    result = project.pytester.runpytest_subprocess(*arguments)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "benchmarks/test_blur.py::test_cell[[]mae_ft_s0-gaussian_blur-1.50[]]",
            "benchmarks/test_clean.py::test_cell[[]mae_ft_s0-clean-0.00[]]",
            "benchmarks/test_occlusion.py::test_cell[[]mae_ft_s0-random_patch-0.50[]]",
            "benchmarks/test_occlusion.py::test_cell[[]supervised_s0-random_patch_uniform-0.90[]]",
            "heavy: []",
        ],
        consecutive=False,
    )


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_as_keyword_selects_the_cells_that_carry_it(project: Project, mark: str) -> None:
    observer = Observer()
    arguments = ("--co", "-q", "--mae-full", "-p", "no:cacheprovider", "-k", mark, REPOSITORY / "benchmarks")
    project.run(*arguments, plugins=(observer,))
    cells = {item.nodeid for item in observer.collected if item.name.startswith("test_cell[")}
    carrying = {item.nodeid for item in observer.collected if item.get_closest_marker(mark) and item.nodeid in cells}
    assert {item.nodeid for item in observer.selected if item.nodeid in cells} == carrying
    assert len(cells) > 100
    assert bool(carrying) == any(mark in kind.marks for kind in BUILT_IN)
    by_name = {(kind.name, kind.by_severity): kind for kind in BUILT_IN}
    for node_id in cells:
        cell = Cell.parse(condition_of(node_id))
        assert (node_id in carrying) == (mark in by_name[cell.degradation, cell.level.severity].marks), node_id


@pytest.mark.parametrize("option", ["-k", "-m"])
def test_a_test_of_several_families_gives_cells_that_are_selected_by_their_own(project: Project, option: str) -> None:
    project.matrix("blur", "occlusion", "geometry")
    counts = {}
    for mark in ("blur", "occlusion", "blur or occlusion"):
        observer = Observer()
        project.run("--co", "-q", option, mark, plugins=(observer,))
        assert all(any(item.get_closest_marker(one) for one in mark.split(" or ")) for item in observer.selected)
        counts[mark] = len(observer.selected)
    assert 0 < counts["blur"] < counts["blur or occlusion"] == counts["blur"] + counts["occlusion"]


def test_the_whole_matrix_holds_every_condition_of_every_family_once_per_model(project: Project) -> None:
    observer = Observer()
    project.run("--co", "-q", "--mae-full", "-p", "no:cacheprovider", REPOSITORY / "benchmarks", plugins=(observer,))
    ids = [condition_of(item.nodeid) for item in observer.collected if item.name.startswith("test_cell[")]
    assert len(ids) == len(set(ids))
    models = {name.rsplit("-", 2)[0] for name in ids}
    assert {"mae_ft_s0", "supervised_s0", "cnn_s0"} <= models
    conditions = [name.removeprefix("cnn_s0-") for name in ids if name.startswith("cnn_s0-")]
    grey = [kind for kind in BUILT_IN if not kind.colour and not kind.by_salience]
    assert sorted(conditions) == sorted(f"{kind.name}-{level}" for kind in grey for level in ladder(kind, 28))


def test_families_without_cells_are_deselected_and_named(project: Project) -> None:
    project.matrix("occlusion")
    project.test("geometry", name="test_y.py")
    project.test("cbar", name="test_z.py")
    result = project.run("--co", "-q", "test_y.py", "test_z.py")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result = project.run("--co", "test_y.py", "test_z.py")
    result.stdout.fnmatch_lines(["mae_bench: cells of cbar, geometry are collected with --mae-full", "*2 deselected*"])
    assert "test_cell[colour-rotation-45.00]" in project.run("--co", "-q", "--mae-full", "test_y.py").stdout.str()
    result = project.run("--mae-suite", "fashion_mnist", "-o", "mae_data=", "--co", "-k", "saturate or salient")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_group_alone_marks_its_corruptions_of_both_families(project: Project) -> None:
    project.matrix("noise")
    listed = project.run("--co", "-q", "-o", "mae_suite=fashion_mnist", "-o", "mae_data=").stdout.str()
    names = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
    assert [line for line in listed.splitlines() if "test_cell[" in line] == [
        f"test_x.py::test_cell[colour-{name}-s3]" for name in names
    ]


def test_corruptions_run_as_cells_and_pass_their_severity_on(project: Project) -> None:
    project.matrix("imagenet_c", "c_extra")
    result = project.run("-k", "brightness or saturate", "--mae-run", "run", "-m", "weather or digital")
    result.assert_outcomes(passed=10, deselected=85)
    rows = project.rows()
    assert rows["colour-brightness-s5"]["unit"] == "severity (32 px)"
    assert (rows["colour-saturate-s2"]["family"], rows["colour-saturate-s2"]["level"]) == ("c_extra", 2.0)
    page = (project.path / "run" / "leaderboard.md").read_text()
    assert "## Corruption errors" in page
    assert "AlexNet" in page


# --------------------------------------------------------------------------- selection


def test_a_keyword_and_a_model_name_select_the_models_cells_of_the_family(project: Project) -> None:
    project.matrix("clean", models=("bright", "dim"))
    project.test("blur", name="test_y.py")
    result = project.run("-k", "blur and dim", "--mae-run", "run")
    result.assert_outcomes(passed=12, deselected=14)
    blurred = {name for name in project.rows() if name != "dim-clean-0.00"}
    assert len(blurred) == 12
    assert all(name.startswith(tuple(f"dim-{blur}-" for blur in BLURS)) for name in blurred)
    assert verbs(project, "dim") == ["build", "free"]
    assert verbs(project, "bright") == []


def test_a_node_id_runs_its_cell_alone_and_the_clean_cell_is_written_with_it(project: Project) -> None:
    project.matrix("occlusion", models=("bright", "dim"))
    result = project.run("test_x.py::test_cell[dim-stripes-0.90]", "--mae-run", "run")
    result.assert_outcomes(passed=1)
    assert sorted(project.rows()) == ["dim-clean-0.00", "dim-stripes-0.90"]
    clean = project.rows()["dim-clean-0.00"]
    assert (clean["family"], clean["level"], clean["top1"]) == ("clean", 0.0, 1.0)


def test_a_test_may_carry_the_marks_of_several_families(project: Project) -> None:
    project.matrix("clean", "blur")
    lines = project.run("--co", "-q").outlines
    ids = [condition_of(line) for line in lines if "test_cell[" in line]
    assert {name.split("-")[1] for name in ids} == {"clean", *BLURS}


def test_only_the_first_training_seed_of_an_arm_runs_unless_all_are_asked_for(project: Project) -> None:
    project.matrix("clean")
    seeds = "\n".join(
        f"""
@model_fixture(arm="supervised", training_seed={seed})
def trained_{seed}():
    from networks import mean_colour

    return mean_colour("trained_{seed}")
"""
        for seed in (2, 1)
    )
    project.conftest(seeds)
    assert [condition_of(line) for line in project.run("--co", "-q").outlines[:1]] == ["trained_1-clean-0.00"]
    full = project.run("--co", "-q", "--mae-full").outlines[:2]
    assert sorted(condition_of(line) for line in full) == ["trained_1-clean-0.00", "trained_2-clean-0.00"]


def test_models_of_a_folder_join_the_tests_of_that_folder(project: Project) -> None:
    project.matrix("clean")
    project.write("inner/conftest.py", (project.path / "conftest.py").read_text().replace("colour", "tint", 1))
    project.test("clean", name="inner/test_y.py")
    lines = [line for line in project.run("--co", "-q").outlines if "test_cell[" in line]
    assert sorted(lines) == [
        "inner/test_y.py::test_cell[colour-clean-0.00]",
        "inner/test_y.py::test_cell[tint-clean-0.00]",
        "test_x.py::test_cell[colour-clean-0.00]",
    ]


def test_an_encoder_has_no_cells(project: Project) -> None:
    project.matrix("clean")
    with (project.path / "conftest.py").open("a") as file:
        file.write("\n\n@model_fixture(head=False)\ndef encoder():\n    raise AssertionError\n")
    lines = [line for line in project.run("--co", "-q").outlines if "test_cell[" in line]
    assert lines == ["test_x.py::test_cell[colour-clean-0.00]"]


# --------------------------------------------------------------------------- order, and what it leaves the same

ORDER = """

def pytest_collection_modifyitems(items):
    import random

    {order}
"""


def test_any_order_gives_the_same_rows_and_builds_each_model_once(project: Project) -> None:
    project.matrix("clean", "blur", models=("bright", "dim"))
    project.run("--mae-run", "in_order").assert_outcomes(passed=26)
    conftest = (project.path / "conftest.py").read_text()
    for run, order in (("reversed", "items.reverse()"), ("shuffled", "random.Random(1).shuffle(items)")):
        project.write("conftest.py", conftest + ORDER.format(order=order))
        (project.path / "log.txt").unlink()
        observer = Observer()
        project.run("--mae-run", run, plugins=(observer,)).assert_outcomes(passed=26)
        assert [item.nodeid for item in observer.selected] != [item.nodeid for item in observer.collected]
        assert project.rows(run) == project.rows("in_order")
        # a model is gone before the next one comes
        events = [line for line in project.log if not line.startswith("forward")]
        models = [line.split()[1] for line in events[::2]]
        assert sorted(models) == ["bright", "dim"]
        assert events == [f"{verb} {model}" for model in models for verb in ("build", "free")]


FAILING = {"bright-gaussian_blur-3.00": None}


def test_the_first_failure_ends_the_run_and_what_was_finished_is_shown(project: Project) -> None:
    project.matrix("blur", models=("bright", "dim"))
    project.write("wrong.json", json.dumps(FAILING))
    result = project.run("-x", "--mae-run", "run")
    result.assert_outcomes(passed=1, failed=1)
    assert result.ret == 1
    assert sorted(project.rows()) == ["bright-clean-0.00", "bright-gaussian_blur-1.00"]
    assert verbs(project, "dim") == []
    result.stdout.fnmatch_lines(["*RuntimeError: the network broke down", "*mae_bench: leaderboard*", "*2 cells."])


def test_last_failed_runs_only_the_failed_cell_again(project: Project) -> None:
    project.matrix("blur", models=("bright", "dim"))
    project.write("wrong.json", json.dumps(FAILING))
    project.run("-k", "gaussian")
    (project.path / "log.txt").unlink()
    project.write("wrong.json", "{}")
    project.run("--lf", "--mae-run", "run").assert_outcomes(passed=1)
    assert sorted(project.rows()) == ["bright-clean-0.00", "bright-gaussian_blur-3.00"]
    assert verbs(project, "bright") == ["build", "free"]


def test_failed_first_keeps_the_cells_of_a_model_together(project: Project) -> None:
    project.matrix("blur", models=("bright", "dim"))
    project.write("wrong.json", json.dumps({"dim-gaussian_blur-3.00": None}))
    project.run("-k", "gaussian").assert_outcomes(passed=5, failed=1, deselected=18)
    (project.path / "log.txt").unlink()
    project.write("wrong.json", "{}")
    project.run("--ff", "-k", "gaussian", "--mae-run", "run").assert_outcomes(passed=6, deselected=18)
    assert len(project.rows()) == 8
    events = [line for line in project.log if not line.startswith("forward")]
    assert events == ["build dim", "free dim", "build bright", "free bright"]


# --------------------------------------------------------------------------- a model as a fixture


YIELDING = """
@model_fixture
def borrowed():
    from networks import mean_colour, note

    yield mean_colour("borrowed")
    note("return borrowed")


@model_fixture
def second():
    from networks import mean_colour, note

    yield mean_colour("second")
    note("return second")
"""


@pytest.mark.thorough  # starts a process
def test_models_are_cleaned_up_and_freed_once_after_their_last_cell_also_when_it_failed(project: Project) -> None:
    project.matrix("blur")
    project.conftest(YIELDING)
    # the last cell of the model, so that nothing that runs after it drops what the failure holds on to
    project.write("wrong.json", json.dumps({"borrowed-defocus_blur-12.00": None}))
    # in a process of its own, since the pytester keeps failures, and with them the model
    result = project.pytester.runpytest_subprocess("-k", "defocus")
    result.assert_outcomes(passed=5, failed=1, deselected=18)
    events = [line for line in project.log if not line.startswith("forward")]
    assert [events[0], sorted(events[1:3])] == ["build borrowed", ["free borrowed", "return borrowed"]]
    assert [events[3], sorted(events[4:])] == ["build second", ["free second", "return second"]]
    forwards = [i for i, line in enumerate(project.log) if line.startswith("forward borrowed")]
    assert forwards[-1] < project.log.index("return borrowed")


AS_FIXTURE = '''
@pytest.fixture(scope="session")
def shade():
    from networks import note

    note("shade once")
    yield "deep"
    note("shade closed")


@model_fixture
def asking(shade, request):
    """Asks for other fixtures."""
    from networks import mean_colour

    model = mean_colour("asking")
    model.shade = shade
    model.asked_by = request.fixturename
    return model


@model_fixture
def yielding():
    """Yields itself."""
    from networks import mean_colour

    yield mean_colour("yielding")


@model_fixture
def my_vit():
    """Has a docstring.

    Of which a second paragraph is no part of the summary.
    """
    import timm

    shape = dict(num_classes=3, img_size=32, patch_size=16, depth=1, embed_dim=32, num_heads=2)
    model = timm.create_model("vit_tiny_patch16_224", **shape)
    model.head.bias.data += 0.01  # as if it had been trained
    return model
'''
ASKING = """
def test_asking(asking):
    assert (type(asking).__name__, asking.shade, asking.asked_by) == ("Classifier", "deep", "asking")


def test_yielding(yielding):
    assert type(yielding).__name__ == "Classifier"


def test_timm(my_vit):
    assert type(my_vit).__name__ == "VisionTransformer"


def test_two_tests_share_a_model(request):
    first = request.getfixturevalue("asking")
    assert request.getfixturevalue("asking") is first
"""


def test_a_test_that_asks_for_a_model_is_given_what_its_fixture_gives(project: Project) -> None:
    project.matrix("clean")
    project.conftest(AS_FIXTURE)
    project.write("test_y.py", ASKING)
    project.run().assert_outcomes(passed=7)
    assert project.log.count("shade once") == project.log.count("shade closed") == 1
    shown = project.run("--fixtures").stdout.str()
    assert "Asks for other fixtures." in shown
    assert "Has a docstring." in shown


EVALUATIONS = """
import pytest


def test_throughput(evaluation):
    assert evaluation.clean.row.top1 == 1


@pytest.mark.clean
def test_cell(cell):
    assert cell.run().row.top1 == 1
"""


def test_a_test_of_evaluations_runs_once_per_model_and_shares_it_with_the_cells(project: Project) -> None:
    project.matrix(models=("bright", "dim"))
    project.write("test_x.py", EVALUATIONS)
    result = project.run("-v")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        ["test_x.py::test_throughput[[]bright[]] PASSED*", "*::test_throughput[[]dim[]] PASSED*"]
    )
    for model in ("bright", "dim"):
        # 15 images, clean, once: the clean pass too is shared
        assert [line for line in project.log if model in line] == [
            f"build {model}",
            f"forward {model} 15",
            f"free {model}",
        ]


def test_a_cell_that_is_expected_to_fail_says_so_when_it_passes(project: Project) -> None:
    project.matrix("clean")
    text = (project.path / "test_x.py").read_text()
    project.write("test_x.py", text.replace("@pytest.mark.clean", "@pytest.mark.xfail\n@pytest.mark.clean"))
    project.run("-v").assert_outcomes(xpassed=1)
