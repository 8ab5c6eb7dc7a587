"""Shards are read image by image, and refused where they are damaged, incomplete or of other labels."""

from __future__ import annotations

import itertools
import json
import os
import re
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae_bench.images import ImageError
from mae_bench.suites import SuiteError
from mae_bench.suites.records import Record
from mae_bench.suites.shards import END_OF_STREAM, arrow, parquet, webdataset

READERS = {"parquet": parquet, "arrow": arrow, "webdataset": webdataset}


def records_in(layout: str, data: Path) -> list[Record]:
    reader = READERS[layout](data)
    assert reader is not None
    return reader()


@pytest.mark.parametrize("layout", READERS)
def test_nothing_is_found_where_nothing_is(layout: str, tmp_path: Path) -> None:
    for name in ("train-00000-of-00001.parquet", "imagenet-1k-train-00000-of-00001.arrow", "imagenet1k-train-0000.tar"):
        (tmp_path / name).touch()
    assert READERS[layout](tmp_path) is None


@pytest.mark.parametrize("layout", READERS)
def test_records_are_the_images_in_the_order_of_the_shards(layout: str, writer: Any, tmp_path: Path) -> None:
    getattr(writer, layout)(tmp_path)
    records = records_in(layout, tmp_path)
    assert [record.content() for record in records] == [p.content for p in writer.photographs]
    assert [record.synset for record in records] == [p.synset for p in writer.photographs]
    assert [record.name for record in records] == [
        f"{p.synset}/{p.name.removesuffix('.JPEG')}" for p in writer.photographs
    ]
    assert all(str(tmp_path) in record.where for record in records)


@pytest.mark.parametrize("layout", READERS)
def test_images_can_be_asked_for_in_any_order_by_many_threads(layout: str, writer: Any, tmp_path: Path) -> None:
    getattr(writer, layout)(tmp_path)
    records = records_in(layout, tmp_path)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(12):
            if records[i].content() != writer.photographs[i].content:
                wrong.append(int(i))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("layout", READERS)
def test_group_of_images_is_read_once_in_their_order(
    layout: str, writer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mae_bench.suites import shards

    asked: list[tuple[Any, ...]] = []
    for name in ("_parquet_group", "_arrow_batches"):
        plain = getattr(shards, name)
        monkeypatch.setattr(shards, name, lambda *a, plain=plain: asked.append(a) or plain(*a))
    getattr(writer, layout)(tmp_path)
    records = records_in(layout, tmp_path)
    asked.clear()
    for record in records:
        record.content()
    # five groups of up to three rows; two streams; tars are read at a place
    assert len(asked) == len(set(asked)) == {"parquet": 5, "arrow": 2, "webdataset": 0}[layout]


@pytest.mark.parametrize("layout", READERS)
def test_missing_shard_is_refused_by_its_number(layout: str, writer: Any, tmp_path: Path) -> None:
    getattr(writer, layout)(tmp_path)
    shards = sorted(tmp_path.iterdir())
    shards[0].unlink()
    with pytest.raises(SuiteError, match=rf"{tmp_path}: number 0 of .* is missing"):
        READERS[layout](tmp_path)


@pytest.mark.parametrize("layout", ["parquet", "arrow"])
def test_last_shard_is_missed_too_where_names_tell_how_many_there_are(layout: str, writer: Any, tmp_path: Path) -> None:
    getattr(writer, layout)(tmp_path)
    sorted(tmp_path.iterdir())[-1].unlink()
    with pytest.raises(SuiteError, match=rf"{tmp_path}: number 1 of .* is missing"):
        READERS[layout](tmp_path)


def test_images_in_two_places_are_refused_with_both(writer: Any, tmp_path: Path) -> None:
    folders = [tmp_path / f"datasets--ILSVRC--imagenet-1k/snapshots/{name}/data" for name in ("aa", "bb")]
    for folder in folders:
        writer.parquet(folder)
    with pytest.raises(SuiteError, match="name one of them in --mae-data") as caught:
        parquet(tmp_path)
    assert all(str(folder) in str(caught.value) for folder in folders)
    assert parquet(folders[0]) is not None


# ---- labels


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        (-1, "has label -1: those of test images are withheld"),
        (1000, "has label 1000; classes are counted from 0 to 999"),
        (None, "has label None; classes"),
        (208, "has label 208, which is n02099712 and not n02099601"),
    ],
)
def test_label_that_is_none_is_refused_with_its_image(
    label: int | None, complaint: str, writer: Any, tmp_path: Path
) -> None:
    from pyarrow.parquet import write_table

    place = next(i for i, p in enumerate(writer.photographs) if p.position == 207)
    labels = [label if i == place else p.position for i, p in enumerate(writer.photographs)]
    path = tmp_path / "validation-00000-of-00001.parquet"
    write_table(writer.table(writer.photographs, label=labels), path)
    with pytest.raises(SuiteError, match=complaint) as caught:
        records_in("parquet", tmp_path)
    name = writer.photographs[place].name.removesuffix(".JPEG")
    assert f"{path}: {name}" in str(caught.value)


