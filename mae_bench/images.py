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
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from filelock import FileLock
from PIL import Image, UnidentifiedImageError

from mae_bench import atomic, cached
from mae_bench.errors import BenchError
from mae_bench.machine import cores, version_of

BLOCK = 256
"""Images per block: metrics are kept per block of the manifest order and merge at block boundaries."""
PROBE_BLOCKS = 2
"""Leading blocks on which thresholds and means are calibrated, and token-level indicators run."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file is named. Pillow knows more, and hands some of it to other programs."""
IDX_MOST = 1 << 30
"""Bytes up to which an idx file is unpacked: 1.3 million images of 28 pixels."""
PIECE = 1 << 22
"""Bytes of pixels that a thread takes at a time: many enough to be fast, and few beside what else a process holds."""
MARGIN = 2.0
"""Grey values by which a part of an image is brighter than its neighbour, for its bit in :func:`likeness`."""


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

    @cached_property
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
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as image:
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
        raise ImageError(f"{place}: not an image ({', '.join(FORMATS)}); {remedy}") from error
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
    """Array of unsigned bytes in LeCun's idx format, gzip-compressed. No more is unpacked than it declares.

    Raises:
        ImageError: the file is not gzip, not idx of unsigned bytes, shorter or longer than it declares, or declares
            more than :data:`IDX_MOST` bytes.
    """
    try:
        with gzip.open(path) as file:
            magic = file.read(4)
            if magic[:3] != b"\x00\x00\x08" or len(magic) < 4:
                raise ImageError(f"{path}: not an idx file of unsigned bytes; copy it again")
            sides = file.read(4 * magic[3])
            if len(sides) < 4 * magic[3]:
                raise ImageError(f"{path}: the idx header is cut off; copy it again")
            shape = struct.unpack(f">{magic[3]}I", sides)
            size = math.prod(shape)
            if size > IDX_MOST:
                raise ImageError(f"{path}: declares shape {shape}, {size} bytes of at most {IDX_MOST}; copy it again")
            content = bytearray()
            # piece by piece, so that memory goes to what is there; asking for one byte more finds what is too long,
            # and the checksum behind what is not
            while piece := file.read(min(PIECE, size + 1 - len(content))):
                content += piece
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{path}: not a readable gzip file ({error}); copy it again") from error
    if len(content) != size:
        held = f"{len(content)} bytes" if len(content) < size else "more"
        raise ImageError(f"{path}: declares shape {shape} but holds {held}; copy it again")
    try:
        values = np.frombuffer(content, dtype=np.uint8).reshape(shape)
    except ValueError as error:
        raise ImageError(f"{path}: declares the impossible shape {shape} ({error}); copy it again") from error
    values.flags.writeable = False
    return values


