"""Records: where an image lies, that it is the one whose hash is known, and what it shares with its copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae_bench.images import ImageError, content_hash, decode
from mae_bench.suites import SuiteError, suite_entry
from mae_bench.suites.records import Listed, Record, class_folders, flat, hashed, in_class_folders, suite_of
from mae_bench.suites.synsets import published_synsets

CLASSES = published_synsets("imagenet")


def record(path: str, content: bytes = b"", known: str | None = None, synset: str = "n01440764") -> Record:
    return Record(synset, known or content_hash(content), f"somewhere: {path}", path, lambda: content)


@pytest.mark.parametrize(
    "path",
    [
        "n01440764/ILSVRC2012_val_00000293.JPEG",
        "ILSVRC2012_val_00000293.jpg",
        "ILSVRC2012_val_00000293_n01440764.JPEG",
        "deep/er/n01440764/ILSVRC2012_val_00000293.png",
    ],
)
def test_name_is_that_of_the_image_whatever_the_layout(path: str) -> None:
    assert record(path).name == "n01440764/ILSVRC2012_val_00000293"


def test_names_tell_images_and_classes_apart() -> None:
    names = {record(path).name for path in ("a.jpg", "b.jpg", "a_n02099601.jpg", "a.b.jpg")}
    assert len(names | {record("a.jpg", synset="n02099601").name}) == 5


def test_image_is_decoded_from_its_bytes(photographs: Any) -> None:
    content = photographs[0].content
    assert np.array_equal(np.asarray(record("x.jpg", content).image()), np.asarray(decode(content)))


def test_image_that_is_another_by_now_is_refused(photographs: Any, cache: Path) -> None:
    changed = record("x.jpg", photographs[0].content, known=content_hash(photographs[1].content))
    with pytest.raises(ImageError, match=r"somewhere: x.jpg: is not the image any more") as caught:
        changed.image()
    assert str(cache / "index") in str(caught.value)


def test_broken_image_is_named() -> None:
    with pytest.raises(ImageError, match=r"somewhere: x.jpg: not an image"):
        record("x.jpg", b"text").image()


def test_records_of_files_are_those_files(writer: Any, tmp_path: Path) -> None:
    writer.flat(tmp_path)
    listing = [Listed(p.synset, tmp_path / p.name) for p in writer.photographs]
    records = hashed(tmp_path, listing)
    assert [r.content() for r in records] == [p.content for p in writer.photographs]
    assert [r.hash for r in records] == [content_hash(p.content) for p in writer.photographs]
    assert [r.path for r in records] == [p.name for p in writer.photographs]
    assert [r.where for r in records] == [str(tmp_path / p.name) for p in writer.photographs]


def test_file_that_vanished_is_named(writer: Any, tmp_path: Path) -> None:
    writer.flat(tmp_path)
    listing = [Listed(p.synset, tmp_path / p.name) for p in writer.photographs]
    records = hashed(tmp_path, listing)
    listing[3].file.unlink()
    for use in (records[3].image, lambda: hashed(tmp_path, listing)):
        with pytest.raises(ImageError, match=r"cannot be read \(.*No such file.*\); restore it") as caught:
            use()
        assert str(listing[3].file) in str(caught.value)


def test_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(SuiteError, match=rf"{tmp_path}: cannot be listed \(.*Permission denied.*make it readable"):
        in_class_folders(tmp_path, CLASSES)


def test_file_that_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(ImageError, match=r"x.jpg: cannot be read"):
        hashed(tmp_path, [Listed("n01440764", tmp_path / "x.jpg")])


def test_hidden_folders_and_loose_files_are_no_classes(writer: Any, tmp_path: Path) -> None:
    writer.folders(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.txt").write_text("200 classes")
    listing = class_folders(tmp_path, CLASSES)
    assert sorted(image.file for image in listing) == sorted(tmp_path.glob("n*/*"))
    assert all(image.synset == image.file.parent.name for image in listing)


def test_two_folders_of_one_number_are_refused(photographs: Any, tmp_path: Path) -> None:
    for name in ("7", "07"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(photographs[0].content)
    with pytest.raises(SuiteError, match=f"is class {CLASSES[7]} a second time"):
        class_folders(tmp_path, CLASSES, numbered=True)


def test_folders_of_anything_else_are_no_class_folders(tmp_path: Path) -> None:
    for name in ("fog", "n0144076", "n014407640", "2"):
        (tmp_path / name).mkdir()
    assert in_class_folders(tmp_path, CLASSES) is None
    assert in_class_folders(tmp_path / "absent", CLASSES) is None


@pytest.mark.parametrize("name", ["ILSVRC2012_val_1.JPEG", "ILSVRC2012_test_00000001.JPEG", "ILSVRC2012_val_00000001"])
def test_other_files_are_no_flat_images(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert flat(tmp_path) is None


def test_suite_reads_its_images_in_the_order_of_the_manifest(writer: Any, tmp_path: Path) -> None:
    writer.folders(tmp_path)
    reader = in_class_folders(tmp_path, CLASSES)
    assert reader is not None
    records = reader()
    suite, arranged = suite_of(suite_entry("imagenet"), records)
    assert [i.removesuffix("-0") for i in suite.manifest.ids] == [r.hash for r in arranged]
    for position, its_record in enumerate(arranged):
        assert suite.manifest.classes[suite.manifest.labels[position]] == its_record.synset
        assert np.array_equal(np.asarray(suite.read(position)), np.asarray(decode(its_record.content())))
    assert [arranged[position] for position in suite.order] == records
