import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import color, data

from mae_bench.degradations import Setting, weather
from mae_bench.degradations.frost import frost_texture, photograph_scale
from mae_bench.degradations.severity import SEVERITIES
from mae_bench.degradations.weather import (
    brightness,
    canny,
    chamfer_distance,
    equalized,
    fog,
    luma,
    plasma_fractal,
    spattered_mud,
    spattered_water,
)
from mae_bench.randomness import random_normal, random_uniform
from references import imagenet_c

pytestmark = pytest.mark.usefixtures("one_thread")
LAW = settings(max_examples=15, deadline=None, derandomize=True)

NAMES = ("fog", "frost", "snow", "brightness", "spatter")
RANDOM = ("fog", "frost", "snow", "spatter")


def setting_of(count: int, seed: int = 0) -> Setting:
    keys = torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(7))
    return Setting(keys, seed, 32, (0.5,))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def photograph(height: int, width: int) -> np.ndarray:
    """(H, W, 3) in 8 bits."""
    return cv2.resize(data.astronaut()[:256, 100:356], (width, height), interpolation=cv2.INTER_AREA)


def tensor_of(pixels: np.ndarray) -> torch.Tensor:
    """(1, C, H, W) in [0, 1] from (H, W, C) in 8 bits."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def off(
    name: str, pixels: np.ndarray, parameters: tuple[float, ...], expected: np.ndarray, setting: Setting
) -> np.ndarray:
    """How many steps of 8 bits each value of the corrupted image is from what is expected."""
    corrupted = weather.corrupt(name, tensor_of(pixels), parameters, setting)
    return np.abs(corrupted[0].permute(1, 2, 0).double().numpy() * 255 - expected)


def normals_of(name: str, setting: Setting, height: int, width: int) -> np.ndarray:
    return random_normal(setting.keys, height * width, setting.seed, name).view(height, width).double().numpy()


def placed(uniform: np.ndarray) -> np.ndarray:
    """Random numbers of the diamond-square algorithm at the points of the map they belong to: the centres of squares,
    then the middles of their upper and of their left sides, from the coarsest to the finest.
    """
    side = math.isqrt(len(uniform) + 1)
    points, step = np.zeros((side, side)), side
    drawn = iter(uniform)
    while step > 1:
        half = step // 2
        for top, left in ((half, half), (0, half), (half, 0)):
            for row in range(top, side, step):
                for column in range(left, side, step):
                    points[row, column] = next(drawn)
        step = half
    return points


# ---- each weather against the reference, given the same draws


@pytest.mark.parametrize(("severity", "side"), [(1, 32), (4, 32), (2, 224), (5, 224)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 17), (33, 20)])
def test_fog_is_that_of_the_reference(severity: int, side: int, height: int, width: int) -> None:
    pixels, setting = photograph(height, width), setting_of(1, seed=5)
    parameters = SEVERITIES["fog"].at(severity, side)
    mapsize = 64 if height > 32 else 32
    uniform = random_uniform(setting.keys, mapsize**2 - 1, 5, "plasma_fractal")[0].double().numpy()
    expected = imagenet_c.fog(pixels, *parameters, uniforms=placed(2 * uniform - 1))
    assert off("fog", pixels, parameters, expected, setting).max() <= 2e-3


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("side", [32, 224])
def test_frost_is_that_of_the_reference(severity: int, side: int) -> None:
    pixels, setting = photograph(24, 30), setting_of(1, seed=5)
    parameters = SEVERITIES["frost"].at(severity, side)
    texture = frost_texture(setting.keys, 5, (24, 30), photograph_scale(24))
    expected = imagenet_c.frost(pixels, *parameters, texture=texture[0].permute(1, 2, 0).double().numpy() * 255)
    assert off("frost", pixels, parameters, expected, setting).max() <= 1e-3


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("side", "height", "width"), [(224, 96, 96), (32, 32, 32)])
def test_snow_is_that_of_the_reference(severity: int, side: int, height: int, width: int) -> None:
    pixels, setting = photograph(height, width), setting_of(1, seed=5)
    parameters = SEVERITIES["snow"].at(severity, side)
    angle = 90 * random_uniform(setting.keys, 1, 5, "snow_angle").item() - 135
    expected = imagenet_c.snow(pixels, *parameters, normals=normals_of("snow", setting, height, width), angle=angle)
    wrong = off("snow", pixels, parameters, expected, setting)
    # where a layer in 8 bits is cut between two values, it may be either
    assert wrong.max() <= 2.001
    assert (wrong > 1e-3).mean() <= 1e-3


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("side", "height", "width"), [(224, 224, 200), (32, 32, 32), (32, 28, 28), (32, 25, 40)])
def test_spatter_is_that_of_the_reference(severity: int, side: int, height: int, width: int) -> None:
    pixels = photograph(height, width)
    parameters = SEVERITIES["spatter"].at(severity, side)
    for seed in range(3):
        setting = setting_of(1, seed)
        normals = normals_of("spatter", setting, height, width)
        expected = imagenet_c.spatter(pixels, *parameters, normals=normals)
        assert (off("spatter", pixels, parameters, expected, setting) > 1e-3).mean() <= 1e-3


@pytest.mark.parametrize("added", [0.05, 0.3, 0.5])
def test_brightness_is_that_of_the_reference(added: float) -> None:
    pixels = photograph(40, 40)
    pixels[:3, :3], pixels[3:6, :3], pixels[6:9, :3] = 0, 255, (0, 0, 1)
    expected = imagenet_c.brightness(pixels, added)
    assert off("brightness", pixels, (added,), expected, setting_of(1)).max() <= 1e-3


@LAW
@given(arrays(np.float64, (1, 9, 3), elements=st.floats(0, 1)), st.floats(0, 1))
def test_brightness_is_a_change_of_value_in_hsv(pixels: np.ndarray, added: float) -> None:
    hsv = color.rgb2hsv(pixels)
    hsv[..., 2] = np.minimum(hsv[..., 2] + added, 1)
    found = brightness(torch.from_numpy(pixels).permute(2, 0, 1)[None], added)
    assert np.abs(found[0].permute(1, 2, 0).numpy() - color.hsv2rgb(hsv)).max() <= 1e-9


# ---- the parts of spatter against OpenCV


def layer_of(height: int, width: int, sigma: float, seed: int) -> np.ndarray:
    """Smoothed noise in 8 bits, low values cut off, as under a spatter; of more levels the rougher it is."""
    drawn = np.random.default_rng(seed).normal(0.65, 0.3, (height, width))
    smooth = cv2.GaussianBlur(drawn, (0, 0), sigma) if sigma else drawn
    return np.where(smooth < 0.6, 0, 255 * np.clip(smooth, 0, 1)).astype(np.uint8)


layers = st.builds(
    layer_of, st.integers(16, 70), st.integers(16, 70), st.sampled_from([0, 0.5, 1, 2, 4]), st.integers(0, 2**32 - 1)
)


@LAW
@given(layers)
def test_edges_are_those_of_opencv(layer: np.ndarray) -> None:
    found = canny(torch.from_numpy(layer)[None, None].float(), 50, 150)
    assert np.array_equal(found[0, 0].numpy(), cv2.Canny(layer, 50, 150) > 0)


@LAW
@given(st.integers(0, 2**32 - 1))
def test_edges_of_smooth_shades_are_those_of_opencv(seed: int) -> None:
    """Slopes in every direction, with many weak edges, and chains of them that end in a strong one."""
    drawn = np.random.default_rng(seed).random((60, 50))
    smooth = cv2.GaussianBlur(drawn, (0, 0), 2)
    shades = (255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())).astype(np.uint8)
    found = canny(torch.from_numpy(shades)[None, None].float(), 100, 160)[0, 0].numpy()
    expected = cv2.Canny(shades, 100, 160) > 0
    assert expected.any()
    # a chain of weak pixels is followed over eight of them only
    assert not (found & ~expected).any()
    assert (found != expected).mean() <= 0.005


@LAW
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.002, 0.02, 0.3]), st.integers(16, 70), st.integers(16, 70))
def test_distances_are_those_of_opencv(seed: int, share: float, height: int, width: int) -> None:
    edges = np.random.default_rng(seed).random((height, width)) < share
    edges[height // 2, width // 3] = True
    found = chamfer_distance(torch.from_numpy(edges)[None, None], limit=20)
    expected = cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, 5)
    assert np.abs(found[0, 0].numpy() - np.minimum(expected, 20)).max() <= 1e-5


def test_distance_without_an_edge_is_the_limit() -> None:
    assert chamfer_distance(torch.zeros(1, 1, 20, 20, dtype=torch.bool), limit=20).unique().tolist() == [20]


@LAW
@given(st.lists(arrays(np.uint8, (7, 9), elements=st.integers(0, 255)), min_size=1, max_size=3))
def test_levels_are_equalized_as_by_opencv_each_image_by_itself(images: list[np.ndarray]) -> None:
    images = [*images, images[0] // 20, np.full((7, 9), 20, dtype=np.uint8)]
    found = equalized(torch.from_numpy(np.stack(images))[:, None].float())
    assert np.array_equal(found[:, 0].numpy(), np.stack([cv2.equalizeHist(image) for image in images]))


def test_where_nothing_is_spattered_the_image_is_kept() -> None:
    images, nothing = noise(2, 3, 20, 20), torch.zeros(2, 1, 20, 20)
    assert torch.equal(spattered_water(images, nothing, 0.6), images)
    assert torch.equal(spattered_mud(images, nothing, 0.6), images)


# ---- plasma


def spectra_of(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of maps (N, S, S): the mean power by octave of frequency, and its standard error."""
    side = maps.shape[1]
    power = np.abs(np.fft.fft2(maps)) ** 2
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)) * side
    octave = np.floor(np.log2(np.maximum(frequency, 0.5))).astype(int)
    bands = np.stack([power[:, octave == band].mean(1) for band in range(octave.max() + 1)])
    return bands.mean(1), bands.std(1) / math.sqrt(len(maps))


