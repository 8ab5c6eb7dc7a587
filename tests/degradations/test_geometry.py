import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from mae_bench.degradations import Setting, degradation
from mae_bench.degradations.geometry import degrade, rotated, scaled, translated
from mae_bench.degradations.ladders import ladder

pytestmark = pytest.mark.usefixtures("one_thread")
LAW = settings(max_examples=15, deadline=None, derandomize=True)
NAMES = ("rotation", "scale", "translation")
LADDERS = {name: [level.value for level in ladder(degradation(name), 224)] for name in NAMES}
HIGHEST = {"rotation": 180.0, "scale": 3.0, "translation": 1.0}
SIZES = [(28, 28), (17, 30)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def setting_of(count: int, seed: int = 0) -> Setting:
    keys = torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(7))
    return Setting(keys, seed, 224, (0.5,))


def part(setting: Setting, rows: torch.Tensor) -> Setting:
    return Setting(setting.keys[rows], setting.seed, setting.reference_size, setting.mean)


def by_torchvision(
    image: torch.Tensor, degrees: float = 0.0, factor: float = 1.0, shift: Sequence[float] = (0.0, 0.0)
) -> torch.Tensor:
    """One image (C, H, W), moved as torchvision does it; it turns clockwise."""
    return affine(image, -degrees, list(shift), factor, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)


# ---- image by image, as torchvision


@pytest.mark.parametrize("size", SIZES)
@LAW
@given(degrees=st.lists(st.floats(-180, 180), min_size=1, max_size=4))
def test_rotated_is_torchvisions(size: tuple[int, int], degrees: list[float]) -> None:
    images = noise(len(degrees), 3, *size)
    expected = [by_torchvision(image, degrees=angle) for image, angle in zip(images, degrees, strict=True)]
    assert float((rotated(images, torch.tensor(degrees)) - torch.stack(expected)).abs().max()) <= 5e-5


@pytest.mark.parametrize("size", SIZES)
@LAW
@given(factors=st.lists(st.floats(0.25, 4), min_size=1, max_size=4))
def test_scaled_is_torchvisions(size: tuple[int, int], factors: list[float]) -> None:
    images = noise(len(factors), 3, *size)
    expected = [by_torchvision(image, factor=factor) for image, factor in zip(images, factors, strict=True)]
    assert float((scaled(images, torch.tensor(factors)) - torch.stack(expected)).abs().max()) <= 5e-5


@pytest.mark.parametrize("size", SIZES)
@LAW
@given(shifts=st.lists(st.tuples(st.floats(-35, 35), st.floats(-35, 35)), min_size=1, max_size=4))
def test_translated_is_torchvisions(size: tuple[int, int], shifts: list[tuple[float, float]]) -> None:
    images = noise(len(shifts), 3, *size)
    expected = [by_torchvision(image, shift=shift) for image, shift in zip(images, shifts, strict=True)]
    assert float((translated(images, torch.tensor(shifts)) - torch.stack(expected)).abs().max()) <= 5e-5


# ---- what a level means


def test_quarter_turn_is_exact() -> None:
    images, setting = noise(6, 3, 24, 24), setting_of(6)
    turned = degrade("rotation", images, 90.0, setting)
    for image, result in zip(images, turned, strict=True):
        assert any(torch.allclose(result, image.rot90(turns, (-2, -1)), atol=1e-4) for turns in (1, 3))


def test_whole_pixels_leave_black_behind() -> None:
    images = noise(1, 1, 20, 26) / 2 + 0.5
    right = translated(images, torch.tensor([[3.0, 0.0]]))
    assert torch.allclose(right[..., 3:], images[..., :-3], atol=1e-4)
    assert float(right[..., :3].max()) <= 1e-4
    down = translated(images, torch.tensor([[0.0, 5.0]]))
    assert torch.allclose(down[..., 5:, :], images[..., :-5, :], atol=1e-4)
    assert float(down[..., :5, :].max()) <= 1e-4


