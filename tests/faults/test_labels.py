"""The label map is wrong: what a file can tell is refused before an image is classified, and most of the rest shows in
the clean pass, or beside a baseline.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from faults.reliability import Injection
from mae_bench.baseline import Baseline
from mae_bench.errors import BenchError
from mae_bench.evaluation import Evaluation, EvaluationError
from mae_bench.history import BaselineError
from mae_bench.labelled_images import LabelledImages
from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.outcomes import Outcomes
from mae_bench.settings import Settings
from mae_bench.suites import Suite, suite_entry
from mae_bench.suites.synsets import published_synsets

pytestmark = pytest.mark.usefixtures("one_thread")

Journal = Callable[[Injection], None]

EACH = 10
"""Images of a class, where they are classified."""
SYNSETS = published_synsets("imagenet")
POSITIONS = list(range(0, 996, 83))
"""Outputs of a model of ImageNet that stand for the twelve classes."""
ENGLISH = (
    "apple", "bear", "car", "dog", "egg", "fish", "goat", "house", "ice", "jar", "king", "lion",
)  # fmt: skip
FRENCH = (
    "pomme", "ours", "voiture", "chien", "oeuf", "poisson", "chevre", "maison", "glace", "pot", "roi", "lion",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_BENCH_CACHE", str(tmp_path / "cache"))


def picture(shown: int, number: int) -> Image.Image:
    """What it shows is in its red channel."""
    return Image.new("RGB", (8, 8), (20 * shown + 10, number, 100))


class Sees(nn.Module):
    """Sees what an image shows, without fail: answers with ``outputs`` of that."""

    def __init__(self, outputs: Sequence[int], count: int) -> None:
        super().__init__()
        self.outputs, self.count = torch.tensor(outputs), count

    def forward(self, images: Tensor) -> Tensor:
        shown = (images[:, 0].mean((1, 2)) * 255 / 20).long().clamp(0, len(self.outputs) - 1)
        return nn.functional.one_hot(self.outputs[shown], self.count).float()


@dataclass
class World:
    """Images of twelve classes, called ``names``, in a layout of ``suite``, and a model that has an output for each."""

    suite: str
    data: Path
    names: list[str]
    outputs: list[int]
    count: int
    each: int = 1

    def folders(self) -> World:
        for shown, name in enumerate(self.names):
            self.folder(name, shown)
        return self

    def folder(self, name: str, shown: int) -> None:
        for number in range(self.each):
            self.put(f"{name}/{number}.png", shown, number)

    def put(self, name: str, shown: int, number: int) -> None:
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(shown, number).save(path)

    def numbered(self, position: Callable[[int], int] = lambda position: position) -> World:
        """Validation images of ImageNet by number, and a list of the positions of their classes."""
        lines = []
        for number in range(self.each * len(self.names)):
            shown = number % len(self.names)
            name = f"ILSVRC2012_val_{number + 1:08}.png"
            self.put(name, shown, number)
            lines.append(f"{name} {position(POSITIONS[shown])}\n")
        (self.data / "val.txt").write_text("".join(lines))
        return self

    def load(self) -> Suite:
        entry = suite_entry(self.suite)
        entry.check(self.data)
        return entry.load(self.data)

    def evaluation(self, scratch: Path) -> Evaluation:
        model = Classifier(
            Sees(self.outputs, self.count), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 8, 8), crop_pct=1.0
        )
        loaded = Pool("cpu").load(ModelEntry("sees"), lambda: model)
        return Evaluation(self.load(), loaded, Settings(), scratch, "run")


def own(data: Path, names: Sequence[str] = ENGLISH, each: int = 1) -> World:
    return World("imagefolder", data, list(names), list(range(12)), 12, each)


def imagenet(data: Path, each: int = 1) -> World:
    return World("imagenet", data, [SYNSETS[position] for position in POSITIONS], POSITIONS, 1000, each)


def fate(world: World, scratch: Path, before: Suite | None = None) -> tuple[str, str]:
    """What becomes of a world: refused, no better than chance, told apart from how it was before, or silent; and what
    is said.
    """
    try:
        evaluation = world.evaluation(scratch)
    except BenchError as error:
        return "refused", str(error)
    try:
        evaluation.check_chance(evaluation.clean)
    except EvaluationError as error:
        return "no better than chance", str(error)
    finally:
        top1 = evaluation.clean.row.top1
        evaluation.close()
    if before is not None:
        was, now = before.manifest, evaluation.suite.manifest
        baseline = Baseline(scratch, {}, Outcomes.of([], LabelledImages.of(was.ids, was.labels, was.classes)))
        try:
            baseline.check_images(now.ids, now.labels, now.classes)
        except BaselineError as error:
            return "not the baseline's", str(error)
    return "right" if top1 == 1 else "silent", str(top1)


# --------------------------------------------------------------------------- what is wrong


def missing(data: Path) -> World:
    world = own(data).folders()
    shutil.rmtree(data / "goat")
    return world


def empty(data: Path) -> World:
    world = own(data).folders()
    (data / "moon").mkdir()
    return world


def one_more(data: Path) -> World:
    world = own(data).folders()
    world.folder("moon", 3)
    return world


def in_two_cases(data: Path) -> World:
    world = own(data).folders()
    world.folder("Goat", 6)
    return world


def counted(data: Path) -> World:
    return own(data, [str(shown) for shown in range(12)]).folders()


def counted_synsets(data: Path) -> World:
    world = imagenet(data)
    world.names = [str(position) for position in POSITIONS]
    return world.folders()


def mistyped(data: Path) -> World:
    world = imagenet(data)
    world.names[3] = "n00000003"
    return world.folders()


def mistyped_folder_of_ones_own(data: Path) -> World:
    world = own(data, imagenet(data).names)
    world.names[3], world.outputs, world.count = "n00000003", POSITIONS, 1000
    return world.folders()


def twice(data: Path) -> World:
    world = imagenet(data)
    world.suite = "imagenet_v2"
    world.folders().folder(str(POSITIONS[2]), 2)
    return world


def with_background(data: Path) -> World:
    world = imagenet(data).folders()
    world.outputs, world.count = [position + 1 for position in POSITIONS], 1001
    return world


def from_1_to_1000(data: Path) -> World:
    return imagenet(data).numbered(lambda position: 1000 if position == POSITIONS[-1] else position + 1)


def truth_from_0(data: Path) -> World:
    """The development kit's list, but for images and ids that are counted from 0."""
    from scipy.io import savemat

    world = imagenet(data).numbered()
    (data / "val.txt").unlink()
    rows = [(number, synset, 0) for number, synset in enumerate(SYNSETS, start=1)]
    types = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    savemat(data / "meta.mat", {"synsets": np.array(rows, dtype=types)[:, None]})
    of_images = [str(position) for position in POSITIONS]
    lines = of_images + ["0"] * (50_000 - len(of_images))
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(lines))
    return world


