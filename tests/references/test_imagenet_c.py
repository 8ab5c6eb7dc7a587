"""The statements of ImageNet-C are themselves checked: against ImageMagick, literal readings and known cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mae_bench.degradations import CORRUPTIONS
from mae_bench.degradations.severity import SEVERITIES
from references import imagenet_c

RANDOM = np.random.default_rng(0)
PHOTO = RANDOM.integers(0, 226, (9, 8, 3), dtype=np.uint8).repeat(5, axis=0).repeat(5, axis=1)[:43, :37]
PHOTO += RANDOM.integers(0, 30, PHOTO.shape, dtype=np.uint8)
TEXTURE = RANDOM.integers(0, 256, (60, 60, 3), dtype=np.uint8)


def corrupted(name: str, severity: float, seed: int, side: int = 32) -> NDArray[np.floating]:
    rng = np.random.default_rng(seed)
    given = {"texture": imagenet_c.frost_crop(TEXTURE, *PHOTO.shape[:2], rng)} if name == "frost" else {}
    return imagenet_c.corrupted(name, PHOTO, SEVERITIES[name].at(severity, side), rng, **given)


@pytest.mark.parametrize("name", [kind.name for kind in CORRUPTIONS.values() if kind.family != "cbar"])
@pytest.mark.parametrize("side", [32, 224])
def test_every_corruption_gives_an_image_of_any_height_and_width(name: str, side: int) -> None:
    before = PHOTO.copy()
    for severity in (1, 5):
        result = corrupted(name, severity, seed=1, side=side)
        assert result.shape == PHOTO.shape
        assert np.issubdtype(result.dtype, np.floating)
        assert 0 <= result.min() <= result.max() <= 255
        assert np.abs(result - PHOTO).mean() > 0.1
        assert np.array_equal(result, corrupted(name, severity, seed=1, side=side))
    assert np.array_equal(PHOTO, before)


def test_motion_blur_is_imagemagicks() -> None:
    """The file holds what ``convert in.png -motion-blur 10x3+30 out.png`` of ImageMagick 6.9.11-60 Q16 gives."""
    golden = np.load(Path(__file__).parent / "data" / "motion_blur.npz")
    assert len(golden["settings"]) == 6
    for (radius, sigma, angle), blurred in zip(golden["settings"], golden["blurred"], strict=True):
        assert np.array_equal(imagenet_c.motion_blur(golden["image"], radius, sigma, angle), blurred)


@pytest.mark.parametrize(("severity", "side"), [(1, 32), (5, 32), (3, 224), (5, 224)])
def test_glass_blur_does_what_its_literal_swap_does(severity: int, side: int) -> None:
    sigma, max_delta, iterations = SEVERITIES["glass_blur"].at(severity, side)
    drawn = imagenet_c.draws("glass_blur", PHOTO, (sigma, max_delta, iterations), np.random.default_rng(2))
    # without smoothing, what is left is the shuffle alone
    result = imagenet_c.glass_blur(PHOTO, 0, max_delta, iterations, **drawn)
    x, delta = PHOTO.copy(), int(max_delta)
    for turn in drawn["offsets"]:
        for h in range(x.shape[0] - delta, delta, -1):
            for w in range(x.shape[1] - delta, delta, -1):
                v, u = h + turn[h, w, 1], w + turn[h, w, 0]
                x[h, w], x[v, u] = x[v, u], x[h, w]
    assert np.array_equal(np.round(result), x)
    swapped = np.sort(x.reshape(-1, 3), axis=0) == np.sort(PHOTO.reshape(-1, 3), axis=0)
    assert not swapped.all(), "pixels are copied, so that not all of them survive"


def test_plasma_fractal_is_diamond_square_by_rolled_arrays() -> None:
    side, decay = 16, 1.7
    uniforms = np.random.default_rng(3).uniform(-1, 1, (side, side))
    expected, amplitude, step = np.zeros((side, side)), 100.0, side
    while step >= 2:
        half = step // 2
        centre, above, left = np.s_[half::step, half::step], np.s_[::step, half::step], np.s_[half::step, ::step]
        corners = expected[::step, ::step]
        two = corners + np.roll(corners, -1, 0)
        expected[centre] = (two + np.roll(two, -1, 1)) / 4 + amplitude**2 * uniforms[centre]
        middles = expected[centre]
        across = corners + np.roll(corners, -1, 1) + middles + np.roll(middles, 1, 0)
        expected[above] = across / 4 + amplitude**2 * uniforms[above]
        down = corners + np.roll(corners, -1, 0) + middles + np.roll(middles, 1, 1)
        expected[left] = down / 4 + amplitude**2 * uniforms[left]
        step, amplitude = half, amplitude / decay
    expected = (expected - expected.min()) / np.ptp(expected)
    assert imagenet_c.plasma_fractal(decay, uniforms) == pytest.approx(expected, abs=1e-12)


def test_shot_noise_counts_are_poisson() -> None:
    levels = np.arange(1, 2000) / 2000
    photons = 6.0
    grey = np.full((1, len(levels), 3), 64, np.uint8)
    counts = imagenet_c.shot_noise(grey, photons, np.broadcast_to(levels[:, None], grey.shape)) / 255 * photons
    for count in range(5):
        share = np.isclose(counts[..., 0], count).mean()
        assert share == pytest.approx(stats.poisson.pmf(count, 64 / 255 * photons), abs=1e-3)
    black = np.zeros_like(grey)
    assert not imagenet_c.shot_noise(black, photons, np.full(grey.shape, 0.999)).any()


def test_impulse_noise_hits_channels_independently_with_salt_and_pepper() -> None:
    grey = np.full((200, 200, 3), 99, np.uint8)
    result = imagenet_c.corrupted("impulse_noise", grey, (0.2,), np.random.default_rng(4))
    assert set(np.unique(result)) == {0, 99, 255}
    hit = result != 99
    assert hit.mean() == pytest.approx(0.2, abs=0.005)
    assert (result[hit] == 255).mean() == pytest.approx(0.5, abs=0.02)
    assert hit.all(axis=-1).mean() == pytest.approx(0.2**3, abs=0.002)


@pytest.mark.parametrize(
    ("stop", "step", "factors"),
    [
        (1.06, 0.01, 7), (1.11, 0.01, 12), (1.16, 0.01, 16), (1.21, 0.01, 21), (1.26, 0.01, 26),
        (1.21, 0.02, 11), (1.26, 0.02, 13), (1.31, 0.03, 11),
    ],
)  # fmt: skip
def test_zoom_blur_averages_the_image_and_its_zooms(stop: float, step: float, factors: int) -> None:
    """A stop of 1.06 or 1.11 is itself a factor, since the range's length is rounded up."""
    zooms = [imagenet_c.clipped_zoom(PHOTO / 255, 1 + step * i) for i in range(factors)]
    expected = (PHOTO / 255 + sum(zooms)) / (factors + 1) * 255
    assert imagenet_c.zoom_blur(PHOTO, stop, step) == pytest.approx(expected, abs=1e-3)