def sense(name: str, level: float, setting: Setting) -> np.ndarray:
    """(B,) which of two ways every image goes, seen by a spot right of the centre of an image of 41 pixels."""
    spot = torch.zeros(len(setting.keys), 1, 41, 41)
    spot[:, :, 18:23, 26:31] = 1
    y, x = np.indices((41, 41)) - 20
    moved = degrade(name, spot, level, setting)[:, 0].double().numpy()
    mass = moved.sum(axis=(1, 2))
    below, right = ((moved * axis).sum(axis=(1, 2)) / mass for axis in (y, x))
    return below > 0 if name == "rotation" else right > 8


@pytest.mark.parametrize("name", ["rotation", "scale"])
def test_either_way_is_as_likely_and_the_same_at_every_level(name: str) -> None:
    setting = setting_of(400)
    ways = [sense(name, level, setting) for level in LADDERS[name]]
    assert all(np.array_equal(way, ways[0]) for way in ways)
    assert stats.binomtest(int(ways[0].sum()), 400).pvalue > 1e-4
    assert 100 < (ways[0] == sense(name, LADDERS[name][0], setting_of(400, seed=1))).sum() < 300


def test_scale_enlarges_and_shrinks_by_one_factor() -> None:
    white = degrade("scale", torch.ones(50, 1, 40, 40), 1.0, setting_of(50)).mean(dim=(1, 2, 3))
    # of what is enlarged all stays white, of what is halved a quarter, a rim of half a pixel blended into black
    enlarged = white > 0.5
    assert 10 < int(enlarged.sum()) < 40
    assert white[enlarged].numpy() == pytest.approx(1, abs=1e-5)
    assert white[~enlarged].numpy() == pytest.approx(0.25, abs=0.02)


def test_translation_is_a_share_of_the_shorter_side_in_any_direction() -> None:
    setting = setting_of(400)
    spot = torch.zeros(400, 1, 60, 80)
    spot[:, :, 29:31, 39:41] = 1
    y, x = np.indices((60, 80))

    def shift(level: float) -> tuple[np.ndarray, np.ndarray]:
        moved = degrade("translation", spot, level, setting)[:, 0].double().numpy() / 4
        return (moved * (x - 39.5)).sum(axis=(1, 2)), (moved * (y - 29.5)).sum(axis=(1, 2))

    right, down = shift(0.3)
    assert np.hypot(right, down) == pytest.approx(np.full(400, 0.3 * 60), abs=0.01)
    direction = np.arctan2(down, right)
    assert stats.kstest(direction / (2 * math.pi) % 1, "uniform").pvalue > 1e-4
    nearer = np.arctan2(*reversed(shift(0.1)))
    assert np.abs(np.exp(1j * nearer) - np.exp(1j * direction)).max() < 0.01


# ---- laws of all three


@pytest.mark.parametrize("name", NAMES)
@LAW
@given(data=st.data())
def test_shift_of_an_image_is_its_own(name: str, data: st.DataObject) -> None:
    """In any batch and order, in one channel or three alike, in the dtype and range of the image."""
    level = data.draw(st.floats(0.01, HIGHEST[name]))
    height, width = data.draw(st.integers(16, 40)), data.draw(st.integers(16, 40))
    images, setting = noise(4, 1, height, width).round(), setting_of(4, data.draw(st.integers(0, 2**32 - 1)))
    whole = degrade(name, images, level, setting)
    order = torch.tensor(data.draw(st.permutations(range(4))))
    for rows in order.split(data.draw(st.integers(1, 4))):
        colours = degrade(name, images[rows].expand(-1, 3, -1, -1), level, part(setting, rows))
        assert float((colours - whole[rows]).abs().max()) <= 1e-5
    lowered = degrade(name, images.bfloat16(), level, setting)
    assert lowered.dtype == torch.bfloat16
    assert float((lowered.float() - whole).abs().max()) <= 2**-8
    for degraded in (whole, lowered):
        assert degraded.shape == images.shape
        assert bool(((degraded >= 0) & (degraded <= 1)).all())


@pytest.mark.parametrize("name", NAMES)
def test_lowest_level_moves_little_and_the_highest_changes_every_image(name: str) -> None:
    images = noise(8, 3, 28, 28)
    assert float((degrade(name, images, 1e-4, setting_of(8)) - images).abs().max()) <= 0.01
    changed = degrade(name, images, LADDERS[name][-1], setting_of(8)) - images
    assert float(changed.abs().amax(dim=(1, 2, 3)).min()) > 0.1