def test_other_synset_in_a_name_that_is_no_class_says_nothing(writer: Any, tmp_path: Path) -> None:
    from pyarrow.parquet import write_table

    images = [{"bytes": p.content, "path": f"n99999999_{i}.JPEG"} for i, p in enumerate(writer.photographs)]
    write_table(writer.table(writer.photographs, image=images), tmp_path / "validation-00000-of-00001.parquet")
    assert len(records_in("parquet", tmp_path)) == 12


def test_image_without_a_path_is_told_by_its_place(writer: Any, tmp_path: Path) -> None:
    from pyarrow.parquet import write_table

    images = [{"bytes": p.content, "path": None} for p in writer.photographs]
    write_table(writer.table(writer.photographs, image=images), tmp_path / "validation-00000-of-00001.parquet")
    records = records_in("parquet", tmp_path)
    assert {record.path for record in records} == {""}
    assert len({record.where for record in records}) == 12


# ---- damage


def test_table_of_references_is_refused(writer: Any, tmp_path: Path) -> None:
    from pyarrow.parquet import write_table

    images = [{"bytes": None, "path": p.name} for p in writer.photographs]
    path = tmp_path / "validation-00000-of-00001.parquet"
    write_table(writer.table(writer.photographs, image=images), path)
    with pytest.raises(SuiteError, match="refers to images that are not in it") as caught:
        records_in("parquet", tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("column", ["image", "label"])
def test_table_without_a_column_is_refused(column: str, writer: Any, tmp_path: Path) -> None:
    from pyarrow.parquet import write_table

    path = tmp_path / "validation-00000-of-00001.parquet"
    write_table(writer.table(writer.photographs).drop_columns([column]), path)
    with pytest.raises(SuiteError, match=r"cannot be read as a table of image \(bytes, path\) and label") as caught:
        records_in("parquet", tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("layout", READERS)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.75])
def test_cut_shard_is_refused_by_name(layout: str, kept: float, writer: Any, tmp_path: Path) -> None:
    getattr(writer, layout)(tmp_path)
    shard = sorted(tmp_path.iterdir())[0]
    shard.write_bytes(shard.read_bytes()[: int(kept * shard.stat().st_size)])
    with pytest.raises(SuiteError, match="cannot be read as a") as caught:
        records_in(layout, tmp_path)
    assert str(shard) in str(caught.value)


def test_stream_cut_between_two_of_its_parts_is_refused(writer: Any, tmp_path: Path) -> None:
    """Which to a reader of streams is an end like any other."""
    writer.arrow(tmp_path)
    shard = sorted(tmp_path.iterdir())[0]
    content = shard.read_bytes()
    assert content.endswith(END_OF_STREAM)
    shard.write_bytes(content[: -len(END_OF_STREAM)])
    with pytest.raises(SuiteError, match="it is cut short"):
        records_in("arrow", tmp_path)


def test_tar_cut_between_two_of_its_members_is_refused(writer: Any, tmp_path: Path) -> None:
    """Which to Python's reader of tars is an end like any other."""
    import tarfile

    writer.webdataset(tmp_path)
    shard = sorted(tmp_path.iterdir())[0]
    with tarfile.open(shard) as archive:
        end = archive.getmembers()[5].offset_data + 512 * -(-archive.getmembers()[5].size // 512)
    shard.write_bytes(shard.read_bytes()[:end])
    with pytest.raises(SuiteError, match="it is cut short") as caught:
        records_in("webdataset", tmp_path)
    assert str(shard) in str(caught.value)


def test_damaged_header_of_a_tar_is_refused(writer: Any, tmp_path: Path) -> None:
    import tarfile

    writer.webdataset(tmp_path)
    shard = sorted(tmp_path.iterdir())[0]
    with tarfile.open(shard) as archive:
        header = archive.getmembers()[4].offset
    content = bytearray(shard.read_bytes())
    content[header + 150] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SuiteError, match="it is cut short"):
        records_in("webdataset", tmp_path)


