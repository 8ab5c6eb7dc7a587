"""Copies are found as a slow and obvious search finds them, and what only looks alike is told from them."""

from __future__ import annotations

from io import BytesIO
from itertools import combinations, pairwise

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mae_bench import suites
from mae_bench.duplicates import CLOSE, FEW_BITS, NEIGHBOURS, distinct, duplicate_of, near_duplicates
from mae_bench.images import View, digests, likeness

LAW = settings(derandomize=True, max_examples=40)
PHOTOGRAPHS = ["astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "moon", "rocket"]

# --------------------------------------------------------------------------- exact copies


def digests_of(pixels: list[int]) -> np.ndarray:
    """Digests that are equal where the numbers are."""
    return np.array(pixels, dtype=np.uint8)[:, None].repeat(16, axis=1).reshape(-1, 16)


def first_of_group(contents: list[int], pixels: list[int]) -> list[int]:
    """The same by walking from image to image as long as there are new ones."""
    count, found = len(contents), []
    for start in range(count):
        group, grown = {start}, True
        while grown:
            more = {
                other
                for other in range(count)
                if any(contents[other] == contents[one] or pixels[other] == pixels[one] for one in group)
            }
            grown = more != group
            group = more
        found.append(min(group))
    return found


images = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


@LAW
@given(images)
def test_groups_are_those_that_walking_from_image_to_image_finds(given_images: list[tuple[int, int]]) -> None:
    contents, pixels = [one for one, _ in given_images], [other for _, other in given_images]
    ids = [f"{content:032x}-{place}" for place, content in enumerate(contents)]
    found = duplicate_of(ids, digests_of(pixels))
    assert found.dtype == np.int64
    assert found.tolist() == first_of_group(contents, pixels)
    assert distinct(found) == len(set(found.tolist()))


@pytest.mark.parametrize("turned", [False, True])
def test_a_chain_of_copies_of_either_kind_is_one_group(turned: bool) -> None:
    contents, pixels = [0, 0, 1, 1, 2, 2, 9], [0, 1, 1, 2, 2, 3, 9]
    if turned:
        contents, pixels = pixels, contents
    ids = [f"{content:032x}-{place}" for place, content in enumerate(contents)]
    assert duplicate_of(ids, digests_of(pixels)).tolist() == [0, 0, 0, 0, 0, 0, 6]


def test_a_last_byte_is_a_difference() -> None:
    own = digests_of([1, 1])
    own[1, 15] = 0  # where an array of text would end
    assert duplicate_of(["a-0", "b-0"], own).tolist() == [0, 1]
    own[:, 0] = 0
    assert duplicate_of(["a-0", "b-0"], own).tolist() == [0, 1]


def test_no_images_have_no_copies() -> None:
    none = duplicate_of([], digests_of([]))
    assert none.shape == (0,)
    assert distinct(none) == 0
    assert near_duplicates(np.empty(0, np.uint64), np.empty((0, 3, 8, 8), np.uint8), none) == []


def test_ids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="3 ids do not fit 2 digests"):
        duplicate_of(["a-0", "b-0", "c-0"], digests_of([1, 2]))


# --------------------------------------------------------------------------- near ones


def near_by_comparing_all(own: np.ndarray, pixels: np.ndarray, group: np.ndarray) -> list[tuple[int, int]]:
    found = []
    for one, other in combinations([int(place) for place in np.flatnonzero(group == np.arange(len(group)))], 2):
        bits = f"{int(own[one]) ^ int(own[other]):b}".count("1")
        squares = (pixels[one].astype(float) - pixels[other].astype(float)) ** 2
        if bits <= FEW_BITS and squares.mean() <= CLOSE**2:
            found.append((one, other))
    return found


