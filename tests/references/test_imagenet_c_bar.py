"""The statements of ImageNet-C-bar are themselves checked in cases whose outcome is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from references import imagenet_c_bar

NAMES = (
    "blue_sample", "plasma", "checkerboard_cutout", "cocentric_sine", "single_freq_grey", "brownish", "perlin",
    "sparkles", "inverse_sparkles", "caustic",
)  # fmt: skip


def photo(side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def corrupted(name: str, side: int, magnitude: float) -> NDArray[np.floating]:
    return imagenet_c_bar.corrupted(name, photo(side), magnitude, np.random.default_rng(1))


@pytest.mark.parametrize("side", [32, 45])
@pytest.mark.parametrize("name", NAMES)
def test_every_corruption_gives_an_image(name: str, side: int) -> None:
    for magnitude in (2, 9):
        result = corrupted(name, side, magnitude)
        assert result.shape == (side, side, 3)
        assert np.issubdtype(result.dtype, np.floating)
        assert 0 <= result.min() <= result.max() <= 255
        assert np.abs(result - photo(side)).mean() > 0.5
        assert np.array_equal(result, corrupted(name, side, magnitude))


@pytest.mark.parametrize("name", [name for name in NAMES if "sparkles" not in name and name != "blue_sample"])
def test_a_magnitude_of_zero_changes_nothing(name: str) -> None:
    assert corrupted(name, 32, 0) == pytest.approx(photo(32), abs=1e-3)


@pytest.mark.parametrize("side", [6, 7])
def test_phases_are_turned_by_180_degrees(side: int) -> None:
    drawn = imagenet_c_bar.mirrored_phases(side, np.random.default_rng(2))
    assert drawn.shape == (side, side)
    assert np.array_equal(drawn, drawn[::-1, ::-1])


def test_blue_noise_is_fine_and_brownish_noise_coarse() -> None:
    grey, rng = np.full((64, 64, 3), 128, np.uint8), np.random.default_rng(3)

    def step(layer: NDArray[np.floating]) -> float:
        """What neighbours differ by, a share of what any two pixels do: one for white noise."""
        return float(np.abs(np.diff(layer, axis=0)).mean() / (layer.std() * 2 / math.sqrt(math.pi)))

    brown = imagenet_c_bar.corrupted("brownish", grey, 2, rng)
    assert brown.std(axis=(0, 1)) == pytest.approx(12.8, rel=1e-3)
    assert step(brown[..., 0]) < 0.7
    blue = imagenet_c_bar.corrupted("blue_sample", grey, 25 / 3, rng)
    assert set(np.unique(blue)) == {0, 128}
    assert np.array_equal(blue[..., 0], blue[..., 2])
    assert (blue > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert step(blue[..., 0]) > 1


def test_checkerboard_cuts_out_every_second_square() -> None:
    black = np.zeros((32, 32, 3), np.uint8)
    never, always = np.ones((16, 16)), np.zeros((16, 16))
    assert not imagenet_c_bar.checkerboard_cutout(black, 10, 0, 8, never).any()
    result = imagenet_c_bar.checkerboard_cutout(black, 1, 0, 8, always)
    squares = np.indices((4, 4)).sum(axis=0) % 2 == 0
    assert np.array_equal(result[..., 0] == 128, squares.repeat(8, axis=0).repeat(8, axis=1))


def test_perlin_noise_vanishes_at_its_lattice_and_is_smooth_between() -> None:
    rng = np.random.default_rng(4)
    permutation, gradients = imagenet_c_bar.shuffled(rng), imagenet_c_bar.gradients(rng)
    assert np.array_equal(np.sort(permutation), np.arange(256))
    assert np.linalg.norm(gradients, axis=1) == pytest.approx(1)
    black = np.zeros((224, 224, 3), np.uint8)
    half = imagenet_c_bar.perlin(black, 10, permutation, gradients)[..., 0] / 255
    assert half[::32, ::32] == pytest.approx(0.25)
    assert (half > 0.2501).mean() > 0.9
    fine = imagenet_c_bar._perlin_noise(*np.mgrid[0:2:201j, 0:2:201j], permutation, gradients)
    assert np.abs(np.diff(fine, 2, axis=0)).max() < 5e-3
    assert np.abs(np.diff(fine, 2, axis=1)).max() < 5e-3


def test_rays_bend_by_the_law_of_refraction() -> None:
    slope = np.array([[[0.6, -0.3], [0.0, 0.9], [0.02, 0.01]]])
    normal = np.concatenate([slope, np.ones((1, 3, 1))], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    plane = imagenet_c_bar._refraction(slope, index=4)
    assert not plane[0, 2].any(), "the last surface is all but level"
    ray = np.concatenate([plane, np.sqrt(1 - (plane**2).sum(axis=-1, keepdims=True))], axis=-1)
    inside, outside = np.cross(ray, normal)[0, :2], np.cross([0.0, 0.0, 1.0], normal)[0, :2]
    assert inside == pytest.approx(outside / 4)


def test_sparkles_whiten_their_centres_and_inverse_sparkles_keep_theirs() -> None:
    black, rays = np.zeros((40, 40, 3), np.uint8), np.zeros(60)
    bright = imagenet_c_bar.sparkles(black, 3, np.array([[9.0, 30.0]]), [rays])
    assert np.array_equal(bright[9, 30], [255, 255, 255])
    assert bright[9, 35, 0] == pytest.approx(255 * 1.2**2 / (25 + 1e-4) * 0.75)
    kept = imagenet_c_bar.inverse_sparkles(black, 10, np.array([9.0, 30.0]), rays)
    assert np.array_equal(kept[9, 30], [0, 0, 0])
    assert kept[39, 0, 0] > 100


def test_waves_follow_their_formulas() -> None:
    grey = np.full((20, 20, 3), 128, np.uint8)
    wave = imagenet_c_bar.single_freq_grey(grey, 1, np.array([0.3, -0.2]), 0.5)
    assert wave[7, 4] == pytest.approx(128 + 19.6 * math.sin(0.3 * 4 - 0.2 * 7 + 0.5))
    rings = imagenet_c_bar.cocentric_sine(grey, 5, np.array([3.0, 4.0]), 2, 0, 4)
    assert rings[4, 3 + 9] == pytest.approx(128 + 64 * (9 % 4 / 4 - 0.5))
    assert rings[4 + 9, 3] == pytest.approx(128 + 64 * (9 % 4 / 4 - 0.5))
