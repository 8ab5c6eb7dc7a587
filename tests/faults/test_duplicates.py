"""Planted copies: those that are one observation count as one, and those that only look alike are named."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from faults.reliability import Injection
from mae_bench import suites
from mae_bench.duplicates import distinct, duplicate_of, near_duplicates
from mae_bench.images import View, content_hash, decoded

Journal = Callable[[Injection], None]
Encoding = Callable[[Image.Image], bytes]

ORIGINALS = 20
PHOTOGRAPHS = ("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "moon", "rocket")


def encoding(format: str, **options: object) -> Encoding:  # noqa: A002 - Pillow's name
    def encode(image: Image.Image) -> bytes:
        buffer = BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return encode


ORIGINAL = encoding("PNG")
EXACT: dict[str, Encoding] = {
    "the same bytes": ORIGINAL,
    "PNG of another compression": encoding("PNG", compress_level=1),
    "BMP": encoding("BMP"),
    "lossless WebP": encoding("WEBP", lossless=True),
    "TIFF": encoding("TIFF"),
}
NEAR: dict[str, Encoding] = {
    f"{name} of quality {quality}": encoding(name, quality=quality)
    for name, quality in (("JPEG", 80), ("JPEG", 90), ("JPEG", 95), ("WEBP", 90))
}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Parts of photographs, all different, of 160 pixels and more."""
    random = np.random.default_rng(0)
    found = []
    for place in range(ORIGINALS):
        photograph = Image.fromarray(getattr(skimage.data, PHOTOGRAPHS[place % len(PHOTOGRAPHS)])()).convert("RGB")
        side = int(random.integers(160, 280))
        left, top = (int(random.integers(0, length - side)) for length in photograph.size)
        found.append(photograph.crop((left, top, left + side, top + side)))
    return found


def planted(
    folder: Path, images: list[Image.Image], encodings: dict[str, Encoding], count: int
) -> list[tuple[int, str]]:
    """Writes an image folder of two classes with ``count`` copies, half of them in the class that the original is not
    in, and gives of each which original it is of and its file's content hash.
    """
    for label in "ab":
        (folder / label).mkdir(parents=True)
    for place, image in enumerate(images):
        (folder / "ab"[place % 2] / f"{place}.png").write_bytes(ORIGINAL(image))
    random, copies = np.random.default_rng(1), []
    for number in range(count):
        kind = list(encodings)[number % len(encodings)]
        place = int(random.integers(len(images)))
        content = encodings[kind](images[place])
        # what a file is named does not say what it is
        (folder / "ab"[(place + number // 2) % 2] / f"copy {number}.jpg").write_bytes(content)
        copies.append((place, content_hash(content)))
    return copies


def summary(
    folder: Path, images: list[Image.Image]
) -> tuple[np.ndarray, list[tuple[int, int]], dict[int, int], list[str]]:
    """Groups and near duplicates of the folder's suite, where its originals are, and the content hash of each image."""
    suite = suites.suite_entry("imagefolder").load(folder)
    count = len(suite.manifest.ids)
    found = decoded(suite.manifest, count, View(64, 64, "bicubic", 0.875), 3, suite.read, folder.parent / "decoded")
    group = duplicate_of(suite.manifest.ids, found.digests)
    hashes = [name.rpartition("-")[0] for name in suite.manifest.ids]
    places = {place: hashes.index(content_hash(ORIGINAL(image))) for place, image in enumerate(images)}
    return group, near_duplicates(found.likeness, found.pixels, group), places, hashes


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.faults)])
def test_exact_copies_count_once(count: int, photographs: list[Image.Image], journal: Journal, tmp_path: Path) -> None:
    copies = planted(tmp_path / "data", photographs, EXACT, count)
    group, near, places, hashes = summary(tmp_path / "data", photographs)
    assert len(group) == ORIGINALS + count
    missed = sum(
        group[position] != group[places[place]]
        for place, content in copies
        for position in np.flatnonzero(np.array(hashes) == content)
    )
    journal(
        Injection(
            "duplicates",
            f"copies of an image in a suite: {', '.join(EXACT)}",
            count,
            "each is one of the group of its original, whatever its bytes, name and class, so that it counts once",
            lost=ORIGINALS - distinct(group),
            silent=missed,
        )
    )
    assert near == []


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.faults)])
def test_lossy_copies_are_named(count: int, photographs: list[Image.Image], journal: Journal, tmp_path: Path) -> None:
    copies = planted(tmp_path / "data", photographs, NEAR, count)
    group, near, places, hashes = summary(tmp_path / "data", photographs)
    original_of = {content: places[place] for place, content in copies}  # the same encoding again is an exact copy
    silent = 0
    for content, original in original_of.items():
        position = int(group[hashes.index(content)])
        silent += tuple(sorted((position, original))) not in near
    foreign = 0
    for pair in near:
        one, other = (original_of.get(hashes[position], position) for position in pair)
        foreign += one != other
    journal(
        Injection(
            "duplicates",
            f"lossy copies of an image in a suite: {', '.join(NEAR)}",
            count,
            "each is named with its original as a near duplicate, and counts as an image of its own",
            lost=foreign,
            silent=silent,
        )
    )
    assert distinct(group) == ORIGINALS + len(original_of)
