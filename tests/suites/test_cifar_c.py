"""CIFAR-C as published: the test images in their order five times over, held against the clean ones' labels."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mae_bench.images import content_hash
from mae_bench.suites import Suite, SuiteError, suite_entry
from mae_bench.suites.cifar10 import CLASSES
from mae_bench.suites.cifar_c import CIFARS

IMAGES = 30
NAMES = {"cifar10_c": ("cifar-10-batches-py", "test_batch", b"labels", 10),
         "cifar100_c": ("cifar-100-python", "test", b"fine_labels", 100)}  # fmt: skip


def pixels(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


class Published:
    """A clean test batch, labels, and two corruptions at five severities."""

    def __init__(self, data: Path, name: str) -> None:
        self.data, self.name = data, name
        folder, file, key, classes = NAMES[name]
        self.batch = data / folder / file
        self.clean = pixels(0, IMAGES)
        self.labels = np.random.default_rng(1).integers(0, classes, IMAGES)
        self.batch.parent.mkdir(parents=True)
        content = {b"data": self.clean.transpose(0, 3, 1, 2).reshape(IMAGES, -1), key: self.labels.tolist()}
        self.batch.write_bytes(pickle.dumps(content | {b"coarse_labels": [0] * IMAGES}, protocol=2))
        np.save(data / "labels.npy", np.tile(self.labels, 5))
        for seed, corruption in enumerate(("fog", "gaussian_blur"), start=2):
            np.save(data / f"{corruption}.npy", pixels(seed, 5 * IMAGES))

    def load(self) -> Suite:
        suite_entry(self.name).check(self.data)
        return suite_entry(self.name).load(self.data)


@pytest.fixture(params=NAMES)
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Published:
    return Published(tmp_path, request.param)


@pytest.fixture
def cifar10(tmp_path: Path) -> Published:
    return Published(tmp_path, "cifar10_c")


def test_every_image_has_its_copy_at_every_severity(published: Published) -> None:
    suite = published.load()
    assert suite.stored is not None
    place = {content_hash(image.tobytes()): i for i, image in enumerate(published.clean)}
    for position, known in enumerate(suite.manifest.ids):
        i = place[known.removesuffix("-0")]
        assert suite.manifest.labels[position] == published.labels[i]
        assert np.array_equal(np.asarray(suite.read(position)), published.clean[i])
        for corruption in ("fog", "gaussian_blur"):
            published_copies = np.load(published.data / f"{corruption}.npy")
            for severity in range(1, 6):
                copy = np.asarray(suite.stored(corruption, severity).read(position))
                assert np.array_equal(copy, published_copies[(severity - 1) * IMAGES + i])


def test_clean_suite_has_the_same_manifest(cifar10: Published) -> None:
    assert cifar10.load().manifest_hash == suite_entry("cifar10").load(cifar10.data).manifest_hash


def test_classes_are_those_of_the_data_set(published: Published) -> None:
    suite = published.load()
    classes = NAMES[published.name][3]
    assert len(set(suite.manifest.classes)) == classes
    assert suite.label_map("model", classes).outputs == tuple(range(classes))
    assert suite.channels == 3


def test_fine_classes_are_in_the_order_of_their_labels() -> None:
    fine = CIFARS["cifar100_c"].classes
    # labels were given to the sorted names
    assert list(fine) == sorted(fine)
    assert (fine[0], fine[19], fine[49], fine[99]) == ("apple", "cattle", "mountain", "worm")
    assert CIFARS["cifar10_c"].classes == CLASSES


def test_entry_is_of_small_images_that_are_stored(published: Published) -> None:
    entry = published.load().entry
    assert (entry.reference_size, entry.default_limit) == (32, 0)
    assert entry.stored == ("imagenet_c", "c_extra")


def test_fingerprint_is_that_of_the_severity(cifar10: Published) -> None:
    suite = cifar10.load()
    assert suite.stored is not None
    before = [suite.stored("fog", severity).fingerprint for severity in range(1, 6)]
    assert len(set(before)) == 5
    array = np.load(cifar10.data / "fog.npy")
    array[2 * IMAGES, 0, 0, 0] ^= 1
    np.save(cifar10.data / "fog.npy", array)
    after = [suite.stored("fog", severity).fingerprint for severity in range(1, 6)]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, True, False, True, True]


def test_batches_may_lie_in_the_folder_itself(cifar10: Published) -> None:
    before = cifar10.load().manifest_hash
    shutil.move(cifar10.batch, cifar10.data / cifar10.batch.name)
    assert cifar10.load().manifest_hash == before


def test_clean_images_may_be_of_the_binary_version(published: Published) -> None:
    before = published.load()
    folder = {"cifar10_c": "cifar-10-batches-bin", "cifar100_c": "cifar-100-binary"}[published.name]
    coarse = {"cifar10_c": b"", "cifar100_c": b"\x13"}[published.name]
    rows = zip(published.labels.tolist(), published.clean.transpose(0, 3, 1, 2), strict=True)
    shutil.rmtree(published.batch.parent)
    (published.data / folder).mkdir()
    records = b"".join(coarse + bytes([label]) + row.tobytes() for label, row in rows)
    (published.data / folder / f"{published.batch.name}.bin").write_bytes(records)
    assert published.load().manifest_hash == before.manifest_hash


# ---- refusals


def test_without_clean_images_the_way_to_get_them_is_told(published: Published) -> None:
    shutil.rmtree(published.batch.parent)
    name = {"cifar10_c": "CIFAR10", "cifar100_c": "CIFAR100"}[published.name]
    with pytest.raises(
        SuiteError, match=rf"torchvision.datasets.{name}\('{published.data}', download=True\)"
    ) as caught:
        published.load()
    assert str(published.batch.parent) in str(caught.value)


def test_without_labels_nothing_is_taken_on_trust(published: Published) -> None:
    (published.data / "labels.npy").unlink()
    with pytest.raises(SuiteError, match=rf"{published.data}: holds no labels\.npy"):
        published.load()


def test_missing_corruption_is_refused_when_it_is_asked_for(published: Published) -> None:
    suite = published.load()
    assert suite.stored is not None
    with pytest.raises(SuiteError, match=r"snow\.npy: no such file"):
        suite.stored("snow", 1)


def shifted(array: np.ndarray) -> np.ndarray:
    return np.roll(array, 1, axis=0)


ARRAYS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "one severity": (lambda a: a[:IMAGES], r"holds uint8 of shape \(30, 32, 32, 3\)"),
    "one less": (lambda a: a[1:], r"holds uint8 of shape \(149, 32, 32, 3\); .* shape \(150, 32, 32, 3\)"),
    "channels first": (lambda a: a.transpose(0, 3, 1, 2), r"shape \(150, 3, 32, 32\)"),
    "flat": (lambda a: a.reshape(len(a), -1), r"shape \(150, 3072\)"),
    "floats": (lambda a: (a / 255).astype(np.float32), r"holds float32 .* would be uint8"),
    "wide": (lambda a: a.astype(np.uint16), r"holds uint16 .* would be uint8"),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_array_of_another_form_is_refused_with_both(what: str, cifar10: Published) -> None:
    change, complaint = ARRAYS[what]
    path = cifar10.data / "fog.npy"
    np.save(path, change(np.load(path)))
    suite = cifar10.load()
    assert suite.stored is not None
    with pytest.raises(SuiteError, match=complaint) as caught:
        suite.stored("fog", 1)
    assert str(path) in str(caught.value)


LABELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "another order": (shifted, r"labels that are not those of .*test_batch, first that of image \d+ \(\d+ for \d+\)"),
    "sorted": (lambda a: np.sort(a), "the images are in another order or of another set"),
    "once": (lambda a: a[:IMAGES], r"holds int64 of shape \(30,\); .* shape \(150,\)"),
    "floats": (lambda a: a.astype(np.float64), "holds float64 .* would be integer"),
    "severities mixed": (lambda a: np.repeat(a[:IMAGES], 5), "labels that are not those of"),
}


@pytest.mark.parametrize("what", LABELS)
def test_labels_that_are_not_those_of_the_test_images_are_refused(what: str, cifar10: Published) -> None:
    change, complaint = LABELS[what]
    path = cifar10.data / "labels.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(SuiteError, match=complaint) as caught:
        cifar10.load()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_labels_may_be_of_any_integers(kind: type, cifar10: Published) -> None:
    path = cifar10.data / "labels.npy"
    np.save(path, np.load(path).astype(kind))
    cifar10.load()


def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.environ["TRAP"],)


def trap(path: Path) -> None:
    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"<html>404</html>"),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Trap())),
    "objects": trap,
    "archive": npz,
    "broken archive": lambda path: path.write_bytes(b"PK\x03\x04 and no more"),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("name", ["labels.npy", "fog.npy"])
def test_damaged_file_is_refused_and_nothing_in_it_run(
    what: str, name: str, cifar10: Published, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path_factory.mktemp("trap") / "canary"
    monkeypatch.setenv("TRAP", str(canary))
    DAMAGE[what](cifar10.data / name)

    def use() -> None:
        suite = cifar10.load()
        assert suite.stored is not None
        suite.stored("fog", 1)

    with pytest.raises(SuiteError, match="get it again from its source") as caught:
        use()
    assert str(cifar10.data / name) in str(caught.value)
    assert not canary.exists()


def test_code_in_the_clean_batch_is_refused_and_not_run(
    published: Published, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path_factory.mktemp("trap") / "canary"
    monkeypatch.setenv("TRAP", str(canary))
    published.batch.write_bytes(pickle.dumps({b"data": Trap()}, protocol=2))
    with pytest.raises(SuiteError, match=f"not a batch of {CIFARS[published.name].name} .*asks for posix.mkdir"):
        published.load()
    assert not canary.exists()


def test_label_beyond_the_classes_is_refused(published: Published) -> None:
    batch = pickle.loads(published.batch.read_bytes())
    batch[NAMES[published.name][2]][3] = NAMES[published.name][3]
    published.batch.write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(SuiteError, match="has labels from"):
        published.load()
