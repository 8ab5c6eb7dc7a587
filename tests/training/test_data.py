"""Training images: a balanced split that is the same for all, and an augmentation that is a flip and a shift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.training import data
from mae_bench.training.data import TrainingData, augmented, split


@settings(max_examples=50, derandomize=True)
@given(st.lists(st.integers(60, 90), min_size=10, max_size=10), st.integers(0, 100))
def test_split_is_balanced_disjoint_and_complete(counts: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), counts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "VALIDATION_IMAGES_PER_CLASS", 50)
        training, validation = split(labels)
        again = split(labels)
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(len(labels)))
    assert np.bincount(labels[validation]).tolist() == [50] * 10
    assert (training.tolist(), validation.tolist()) == (again[0].tolist(), again[1].tolist())


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_is_a_flip_and_a_shift_of_the_padded_image(channels: int) -> None:
    images = torch.rand(300, channels, 9, 9)
    before = images.clone()
    result = augmented(images, torch.Generator().manual_seed(5), shift=2)
    assert torch.equal(images, before)
    assert result.shape == images.shape
    seen = set()
    for image, changed in zip(images.numpy(), result.numpy(), strict=True):
        matches = [
            (flipped, top, left)
            for flipped, source in ((False, image), (True, image[:, :, ::-1]))
            for top in range(5)
            for left in range(5)
            if (np.pad(source, ((0, 0), (2, 2), (2, 2)))[:, top : top + 9, left : left + 9] == changed).all()
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    # with 300 draws of 50 the chance of missing a given one is 0.2 %
    assert len(seen) >= 48


def test_without_shift_an_image_is_itself_or_its_mirror_image() -> None:
    images = torch.rand(50, 1, 6, 6)
    result = augmented(images, torch.Generator().manual_seed(1), shift=0)
    kept = [torch.equal(a, b) for a, b in zip(images, result, strict=True)]
    mirrored = [torch.equal(a.flip(-1), b) for a, b in zip(images, result, strict=True)]
    assert all(a != b for a, b in zip(kept, mirrored, strict=True))
    assert any(kept)
    assert any(mirrored)


def test_augmentation_is_a_function_of_its_generator() -> None:
    images = torch.rand(20, 1, 28, 28)
    draws = []
    for seed, elsewhere in ((1, 7), (1, 8), (2, 7)):
        torch.manual_seed(elsewhere)
        draws.append(augmented(images, torch.Generator().manual_seed(seed), shift=2))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_batch_is_what_the_images_are() -> None:
    images = np.arange(2 * 3 * 2 * 2, dtype=np.uint8).reshape(2, 3, 2, 2) * 10
    mine = TrainingData(images, np.array([0, 1]), np.array([0]), np.array([1]), (0.5, 0.4, 0.3), (0.5, 0.2, 0.1))
    x, y = mine.batch(np.array([1]))
    assert y.tolist() == [1]
    np.testing.assert_allclose(x.numpy(), images[[1]] / 255, atol=1e-7)
    expected = (images[[1]] / 255 - np.array([0.5, 0.4, 0.3])[:, None, None]) / np.array([0.5, 0.2, 0.1])[:, None, None]
    np.testing.assert_allclose(mine.normalised(x).numpy(), expected, atol=1e-5)
    assert mine.classes == 2


@pytest.mark.parametrize(("suite", "remedy"), [("fashion_mnist", "dataset-fashion-mnist"), ("cifar10", "CIFAR")])
def test_missing_images_are_named_with_the_way_to_get_them(tmp_path: Path, suite: str, remedy: str) -> None:
    with pytest.raises(FileNotFoundError, match=remedy) as caught:
        TrainingData.load(suite, tmp_path)
    assert str(tmp_path) in str(caught.value)
