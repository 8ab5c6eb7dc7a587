"""Image files are damaged: whatever was done to one, it is refused by its path, or it is known to be another image."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faults.reliability import Injection
from mae_bench.errors import BenchError
from mae_bench.images import ImageError, content_hash, decode
from mae_bench.suites import Suite, suite_entry

Journal = Callable[[Injection], None]
Damage = Callable[[bytes, np.random.Generator], bytes]

LONG_AGO = 1_500_000_000
"""Seconds: a time of change that an index of content hashes trusts."""


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_BENCH_CACHE", str(tmp_path / "cache"))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:  # noqa: A002 - Pillow's name
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Smooth, with some noise."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 236, (4, 5, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray(np.asarray(coarse) + generator.integers(0, 20, (height, width, 3), dtype=np.uint8))


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


# --------------------------------------------------------------------------- what is done to files


def cut(content: bytes, generator: np.random.Generator) -> bytes:
    return content[: int(generator.integers(0, len(content)))]


def flipped(content: bytes, generator: np.random.Generator) -> bytes:
    changed = bytearray(content)
    changed[int(generator.integers(0, len(content)))] ^= 1 << int(generator.integers(0, 8))
    return bytes(changed)


def zeroed(content: bytes, generator: np.random.Generator) -> bytes:
    """A block of up to 512 bytes, in which not all were zero."""
    while True:
        start, length = int(generator.integers(0, len(content))), int(generator.integers(1, 513))
        if any(content[start : start + length]):
            changed = bytearray(content)
            changed[start : start + length] = bytes(len(content[start : start + length]))
            return bytes(changed)


DAMAGES: dict[str, Damage] = {"cut short": cut, "with a bit flipped": flipped, "with a block of zeros": zeroed}


# --------------------------------------------------------------------------- a folder per class


@dataclass(frozen=True)
class Known:
    """A suite as it was before any damage: its manifest, and the pixels of each image by its id."""

    manifest: str
    pixels: dict[str, bytes]

    @classmethod
    def of(cls, suite: Suite) -> Known:
        ids = suite.manifest.ids
        return cls(suite.manifest_hash, {known: suite.read(i).tobytes() for i, known in enumerate(ids)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of an image in each of four formats."""
    for seed, name in enumerate(("cat", "dog")):
        for number, suffix in enumerate(("jpg", "png", "webp", "bmp")):
            format_name = {"jpg": "JPEG"}.get(suffix, suffix.upper())
            put(tmp_path / f"data/{name}/{number}.{suffix}", encoded(picture(10 * seed + number), format_name))
    return tmp_path / "data"


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("count", [8, pytest.param(300, marks=pytest.mark.faults)])
def test_a_damaged_file_is_refused_or_another_image(count: int, how: str, folder: Path, journal: Journal) -> None:
    entry = suite_entry("imagefolder")
    before = Known.of(entry.load(folder))
    files = sorted(folder.glob("*/*"))
    seen: Counter[str] = Counter()
    lost = silent = 0
    for number in range(count):
        file = files[number % len(files)]
        content = file.read_bytes()
        damaged = DAMAGES[how](content, np.random.default_rng(number))
        put(file, damaged)  # the time of change tells nothing
        suite = entry.load(folder)
        own = f"{content_hash(damaged)}-0"
        if suite.manifest_hash == before.manifest or own in before.pixels or own not in suite.manifest.ids:
            silent += 1
        lost += set(suite.manifest.ids) - {own} != set(before.pixels) - {f"{content_hash(content)}-0"}
        try:
            image = suite.read(suite.manifest.ids.index(own))
            seen["an image"] += image.mode == "RGB"
        except ImageError as error:
            seen["refused"] += str(file) in str(error)
        put(file, content)
    assert entry.load(folder).manifest_hash == before.manifest
    assert sum(seen.values()) == count
    journal(
        Injection(
            failure="images",
            what=f"JPEG, PNG, WebP or BMP file of a class folder {how}",
            count=count,
            behaviour=f"{seen['refused']} are refused by their path as they are decoded; {seen['an image']} still are "
            "images, by another content hash, so that manifest and id are others and no row or baseline takes them for "
            "what they were.",
            lost=lost,
            silent=silent,
        )
    )


# --------------------------------------------------------------------------- published sets


