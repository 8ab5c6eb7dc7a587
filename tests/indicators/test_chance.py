"""Whether predictions know anything of the labels, against sums over outcomes written out."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.indicators.chance import at_chance

LAW = settings(max_examples=25, deadline=None, derandomize=True)


def at_least(successes: int, trials: int, probability: Fraction) -> Fraction:
    """Of a binomial distribution, summed term by term."""
    rest = 1 - probability
    terms = (comb(trials, k) * probability**k * rest ** (trials - k) for k in range(successes, trials + 1))
    return sum(terms, Fraction(0))


def at_chance_by_hand(prediction: list[int], labels: list[int], outputs: int) -> bool:
    n = len(labels)
    if n < 100:
        return False
    predicted, present = Counter(prediction), Counter(labels)
    hits = sum(a == b for a, b in zip(prediction, labels, strict=True))
    blind = sum((Fraction(present[label] * predicted[label], n * n) for label in present), Fraction(0))
    if at_least(hits, n, blind) > Fraction(1, 1000):
        return True
    recognised = 0
    for label in present:
        own = Counter(sorted(p for p, shown in zip(prediction, labels, strict=True) if shown == label))
        recognised += own.most_common(1)[0][0] == label
    return len(present) >= 10 and at_least(recognised, len(present), Fraction(1, outputs)) > Fraction(1, 50)


def predictions(classes: int, images: int, right: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and predictions that are right with a probability and drawn otherwise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    return np.where(generator.random(images) < right, labels, generator.integers(0, classes, images)), labels


@LAW
@given(st.integers(2, 14), st.integers(60, 150), st.sampled_from([0.0, 0.05, 0.1, 0.3, 1.0]), st.integers(0, 10**6))
def test_it_is_the_binomial_tests_written_out(classes: int, images: int, right: float, seed: int) -> None:
    prediction, labels = predictions(classes, images, right, seed)
    found = at_chance(prediction, labels, classes)
    assert (found is not None) == at_chance_by_hand(prediction.tolist(), labels.tolist(), classes)


@LAW
@given(st.integers(2, 200), st.integers(0, 10**6))
def test_the_right_class_for_every_image_is_no_luck(classes: int, seed: int) -> None:
    _, labels = predictions(classes, 300, 0.0, seed)
    assert at_chance(labels, labels, classes) is None


@LAW
@given(st.integers(2, 50), st.lists(st.integers(1, 9), min_size=50, max_size=50), st.integers(0, 10**6))
def test_one_class_for_every_image_is_chance_however_many_are_of_it(
    classes: int, weights: list[int], seed: int
) -> None:
    share = np.array(weights[:classes]) / sum(weights[:classes])
    labels = np.random.default_rng(seed).choice(classes, 200, p=share)
    answered = int(np.random.default_rng(seed).integers(0, classes))
    assert at_chance(np.full(200, answered), labels, classes) is not None


def test_a_rare_class_that_is_told_apart_is_no_chance_below_the_share_of_the_frequent_one() -> None:
    """Nine of ten images are of one class; a model that is right four times in five, of either class, is better than
    chance, though always answering with the frequent class is right more often.
    """
    labels = (np.arange(1000) % 10 == 0).astype(int)
    prediction = np.where(np.arange(1000) // 10 % 5 == 0, 1 - labels, labels)
    assert np.mean(prediction == labels) == 0.8 < np.mean(labels == 0)
    assert at_chance(prediction, labels, 2) is None


def test_outputs_that_stand_for_no_class_are_chance() -> None:
    assert at_chance(np.full(200, -7), np.arange(200) % 5, 1000) is not None


@pytest.mark.parametrize("images", [0, 1, 99])
def test_few_images_say_nothing(images: int) -> None:
    assert at_chance(np.zeros(images, dtype=int), np.arange(images) % 3, 3) is None


@pytest.mark.parametrize(("classes", "images"), [(10, 1024), (100, 10_000)])
def test_a_head_that_gives_each_class_an_output_by_lot_is_chance(classes: int, images: int) -> None:
    """It is right for all images of about one class, which no test of single images takes for luck."""
    generator = np.random.default_rng(0)
    labels = np.arange(images) % classes
    found = [at_chance(generator.integers(0, classes, classes)[labels], labels, classes) for _ in range(200)]
    # four or more classes have their own output in 2 % of draws
    assert sum(why is not None for why in found) >= 190


@pytest.mark.parametrize("classes", [10, 100])
def test_five_classes_that_are_recognised_are_enough(classes: int) -> None:
    labels = np.arange(1000) % classes
    found = at_chance(np.where(labels < 5, labels, 9), labels, classes)
    assert found is None


@LAW
@given(st.integers(2, 30), st.sampled_from([0.0, 0.1, 0.5]), st.integers(0, 10**6))
def test_the_order_of_images_does_not_matter(classes: int, right: float, seed: int) -> None:
    prediction, labels = predictions(classes, 240, right, seed)
    generator = np.random.default_rng(seed)
    order = generator.permutation(240)
    assert at_chance(prediction[order], labels[order], classes) == at_chance(prediction, labels, classes)


def test_the_reason_says_what_luck_would_reach() -> None:
    labels = np.arange(200) % 4
    assert at_chance((labels + 1) % 4, labels, 4) == "predictions that know nothing of the labels reach 25.0 %"
    labels = np.arange(1000) % 10
    assert at_chance(np.where(labels < 2, labels, 9 - labels % 8), labels, 10) == (
        "2 of 10 classes are recognised, as by an untrained head"
    )
