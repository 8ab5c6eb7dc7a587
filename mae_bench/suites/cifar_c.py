"""CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich 2019) as published: one array per corruption, in which the test
images stand in their order once for each of five severities.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mae_bench.images import content_hash, stratified
from mae_bench.suites import StoredImages, Suite, SuiteEntry, SuiteError, cifar10
from mae_bench.suites.batches import batch_file, read_batches

SEVERITIES = 5
SIDE = 32


@dataclass(frozen=True)
class Cifar:
    """A CIFAR data set: how it is called, which file has its test images, below which of ``folders``, how their labels
    are called there, and how many ``coarse`` ones come before them; its classes, and the mean pixel of the training
    images in [0, 1].
    """

    name: str
    folders: tuple[str, ...]
    test: str
    labels: str
    coarse: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]


CIFARS = {
    "cifar10_c": Cifar("CIFAR-10", cifar10.BATCHES, cifar10.TEST[0], "labels", 0, cifar10.CLASSES, cifar10.MEAN),
    "cifar100_c": Cifar(
        "CIFAR-100",
        ("cifar-100-python", "cifar-100-binary"),
        "test",
        "fine_labels",
        1,
        (
            "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
            "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
            "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
            "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
            "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
            "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
            "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
            "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
            "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger",
            "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
            "worm",
        ),
        (0.5071, 0.4865, 0.4409),
    ),
}  # fmt: skip
"""The clean data set of each suite."""


def check(entry: SuiteEntry, data: Path) -> None:
    """Raises:
    SuiteError: the clean test images or the labels of the corrupted ones are missing.
    """
    cifar = CIFARS[entry.name]
    if _test(cifar, data) is None:
        dataset = cifar.name.replace("-", "")
        raise SuiteError(
            f"--mae-data {data}: the clean test images are needed beside the corrupted ones, in "
            f'{data / cifar.folders[0]}; python -c "import torchvision; '
            f"torchvision.datasets.{dataset}('{data}', download=True)\" gets them"
        )
    if not (data / "labels.npy").is_file():
        raise SuiteError(
            f"--mae-data {data}: holds no labels.npy; expected it and <corruption>.npy as {cifar.name}-C was published"
        )


def load(entry: SuiteEntry, data: Path) -> Suite:
    """The clean test images, whose manifest is that of the clean suite, and where their corrupted copies are.

    Raises:
        SuiteError: as :func:`check`, or the labels are not those of the test images.
    """
    cifar = CIFARS[entry.name]
    test = _test(cifar, data)
    assert test is not None
    images, labels = read_batches([test], cifar.name, cifar.labels, len(cifar.classes), cifar.coarse)
    _check_labels(data / "labels.npy", labels, test)
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    order, manifest = stratified([content_hash(p.tobytes()) for p in pixels], labels.tolist(), cifar.classes)

    def stored(name: str, severity: int) -> StoredImages:
        path = data / f"{name}.npy"
        corrupted = _array(path, (SEVERITIES * len(pixels), SIDE, SIDE, 3))
        # read once: what is hashed is what is shown, whatever becomes of the file
        copies = np.array(corrupted[(severity - 1) * len(pixels) : severity * len(pixels)])
        fingerprint = content_hash(copies.tobytes())
        return StoredImages(fingerprint, lambda position: Image.fromarray(copies[order[position]]))

    return Suite(entry, manifest, cifar.mean, lambda position: Image.fromarray(pixels[order[position]]), stored)


def _test(cifar: Cifar, data: Path) -> Path | None:
    """The file of the clean test images at or below ``data``."""
    return batch_file((*(data / folder for folder in cifar.folders), data), cifar.test)


def _check_labels(path: Path, labels: np.ndarray, test: Path) -> None:
    expected = np.tile(labels, SEVERITIES)
    found = _array(path, expected.shape)
    if (different := np.flatnonzero(found != expected)).size:
        first = int(different[0])
        raise SuiteError(
            f"{path}: has {different.size:,} labels that are not those of {test}, first that of image {first} "
            f"({found[first]} for {expected[first]}): the images are in another order or of another set; get both again"
        )


def _array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The memory-mapped array in a file, never of pickled objects: pixels of images, or labels of one dimension."""
    try:
        found = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise SuiteError(f"{path}: no such file; unpack it beside the others") from error
    except Exception as error:  # a header is evaluated, and a damaged one ends in whatever that stumbles over
        what = str(error)[:200]
        raise SuiteError(f"{path}: not an array in NumPy's format ({what}); get it again from its source") from error
    kind = np.uint8 if len(shape) > 1 else np.integer
    if found.shape != shape or not np.issubdtype(found.dtype, kind):
        raise SuiteError(
            f"{path}: holds {found.dtype} of shape {found.shape}; as published it would be {kind.__name__} of shape "
            f"{shape}"
        )
    return found
