from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mae_bench.degradations import CORRUPTIONS, Setting, cbar
from mae_bench.degradations.severity import SEVERITIES
from mae_bench.degradations.weather import luma
from references import imagenet_c_bar

pytestmark = pytest.mark.usefixtures("one_thread")
LAW = settings(max_examples=15, deadline=None, derandomize=True)

NAMES = [kind.name for kind in CORRUPTIONS.values() if kind.family == "cbar"]
# what each does to a pixel depends on its place, but not on how far the image extends to the right
BY_PLACE = [name for name in NAMES if name not in ("blue_sample", "brownish", "caustic")]
TABLES = (32, 224)

# The draws are a constant of the definition; at this level a sound one fails one of the checks with under 1 %.
ALPHA = 1e-4

sides = st.integers(16, 40)
seeds = st.integers(0, 2**32 - 1)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    """(B, H, W, 3) uint8: blotches of all colours under fine noise."""
    rng = np.random.default_rng(seed)
    count, height, width, channels = shape
    coarse = rng.uniform(0, 200, (count, -(-height // 8), -(-width // 8), channels)).repeat(8, 1).repeat(8, 2)
    return (coarse[:, :height, :width] + rng.uniform(0, 55, shape)).astype(np.uint8)


def batch_of(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).movedim(-1, 1).float() / 255


def setting_of(count: int, seed: int = 0) -> Setting:
    keys = torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(7))
    return Setting(keys, seed, 224, (0.5,))


def part(setting: Setting, rows: torch.Tensor) -> Setting:
    return Setting(setting.keys[rows], setting.seed, setting.reference_size, setting.mean)


def corrupted(name: str, images: torch.Tensor, severity: float, setting: Setting, side: int = 224) -> torch.Tensor:
    return cbar.corrupt(name, images, SEVERITIES[name].at(severity, side), setting)


def draws(name: str, count: int, size: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, ...]:
    found: tuple[torch.Tensor, ...] = getattr(cbar, f"{name}_draws")(setting_of(count).keys, seed, size)
    return found


# ---- pixel by pixel against a slow reference, given its draws


def as_draws(name: str, drawn: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """What the reference drew for one image, as the arguments of a batch of one."""
    if name in ("blue_sample", "brownish"):
        layers = drawn["phases"].reshape(3 if name == "brownish" else 1, -1)
        return (torch.from_numpy(layers[:, : layers.shape[1] // 2])[None],)
    if name == "cocentric_sine":
        drawn = drawn | {"centre": drawn["centre"][::-1].copy()}
    elif name == "checkerboard_cutout":
        # theirs are found from the end where ours are left of and above the middle
        squares = np.arange(-15, 16) % len(drawn["uniforms"])
        drawn = drawn | {"uniforms": drawn["uniforms"][np.ix_(squares, squares)]}
    elif name == "perlin":
        order, entries = np.argsort(drawn["permutation"]), drawn["permutation"]
        assert np.array_equal(order[entries], np.arange(256))
        drawn = {"order": entries, "gradients": drawn["gradients"][entries]}
    elif name in ("sparkles", "inverse_sparkles"):
        stars = drawn["ray_normals"] if name == "sparkles" else [drawn["ray_normals"]]
        rays = np.array([len(normals) for normals in stars])
        normals = np.stack([np.pad(normals, (0, 199 - len(normals)), constant_values=9) for normals in stars])
        drawn = {"centre": drawn.get("centres", drawn.get("centre")), "rays": rays, "normals": normals}
        if name == "inverse_sparkles":
            drawn |= {"rays": rays[0], "normals": normals[0]}
    return tuple(torch.from_numpy(np.asarray(value))[None] for value in drawn.values())


def difference_from_reference(name: str, magnitude: float, side: int, seed: int) -> np.ndarray:
    image = pictures(1, side, side, 3, seed=seed)
    drawn = imagenet_c_bar.draws(name, side, np.random.default_rng(seed))
    expected = getattr(imagenet_c_bar, name)(image[0], magnitude, **drawn)
    result = getattr(cbar, name)(batch_of(image), magnitude, *as_draws(name, drawn)).clamp(0, 1)
    return np.abs(result[0].movedim(0, -1).double().numpy() * 255 - expected)


@pytest.mark.parametrize("side", [32, 45])
@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_given_the_draws_every_pixel_is_that_of_the_reference(name: str, severity: int, side: int) -> None:
    (magnitude,) = SEVERITIES[name].at(severity, side)
    assert max(difference_from_reference(name, magnitude, side, seed).max() for seed in range(6)) <= 2e-4


@pytest.mark.parametrize("name", NAMES)
def test_at_full_size_every_pixel_is_that_of_the_reference(name: str) -> None:
    (magnitude,) = SEVERITIES[name].at(5, 224)
    assert difference_from_reference(name, magnitude, 224, 1).max() <= 2e-4


# ---- distributions


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_distributed_as_those_of_the_reference(name: str) -> None:
    rng = np.random.default_rng(0)
    theirs = [as_draws(name, imagenet_c_bar.draws(name, 32, rng)) for _ in range(400)]
    firsts = []
    for mine, *others in zip(draws(name, 400, (32, 32)), *theirs, strict=True):
        sample = torch.stack([other[0] for other in others]).reshape(400, -1).numpy()
        for column in range(min(4, sample.shape[1])):
            own = mine.reshape(400, -1)[:, column].numpy()
            assert stats.ks_2samp(own, sample[:, column]).pvalue > ALPHA
            firsts.append(own)
    for one in range(len(firsts)):
        for other in range(one):
            # the frequencies of a wave depend on each other, but their ranks do not
            assert stats.spearmanr(firsts[one], firsts[other]).pvalue > ALPHA


def appearance(images: np.ndarray) -> np.ndarray:
    """(B, 9) numbers of images (B, H, W, 3): mean, spread, how neighbours differ down and across, what two colours have
    in common, and power in four rings of frequency.
    """
    spectrum = np.abs(np.fft.fft2(images.mean(3) - images.mean((1, 2, 3))[:, None, None])) ** 2
    frequency = np.fft.fftfreq(images.shape[1])
    ring = np.hypot(frequency[:, None], frequency) // 0.125
    numbers = np.column_stack(
        [
            images.mean((1, 2, 3)),
            images.std((1, 2, 3)),
            *(np.abs(np.diff(images, axis=axis)).mean((1, 2, 3)) for axis in (1, 2)),
            np.abs(images[..., 0] - images[..., 1]).mean((1, 2)),
            *(spectrum[:, ring == i].mean(1) for i in range(4)),
        ]
    )
    # what no draw changes is equal but for its last digits
    return np.round(numbers, 3)


@pytest.mark.parametrize("name", NAMES)
def test_images_look_as_those_of_the_reference(name: str) -> None:
    image = pictures(1, 32, 32, 3)
    (magnitude,) = SEVERITIES[name].at(3, 32)
    rng = np.random.default_rng(1)
    theirs = np.stack([imagenet_c_bar.corrupted(name, image[0], magnitude, rng) for _ in range(150)])
    own = corrupted(name, batch_of(image).expand(150, -1, -1, -1), 3, setting_of(150), side=32)
    for mine, other in zip(appearance(own.movedim(1, -1).double().numpy() * 255).T, appearance(theirs).T, strict=True):
        assert stats.ks_2samp(mine, other).pvalue > ALPHA


def test_noise_of_a_wide_image_is_alike_in_both_directions() -> None:
    """A wave of 10 pixels down and across, in an image twice as wide as it is high."""
    images = torch.full((400, 1, 20, 40), 0.5)
    noise = cbar.brownish(images, 1.0, *draws("brownish", 400, (20, 40))) - images
    power = torch.fft.fft2(noise[:, 0]).abs() ** 2
    down, across = power[:, 2, 0].mean(), power[:, 0, 4].mean()
    # the power of one image at one frequency has a deviation of its mean at most
    assert float(down / across) == pytest.approx(1, abs=5 * (2 / 400) ** 0.5)


# ---- laws of every corruption


@pytest.mark.parametrize("side", TABLES)
@pytest.mark.parametrize("name", NAMES)
@LAW
@given(data=st.data())
def test_severity_of_an_image_is_its_own(name: str, side: int, data: st.DataObject) -> None:
    """In any batch and order."""
    severity, size = data.draw(st.floats(1, 5)), (data.draw(sides), data.draw(sides))
    images, setting = batch_of(pictures(4, *size, data.draw(st.sampled_from([1, 3])))), setting_of(4, data.draw(seeds))
    whole = corrupted(name, images, severity, setting, side)
    order = torch.tensor(data.draw(st.permutations(range(4))))
    for rows in order.split(data.draw(st.integers(1, 4))):
        own = corrupted(name, images[rows], severity, part(setting, rows), side)
        assert float((own - whole[rows]).abs().max()) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
@LAW
@given(data=st.data())
def test_shape_dtype_and_range_are_kept(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    size, channels = (data.draw(sides), data.draw(sides)), data.draw(st.sampled_from([1, 3]))
    images, setting = batch_of(pictures(2, *size, channels)).to(dtype), setting_of(2, data.draw(seeds))
    severity = data.draw(st.floats(1, 5))
    result = corrupted(name, images, severity, setting)
    assert (result.shape, result.dtype) == (images.shape, dtype)
    # a NaN fails both comparisons
    assert bool(((result >= 0) & (result <= 1)).all())
    # computed in float32, whatever the images are held in
    assert torch.equal(result, corrupted(name, images.float(), severity, setting).to(dtype))


@pytest.mark.parametrize("side", TABLES)
@pytest.mark.parametrize("name", NAMES)
def test_higher_severity_does_more_damage(name: str, side: int) -> None:
    images, setting = batch_of(pictures(24, 64, 64, 3)), setting_of(24)
    damage = [float((corrupted(name, images, s, setting, side) - images).abs().mean()) for s in range(1, 6)]
    assert all(low < high for low, high in pairwise(damage))
    assert damage[0] > 0.001


@pytest.mark.parametrize("name", ["blue_sample", "checkerboard_cutout"])
def test_pixels_lost_at_one_severity_are_lost_at_the_next(name: str) -> None:
    images = torch.full((4, 1, 64, 64), 0.9)
    lost = [corrupted(name, images, s, setting_of(4)) < 0.9 for s in (1, 2, 3, 4, 5)]
    for fewer, more in pairwise(lost):
        assert bool((more | ~fewer).all())
        assert int(more.sum()) > int(fewer.sum())


@pytest.mark.parametrize("name", NAMES)
def test_grey_image_gets_the_luma_of_what_a_coloured_one_gets(name: str) -> None:
    grey = batch_of(pictures(3, 24, 31, 1))
    drawn = draws(name, 3, (24, 31))
    apply = getattr(cbar, name)
    assert torch.allclose(apply(grey, 3.0, *drawn), luma(apply(grey.expand(-1, 3, -1, -1), 3.0, *drawn)), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_other_keys_and_seeds_are_changed_in_other_ways(name: str) -> None:
    images = batch_of(pictures(1, 32, 32, 3)).expand(2, -1, -1, -1)
    one, other = (corrupted(name, images, 5, setting_of(2, seed)) for seed in (0, 1))
    assert float((one[0] - one[1]).abs().max()) > 0.05
    assert float((one - other).abs().amax(dim=(1, 2, 3)).min()) > 0.05


@pytest.mark.parametrize("name", BY_PLACE)
@LAW
@given(sides, sides, seeds)
def test_pattern_of_a_wide_or_high_image_begins_as_that_of_a_square_one(
    name: str, height: int, width: int, seed: int
) -> None:
    images, side = batch_of(pictures(2, height, width, 3)), min(height, width)
    drawn, apply = draws(name, 2, (height, width), seed), getattr(cbar, name)
    square = apply(images[..., :side, :side], 5.0, *drawn)
    assert torch.allclose(apply(images, 5.0, *drawn)[..., :side, :side], square, atol=1e-5)


@LAW
@given(sides, sides, seeds)
def test_caustics_of_a_wide_or_high_image_begin_as_those_of_a_square_one(height: int, width: int, seed: int) -> None:
    images, side = torch.zeros(2, 1, height, width), min(height, width)
    drawn = draws("caustic", 2, (height, width), seed)
    square = cbar.caustics(images[..., :side, :side], *drawn)
    assert torch.allclose(cbar.caustics(images, *drawn)[..., :side, :side], square)