@dataclass(frozen=True)
class Published:
    """A set that was published corrupted, and what its rows say of where its pixels are from."""

    name: str
    data: Path
    severities: tuple[int, ...]

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.data.rglob("*") if path.is_file())

    def identity(self, suite: Suite) -> tuple[str, ...]:
        assert suite.stored is not None
        return suite.manifest_hash, *(suite.stored("fog", severity).fingerprint for severity in self.severities)

    def pixels(self, suite: Suite) -> list[bytes]:
        """Of all images, clean and corrupted, in the order of their ids."""
        assert suite.stored is not None
        reads = [suite.read, *(suite.stored("fog", severity).read for severity in self.severities)]
        places = np.argsort(suite.manifest.ids)
        return [read(int(place)).tobytes() for read in reads for place in places]


def imagenet_c(data: Path) -> Published:
    for number, synset in enumerate(("n01440764", "n02099601") * 2):
        name = f"{synset}/ILSVRC2012_val_{number + 1:08}.JPEG"
        put(data / "clean" / name, encoded(picture(number), "JPEG"))
        for severity in (1, 5):
            put(data / f"fog/{severity}" / name, encoded(picture(10 * severity + number, 224, 224), "JPEG"))
    return Published("imagenet_c", data, (1, 5))


def cifar10_c(data: Path) -> Published:
    generator = np.random.default_rng(0)
    labels = np.arange(20, dtype=np.uint8) % 10
    records = np.concatenate([labels[:, None], generator.integers(0, 256, (20, 3072), dtype=np.uint8)], axis=1)
    put(data / "cifar-10-batches-bin" / "test_batch.bin", records.tobytes())
    for name, values in (("labels", np.tile(labels, 5)), ("fog", generator.integers(0, 256, (100, 32, 32, 3)))):
        buffer = io.BytesIO()
        np.save(buffer, values.astype(np.uint8))
        put(data / f"{name}.npy", buffer.getvalue())
    return Published("cifar10_c", data, (1, 2, 3, 4, 5))


@pytest.mark.parametrize("make", [imagenet_c, cifar10_c])
@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.faults)])
def test_a_damaged_file_of_a_published_set_is_refused_or_told_in_the_row(
    count: int, make: Callable[[Path], Published], tmp_path: Path, journal: Journal
) -> None:
    published = make(tmp_path / "data")
    entry = suite_entry(published.name)

    def observed() -> tuple[tuple[str, ...], list[bytes]] | str:
        """Identity and pixels, or why there are none."""
        try:
            suite = entry.load(published.data)
            return published.identity(suite), published.pixels(suite)
        except BenchError as error:
            return str(error)

    before = observed()
    assert not isinstance(before, str)
    seen: Counter[str] = Counter()
    for number in range(count):
        file = published.files[number % len(published.files)]
        content = file.read_bytes()
        generator = np.random.default_rng(number)
        damage = tuple(DAMAGES.values())[int(generator.integers(0, 3))]
        put(file, damage(content, generator))
        if generator.random() < 0.5:  # a disk that fails leaves the time of change, by which an index goes, as it was
            os.utime(file, (LONG_AGO + 1 + number, LONG_AGO + 1 + number))
        after = observed()
        if isinstance(after, str):
            seen["refused"] += str(published.data) in after
        elif after[0] != before[0]:
            seen["told"] += 1
        else:
            seen["silent" if after[1] != before[1] else "harmless"] += 1
        put(file, content)
    assert observed() == before
    assert sum(seen.values()) == count
    journal(
        Injection(
            failure="images",
            what=f"file of {published.name} damaged, half of them without another time of change",
            count=count,
            behaviour=f"{seen['refused']} are refused by name; {seen['told']} change the manifest, or the fingerprint "
            f"in the row's unit, which covers all bytes of the copies; {seen['harmless']} change no pixel.",
            silent=seen["silent"],
        )
    )


