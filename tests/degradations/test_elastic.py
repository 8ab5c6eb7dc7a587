import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from mae_bench.degradations import Setting
from mae_bench.degradations.elastic import affine_mapped, corrupt, displaced, displacement
from mae_bench.degradations.severity import SEVERITIES
from references import imagenet_c

pytestmark = pytest.mark.usefixtures("one_thread")
LAW = settings(max_examples=15, deadline=None, derandomize=True)
TABLE = SEVERITIES["elastic_transform"]
SIDES = (32, 224)

sides = st.integers(16, 40)
seeds = st.integers(0, 2**32 - 1)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    """On -1 to 1."""
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def pictures(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """(B, H, W, 3) uint8 noise, as rough as an image can be."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def batch_of(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).movedim(-1, 1).float() / 255


def setting_of(count: int, seed: int = 0) -> Setting:
    keys = torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(7))
    return Setting(keys, seed, 224, (0.5,))


def part(setting: Setting, rows: torch.Tensor) -> Setting:
    return Setting(setting.keys[rows], setting.seed, setting.reference_size, setting.mean)


# ---- against a slow reference


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("size", [(32, 32), (21, 40)])
def test_elastic_transform_is_the_published_one(size: tuple[int, int], severity: int, side: int) -> None:
    images, corners, noise = pictures(3, *size), uniform(3, 3, 2), uniform(3, 2, *size, seed=1)
    alpha, sigma, affine = TABLE.at(severity, side)
    # what moves points of a large image by half its side would tear a small one apart
    affine *= min(size) / side
    moved = displaced(affine_mapped(batch_of(images), affine * corners), displacement(noise, alpha, sigma))
    for i, image in enumerate(images):
        expected = imagenet_c.elastic_transform(
            image, alpha, sigma, affine, corners[i].numpy(), *noise[i].numpy(), fixed_point=False
        )
        assert np.abs(moved[i].movedim(0, -1).numpy() * 255 - expected).max() <= 0.02


def test_elastic_transform_is_that_of_old_opencv_but_for_a_64th_of_a_pixel() -> None:
    images, corners, noise = pictures(1, 32, 32), uniform(1, 3, 2), uniform(1, 2, 32, 32, seed=1)
    moved = affine_mapped(batch_of(images), 2 * corners)
    draws = (corners[0].numpy(), *noise[0].numpy())
    expected = imagenet_c.elastic_transform(images[0], 0, 1, 2, *draws)
    difference = np.abs(moved[0].movedim(0, -1).numpy() * 255 - expected)
    # noise changes by up to 255 levels from one pixel to the next in either direction; two products are rounded, too
    assert 0.1 < difference.max() <= 2 * 255 * (1 / 64 + 2 / 2048)
    assert difference.mean() <= 1


@LAW
@given(st.floats(0.3, 30.0), st.floats(0.0, 50.0), sides, sides)
def test_displacement_is_smoothed_noise(sigma: float, alpha: float, height: int, width: int) -> None:
    noise = uniform(2, 2, height, width)
    smooth = ndimage.gaussian_filter(noise.double().numpy(), (0, 0, sigma, sigma), mode="reflect", truncate=3)
    assert np.abs(displacement(noise, alpha, sigma).numpy() - alpha * smooth).max() <= 1e-5 * max(alpha, 1)


# ---- laws of its two steps


def test_map_that_moves_no_point_changes_nothing() -> None:
    images = batch_of(pictures(2, 17, 26))
    assert torch.allclose(affine_mapped(images, torch.zeros(2, 3, 2)), images, atol=1e-5)
    assert torch.allclose(displaced(images, displacement(uniform(2, 2, 17, 26), 0.0, 3.0)), images, atol=1e-5)


@LAW
@given(st.integers(-30, 30), st.integers(-30, 30), sides, sides)
def test_points_that_move_alike_take_the_image_with_them(right: int, down: int, height: int, width: int) -> None:
    images = batch_of(pictures(1, height, width))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (60, 60), (60, 60)), mode="reflect")
    expected = padded[..., 60 - down : 60 - down + height, 60 - right : 60 - right + width]
    shifts = torch.tensor([[right, down]]).expand(1, 3, 2)
    assert np.abs(affine_mapped(images, shifts).numpy() - expected).max() <= 1e-4


@LAW
@given(st.integers(-30, 30), st.integers(-30, 30), sides, sides)
def test_pixels_are_taken_from_as_far_away_as_the_field_says(right: int, down: int, height: int, width: int) -> None:
    images = batch_of(pictures(1, height, width))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (60, 60), (60, 60)), mode="symmetric")
    expected = padded[..., 60 + down : 60 + down + height, 60 + right : 60 + right + width]
    field = torch.tensor([right, down]).view(1, 2, 1, 1).expand(1, 2, height, width)
    assert np.abs(displaced(images, field).numpy() - expected).max() <= 1e-4


# ---- what a severity makes of an image


def ramps(count: int, side: int) -> torch.Tensor:
    """Red rises from left to right, green from top to bottom: colours say where a pixel came from."""
    slope = (torch.arange(side) + 0.5) / side
    red, green = slope.expand(side, side), slope[:, None].expand(side, side)
    return torch.stack((red, green, torch.zeros(side, side))).expand(count, -1, -1, -1)


def test_points_move_uniformly_within_the_severity() -> None:
    """Seen in the middle of an image, between two points that move by up to 2 pixels each."""
    moved = 32 * (corrupt("elastic_transform", ramps(400, 32), (0.0, 0.0, 2.0), setting_of(400)) - ramps(400, 32))
    shift = moved[:, :2, 16, 16].double().numpy()
    # half of what the first and the last point move by, backwards: a triangular distribution, but for a few hundredths
    for axis in range(2):
        assert stats.kstest(shift[:, axis], stats.triang(0.5, -2, 4).cdf).pvalue > 1e-4
    assert abs(stats.pearsonr(*shift.T).statistic) < 0.2


def test_field_moves_as_far_as_the_severity_says() -> None:
    sigma, alpha = 3.0, 20.0
    moved = 32 * (corrupt("elastic_transform", ramps(100, 32), (alpha, sigma, 0.0), setting_of(100)) - ramps(100, 32))
    inside = moved[:, :2, 8:24, 8:24].double().numpy()
    # of white noise of variance 1/3 a Gaussian leaves 1 / (4 pi sigma^2)
    expected = alpha * np.sqrt(1 / 3 / (4 * np.pi)) / sigma
    assert inside.std(axis=(0, 2, 3)) == pytest.approx([expected] * 2, rel=0.1)
    assert abs(np.corrcoef(inside[:, 0].ravel(), inside[:, 1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("side", SIDES)
@LAW
@given(data=st.data())
def test_severity_of_an_image_is_its_own(side: int, data: st.DataObject) -> None:
    """In any batch and order, in one channel or three alike, in the dtype and range of the image."""
    parameters = TABLE.at(data.draw(st.floats(1, 5)), side)
    height, width = data.draw(sides), data.draw(sides)
    images, setting = batch_of(pictures(4, height, width))[:, :1], setting_of(4, data.draw(seeds))
    whole = corrupt("elastic_transform", images, parameters, setting)
    order = torch.tensor(data.draw(st.permutations(range(4))))
    for rows in order.split(data.draw(st.integers(1, 4))):
        colours = corrupt("elastic_transform", images[rows].expand(-1, 3, -1, -1), parameters, part(setting, rows))
        assert float((colours - whole[rows]).abs().max()) <= 1e-5
    lowered = corrupt("elastic_transform", images.bfloat16(), parameters, setting)
    assert lowered.dtype == torch.bfloat16
    for corrupted in (whole, lowered):
        assert corrupted.shape == images.shape
        assert bool(((corrupted >= 0) & (corrupted <= 1)).all())


@pytest.mark.parametrize("side", SIDES)
def test_images_of_other_keys_and_seeds_are_moved_in_other_ways(side: int) -> None:
    images = batch_of(pictures(1, 32, 32)).expand(2, -1, -1, -1)
    for severity in range(1, 6):
        one, other = (corrupt("elastic_transform", images, TABLE.at(severity, side), setting_of(2, s)) for s in (0, 1))
        assert float((one[0] - one[1]).abs().max()) > 0.05
        assert float((one - other).abs().amax(dim=(1, 2, 3)).min()) > 0.05
