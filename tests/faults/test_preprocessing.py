"""The preprocessing is wrong: every mistake moves the logits of canary images off those that are known, and one that a
user makes stands in the row besides.

The canaries are wide, tall and square photographs drawn from a formula, and the network that looks at them is a matrix
from a formula, so that what is right follows from Pillow and NumPy alone. The bundled models have logits on record.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from faults.reliability import Injection
from mae_bench.cells import Level
from mae_bench.evaluation import Evaluation
from mae_bench.images import View, content_hash, decode
from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.models.zoo import bundled
from mae_bench.settings import Settings
from mae_bench.suites import imagefolder, suite_entry

pytestmark = pytest.mark.usefixtures("one_thread")

Journal = Callable[[Injection], None]

SIDE, CROP = 24, 0.875
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = ((60, 40), (40, 60), (48, 48), (90, 50))
TOLERANCE = 1e-3
"""Of a logit: more than sums in another order change, and less than any mistake."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_BENCH_CACHE", str(tmp_path / "cache"))


# --------------------------------------------------------------------------- what is right


def canary(number: int) -> np.ndarray:
    """(H, W, 3) uint8: waves of another direction and length in each channel, with an edge."""
    width, height = SIZES[number]
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x * (c + 1) + y * (number + 1)) / (4 + c)) * 80 + 30 * c for c in range(3)]
    pixels = np.stack(waves, axis=-1) + 100 + 60 * (x > width / 3)[..., None] - 50 * (y > height / 2)[..., None]
    return np.asarray(np.clip(pixels, 0, 255).astype(np.uint8))


def matrix() -> np.ndarray:
    """(3 * SIDE * SIDE, 5), of which no two columns, channels or places are alike."""
    return np.asarray(np.sin(np.arange(3 * SIDE * SIDE * 5, dtype=np.float64) ** 1.3).reshape(-1, 5) / SIDE)


def by_hand(number: int) -> np.ndarray:
    """Logits (5,) of a canary: shorter side to 27 pixels, bicubic, then the centre, then normalised."""
    image = Image.fromarray(canary(number))
    shorter = int(SIDE / CROP)
    scale = shorter / min(image.size)
    size = tuple(shorter if side == min(image.size) else int(side * scale) for side in image.size)
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    top, left = (round((side - SIDE) / 2) for side in resized.shape[:2])
    pixels = resized[top : top + SIDE, left : left + SIDE] / 255
    normalised = (pixels - np.array(MEAN)) / np.array(STD)
    return np.asarray(normalised.transpose(2, 0, 1).ravel() @ matrix())


# --------------------------------------------------------------------------- what the harness makes of it


