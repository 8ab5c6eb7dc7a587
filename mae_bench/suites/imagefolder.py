"""Images in one folder per class, the layout of torchvision's ImageFolder."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from mae_bench.images import ImageError, content_hash, decode, stratified
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
    """Raises:
    SuiteError: missing or empty folders, or numbered ones whose names sort otherwise than their numbers.
    """
    folders = class_folders(data)
    for folder in folders:
        image_files(folder)
    names = [folder.name for folder in folders]
    if all(name.isascii() and name.isdigit() for name in names):
        for by_name, by_number in zip(names, sorted(names, key=int), strict=True):
            if by_name != by_number:
                raise SuiteError(
                    f"--mae-data {data}: class folders are numbered, and sorted by name {by_name} stands where the "
                    f"number {by_number} would, so it is not clear which is which output of a model; name them so that "
                    "their sorted names are in the order of its outputs (00, 01, ...)"
                )


def load(entry: SuiteEntry, data: Path) -> Suite:
    """All images below ``data``; content hashes are those of the files' bytes.

    Raises:
        SuiteError: as :func:`check`.
        ImageError: a file that cannot be read.
    """
    folders = class_folders(data)
    files, labels, hashes = [], [], []
    for label, folder in enumerate(folders):
        for path in image_files(folder):
            files.append(path)
            labels.append(label)
            hashes.append(content_hash(_content(path)))
    order, manifest = stratified(hashes, labels, [folder.name for folder in folders])

    def read(position: int) -> Image.Image:
        return unchanged(files[order[position]], hashes[order[position]])

    return Suite(entry, manifest, IMAGENET_MEAN, read)


def unchanged(file: Path, known: str) -> Image.Image:
    """The image in ``file``, whose content hash is ``known``.

    Raises:
        ImageError: it cannot be read, or is no longer what was hashed.
    """
    content = _content(file)
    if content_hash(content) != known:
        raise ImageError(f"{file}: was changed after its content hash was taken; start again")
    return decode(content, str(file))


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ImageError(f"{file}: cannot be read ({error}); restore it") from error