@pytest.mark.parametrize("decay", [1.4, 2.0, 3.0])
def test_plasma_has_the_spectrum_of_the_reference(decay: float) -> None:
    rng = np.random.default_rng(0)
    found = plasma_fractal(setting_of(400).keys, 0, 16, decay).double().numpy()
    expected = np.stack([imagenet_c.plasma_fractal(decay, rng.uniform(-1, 1, (16, 16))) for _ in range(400)])
    ours, theirs = spectra_of(found), spectra_of(expected)
    assert (np.abs(ours[0] - theirs[0]) <= 4 * np.hypot(ours[1], theirs[1])).all()
    error = np.hypot(found.mean((1, 2)).std(), expected.mean((1, 2)).std()) / 20
    assert found.mean() == pytest.approx(expected.mean(), abs=4 * error)


@LAW
@given(st.sampled_from([2, 16, 64, 256]), st.floats(1.2, 4), st.integers(0, 2**32 - 1))
def test_plasma_fills_its_range(mapsize: int, decay: float, seed: int) -> None:
    plasma = plasma_fractal(setting_of(3).keys, seed, mapsize, decay)
    assert plasma.shape == (3, mapsize, mapsize)
    assert plasma.amin((1, 2)).tolist() == [0, 0, 0]
    assert plasma.amax((1, 2)).tolist() == [1, 1, 1]


