import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.degradations import frost
from mae_bench.degradations.frost import LOOKS, frost_texture, photograph_scale
from mae_bench.randomness import random_uniform

pytestmark = pytest.mark.usefixtures("one_thread")
LAW = settings(max_examples=15, deadline=None, derandomize=True)

LUMA = np.array([0.299, 0.587, 0.114])
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
STATISTICS = ("mean", "deviation", "correlation", "quantiles", "octaves")

# Of the photographs frost1.png, frost2.png (which has the pixels of frost3.png), frost4.jpg and frost5.jpg in the PyPI
# package imagecorruptions 1.1.2 (their sha256 begin with ff9f9078, fe211a89, 3f8b91ca and 5fc6a19d): 300 crops of
# 224 pixels, and 2,000 crops of 32 pixels after cv2.resize(photograph, (0, 0), fx=0.2, fy=0.2).
PUBLISHED = {
    224: (
        ((.308, .582, .645), (.093, .056, .053), (.805, .547, .929), (-.131, -.097, -.045, -.004, .041, .113, .163),
         (.027, .023, .015, .012, .015, .037)),
        ((.775, .792, .828), (.076, .079, .082), (.995, .991, .995), (-.240, -.148, -.042, .012, .055, .106, .133),
         (.031, .033, .031, .028, .021, .032)),
        ((.567, .625, .675), (.102, .102, .107), (.997, .990, .992), (-.277, -.173, -.059, .003, .061, .161, .269),
         (.055, .055, .041, .033, .023, .030)),
        ((.396, .441, .487), (.142, .141, .138), (1.00, .998, .999), (-.285, -.216, -.101, -.011, .089, .256, .379),
         (.064, .056, .054, .053, .051, .050)),
    ),
    32: (
        ((.301, .581, .646), (.084, .051, .049), (.785, .518, .925), (-.121, -.087, -.040, -.004, .036, .101, .152),
         (.035, .018, .019, .019, .019)),
        ((.778, .795, .832), (.069, .071, .073), (.994, .991, .995), (-.218, -.134, -.037, .011, .049, .096, .125),
         (.052, .029, .020, .016, .016)),
        ((.562, .620, .670), (.101, .101, .105), (.997, .990, .992), (-.285, -.170, -.057, .002, .059, .160, .277),
         (.082, .039, .023, .016, .016)),
        ((.402, .447, .493), (.136, .135, .132), (1.00, .998, .999), (-.294, -.213, -.093, -.008, .085, .243, .357),
         (.098, .061, .048, .030, .026)),
    ),
}  # fmt: skip


def keys_of(count: int, seed: int = 7) -> torch.Tensor:
    return torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(seed))


def statistics_of(crops: np.ndarray) -> dict[str, np.ndarray]:
    """Of crops (N, S, S, 3): the mean colour; by channel the mean deviation within a crop; the mean correlation of red
    and green, red and blue, green and blue; quantiles of the luma less its mean in the crop; and for each octave of
    frequency, from half a cycle per pixel down, the deviation of the luma that lies in it, under a Hann window.
    """
    side = crops.shape[1]
    luma = crops @ LUMA
    luma -= luma.mean((1, 2), keepdims=True)
    correlation = np.mean([np.corrcoef(crop.reshape(-1, 3).T)[[0, 0, 1], [1, 2, 2]] for crop in crops], axis=0)
    window = np.outer(np.hanning(side), np.hanning(side))
    window /= np.sqrt((window**2).mean())
    power = np.abs(np.fft.fft2(luma * window)) ** 2 / side**4
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    # beyond half a cycle, along the diagonal, belongs to the first octave
    limits = [1.0, *(2.0 ** -(octave + 1) for octave in range(1, 6)), 0.0]
    octaves = [power[:, (frequency <= high) & (frequency > low)].sum(1).mean() for high, low in pairwise(limits)]
    return {
        "mean": crops.mean((0, 1, 2)),
        "deviation": crops.std((1, 2)).mean(0),
        "correlation": correlation,
        "quantiles": np.quantile(luma, QUANTILES),
        "octaves": np.sqrt(octaves),
    }


@pytest.fixture(scope="module", params=[(224, 15), (32, 150)], ids=["224 px", "32 px"])
def by_look(request: pytest.FixtureRequest) -> tuple[int, list[np.ndarray]]:
    """The side of the textures, and as many of each look in turn."""
    side, count = request.param
    keys = keys_of(1000)
    shares = torch.tensor([look.share for look in LOOKS]).cumsum(0)[:-1]
    chosen = torch.bucketize(random_uniform(keys, 1, 0, "frost")[:, 0], shares, right=True)
    parts = (keys[chosen == look][:count] for look in range(4))
    textures = (frost_texture(part, 0, (side, side), photograph_scale(side)) for part in parts)
    return side, [some.permute(0, 2, 3, 1).double().numpy() for some in textures]


@pytest.mark.parametrize("look", range(4))
def test_textures_look_like_crops_of_the_published_photographs(
    by_look: tuple[int, list[np.ndarray]], look: int
) -> None:
    side, textures = by_look
    found = statistics_of(textures[look])
    published = dict(zip(STATISTICS, map(np.array, PUBLISHED[side][look]), strict=True))
    assert found["mean"] == pytest.approx(published["mean"], abs=0.03)
    assert found["deviation"] == pytest.approx(published["deviation"], rel=0.12)
    assert found["correlation"] == pytest.approx(published["correlation"], abs=0.1)
    off = np.abs(found["quantiles"] - published["quantiles"]) / published["deviation"][1]
    assert (off <= [0.5, 0.25, 0.15, 0.15, 0.15, 0.25, 0.5]).all(), off
    octaves = found["octaves"][: len(published["octaves"])]
    assert octaves == pytest.approx(published["octaves"], rel=0.15)


