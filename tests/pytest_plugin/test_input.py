"""Models, data and tests that cannot be used: each ends in one message that names the thing and the remedy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Project


def said(result: pytest.RunResult) -> str:
    """All that was printed, in one line."""
    return re.sub(r"\s+", " ", f"{result.stdout} {result.stderr}")


# --------------------------------------------------------------------------- models

WRAPPED = "Classifier({}, mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 16, 16), crop_pct=1.0)"
FLAT = "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3))"
BAD = '''

@model_fixture
def bad():
    """Does not work."""
    import torch
    from networks import MeanColour

    from mae_bench import Classifier

    {body}
'''
NAN = """
    class Nan(torch.nn.Module):
        def forward(self, images):
            # the probe with black images goes well
            return images.mean((2, 3)) if not images.any() else images.mean((2, 3)) * float("nan")

"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            'raise RuntimeError("the weights are elsewhere")',
            "model fixture 'bad' raised RuntimeError: the weights are elsewhere",
        ),
        (
            "return None",
            "model fixture 'bad' returned None, not a torch.nn.Module: return a timm model or Classifier(",
        ),
        (
            'return "resnet18"',
            "model fixture 'bad' returned a str, not a torch.nn.Module: return a timm model or Classif",
        ),
        (
            f"return {FLAT}",
            "model fixture 'bad' returned a Sequential without timm's pretrained_cfg, so its preprocessing",
        ),
        (
            f"return {WRAPPED.format(FLAT.replace('3))', '5))'))}",
            "model 'bad' has 5 outputs but suite 'imagefolder' has 3 classes: give the model 3 outputs, or bind it to "
            "its own suite with @model_fixture(suite=...)",
        ),
        (
            f"return {WRAPPED.format('torch.nn.Identity()')}",
            "model 'bad' gave logits of shape (2, 3, 16, 16) for 2 images; expected (2, classes)",
        ),
        (
            f"return {WRAPPED.format(FLAT.replace('768', '12'))}",
            "model 'bad' cannot evaluate images of (3, 16, 16): ",
        ),
        (
            f"{NAN}    return {WRAPPED.format('Nan()')}",
            "cell bad-clean-0.00 is invalid: 15 of 15 images in a block have NaN or infinite logits or features, the "
            "first is ",
        ),
        (
            f"return {WRAPPED.format(FLAT)}.to('meta')",
            "model 'bad' has tensors on meta, but the run is on cpu: leave it on the CPU",
        ),
        ("yield None", "model fixture 'bad' returned None, not a torch.nn.Module"),
    ],
    ids=[
        "raises",
        "none",
        "text",
        "bare-module",
        "class-count",
        "logit-shape",
        "input-size",
        "nan",
        "meta",
        "yields-none",
    ],
)
def test_a_model_that_cannot_be_used_fails_its_cells_with_one_message_and_spoils_no_other(
    project: Project, body: str, words: str
) -> None:
    project.matrix("clean")
    good = (project.path / "conftest.py").read_text().partition("model_fixture\n")[2]
    project.conftest(BAD.format(body=body) + good)
    result = project.run("--mae-run", "run", "--mae-device", "cpu")
    result.assert_outcomes(passed=1, failed=1)
    assert result.ret == 1
    assert said(result).count(words) == 1
    for trace in ("Traceback", "exception", "test_x.py:6"):
        assert trace not in said(result)
    assert sorted(project.rows()) == ["colour-clean-0.00"]


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ('raise OSError("the disk is gone")', "model fixture 'bad' raised OSError in its clean-up: the disk is gone"),
        ("yield None", "model fixture 'bad' yields more than once"),
    ],
    ids=["raises", "yields-again"],
)
def test_a_clean_up_that_fails_is_an_error_of_the_models_last_cell(project: Project, ending: str, words: str) -> None:
    project.matrix("clean", "blur")
    model = (project.path / "conftest.py").read_text()
    project.conftest(BAD.format(body=f'from networks import mean_colour; yield mean_colour("bad"); {ending}'))
    with (project.path / "conftest.py").open("a") as file:
        file.write(model.partition("model_fixture\n")[2])
    result = project.run("-k", "clean-0.00 or gaussian_blur-1.00")
    result.assert_outcomes(passed=4, errors=1, deselected=22)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["ERROR test_x.py::test_cell[[]bad-gaussian_blur-1.00[]]*"])
    assert said(result).count(words) == 1
    assert "mae_bench: leaderboard" in said(result)


def test_a_model_that_failed_is_not_built_for_each_of_its_cells(project: Project) -> None:
    project.matrix("blur")
    project.conftest(BAD.format(body='from networks import note; note("build bad"); return None'))
    project.run().assert_outcomes(failed=12)
    assert project.log == ["build bad"]


