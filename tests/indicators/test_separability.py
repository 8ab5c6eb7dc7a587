"""Class subspaces against slow references, and what must not change them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from torch import Tensor

from mae_bench.indicators.separability import (
    NEIGHBOURS,
    SeparabilityError,
    class_subspaces,
    fisher_ratio,
    halves,
    nearest_neighbours,
    nearest_subspace,
    permuted,
    separability,
    separability_profile,
    subspace_dimension,
    tenths,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def clouds(
    seed: int, classes: int = 4, per_class: int = 12, features: int = 16, apart: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Gaussian classes of different shape and place, shuffled."""
    generator = np.random.default_rng(seed)
    tokens = np.concatenate(
        [
            generator.normal(size=(per_class, features)) @ generator.normal(size=(features, features))
            + apart * generator.normal(size=features) * features**0.5
            for _ in range(classes)
        ]
    )
    labels = np.repeat(np.arange(classes), per_class)
    order = generator.permutation(len(labels))
    return torch.from_numpy(tokens[order]), torch.from_numpy(labels[order])


def slow_bases(tokens: Tensor, labels: Tensor, k: int, within: bool) -> list[np.ndarray]:
    x = tokens.numpy().astype(np.float64)
    x = x - x.mean(0)
    bases = []
    for label in sorted(set(labels.tolist())):
        own = x[labels.numpy() == label]
        if within:
            own = own - own.mean(0)
        bases.append(np.linalg.svd(own)[2][:k].T)
    return bases


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_separability_is_that_of_principal_angles(seed: int, within: bool) -> None:
    tokens, labels = clouds(seed)
    subspaces = class_subspaces(tokens, labels, within)
    k = subspaces.dimension
    assert k == min(10, 16 // 4, 12 // 3)
    bases = slow_bases(tokens, labels, k, within)
    pairs = [
        np.sqrt(max(0.0, 1 - (np.cos(subspace_angles(a, b)) ** 2).sum() / k))
        for a, b in itertools.combinations(bases, 2)
    ]
    assert separability(subspaces) == pytest.approx(np.mean(pairs), abs=1e-9)
    for basis, expected in zip(subspaces.basis.numpy(), bases, strict=True):
        np.testing.assert_allclose(basis @ basis.T, expected @ expected.T, atol=1e-9)


def test_classes_may_differ_in_size() -> None:
    tokens, labels = clouds(0)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[(labels == 1).nonzero()[:5, 0]] = False
    tokens, labels = tokens[kept], labels[kept]
    subspaces = class_subspaces(tokens, labels)
    for basis, expected in zip(subspaces.basis.numpy(), slow_bases(tokens, labels, 2, within=False), strict=True):
        np.testing.assert_allclose(basis @ basis.T, expected @ expected.T, atol=1e-9)


def test_residuals_are_those_of_projection() -> None:
    tokens, labels = clouds(1)
    others, _ = clouds(2)
    subspaces = class_subspaces(tokens, labels)
    centred = others.numpy() - tokens.numpy().mean(0)
    residual = [
        ((centred - centred @ basis @ basis.T) ** 2).sum(1) for basis in slow_bases(tokens, labels, 4, within=False)
    ]
    assert nearest_subspace(subspaces, others).tolist() == np.argmin(residual, axis=0).tolist()


def test_fisher_ratio_is_that_of_loops() -> None:
    tokens, labels = clouds(3)
    mean = tokens.mean(0)
    between = within = 0.0
    for x, label in zip(tokens, labels, strict=True):
        own = tokens[labels == label].mean(0)
        between += float(((own - mean) ** 2).sum())
        within += float(((x - own) ** 2).sum())
    assert fisher_ratio(tokens, labels) == pytest.approx(between / within)
    assert fisher_ratio(torch.tensor([[1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1])) is None


@pytest.mark.parametrize("neighbours", [1, 5, NEIGHBOURS, 1000])
def test_neighbours_vote_as_counted_by_hand(neighbours: int) -> None:
    bank, labels = clouds(4, apart=0.3)
    queries, _ = clouds(5, apart=0.3)
    expected = []
    for query in queries.numpy():
        cosine = [float(query @ x / np.linalg.norm(query) / np.linalg.norm(x)) for x in bank.numpy()]
        nearest = sorted(range(len(cosine)), key=lambda i: -cosine[i])[:neighbours]
        votes = {c: (sum(int(labels[i]) == c for i in nearest), sum(cosine[i] for i in nearest if int(labels[i]) == c))
                 for c in range(4)}  # fmt: skip
        # among equal votes the larger sum of 1 + cosine, which for equal counts is that of cosines
        expected.append(max(votes, key=lambda c: votes[c]))
    assert nearest_neighbours(bank, labels, queries, neighbours).tolist() == expected


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.booleans())
def test_rotation_scale_place_and_names_of_classes_do_not_matter(seed: int, scale: float, within: bool) -> None:
    tokens, labels = clouds(seed)
    generator = np.random.default_rng(seed)
    rotation = torch.from_numpy(np.linalg.qr(generator.normal(size=(16, 16)))[0])
    names = torch.from_numpy(generator.permutation(4))
    moved = scale * tokens @ rotation + torch.from_numpy(generator.normal(size=16))
    order = torch.from_numpy(generator.permutation(len(labels)))
    one, other = class_subspaces(tokens, labels, within), class_subspaces(moved[order], names[labels][order], within)
    value = separability(one)
    assert 0 <= value <= 1
    assert separability(other) == pytest.approx(value, abs=1e-6)
    assert fisher_ratio(moved[order], names[labels][order]) == pytest.approx(fisher_ratio(tokens, labels))
    hits = nearest_subspace(one, tokens) == labels
    assert torch.equal((nearest_subspace(other, moved) == names[labels]), hits)


def test_orthogonal_classes_are_wholly_apart_and_equal_ones_not_at_all() -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    own = torch.cat([own, -own])  # of mean zero
    apart = torch.zeros(120, 16, dtype=torch.float64)
    apart[:60, :4], apart[60:, 4:8] = own, own
    labels = torch.arange(2).repeat_interleave(60)
    assert separability(class_subspaces(apart, labels)) == pytest.approx(1, abs=1e-9)
    assert separability(class_subspaces(torch.cat([apart[:60]] * 2), labels)) == pytest.approx(0, abs=1e-6)


def test_tokens_that_do_not_span_a_subspace_have_no_separability() -> None:
    tokens, labels = clouds(3, classes=4)
    alike = tokens.clone()
    alike[labels == 2] = alike[labels == 2][0]
    flat = separability_profile(alike, labels)
    assert flat.separability is flat.separability_excess is flat.separability_within is flat.subspace_accuracy is None
    assert flat.fisher_ratio is not None
    assert flat.knn_accuracy > 0
    degraded = separability_profile(tokens, labels, alike)
    assert degraded.separability is degraded.separability_excess is degraded.separability_within is None
    assert degraded.subspace_accuracy is not None  # the clean subspaces, which are whole, tell the classes
    line = torch.arange(len(tokens), dtype=torch.float64)[:, None] * torch.ones(tokens.shape[1])
    assert separability_profile(line, labels).separability_permuted is None


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_chunks_do_not_matter(chunk: int) -> None:
    subspaces = class_subspaces(*clouds(6, classes=7))
    assert separability(subspaces, chunk) == pytest.approx(separability(subspaces), abs=1e-12)


def test_random_labels_are_no_further_apart_than_permuted_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1000, 32, generator=generator)
    labels = torch.randint(0, 10, (1000,), generator=generator)
    values = separability_profile(tokens, labels)
    assert values.separability_excess == pytest.approx(0, abs=0.02)
    assert values.separability_excess == pytest.approx(values.separability - values.separability_permuted)
    # half of 1,000 images are held out: three standard errors of a tenth are 0.04
    assert values.subspace_accuracy == pytest.approx(0.1, abs=0.05)
    assert values.knn_accuracy == pytest.approx(0.1, abs=0.05)