def test_clipped_zoom_enlarges_the_middle() -> None:
    ramp = np.broadcast_to(np.arange(40.0)[:, None, None], (40, 24, 3))
    large = imagenet_c.clipped_zoom(ramp, 2)
    assert large.shape == ramp.shape
    assert large[:, 0, 0] == pytest.approx(np.linspace(10, 29, 40))
    assert np.array_equal(imagenet_c.clipped_zoom(ramp, 1), ramp)


def test_a_disk_is_one_point_if_small_and_leaks_at_the_edge_of_its_grid() -> None:
    assert imagenet_c.disk(0.3, 0.01)[8, 8] == pytest.approx(1)
    assert imagenet_c.disk(3, 0.1).sum() == pytest.approx(1, abs=1e-12)
    assert (imagenet_c.disk(3, 0.1) > 1e-6).sum() == 29
    assert imagenet_c.disk(10, 0.5).shape == (21, 21)
    assert imagenet_c.disk(8, 0.5).sum() != pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("fixed_point", [True, False])
def test_elastic_transform_moves_an_image_by_whole_pixels(fixed_point: bool) -> None:
    still = np.zeros(PHOTO.shape[:2])
    for dx, dy in ((0, 0), (3, -2)):
        corners = np.broadcast_to([dx / 4, dy / 4], (3, 2))
        moved = imagenet_c.elastic_transform(PHOTO, 1, 2, 4, corners, still, still, fixed_point)
        expected = np.roll(PHOTO, (dy, dx), axis=(0, 1))
        assert moved[3:-3, 3:-3] == pytest.approx(expected[3:-3, 3:-3], abs=1e-3)