def test_looks_are_as_frequent_as_the_photographs() -> None:
    textures = frost_texture(keys_of(300), 0, (16, 16), 0.2)
    published = torch.tensor([mean for mean, *_ in PUBLISHED[32]])
    nearest = torch.cdist(textures.mean((2, 3)), published).argmin(1)
    assert nearest.bincount(minlength=4) / 300 == pytest.approx([0.2, 0.4, 0.2, 0.2], abs=0.08)


def test_textures_are_no_noise_but_have_edges(by_look: tuple[int, list[np.ndarray]]) -> None:
    """Steps between neighbours of a Gaussian field would have an excess kurtosis of 0, of the photographs they have 0.7
    to 2.9 (a little more than half of that in the shrunken ones).
    """
    side, textures = by_look
    for some in textures:
        steps = np.diff(some @ LUMA, axis=2)
        kurtosis = (steps**4).mean() / (steps**2).mean() ** 2 - 3
        assert (1 if side == 224 else 0.4) < kurtosis < 5


@pytest.mark.parametrize("look", range(4))
def test_colours_differ_by_look_and_not_by_chance_alone(by_look: tuple[int, list[np.ndarray]], look: int) -> None:
    """The mean colour of a crop varies as little as among crops of one photograph: 0.02 to 0.08 per channel."""
    _, textures = by_look
    varied = textures[look].mean((1, 2)).std(0)
    assert (varied > 0.015).all()
    assert (varied < 0.09).all()


def test_a_texture_is_sampled_at_single_points_of_a_larger_one() -> None:
    large = frost_texture(keys_of(6), 3, (160, 140), 1.0)
    small = frost_texture(keys_of(6), 3, (32, 28), 0.2)
    assert float((small - large[:, :, 2::5, 2::5]).abs().max()) <= 1e-4


def test_textures_belong_to_their_image_and_seed() -> None:
    keys = keys_of(9)
    whole = frost_texture(keys, 1, (48, 40), 0.5)
    parts = torch.cat([frost_texture(part, 1, (48, 40), 0.5) for part in keys.flip(0).split(4)]).flip(0)
    assert float((parts - whole).abs().max()) <= 1e-5
    assert len({texture.numpy().tobytes() for texture in whole}) == 9
    assert float((frost_texture(keys, 2, (48, 40), 0.5) - whole).abs().mean()) > 0.05


@LAW
@given(st.integers(16, 300), st.integers(16, 300), st.sampled_from([0.2, 0.37, 1.0, 1.5]), st.integers(0, 2**32 - 1))
def test_textures_of_any_size_are_colours(height: int, width: int, scale: float, seed: int) -> None:
    texture = frost_texture(keys_of(2, seed), seed, (height, width), scale)
    assert texture.shape == (2, 3, height, width)
    assert texture.dtype == torch.float32
    assert bool(((texture >= 0) & (texture <= 1)).all())
    assert float(texture.std()) > 0.01


@LAW
@given(st.integers(16, 600), st.integers(1, 100))
def test_larger_images_show_more_of_a_photograph_up_to_224_pixels(side: int, more: int) -> None:
    small, large = (length / photograph_scale(length) for length in (side, side + more))
    assert large >= small - 1e-9
    assert large <= 224 + 1e-9
    if side >= 224:
        assert large == pytest.approx(small)


@LAW
@given(st.integers(0, 2**32 - 1), st.sampled_from([(11.0, 30.0, 4.0), (20.0, 20.0, 8.0), (40.0, 39.0, 3.0)]))
def test_the_uppermost_crystal_is_found_among_those_around(seed: int, numbers: tuple[float, float, float]) -> None:
    """Against looking at all nine cells around one place at a time."""
    cell, length, width = numbers
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(2, 4, 6, 7, generator=generator)
    rows = 1 + 4 * torch.rand(2, 5, generator=generator)
    columns = 1 + 5 * torch.rand(2, 3, generator=generator)
    per_length, per_width = torch.full((2, 1, 1), cell / length), torch.full((2, 1, 1), cell / width)
    found = torch.stack(frost._uppermost(draws, rows, columns, per_length, per_width))
    for b in range(2):
        for h in range(5):
            for w in range(3):
                y, x = float(rows[b, h]), float(columns[b, w])
                best = (math.inf, 0.0, 0.0, 0.0)
                for i in range(int(y) - 1, int(y) + 2):
                    for j in range(int(x) - 1, int(x) + 2):
                        down, right, turn, tone = draws[b, :, i, j].tolist()
                        dy, dx, angle = y - i - down, x - j - right, 2 * math.pi * turn
                        along = (math.cos(angle) * dx + math.sin(angle) * dy) * cell / length
                        across = (math.cos(angle) * dy - math.sin(angle) * dx) * cell / width
                        best = min(best, (along**2 + across**2 - 0.7 * tone, along, across, tone))
                assert found[:, b, h, w].tolist() == pytest.approx(best[1:], abs=1e-4)


def test_looks_are_well_formed() -> None:
    assert sum(look.share for look in LOOKS) == pytest.approx(1)
    for look in LOOKS:
        assert len(look.noise) == len(LOOKS[0].noise)
        for cell, length, width, *_ in look.crystals:
            # crystals are looked for in the cells beside that of a place
            assert max(length, width) <= cell
