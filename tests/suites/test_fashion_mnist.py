import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mae_bench.errors import BenchError
from mae_bench.images import ImageError
from mae_bench.suites import Suite, SuiteError, fashion_mnist, suite_entry

IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
# idx: magic number and one 32-bit length per dimension
IMAGES_HEADER, LABELS_HEADER = 16, 8


@pytest.fixture(scope="module")
def suite() -> Suite:
    return suite_entry("fashion_mnist").load(None)


@pytest.fixture(scope="module")
def published() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels in the order of the published files, read by hand."""
    pixels = gzip.decompress((fashion_mnist.BUNDLED / IMAGES).read_bytes())[IMAGES_HEADER:]
    labels = gzip.decompress((fashion_mnist.BUNDLED / LABELS).read_bytes())[LABELS_HEADER:]
    return np.frombuffer(pixels, np.uint8).reshape(10000, 28, 28), np.frombuffer(labels, np.uint8)


def test_there_are_a_thousand_images_of_each_of_ten_classes(suite: Suite) -> None:
    assert np.bincount(suite.manifest.labels).tolist() == [1000] * 10
    assert len(set(suite.manifest.classes)) == 10


def test_ids_and_keys_are_unique(suite: Suite) -> None:
    assert len(set(suite.manifest.ids)) == 10000
    # two images of one key would be given one mask
    assert len(np.unique(suite.manifest.keys)) == 10000


def test_default_run_has_as_many_of_each_class(suite: Suite) -> None:
    count = suite.manifest.subset(suite.entry.default_limit)
    assert count == 1024
    assert set(np.bincount(suite.manifest.labels[:count])) == {102, 103}


def test_images_and_labels_are_the_published_ones(suite: Suite, published: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = published
    expected = {hashlib.sha256(image.tobytes()).hexdigest()[:32]: i for i, image in enumerate(images)}
    found = [expected[i.rsplit("-", 1)[0]] for i in suite.manifest.ids]
    assert sorted(found) == list(range(10000))
    assert np.array_equal(suite.manifest.labels, labels[found])
    for position in range(0, 10000, 97):
        image = suite.read(position)
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), images[found[position]])


def test_classes_are_those_of_the_publication(suite: Suite, published: tuple[np.ndarray, np.ndarray]) -> None:
    # the first test image is known to be an ankle boot, the second a pullover, the third a pair of trousers
    assert [suite.manifest.classes[label] for label in published[1][:3]] == ["ankle boot", "pullover", "trouser"]


def test_mean_and_deviation_are_near_those_of_the_test_images(published: tuple[np.ndarray, np.ndarray]) -> None:
    # stated for the training images; a set of 10,000 images of mean .29 +- .1 each is within a hundredth
    pixels = published[0] / 255
    assert pixels.mean() == pytest.approx(fashion_mnist.MEAN[0], abs=0.01)
    assert pixels.std() == pytest.approx(fashion_mnist.STD[0], abs=0.01)


# ---- damaged data


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "fashion_mnist"
    shutil.copytree(fashion_mnist.BUNDLED, folder)
    monkeypatch.setattr(fashion_mnist, "BUNDLED", folder)
    return folder


def test_faithful_copy_is_accepted(copy: Path, suite: Suite) -> None:
    assert copy == fashion_mnist.BUNDLED
    assert suite_entry("fashion_mnist").load(None).manifest_hash == suite.manifest_hash


def rewrite(path: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    change(content)
    path.write_bytes(gzip.compress(bytes(content), compresslevel=1))


def next_value(content: bytearray, place: int) -> None:
    content[place] = (content[place] + 1) % 10


def swap(content: bytearray, place: int, other: int) -> None:
    content[place], content[other] = content[other], content[place]


TAMPERED: dict[str, Callable[[Path], object]] = {
    "first pixel": lambda folder: rewrite(folder / IMAGES, lambda content: next_value(content, IMAGES_HEADER)),
    "last pixel": lambda folder: rewrite(folder / IMAGES, lambda content: next_value(content, len(content) - 1)),
    "one label": lambda folder: rewrite(folder / LABELS, lambda content: next_value(content, LABELS_HEADER + 5000)),
    # labels 9 and 2
    "two labels swapped": lambda folder: rewrite(
        folder / LABELS, lambda content: swap(content, LABELS_HEADER, LABELS_HEADER + 1)
    ),
    "label of no class": lambda folder: rewrite(
        folder / LABELS, lambda content: content.__setitem__(LABELS_HEADER, 200)
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_tampered_data_are_refused_with_both_hashes(what: str, copy: Path, suite: Suite) -> None:
    TAMPERED[what](copy)
    with pytest.raises(SuiteError, match="install mae_bench again") as caught:
        suite_entry("fashion_mnist").load(None)
    assert str(copy) in str(caught.value)
    assert f"not to {suite.manifest_hash}" in str(caught.value)


def test_other_manifest_is_refused(copy: Path, suite: Suite) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"manifest_hash": "0" * 16}))
    with pytest.raises(SuiteError, match=f"hash to {suite.manifest_hash}, not to 0000000000000000"):
        suite_entry("fashion_mnist").load(None)


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_flipped_byte_of_the_file_is_refused(name: str, copy: Path) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (copy / name).write_bytes(content)
    with pytest.raises(ImageError) as caught:
        suite_entry("fashion_mnist").load(None)
    assert str(copy / name) in str(caught.value)


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_cut_file_is_refused(name: str, copy: Path) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-100])
    with pytest.raises(ImageError) as caught:
        suite_entry("fashion_mnist").load(None)
    assert str(copy / name) in str(caught.value)


@pytest.mark.parametrize("name", [IMAGES, LABELS, "manifest.json"])
def test_missing_file_is_refused_by_name(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(BenchError) as caught:
        suite_entry("fashion_mnist").load(None)
    assert str(copy / name) in str(caught.value)


def test_labels_for_fewer_images_are_refused(copy: Path) -> None:
    labels = bytearray(gzip.decompress((copy / LABELS).read_bytes())[:-1])
    labels[LABELS_HEADER - 4 : LABELS_HEADER] = (9999).to_bytes(4, "big")
    (copy / LABELS).write_bytes(gzip.compress(bytes(labels)))
    with pytest.raises(BenchError) as caught:
        suite_entry("fashion_mnist").load(None)
    assert str(copy) in str(caught.value)


# ---- training images


def write_training(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    images, labels = (generator.integers(0, 10, shape, dtype=np.uint8) for shape in ((count, 28, 28), (count,)))
    for name, values in (("train-images-idx3-ubyte.gz", images), ("train-labels-idx1-ubyte.gz", labels)):
        header = bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape)
        (folder / name).write_bytes(gzip.compress(header + values.tobytes()))
    return images, labels


def test_training_images_are_read_from_a_folder(tmp_path: Path) -> None:
    images, labels = write_training(tmp_path, 5)
    found_images, found_labels = fashion_mnist.training_images(tmp_path)
    assert np.array_equal(found_images, images[:, None])
    assert np.array_equal(found_labels, labels)
    assert found_labels.dtype == np.int64


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"])
def test_missing_training_file_is_named_with_its_source(name: str, tmp_path: Path) -> None:
    write_training(tmp_path, 5)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist") as caught:
        fashion_mnist.training_images(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
