"""ImageNet's validation images in shards: Hugging Face's parquet and arrow files, and WebDataset's tars. Shards are
indexed once and never unpacked; what the index says of an image is its class, its content hash and where it lies.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import count
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, BinaryIO

from mae_bench.images import content_hash
from mae_bench.suites import SuiteError
from mae_bench.suites.index import remembered
from mae_bench.suites.records import Reader, Record
from mae_bench.suites.synsets import SYNSET, published_synsets

PARQUET_CACHE = "datasets--ILSVRC--imagenet-1k/snapshots"
WEBDATASET_CACHE = "datasets--timm--imagenet-1k-wds/snapshots"
"""Where the hub's cache has them."""
BATCH = 32
"""Images of a table that are looked at together, so that no shard is in memory as a whole."""
TAR_BLOCK = 512
"""Bytes that members of a tar are rounded up to."""
GROWTH = 16
"""How many times as large as its file a parquet shard may be unpacked; photographs hardly pack."""
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""What a stream of arrow ends with."""

Row = list[Any]
"""What an index says of an image: label, path, content hash, and two numbers that say where in the shard it lies."""


def parquet(data: Path) -> Reader | None:
    """``validation-*.parquet`` in ``data``, in its folder ``data``, or in the hub's cache below it."""
    snapshots = (data / "snapshots", data / PARQUET_CACHE, data / "hub" / PARQUET_CACHE)
    places = (data, data / "data", *(place for folder in snapshots for place in folder.glob("*/data")))
    shards = _shards(places, "validation-*.parquet")
    return partial(_records, shards, "parquet", _parquet_index, ParquetRows()) if shards else None


def arrow(data: Path) -> Reader | None:
    """``*-validation-*.arrow`` in ``data``, or where the library ``datasets`` puts them below it."""
    cached = (place for folder in (data, data / "datasets") for place in folder.glob("*imagenet-1k/*/*/*"))
    shards = _shards((data, *cached), "*-validation*.arrow")
    return partial(_records, shards, "arrow", _arrow_index, ArrowRows()) if shards else None


def webdataset(data: Path) -> Reader | None:
    """``imagenet1k-validation-*.tar`` in ``data``, or in the hub's cache below it."""
    cached = (place for folder in (data, data / "hub") for place in (folder / WEBDATASET_CACHE).glob("*"))
    shards = _shards((data, *cached), "imagenet1k-validation-*.tar")
    return partial(_records, shards, "tar", _tar_index, _tar_member) if shards else None


def _shards(places: Sequence[Path], pattern: str) -> list[Path]:
    """The shards in the one place that has some.

    Raises:
        SuiteError: several places have some, or numbers are missing among theirs.
    """
    found = {place: shards for place in places if (shards := sorted(place.glob(pattern)))}
    if len(found) > 1:
        raise SuiteError(f"{pattern} lie in {' and in '.join(sorted(map(str, found)))}: name one of them in --mae-data")
    for place, shards in found.items():
        names = " ".join(shard.name for shard in shards)
        numbers = {int(number) for number in re.findall(r"validation-(\d+)", names)}
        counts = [int(found) for found in re.findall(r"-of-(\d+)", names)]
        missing = next(number for number in count() if number not in numbers)
        if missing < max([*counts, *(number + 1 for number in numbers)], default=0):
            raise SuiteError(f"{place}: number {missing} of {pattern} is missing; get it where the others are from")
    return next(iter(found.values()), [])