@LAW
@given(st.floats(0, 1), st.floats(0.1, 3))
def test_fog_never_lightens_beyond_the_lightest_pixel(highest: float, amount: float) -> None:
    images = noise(2, 3, 16, 16) * highest
    fogged = fog(images, amount, plasma_fractal(setting_of(2).keys, 0, 16, 2.0))
    assert bool((fogged.amax((1, 2, 3)) <= images.amax((1, 2, 3)) + 1e-6).all())


# ---- laws of all


sides = st.integers(16, 40)


@pytest.mark.parametrize("name", NAMES)
@LAW
@given(
    sides, sides, st.sampled_from([1, 3]), st.floats(1, 5), st.sampled_from([32, 100, 448]), st.integers(0, 2**32 - 1)
)
def test_corrupted_images_are_images(
    name: str, height: int, width: int, channels: int, severity: float, side: int, seed: int
) -> None:
    images = noise(2, channels, height, width, seed=seed)
    images[1] *= 0
    corrupted = weather.corrupt(name, images, SEVERITIES[name].at(severity, side), setting_of(2, seed))
    assert corrupted.shape == images.shape
    assert corrupted.dtype == torch.float32
    assert bool(((corrupted >= 0) & (corrupted <= 1)).all())


@pytest.mark.parametrize("severity", [2, 4])
@pytest.mark.parametrize("name", NAMES)
@LAW
@given(st.permutations(range(6)), st.integers(1, 6))
def test_corruption_belongs_to_its_image(name: str, severity: int, order: list[int], batch: int) -> None:
    images, setting = noise(6, 3, 20, 24), setting_of(6, seed=3)
    parameters = SEVERITIES[name].at(severity, 224)
    whole = weather.corrupt(name, images, parameters, setting)[order]
    parts = [
        weather.corrupt(name, some, parameters, Setting(keys, 3, 32, (0.5,)))
        for some, keys in zip(images[order].split(batch), setting.keys[order].split(batch), strict=True)
    ]
    # sums of products may be rounded in another way, and a layer in 8 bits cut to another value
    assert float(((torch.cat(parts) - whole).abs() > 1e-5).double().mean()) <= 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_severities_change_images_and_differ(name: str) -> None:
    images = noise(4, 3, 32, 32) * 0.8 + 0.1
    corrupted = [weather.corrupt(name, images, SEVERITIES[name].at(s, 32), setting_of(4)) for s in range(1, 6)]
    for some, others in zip(corrupted, [images, *corrupted], strict=False):
        assert float((some - others).abs().mean()) > 1e-3


