"""ImageNet-1k's validation images (Russakovsky et al. 2015), and the sets that models of its classes are tried on:
ImageNet-V2 (Recht et al. 2019), ImageNet-A (Hendrycks et al. 2021a), ImageNet-R (Hendrycks et al. 2021b) and
ImageNet-Sketch (Wang et al. 2019). Images are labelled by WordNet id, never by the position of a folder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mae_bench.suites import Suite, SuiteEntry, SuiteError
from mae_bench.suites.records import (
    Listed,
    Reader,
    class_folders,
    flat,
    hashed,
    in_class_folders,
    refuse_numbered,
    suite_of,
)
from mae_bench.suites.shards import arrow, parquet, webdataset
from mae_bench.suites.synsets import published_synsets

LAYOUTS = """
  <synset>/<image files> in DIR, DIR/val or DIR/validation
  ILSVRC2012_val_*.JPEG in one of these or DIR/ILSVRC2012_img_val, beside LOC_val_solution.csv, val.txt, \
imagenet_2012_validation_synset_labels.txt, or ILSVRC2012_validation_ground_truth.txt with meta.mat
  Hugging Face's validation-*.parquet in DIR, DIR/data or a hub cache, or *-validation-*.arrow of a datasets cache
  WebDataset's imagenet1k-validation-*.tar in DIR or a hub cache"""
NUMBERED = ("imagenet_v2",)
"""Suites that were published with the number of a class, from 0, as the name of its folder."""


def validation_images(data: Path) -> Reader:
    """ImageNet-1k's validation images in whichever layout they have in ``data``.

    Raises:
        SuiteError: they are in none that is read, or not as they should be.
    """
    if not data.is_dir():
        raise SuiteError(f"--mae-data {data}: no such directory")
    classes = published_synsets("imagenet")
    for layout in (partial(in_class_folders, classes=classes), flat, parquet, arrow, webdataset):
        if (reader := layout(data)) is not None:
            return reader
    refuse_numbered(data)
    raise SuiteError(f"--mae-data {data}: holds ImageNet's validation images in none of the layouts:{LAYOUTS}")


def check(entry: SuiteEntry, data: Path) -> None:
    """Raises:
    SuiteError: the images are in no layout that is read, or not as they should be.
    """
    _reader(entry, data)


def load(entry: SuiteEntry, data: Path) -> Suite:
    """All images below ``data``; content hashes are those of their encoded bytes, so that the same images have the same
    manifest in every layout.

    Raises:
        SuiteError: as :func:`check`, or a shard is damaged.
        ImageError: a file cannot be read.
    """
    suite, _ = suite_of(entry, _reader(entry, data)())
    return suite


def training(entry: SuiteEntry, data: Path, per_class: int) -> Suite:
    """The first ``per_class`` images of each class by file name in ``data``/train/<synset>.

    Raises:
        SuiteError: there is no such folder, or a class has fewer.
    """
    place = data / "train"
    if not place.is_dir():
        raise SuiteError(
            f"{place}: no such directory; the training images that a classifier is fitted to are looked for there, in "
            "one folder per synset"
        )
    by_class: dict[str, list[Listed]] = {name: [] for name in published_synsets("imagenet")}
    for listed in class_folders(place, published_synsets("imagenet")):
        if len(by_class[listed.synset]) < per_class:
            by_class[listed.synset].append(listed)
    if short := [name for name, found in by_class.items() if len(found) < per_class]:
        raise SuiteError(
            f"{place}: {len(short):,} of {len(by_class):,} classes have fewer than {per_class} images, "
            f"first {short[0]} with {len(by_class[short[0]])}"
        )
    suite, _ = suite_of(entry, hashed(place, [listed for found in by_class.values() for listed in found]))
    return suite


def _reader(entry: SuiteEntry, data: Path) -> Reader:
    if entry.name == "imagenet":
        return validation_images(data)
    if not data.is_dir():
        raise SuiteError(f"--mae-data {data}: no such directory")
    reader = in_class_folders(data, published_synsets(entry.synsets), numbered=entry.name in NUMBERED)
    if reader is None:
        refuse_numbered(data)
        raise SuiteError(
            f"--mae-data {data}: holds no class folders of {entry.name}; expected {data}/<synset>/<image files>"
        )
    return reader
