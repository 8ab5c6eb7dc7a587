"""Alignment against loops over images and features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mae_bench.indicators import alignment
from mae_bench.indicators.alignment import (
    INDICATORS,
    alignment_scores,
    alignment_sums,
    image_scores,
    is_constant,
    layer_scores,
)
from mae_bench.indicators.block_sums import BlockSums

SEEDS = st.integers(0, 2**16)


def cosine(a: list[float], b: list[float]) -> float:
    product = math.fsum(x * y for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(y * y for y in b))
    return product / lengths if lengths else 0.0


def less_mean(a: list[float]) -> list[float]:
    mean = math.fsum(a) / len(a)
    return [x - mean for x in a]


def less(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def by_hand(clean: list[float], degraded: list[float], center: list[float]) -> dict[str, float]:
    return {
        "alignment": cosine(clean, degraded),
        "alignment_centered": cosine(less(clean, center), less(degraded, center)),
        "correlation": cosine(less_mean(clean), less_mean(degraded)),
    }


def random(seed: int, *shape: int) -> Tensor:
    # a common mean far from zero, as embeddings of transformers have
    return 2 + torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(SEEDS, st.integers(1, 6), st.integers(2, 9))
def test_pooled_tokens_are_summed_over_images(seed: int, images: int, width: int) -> None:
    clean, degraded, center = random(seed, images, width), random(seed + 1, images, width), random(seed + 2, width)
    expected = dict.fromkeys(INDICATORS, 0.0)
    for i in range(images):
        for name, score in by_hand(clean[i].tolist(), degraded[i].tolist(), center.tolist()).items():
            expected[name] += score
    assert alignment_sums(image_scores(clean, degraded, center)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(SEEDS, st.integers(1, 4), st.integers(1, 5), st.integers(2, 6))
def test_patch_tokens_are_averaged_within_an_image_after_scoring(
    seed: int, images: int, patches: int, width: int
) -> None:
    clean, degraded = random(seed, images, patches, width), random(seed + 1, images, patches, width)
    center = random(seed + 2, patches, width)
    expected = dict.fromkeys(INDICATORS, 0.0)
    for i in range(images):
        for p in range(patches):
            scores = by_hand(clean[i, p].tolist(), degraded[i, p].tolist(), center[p].tolist())
            for name, score in scores.items():
                expected[name] += score / patches
    assert alignment_sums(image_scores(clean, degraded, center)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(SEEDS)
def test_identical_embeddings_align_fully(seed: int) -> None:
    clean = random(seed, 5, 8)
    for score in alignment_scores(clean, clean.clone(), random(seed + 1, 8)).values():
        torch.testing.assert_close(score, torch.ones(5), rtol=0, atol=1e-5)


@given(SEEDS)
def test_opposite_embeddings_align_by_minus_one(seed: int) -> None:
    clean = random(seed, 5, 8)
    for score in alignment_scores(clean, -clean, torch.zeros(8)).values():
        torch.testing.assert_close(score, -torch.ones(5), rtol=0, atol=1e-5)


@given(SEEDS, st.sampled_from([1e-3, 1.0, 1e3]))
def test_scores_stay_within_their_range(seed: int, scale: float) -> None:
    clean = random(seed, 20, 4) * scale
    nearly = clean * (1 + 1e-7 * torch.randn(20, 4, generator=torch.Generator().manual_seed(seed)))
    for score in alignment_scores(clean, nearly, torch.zeros(4)).values():
        assert score.abs().max() <= 1


@given(SEEDS, st.floats(0.01, 100), st.floats(0.01, 100))
def test_cosine_and_correlation_do_not_see_the_length(seed: int, one: float, other: float) -> None:
    clean, degraded = random(seed, 5, 8), random(seed + 1, 5, 8)
    before = alignment_scores(clean, degraded, torch.zeros(8))
    after = alignment_scores(clean * one, degraded * other, torch.zeros(8))
    for name in INDICATORS:
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-4)


@given(SEEDS)
def test_a_rotation_of_everything_changes_no_cosine(seed: int) -> None:
    clean, degraded, center = random(seed, 5, 8), random(seed + 1, 5, 8), random(seed + 2, 8)
    rotation, _ = torch.linalg.qr(random(seed + 3, 8, 8) - 2)
    before = alignment_scores(clean, degraded, center)
    after = alignment_scores(clean @ rotation, degraded @ rotation, center @ rotation)
    for name in ("alignment", "alignment_centered"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-4)


@given(SEEDS)
def test_a_common_shift_leaves_the_centered_alignment(seed: int) -> None:
    clean, degraded, center, shift = (random(seed + i, 5, 8) for i in range(4))
    before = alignment_scores(clean, degraded, center[0])
    after = alignment_scores(clean + shift[0], degraded + shift[0], center[0] + shift[0])
    torch.testing.assert_close(after["alignment_centered"], before["alignment_centered"], rtol=1e-3, atol=1e-4)


@given(SEEDS, st.floats(-5, 5))
def test_correlation_does_not_see_a_constant_added_to_all_features(seed: int, constant: float) -> None:
    clean, degraded = random(seed, 5, 8), random(seed + 1, 5, 8)
    before = alignment_scores(clean, degraded, torch.zeros(8))["correlation"]
    after = alignment_scores(clean + constant, degraded, torch.zeros(8))["correlation"]
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_a_common_mean_inflates_the_raw_cosine_alone() -> None:
    mean = 20 * torch.ones(64)
    clean, degraded = random(0, 50, 64) - 2 + mean, random(1, 50, 64) - 2 + mean
    sums = {name: total / 50 for name, total in alignment_sums(image_scores(clean, degraded, mean)).items()}
    assert sums["alignment"] > 0.99
    assert abs(sums["alignment_centered"]) < 0.1
    assert abs(sums["correlation"]) < 0.1


@pytest.mark.parametrize(
    ("clean", "degraded"), [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0]), ([0.0, 0.0], [0.0, 0.0])]
)
def test_a_vector_of_length_zero_scores_zero(clean: list[float], degraded: list[float]) -> None:
    scores = alignment_scores(torch.tensor(clean), torch.tensor(degraded), torch.zeros(2))
    assert {name: float(score) for name, score in scores.items()} == dict.fromkeys(INDICATORS, 0.0)


def test_an_embedding_at_the_center_has_no_centered_alignment() -> None:
    center = torch.tensor([1.0, 2.0, 3.0])
    scores = alignment_scores(center, torch.tensor([3.0, 2.0, 1.0]), center)
    assert scores["alignment_centered"] == 0
    assert scores["alignment"] == pytest.approx(10 / 14)
    assert scores["correlation"] == pytest.approx(-1)


@given(SEEDS, st.integers(1, 9), st.booleans())
def test_pieces_that_fit_a_cache_score_as_the_whole(seed: int, images: int, per_image: bool) -> None:
    clean, degraded = random(seed, images, 3, 5), random(seed + 1, images, 3, 5)
    center = random(seed + 2, *((images, 3, 5) if per_image else (3, 5)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "PIECE", 2 * clean[0].nbytes)
        found = image_scores(clean, degraded, center)
    for name, scores in alignment_scores(clean, degraded, center).items():
        torch.testing.assert_close(found[name], scores.mean(1))


@given(SEEDS, st.lists(st.tuples(st.sampled_from(["cls", "mean_patch", "patch"]), st.integers(2, 4)), max_size=8))
def test_layers_that_are_compared_at_once_score_as_each_alone(seed: int, layers: list[tuple[str, int]]) -> None:
    shapes = {(i, kind): (3, 5, width) if kind == "patch" else (3, width) for i, (kind, width) in enumerate(layers)}
    clean, degraded = ({key: random(seed + i, *shape) for key, shape in shapes.items()} for i in range(2))
    centers = {key: random(seed + 2, *shape[1:]) for key, shape in shapes.items()}
    found = layer_scores(clean, degraded, centers)
    assert found.keys() == shapes.keys()
    for key, scores in found.items():
        for name, alone in image_scores(clean[key], degraded[key], centers[key]).items():
            torch.testing.assert_close(scores[name], alone, rtol=0, atol=1e-6)


def test_sums_are_over_images_in_double_precision() -> None:
    clean = random(0, 4096, 4)
    sums = alignment_sums(image_scores(clean, clean, torch.zeros(4)))
    each = alignment_scores(clean, clean, torch.zeros(4))
    for name in INDICATORS:
        assert sums[name] == math.fsum(each[name].tolist())


@pytest.mark.parametrize("images", [2, 5])
def test_embeddings_that_no_image_changes_are_constant(images: int) -> None:
    same = random(0, 1, 3, 4).expand(images, -1, -1)
    assert is_constant(same)
    other = same.clone()
    other[-1, 2, 3] += 0.01
    assert not is_constant(other)


def test_one_image_is_not_evidence_of_a_constant() -> None:
    assert not is_constant(random(0, 1, 4))


@given(st.integers(1, 5), st.data())
def test_shards_merge_to_the_whole(count: int, data: st.DataObject) -> None:
    whole, shards = BlockSums(), [BlockSums(), BlockSums()]
    center = random(99, 8)
    for block in range(count):
        sums = alignment_sums(image_scores(random(block, 16, 8), random(block + 50, 16, 8), center))
        whole.update(block, sums)
        shards[data.draw(st.integers(0, 1))].update(block, sums)
    merged = BlockSums()
    for shard in data.draw(st.permutations(shards)):
        merged.merge(shard)
    for name in INDICATORS:
        assert merged.total(name).tobytes() == whole.total(name).tobytes()
        assert np.isfinite(merged.total(name))
