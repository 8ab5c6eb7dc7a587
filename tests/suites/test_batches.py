"""Batches of CIFAR are read as Python's own unpickler would read them, and nothing in them is run."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.suites import SuiteError
from mae_bench.suites.batches import PIXELS, batch_file, read_batches
from references.python2_batch import python2_batch


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, PIXELS), dtype=np.uint8)


def labelled(data: np.ndarray, labels: list[int]) -> dict[bytes, object]:
    names = [b"leptodactylus_pentadactylus_s_%06d.png" % i for i in range(len(data))]
    return {b"batch_label": b"testing batch 1 of 1", b"labels": labels, b"data": data, b"filenames": names}


def read(content: bytes, folder: Path, name: str = "test_batch", **settings: object) -> tuple[np.ndarray, np.ndarray]:
    path = folder / name
    path.write_bytes(content)
    return read_batches([path], **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["C", "F"])
def test_batch_is_read_as_python_2_wrote_it(order: str, tmp_path: Path) -> None:
    data = np.asarray(pixels(1500), order=order)  # type: ignore[call-overload]
    labels = np.random.default_rng(1).integers(0, 10, 1500).tolist()
    content = python2_batch(data, labels, [b"image_%04d.png" % i for i in range(1500)])
    reference = pickle.loads(content, encoding="bytes")
    images, found = read(content, tmp_path)
    assert (images.dtype, found.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(images, reference[b"data"].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(images.reshape(-1, PIXELS), data)
    assert found.tolist() == reference[b"labels"] == labels


@settings(max_examples=40, derandomize=True)
@given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    protocol=st.integers(0, 4),
    order=st.sampled_from("CF"),
    texts=st.booleans(),
)
def test_batch_is_read_in_every_protocol(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int], protocol: int, order: str, texts: bool
) -> None:
    data = np.asarray(pixels(len(labels)), order=order)  # type: ignore[call-overload]
    batch = labelled(data, labels)
    named = {key.decode(): value for key, value in batch.items()} if texts else batch
    images, found = read(pickle.dumps(named, protocol=protocol), tmp_path_factory.getbasetemp())
    np.testing.assert_array_equal(images.reshape(-1, PIXELS), data)
    assert found.tolist() == labels


@pytest.mark.parametrize("coarse", [0, 1])
def test_records_hold_the_same(coarse: int, tmp_path: Path) -> None:
    data = pixels(7)
    labels = [3, 1, 4, 1, 5, 9, 2]
    records = b"".join(bytes([8] * coarse + [label]) + row.tobytes() for label, row in zip(labels, data, strict=True))
    images, found = read(records, tmp_path, "test_batch.bin", coarse=coarse)
    np.testing.assert_array_equal(images.reshape(-1, PIXELS), data)
    assert found.tolist() == labels
    with pytest.raises(SuiteError, match=rf"are no records of {coarse + PIXELS + 1}\)"):
        read(records[:-1], tmp_path, "test_batch.bin", coarse=coarse)


def test_batches_are_put_together_in_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for seed, path in enumerate(paths):
        path.write_bytes(pickle.dumps(labelled(pixels(2, seed), [seed, 9]), protocol=2))
    images, labels = read_batches(paths)
    np.testing.assert_array_equal(images.reshape(6, PIXELS), np.concatenate([pixels(2, seed) for seed in range(3)]))
    assert labels.tolist() == [0, 9, 1, 9, 2, 9]


def test_file_is_looked_for_folder_by_folder_and_in_both_versions(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    assert batch_file(folders, "test_batch") is None
    for folder, name in ((folders[1], "test_batch"), (folders[0], "test_batch.bin"), (folders[0], "test_batch")):
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
        assert batch_file(folders, "test_batch") == folder / name


# ---- refusals


def test_text_that_is_asked_for_again_and_again_takes_no_more_room(tmp_path: Path) -> None:
    """The unpickler encodes it each time: two gigabytes out of one megabyte."""
    text, encoding = b"x" * 10**6, b"latin1"
    written = b"X%bX%b\x86q\x01R" % (len(text).to_bytes(4, "little") + text, b"\x06\0\0\0" + encoding)
    content = b"\x80\x02(c_codecs\nencode\nq\x00" + written + 2000 * b"h\x00h\x01R" + b"l."
    tracemalloc.start()
    with pytest.raises(SuiteError, match="holds no dictionary"):
        read(content, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 10 * len(content)
    tracemalloc.stop()


def test_nested_keys_are_not_looked_at(tmp_path: Path) -> None:
    """A tuple of the same tuple twice, and so on: to hash it takes two to the power of its depth steps."""
    content = b"\x80\x02})q\x00" + 200 * b"h\x00\x86q\x00" + b"Ns."
    with pytest.raises(SuiteError, match="keys that are no texts"):
        read(content, tmp_path)


GOOD = pickle.dumps(labelled(pixels(2), [0, 1]), protocol=2)


def of(**changes: object) -> bytes:
    return pickle.dumps(labelled(pixels(2), [0, 1]) | {k.encode(): v for k, v in changes.items()}, protocol=2)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "."),
    "no pickle": (lambda: b"<html>404</html>", "."),
    "cut": (lambda: GOOD[:-200], "."),
    "more after its end": (lambda: GOOD + b".", "STOP at byte"),
    "list": (lambda: pickle.dumps([1, 2]), "holds no dictionary"),
    "no data": (lambda: pickle.dumps({b"labels": [0]}), "holds no dictionary of data and labels"),
    "no labels": (lambda: pickle.dumps({b"data": pixels(2)}, protocol=2), "holds no dictionary of data and labels"),
    "floats": (lambda: of(data=np.zeros((2, PIXELS))), "its data are no bytes"),
    "signed": (lambda: of(data=pixels(2).astype(np.int8)), "its data are no bytes"),
    "vector": (lambda: of(data=pixels(2).ravel()), "its data are no table"),
    "narrow": (lambda: of(data=pixels(2)[:, 1:].copy()), "for an array of shape 2 x 3071"),
    "fewer labels": (lambda: of(labels=[0]), "holds 2 images and 1 labels"),
    "no images": (lambda: python2_batch(pixels(0), [], []), "holds 0 images and 0 labels"),
    "label of another class": (lambda: of(labels=[0, 10]), "has labels from 0 to 10"),
    "negative label": (lambda: of(labels=[0, -1]), "has labels from -1 to 0"),
    "enormous label": (lambda: of(labels=[0, 10**30]), "has labels from 0 to 1"),
    "labels that are true": (lambda: of(labels=[False, True]), "its labels are no list of numbers"),
    "array of labels": (lambda: of(labels=np.zeros(2, dtype=np.int64)), "."),
    "odd escape": (lambda: b"S'\\q'\n.", "."),
    "class": (lambda: b"cbuiltins\nexec\n.", "it asks for builtins.exec, which is no part of an array"),
    "call of a text": (lambda: b"U\x01x)R.", "it calls what is no name"),
    "keys of numbers": (lambda: b"}K\x01K\x02s.", "it has keys that are no texts"),
    "stack underflow": (lambda: b"0.", "it has POP at byte 0"),
    "enormous length": (lambda: b"\x8e" + b"\xff" * 7 + b"\x7f.", "."),
}


@pytest.mark.parametrize("what", REFUSED)
def test_batch_that_is_another_is_refused_with_its_fault(what: str, tmp_path: Path) -> None:
    make, complaint = REFUSED[what]
    with pytest.raises(SuiteError, match=complaint) as caught:
        read(make(), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'test_batch'}: not a batch of CIFAR-10 (")
    assert str(caught.value).endswith("get it again from its source")


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"none: not a batch of CIFAR-10 \(.*No such file"):
        read_batches([tmp_path / "none"])