def _records(
    shards: Sequence[Path], what: str, examine: Callable[[Path], list[Row]], content: Callable[[Path, int, int], bytes]
) -> list[Record]:
    """Raises:
    SuiteError: a shard is damaged, or has a label that is none.
    """
    classes = published_synsets("imagenet")
    position = {synset: i for i, synset in enumerate(classes)}
    records = []
    for shard, rows in zip(shards, remembered(what, shards[0].parent, shards, examine), strict=True):
        for label, path, known, first, second in rows:
            where = f"{shard}: {path or f'image {first} {second}'}"
            if label == -1:
                raise SuiteError(
                    f"{where} has label -1: those of test images are withheld; take the validation images instead"
                )
            if not isinstance(label, int) or not 0 <= label < len(classes):
                raise SuiteError(f"{where} has label {label}; classes are counted from 0 to {len(classes) - 1}")
            for synset in SYNSET.findall(path):
                if position.get(synset, label) != label:
                    raise SuiteError(
                        f"{where} has label {label}, which is {classes[label]} and not {synset}: labels are not "
                        "positions among the sorted synsets here; get the shards from their source"
                    )
            records.append(Record(classes[label], known, where, path, partial(content, shard, first, second)))
    return records


# ---- tables


def _table_index(parts: Iterable[tuple[int, Iterable[Any]]], shard: Path) -> list[Row]:
    return [
        [label, path, content_hash(content), part, number]
        for part, batches in parts
        for number, (label, path, content) in enumerate(_rows(batches, shard))
    ]


def _rows(batches: Iterable[Any], shard: Path) -> Iterator[tuple[Any, str, bytes]]:
    """Label, path and bytes of each image."""
    for batch in batches:
        for image, label in zip(batch.column("image"), batch.column("label"), strict=True):
            fields, number = image.as_py(), label.as_py()
            if not isinstance(fields, dict) or not fields.get("bytes"):
                raise SuiteError(f"{shard}: refers to images that are not in it; get it with the images themselves")
            content, path = fields["bytes"], fields.get("path") or ""
            if not isinstance(content, bytes) or not isinstance(path, str) or type(number) not in (int, type(None)):
                kinds = ", ".join(type(each).__name__ for each in (content, path, number))
                raise _damaged(shard, f"bytes, path and label are {kinds}")
            yield number, path, content


def _damaged(shard: Path, error: object) -> SuiteError:
    return SuiteError(
        f"{shard}: cannot be read as a table of image (bytes, path) and label ({error}); get it again from its source"
    )


@contextmanager
def _read(shard: Path) -> Iterator[None]:
    """Raises:
    SuiteError: what is done meanwhile finds that the shard is no such table, or damaged.
    """
    import pyarrow as pa

    try:
        yield
    except SuiteError:
        raise
    # beyond its own errors the library ends in those of Python, where it makes values of what it has read
    except (OSError, LookupError, ArithmeticError, TypeError, ValueError, pa.ArrowException) as error:
        raise _damaged(shard, error) from error


def _content(images: Any, number: int, shard: Path) -> bytes:
    with _read(shard):
        content = images[number]["bytes"].as_py()
        if not isinstance(content, bytes):
            raise TypeError(f"image {number} has no bytes")
        return content


def _parquet_index(shard: Path) -> list[Row]:
    from pyarrow.parquet import ParquetFile

    with _read(shard), ParquetFile(shard) as file:
        groups = range(file.num_row_groups)
        unpacked = sum(file.metadata.row_group(group).total_byte_size for group in groups)
        if unpacked > GROWTH * shard.stat().st_size:
            raise _damaged(shard, f"it unpacks to {unpacked:,} bytes")
        columns = ["image", "label"]
        return _table_index(((g, file.iter_batches(BATCH, row_groups=[g], columns=columns)) for g in groups), shard)


def _parquet_group(shard: Path, group: int) -> Any:
    from pyarrow.parquet import ParquetFile

    with _read(shard), ParquetFile(shard) as file:
        return file.read_row_group(group, columns=["image"]).column("image")