def cache_folder() -> Path:
    """Where decoded images and content hashes outlive a run: ``$MAE_BENCH_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("MAE_BENCH_CACHE") or platformdirs.user_cache_dir("mae_bench"))


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
    """:func:`mae_bench.atomic.written_whole` in the cache, for who holds the lock of ``path``: what a killed process
    left of it is removed first.

    Raises:
        ImageError: the disk is full, or the folder not writable.
    """
    try:
        for left in path.parent.glob(f".{path.name}.*.partial"):
            left.unlink(missing_ok=True)
        with atomic.written_whole(path) as file:
            yield file
    except OSError as error:
        raise _not_writable(path.parent, error) from error


def _not_writable(folder: Path, error: OSError) -> ImageError:
    return ImageError(
        f"{folder}: cannot be written to ({error}); make room, or name another folder for decoded images and content "
        "hashes in the environment variable MAE_BENCH_CACHE"
    )


@dataclass(frozen=True, eq=False)
class Decoded:
    """Images under a view, memory-mapped, with what tells copies.

    ``pixels`` (N, C, H, W) uint8, ``digests`` (N, 16) uint8 of :func:`digests` and ``likeness`` (N,) uint64 of
    :func:`likeness`. None of them can be written to.
    """

    pixels: np.ndarray
    digests: np.ndarray
    likeness: np.ndarray


def digests(images: np.ndarray) -> np.ndarray:
    """(N, 16) uint8: 128 bits of BLAKE2b of the pixels of each of ``images`` (N, C, H, W) uint8."""
    rows = np.ascontiguousarray(images).reshape(len(images), math.prod(images.shape[1:]))
    content = b"".join(hashlib.blake2b(row.data, digest_size=16).digest() for row in rows)
    return np.frombuffer(content, dtype=np.uint8).reshape(len(images), 16)


def likeness(images: np.ndarray) -> np.ndarray:
    """(N,) uint64: the difference hash of each of ``images`` (N, C, H, W) uint8, which a slight change leaves as it is,
    or nearly so.

    The mean of the channels is averaged over 8 rows of 9 parts; a bit says whether a part is brighter than the one on
    its left by more than :data:`MARGIN`. Without the margin, what a lossy encoder does to a flat ground would decide
    (source: N. Krawetz, "Kind of Like That", 2013, which has none).

    >>> dark_to_light = np.tile(np.arange(18, dtype=np.uint8) * 9, (1, 1, 16, 1))
    >>> [f"{bits:x}" for bits in likeness(np.concatenate([dark_to_light, dark_to_light[..., ::-1]]))]
    ['ffffffffffffffff', '0']
    """
    count, channels, height, width = images.shape
    rows, columns = _parts(height, 8), _parts(width, 9)
    # sums of whole numbers in float32 are exact at the sizes that models take, so that what is flat is flat
    sums = rows @ images.sum(1, dtype=np.float32) @ columns.T
    means = sums / (channels * np.outer(rows.sum(1), columns.sum(1)))
    bits = means[:, :, 1:] > means[:, :, :-1] + MARGIN
    return np.packbits(bits.reshape(count, 64), axis=1).view(">u8").astype(np.uint64).ravel()


def _parts(side: int, count: int) -> np.ndarray:
    """(count, side) float32: which pixels of a side belong to each of ``count`` parts; a short side repeats its own."""
    edges = np.arange(count + 1) * side // count
    places = np.arange(side)
    ends = np.maximum(edges[1:], edges[:-1] + 1)
    return ((places >= edges[:-1, None]) & (places < ends[:, None])).astype(np.float32)


_checked: dict[Path, tuple[int, ...]] = {}
"""Stamps of the files whose pixels this process has made, or compared with their digests."""


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
) -> Decoded:
    """The first ``count`` images under ``view``, of ``channels`` channels, memory-mapped from a file in ``folder``.

    The file is made once, under a lock, by whichever process comes first, with a thread on every core, while others
    wait; who finds it made waits for nobody. One that is damaged is made again. ``variant`` tells apart what ``read``
    gives for the same manifest, such as a stored degradation. ``order`` (N,) are the positions of the manifest in the
    order in which they are best read, by default its own. ``progress`` is told how many images are done, and of how
    many, after every block.

    The file holds the digests and the likeness of its images (:mod:`mae_bench.cached`), then their pixels.

    Raises:
        ImageError: an image cannot be read, of several the first in that order; or ``folder`` cannot be written to.
    """
    shape = (count, channels, view.height, view.width)
    identity = f"{manifest.hash} {count} {view} {channels} {variant} {_decoders()}"
    path = folder.absolute() / f"{cached.key(identity)}.images"
    table = _whole(path, identity, shape)
    if table is None:
        with locked(path):
            table = _whole(path, identity, shape)  # whoever held the lock may have made it
            if table is None:
                positions = np.arange(count) if order is None else order[order < count]
                table = _decode(path, identity, shape, positions, view.transform(), read, progress)
                _checked[path] = _stamp(path)
    pixels = np.memmap(path, dtype=np.uint8, mode="r", offset=cached.OVERHEAD + len(table), shape=shape)
    return Decoded(np.asarray(pixels), *_columns(table, count))


def _whole(path: Path, identity: str, shape: tuple[int, ...]) -> bytes | None:
    """The table of a file whose pixels are all there; None where there is none."""
    table = cached.kept(path, identity, beyond=math.prod(shape))
    return table if table is not None and _is_intact(path, shape, table) else None


def _columns(table: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Digests and likeness of ``count`` images."""
    return np.frombuffer(table, np.uint8, 16 * count).reshape(count, 16), np.frombuffer(table, "<u8", -1, 16 * count)