class Linear(nn.Module):
    """The matrix. Writes down its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(matrix()).float())
        self.logits: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits = images.flatten(1) @ self.weight
        self.logits.append(logits.detach())
        return logits


@dataclass(frozen=True)
class Seen:
    """What a clean cell made of the canaries: logits (4, 5) by their number, and what the row says of how."""

    logits: np.ndarray
    told: tuple[str, str]

    @property
    def off(self) -> float:
        """The largest difference of a logit from what is right."""
        right = np.stack([by_hand(number) for number in range(len(SIZES))])
        return float(np.abs(self.logits - right).max())


def seen(data: Path, scratch: Path, **changes: Any) -> Seen:
    """The canaries in class folders below ``data``, looked at with what is right but for the ``changes``."""
    for number in range(len(SIZES)):
        path = data / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(canary(number)).save(path)
    hashes = {content_hash((data / f"class {n % 2}" / f"{n}.png").read_bytes()): n for n in range(len(SIZES))}
    suite = suite_entry("imagefolder").load(data)
    # five outputs, of which two are asked for
    suite = replace(suite, manifest=replace(suite.manifest, classes=(*suite.manifest.classes, "2", "3", "4")))
    network = changes.pop("network", Linear)()
    right = {
        "mean": MEAN, "std": STD, "input_size": (3, SIDE, SIDE), "interpolation": "bicubic", "crop_pct": CROP,
    }  # fmt: skip
    model = Pool("cpu").load(ModelEntry("canary"), lambda: Classifier(network, **(right | changes)))
    inner = next(module for module in model.classifier.modules() if isinstance(module, Linear))
    inner.logits.clear()
    made = Evaluation(suite, model, Settings(), scratch, "run")
    row = made.run("clean", Level(0.0)).row
    made.close()
    order = [hashes[known.removesuffix("-0")] for known in suite.manifest.ids]
    logits = np.empty((len(SIZES), 5))
    logits[order] = torch.cat(inner.logits).numpy()
    return Seen(logits, (row.preprocessing, row.view))


def test_without_a_mistake_the_logits_are_those_by_hand(tmp_path: Path) -> None:
    assert seen(tmp_path / "data", tmp_path / "scratch").off < TOLERANCE / 10


# --------------------------------------------------------------------------- mistakes of a user


MISTAKES: dict[str, dict[str, Any]] = {
    "bilinear": {"interpolation": "bilinear"},
    "a crop that is too large": {"crop_pct": 1.0},
    "a crop that is a little too large": {"crop_pct": 0.9},
    "squashed": {"crop_mode": "squash"},
    "the mean of other weights": {"mean": (0.5, 0.5, 0.5)},
    "the deviation of other weights": {"std": (0.5, 0.5, 0.5)},
    "not normalised": {"mean": (0.0,) * 3, "std": (1.0,) * 3},
    "the mean of another order of channels": {"mean": MEAN[::-1]},
    "in units of 255": {"mean": tuple(255 * value for value in MEAN), "std": tuple(255 * value for value in STD)},
}
"""Arguments of a Classifier."""


def test_a_mistake_of_the_user_moves_the_logits_and_stands_in_the_row(tmp_path: Path, journal: Journal) -> None:
    right = seen(tmp_path / "data", tmp_path / "right")
    wrong = {what: seen(tmp_path / "data", tmp_path / what, **changes) for what, changes in MISTAKES.items()}
    journal(
        Injection(
            failure="preprocessing",
            what="a model is wrapped with a mistake: " + ", ".join(MISTAKES),
            count=len(MISTAKES),
            behaviour="The row's preprocessing, which is part of a cell's identity, is another, and logits of canary "
            f"images are off by {min(found.off for found in wrong.values()):.2g} or more.",
            silent=sum(found.off < 10 * TOLERANCE or found.told == right.told for found in wrong.values()),
        )
    )


# --------------------------------------------------------------------------- mistakes that no field tells


class Wrapped(nn.Module):
    """The matrix behind what ``change`` makes of its normalised images."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change, self.linear = change, Linear()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.change(images))
        return logits


def twice(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std


def grey(images: Tensor) -> Tensor:
    return images.mean(1, keepdim=True).expand(-1, 3, -1, -1)


UNTOLD: dict[str, Callable[[Tensor], Tensor]] = {
    "normalised twice": twice,
    "blue first": lambda images: images.flip(1),
    "grey": grey,
    "shifted by a pixel": lambda images: images.roll(1, 3),
    "flipped": lambda images: images.flip(3),
    "upside down": lambda images: images.flip(2),
    "on its side": lambda images: images.transpose(2, 3),
    "channels last": lambda images: images.permute(0, 2, 3, 1).reshape(images.shape),
    "rounded to 6 bits": lambda images: (images * 16).round() / 16,
}
"""What the network itself does wrong."""


def of_the_view(change: Callable[[Image.Image], Image.Image]) -> tuple[object, str, object]:
    def transform(_: View) -> Callable[[Image.Image], np.ndarray]:
        return lambda image: np.asarray(change(image)).transpose(2, 0, 1)

    return View, "transform", transform


def nearest(image: Image.Image) -> Image.Image:
    scale = int(SIDE / CROP) / min(image.size)
    resized = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.NEAREST)
    left, top = round((resized.width - SIDE) / 2), round((resized.height - SIDE) / 2)
    return resized.crop((left, top, left + SIDE, top + SIDE))


def from_the_corner(image: Image.Image) -> Image.Image:
    scale = int(SIDE / CROP) / min(image.size)
    resized = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    return resized.crop((0, 0, SIDE, SIDE))