def members_of(writer: Any) -> dict[str, bytes]:
    photograph = writer.photographs[0]
    return {
        "000000.jpg": photograph.content,
        "000000.cls": str(photograph.position).encode(),
        "000000.json": json.dumps({"filename": photograph.name, "label": photograph.position}).encode(),
    }


SAMPLES: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "no class": (lambda m: {k: v for k, v in m.items() if k != "000000.cls"}, "000000 has only jpg, json"),
    "no image": (lambda m: {k: v for k, v in m.items() if k != "000000.jpg"}, "000000 has only cls, json"),
    "two images": (lambda m: m | {"000000.jpeg": m["000000.jpg"]}, "000000 has only cls, jpeg, jpg, json"),
    "class of text": (lambda m: m | {"000000.cls": b"tench"}, "invalid literal for int"),
    "two labels": (lambda m: m | {"000000.cls": b"5"}, "000000.json does not have label 5"),
    "no JSON": (lambda m: m | {"000000.json": b"{"}, "000000"),
    "list": (lambda m: m | {"000000.json": b"[]"}, "000000.json does not have label"),
    "twice": (lambda m: m | {"again/000000.jpg": m["000000.jpg"]}, "again/000000.jpg is in it twice"),
}


@pytest.mark.parametrize("what", SAMPLES)
def test_sample_that_is_none_is_refused(what: str, writer: Any, tmp_path: Path) -> None:
    change, complaint = SAMPLES[what]
    path = tmp_path / "imagenet1k-validation-00.tar"
    writer.tar(path, change(members_of(writer)))
    with pytest.raises(SuiteError, match=re.escape(complaint if what != "no JSON" else str(path))) as caught:
        records_in("webdataset", tmp_path)
    assert str(path) in str(caught.value)


def test_sample_needs_no_json_and_may_be_called_jpeg(writer: Any, tmp_path: Path) -> None:
    members = members_of(writer)
    path = tmp_path / "imagenet1k-validation-00.tar"
    writer.tar(path, {"x/000000.jpeg": members["000000.jpg"], "x/000000.cls": members["000000.cls"] + b"\n"})
    (record,) = records_in("webdataset", tmp_path)
    assert (record.path, record.content()) == ("000000", writer.photographs[0].content)


@pytest.mark.parametrize("size", [-512, -1, 2**40, 2**70])
def test_member_of_a_size_that_it_cannot_have_ends_the_reading(size: int, writer: Any, tmp_path: Path) -> None:
    """Behind one of negative size Python's reader of tars may find the same one again, for ever."""
    import tarfile

    path = tmp_path / "imagenet1k-validation-00.tar"
    writer.tar(path, members_of(writer))
    member = tarfile.TarInfo("000000.cls")
    header = bytearray(member.tobuf())
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:512]))
    with tarfile.open(path) as archive:
        second = archive.getmembers()[1].offset
    content = path.read_bytes()
    path.write_bytes(content[:second] + header + content[second:])
    with pytest.raises(SuiteError, match=rf"000000.cls is of {size} bytes"):
        records_in("webdataset", tmp_path)


def test_member_with_holes_is_refused(writer: Any, tmp_path: Path) -> None:
    """What lies at its place is not its content."""
    import tarfile

    path = tmp_path / "imagenet1k-validation-00.tar"
    writer.tar(path, members_of(writer))
    content = bytearray(path.read_bytes())
    content[156:157] = tarfile.GNUTYPE_SPARSE
    content[148:156] = b"%06o\0 " % (256 + sum(content[:148]) + sum(content[156:512]))
    path.write_bytes(content)
    with pytest.raises(SuiteError, match="or has holes"):
        records_in("webdataset", tmp_path)


@pytest.mark.parametrize("described", [b"[" * 100_000, b'{"label": ' + b"9" * 5000 + b"}", b'{"filename": "\xff"}'])
def test_description_that_is_none_is_refused(described: bytes, writer: Any, tmp_path: Path) -> None:
    writer.tar(tmp_path / "imagenet1k-validation-00.tar", members_of(writer) | {"000000.json": described})
    with pytest.raises(SuiteError, match=r"cannot be read as a tar"):
        records_in("webdataset", tmp_path)


