"""CIFAR-10 from either version of its batches and from class folders: the same images, and nothing executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_bench.suites import SuiteError, suite_entry
from mae_bench.suites.cifar10 import CLASSES, TEST, TRAINING, training_images

ENTRY = suite_entry("cifar10")
PER_CLASS = 3


def pixels(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def batch(images: np.ndarray, labels: list[int]) -> dict[bytes, object]:
    """As published: rows of red, then green, then blue."""
    return {b"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), b"labels": labels, b"batch_label": b"x"}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "published" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    labels = list(range(10)) * PER_CLASS
    for seed, name in enumerate((*TEST, *TRAINING)):
        (folder / name).write_bytes(pickle.dumps(batch(pixels(seed, len(labels)), labels), protocol=2))
    return tmp_path / "published"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """The test images of ``published``, and its first training batch, as lossless files."""
    for part, seed in (("test", 0), ("train", 1)):
        for i, image in enumerate(pixels(seed, 10 * PER_CLASS)):
            place = tmp_path / "folders" / part / CLASSES[i % 10]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i:02}.png")
    return tmp_path / "folders"


@pytest.fixture
def records(published: Path, tmp_path: Path) -> Path:
    """The batches of ``published`` in the binary version."""
    folder = tmp_path / "records" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for path in (published / "cifar-10-batches-py").iterdir():
        content = pickle.loads(path.read_bytes(), encoding="bytes")
        rows = zip(content[b"labels"], content[b"data"], strict=True)
        (folder / f"{path.name}.bin").write_bytes(b"".join(bytes([label]) + row.tobytes() for label, row in rows))
    return tmp_path / "records"


def test_all_layouts_hold_the_same_images(published: Path, records: Path, folders: Path) -> None:
    seen = []
    layouts = (published, published / "cifar-10-batches-py", records, records / "cifar-10-batches-bin", folders)
    for data in layouts:
        suite = ENTRY.load(data)
        assert suite.manifest.classes == CLASSES
        assert suite.channels == 3
        assert np.bincount(suite.manifest.labels).tolist() == [PER_CLASS] * 10
        images = [np.asarray(suite.read(i)) for i in range(len(suite.manifest.ids))]
        seen.append({(image.tobytes(), int(label)) for image, label in zip(images, suite.manifest.labels, strict=True)})
    expected = {(image.tobytes(), i % 10) for i, image in enumerate(pixels(0, 10 * PER_CLASS))}
    assert seen == [expected] * len(layouts)
    assert ENTRY.load(records).manifest_hash == ENTRY.load(published).manifest_hash


def test_every_prefix_of_ten_is_balanced(published: Path) -> None:
    labels = ENTRY.load(published).manifest.labels
    assert all(sorted(labels[i : i + 10]) == list(range(10)) for i in range(0, len(labels), 10))


def test_training_images_are_those_of_the_files(published: Path, records: Path, folders: Path) -> None:
    images, labels = training_images(published)
    for of_published, of_records in zip((images, labels), training_images(records), strict=True):
        np.testing.assert_array_equal(of_published, of_records)
    assert images.shape == (5 * 10 * PER_CLASS, 3, 32, 32)
    assert labels.tolist() == list(range(10)) * PER_CLASS * 5
    np.testing.assert_array_equal(images[: 10 * PER_CLASS].transpose(0, 2, 3, 1), pixels(1, 10 * PER_CLASS))
    own, own_labels = training_images(folders)
    pairs = {(image.tobytes(), int(label)) for image, label in zip(own, own_labels, strict=True)}
    assert pairs == {(i.tobytes(), int(k)) for i, k in zip(images[:30], labels[:30], strict=True)}


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.environ["TRAP"],)


def test_code_in_a_batch_is_refused_and_not_run(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "canary"))
    path = published / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps({b"data": Trap()}, protocol=2))
    with pytest.raises(SuiteError, match=r"test_batch: not a batch of CIFAR-10 \(it asks for posix.mkdir") as caught:
        ENTRY.load(published)
    assert "get it again" in str(caught.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kept", [0, 0.2, 0.9])
def test_truncated_batch_is_named(published: Path, kept: float) -> None:
    path = published / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(SuiteError, match="test_batch: not a batch of CIFAR-10"):
        ENTRY.load(published)


def test_missing_or_foreign_class_is_named(folders: Path) -> None:
    (folders / "test" / "cat").rename(folders / "test" / "cats")
    with pytest.raises(SuiteError, match="class 'cat' is missing"):
        ENTRY.load(folders)
    (folders / "test" / "cats").rename(folders / "test" / "cat")
    Image.new("RGB", (32, 32)).save((folders / "test" / "zebra").mkdir() or folders / "test" / "zebra" / "a.png")
    with pytest.raises(SuiteError, match="'zebra' is no class of CIFAR-10"):
        ENTRY.load(folders)


def test_image_of_another_size_is_named(folders: Path) -> None:
    path = folders / "train" / "cat" / "big.png"
    Image.new("RGB", (33, 32)).save(path)
    with pytest.raises(SuiteError, match="33x32 pixels; images of CIFAR-10 have 32x32") as caught:
        training_images(folders)
    assert str(path) in str(caught.value)


def test_missing_data_says_how_to_get_it(tmp_path: Path) -> None:
    for call, error in (
        (lambda: ENTRY.check(tmp_path), SuiteError),
        (lambda: training_images(tmp_path), FileNotFoundError),
    ):
        with pytest.raises(error, match="download=True") as caught:
            call()
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(SuiteError, match="give their directory with --mae-data DIR"):
        ENTRY.check(None)
