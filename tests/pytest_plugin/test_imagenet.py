"""ImageNet and its kin as a user runs them, on a few small images in the published layouts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from mae_bench.suites.synsets import published_synsets

if TYPE_CHECKING:
    from tests.conftest import Project

SYNSETS = published_synsets("imagenet")
RED, GREEN = SYNSETS[3], SYNSETS[700]
MODEL = """
import pytest
import torch

from mae_bench import Classifier, model_fixture


class Colours(torch.nn.Module):
    '''Answers 3 where an image is red, 700 where it is green, and otherwise by a coin of its own.'''

    def forward(self, images):
        mean = images.mean((2, 3))
        logits = torch.zeros(len(images), 1000)
        logits[:, 3], logits[:, 700] = mean[:, 0], mean[:, 1]
        return logits


@model_fixture
def colours():
    return Classifier(Colours(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 224, 224), crop_pct=0.9)
"""


def photographs(folder: Path, size: tuple[int, int] = (260, 240), per_class: int = 3, shade: int = 200) -> Path:
    """JPEG files of two synsets, red and green."""
    for k, synset in enumerate((RED, GREEN)):
        (folder / synset).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            pixels = np.random.default_rng(10 * k + i).integers(0, 50, (size[1], size[0], 3), dtype=np.uint8)
            pixels[..., k] = shade
            Image.fromarray(pixels).save(folder / synset / f"ILSVRC2012_val_{k * per_class + i:08d}.JPEG")
    return folder


def imagenet(project: Project, *families: str) -> None:
    project.write("conftest.py", MODEL)
    project.write("pytest.ini", "[pytest]\n")
    project.test(*families)


def test_corruptions_are_made_of_imagenets_images_at_every_severity(project: Project) -> None:
    imagenet(project, "imagenet_c")
    photographs(project.path / "imagenet" / "val")
    arguments = ("--mae-suite", "imagenet", "--mae-data", "imagenet", "-k", "brightness or contrast")
    result = project.run(*arguments, "--mae-run", "run")
    result.assert_outcomes(passed=10, deselected=65)
    row = project.rows()["colours-contrast-s5"]
    assert (row["unit"], row["view"], row["classes"]) == ("severity (224 px)", "224x224 bilinear center 0.9", 2)
    assert project.rows()["colours-clean-0.00"]["top1"] == 1.0
    page = (project.path / "run" / "leaderboard.md").read_text()
    assert "contrast" in page.partition("## Corruption errors")[0]
    project.run(*arguments, "--mae-view", "suite", "--mae-run", "suite_view").assert_outcomes(passed=10, deselected=65)
    assert project.rows("suite_view")["colours-contrast-s5"]["view"] == "224x224 bilinear center 0.875"


def test_the_stored_set_is_read_as_it_was_published(project: Project) -> None:
    imagenet(project, "imagenet_c")
    project.test("blur", name="test_y.py")
    data = project.path / "stored"
    photographs(data / "val")
    for severity in range(1, 6):
        # red and green so dark at the last severity that blue noise outshines neither
        photographs(data / "weather" / "fog" / str(severity), (224, 224), shade=200 - 30 * severity)
    arguments = ("--mae-suite", "imagenet_c", "--mae-data", "stored", "--mae-run")
    result = project.run(*arguments, "run", "-k", "fog")
    result.assert_outcomes(passed=5, deselected=71)
    result.stdout.fnmatch_lines(["mae_bench: suite imagenet_c has no cells of blur"])
    rows = project.rows("run")
    assert rows["colours-fog-s1"]["top1"] == 1.0
    assert rows["colours-fog-s4"]["family"] == "imagenet_c"
    # what is read is told apart by its files, so that a set that was changed is another
    assert rows["colours-fog-s4"]["unit"].startswith("severity (as published, ")
    assert len({row["unit"] for row in rows.values()}) == 6
    assert not list((project.path / "run").rglob("*stored*"))
    result = project.run(*arguments, "other", "-k", "snow-s2")
    result.assert_outcomes(failed=1, deselected=75)
    result.stdout.fnmatch_lines(["*snow*"])


def test_weights_in_a_file_are_those_of_the_one_model_that_is_added(project: Project) -> None:
    import timm
    from safetensors.torch import save_file

    imagenet(project, "clean")
    photographs(project.path / "imagenet")
    model = timm.create_model("test_resnet", num_classes=1000)
    save_file(model.state_dict(), project.path / "mine.safetensors")
    name = "test_resnet.r160_in1k"
    arguments = ("--mae-suite", "imagenet", "--mae-data", "imagenet", "--mae-model", name, "-k", "resnet")
    untrained = project.run(*arguments, "--mae-weights", "mine.safetensors")
    untrained.assert_outcomes(failed=1, deselected=1)
    untrained.stdout.fnmatch_lines(["*its classifier of 1000 x * weights was never trained*"])
    state = {key: value + 0.01 if key.startswith("fc.") else value for key, value in model.state_dict().items()}
    save_file(state, project.path / "mine.safetensors")
    result = project.run(*arguments, "--mae-weights", f"{name}=mine.safetensors", "--mae-run", "run")
    result.assert_outcomes(passed=1, deselected=1)
    assert list(project.rows()) == [f"{name}-clean-0.00"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("other=mine.pth", "no model is called 'other'*"),
        ("mine.pth", "say which model the file is for, as NAME=mine.pth; only mae_finetuned_vit_base.pth, *"),
        ("colours=none.pth", "there is no file *none.pth*"),
    ],
)
def test_a_file_of_weights_that_is_for_no_model_is_refused(project: Project, given: str, words: str) -> None:
    imagenet(project, "clean")
    photographs(project.path / "imagenet")
    project.write("mine.pth", "")
    result = project.run("--mae-suite", "imagenet", "--mae-data", "imagenet", "--mae-weights", given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--mae-weights {given}: {words}"])


PROBE = """

@model_fixture(suite="imagenet")
def encoder_knn1(mae_probe):
    from torch import nn

    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0, 0, 0), "std": (1, 1, 1)}
    return mae_probe(encoder, name="encoder_knn1", per_class=1, kind="knn")
"""


def test_an_encoder_is_read_by_its_neighbours_among_training_images(project: Project) -> None:
    imagenet(project, "clean")
    project.write("conftest.py", MODEL + PROBE)
    photographs(project.path / "imagenet" / "val")
    arguments = ("--mae-suite", "imagenet", "--mae-data", "imagenet", "-k", "encoder_knn1")
    result = project.run(*arguments)
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["*train: no such directory*"])
    for k, synset in enumerate(SYNSETS):
        folder = project.path / "imagenet" / "train" / synset
        folder.mkdir(parents=True)
        colour = (200, 20, 20) if synset == RED else (20, 200, 20) if synset == GREEN else (40, 40, 60 + k % 150)
        for i in range(2):
            Image.new("RGB", (32, 32), colour).save(folder / f"{i}.png")
    result = project.run(*arguments, "--mae-run", "run")
    result.assert_outcomes(passed=1, deselected=1)
    assert project.rows()["encoder_knn1-clean-0.00"]["top1"] == 1.0