def test_elastic_transform_reads_where_the_displacement_points() -> None:
    one, still = np.ones(PHOTO.shape[:2]), np.zeros(PHOTO.shape[:2])
    result = imagenet_c.elastic_transform(PHOTO, 2, 5, 0, np.zeros((3, 2)), one, still)
    assert result[:, :-2] == pytest.approx(PHOTO[:, 2:], abs=1e-3)
    assert result[:, -1] == pytest.approx(PHOTO[:, -2], abs=1e-3)


def test_spatter_without_a_drop_leaves_the_image() -> None:
    calm = np.zeros(PHOTO.shape[:2])
    for mud in (0, 1):
        assert imagenet_c.spatter(PHOTO, 0.6, 0.1, 1, 0.7, 0.5, mud, calm) == pytest.approx(PHOTO, abs=1e-3)


def test_snow_falls_on_both_an_image_and_its_half_turn() -> None:
    black = np.zeros((31, 30, 3), np.uint8)
    name, seed = "snow", np.random.default_rng(6)
    result = imagenet_c.corrupted(name, black, SEVERITIES[name].at(2, 32), seed)
    assert result == pytest.approx(result[::-1, ::-1], abs=1e-3)
    assert len(np.unique(result)) > 20


def test_fog_keeps_what_is_brightest() -> None:
    uniforms = np.random.default_rng(7).uniform(-1, 1, (64, 64))
    white = np.full((64, 64, 3), 255, np.uint8)
    result = imagenet_c.fog(white, 1.5, 2, uniforms)
    assert result.max() == pytest.approx(255)
    assert result.min() == pytest.approx(255 / 2.5)


def test_colour_corruptions_of_a_grey_image() -> None:
    grey = np.repeat(PHOTO[..., :1] // 2, 3, axis=-1)
    assert imagenet_c.brightness(grey, 0.2) == pytest.approx(grey + 51.0)
    assert imagenet_c.saturate(grey, 20, 0) == pytest.approx(grey)
    assert imagenet_c.contrast(grey, 0).std() == pytest.approx(0, abs=1e-9)


def test_pixelate_averages_boxes() -> None:
    checks = (np.indices((32, 32)).sum(axis=0) % 2 * 200).astype(np.uint8)[..., None].repeat(3, axis=-1)
    assert np.array_equal(imagenet_c.pixelate(checks, 0.5), np.full((32, 32, 3), 100))


def test_what_is_stored_is_truncated_then_compressed() -> None:
    assert imagenet_c.truncated(np.array([0.99, 254.999, 255.0])).tolist() == [0, 254, 255]
    flat = np.full((16, 16, 3), 99.9)
    assert np.array_equal(imagenet_c.stored(flat), np.full((16, 16, 3), 99))
    error = np.abs(imagenet_c.stored(PHOTO.astype(float)).astype(float) - PHOTO)
    assert 0 < error.mean() < np.abs(imagenet_c.jpeg_compression(PHOTO, 10) - PHOTO).mean()
