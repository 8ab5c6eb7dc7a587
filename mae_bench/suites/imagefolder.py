"""Images in one folder per class, the layout of torchvision's ImageFolder."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from mae_bench.images import content_hash, decode, stratified
from mae_bench.suites import Suite, SuiteEntry, SuiteError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean pixel of ImageNet's training images: the ``mean`` fill for natural images (source: timm)."""


def class_folders(data: Path) -> list[Path]:
    """Folders directly below ``data``, sorted by name; hidden ones are not classes.

    Raises:
        SuiteError: the directory is missing or holds fewer than two folders.
    """
    if not data.is_dir():
        raise SuiteError(f"--mae-data {data}: no such directory")
    folders = sorted(entry for entry in data.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise SuiteError(f"--mae-data {data}: holds no class folders; expected {data}/<class>/<image files>")
    if len(folders) == 1:
        raise SuiteError(f"--mae-data {data}: holds one class only ({folders[0].name}); accuracy needs at least two")
    return folders


def image_files(folder: Path) -> list[Path]:
    """Image files anywhere below ``folder``, in sorted order.

    Raises:
        SuiteError: there is none.
    """
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # what is hidden is not walked into
        files += [Path(root) / name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    if not files:
        raise SuiteError(f"{folder}: holds no image ({', '.join(SUFFIXES)}); fill the class or remove its folder")
    return sorted(files)


def check(entry: SuiteEntry, data: Path) -> None:  # noqa: ARG001 - every suite is checked alike
    for folder in class_folders(data):
        image_files(folder)


def load(entry: SuiteEntry, data: Path) -> Suite:
    """All images below ``data``; content hashes are those of the files' bytes.

    Raises:
        SuiteError: missing or empty folders.
        ImageError: a file that cannot be read.
    """
    folders = class_folders(data)
    files, labels, hashes = [], [], []
    for label, folder in enumerate(folders):
        for path in image_files(folder):
            files.append(path)
            labels.append(label)
            hashes.append(content_hash(path.read_bytes()))
    order, manifest = stratified(hashes, labels, [folder.name for folder in folders])

    def read(position: int) -> Image.Image:
        return decode(files[order[position]])

    return Suite(entry, manifest, IMAGENET_MEAN, read)
