"""Attention distance and entropy against a four-token attention by hand and a slow loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.indicators.attention import attention_values, grid_distances, uniform_distance


def random_scores(seed: int, images: int, heads: int, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, heads, tokens, tokens, generator=generator).mul(3)


def test_four_tokens_by_hand() -> None:
    """A grid of 2x2: neighbours are half a side apart, diagonals sqrt(0.5)."""
    attention = torch.tensor(
        [[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.25, 0.5], [0.25, 0.25, 0.25, 0.25]]
    )[None, None]
    values = attention_values(attention.clamp_min(1e-30).log(), prefix=0, grid=(2, 2))
    diagonal = math.sqrt(0.5)
    distance = (0 + 0.25 + (0.25 * diagonal + 0.5 * 0.5) + (0.5 * 0.5 + 0.25 * diagonal)) / 4
    entropy = (0 + math.log(2) + (0.5 * math.log(4) + 0.5 * math.log(2)) + math.log(4)) / 4 / math.log(4)
    assert float(values["attention_distance"]) == pytest.approx(distance, abs=1e-6)
    assert float(values["attention_entropy"]) == pytest.approx(entropy, abs=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2))
def test_values_are_those_of_loops(seed: int, rows: int, columns: int, prefix: int) -> None:
    count = rows * columns
    scores = random_scores(seed, 2, 3, prefix + count)
    attention = scores.softmax(-1)
    values = attention_values(scores, prefix, (rows, columns))
    for image in range(2):
        for head in range(3):
            distance = entropy = 0.0
            for q in range(count):
                given_away = attention[image, head, prefix + q, prefix:].double().numpy()
                share = given_away / given_away.sum()
                for k in range(count):
                    apart = math.hypot((q // columns - k // columns) / rows, (q % columns - k % columns) / columns)
                    distance += share[k] * apart / count
                    entropy -= share[k] * math.log(share[k]) / count
            assert float(values["attention_distance"][image, head]) == pytest.approx(distance, abs=1e-5)
            expected = entropy / math.log(count) if count > 1 else 0.0
            assert float(values["attention_entropy"][image, head]) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 3))
def test_uniform_attention_is_the_unit_and_attention_to_oneself_nothing(rows: int, columns: int, prefix: int) -> None:
    tokens = prefix + rows * columns
    uniform = attention_values(torch.full((1, 1, tokens, tokens), 3.0), prefix, (rows, columns))
    assert float(uniform["attention_distance"]) == pytest.approx(uniform_distance((rows, columns)), rel=1e-5)
    assert float(uniform["attention_entropy"]) == pytest.approx(1, abs=1e-5)
    own = attention_values(1000 * torch.eye(tokens)[None, None], prefix, (rows, columns))
    assert float(own["attention_distance"]) == 0
    assert float(own["attention_entropy"]) == pytest.approx(0, abs=1e-6)


def test_what_goes_to_other_tokens_is_left_out() -> None:
    scores = random_scores(1, 2, 2, 10)
    more = scores.clone()
    more[..., 0] += 200  # all but a share that float32 does not hold
    one, other = (attention_values(values, 1, (3, 3)) for values in (scores, more))
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_no_two_patches_are_further_apart_than_the_diagonal() -> None:
    distances = grid_distances((5, 7)).numpy()
    assert distances.max() < math.sqrt(2)
    np.testing.assert_allclose(distances, distances.T)
    assert (np.diag(distances) == 0).all()


def test_uniform_distance_of_a_fine_grid_is_that_of_the_unit_square() -> None:
    """The mean distance of two random points of a square, 0.5214 sides."""
    assert uniform_distance((40, 40)) == pytest.approx(0.5214, abs=1e-3)
