"""Images from disk: strict decoding, content hashes, the fixed order of a suite, views, and the decoded cache."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image, UnidentifiedImageError

from mae_bench.errors import BenchError

BLOCK = 256
"""Images per block: metrics are kept per block of the manifest order and merge at block boundaries."""
PROBE_BLOCKS = 2
"""Leading blocks on which thresholds and means are calibrated, and token-level indicators run."""


class ImageError(BenchError):
    """An image or image file that cannot be used."""


@dataclass(frozen=True)
class Manifest:
    """Which images a suite holds, in its fixed stratified order.

    ``ids`` are content hash and occurrence number (``9f0c...-0``), ``labels`` (N,) int64 positions in
    ``classes``. ``hash`` covers all three.
    """

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: np.ndarray

    @property
    def hash(self) -> str:
        text = "\n".join([*self.classes, *(f"{i} {label}" for i, label in zip(self.ids, self.labels, strict=True))])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def keys(self) -> np.ndarray:
        """(N,) int64: the first 64 bits of each content hash, to key random numbers with."""
        return np.array([int(i[:16], 16) for i in self.ids], dtype=np.uint64).view(np.int64)

    def subset(self, limit: int) -> int:
        """How many leading images ``limit`` stands for: whole blocks, at least the probe's; 0 means all."""
        total = len(self.ids)
        if limit == 0:
            return total
        return min(total, max(PROBE_BLOCKS, -(-limit // BLOCK)) * BLOCK)


def content_hash(content: bytes) -> str:
    """128 bits of SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()[:32]


def stratified(hashes: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> tuple[np.ndarray, Manifest]:
    """The manifest of images given in any order, and the positions of its entries in what was given.

    Within a class images are ordered by content hash; classes are then interleaved in proportion, so that
    every prefix is as balanced as the whole. The order depends on the contents alone, not on their names.
    """
    seen: Counter[str] = Counter()
    ids = [""] * len(hashes)
    for i in sorted(range(len(hashes)), key=lambda i: (hashes[i], labels[i])):
        ids[i] = f"{hashes[i]}-{seen[hashes[i]]}"
        seen[hashes[i]] += 1
    label_array = np.asarray(labels, dtype=np.int64)
    place = np.empty(len(ids), dtype=np.float64)
    for label in range(len(classes)):
        members = sorted(np.flatnonzero(label_array == label), key=lambda i: ids[i])
        for rank, position in enumerate(members):
            place[position] = (rank + 0.5) / len(members)
    order = np.lexsort((label_array, place))
    return order, Manifest(tuple(classes), tuple(ids[i] for i in order), label_array[order])


@dataclass(frozen=True)
class View:
    """What a model sees of an image before degradation: timm's evaluation resize and crop.

    Models with equal views are given identical pixels.
    """

    height: int
    width: int
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    def __str__(self) -> str:
        return f"{self.height}x{self.width} {self.interpolation} {self.crop_mode} {self.crop_pct}"

    def transform(self) -> Callable[[Image.Image], np.ndarray]:
        """From a PIL image to (C, H, W) uint8."""
        import torch
        from timm.data.transforms_factory import transforms_imagenet_eval

        transform: Callable[[Image.Image], Any] = transforms_imagenet_eval(
            img_size=(self.height, self.width),
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
            use_prefetcher=True,
        )
        # an array or a tensor, as timm's version has it
        return lambda image: torch.as_tensor(transform(image)).numpy()


def decode(path: Path) -> Image.Image:
    """The RGB image in ``path``, whole or not at all. EXIF orientation is ignored, as ImageNet pipelines do.

    Raises:
        ImageError: the file is missing, empty, truncated, not an image, or absurdly large.
    """
    remedy = "restore the file or take it out of the directory"
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty; {remedy}")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ImageError(f"{path}: more than 8 bits per channel (mode {image.mode}); convert it to 8 bits")
                return image.convert("RGB")
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image that Pillow can read; {remedy}") from error
    except (
        OSError,
        SyntaxError,
        TypeError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise ImageError(f"{path}: cannot be decoded ({error}); {remedy}") from error


def read_idx(path: Path) -> np.ndarray:
    """Array of unsigned bytes in LeCun's idx format, gzip-compressed.

    Raises:
        ImageError: the file is not gzip, not idx of unsigned bytes, or shorter or longer than it declares.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{path}: not a readable gzip file ({error}); copy it again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ImageError(f"{path}: not an idx file of unsigned bytes; copy it again")
    dimensions = data[3]
    header = 4 + 4 * dimensions
    if len(data) < header:
        raise ImageError(f"{path}: the idx header is cut off; copy it again")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    values = np.frombuffer(data, dtype=np.uint8, offset=header)
    if values.size != math.prod(shape):
        raise ImageError(f"{path}: declares shape {shape} but holds {values.size} bytes; copy it again")
    try:
        return values.reshape(shape)
    except ValueError as error:
        raise ImageError(f"{path}: declares the impossible shape {shape} ({error}); copy it again") from error


def decoded(
    manifest: Manifest, count: int, view: View, channels: int, read: Callable[[int], Image.Image], folder: Path
) -> np.ndarray:
    """The first ``count`` images under ``view``: (count, C, H, W) uint8, memory-mapped from a file in ``folder``.

    The file is made once, under a lock, by whichever process comes first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{manifest.hash} {count} {view} {channels}".encode()).hexdigest()[:16]
    path = folder / f"{key}.npy"
    with FileLock(folder / f"{key}.lock"):
        if not path.exists():
            partial = folder / f"{key}.partial.npy"
            shape = (count, channels, view.height, view.width)
            pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            transform = view.transform()
            for position in range(count):
                pixels[position] = transform(read(position))
            pixels.flush()
            del pixels
            os.replace(partial, path)
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