def without_truth(data: Path) -> World:
    world = imagenet(data).numbered()
    (data / "val.txt").unlink()
    return world


REFUSED: dict[str, tuple[Callable[[Path], World], str]] = {
    "a folder is missing": (missing, "has 12 outputs but suite 'imagefolder' has 11 classes"),
    "there is one more folder": (one_more, "has 12 outputs but suite 'imagefolder' has 13 classes"),
    "there is one more folder, empty": (empty, "moon: holds no image"),
    "a folder is there in two cases": (in_two_cases, "has 12 outputs but suite 'imagefolder' has 13 classes"),
    "folders are numbered 0 to 11": (counted, "sorted by name 10 stands where the number 2 would"),
    "folders of ImageNet are numbered": (counted_synsets, "a number does not say which class the images are of"),
    "a synset of ImageNet is mistyped": (mistyped, "n00000003: is none of the 1,000 classes by WordNet id"),
    "a synset of a class folder is mistyped": (mistyped_folder_of_ones_own, "'n00000003' is no synset of ImageNet-1k"),
    "a class is there by name and by number": (twice, "a second time, after"),
    "a model has 1,001 outputs, with background": (with_background, "has 1001 outputs but suite 'imagenet' has 1000"),
    "a list of classes is counted from 1": (from_1_to_1000, "does not end in a class from 0 to 999"),
    "the development kit's list is counted from 0": (truth_from_0, "'0' is no ILSVRC2012 id"),
    "nothing says what numbered images show": (without_truth, "no file that says which classes they are of"),
}


