import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from mae_bench.degradations import Setting, blur
from mae_bench.degradations.blur import (
    box_blur,
    clipped_zoom,
    defocus_blur,
    directional_blur,
    gaussian_blur,
    gaussian_filter,
    glass_blur,
    glass_offsets,
    motion_blur,
)
from mae_bench.degradations.severity import SEVERITIES
from references import imagenet_c

pytestmark = pytest.mark.usefixtures("one_thread")
LAW = settings(max_examples=15, deadline=None, derandomize=True)


def lengths(longest: float) -> st.SearchStrategy[float]:
    """Zero, or from a hundredth of a pixel, the least that an id can state."""
    return st.one_of(st.just(0.0), st.floats(0.01, longest))


NAMES = ("gaussian_blur", "box_blur", "motion_blur", "defocus_blur")
Blur = Callable[[torch.Tensor, float], torch.Tensor]


def motion_at(angle: float) -> Blur:
    return lambda images, length: motion_blur(images, length, torch.full((len(images),), angle))


BLURS: dict[str, Blur] = {
    "gaussian": gaussian_blur,
    "box": box_blur,
    "defocus": defocus_blur,
    "motion along x": motion_at(0.0),
    "motion along y": motion_at(math.pi / 2),
    "motion at 1 radian": motion_at(1.0),
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def setting_of(count: int, seed: int = 0, reference_size: int = 28) -> Setting:
    keys = torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(7))
    return Setting(keys, seed, reference_size, (0.5,))


