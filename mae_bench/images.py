"""Images from disk: strict decoding, content hashes, the fixed order of a suite, views, and the decoded cache."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
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
    """What a model sees of an image before degradation: timm's evaluation resize and crop, of what RGB images are under
    the view ``before`` where there is one.

    Models with equal views are given identical pixels.
    """

    height: int
    width: int
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"
    before: View | None = None

    def __str__(self) -> str:
        own = f"{self.height}x{self.width} {self.interpolation} {self.crop_mode} {self.crop_pct}"
        return own if self.before is None else f"{self.before}, then {own}"

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

        def pixels(image: Image.Image) -> np.ndarray:
            # an array or a tensor, as timm's version has it
            array: np.ndarray = torch.as_tensor(transform(image)).numpy()
            return array

        if self.before is None:
            return pixels
        first = self.before.transform()
        return lambda image: pixels(Image.fromarray(first(image).transpose(1, 2, 0)))


def decode(source: Path | bytes, where: str = "") -> Image.Image:
    """The RGB image in a file, or in bytes that came from ``where``, whole or not at all. EXIF orientation is ignored,
    as ImageNet pipelines do.

    Raises:
        ImageError: the file is missing, empty, truncated, not an image, or absurdly large.
    """
    place = where or str(source if isinstance(source, Path) else "an image")
    remedy = "restore the file or take it out of the directory"
    try:
        if (source.stat().st_size if isinstance(source, Path) else len(source)) == 0:
            raise ImageError(f"{place}: the file is empty; {remedy}")
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            # Pillow only warns up to twice its limit, and filters of warnings are no business of threads
            if Image.MAX_IMAGE_PIXELS is not None and math.prod(image.size) > Image.MAX_IMAGE_PIXELS:
                size, most = math.prod(image.size), Image.MAX_IMAGE_PIXELS
                raise ImageError(
                    f"{place}: cannot be decoded ({size} pixels are more than {most}, it could be a decompression "
                    f"bomb); {remedy}"
                )
            if image.mode.startswith(("I", "F")):
                raise ImageError(f"{place}: more than 8 bits per channel (mode {image.mode}); convert it to 8 bits")
            return image.convert("RGB")
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{place}: not an image that Pillow can read; {remedy}") from error
    except (
        OSError,
        SyntaxError,
        TypeError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise ImageError(f"{place}: cannot be decoded ({error}); {remedy}") from error


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


def cache_folder() -> Path:
    """Where decoded images and content hashes outlive a run: ``$MAE_BENCH_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("MAE_BENCH_CACHE") or platformdirs.user_cache_dir("mae_bench"))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path`` in the cache against other processes; its folder is made where there is none.

    Raises:
        ImageError: the folder cannot be made or written to.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _not_writable(path.parent, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def written_whole(path: Path) -> Iterator[io.BufferedWriter]:
    """A file that takes the place of ``path`` once all is in it, and leaves nothing behind otherwise.

    Raises:
        ImageError: the disk is full, or the folder not writable.
    """
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise _not_writable(path.parent, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _not_writable(folder: Path, error: OSError) -> ImageError:
    return ImageError(
        f"{folder}: cannot be written to ({error}); make room, or name another folder for decoded images and content "
        "hashes in the environment variable MAE_BENCH_CACHE"
    )


def decoded(
    manifest: Manifest,
    count: int,
    view: View,
    channels: int,
    read: Callable[[int], Image.Image],
    folder: Path,
    variant: str = "",
    progress: Callable[[int, int], None] | None = None,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """The first ``count`` images under ``view``: (count, C, H, W) uint8, memory-mapped from a file in ``folder``.

    The file is made once, under a lock, by whichever process comes first, with a thread on every core; one that is
    damaged is made again. ``variant`` tells apart what ``read`` gives for the same manifest, such as a stored
    degradation. ``order`` (N,) are the positions of the manifest in the order in which they are best read, by default
    its own. ``progress`` is told how many images are done, and of how many, after every block.

    Raises:
        ImageError: an image cannot be read, of several the first in that order; or ``folder`` cannot be written to.
    """
    shape = (count, channels, view.height, view.width)
    identity = f"{manifest.hash} {count} {view} {channels} {variant} {_decoders()}"
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    with locked(path):
        if not _is_whole(path, shape):
            positions = np.arange(count) if order is None else order[order < count]
            _decode(path, shape, positions, view.transform(), read, progress)
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r", offset=len(_header(shape)), shape=shape))


def _decode(
    path: Path,
    shape: tuple[int, ...],
    positions: np.ndarray,
    transform: Callable[[Image.Image], np.ndarray],
    read: Callable[[int], Image.Image],
    progress: Callable[[int, int], None] | None,
) -> None:
    def pixels(position: int) -> np.ndarray:
        image = np.empty(shape[1:], dtype=np.uint8)
        image[...] = transform(read(position))
        return image

    # where threads find out about further formats one after the other, one of them may miss what another has found
    Image.init()
    header = _header(shape)
    with written_whole(path) as file, ThreadPoolExecutor(cores()) as pool:
        file.write(header)
        for start in range(0, len(positions), BLOCK):
            block = positions[start : start + BLOCK].tolist()
            # a memory map of a file that the disk has no room for would end the process, a write ends in an error
            for position, image in zip(block, pool.map(pixels, block), strict=True):
                file.seek(len(header) + position * image.nbytes)
                file.write(image.data)
            if progress is not None:
                progress(start + len(block), len(positions))


def _header(shape: tuple[int, ...]) -> bytes:
    """What a .npy file of bytes in this shape begins with."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    header = _header(shape)
    if not path.exists() or path.stat().st_size != len(header) + math.prod(shape):
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header


def _decoders() -> str:
    """Versions of what makes pixels of files."""
    return " ".join(f"{name} {version(name)}" for name in ("pillow", "torchvision", "timm"))