def test_classes_far_apart_are_told() -> None:
    values = separability_profile(*clouds(7, per_class=60, apart=8.0))
    assert values.separability_excess > 0.1
    assert values.subspace_accuracy > 0.9
    assert values.knn_accuracy > 0.9
    assert values.subspace_hits.mean() == values.subspace_accuracy
    assert values.knn_hits.mean() == values.knn_accuracy
    assert len(values.knn_hits) == 4 * 30


def test_degraded_tokens_are_told_by_the_clean_ones() -> None:
    tokens, labels = clouds(8, per_class=60, apart=4.0)
    same = separability_profile(tokens, labels, tokens)
    clean = separability_profile(tokens, labels)
    for name in ("separability", "separability_within", "subspace_accuracy", "knn_accuracy", "fisher_ratio"):
        assert getattr(same, name) == pytest.approx(getattr(clean, name))
    turned = separability_profile(tokens, labels, -tokens)
    assert turned.separability == pytest.approx(clean.separability)
    assert turned.knn_accuracy < clean.knn_accuracy


@settings(max_examples=50, derandomize=True)
@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 12))
def test_halves_are_even_and_odd_places_among_the_first_of_each_class(labels: list[int], per_class: int) -> None:
    fitting, held_out = halves(torch.tensor(labels, dtype=torch.int64), per_class)
    seen: dict[int, int] = {}
    expected: tuple[list[int], list[int]] = ([], [])
    for i, label in enumerate(labels):
        place = seen.get(label, 0)
        seen[label] = place + 1
        if place < per_class:
            expected[place % 2].append(i)
    assert (fitting.tolist(), held_out.tolist()) == expected