def blue_first(content: Any, *where: str) -> Image.Image:
    return Image.merge("RGB", decode(content, *where).split()[::-1])


def up_to_255(self: Classifier, images: Tensor) -> Tensor:
    logits: Tensor = self.module((255 * images - self._mean) / self._std)
    return logits


FAULTS: dict[str, tuple[object, str, object]] = {
    "squashed": of_the_view(lambda image: image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)),
    "resized without a filter": of_the_view(nearest),
    "cut from the corner": of_the_view(from_the_corner),
    "blue first": (imagefolder, "decode", blue_first),
    "pixels up to 255": (Classifier, "forward", up_to_255),
}
"""What of the harness is replaced by what."""


def test_a_mistake_that_no_field_tells_moves_the_logits(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = {}
    for what, change in UNTOLD.items():
        network = lambda change=change: Wrapped(change)  # noqa: E731
        off[f"the network: {what}"] = seen(tmp_path / "data", tmp_path / what, network=network).off
    for what, fault in FAULTS.items():
        with monkeypatch.context() as patch:
            # for no one to be given another's pixels
            patch.setenv("MAE_BENCH_CACHE", str(tmp_path / f"cache of {what}"))
            patch.setattr(*fault)
            off[f"the harness: {what}"] = seen(tmp_path / "data", tmp_path / f"scratch of {what}").off
    journal(
        Injection(
            failure="preprocessing",
            what="; ".join(off),
            count=len(off),
            behaviour=f"Logits of canary images are off by {min(off.values()):.2g} or more from what is right by hand; "
            f"those of a right run by less than {TOLERANCE:g}.",
            silent=sum(change < 10 * TOLERANCE for change in off.values()),
        )
    )


# --------------------------------------------------------------------------- bundled models

GOLDEN = Path(__file__).with_name("golden_logits.json")
"""Logits of bundled models for the first images of the bundled suite, to four digits."""


def logits_of(name: str) -> Callable[[Callable[[Tensor], Tensor]], np.ndarray]:
    """Gives the logits (8, 10) of a bundled model, as the harness has them but for a change of the pixels in [0, 1]."""
    suite = suite_entry("fashion_mnist").load(None)
    model = Pool("cpu").load(ModelEntry(name), lambda: bundled(name))
    pixels = model.classifier.view.transform()
    images = torch.stack([torch.as_tensor(pixels(suite.read(i))) for i in range(8)]).float() / 255

    @torch.inference_mode()
    def changed(change: Callable[[Tensor], Tensor]) -> np.ndarray:
        logits: np.ndarray = model.classifier(change(images)).numpy()
        return logits

    return changed


@pytest.mark.parametrize("name", ["mae_ft_s0", "cnn_s0"])
def test_bundled_models_have_the_logits_on_record_and_mistakes_do_not(name: str, journal: Journal) -> None:
    golden = np.array(json.loads(GOLDEN.read_text())[name])
    logits = logits_of(name)
    assert np.abs(logits(lambda images: images) - golden).max() < TOLERANCE
    normalised = bundled(name).pretrained_cfg
    mean, std = normalised["mean"][0], normalised["std"][0]
    mistakes: dict[str, Callable[[Tensor], Tensor]] = {
        "normalised twice": lambda images: (images - mean) / std,
        "not normalised": lambda images: images * std + mean,
        "pixels up to 255": lambda images: images * 255,
        "inverted": lambda images: 1 - images,
        "flipped": lambda images: images.flip(3),
        "shifted by a pixel": lambda images: images.roll(1, 2),
    }
    off = {what: float(np.abs(logits(change) - golden).max()) for what, change in mistakes.items()}
    journal(
        Injection(
            failure="preprocessing",
            what=f"{name}: " + ", ".join(mistakes),
            count=len(mistakes),
            behaviour=f"Logits are off by {min(off.values()):.2g} or more from those on record, a right run by "
            f"less than {TOLERANCE:g}.",
            silent=sum(change < 10 * TOLERANCE for change in off.values()),
        )
    )