def test_what_files_tell_is_refused_before_an_image_is_classified(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an image was classified")

    monkeypatch.setattr("mae_bench.forward_pass.ForwardPass.parts", never)
    fates = {what: fate(make(tmp_path / what), tmp_path / "scratch") for what, (make, _) in REFUSED.items()}
    said = {what: words in fates[what][1] for what, (_, words) in REFUSED.items()}
    assert all(said.values()), {what: fates[what] for what, right in said.items() if not right}
    journal(
        Injection(
            failure="labels",
            what="; ".join(REFUSED),
            count=len(REFUSED),
            behaviour="Refused before an image is classified, naming the folder, the file or both counts.",
            silent=sum(kind != "refused" for kind, _ in fates.values()),
        )
    )


def permuted(data: Path) -> World:
    """A list of positions that are those of other classes."""
    following = dict(zip(POSITIONS, [*POSITIONS[5:], *POSITIONS[:5]], strict=True))
    return imagenet(data, EACH).numbered(following.__getitem__)


def off_by_one(data: Path) -> World:
    return imagenet(data, EACH).numbered(lambda position: position + 1)


def in_another_language(data: Path) -> World:
    """Outputs are in the order of the English names."""
    return own(data, FRENCH, EACH).folders()


def of_another_order(data: Path) -> World:
    """A model of as many outputs, which have the order of another training."""
    world = own(data, each=EACH).folders()
    world.outputs = [5, 0, 8, 1, 2, 10, 11, 3, 4, 6, 7, 9]
    return world


SHOWN = {
    "a list of classes is permuted": permuted,
    "a list of classes is off by one": off_by_one,
    "folders are named in another language than the model's": in_another_language,
    "outputs are in another order": of_another_order,
}


def test_what_no_file_tells_shows_in_the_clean_pass(tmp_path: Path, journal: Journal) -> None:
    fates = {what: fate(make(tmp_path / what), tmp_path / "scratch") for what, make in SHOWN.items()}
    assert all("label map" in said for _, said in fates.values()), fates
    journal(
        Injection(
            failure="labels",
            what="; ".join(SHOWN),
            count=len(SHOWN),
            behaviour="Of 120 images no more are right than by chance: all cells of the model end in an error that "
            "names the label map.",
            silent=sum(kind != "no better than chance" for kind, _ in fates.values()),
        )
    )


def test_two_swapped_folders_show_beside_a_baseline_alone(tmp_path: Path, journal: Journal) -> None:
    """Ten of twelve classes are right, as they could be of a model that takes two for each other."""
    world = own(tmp_path / "data", each=EACH).folders()
    before = world.load()
    assert fate(world, tmp_path / "scratch", before) == ("right", "1.0")
    for name, other in (("bear", "aside"), ("dog", "bear"), ("aside", "dog")):
        (world.data / name).rename(world.data / other)
    alone, _ = fate(world, tmp_path / "scratch")
    assert alone == "silent"
    beside, said = fate(world, tmp_path / "scratch", before)
    assert "knows 20 images under another class" in said
    journal(
        Injection(
            failure="labels",
            what="the contents of two folders are swapped",
            count=1,
            behaviour="A baseline knows the images under another class and refuses to be compared; without a baseline "
            "nothing can tell, and the manifest in the rows is all that is left of it.",
            silent=int(beside != "not the baseline's"),
        )
    )


RIGHT = {
    "class folders": lambda data: own(data, each=EACH).folders(),
    "synsets": lambda data: imagenet(data, EACH).folders(),
    "numbers": lambda data: imagenet(data, EACH).numbered(),
}


@pytest.mark.parametrize("layout", RIGHT)
def test_without_a_mistake_every_image_is_right(layout: str, tmp_path: Path) -> None:
    assert fate(RIGHT[layout](tmp_path / "data"), tmp_path / "scratch")[0] == "right"