class ParquetRows:
    """Bytes of single images. Rows can only be read by the group, so the last two groups are kept: images are best
    asked for in the order in which they lie in the shards.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._group = lru_cache(2)(_parquet_group)

    def __call__(self, shard: Path, group: int, number: int) -> bytes:
        with self._lock:
            images = self._group(shard, group)
        return _content(images, number, shard)


def _arrow_index(shard: Path) -> list[Row]:
    with _read(shard):
        return _table_index(((part, [batch]) for part, batch in enumerate(_arrow_batches(shard))), shard)


def _arrow_batches(shard: Path) -> list[Any]:
    """The parts of a memory-mapped shard."""
    import pyarrow as pa

    with _read(shard), pa.memory_map(str(shard)) as source:
        batches = list(pa.ipc.open_stream(source))
        source.seek(max(0, source.size() - len(END_OF_STREAM)))
        if source.read() != END_OF_STREAM:
            raise _damaged(shard, "it is cut short")
        for batch in batches:
            batch.validate(full=True)  # else values are read from wherever the file says that they are
        return batches


class ArrowRows:
    """Bytes of single images, of shards that stay memory-mapped."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._batches = lru_cache(None)(_arrow_batches)

    def __call__(self, shard: Path, part: int, number: int) -> bytes:
        with self._lock:
            batches = self._batches(shard)
        with _read(shard):
            return _content(batches[part].column("image"), number, shard)


# ---- tars


def _tar_index(shard: Path) -> list[Row]:
    try:
        with tarfile.open(shard, "r:") as archive, shard.open("rb") as file:
            members = _members(archive, shard.stat().st_size)
            ends = [member.offset_data + -(-member.size // TAR_BLOCK) * TAR_BLOCK for member in members]
            file.seek(max(ends, default=0))
            mark = file.read(2 * TAR_BLOCK)
            if len(mark) < 2 * TAR_BLOCK or any(mark):  # which tarfile takes for the end all the same
                raise tarfile.ReadError("it is cut short")
            samples: dict[str, dict[str, tarfile.TarInfo]] = {}
            for member in members:
                key, _, suffix = PurePosixPath(member.name).name.partition(".")
                parts = samples.setdefault(key, {})
                if parts.setdefault(suffix.lower(), member) is not member:
                    raise ValueError(f"{member.name} is in it twice")
            return [_sample(file, key, parts) for key, parts in samples.items()]
    # beyond its own errors the reader of tars follows names of names, and makes room for what says that it is enormous
    except (
        OSError,
        tarfile.TarError,
        ArithmeticError,
        LookupError,
        MemoryError,
        RecursionError,
        ValueError,
    ) as error:
        raise SuiteError(
            f"{shard}: cannot be read as a tar of KEY.jpg, KEY.cls and KEY.json ({error}); get it again from its source"
        ) from error


def _members(archive: tarfile.TarFile, size: int) -> list[tarfile.TarInfo]:
    """The files in an archive of so many bytes. Each is looked at before the next one is sought where it ends: behind
    one of negative size that would be the same one for ever.
    """
    files = []
    for member in archive:
        if not 0 <= member.size <= size or member.issparse():
            raise tarfile.ReadError(f"{member.name} is of {member.size} bytes, or has holes")
        if member.isfile():
            files.append(member)
    return files


def _sample(file: BinaryIO, key: str, parts: dict[str, tarfile.TarInfo]) -> Row:
    def content(suffix: str) -> bytes:
        file.seek(parts[suffix].offset_data)
        return file.read(parts[suffix].size)

    images = [suffix for suffix in ("jpg", "jpeg") if suffix in parts]
    if len(images) != 1 or "cls" not in parts:
        raise ValueError(f"{key} has only {', '.join(sorted(parts))}")
    label = int(content("cls"))
    description = json.loads(content("json")) if "json" in parts else {}
    if not isinstance(description, dict) or description.get("label", label) != label:
        raise ValueError(f"{key}.json does not have label {label}, which {key}.cls has")
    image, known = parts[images[0]], content_hash(content(images[0]))
    return [label, str(description.get("filename", key)), known, image.offset_data, image.size]


def _tar_member(shard: Path, offset: int, size: int) -> bytes:
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)
