"""Encoded images of ImageNet's classes wherever they lie, each with its class and its content hash."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from mae_bench.images import ImageError, cache_folder, content_hash, decode, stratified
from mae_bench.suites import Suite, SuiteEntry, SuiteError
from mae_bench.suites.ground_truth import FILES, ground_truth
from mae_bench.suites.imagefolder import IMAGENET_MEAN, SUFFIXES, image_files
from mae_bench.suites.index import remembered
from mae_bench.suites.synsets import SYNSET, published_synsets

SPLITS = ("val", "validation")
FLAT = ("ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val")
"""Where numbered validation images lie beside :data:`SPLITS`: as their archive unpacks, and Kaggle's."""
NUMBERED = re.compile(r"ILSVRC2012_val_\d{8}")


@dataclass(frozen=True)
class Record:
    """An encoded image: its class, its content hash, where it lies as errors say it, its path within its set (empty
    where it has none), and how its bytes are had.
    """

    synset: str
    hash: str
    where: str
    path: str
    content: Callable[[], bytes]

    @property
    def name(self) -> str:
        """What an image and its degraded copies have in common: class and file name, less suffix and less the class
        that some copies of ImageNet have in their file names.
        """
        return f"{self.synset}/{PurePosixPath(self.path).stem.removesuffix(f'_{self.synset}')}"

    def image(self) -> Image.Image:
        """Raises:
        ImageError: it cannot be read, or is no longer what was hashed.
        """
        try:
            content = self.content()
        except OSError as error:
            raise ImageError(f"{self.where}: cannot be read ({error}); restore it") from error
        if content_hash(content) != self.hash:
            raise ImageError(
                f"{self.where}: is not the image any more whose content hash is known; start again, and if its time of "
                f"change was set back, remove {cache_folder() / 'index'} before"
            )
        return decode(content, self.where)


Reader = Callable[[], list[Record]]
"""Reads what has been found, with content hashes; finding it out is cheap."""


@dataclass(frozen=True)
class Listed:
    """An image in a file of its own that no one has read yet."""

    synset: str
    file: Path


def class_folders(place: Path, classes: Sequence[str], numbered: bool = False) -> list[Listed]:
    """Images in one folder per synset; ``numbered`` allows folders that bear the number of their class from 0 instead.

    Raises:
        SuiteError: a folder is none of ``classes``, is its class a second time, or holds no image.
    """
    found: dict[str, Path] = {}
    for folder in _subfolders(place):
        name = folder.name
        if numbered and name.isascii() and name.isdigit() and int(name) < len(classes):
            name = classes[int(name)]
        if name not in classes:
            raise SuiteError(f"{folder}: is none of the {len(classes):,} classes by WordNet id; take the folder away")
        if name in found:
            raise SuiteError(f"{folder}: is class {name} a second time, after {found[name]}; take one of them away")
        found[name] = folder
    return [Listed(synset, file) for synset, folder in sorted(found.items()) for file in image_files(folder)]


def in_class_folders(data: Path, classes: Sequence[str], numbered: bool = False) -> Reader | None:
    """Class folders in ``data`` or the folder of a split in it; None where there are none.

    Raises:
        SuiteError: as :func:`class_folders`.
    """
    for place in (data, *(data / split for split in SPLITS)):
        names = [folder.name for folder in _subfolders(place)]
        if any(SYNSET.fullmatch(name) for name in names) or (numbered and any(name.isdigit() for name in names)):
            return partial(hashed, place, class_folders(place, classes, numbered))
    return None


def refuse_numbered(data: Path) -> None:
    """Raises:
    SuiteError: a folder bears a number where one with the name of a synset is expected.
    """
    for place in (data, *(data / split for split in SPLITS)):
        for folder in _subfolders(place):
            if folder.name.isdigit():
                raise SuiteError(
                    f"{folder}: a number does not say which class the images are of (the folders of imagenet_v2 alone "
                    "were published so); name folders by WordNet id"
                )


def flat(data: Path) -> Reader | None:
    """ImageNet's numbered validation images in one folder, with a ground truth beside them; None where there are none.

    Raises:
        SuiteError: no ground truth is found, or it does not know an image.
    """
    for place in (data, *(data / name for name in (*SPLITS, *FLAT))):
        files = [file for file in sorted(place.glob("ILSVRC2012_val_*")) if file.name.lower().endswith(SUFFIXES)]
        files = [file for file in files if NUMBERED.fullmatch(file.stem)]
        if files:
            break
    else:
        return None
    truth = ground_truth(dict.fromkeys((place, data, place.parent)))
    if truth is None:
        raise SuiteError(
            f"{place}: holds images by number, and no file that says which classes they are of; put "
            f"{', '.join(FILES)} (with meta.mat) there or into {place.parent}"
        )
    path, synset_of = truth
    unknown = [file.name for file in files if file.stem not in synset_of]
    if unknown:
        raise SuiteError(
            f"{path}: does not know {len(unknown):,} of {len(files):,} images in {place}, first {unknown[0]}; get it "
            "again from its source"
        )
    return partial(hashed, place, [Listed(synset_of[file.stem], file) for file in files])


def hashed(root: Path, listing: Sequence[Listed]) -> list[Record]:
    """Records of images in files of their own below ``root``.

    Raises:
        ImageError: a file cannot be read.
    """
    hashes = remembered("content hash", root, [image.file for image in listing], _hash)
    return [
        Record(image.synset, known, str(image.file), image.file.relative_to(root).as_posix(), image.file.read_bytes)
        for image, known in zip(listing, hashes, strict=True)
    ]


def suite_of(entry: SuiteEntry, records: Sequence[Record]) -> tuple[Suite, list[Record]]:
    """The suite of ``records``, and these in the order of its manifest. Its classes are those that it has images of,
    and all where they are a published choice from the thousand.

    Raises:
        SuiteError: there is one class only.
    """
    present = {record.synset for record in records}
    if len(present) < 2:
        raise SuiteError(f"suite {entry.name!r} has images of {len(present)} class only; accuracy needs at least two")
    classes = sorted(present) if entry.synsets == "imagenet" else list(published_synsets(entry.synsets))
    position = {synset: i for i, synset in enumerate(classes)}
    hashes, labels = [record.hash for record in records], [position[record.synset] for record in records]
    order, manifest = stratified(hashes, labels, classes)
    arranged: list[Record] = [records[i] for i in order]

    def read(position: int) -> Image.Image:
        return arranged[position].image()

    return Suite(entry, manifest, IMAGENET_MEAN, read, order=np.argsort(order)), arranged


def _hash(file: Path) -> str:
    try:
        return content_hash(file.read_bytes())
    except OSError as error:
        raise ImageError(f"{file}: cannot be read ({error}); restore it") from error


def _subfolders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    try:
        return sorted(entry for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise SuiteError(f"{place}: cannot be listed ({error}); make it readable") from error