def test_permutation_keeps_labels_and_is_a_function_of_its_seed() -> None:
    labels = torch.arange(100) % 7
    assert torch.equal(permuted(labels, 1), permuted(labels, 1))
    assert not torch.equal(permuted(labels, 1), permuted(labels, 2))
    assert torch.equal(permuted(labels, 1).sort().values, labels.sort().values)


def test_everything_is_computed_where_the_tokens_are() -> None:
    tokens, labels = clouds(0)
    expected = separability_profile(tokens, labels, tokens + 0.1, tenths(labels) == 0)
    with torch.device("meta"):  # a tensor that is made elsewhere than asked for could not be computed with
        found = separability_profile(tokens, labels, tokens + 0.1, tenths(labels) == 0)
    for name in ("separability", "separability_permuted", "subspace_accuracy", "fisher_ratio", "knn_accuracy"):
        assert getattr(found, name) == getattr(expected, name)


@settings(max_examples=50, derandomize=True)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(0, 9))
def test_tenths_hold_as_many_of_each_class_and_keep_pairs_together(counts: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    groups = tenths(torch.from_numpy(labels)).numpy()
    for label, count in enumerate(counts):
        own = groups[labels == label]
        sizes = np.bincount(own, minlength=10)
        assert (own[: count // 2 * 2 : 2] == own[1 : count // 2 * 2 : 2]).all()
        assert sizes.max() - sizes.min() <= 2
        assert sizes.sum() == count


def test_leaving_images_out_is_fitting_the_others_with_the_same_random_labels() -> None:
    tokens, labels = clouds(3, classes=3, per_class=80)
    out = tenths(labels) == 4
    found = separability_profile(tokens, labels, left_out=out)
    fitting, held_out = halves(labels)
    keep = ~out[fitting]
    fit, fit_labels = tokens[fitting][keep], labels[fitting][keep]
    clean = class_subspaces(fit, fit_labels)
    drawn = [separability(class_subspaces(fit, permuted(labels[fitting], seed)[keep])) for seed in range(5)]
    assert found.separability == pytest.approx(separability(clean))
    assert found.separability_permuted == pytest.approx(np.mean(drawn))
    told = held_out[~out[held_out]]
    assert found.subspace_accuracy == pytest.approx(
        float((nearest_subspace(clean, tokens[told]) == labels[told]).double().mean())
    )
    assert found.dimension == separability_profile(tokens, labels).dimension
    nobody = separability_profile(tokens, labels, left_out=torch.zeros_like(out))
    assert nobody.separability_excess == separability_profile(tokens, labels).separability_excess


def test_too_little_to_tell_is_named_with_the_remedy() -> None:
    tokens, labels = clouds(9)
    with pytest.raises(SeparabilityError, match="needs at least two classes; the images have 1"):
        class_subspaces(tokens, torch.zeros_like(labels))
    few = torch.cat([(labels == c).nonzero()[:2, 0] for c in range(4)])
    with pytest.raises(SeparabilityError, match=r"the smallest class has 2 fitting images.*add images"):
        class_subspaces(tokens[few], labels[few])
    with pytest.raises(SeparabilityError, match="tokens have 3 features"):
        subspace_dimension(3, 100)