def dense_correlation(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Each pixel as the weighted sum of its neighbours, one pixel after the other, borders mirrored."""
    radius = len(kernel) // 2
    padded = np.pad(image, radius, mode="reflect")
    result = np.empty_like(image)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            result[y, x] = (padded[y : y + len(kernel), x : x + len(kernel)] * kernel).sum()
    return result


def covered_square(side: float) -> np.ndarray:
    """Share of a square of ``side`` pixels that each pixel around its centre holds."""
    radius = math.ceil(side / 2 + 0.5)
    centre = np.arange(-radius, radius + 1)
    length = np.minimum(centre + 0.5, side / 2) - np.maximum(centre - 0.5, -side / 2)
    return np.outer(np.maximum(length, 0), np.maximum(length, 0)) / side**2


def covered_disk(radius: float, samples: int = 40) -> np.ndarray:
    """Share of a disk that each pixel around its centre holds, by counting a fine grid of points."""
    extent = math.ceil(radius + 0.5)
    point = (np.arange((2 * extent + 1) * samples) + 0.5) / samples - extent - 0.5
    inside = np.hypot(point[:, None], point[None, :]) <= radius
    counts = inside.reshape(2 * extent + 1, samples, 2 * extent + 1, samples).sum(axis=(1, 3))
    return counts / counts.sum()


def kernel_of(effect: Blur, pixels: float, extent: int) -> np.ndarray:
    """What a blur makes of a single point far from the border."""
    side = 2 * extent + 41
    point = torch.zeros(1, 1, side, side)
    point[0, 0, side // 2, side // 2] = 1
    middle = slice(side // 2 - extent, side // 2 + extent + 1)
    return effect(point, pixels)[0, 0, middle, middle].double().numpy()


# ---- each blur against a reference of its own


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.75, 3.0])
@pytest.mark.parametrize("size", [(28, 28), (27, 40)])
def test_gaussian_blur_is_scipys(sigma: float, size: tuple[int, int]) -> None:
    images = noise(2, 3, *size)
    expected = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=4.0)
    assert np.abs(gaussian_blur(images, sigma).numpy() - expected).max() <= 1e-5


@LAW
@given(st.floats(0.05, 6.0), st.integers(0, 1000))
def test_gaussian_blur_is_scipys_at_any_width(sigma: float, seed: int) -> None:
    images = noise(1, 1, 33, 29, seed=seed)
    expected = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=4.0)
    # where four deviations end within a pixel, one of the two counts that pixel: a tail of at most 6.4e-5 per axis
    assert np.abs(gaussian_blur(images, sigma).numpy() - expected).max() <= 2 * 6.4e-5 + 1e-5


@pytest.mark.parametrize("side", [1.0, 1.75, 2.0, 3.0, 3.5, 5.25, 8.0])
def test_box_blur_is_the_mean_over_a_square(side: float) -> None:
    image = noise(1, 1, 16, 19)
    expected = dense_correlation(image[0, 0].double().numpy(), covered_square(side))
    assert np.abs(box_blur(image, side)[0, 0].numpy() - expected).max() <= 1e-5


@LAW
@given(lengths(12.0))
def test_kernel_of_box_blur_is_the_covered_area(side: float) -> None:
    expected = covered_square(max(side, 1.0))
    assert np.abs(kernel_of(box_blur, side, len(expected) // 2) - expected).max() <= 1e-5


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.0, 3.0, 5.0])
def test_defocus_blur_is_the_mean_over_a_disk(radius: float) -> None:
    image = noise(1, 1, 16, 19)
    kernel = covered_disk(radius)
    expected = dense_correlation(image[0, 0].double().numpy(), kernel)
    # half the summed difference of the kernels is the most that an image in [0, 1] can show
    assert np.abs(defocus_blur(image, radius)[0, 0].numpy() - expected).max() <= 0.08 / radius + 1e-5


@LAW
@given(st.floats(0.6, 10.0))
def test_kernel_of_defocus_blur_is_a_disk(radius: float) -> None:
    expected = covered_disk(radius)
    found = kernel_of(defocus_blur, radius, len(expected) // 2)
    # The rim holds a share of 2 / radius of the disk (its length over its area); a ramp of one pixel misses
    # the covered share of a rim pixel by 0.08 of its weight. A radius wrong by half a pixel would miss by 1 / radius.
    assert np.abs(found - expected).sum() <= 2 / radius * 0.08


@LAW
@given(lengths(10.0))
def test_defocus_blur_weighs_by_distance_alone(radius: float) -> None:
    kernel = kernel_of(defocus_blur, radius, 11)
    distance = np.hypot(*np.meshgrid(np.arange(-11, 12), np.arange(-11, 12)))
    order = np.argsort(distance.ravel(), kind="stable")
    assert np.all(np.diff(kernel.ravel()[order]) <= 1e-7)
    assert np.all(np.abs(kernel[distance > radius + 0.5]) <= 1e-7)


def along_a_line(image: np.ndarray, length: float, angle: float, samples: int = 4001) -> np.ndarray:
    """Mean of the bilinearly interpolated image along a line between the centres of its first and last pixel."""
    position = ((np.arange(samples) + 0.5) / samples - 0.5) * (length - 1)
    y, x = np.indices(image.shape)
    total = np.zeros(image.shape)
    for offset in position:
        # y points down, so that positive angles turn from right to down
        where = (y + math.sin(angle) * offset, x + math.cos(angle) * offset)
        total += ndimage.map_coordinates(image, where, order=1, mode="mirror")
    return total / samples


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, math.pi / 2, 2.0, 3.0])
@pytest.mark.parametrize("length", [1.75, 3.5, 7.0])
def test_motion_blur_is_the_mean_along_a_line(length: float, angle: float) -> None:
    image = noise(1, 1, 13, 16)
    expected = along_a_line(image[0, 0].double().numpy(), length, angle, samples=501)
    found = motion_at(angle)(image, length)[0, 0].numpy()
    # eight samples per pixel, both ends counted in full: each end has half a sample too much
    assert np.abs(found - expected).max() <= 1 / (8 * math.ceil(length) + 1)


@LAW
@given(st.floats(0.0, math.pi), st.floats(1.2, 9.0))
def test_motion_blur_spreads_a_point_along_its_angle_only(angle: float, length: float) -> None:
    kernel = kernel_of(motion_at(angle), length, 6)
    y, x = np.indices(kernel.shape) - 6
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    half = (length - 1) / 2
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert (kernel * along).sum() == pytest.approx(0, abs=1e-4)
    # each of the samples is shared by the four pixels around it: none is further than a pixel's diagonal
    assert np.all(kernel[(np.abs(across) > math.sqrt(2)) | (np.abs(along) > half + math.sqrt(2))] < 1e-7)
    # the deviation of the line, and at most that of the sharing (a quarter per axis) on top
    line = half**2 / 3
    assert line - 1e-3 <= (kernel * along**2).sum() <= line * 1.2 + 0.25 + 1e-3
    assert (kernel * across**2).sum() <= 0.25 + 1e-3


def stripes_along_x() -> torch.Tensor:
    return noise(1, 1, 20, 1, seed=3).expand(1, 1, 20, 20).contiguous()


def test_motion_along_x_leaves_horizontal_lines_alone() -> None:
    lines = stripes_along_x()
    assert torch.allclose(motion_at(0.0)(lines, 5.0), lines, atol=1e-6)
    assert float((motion_at(math.pi / 2)(lines, 5.0) - lines).abs().max()) > 0.1


def test_motion_along_y_leaves_vertical_lines_alone() -> None:
    lines = stripes_along_x().mT.contiguous()
    assert torch.allclose(motion_at(math.pi / 2)(lines, 5.0), lines, atol=1e-6)
    assert float((motion_at(0.0)(lines, 5.0) - lines).abs().max()) > 0.1


def test_motion_down_a_diagonal_joins_points_of_that_diagonal() -> None:
    # x and y both grow: from top left to bottom right
    kernel = kernel_of(motion_at(math.pi / 4), 7.0, 4)
    assert min(kernel[2, 2], kernel[6, 6]) > 0.05
    assert max(kernel[2, 6], kernel[6, 2]) < 1e-7


def test_every_image_of_a_batch_is_blurred_at_its_own_angle() -> None:
    images, angles = noise(4, 3, 18, 18), torch.tensor([0.0, 0.7, 1.9, 3.0])
    whole = motion_blur(images, 5.0, angles)
    alone = torch.cat([motion_blur(images[i : i + 1], 5.0, angles[i : i + 1]) for i in range(4)])
    assert torch.allclose(whole, alone, atol=1e-6)


def directions(level: float, setting: Setting) -> np.ndarray:
    """Direction in [0, pi) in which motion blur spreads a point, for each image of a batch."""
    points = torch.zeros(len(setting.keys), 1, 29, 29)
    points[:, :, 14, 14] = 1
    spread = blur.degrade("motion_blur", points, level, setting)[:, 0].double().numpy()
    y, x = np.indices((29, 29)) - 14
    xx, yy, xy = ((spread * product).sum(axis=(1, 2)) for product in (x * x, y * y, x * y))
    return np.arctan2(2 * xy, xx - yy) / 2 % math.pi


def test_every_image_moves_in_its_own_direction_and_all_directions_are_as_likely() -> None:
    found = directions(11.0, setting_of(400, reference_size=29))
    # at a level of 1e-4: the outcome is a constant of the definition
    assert stats.kstest(found / math.pi, "uniform").pvalue > 1e-4
    other = directions(11.0, setting_of(400, seed=1, reference_size=29))
    assert stats.kstest((found - other) % math.pi / math.pi, "uniform").pvalue > 1e-4


def test_direction_does_not_depend_on_the_level() -> None:
    """A longer motion is a longer one, not another one."""
    setting = setting_of(64, reference_size=29)
    turned = (directions(15.0, setting) - directions(9.0, setting) + math.pi / 2) % math.pi - math.pi / 2
    # sharing samples between pixels turns a short line a little
    assert np.abs(turned).max() < 0.05


# ---- laws of every blur


@pytest.mark.parametrize("name", BLURS)
@LAW
@given(lengths(12), st.floats(0, 1, width=32), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_constant_image_stays_constant(name: str, pixels: float, value: float, dtype: torch.dtype) -> None:
    image = torch.full((1, 3, 17, 22), value).to(dtype)
    worst = float((BLURS[name](image, pixels) - image).abs().max())
    # summing hundreds of weights in float32, then rounding to the image's own precision
    assert worst <= 1e-5 + (torch.finfo(dtype).eps if dtype != torch.float32 else 0)


@pytest.mark.parametrize("name", BLURS)
@LAW
@given(lengths(5), st.integers(0, 1000))
def test_mean_is_kept_where_the_border_is_constant(name: str, pixels: float, seed: int) -> None:
    # 22 > 4 x 5 px, the widest kernel: what mirrors at the border is constant
    image = torch.full((1, 1, 60, 64), 0.3)
    image[:, :, 24:36, 24:40] = noise(1, 1, 12, 16, seed=seed)
    assert float(BLURS[name](image, pixels).double().mean()) == pytest.approx(float(image.double().mean()), abs=1e-6)


@pytest.mark.parametrize("name", BLURS)
@LAW
@given(lengths(6), st.floats(0, 1), st.integers(0, 1000))
def test_blur_is_linear(name: str, pixels: float, share: float, seed: int) -> None:
    one, other = noise(1, 1, 20, 24, seed=seed), noise(1, 1, 20, 24, seed=seed + 1)
    mixed = BLURS[name](share * one + (1 - share) * other, pixels)
    apart = share * BLURS[name](one, pixels) + (1 - share) * BLURS[name](other, pixels)
    assert float((mixed - apart).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", BLURS)
@LAW
@given(lengths(6), st.integers(0, 1000))
def test_channels_and_half_turns_do_not_mix(name: str, pixels: float, seed: int) -> None:
    images = noise(2, 3, 20, 24, seed=seed)
    blurred = BLURS[name](images, pixels)
    single = torch.cat([BLURS[name](images[:, c : c + 1], pixels) for c in range(3)], dim=1)
    turned = BLURS[name](images.flip(-1, -2), pixels).flip(-1, -2)
    assert float((blurred - single).abs().max()) <= 1e-5
    assert float((blurred - turned).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", ["gaussian", "box", "defocus"])
@LAW
@given(lengths(6), st.integers(0, 1000))
def test_blur_without_direction_commutes_with_mirroring_and_transposing(name: str, pixels: float, seed: int) -> None:
    images = noise(1, 1, 20, 24, seed=seed)
    blurred = BLURS[name](images, pixels)
    assert float((blurred - BLURS[name](images.flip(-1), pixels).flip(-1)).abs().max()) <= 1e-5
    assert float((blurred - BLURS[name](images.mT.contiguous(), pixels).mT).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", BLURS)
def test_stronger_blur_leaves_less_contrast(name: str) -> None:
    image = noise(1, 1, 48, 48)
    contrast = [float(BLURS[name](image, pixels).std()) for pixels in (0.0, 2.0, 4.0, 6.0, 8.0)]
    assert all(strong < weak for weak, strong in pairwise(contrast))


@pytest.mark.parametrize("name", BLURS)
def test_no_blur_at_zero_and_none_below(name: str) -> None:
    image = noise(1, 1, 12, 12)
    assert torch.equal(BLURS[name](image, 0.0), image)
    with pytest.raises(ValueError, match=r"(sigma|side|radius|length) is -0\.5: a blur needs a length of at least 0"):
        BLURS[name](image, -0.5)


@pytest.mark.parametrize("pixels", [1e-3, 1e-10, 1e-25, 1e-50, 1e-300])
@pytest.mark.parametrize("name", BLURS)
def test_vanishing_blur_changes_nothing(name: str, pixels: float) -> None:
    # 1e-25 has no square and 1e-50 no value in float32
    image = noise(1, 1, 12, 12)
    assert float((BLURS[name](image, pixels) - image).abs().max()) <= 1e-6


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES[:2] + NAMES[3:])
def test_level_is_in_pixels_of_the_reference_size(name: str, scale: int) -> None:
    images = noise(2, 1, 28 * scale, 32 * scale)
    expected = getattr(blur, name)(images, 1.5 * scale)
    assert torch.allclose(blur.degrade(name, images, 1.5, setting_of(2)), expected, atol=1e-6)


def test_level_of_motion_is_in_pixels_of_the_reference_size() -> None:
    # seen by the angles that a level of half the length in an image of half the reference size is given
    images = noise(2, 1, 28, 28)
    expected = blur.degrade("motion_blur", images, 4.0, setting_of(2))
    assert torch.allclose(
        blur.degrade("motion_blur", images, 8.0, setting_of(2, reference_size=56)), expected, atol=1e-6
    )


# ---- the blurs of ImageNet-C

PUBLISHED = ("gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
SIDES = (32, 224)


def photograph_like(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: surfaces, edges and some noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (3, 4, 3)).repeat(-(-height // 3), axis=0).repeat(-(-width // 4), axis=1)
    noisy = coarse[:height, :width] + generator.integers(-20, 21, (height, width, 1))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def batch_of(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).movedim(-1, 1).float() / 255


def levels_of(images: torch.Tensor) -> np.ndarray:
    """(B, H, W, C) in 0 to 255, as the reference gives them."""
    return images.double().movedim(1, -1).numpy() * 255


@LAW
@given(
    st.floats(0.05, 40.0),
    st.sampled_from(["nearest", "reflect", "mirror"]),
    st.floats(1.0, 4.0),
    st.integers(8, 40),
    st.integers(8, 40),
)
def test_gaussian_filter_is_scipys_however_wide(
    sigma: float, border: str, truncate: float, height: int, width: int
) -> None:
    images = 4 * noise(2, 2, height, width) - 2
    expected = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode=border, truncate=truncate)
    assert np.abs(gaussian_filter(images, sigma, border, truncate).numpy() - expected).max() <= 1e-5


def test_gaussian_filter_without_width_changes_nothing() -> None:
    images = noise(1, 1, 8, 9)
    assert torch.equal(gaussian_filter(images, 0.0, "reflect", 3.0), images)


@LAW
@given(st.floats(1.0, 5.0), st.integers(16, 60), st.integers(16, 60))
def test_clipped_zoom_is_scipys(factor: float, height: int, width: int) -> None:
    layer = np.random.default_rng(0).standard_normal((height, width, 1))
    expected = imagenet_c.clipped_zoom(layer, factor)[..., 0]
    found = clipped_zoom(torch.from_numpy(layer).movedim(-1, 0)[None].float(), factor)[0, 0]
    # scipy gives 0 where the last place rounds to one beyond the last pixel, which no published factor does
    given = expected != 0
    assert given[:-1, :-1].all()
    assert np.abs(found.numpy() - expected)[given].max() <= 1e-4


def test_zoom_of_one_is_the_image() -> None:
    images = noise(2, 3, 17, 24)
    assert torch.equal(clipped_zoom(images, 1.0), images)


@LAW
@given(st.floats(0.5, 12.0), st.floats(0.5, 15.0), st.lists(st.floats(-180, 180), min_size=1, max_size=3))
def test_directional_blur_looks_ahead_along_its_line(radius: float, sigma: float, angles: list[float]) -> None:
    images = noise(len(angles), 1, 13, 18)
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    found = directional_blur(images, radius, sigma, torch.tensor(angles, dtype=torch.float64))
    for image, angle, blurred in zip(images[:, 0].double().numpy(), angles, found[:, 0].numpy(), strict=True):
        expected = np.zeros(image.shape)
        for step, weight in zip(steps, weights / weights.sum(), strict=True):
            right = math.ceil(step * math.cos(math.radians(angle)) - 0.5)
            below = math.ceil(step * math.sin(math.radians(angle)) - 0.5)
            padded = np.pad(image, len(steps), mode="edge")
            shifted = padded[len(steps) + below :, len(steps) + right :]
            expected += weight * shifted[: image.shape[0], : image.shape[1]]
        assert np.abs(blurred - expected).max() <= 1e-5


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "zoom_blur"])
def test_what_is_not_random_is_the_published_blur(name: str, severity: int, side: int) -> None:
    # not square, and not even as high as a kernel meant for 224 px is wide
    images = [photograph_like(20, 37, seed) for seed in range(2)]
    parameters = SEVERITIES[name].at(severity, side)
    found = levels_of(blur.corrupt(name, batch_of(*images), parameters, setting_of(2)))
    for image, corrupted in zip(images, found, strict=True):
        assert np.abs(corrupted - getattr(imagenet_c, name)(image, *parameters)).max() <= 2e-3


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("severity", range(1, 6))
def test_directional_blur_is_the_published_motion_blur(severity: int, side: int) -> None:
    images = [photograph_like(33, 26, seed) for seed in range(3)]
    radius, sigma = SEVERITIES["motion_blur"].at(severity, side)
    found = levels_of(directional_blur(batch_of(*images), radius, sigma, torch.tensor([-44.0, 3.0, 31.0])))
    for image, angle, blurred in zip(images, (-44.0, 3.0, 31.0), found, strict=True):
        # ImageMagick cuts off what is beyond 8 bits
        cut = blurred - imagenet_c.motion_blur(image, radius, sigma, angle)
        assert cut.min() >= -0.01
        assert cut.max() <= 1


def test_motion_blur_by_severity_points_into_every_direction_of_a_quarter_turn() -> None:
    points = torch.zeros(400, 1, 61, 61)
    points[:, :, 30, 30] = 1
    spread = blur.corrupt("motion_blur", points, (12.0, 12.0), setting_of(400))[:, 0].double().numpy()
    y, x = np.indices((61, 61)) - 30
    # what is blurred looks ahead, so a point is seen behind it
    angle = np.degrees(np.arctan2(-(spread * y).sum((1, 2)), -(spread * x).sum((1, 2))))
    assert stats.kstest(angle / 90 + 0.5, "uniform").pvalue > 1e-4


def in_turn(image: np.ndarray, margin: int, right: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The published loop: views of pixels of three channels are exchanged, one after the other."""
    shuffled = image.copy()
    for iteration in range(len(right)):
        for h in range(image.shape[0] - margin, margin, -1):
            for w in range(image.shape[1] - margin, margin, -1):
                there = h + below[iteration, h, w], w + right[iteration, h, w]
                shuffled[h, w], shuffled[there] = shuffled[there], shuffled[h, w]
    return shuffled


@LAW
@given(st.integers(1, 6), st.integers(1, 3), st.integers(8, 24), st.integers(8, 24), st.integers(0, 2**32 - 1))
def test_glass_blur_without_width_copies_pixels_as_the_published_loop(
    max_delta: int, iterations: int, height: int, width: int, seed: int
) -> None:
    images = [photograph_like(height, width, i) for i in range(3)]
    setting = setting_of(3, seed)
    right, below = glass_offsets(setting.keys, seed, max_delta, iterations, (height, width))
    found = levels_of(glass_blur(batch_of(*images), 0.0, max_delta, right, below)).round()
    for i, image in enumerate(images):
        assert np.array_equal(found[i], in_turn(image, max_delta, right[i].numpy(), below[i].numpy()))


def test_glass_blur_follows_copies_of_copies() -> None:
    # every pixel takes what stands right of it: the last but for the margin spreads over its row
    image = np.arange(12 * 66, dtype=np.int64).reshape(12, 66, 1).repeat(3, axis=2).astype(np.uint8)
    right, below = torch.ones(1, 1, 12, 66, dtype=torch.int64), torch.zeros(1, 1, 12, 66, dtype=torch.int64)
    found = levels_of(glass_blur(batch_of(image), 0.0, 2, right, below)).round()[0]
    assert np.array_equal(found, in_turn(image, 2, right[0].numpy(), below[0].numpy()))
    assert np.array_equal(found[5, 3:65], image[5, 65:66].repeat(62, axis=0))


@pytest.mark.parametrize("max_delta", [1, 2, 3, 7])
def test_offsets_of_glass_are_uniform_and_independent(max_delta: int) -> None:
    keys = setting_of(8).keys
    right, below = glass_offsets(keys, 0, max_delta, 2, (40, 50))
    assert right.shape == below.shape == (8, 2, 40, 50)
    pairs = (right + max_delta) * 2 * max_delta + below + max_delta
    counts = np.bincount(pairs.flatten().numpy(), minlength=4 * max_delta**2)
    assert len(counts) == 4 * max_delta**2
    assert stats.chisquare(counts).pvalue > 1e-4
    # nor does one iteration, one image or one seed repeat another
    again = glass_offsets(keys, 1, max_delta, 2, (40, 50))[0]
    same = [float((one == other).float().mean()) for one, other in ((right[:, 0], right[:, 1]), (right, again))]
    same.append(float((right[:4] == right[4:]).float().mean()))
    assert same == pytest.approx([1 / (2 * max_delta)] * 3, abs=0.02)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("severity", range(1, 6))
def test_glass_blur_is_the_published_one(severity: int, side: int) -> None:
    images, setting = [photograph_like(30, 25, seed) for seed in range(2)], setting_of(2)
    parameters = SEVERITIES["glass_blur"].at(severity, side)
    right, below = glass_offsets(setting.keys, setting.seed, int(parameters[1]), int(parameters[2]), (30, 25))
    found = levels_of(blur.corrupt("glass_blur", batch_of(*images), parameters, setting))
    for i, image in enumerate(images):
        expected = imagenet_c.glass_blur(image, *parameters, torch.stack((right[i], below[i]), dim=-1).numpy())
        # where a weighted sum is a whole level but for its rounding, one cuts to 8 bits what the other does not
        assert np.abs(found[i] - expected).max() <= 1.01
        assert np.mean(np.abs(found[i] - expected) > 2e-3) <= 0.02


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("side", SIDES)
@LAW
@given(data=st.data())
def test_severity_of_an_image_is_its_own(name: str, side: int, data: st.DataObject) -> None:
    """In any batch and order, in one channel or three alike, in the dtype and range of the image."""
    parameters = SEVERITIES[name].at(data.draw(st.floats(1, 5)), side)
    height, width = data.draw(st.integers(8, 30)), data.draw(st.integers(8, 30))
    images, setting = noise(4, 1, height, width).round(decimals=1), setting_of(4, data.draw(st.integers(0, 2**32 - 1)))
    whole = blur.corrupt(name, images, parameters, setting)
    order = torch.tensor(data.draw(st.permutations(range(4))))
    for rows in order.split(data.draw(st.integers(1, 4))):
        part = Setting(setting.keys[rows], setting.seed, setting.reference_size, setting.mean)
        colours = blur.corrupt(name, images[rows].expand(-1, 3, -1, -1), parameters, part)
        # of what is cut to 8 bits, a level may be another one where the sum is rounded differently
        assert float((colours - whole[rows]).abs().max()) <= (1.01 / 255 if name == "glass_blur" else 1e-5)
        assert float(((colours - whole[rows]).abs() > 1e-5).float().mean()) <= 0.01
    lowered = blur.corrupt(name, images.bfloat16(), parameters, setting)
    assert lowered.dtype == torch.bfloat16
    for corrupted in (whole, lowered):
        assert corrupted.shape == images.shape
        assert bool(((corrupted >= 0) & (corrupted <= 1)).all())


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("side", SIDES)
def test_surface_of_one_colour_stays_so_at_every_severity(name: str, side: int) -> None:
    levels = torch.tensor([0.0, 1.0, 77.0, 128.0, 254.0, 255.0])[:, None, None, None] / 255
    images = levels.expand(-1, 3, 24, 31)
    for severity in range(1, 6):
        corrupted = blur.corrupt(name, images, SEVERITIES[name].at(severity, side), setting_of(6))
        # the rim of a disk is softened on a grid that cuts it off at a radius of eight or more
        assert float((corrupted - images).abs().max()) <= (0.02 if name == "defocus_blur" else 1e-5)