@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.faults)])
def test_a_file_that_changes_after_it_was_hashed_is_refused(
    count: int, folder: Path, tmp_path: Path, journal: Journal
) -> None:
    """Between a suite's content hashes and its pixels, which the first cell asks for."""
    stored = imagenet_c(tmp_path / "stored").data
    silent = 0
    for number in range(count):
        name, data, pattern = (
            ("imagefolder", folder, "*/*"),
            ("imagenet", stored / "clean", "*/*"),
            ("imagenet_c", stored, "fog/1/*/*"),
        )[number % 3]
        suite = suite_entry(name).load(data)
        read = suite.stored("fog", 1).read if suite.stored is not None else suite.read
        files = sorted(data.glob(pattern))
        file = files[number // 3 % len(files)]
        content = file.read_bytes()
        generator = np.random.default_rng(number)
        put(file, tuple(DAMAGES.values())[(number // 3 + 1) % 3](content, generator))
        refused = []
        for position in range(len(suite.manifest.ids)):
            try:
                read(position)
            except ImageError as error:
                refused.append(str(error))
        put(file, content)
        silent += not (len(refused) == 1 and str(file) in refused[0])
    journal(
        Injection(
            failure="images",
            what="file of imagefolder, imagenet or imagenet_c changed after it was hashed and before it was decoded",
            count=count,
            behaviour="The cell ends in an error that names the file: bytes are hashed again as they are decoded.",
            silent=silent,
        )
    )


# --------------------------------------------------------------------------- odd files


def declared(width: int, height: int, rows: int) -> bytes:
    """A PNG of black and white pixels that declares a size, with so many rows of zeros in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    packed = b"".join([*(packer.compress(row) for _ in range(rows)), packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(1), "JPEG", exif=exif.tobytes())


def palette_with_transparency() -> bytes:
    image = picture(2).quantize(16)
    return encoded(image, "PNG", transparency=3)


def animated(format: str) -> bytes:  # noqa: A002 - Pillow's name
    frames = [picture(seed) for seed in (3, 4, 5)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)


def sixteen_bits() -> bytes:
    return encoded(Image.fromarray((np.arange(1200, dtype=np.uint16) * 54).reshape(30, 40)), "PNG")


def inks() -> Image.Image:
    return Image.fromarray(np.random.default_rng(6).integers(0, 256, (30, 40, 4), dtype=np.uint8), "CMYK")


ODD: dict[str, tuple[Callable[[], bytes], str | Callable[[], Image.Image]]] = {
    "an empty file": (lambda: b"", "the file is empty"),
    "a web page that is called .png": (lambda: b"<html>404</html>", "not an image"),
    "an archive that is called .png": (lambda: b"PK\x03\x04" + bytes(200), "not an image"),
    "16 bits per channel": (sixteen_bits, "more than 8 bits per channel"),
    "a PNG that declares 60,000 x 60,000 pixels": (lambda: declared(60_000, 60_000, 1), "decompression bomb"),
    "a whole PNG of 20,000 x 20,000 pixels in 50 kB": (lambda: declared(20_000, 20_000, 20_000), "decompression bomb"),
    "a JPEG of CMYK": (lambda: encoded(inks(), "JPEG"), lambda: reopened(encoded(inks(), "JPEG"))),
    "a JPEG that its EXIF turns": (turned, lambda: reopened(encoded(picture(1), "JPEG"))),
    "a palette with a transparent colour": (palette_with_transparency, lambda: picture(2).quantize(16)),
    "an animated WebP": (lambda: animated("WEBP"), lambda: picture(3)),
    "an animated PNG": (lambda: animated("PNG"), lambda: picture(3)),
    "a PNG that is called .jpg": (lambda: encoded(picture(7), "PNG"), lambda: picture(7)),
}
"""What is in a file, and why it is refused, or the image that it is."""


def reopened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_odd_files_are_refused_or_what_is_documented(folder: Path, journal: Journal) -> None:
    """EXIF orientation and transparency are ignored, and of an animation the first picture is taken."""
    silent = 0
    refused = []
    for what, (make, expected) in ODD.items():
        file = folder / "cat" / ("odd.jpg" if "jpg" in what or "JPEG" in what else "odd.png")
        content = put(file, make()).read_bytes()
        assert len(content) < 100_000
        suite = suite_entry("imagefolder").load(folder)
        place = suite.manifest.ids.index(f"{content_hash(content)}-0")
        try:
            image = suite.read(place)
            right = not isinstance(expected, str) and image.tobytes() == expected().convert("RGB").tobytes()
        except ImageError as error:
            right = isinstance(expected, str) and expected in str(error) and str(file) in str(error)
            refused.append(what)
        assert right, what
        silent += not right
        file.unlink()
    assert decode(folder / "cat" / "0.jpg").mode == "RGB"
    journal(
        Injection(
            failure="images",
            what="odd files: " + ", ".join(ODD),
            count=len(ODD),
            behaviour=f"{len(refused)} are refused by their path with the reason; the others are 8-bit RGB, turned by "
            "no EXIF, without transparency, and of an animation the first picture.",
            silent=silent,
        )
    )
