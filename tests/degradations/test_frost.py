import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.degradations import frost
from mae_bench.degradations.frost import LOOKS, frost_texture, photograph_scale, pictures
from mae_bench.randomness import random_uniform
from references.frost import LUMA, PUBLISHED, STATISTICS, statistics_of

pytestmark = pytest.mark.usefixtures("one_thread")
LAW = settings(max_examples=15, deadline=None, derandomize=True)


def keys_of(count: int, seed: int = 7) -> torch.Tensor:
    return torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=[(224, 60), (32, 150)], ids=["224 px", "32 px"])
def by_look(request: pytest.FixtureRequest) -> tuple[int, list[np.ndarray]]:
    """The side of the textures, and as many of each look in turn."""
    side, count = request.param
    keys = keys_of(1000)
    shares = torch.tensor([look.share for look in LOOKS]).cumsum(0)[:-1]
    chosen = torch.bucketize(random_uniform(keys, 3, 0, "frost")[:, 0].contiguous(), shares, right=True)
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


def test_a_small_picture_is_sampled_at_single_points_of_a_larger_one() -> None:
    large, small = (pictures(scale, torch.device("cpu")).int() for scale in (1.0, 0.2))
    off = (small - large[:, :, 2:1020:5, 2:1020:5]).abs()
    # where two crystals are as near, rounding decides
    assert float((off <= 1).float().mean()) > 0.9999


def test_a_texture_is_a_crop_of_a_picture() -> None:
    """Which is looked for where its first pixels are."""
    painted = pictures(0.2, torch.device("cpu"))
    for texture in frost_texture(keys_of(20), 3, (32, 28), 0.2):
        pixels = (texture * 255).round().byte()
        lines = painted.unfold(3, 28, 1)  # (4, 3, 204, 177, 28)
        found = (lines == pixels[:, 0][None, :, None, None]).all(-1).all(1).nonzero().tolist()
        assert any(bool((painted[k, :, y : y + 32, x : x + 28] == pixels).all()) for k, y, x in found)


def test_crops_are_of_all_parts_of_a_picture() -> None:
    top_left, bottom_right = (
        pictures(0.2, torch.device("cpu"))[:, :, corner, corner].flatten(1).float() / 255 for corner in (0, -1)
    )
    textures = frost_texture(keys_of(1000), 0, (200, 200), 0.2)  # of 25 places in each
    for corner, shown in ((top_left, textures[:, :, 0, 0]), (bottom_right, textures[:, :, -1, -1])):
        assert bool((torch.cdist(shown, corner).min(0).values < 1e-3).all())


def test_a_crop_longer_than_its_picture_goes_on_in_the_mirror_image() -> None:
    (texture,) = frost_texture(keys_of(1), 0, (32, 500), 0.2)
    assert torch.equal(texture[..., :204].flip(-1), texture[..., 204:408])
    assert torch.equal(texture[..., :92], texture[..., 408:])


def test_textures_belong_to_their_image_and_seed() -> None:
    keys = keys_of(9)
    whole = frost_texture(keys, 1, (48, 40), 0.5)
    parts = torch.cat([frost_texture(part, 1, (48, 40), 0.5) for part in keys.flip(0).split(4)]).flip(0)
    assert float((parts - whole).abs().max()) <= 1e-5
    assert len({texture.numpy().tobytes() for texture in whole}) == 9
    assert float((frost_texture(keys, 2, (48, 40), 0.5) - whole).abs().mean()) > 0.05


@LAW
@given(st.integers(16, 200), st.integers(16, 200), st.sampled_from([0.2, 0.37, 1.0]), st.integers(0, 2**32 - 1))
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