def test_two_models_of_one_name_are_refused(project: Project) -> None:
    project.matrix("clean")
    text = (project.path / "conftest.py").read_text()
    for folder in ("one", "two"):
        project.write(f"{folder}/conftest.py", text.replace("colour", "twin"))
        project.test("clean", name=f"{folder}/test_{folder}.py")
    result = project.run()
    assert result.ret != 0
    places = f"{project.path / 'one'} and {project.path / 'two'}"
    assert f"two models are called 'twin' (in {places}): rename one of the fixtures" in said(result)
    assert project.log == []


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("@model_fixture\ndef blur_net():\n    pass\n", "model name 'blur_net' contains 'blur', the name of a family"),
        ("@model_fixture\ndef Denoised():\n    pass\n", "model name 'Denoised' contains 'noise', the name of a family"),
        (
            '@model_fixture(suite="imagenette")\ndef net():\n    pass\n',
            "unknown suite 'imagenette'",
        ),
        (
            '@model_fixture(suite=("fashion_mnist", "imagefoldr"))\ndef net():\n    pass\n',
            "unknown suite 'imagefoldr': did you mean imagefolder?",
        ),
    ],
    ids=["family", "group", "suite", "suites"],
)
def test_a_registration_that_cannot_be_is_refused_where_it_is_written(project: Project, model: str, words: str) -> None:
    project.matrix("clean")
    with (project.path / "conftest.py").open("a") as file:
        file.write(f"\n\n{model}")
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert words in said(result)
    assert "conftest.py" in said(result)
    assert project.log == []


def test_cells_without_any_model_are_refused(project: Project) -> None:
    project.matrix("clean")
    project.write("conftest.py", "")
    result = project.run()
    assert result.ret != 0
    assert "no model is registered for suite 'imagefolder': add an @model_fixture to a conftest.py" in said(result)


def test_models_bound_to_another_suite_do_not_count(project: Project) -> None:
    project.matrix("clean")
    text = (project.path / "conftest.py").read_text()
    project.write("conftest.py", text.replace("@model_fixture", '@model_fixture(suite="fashion_mnist")'))
    result = project.run()
    assert result.ret != 0
    assert "no model is registered for suite 'imagefolder' (registered models are bound to fashion_mnist)" in said(
        result
    )
    both = '@model_fixture(suite=("fashion_mnist", "imagefolder"))'
    project.write("conftest.py", text.replace("@model_fixture", both))
    project.run().assert_outcomes(passed=1)


# --------------------------------------------------------------------------- tests


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("", "test_cell asks for `cell` but carries no family mark: families are clean, blur, occlusion"),
        ("@pytest.mark.occlusions\n", "test_cell asks for `cell` but carries no family mark: did you mean occlusion?"),
        ("@pytest.mark.slow\n@pytest.mark.bluur\n", "did you mean blur?"),
        ("@pytest.mark.bluur\n@pytest.mark.slow\n", "did you mean blur?"),
        ("@pytest.mark.slow\n", "families are clean, blur, occlusion"),
    ],
    ids=["none", "misspelt", "misspelt-below", "misspelt-above", "other"],
)
def test_a_test_of_cells_without_a_family_is_refused(project: Project, mark: str, words: str) -> None:
    project.matrix("clean")
    project.write("test_x.py", f"import pytest\n\n\n{mark}def test_cell(cell):\n    cell.check()\n")
    result = project.run("-W", "default")  # of unknown marks pytest warns by itself
    assert result.ret != 0
    assert words in said(result)
    assert project.log == []


# --------------------------------------------------------------------------- data


def test_data_that_is_not_given_is_asked_for(project: Project) -> None:
    project.matrix("clean")
    project.write("pytest.ini", "[pytest]\nmae_suite = imagefolder\n")
    result = project.run()
    assert result.ret != 0
    assert "suite 'imagefolder' reads images from disk: give their directory with --mae-data DIR" in said(result)


def test_a_bundled_suite_takes_no_data(project: Project) -> None:
    project.matrix("clean")
    result = project.run("--mae-suite", "fashion_mnist")
    assert result.ret != 0
    assert f"suite 'fashion_mnist' is bundled and takes no --mae-data (given: {project.path / 'data'})" in said(result)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (None, "no such directory"),
        ((), "holds no class folders; expected"),
        (("a",), "holds one class only (a); accuracy needs at least two"),
        (("a", "b"), "holds no image (.bmp"),
    ],
    ids=["missing", "empty", "one-class", "no-image"],
)
def test_a_directory_that_is_no_suite_is_named(project: Project, classes: tuple[str, ...] | None, words: str) -> None:
    project.matrix("clean")
    folder = project.path / "other"
    for name in classes or ():
        (folder / name).mkdir(parents=True)
    if classes is not None:
        folder.mkdir(exist_ok=True)
    result = project.run("--mae-data", "other")
    assert result.ret != 0
    assert str(folder) in said(result)
    assert words in said(result)
    assert "Traceback" not in said(result)
    assert project.log == []


@pytest.mark.parametrize("content", [b"", b"no image at all", None], ids=["empty", "text", "truncated"])
def test_an_image_that_cannot_be_read_is_named_and_ends_the_run(project: Project, content: bytes | None) -> None:
    project.matrix("clean", "blur")
    image = project.path / "data/g/3.png"
    image.write_bytes(image.read_bytes()[:-200] if content is None else content)
    result = project.run("--mae-run", "run")
    assert result.ret != 0
    assert f"{image}: " in said(result)
    assert "restore the file or take it out of the directory" in said(result)
    assert "Traceback" not in said(result)
    assert project.rows() == {}
    # the other cells would say the same
    assert result.parseoutcomes() == {"failed": 1}
