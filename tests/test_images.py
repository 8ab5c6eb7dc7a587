import errno
import gzip
import hashlib
import math
import os
import stat
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mae_bench import cached
from mae_bench import images as module
from mae_bench.images import (
    BLOCK,
    PROBE_BLOCKS,
    Decoded,
    ImageError,
    Manifest,
    View,
    cache_folder,
    content_hash,
    cores,
    decode,
    decoded,
    likeness,
    read_idx,
    stratified,
)

# tmp_path is shared by the examples of one law on purpose: each overwrites the same file
LAW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:  # noqa: A002 - Pillow's name
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def written(folder: Path, content: bytes, name: str = "image.bin") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


RGB = Image.fromarray(noise(9, 7))
FILES = {
    "bmp": encoded(RGB, "BMP"),
    "jpeg": encoded(RGB, "JPEG"),
    "jpeg_progressive": encoded(RGB, "JPEG", progressive=True),
    "png": encoded(RGB, "PNG"),
    "ppm": encoded(RGB, "PPM"),
    "tiff": encoded(RGB, "TIFF"),
    "webp": encoded(RGB, "WEBP", lossless=True),
}


def decoded_or_refusal(path: Path) -> Image.Image | str:
    """The image in ``path``, or the message of the only kind of error that is meant for people."""
    try:
        return decode(path)
    except ImageError as error:
        return str(error)


# ---- decoding: what is refused


def refusal(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        decode(path)
    message = str(caught.value)
    assert str(path) in message
    assert "restore the file or take it out of the directory" in message
    return message


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.png")


def test_empty_file_is_refused(tmp_path: Path) -> None:
    assert "the file is empty" in refusal(written(tmp_path, b""))


def test_directory_is_refused(tmp_path: Path) -> None:
    assert "cannot be decoded" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", [b"label,file\n3,a.png\n", b"<html>404</html>", b"\0" * 500], ids=["csv", "html", "0"]
)
def test_file_that_is_no_image_is_refused(content: bytes, tmp_path: Path) -> None:
    assert "not an image" in refusal(written(tmp_path, content, "picture.png"))


@pytest.mark.parametrize(
    "content",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", encoded(RGB, "PCX")],
    ids=["eps", "pcx"],
)
def test_format_that_no_suite_has_is_refused_whatever_its_file_is_named(content: bytes, tmp_path: Path) -> None:
    """Pillow would have another program draw PostScript."""
    Image.init()
    assert "not an image (BMP, GIF, JPEG" in refusal(written(tmp_path, content, "picture.jpg"))


@pytest.mark.parametrize("name", FILES)
def test_truncated_image_is_refused_or_whole(name: str, tmp_path: Path) -> None:
    """Never half an image: a decoder that pads what is missing with grey would be silent."""
    content = FILES[name]
    path = written(tmp_path, content)
    whole = np.asarray(decode(path))
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata; that is its own business
        for length in range(1, len(content), 3):
            path.write_bytes(content[:length])
            outcome = decoded_or_refusal(path)
            if isinstance(outcome, str):
                assert str(path) in outcome
                refused += 1
            else:
                assert np.array_equal(np.asarray(outcome), whole), length
    # only what follows the pixels (an end marker, metadata) may be missing
    assert refused > 0.7 * len(range(1, len(content), 3))


@pytest.mark.parametrize("name", ["jpeg", "png"])
def test_image_cut_in_its_pixels_is_refused_as_undecodable(name: str, tmp_path: Path) -> None:
    content = FILES[name]
    # PNG ends with 20 bytes of checksums and end marker, JPEG with 2
    assert "cannot be decoded" in refusal(written(tmp_path, content[: len(content) - 40]))