@pytest.mark.parametrize(
    ("columns", "kinds"),
    [
        ({"image": [{"bytes": "text", "path": "x.jpg"}] * 12}, "bytes, path and label are str, str, int"),
        ({"image": [{"bytes": b"x", "path": 7}] * 12}, "bytes, path and label are bytes, int, int"),
        ({"label": ["0"] * 12}, "bytes, path and label are bytes, str, str"),
        ({"label": [0.5] * 12}, "bytes, path and label are bytes, str, float"),
        ({"label": [True] * 12}, "bytes, path and label are bytes, str, bool"),
        ({"label": [{"x": [0]}] * 12}, "bytes, path and label are bytes, str, dict"),
        ({"image": [b"x"] * 12}, "refers to images that are not in it"),
    ],
)
@pytest.mark.parametrize("layout", ["parquet", "arrow"])
def test_columns_of_other_kinds_are_refused(
    layout: str, columns: dict[str, list[Any]], kinds: str, writer: Any, tmp_path: Path
) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    table = writer.table(writer.photographs, **columns)
    if layout == "parquet":
        write_table(table, tmp_path / "validation-00000-of-00001.parquet")
    else:
        path = tmp_path / "imagenet-1k-validation-00000-of-00001.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    with pytest.raises(SuiteError, match=kinds):
        records_in(layout, tmp_path)


def test_values_that_lie_outside_of_the_file_are_not_looked_for(writer: Any, tmp_path: Path) -> None:
    """A stream of arrow says where each value begins; a reader believes it."""
    writer.arrow(tmp_path)
    shard = sorted(tmp_path.iterdir())[0]
    first = writer.photographs[:3]
    ends = [0, *itertools.accumulate(len(photograph.content) for photograph in first)]
    whole, moved = struct.pack("<4i", *ends), struct.pack("<4i", 0, 2**30, 2**30 + 5, 2**31 - 1)
    assert shard.read_bytes().count(whole) == 1
    shard.write_bytes(shard.read_bytes().replace(whole, moved))
    with pytest.raises(SuiteError, match="cannot be read as a table"):
        records_in("arrow", tmp_path)


def test_enormous_count_in_a_name_is_not_counted_to(writer: Any, tmp_path: Path) -> None:
    writer.parquet(tmp_path)
    (tmp_path / "validation-00001-of-00002.parquet").rename(tmp_path / "validation-00001-of-99999999999999.parquet")
    with pytest.raises(SuiteError, match=r"number 2 of .* is missing"):
        parquet(tmp_path)


# ---- the index


@pytest.mark.parametrize("layout", READERS)
def test_second_start_reads_no_shard(layout: str, writer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mae_bench.suites import shards

    getattr(writer, layout)(tmp_path)
    for shard in tmp_path.iterdir():
        os.utime(shard, (1, 1))
    first = records_in(layout, tmp_path)
    for name in ("_parquet_index", "_arrow_index", "_tar_index"):
        monkeypatch.setattr(shards, name, lambda shard: pytest.fail(f"{shard} was read"))
    second = records_in(layout, tmp_path)
    attributes = ("synset", "hash", "where", "path")
    assert [[getattr(r, a) for a in attributes] for r in first] == [[getattr(r, a) for a in attributes] for r in second]
    assert [record.content() for record in second] == [p.content for p in writer.photographs]


@pytest.mark.parametrize("layout", READERS)
def test_shard_that_was_exchanged_behind_the_index_is_noticed(layout: str, writer: Any, tmp_path: Path) -> None:
    """The same size, its time of change set back: no image is taken for another."""
    getattr(writer, layout)(tmp_path)
    for shard in tmp_path.iterdir():
        os.utime(shard, (1, 1))
    records_in(layout, tmp_path)
    shard = sorted(tmp_path.iterdir())[0]
    content = shard.read_bytes()
    first, other = (p.content for p in itertools.islice(writer.photographs, 2))
    place = content.index(first[-200:])
    assert first != other
    shard.write_bytes(content[: place + 50] + bytes([content[place + 50] ^ 1]) + content[place + 51 :])
    os.utime(shard, (1, 1))
    with pytest.raises((ImageError, SuiteError)) as caught:
        records_in(layout, tmp_path)[0].image()
    assert str(shard) in str(caught.value)


def test_shard_that_vanished_is_named_with_its_image(writer: Any, tmp_path: Path) -> None:
    writer.webdataset(tmp_path)
    records = records_in("webdataset", tmp_path)
    for shard in tmp_path.iterdir():
        shard.unlink()
    with pytest.raises(ImageError, match=r"cannot be read .*No such file") as caught:
        records[0].image()
    assert writer.photographs[0].name in str(caught.value)
