"""Outputs or head are not the suite's: refused before a degraded cell runs, with both counts where counts differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from faults.reliability import Injection
from mae_bench.errors import BenchError
from mae_bench.evaluation import Evaluation, EvaluationError
from mae_bench.images import Manifest, content_hash, stratified
from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.settings import Settings
from mae_bench.suites import Suite, SuiteEntry

pytestmark = pytest.mark.usefixtures("one_thread")

Journal = Callable[[Injection], None]

CLASSES = 1000
ENTRY = SuiteEntry("of_a_thousand", 8, 0, True, "a thousand classes")


def unread() -> Suite:
    """A thousand classes of an image each, none of which may be looked at."""

    def read(position: int) -> Image.Image:
        raise AssertionError(f"image {position} was looked at")

    ids = tuple(f"{number:032x}-0" for number in range(CLASSES))
    names = tuple(f"class {number:03}" for number in range(CLASSES))
    return Suite(ENTRY, Manifest(names, ids, np.arange(CLASSES)), (0.5, 0.5, 0.5), read)


class Answers(nn.Module):
    """Logits of a linear layer, as ``answer`` has them."""

    def __init__(self, answer: Callable[[Tensor], Any], outputs: int = CLASSES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Linear(192, outputs)
        self.layer.weight.data.copy_(torch.randn(outputs, 192, generator=generator))
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(self.layer(images.flatten(1)))


def spoilt() -> nn.Module:
    network = Answers(lambda logits: logits)
    network.layer.weight.data[7, 3] = torch.nan
    return network


WRONG: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{
        f"{outputs:,} outputs": (
            lambda outputs=outputs: Answers(lambda logits: logits, outputs),
            f"has {outputs} outputs but suite 'of_a_thousand' has 1000 classes",
        )
        for outputs in (10, 999, 1001, 21_843)
    },
    "no output": (lambda: Answers(lambda logits: logits[:, :0]), "gave logits of shape (2, 0) for 2 images"),
    "one dimension": (lambda: Answers(lambda logits: logits[:, 0]), "gave logits of shape (2,) for 2 images"),
    "three dimensions": (lambda: Answers(lambda logits: logits[:, None]), "shape (2, 1, 1000) for 2 images"),
    "a tuple": (lambda: Answers(lambda logits: (logits, logits)), "gave logits of shape tuple"),
    "a dictionary": (lambda: Answers(lambda logits: {"logits": logits}), "gave logits of shape dict"),
    "a list": (lambda: Answers(list), "gave logits of shape list"),
    "whole numbers": (lambda: Answers(lambda logits: logits.long()), "gave logits of torch.int64"),
    "complex numbers": (lambda: Answers(lambda logits: logits + 0j), "gave logits of torch.complex64"),
    "another device": (lambda: Answers(lambda logits: logits.to("meta")), "gave logits on meta"),
    "more images than were asked for": (lambda: Answers(lambda logits: logits.repeat(2, 1)), "shape (4, 1000)"),
    "no dimension of the batch where it is one": (
        lambda: Answers(lambda logits: logits.squeeze(0)), "gave logits of shape (1000,) for 1 image",
    ),
    "what the rest of the batch has to do with": (
        lambda: Answers(lambda logits: logits - logits.mean(0)), "other logits in a batch than alone",
    ),
    "what is drawn at random": (lambda: Answers(nn.functional.dropout), "other logits in a batch than alone"),
    "weights that are NaN": (spoilt, "1 of its tensors hold NaN or infinite weights, the first is layer.weight"),
}  # fmt: skip
"""What a model answers with, and what is said of it."""


def evaluation(suite: Suite, network: nn.Module, scratch: Path) -> Evaluation:
    model = Classifier(network, mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(3, 8, 8), crop_pct=1.0)
    loaded = Pool("cpu").load(ModelEntry("wrong"), lambda: model)
    return Evaluation(suite, loaded, Settings(), scratch, "run")


def test_outputs_that_are_not_the_suites_are_refused_before_an_image_is_looked_at(
    tmp_path: Path, journal: Journal
) -> None:
    said = {}
    for what, (make, _) in WRONG.items():
        try:
            evaluation(unread(), make(), tmp_path)
            said[what] = ""
        except BenchError as error:
            said[what] = str(error)
    unsaid = {what: said[what] for what, (_, words) in WRONG.items() if words not in said[what]}
    assert not unsaid
    assert all("'wrong'" in words for words in said.values())
    journal(
        Injection(
            failure="classes",
            what="a model of a thousand classes answers with " + ", ".join(WRONG),
            count=len(WRONG),
            behaviour="Refused before an image is looked at, naming the model and both counts or what it gave.",
            silent=sum(not words for words in said.values()),
        )
    )


def test_probabilities_are_logits_too(tmp_path: Path) -> None:
    assert evaluation(unread(), Answers(lambda logits: logits.softmax(1)), tmp_path).model.outputs == CLASSES


# --------------------------------------------------------------------------- heads


@dataclass(frozen=True)
class Patterns:
    """Noisy images of as many patterns as there are classes, which any features tell apart."""

    classes: int

    def suite(self, each: int) -> Suite:
        generator = np.random.default_rng(self.classes)
        patterns = generator.integers(40, 216, (self.classes, 8, 8, 3))
        labels = list(np.arange(self.classes * each) % self.classes)
        noise = generator.integers(-30, 30, (len(labels), 8, 8, 3))
        pixels = (patterns[labels] + noise).astype(np.uint8)
        hashes = [content_hash(image.tobytes()) for image in pixels]
        order, manifest = stratified(hashes, labels, [f"class {number:03}" for number in range(self.classes)])
        return Suite(ENTRY, manifest, (0.5,) * 3, lambda position: Image.fromarray(pixels[order[position]]))

    def features(self, suite: Suite) -> Tensor:
        """(classes, 192) the mean image of each class, normalised."""
        labels = suite.manifest.labels
        pixels = np.stack([np.asarray(suite.read(i)).transpose(2, 0, 1) for i in range(len(labels))])
        means = [pixels[labels == label].mean(0).ravel() for label in range(self.classes)]
        return (torch.from_numpy(np.stack(means)).float() / 255 - 0.5) / 0.5


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.faults)])
def test_a_head_that_was_never_trained_is_no_better_than_chance(
    count: int, classes: int, tmp_path: Path, journal: Journal
) -> None:
    """The features tell all classes apart, but what the head makes of them is drawn at random."""
    kind = Patterns(classes)
    suite = kind.suite(each=30 if classes == 10 else 5)
    trained = Answers(lambda logits: logits, classes)
    trained.layer.weight.data.copy_(kind.features(suite))
    trained.layer.bias.data.copy_(-0.5 * trained.layer.weight.data.square().sum(1))
    right = evaluation(suite, trained, tmp_path)
    right.check_chance(right.clean)
    assert right.clean.row.top1 == 1
    refused = 0
    for seed in range(count):
        network = Answers(lambda logits: logits, classes)
        draw = torch.randn(network.layer.weight.shape, generator=torch.Generator().manual_seed(seed))
        network.layer.weight.data.copy_(draw)
        network.layer.bias.data.zero_()  # else drawn from the global state, which the tests before it leave
        untrained = evaluation(suite, network, tmp_path)
        try:
            untrained.check_chance(untrained.clean)
        except EvaluationError as error:
            refused += "its head is untrained" in str(error)
        untrained.close()
    journal(
        Injection(
            failure="classes",
            what=f"a head that was never trained, on features that tell {classes} classes apart",
            count=count,
            behaviour=f"All cells of {refused} models end in an error after the clean pass. The others recognise so "
            "many classes by luck that they count as poor models, with the accuracy that they have.",
        )
    )
    assert refused >= 0.95 * count
