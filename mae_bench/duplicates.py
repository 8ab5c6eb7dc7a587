"""Images that are copies of others: exact ones, which are one observation, and near ones, which are a warning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from mae_bench.images import BLOCK, PIECE

FEW_BITS = 3
"""Bits in which the difference hashes of near duplicates differ at most."""
CLOSE = 6.0
"""Root-mean-square difference of the pixels of near duplicates at most, in grey values.

Measured: of 210 crops of photographs, the most that encoding again as JPEG changed was 5.5 at quality 90 and 7.2 at 75,
half of them changed by less than 2.1 and 3.6, at 224 pixels; at 28 pixels, where JPEG does worst, 3.8 and 9.6. Of the
10,000 bundled images, one pair is closer than 8.6, and that is the same garment (1.5).
"""
NEIGHBOURS = 32
"""How many images of similar brightness each is compared with, of those whose hashes share enough bits."""
_GROUPS = 6
"""Groups of bits: two hashes that differ in three bits agree in three groups of six."""
_SAMPLES = 28
"""Rows and columns of pixels, at least, that an image's brightness is the mean of."""


def duplicate_of(ids: Sequence[str], digests: np.ndarray) -> np.ndarray:
    """(N,) int64: the position of the first image of each image's group; its own where it is the first, or no copy.

    A group shares the content of its files, which ``ids`` (N,) begin with (``9f0c...-0``), or the pixels under a view,
    of which ``digests`` (N, 16) uint8 are (:func:`mae_bench.images.digests`); so does an image with one that is a copy
    of a third in another way.

    Raises:
        ValueError: there are not as many ids as digests.

    >>> digests = np.array([[1], [2], [3], [3], [4]], dtype=np.uint8).repeat(16, axis=1)
    >>> duplicate_of(["a-0", "b-0", "b-1", "c-0", "d-0"], digests)
    array([0, 1, 1, 1, 4])
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(ids)
    if len(digests) != count:
        raise ValueError(f"{count} ids do not fit {len(digests)} digests")
    contents = np.array([name.rpartition("-")[0] for name in ids], dtype=str)
    pixels = np.ascontiguousarray(digests).view("V16").ravel()
    # a graph of images, contents and pixels, where an image is joined with its own
    content, pixel = (np.unique(key, return_inverse=True)[1] for key in (contents, pixels))
    own = np.arange(count)
    images = np.concatenate([own, own])
    keys = np.concatenate([count + content, 2 * count + pixel])
    graph = coo_array((np.ones(2 * count, dtype=bool), (images, keys)), shape=(3 * count, 3 * count))
    group = connected_components(graph, directed=False)[1][:count]
    _, first, of = np.unique(group, return_index=True, return_inverse=True)
    return np.asarray(first[of], dtype=np.int64)


def distinct(duplicate_of: np.ndarray) -> int:
    """How many images are no copies of earlier ones.

    >>> distinct(np.array([0, 1, 1, 1, 4]))
    3
    """
    return int((duplicate_of == np.arange(len(duplicate_of))).sum())


def near_duplicates(likeness: np.ndarray, pixels: np.ndarray, duplicate_of: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of positions, the earlier first, of images that look the same but are no exact copies, such as JPEGs that
    were encoded again: their difference hashes ``likeness`` (N,) uint64 (:func:`mae_bench.images.likeness`) differ in
    at most :data:`FEW_BITS`, and their ``pixels`` (N, C, H, W) uint8 by a root mean square of at most :data:`CLOSE`.
    Of exact copies the first stands for all.

    It takes time in proportion to N. What it finds is worth a look, and nothing is counted by it: among images that
    share most of their hash, each is compared with the :data:`NEIGHBOURS` next brighter ones alone.

    >>> ramp = np.arange(0, 256, 8, dtype=np.uint8)
    >>> pixels = np.stack([np.tile(row, (1, 32, 1)) for row in (ramp, ramp[::-1], ramp + 2)])
    >>> near_duplicates(np.array([2**64 - 1, 0, 2**64 - 1], dtype=np.uint64), pixels, np.arange(3))
    [(0, 2)]
    """
    firsts = np.flatnonzero(duplicate_of == np.arange(len(duplicate_of)))
    pairs = firsts[_alike(likeness[firsts], _brightness(pixels)[firsts])]
    close = pairs[_differences(pixels, pairs) <= CLOSE]
    return [(one, other) for one, other in close.tolist()]


def _alike(hashes: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """(pairs, 2) positions in ascending order, of hashes that differ in few bits and are of about the same brightness.

    Sorted by what they have in some of the groups of bits, and then by brightness, they lie side by side.
    """
    group = np.arange(64) * _GROUPS // 64
    bits = np.uint64(1) << np.arange(64, dtype=np.uint64)
    pairs = np.empty(0, dtype=np.int64)
    for chosen in combinations(range(_GROUPS), _GROUPS - FEW_BITS):
        shared = hashes & np.bitwise_or.reduce(bits[np.isin(group, chosen)])
        order = np.lexsort((brightness, shared))
        shared, whole, light = shared[order], hashes[order], brightness[order]
        left = np.arange(len(order))  # places whose next neighbours may still be alike
        found = [pairs]
        for step in range(1, NEIGHBOURS + 1):
            left = left[: np.searchsorted(left, len(order) - step)]
            left = left[(shared[left] == shared[left + step]) & (light[left + step] - light[left] <= CLOSE)]
            like = left[np.bitwise_count(whole[left] ^ whole[left + step]) <= FEW_BITS]
            one, other = order[like], order[like + step]
            found.append(np.minimum(one, other) * len(hashes) + np.maximum(one, other))
        pairs = np.sort(np.concatenate(found))  # np.unique was seen to take thirty times as long
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    return np.stack(np.divmod(pairs, max(1, len(hashes))), axis=1)


def _brightness(pixels: np.ndarray) -> np.ndarray:
    """(N,) mean of some of each image's pixels, evenly spread: what encoding again hardly changes."""
    step = max(1, min(pixels.shape[2:]) // _SAMPLES)
    starts = range(0, len(pixels), BLOCK)
    means = [pixels[start : start + BLOCK, :, ::step, ::step].mean((1, 2, 3)) for start in starts]
    return np.concatenate([np.empty(0), *means])


def _differences(pixels: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(pairs,) root mean square of the differences of pixels."""
    images = pixels.reshape(len(pixels), math.prod(pixels.shape[1:]))
    found = np.empty(len(pairs))
    several = max(1, PIECE // max(1, images.shape[1]))
    for start in range(0, len(pairs), several):
        one, other = pairs[start : start + several].T
        difference = images[one].astype(np.float32) - images[other]
        found[start : start + several] = np.sqrt(np.einsum("ij,ij->i", difference, difference) / images.shape[1])
    return found