@LAW
@given(st.integers(0, 2**32), st.integers(0, 30), st.sampled_from([(1, 9, 9), (3, 9, 12)]))
def test_near_duplicates_are_those_that_comparing_all_finds(seed: int, count: int, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(seed)
    ancestors = random.integers(20, 236, (6, *shape))
    noise = random.normal(size=(count, *shape)) * random.choice([1, 3, 6, 9], count)[:, None, None, None]
    parent = random.integers(0, 6, count)
    pixels = np.clip(ancestors[parent] + noise, 0, 255).astype(np.uint8)
    # hashes of a few bits more or less, whatever the pixels say
    flips = random.integers(0, 64, (count, 5))
    own = likeness(ancestors.astype(np.uint8))[parent]
    for place in range(count):
        for bit in flips[place, : random.integers(0, 6)]:
            own[place] ^= np.uint64(1) << np.uint64(bit)
    group = np.where(random.random(count) < 0.2, 0, np.arange(count))
    assert near_duplicates(own, pixels, group) == near_by_comparing_all(own, pixels, group)


def test_of_exact_copies_the_first_stands_for_all() -> None:
    image = np.random.default_rng(0).integers(0, 250, (1, 20, 20), dtype=np.uint8)
    pixels = np.stack([image, image, image + 1, image + 1, image])
    group = duplicate_of([f"{place}-0" for place in range(5)], digests(pixels))
    assert near_duplicates(likeness(pixels), pixels, group) == [(0, 2)]


def test_time_grows_with_the_images_even_where_all_look_alike() -> None:
    count = 4000
    pixels = np.random.default_rng(0).integers(99, 102, (count, 1, 12, 12), dtype=np.uint8)
    found = near_duplicates(np.zeros(count, np.uint64), pixels, np.arange(count))
    # one table of neighbours, since all groups of bits are equal: of all pairs there were 8 million
    assert len(found) == count * NEIGHBOURS - NEIGHBOURS * (NEIGHBOURS + 1) // 2


def encoded_again(image: Image.Image, format: str, **options: object) -> Image.Image:  # noqa: A002 - Pillow's name
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return Image.open(buffer).convert(image.mode)


@pytest.mark.parametrize(("format", "quality", "side"), [("JPEG", 75, 32), ("JPEG", 75, 224), ("WEBP", 90, 224)])
def test_photographs_that_were_encoded_again_are_near_and_no_others(format: str, quality: int, side: int) -> None:  # noqa: A002
    transform = View(side, side, "bicubic", 0.875).transform()
    originals = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in PHOTOGRAPHS]
    again = [encoded_again(image, format, quality=quality) for image in originals]
    pixels = np.stack([transform(image) for image in [*originals, *again]])
    group = duplicate_of([f"{place}-0" for place in range(len(pixels))], digests(pixels))
    assert distinct(group) == len(pixels)
    assert near_duplicates(likeness(pixels), pixels, group) == [(i, i + len(originals)) for i in range(len(originals))]


def test_bundled_images_are_distinct_and_two_of_them_are_of_one_garment() -> None:
    """Found by comparing all with all: the next two differ by 8.7 grey values."""
    suite = suites.suite_entry("fashion_mnist").load(None)
    pixels = np.stack([np.asarray(suite.read(i)) for i in range(len(suite.manifest.ids))])[:, None]
    group = duplicate_of(suite.manifest.ids, digests(pixels))
    assert distinct(group) == 10_000
    [(one, other)] = near_duplicates(likeness(pixels), pixels, group)
    assert suite.manifest.labels[one] == suite.manifest.labels[other]
    assert float(np.sqrt(np.square(pixels[one].astype(float) - pixels[other]).mean())) == pytest.approx(1.48, abs=0.01)


@pytest.mark.parametrize(("quality", "share"), [(85, 0.9), (95, 0.99)])
def test_bundled_images_that_were_encoded_again_are_near(quality: int, share: float) -> None:
    suite = suites.suite_entry("fashion_mnist").load(None)
    originals = [suite.read(i) for i in range(1000)]
    again = [encoded_again(image, "JPEG", quality=quality) for image in originals]
    pixels = np.stack([np.asarray(image) for image in [*originals, *again]])[:, None]
    found = near_duplicates(likeness(pixels), pixels, np.arange(2000))
    assert sum(other == one + 1000 for one, other in found) >= share * 1000
    assert all(other == one + 1000 for one, other in found)


def test_pairs_are_in_order() -> None:
    pixels = np.zeros((40, 1, 9, 9), np.uint8)
    found = near_duplicates(likeness(pixels), pixels, np.arange(40))
    assert all(one < other for one, other in found)
    assert all(one < other for one, other in pairwise(found))
