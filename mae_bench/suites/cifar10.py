"""CIFAR-10 (Krizhevsky 2009): 32x32 colour images of ten classes, in the published batches or in class folders.

Nothing is downloaded here; whoever wants the images gets them with torchvision once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mae_bench.images import content_hash, decode, stratified
from mae_bench.suites import Suite, SuiteEntry, SuiteError
from mae_bench.suites.batches import batch_file, read_batches
from mae_bench.suites.imagefolder import class_folders, image_files, unchanged

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)
"""Mean pixel of the training images, in [0, 1]."""
STD = (0.2470, 0.2435, 0.2616)
"""Standard deviation of the training pixels, in [0, 1]."""
BATCHES = ("cifar-10-batches-py", "cifar-10-batches-bin")
"""Folders of the python version, which torchvision gets, and of the binary one."""
TRAINING = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = ("test_batch",)


def training_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The training images (N, 3, 32, 32) uint8 and their labels (N,) int64.

    Raises:
        FileNotFoundError: ``folder`` holds them in neither layout; the message says how to get them.
        SuiteError: a file is not what was published.
    """
    if batches := _batches(folder, TRAINING):
        return read_batches(batches)
    if not (folder / "train").is_dir():
        raise FileNotFoundError(f"{folder} holds no CIFAR-10: {_how(folder, 'train')}, or name the folder with --data")
    images, labels = [], []
    for label, path in _files(folder / "train"):
        images.append(np.asarray(_checked(path)).transpose(2, 0, 1))
        labels.append(label)
    return np.stack(images), np.array(labels, dtype=np.int64)


def check(entry: SuiteEntry, data: Path) -> None:  # noqa: ARG001 - every suite is checked alike
    """Raises:
    SuiteError: the test images are in neither layout below ``data``.
    """
    if not _batches(data, TEST) and not (data / "test").is_dir():
        raise SuiteError(f"--mae-data {data}: holds no CIFAR-10: {_how(data, 'test')}")


def load(entry: SuiteEntry, data: Path) -> Suite:
    """The test images below ``data``. Content hashes are those of pixels, in class folders those of the files: images
    that went through JPEG are others than the published ones, and their manifest says so.

    Raises:
        SuiteError: a file, or a class, is missing or is not what was published.
        ImageError: an image file cannot be read.
    """
    if batches := _batches(data, TEST):
        images, labels = read_batches(batches)
        pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        order, manifest = stratified([content_hash(p.tobytes()) for p in pixels], labels.tolist(), CLASSES)
        return Suite(entry, manifest, MEAN, lambda position: Image.fromarray(pixels[order[position]]))
    found = _files(data / "test")
    hashes = [content_hash(path.read_bytes()) for _, path in found]
    order, manifest = stratified(hashes, [label for label, _ in found], CLASSES)
    return Suite(entry, manifest, MEAN, lambda position: _checked(found[order[position]][1], hashes[order[position]]))


def _batches(data: Path, names: Sequence[str]) -> list[Path]:
    """The files of some batches, beside those of the test images at or below ``data``; none where these are not."""
    test = batch_file((*(data / folder for folder in BATCHES), data), TEST[0])
    return [] if test is None else [test.with_name(f"{name}{test.suffix}") for name in names]


def _how(data: Path, part: str) -> str:
    return (
        f'expected {data / BATCHES[0]} or {data / part}/<class>/<image files>; python -c "import torchvision; '
        f"torchvision.datasets.CIFAR10('{data}', download=True)\" gets the first"
    )


def _files(folder: Path) -> list[tuple[int, Path]]:
    """Label and path of every image file below the ten class folders."""
    names = [entry.name for entry in class_folders(folder)]
    if missing := sorted(set(CLASSES) - set(names)):
        raise SuiteError(f"{folder}: class {missing[0]!r} is missing; CIFAR-10 has {', '.join(CLASSES)}")
    if foreign := sorted(set(names) - set(CLASSES)):
        raise SuiteError(f"{folder}: {foreign[0]!r} is no class of CIFAR-10; take the folder away")
    return [(label, path) for label, name in enumerate(CLASSES) for path in image_files(folder / name)]


def _checked(path: Path, known: str | None = None) -> Image.Image:
    """The image in a file, whose content hash is ``known`` where it was taken."""
    image = decode(path) if known is None else unchanged(path, known)
    if image.size != (32, 32):
        raise SuiteError(f"{path}: {image.size[0]}x{image.size[1]} pixels; images of CIFAR-10 have 32x32")
    return image