def _decode(
    path: Path,
    identity: str,
    shape: tuple[int, ...],
    positions: np.ndarray,
    transform: Callable[[Image.Image], np.ndarray],
    read: Callable[[int], Image.Image],
    progress: Callable[[int, int], None] | None,
) -> bytes:
    """Write the file of images, and give the table that it begins with."""
    images = np.empty((min(BLOCK, len(positions)), *shape[1:]), dtype=np.uint8)
    own, alike = np.empty((shape[0], 16), dtype=np.uint8), np.empty(shape[0], dtype="<u8")
    size = math.prod(shape[1:])

    def decode_into(place: int, position: int) -> None:
        images[place] = transform(read(position))

    def describe(places: np.ndarray, block: np.ndarray) -> None:
        part = images[places[0] : places[-1] + 1]
        own[block], alike[block] = digests(part), likeness(part)

    # where threads find out about further formats one after the other, one of them may miss what another has found
    Image.init()
    with written_whole(path) as file, ThreadPoolExecutor(cores()) as pool:
        offset = cached.OVERHEAD + own.nbytes + alike.nbytes
        for start in range(0, len(positions), BLOCK):
            block = positions[start : start + BLOCK]
            for _ in pool.map(decode_into, range(len(block)), block.tolist()):
                pass
            pieces = min(len(block), max(cores(), len(block) * size // PIECE))
            parts = np.array_split(np.arange(len(block)), pieces)
            for _ in pool.map(describe, parts, np.array_split(block, pieces)):
                pass
            # a memory map of a file that the disk has no room for would end the process, a write ends in an error
            for run in np.split(np.arange(len(block)), np.flatnonzero(np.diff(block) != 1) + 1):
                file.seek(offset + int(block[run[0]]) * size)
                file.write(images[run[0] : run[-1] + 1].data)
            if progress is not None:
                progress(start + len(block), len(positions))
        table = own.tobytes() + alike.tobytes()
        file.seek(0)
        file.write(cached.stamped(table, identity))
    return table


def _is_intact(path: Path, shape: tuple[int, ...], table: bytes) -> bool:
    """Whether the pixels in a file are those of its table, found out once as long as the file's stamp stays the same.

    It is read, not mapped, so that a bad sector is an error and no signal, and pages of it do not pile up.
    """
    # hashing took about 2 s of processor time per GB where it was measured (AMD EPYC), which threads share: hashlib
    # lets go of the interpreter from 2 KB on
    stamp = _stamp(path)
    if _checked.get(path) == stamp:
        return True
    known, _ = _columns(table, shape[0])
    size = math.prod(shape[1:])
    several = max(1, PIECE // size)

    def intact(start: int) -> bool:
        with path.open("rb") as file:
            file.seek(cached.OVERHEAD + len(table) + start * size)
            content = file.read(min(several, shape[0] - start) * size)
        pixels = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
        return np.array_equal(digests(pixels), known[start : start + several])

    try:
        with ThreadPoolExecutor(cores()) as pool:
            whole = all(pool.map(intact, range(0, shape[0], several)))
    except (OSError, ValueError):  # unreadable, or cut while it was read
        return False
    if whole:
        _checked[path] = stamp
    return whole


def _stamp(path: Path) -> tuple[int, ...]:
    """What becomes another when a file does."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _decoders() -> str:
    """Versions of what makes pixels of files."""
    return " ".join(f"{name} {version_of(name)}" for name in ("pillow", "torchvision", "timm"))