@pytest.mark.parametrize("factor", [1, 3], ids=["warned about", "beyond twice"])
def test_decompression_bomb_is_refused(factor: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow only warns up to twice its limit
    path = written(tmp_path, FILES["png"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", (9 * 7 - 1) // factor)
    assert "decompression bomb" in refusal(path)


@pytest.mark.parametrize("action", ["ignore", "default", "error"])
def test_decompression_bomb_is_refused_whatever_becomes_of_warnings(
    action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, FILES["png"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9 * 7 - 1)
    with warnings.catch_warnings(record=action == "default"):
        warnings.simplefilter(action)
        assert "decompression bomb" in refusal(path)


def test_decoding_leaves_filters_of_warnings_to_other_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the whole process, and threads that set them aside lose them to one another."""
    path, before, during = written(tmp_path, FILES["png"]), warnings.filters, []
    plain = Image.open

    def spy(*arguments: object, **options: object) -> Image.Image:
        during.append(warnings.filters)
        return plain(*arguments, **options)

    monkeypatch.setattr(Image, "open", spy)
    decode(path)
    assert during[0] is before


def test_any_size_is_decoded_where_there_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(written(tmp_path, FILES["png"])).size == (7, 9)


@pytest.mark.parametrize("name", FILES)
def test_bytes_are_decoded_as_the_file_that_they_come_from(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, FILES[name])
    assert np.array_equal(np.asarray(decode(FILES[name], "shard")), np.asarray(decode(path)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "the file is empty"),
        (b"text", "not an image"),
        (FILES["png"][:-40], "cannot be decoded"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG"), "more than 8 bits per channel"),
    ],
)
def test_bytes_are_refused_with_where_they_come_from(content: bytes, complaint: str) -> None:
    with pytest.raises(ImageError, match=f"7 of shard.tar: {complaint}"):
        decode(content, "7 of shard.tar")


def test_image_at_the_limit_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9 * 7)
    assert decode(written(tmp_path, FILES["png"])).size == (7, 9)


@pytest.mark.parametrize("name", FILES)
@LAW
@given(data=st.data())
def test_damaged_file_is_refused_or_an_image(name: str, data: st.DataObject, tmp_path: Path) -> None:
    """Whatever the damage, no other exception than ImageError and no other mode than RGB."""
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path, bytes(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = decoded_or_refusal(path)
    assert str(path) in outcome if isinstance(outcome, str) else outcome.mode == "RGB"


def test_tiff_directory_of_wrong_types_is_refused_or_an_image(tmp_path: Path) -> None:
    """A width that claims to be a fraction, a strip offset that claims to be text, and so on."""
    content = FILES["tiff"]
    assert content[:2] == b"II"
    (directory,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, directory)
    escaped = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for entry in range(entries):
            for kind in range(1, 13):
                place = directory + 2 + 12 * entry
                changed = bytearray(content)
                struct.pack_into("<H", changed, place + 2, kind)
                try:
                    decoded_or_refusal(written(tmp_path, bytes(changed)))
                except Exception as error:
                    escaped.append((struct.unpack_from("<H", content, place)[0], kind, repr(error)))
    assert escaped == []


# ---- decoding: what becomes of pixels


def pixels_of(image: Image.Image, folder: Path, format: str = "PNG") -> np.ndarray:  # noqa: A002 - Pillow's name
    result = decode(written(folder, encoded(image, format)))
    assert result.mode == "RGB"
    return np.asarray(result)


def test_rgb_is_kept(tmp_path: Path) -> None:
    assert np.array_equal(pixels_of(RGB, tmp_path), np.asarray(RGB))


def test_greyscale_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = noise(5, 6, 1)
    assert np.array_equal(pixels_of(Image.fromarray(grey), tmp_path), np.stack([grey] * 3, axis=-1))


def test_black_and_white_becomes_rgb(tmp_path: Path) -> None:
    bits = noise(5, 6, 1) > 127
    expected = np.stack([bits * np.uint8(255)] * 3, axis=-1)
    assert np.array_equal(pixels_of(Image.fromarray(bits), tmp_path), expected)


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    index, palette = noise(5, 6, 1) % 16, noise(16, 3, 1, seed=1)
    image = Image.fromarray(index).convert("P")
    image.putdata(index.ravel().tolist())
    image.putpalette(palette.ravel().tolist())
    assert np.array_equal(pixels_of(image, tmp_path), palette[index])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped(mode: str, tmp_path: Path) -> None:
    layers = noise(5, 6, len(mode))
    colour = layers[..., :-1] if mode == "RGBA" else layers[..., [0, 0, 0]]
    assert np.array_equal(pixels_of(Image.fromarray(layers, mode), tmp_path), colour)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    inks = noise(5, 6, 4)
    light = 255.0 - inks
    # what each ink lets through, times what black lets through; one grey value for rounding
    expected = light[..., :3] * light[..., 3:] / 255
    found = pixels_of(Image.fromarray(inks, "CMYK"), tmp_path, "TIFF")
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize(
    ("image", "format"),
    [
        (Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)), "PNG"),
        (Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)), "TIFF"),
        (Image.fromarray((np.arange(256, dtype=np.int32) * 257).reshape(16, 16)), "TIFF"),
        (Image.fromarray((np.arange(256, dtype=np.float32) / 255).reshape(16, 16)), "TIFF"),
    ],
    ids=["16 bits PNG", "16 bits TIFF", "32 bits TIFF", "floating point TIFF"],
)
def test_deep_greyscale_is_scaled_or_refused_but_never_clipped(image: Image.Image, format: str, tmp_path: Path) -> None:  # noqa: A002
    """A ramp from black to white: clipped to 8 bits it would be all white (or all black) and still be an image."""
    path = written(tmp_path, encoded(image, format))
    outcome = decoded_or_refusal(path)
    if isinstance(outcome, str):
        assert str(path) in outcome
    else:
        worst = int(np.abs(np.asarray(outcome, dtype=int) - np.arange(256).reshape(16, 16, 1)).max())
        assert worst <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = decode(written(tmp_path, encoded(RGB, "JPEG", exif=exif.tobytes()), "turned.jpg"))
    plain = decode(written(tmp_path, FILES["jpeg"], "plain.jpg"))
    assert np.array_equal(np.asarray(turned), np.asarray(plain))


# ---- idx files


def idx(shape: tuple[int, ...], body: bytes, magic: bytes = b"\0\0\x08") -> bytes:
    return magic + bytes([len(shape)]) + b"".join(struct.pack(">I", side) for side in shape) + body


@LAW
@given(st.lists(st.integers(0, 5), max_size=4), st.integers(0, 2**32 - 1))
def test_idx_survives_being_written_and_read(tmp_path: Path, shape: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    found = read_idx(written(tmp_path, gzip.compress(idx(tuple(shape), values.tobytes()))))
    assert found.shape == values.shape
    assert np.array_equal(found, values)


def read_or_refusal(path: Path) -> np.ndarray | str:
    try:
        return read_idx(path)
    except ImageError as error:
        return str(error)


def assert_read_or_refused(path: Path) -> None:
    outcome = read_or_refusal(path)
    if isinstance(outcome, str):
        assert str(path) in outcome
        assert "copy it again" in outcome
    else:
        assert outcome.dtype == np.uint8


# sides whose product overflows 64 bits, and more dimensions than an array can have, are what a reader forgets
sides = st.sampled_from([0, 1, 2, 3, 255, 256, 2**16, 2**31, 2**32 - 1])
headers = st.one_of(
    st.lists(sides, max_size=6),
    st.integers(0, 255).map(lambda count: [1] * count),
    st.integers(2, 6).map(lambda count: [2**16] * count),
)


@LAW
@given(headers, st.binary(max_size=8), st.sampled_from([b"\0\0\x08", b"\0\0\x08", b"\0\0\x0d", b"\1\0\x08"]))
def test_any_idx_header_is_read_or_refused(tmp_path: Path, shape: list[int], body: bytes, magic: bytes) -> None:
    assert_read_or_refused(written(tmp_path, gzip.compress(idx(tuple(shape), body, magic))))


@LAW
@given(st.binary(max_size=60))
def test_any_unpacked_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    assert_read_or_refused(written(tmp_path, gzip.compress(content)))


@LAW
@given(st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(lambda tail: b"\x1f\x8b\x08" + tail)))
def test_any_packed_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    assert_read_or_refused(written(tmp_path, content))


@LAW
@given(st.data())
def test_damaged_idx_is_refused_or_unharmed(tmp_path: Path, data: st.DataObject) -> None:
    values = noise(6, 6, 1)
    content = bytearray(gzip.compress(idx((6, 6), values.tobytes()), mtime=0))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = written(tmp_path, bytes(content))
    outcome = read_or_refusal(path)
    # unharmed where the damage hit a field that holds no data, such as a time
    assert str(path) in outcome if isinstance(outcome, str) else np.array_equal(outcome, values)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (gzip.compress(idx((2, 3), b"12345")), r"declares shape \(2, 3\) but holds 5 bytes"),
        (gzip.compress(idx((2, 3), b"1234567")), r"declares shape \(2, 3\) but holds more"),
        (gzip.compress(idx((2, 3), b"123456") + bytes(99999)), r"declares shape \(2, 3\) but holds more"),
        (gzip.compress(idx((2**15, 2**15 + 1), b"123456")), "1073774592 bytes of at most 1073741824"),
        (gzip.compress(idx((2, 3), b"123456")) + b"garbage", "not a readable gzip file"),
        (gzip.compress(idx((2, 3), b"123456", magic=b"\0\0\x0c")), "not an idx file of unsigned bytes"),
        (gzip.compress(b"\0\0\x08\x03" + b"\0" * 11), "the idx header is cut off"),
        (gzip.compress(b""), "not an idx file of unsigned bytes"),
        (gzip.compress(idx((2, 3), b"123456"))[:-9], "not a readable gzip file"),
        (idx((2, 3), b"123456"), "not a readable gzip file"),
    ],
    ids=[
        "too short",
        "too long",
        "far too long",
        "too large",
        "more behind it",
        "wrong type",
        "cut header",
        "empty",
        "cut gzip",
        "not packed",
    ],
)
def test_idx_is_refused_with_its_fault(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ImageError, match=complaint + ".*; copy it again") as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_idx_in_several_members_is_read(tmp_path: Path) -> None:
    """What gzip packs piece by piece is one file."""
    packed = gzip.compress(idx((2, 3), b"123")) + gzip.compress(b"456")
    assert read_idx(written(tmp_path, packed)).tobytes() == b"123456"


@pytest.mark.parametrize("shape", [(2, 3), (2**15, 2**15)], ids=["of more than it declares", "of less"])
def test_idx_that_unpacks_to_much_more_takes_no_memory(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = written(tmp_path, gzip.compress(idx(shape, bytes(1 << 24 if shape == (2, 3) else 100)), 1))
    tracemalloc.start()
    refused = read_or_refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "but holds" in refused
    assert peak < 2 * module.PIECE


def test_idx_is_read_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        read_idx(written(tmp_path, gzip.compress(idx((6,), b"123456"))))[0] = 1


def test_missing_idx_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.gz: .*No such file"):
        read_idx(tmp_path / "absent.gz")


# ---- the order of a suite


@LAW
@given(st.binary(max_size=20))
def test_content_hash_is_128_bits_of_sha256(content: bytes) -> None:
    assert bytes.fromhex(content_hash(content)) == hashlib.sha256(content).digest()[:16]


CLASSES = ("a", "b", "c", "d")
# a small alphabet of contents, so that duplicates within and across classes are common
images = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=60)


def names(contents: list[int]) -> list[str]:
    return [content_hash(bytes([content])) for content in contents]


@LAW
@given(images, st.data())
def test_manifest_does_not_depend_on_the_order_of_its_images(
    entries: list[tuple[int, int]], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(entries))
    (_, one), (_, other) = (
        stratified(names([content for content, _ in given_]), [label for _, label in given_], CLASSES)
        for given_ in (entries, shuffled)
    )
    assert one.ids == other.ids
    assert one.labels.tolist() == other.labels.tolist()
    assert one.hash == other.hash


@LAW
@given(images)
def test_manifest_lists_every_image_once_with_its_label(entries: list[tuple[int, int]]) -> None:
    hashes, labels = names([content for content, _ in entries]), [label for _, label in entries]
    order, manifest = stratified(hashes, labels, CLASSES)
    assert sorted(order.tolist()) == list(range(len(entries)))
    assert [i.rsplit("-", 1)[0] for i in manifest.ids] == [hashes[position] for position in order]
    assert manifest.labels.tolist() == [labels[position] for position in order]
    assert manifest.classes == CLASSES


@LAW
@given(images)
def test_duplicates_are_numbered_and_ids_are_unique(entries: list[tuple[int, int]]) -> None:
    hashes = names([content for content, _ in entries])
    _, manifest = stratified(hashes, [label for _, label in entries], CLASSES)
    assert len(set(manifest.ids)) == len(entries)
    for content, count in Counter(hashes).items():
        numbers = sorted(int(i.rsplit("-", 1)[1]) for i in manifest.ids if i.startswith(content))
        assert numbers == list(range(count))


@LAW
@given(st.integers(1, 7), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_every_prefix_is_balanced_where_classes_are_equal(classes: int, each: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), each))
    hashes = [content_hash(f"{seed} {i}".encode()) for i in range(len(labels))]
    _, manifest = stratified(hashes, labels.tolist(), [str(c) for c in range(classes)])
    for length in range(len(labels) + 1):
        counts = np.bincount(manifest.labels[:length], minlength=classes)
        assert counts.max() - counts.min() <= 1


@LAW
@given(images)
def test_every_prefix_is_proportional_where_they_are_not(entries: list[tuple[int, int]]) -> None:
    _, manifest = stratified(names([c for c, _ in entries]), [label for _, label in entries], CLASSES)
    share = np.bincount(manifest.labels, minlength=4) / len(entries)
    for length in range(len(entries) + 1):
        counts = np.bincount(manifest.labels[:length], minlength=4)
        # each of four classes is rounded by half an image, and its share of all their rounding comes on top
        assert np.all(np.abs(counts - share * length) <= 0.5 + 4 * 0.5 * share + 1e-9)


@LAW
@given(images)
def test_images_of_a_class_are_ordered_by_content(entries: list[tuple[int, int]]) -> None:
    _, manifest = stratified(names([c for c, _ in entries]), [label for _, label in entries], CLASSES)
    for label in range(4):
        ids = [i for i, other in zip(manifest.ids, manifest.labels, strict=True) if other == label]
        assert ids == sorted(ids)


def manifest_of(count: int, classes: tuple[str, ...] = ("a", "b")) -> Manifest:
    hashes = [content_hash(f"image {i}".encode()) for i in range(count)]
    return stratified(hashes, [i % len(classes) for i in range(count)], classes)[1]


def test_manifest_hash_covers_classes_labels_ids_and_order() -> None:
    base = manifest_of(6)
    flipped = base.labels.copy()
    flipped[2] = 1 - flipped[2]
    variants = [
        base,
        Manifest(("a", "c"), base.ids, base.labels),
        Manifest(("b", "a"), base.ids, base.labels),
        Manifest(("a", "b", "c"), base.ids, base.labels),
        Manifest(base.classes, base.ids, flipped),
        Manifest(base.classes, base.ids[::-1], base.labels[::-1]),
        Manifest(base.classes, base.ids[:5], base.labels[:5]),
        Manifest(base.classes, (*base.ids[:5], base.ids[5][:-1] + "1"), base.labels),
    ]
    assert len({manifest.hash for manifest in variants}) == len(variants)
    assert Manifest(base.classes, base.ids, base.labels.copy()).hash == base.hash


@LAW
@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=10))
def test_keys_are_the_first_64_bits_of_the_content_hash(contents: list[bytes]) -> None:
    manifest = Manifest(("a",), tuple(f"{c.hex()}-0" for c in contents), np.zeros(len(contents), dtype=np.int64))
    assert manifest.keys.dtype == np.int64
    assert [int(key) % 2**64 for key in manifest.keys] == [int.from_bytes(c[:8], "big") for c in contents]


@LAW
@given(st.integers(1, 3000), st.integers(0, 4000))
def test_subset_is_whole_blocks_and_at_least_the_probe(total: int, limit: int) -> None:
    ids = tuple(str(i) for i in range(total))
    count = Manifest(("a",), ids, np.zeros(total, dtype=np.int64)).subset(limit)
    allowed = [n for n in range(total + 1) if n == total or (n % 256 == 0 and n >= 2 * 256)]
    assert (BLOCK, PROBE_BLOCKS) == (256, 2)
    assert count == (total if limit == 0 else min((n for n in allowed if n >= limit), default=total))


# ---- views and the decoded cache

VIEWS = [
    View(24, 24, "bilinear", 0.875),
    View(24, 24, "bicubic", 1.0),
    View(20, 28, "bilinear", 0.9),
    View(16, 16, "bicubic", 0.95, "squash"),
    View(16, 16, "bilinear", 0.8, "border"),
]


def wide_and_tall(channels: int = 3) -> list[Image.Image]:
    return [Image.fromarray(noise(40, 63, channels)), Image.fromarray(noise(71, 33, channels, seed=1))]


@pytest.mark.parametrize(
    ("view", "channels"),
    # a border is padded with a colour, which timm states for three channels
    [pytest.param(v, c, id=f"{v} {c}") for v in VIEWS for c in (1, 3) if (v.crop_mode, c) != ("border", 1)],
)
def test_decoded_pixels_are_timms_evaluation_transform(view: View, channels: int, tmp_path: Path) -> None:
    from timm.data import create_transform

    originals = wide_and_tall(channels)
    found = decoded(manifest_of(2), 2, view, channels, originals.__getitem__, tmp_path).pixels
    # the way a model is evaluated with timm, whose normalisation is undone below
    mean = np.array([0.485, 0.456, 0.406][:channels])
    transform = create_transform(
        (channels, view.height, view.width),
        is_training=False,
        interpolation=view.interpolation,
        mean=tuple(mean),
        std=(1.0,) * channels,
        crop_pct=view.crop_pct,
        crop_mode=view.crop_mode,
    )
    for image, pixels in zip(originals, found, strict=True):
        assert np.array_equal(np.round((transform(image).numpy() + mean[:, None, None]) * 255), pixels)


def test_decoded_pixels_are_a_resize_and_a_centre_crop(tmp_path: Path) -> None:
    """The same by hand for a square view: shorter side to floor(24 / 0.875) = 27, then the centre."""
    originals = wide_and_tall()
    found = decoded(manifest_of(2), 2, View(24, 24, "bilinear", 0.875), 3, originals.__getitem__, tmp_path).pixels
    for image, pixels in zip(originals, found, strict=True):
        shorter = min(image.size)
        width, height = (27 * side // shorter for side in image.size)
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        top, left = round((height - 24) / 2), round((width - 24) / 2)
        assert np.array_equal(pixels, resized[top : top + 24, left : left + 24].transpose(2, 0, 1))


def test_one_view_after_another_is_both_by_hand(tmp_path: Path) -> None:
    """To 27 and the centre of 24, bilinear, and then to 30, bicubic."""
    originals, before = wide_and_tall(), View(24, 24, "bilinear", 0.875)
    both = View(30, 30, "bicubic", 1.0, before=before)
    found = decoded(manifest_of(2), 2, both, 3, originals.__getitem__, tmp_path).pixels
    first = decoded(manifest_of(2), 2, before, 3, originals.__getitem__, tmp_path).pixels
    for small, pixels in zip(first, found, strict=True):
        large = Image.fromarray(small.transpose(1, 2, 0)).resize((30, 30), Image.Resampling.BICUBIC)
        assert np.array_equal(pixels, np.asarray(large).transpose(2, 0, 1))
    assert str(both) == f"{before}, then {View(30, 30, 'bicubic', 1.0)}"


class CountingReader:
    """A suite's ``read`` that remembers which positions were asked for."""

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images
        self.positions: list[int] = []

    def __call__(self, position: int) -> Image.Image:
        self.positions.append(position)
        return self.images[position]


def test_images_are_decoded_once_and_then_reused(tmp_path: Path) -> None:
    reader = CountingReader(wide_and_tall())
    first = decoded(manifest_of(2), 2, VIEWS[0], 3, reader, tmp_path / "made" / "when needed").pixels
    again = decoded(manifest_of(2), 2, VIEWS[0], 3, reader, tmp_path / "made" / "when needed").pixels
    assert sorted(reader.positions) == [0, 1]
    assert np.array_equal(first, again)


def test_only_leading_images_are_decoded(tmp_path: Path) -> None:
    reader = CountingReader(wide_and_tall())
    found = decoded(manifest_of(2), 1, VIEWS[0], 3, reader, tmp_path).pixels
    assert reader.positions == [0]
    assert np.array_equal(found[0], VIEWS[0].transform()(reader.images[0]))


DIFFERENT: dict[str, Callable[[Path, CountingReader], Decoded]] = {
    "manifest": lambda folder, read: decoded(manifest_of(2, ("a", "c")), 2, VIEWS[0], 3, read, folder),
    "count": lambda folder, read: decoded(manifest_of(2), 1, VIEWS[0], 3, read, folder),
    "size": lambda folder, read: decoded(manifest_of(2), 2, View(25, 24, "bilinear", 0.875), 3, read, folder),
    "interpolation": lambda folder, read: decoded(manifest_of(2), 2, View(24, 24, "bicubic", 0.875), 3, read, folder),
    "crop": lambda folder, read: decoded(manifest_of(2), 2, View(24, 24, "bilinear", 0.9), 3, read, folder),
    # 24 / 0.8888 = 27.003 and 24 / 0.8889 = 26.9996: resized to 27 and to 26 pixels
    "fine crop": lambda folder, read: decoded(manifest_of(2), 2, View(24, 24, "bilinear", 0.8889), 3, read, folder),
    "view before": lambda folder, read: decoded(
        manifest_of(2), 2, View(24, 24, "bilinear", 0.875, before=View(9, 9, "bilinear", 1.0)), 3, read, folder
    ),
    "variant": lambda folder, read: decoded(manifest_of(2), 2, VIEWS[0], 3, read, folder, variant="fog 1"),
    "crop mode": lambda folder, read: decoded(
        manifest_of(2), 2, View(24, 24, "bilinear", 0.875, "squash"), 3, read, folder
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_differs_is_decoded_anew(what: str, tmp_path: Path) -> None:
    reader = CountingReader(wide_and_tall())
    base = View(24, 24, "bilinear", 0.8888 if what == "fine crop" else 0.875)
    decoded(manifest_of(2), 2, base, 3, reader, tmp_path)
    before = len(reader.positions)
    cached = DIFFERENT[what](tmp_path, reader)
    assert len(reader.positions) > before
    fresh = DIFFERENT[what](tmp_path / "fresh", reader)
    assert np.array_equal(cached.pixels, fresh.pixels)


@LAW
@given(st.integers(225, 448))
def test_views_that_crop_differently_are_told_apart(side: int) -> None:
    """Views are compared by their text in a row's identity and in the cache."""
    # the image is resized to floor(224 / crop_pct): to ``side`` pixels and to one less
    larger, smaller = 224 / (side + 0.01), 224 / (side - 0.01)
    assert math.floor(224 / larger) == math.floor(224 / smaller) + 1
    assert str(View(224, 224, "bilinear", larger)) != str(View(224, 224, "bilinear", smaller))


def test_failure_while_decoding_leaves_nothing_to_be_reused(tmp_path: Path) -> None:
    originals = wide_and_tall()

    def failing(position: int) -> Image.Image:
        if position == 1:
            raise ImageError("the second image is broken")
        return Image.new("RGB", (40, 40))

    with pytest.raises(ImageError, match="the second image is broken"):
        decoded(manifest_of(2), 2, VIEWS[0], 3, failing, tmp_path)
    found = decoded(manifest_of(2), 2, VIEWS[0], 3, originals.__getitem__, tmp_path).pixels
    transform = VIEWS[0].transform()
    assert np.array_equal(found, np.stack([transform(image) for image in originals]))


def test_concurrent_readers_decode_once(tmp_path: Path) -> None:
    reader = CountingReader(wide_and_tall())
    start = threading.Barrier(4)
    results: list[np.ndarray] = []

    def work() -> None:
        start.wait()
        results.append(np.array(decoded(manifest_of(2), 2, VIEWS[0], 3, reader, tmp_path).pixels))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reader.positions) == [0, 1]
    assert len(results) == 4
    assert all(np.array_equal(result, results[0]) for result in results)


def test_who_finds_it_made_waits_for_nobody(tmp_path: Path) -> None:
    reader = CountingReader(wide_and_tall())
    first = np.array(decoded(manifest_of(2), 2, VIEWS[0], 3, reader, tmp_path).pixels)
    another_process()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with module.locked(cache_file(tmp_path)):
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    again = decoded(manifest_of(2), 2, VIEWS[0], 3, reader, tmp_path).pixels
    assert holder.is_alive()
    done.set()
    holder.join()
    assert np.array_equal(again, first)


@pytest.mark.parametrize("package", ["pillow", "torchvision", "timm"])
def test_other_decoders_decode_anew(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = CountingReader(wide_and_tall())
    decoded(manifest_of(2), 2, VIEWS[0], 3, reader, tmp_path)
    plain = module.version_of
    monkeypatch.setattr(module, "version_of", lambda name: plain(name) + ".post1" if name == package else plain(name))
    decoded(manifest_of(2), 2, VIEWS[0], 3, reader, tmp_path)
    assert sorted(reader.positions) == [0, 0, 1, 1]


MANY = BLOCK + 30
SMALL = View(6, 6, "bilinear", 0.9)


def small_images() -> list[Image.Image]:
    return [Image.fromarray(noise(8, 9, seed=seed)) for seed in range(MANY)]


@pytest.fixture(scope="module")
def one_after_the_other() -> np.ndarray:
    """What a loop makes of the small images."""
    transform = SMALL.transform()
    return np.stack([transform(image) for image in small_images()])


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads_decodes_the_same(
    threads: int, one_after_the_other: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cores", lambda: threads)
    reader = CountingReader(small_images())
    found = decoded(manifest_of(MANY), MANY, SMALL, 3, reader, tmp_path).pixels
    assert np.array_equal(found, one_after_the_other)
    assert sorted(reader.positions) == list(range(MANY))
    if threads == 1:
        assert reader.positions == list(range(MANY))


@settings(parent=LAW, max_examples=8)
@given(st.permutations(range(MANY)), st.integers(1, MANY))
def test_order_of_reading_changes_no_pixel(
    one_after_the_other: np.ndarray, tmp_path_factory: pytest.TempPathFactory, order: list[int], count: int
) -> None:
    reader, folder = CountingReader(small_images()), tmp_path_factory.mktemp("decoded")
    found = decoded(manifest_of(MANY), count, SMALL, 3, reader, folder, order=np.array(order)).pixels
    assert np.array_equal(found, one_after_the_other[:count])
    # threads may overtake one another within a block
    expected = [position for position in order if position < count]
    assert sorted(reader.positions[:BLOCK]) == sorted(expected[:BLOCK])


def test_images_are_read_in_the_order_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 1)
    reader, order = CountingReader(small_images()), np.random.default_rng(0).permutation(MANY)
    decoded(manifest_of(MANY), 50, SMALL, 3, reader, tmp_path, order=order)
    assert reader.positions == [position for position in order if position < 50]


def test_progress_is_told_after_every_block(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    images = small_images()

    def read(position: int) -> Image.Image:
        return images[position]

    decoded(manifest_of(MANY), MANY, SMALL, 3, read, tmp_path, progress=lambda *now: told.append(now))
    assert told == [(BLOCK, MANY), (MANY, MANY)]
    decoded(manifest_of(MANY), MANY, SMALL, 3, read, tmp_path, progress=lambda *now: told.append(now))
    assert len(told) == 2


def test_of_several_broken_images_the_first_is_named_though_another_fails_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cores", lambda: 3)
    images, later, positions = small_images(), threading.Event(), []

    def read(position: int) -> Image.Image:
        positions.append(position)
        if position == 3:
            assert later.wait(timeout=60)
            raise ImageError("image 3 is broken")
        if position == 5:
            later.set()
            raise ImageError("image 5 is broken")
        return images[position]

    with pytest.raises(ImageError, match="image 3 is broken"):
        decoded(manifest_of(MANY), MANY, SMALL, 3, read, tmp_path)
    assert max(positions) < BLOCK
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def another_process() -> None:
    """What this one has found out about files is forgotten."""
    module._checked.clear()


def zeroed(content: bytes, start: int, length: int) -> bytes:
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def copied(found: Decoded) -> Decoded:
    """In memory: a map of a file that is cut afterwards would end the process."""
    return Decoded(*(np.array(array) for array in (found.pixels, found.digests, found.likeness)))


def cache_file(folder: Path) -> Path:
    (path,) = folder.glob("*.images")
    return path


def assert_made_again(path: Path, whole: bytes, damaged: bytes, first: Decoded) -> None:
    """The file that was ``whole`` is of no use as ``damaged``, and then whole again."""
    reader = CountingReader(wide_and_tall())
    path.write_bytes(damaged)
    another_process()
    again = decoded(manifest_of(2), 2, VIEWS[0], 3, reader, path.parent)
    assert sorted(reader.positions) == ([] if damaged == whole else [0, 1])
    assert np.array_equal(again.pixels, first.pixels)
    assert np.array_equal(again.digests, first.digests)
    assert np.array_equal(again.likeness, first.likeness)
    assert path.read_bytes() == whole


TABLE = cached.OVERHEAD + 2 * 24
"""Where the pixels of two images begin."""
DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",  # noqa: ARG005
    "cut": lambda content: content[:-1],
    "cut in the table": lambda content: content[: TABLE - 5],
    "cut in the first bytes": lambda content: content[:11],
    "longer": lambda content: content + b"x",
    "another magic": lambda content: b"X" + content[1:],
    "another version": lambda content: content[:8] + struct.pack("<I", cached.FORMAT + 1) + content[12:],
    "another length": lambda content: content[:12] + struct.pack("<Q", 2**60) + content[20:],
    "another digest": lambda content: content[: TABLE - 48] + b"X" + content[TABLE - 47 :],
    "another likeness": lambda content: content[: TABLE - 1] + b"X" + content[TABLE:],
    "another pixel": lambda content: content[:TABLE] + bytes([content[TABLE] ^ 1]) + content[TABLE + 1 :],
    "another last pixel": lambda content: content[:-1] + bytes([content[-1] ^ 128]),
    "images changed places": lambda content: content[:TABLE] + content[TABLE + 1728 :] + content[TABLE : TABLE + 1728],
    "array file": lambda content: b"\x93NUMPY" + content[6:],
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_cache_is_made_again(what: str, tmp_path: Path) -> None:
    first = copied(decoded(manifest_of(2), 2, VIEWS[0], 3, wide_and_tall().__getitem__, tmp_path))
    path = cache_file(tmp_path)
    whole = path.read_bytes()
    damaged = DAMAGED[what](whole)
    assert damaged != whole
    assert_made_again(path, whole, damaged, first)


@settings(parent=LAW, max_examples=20)
@given(st.data())
def test_cache_that_is_damaged_anywhere_is_made_again(tmp_path: Path, data: st.DataObject) -> None:
    first = copied(decoded(manifest_of(2), 2, VIEWS[0], 3, wide_and_tall().__getitem__, tmp_path))
    path = cache_file(tmp_path)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    damages = [
        whole[:place] + bytes([whole[place] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[place + 1 :],
        whole[:place],
        zeroed(whole, place, 512),
    ]
    assert_made_again(path, whole, data.draw(st.sampled_from(damages)), first)


def test_cache_of_other_images_is_not_taken_for_these(tmp_path: Path) -> None:
    """Whatever a file is named, it says itself what it is of."""
    first = copied(decoded(manifest_of(2), 2, VIEWS[0], 3, wide_and_tall().__getitem__, tmp_path))
    path = cache_file(tmp_path)
    decoded(manifest_of(2), 2, VIEWS[0], 3, wide_and_tall()[::-1].__getitem__, tmp_path / "other", variant="swapped")
    assert_made_again(path, path.read_bytes(), cache_file(tmp_path / "other").read_bytes(), first)


def test_cache_that_cannot_be_read_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector among the pixels is an error of reading."""
    decoded(manifest_of(2), 2, VIEWS[0], 3, wide_and_tall().__getitem__, tmp_path)
    another_process()
    opened = []
    plain = Path.open

    def failing(self: Path, *arguments: object, **options: object) -> object:
        if self.suffix == ".images":
            opened.append(self)
            if len(opened) % 2 == 0:  # what the file says of itself can be read
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(self, *arguments, **options)

    reader = CountingReader(wide_and_tall())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        decoded(manifest_of(2), 2, VIEWS[0], 3, reader, tmp_path)
    assert sorted(reader.positions) == [0, 1]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images have been hashed, call by call."""
    counts: list[int] = []
    plain = module.digests

    def spy(images: np.ndarray) -> np.ndarray:
        counts.append(len(images))
        return plain(images)

    monkeypatch.setattr(module, "digests", spy)
    return counts


def test_pixels_are_compared_with_their_digests_once_in_a_process(tmp_path: Path, compared: list[int]) -> None:
    def ask() -> int:
        before = sum(compared)
        decoded(manifest_of(2), 2, VIEWS[0], 3, wide_and_tall().__getitem__, tmp_path)
        return sum(compared) - before

    assert [ask(), ask()] == [2, 0]  # when they are made
    another_process()
    assert [ask(), ask()] == [2, 0]
    os.utime(cache_file(tmp_path), ns=(1, 1))
    assert [ask(), ask()] == [2, 0]  # it may be another by now


@pytest.mark.parametrize("piece", [6 * 6 * 3 * 100, 1 << 22])
def test_every_image_of_a_cache_is_compared(
    piece: int, tmp_path: Path, compared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    images = small_images()
    first = copied(decoded(manifest_of(MANY), MANY, SMALL, 3, images.__getitem__, tmp_path))
    assert sum(compared) == MANY
    path = cache_file(tmp_path)
    whole = path.read_bytes()
    for position in (0, 99, 100, 200, MANY - 1):
        place = len(whole) - (MANY - position) * 6 * 6 * 3
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        another_process()
        again = decoded(manifest_of(MANY), MANY, SMALL, 3, images.__getitem__, tmp_path)
        assert np.array_equal(again.pixels, first.pixels), position
        assert path.read_bytes() == whole


def test_opening_takes_no_memory_for_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 1 << 16)
    view, images = View(64, 64, "bilinear", 1.0), [Image.fromarray(noise(64, 64, seed=i)) for i in range(8)]
    peaks = []
    for count in (128, 512):
        decoded(manifest_of(count), count, view, 3, lambda i: images[i % 8], tmp_path)
        another_process()
        tracemalloc.start()
        found = decoded(manifest_of(count), count, view, 3, lambda i: images[i % 8], tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < (512 - 128) * found.pixels[0].nbytes / 8


def test_digests_are_those_of_hashlib(tmp_path: Path) -> None:
    images = small_images()
    order = np.random.default_rng(0).permutation(MANY)
    found = decoded(manifest_of(MANY), MANY, SMALL, 3, images.__getitem__, tmp_path, order=order)
    for pixels, digest in zip(found.pixels, found.digests, strict=True):
        assert digest.tobytes() == hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
    assert found.digests.shape == (MANY, 16)
    assert np.array_equal(found.likeness, likeness(np.array(found.pixels)))


def test_nothing_that_is_decoded_can_be_written_to(tmp_path: Path) -> None:
    found = decoded(manifest_of(2), 2, VIEWS[0], 3, wide_and_tall().__getitem__, tmp_path)
    for array in (found.pixels, found.digests, found.likeness):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]


def test_cache_is_read_by_everybody_and_nothing_else_is_left(tmp_path: Path) -> None:
    decoded(manifest_of(2), 2, VIEWS[0], 3, wide_and_tall().__getitem__, tmp_path)
    assert stat.S_IMODE(cache_file(tmp_path).stat().st_mode) == 0o644
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".lock"] == [".images"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    decoded(manifest_of(2), 2, VIEWS[0], 3, wide_and_tall().__getitem__, tmp_path)
    path = cache_file(tmp_path)
    left, foreign = (tmp_path / f".{name}.k2_x7a1q.partial" for name in (path.name, "0123.images"))
    left.write_bytes(b"half")
    foreign.write_bytes(b"half")
    path.unlink()
    decoded(manifest_of(2), 2, VIEWS[0], 3, wide_and_tall().__getitem__, tmp_path)
    assert not left.exists()
    assert foreign.exists()


# ---- likeness


def likeness_by_hand(image: np.ndarray) -> int:
    """Part by part and bit by bit, in exact fractions; for images of at least 8 rows of 9 pixels."""
    channels, height, width = image.shape
    bits = 0
    for row in range(8):
        means = []
        for column in range(9):
            top, bottom = row * height // 8, (row + 1) * height // 8
            left, right = column * width // 9, (column + 1) * width // 9
            part = image[:, top:bottom, left:right].astype(int)
            means.append(Fraction(int(part.sum()), channels * (bottom - top) * (right - left)))
        for one, other in pairwise(means):
            bits = 2 * bits + (other > one + 2)
    return bits


@LAW
@given(st.integers(8, 40), st.integers(9, 40), st.sampled_from([1, 3]), st.integers(0, 2**32))
def test_likeness_is_the_difference_hash_by_hand(height: int, width: int, channels: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (3, channels, height, width), dtype=np.uint8)
    assert likeness(images).tolist() == [likeness_by_hand(image) for image in images]


@LAW
@given(st.integers(1, 7), st.integers(1, 8))
def test_small_images_have_a_likeness(height: int, width: int) -> None:
    ramp = np.arange(width, dtype=np.uint8) * 30
    found = likeness(np.tile(ramp, (1, 1, height, 1)))
    # a pixel that stands for several parts is as bright as itself
    assert int(np.bitwise_count(found)[0]) == 8 * (width - 1)


@LAW
@given(st.integers(0, 2**32), st.integers(-40, 40))
def test_likeness_stays_when_all_grows_brighter_or_channels_change_places(seed: int, more: int) -> None:
    image = np.random.default_rng(seed).integers(40, 216, (1, 3, 30, 30))
    found = [likeness(one.astype(np.uint8))[0] for one in (image, image + more, image[:, [2, 0, 1]])]
    assert len(set(found)) == 1


def test_what_is_nearly_flat_has_no_bits() -> None:
    """Where neighbours are equal, noise would decide."""
    assert likeness(np.full((1, 3, 24, 24), 200, np.uint8))[0] == 0
    assert likeness(np.random.default_rng(0).integers(100, 103, (9, 1, 28, 28), dtype=np.uint8)).tolist() == [0] * 9


def test_full_disk_is_named_with_the_remedy_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    reader = CountingReader(wide_and_tall())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ImageError, match=r"No space left .*MAE_BENCH_CACHE") as caught:
            decoded(manifest_of(2), 2, VIEWS[0], 3, reader, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    decoded(manifest_of(2), 2, VIEWS[0], 3, reader, tmp_path)


PROCESS = """
import resource
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mae_bench.images import Manifest, View, content_hash, decoded

folder, log, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])


class Unchanged(View):
    def transform(self):
        return lambda image: np.asarray(image).transpose(2, 0, 1)


def read(position):
    with log.open("a") as lines:
        print(position, file=lines)
    return Image.fromarray(np.full((24, 24, 3), position, dtype=np.uint8))


manifest = Manifest(("a",), tuple(f"{i:032x}-0" for i in range(9)), np.zeros(9, dtype=np.int64))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.stdin.read(1)
try:
    print(content_hash(decoded(manifest, 9, Unchanged(24, 24, "bilinear", 1.0), 3, read, folder).pixels.tobytes()))
except ValueError as error:
    print(error)
"""


def processes(folder: Path, count: int, limit: int) -> list[str]:
    """What processes print that decode the same images at once, none of whose files may grow beyond a limit."""
    command = [sys.executable, "-c", PROCESS, str(folder / "decoded"), str(folder / "log"), str(limit)]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    return [process.communicate()[0].strip() for process in running]


def test_processes_that_come_at_once_decode_once(tmp_path: Path) -> None:
    expected = content_hash(np.repeat(np.arange(9, dtype=np.uint8), 3 * 24 * 24).tobytes())
    assert processes(tmp_path, 2, 10**6) == [expected] * 2
    assert sorted((tmp_path / "log").read_text().split()) == [str(i) for i in range(9)]


def test_file_that_may_not_grow_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """A memory map would end the process with a signal."""
    (message,) = processes(tmp_path, 1, 9000)
    assert "File too large" in message
    assert str(tmp_path) in message
    assert [path.suffix for path in (tmp_path / "decoded").iterdir() if path.suffix != ".lock"] == []


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, b"")
    with pytest.raises(ImageError, match="MAE_BENCH_CACHE") as caught:
        decoded(manifest_of(2), 2, VIEWS[0], 3, wide_and_tall().__getitem__, path / "decoded")
    assert str(path) in str(caught.value)


# ---- where things are kept


def test_cache_is_where_it_is_asked_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_BENCH_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere"


@pytest.mark.parametrize("unset", [None, ""])
def test_cache_is_the_users_otherwise(unset: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs

    monkeypatch.delenv("MAE_BENCH_CACHE", raising=False)
    if unset is not None:
        monkeypatch.setenv("MAE_BENCH_CACHE", unset)
    assert cache_folder() == Path(platformdirs.user_cache_dir("mae_bench"))


def test_there_is_a_core_and_no_more_than_the_machine_has() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