@pytest.mark.parametrize("name", RANDOM)
def test_images_and_seeds_differ(name: str) -> None:
    images = torch.full((5, 3, 32, 32), 0.4)
    parameters = SEVERITIES[name].at(3, 32)
    corrupted = weather.corrupt(name, images, parameters, setting_of(5))
    assert len({image.numpy().tobytes() for image in corrupted}) == 5
    assert not torch.equal(weather.corrupt(name, images, parameters, setting_of(5, seed=1)), corrupted)
    assert torch.equal(weather.corrupt(name, images, parameters, setting_of(5)), corrupted)


@pytest.mark.parametrize("severity", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_grey_image_is_corrupted_as_the_luma_of_one_with_equal_channels(name: str, severity: int) -> None:
    grey = noise(3, 1, 28, 28) * 0.3  # so dark that no channel is cut off before the others
    parameters = SEVERITIES[name].at(severity, 32)
    corrupted = weather.corrupt(name, grey, parameters, setting_of(3))
    coloured = weather.corrupt(name, grey.expand(-1, 3, -1, -1), parameters, setting_of(3))
    assert float((corrupted - luma(coloured)).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_kept_and_not_computed_in(name: str) -> None:
    images, parameters = noise(2, 3, 24, 24).bfloat16(), SEVERITIES[name].at(3, 32)
    corrupted = weather.corrupt(name, images, parameters, setting_of(2))
    assert corrupted.dtype == torch.bfloat16
    exact = weather.corrupt(name, images.float(), parameters, setting_of(2))
    assert torch.equal(corrupted, exact.bfloat16())
