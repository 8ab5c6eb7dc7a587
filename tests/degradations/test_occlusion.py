import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from mae_bench.degradations import FILLS, PATTERNS, Setting
from mae_bench.degradations.ladders import GRIDS
from mae_bench.degradations.occlusion import (
    center_block,
    degrade,
    filling,
    hidden,
    occlude,
    random_block,
    random_patches,
    split,
    stripes,
)
from mae_bench.randomness import random_words

LAW = settings(max_examples=25, deadline=None, derandomize=True)

RANDOM = ("random_patch", "random_patch_offset", "random_block", "stripes")
GRID = ("random_patch", "random_patch_offset")

sizes = st.tuples(st.integers(14, 45), st.integers(14, 45))
fractions = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]))
words32 = st.integers(0, 2**32 - 1)


def setting_of(
    count: int, seed: int = 0, reference_size: int = 28, mean: tuple[float, ...] = (0.3, 0.5, 0.7)
) -> Setting:
    keys = torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(11))
    return Setting(keys, seed, reference_size, mean)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---- masks: laws of every pattern


@pytest.mark.parametrize("pattern", PATTERNS)
@LAW
@given(sizes, st.lists(fractions, min_size=2, max_size=5), st.integers(0, 2**32 - 1))
def test_masks_nest(pattern: str, size: tuple[int, int], levels: list[float], seed: int) -> None:
    """What is hidden at a level is hidden at every higher one."""
    masks = [hidden(pattern, level, setting_of(4, seed), size) for level in sorted(levels)]
    for low, high in pairwise(masks):
        assert bool((high | ~low).all())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_hidden_area_rises_from_nothing_to_everything(pattern: str) -> None:
    areas = [float(hidden(pattern, level / 20, setting_of(3), (28, 28)).float().mean()) for level in range(21)]
    assert areas == sorted(areas)
    assert (areas[0], areas[-1]) == (0, 1)
    # no long flat stretch: a ladder of tenths has ten different areas
    assert len(set(areas[::2])) == 11


@pytest.mark.parametrize("reference_size", GRIDS)
@pytest.mark.parametrize("pattern", GRID)
@LAW
@given(st.integers(1, 3), st.integers(1, 3), fractions)
def test_hidden_area_of_grid_patterns_is_exact_to_a_cell(
    pattern: str, reference_size: int, rows: int, columns: int, level: float
) -> None:
    # several pixels per cell in either direction, so that all cells have one area
    grid = GRIDS[reference_size]
    size = (grid * rows * 2, grid * columns * 2)
    masks = hidden(pattern, level, setting_of(3, reference_size=reference_size), size)
    cells = masks.sum(dim=(1, 2)) / (4 * rows * columns)
    assert cells.tolist() == [round(float(cells[0]))] * 3
    assert abs(float(cells[0]) - level * grid * grid) <= 0.5 + 1e-9


@pytest.mark.parametrize("pattern", ["center_block", "border", "random_block"])
@LAW
@given(sizes, fractions)
def test_hidden_area_of_blocks_is_exact_to_a_row_and_a_column(
    pattern: str, size: tuple[int, int], level: float
) -> None:
    height, width = size
    for area in hidden(pattern, level, setting_of(3), size).sum(dim=(1, 2)).tolist():
        assert abs(area - level * height * width) <= height + width


@LAW
@given(sizes, fractions)
def test_hidden_area_of_stripes_is_exact_to_half_a_line(size: tuple[int, int], level: float) -> None:
    height, width = size
    for mask in hidden("stripes", level, setting_of(4), size):
        assert abs(int(mask.sum()) - level * height * width) <= max(size) / 2


@pytest.mark.parametrize("pattern", RANDOM)
def test_random_masks_differ_between_images_and_between_seeds(pattern: str) -> None:
    masks = [hidden(pattern, 0.5, setting_of(64, seed), (28, 28)) for seed in (0, 1)]
    assert len({mask.numpy().tobytes() for mask in masks[0]}) > 1
    assert not torch.equal(*masks)
    assert torch.equal(masks[0], hidden(pattern, 0.5, setting_of(64, 0), (28, 28)))


@pytest.mark.parametrize("pattern", RANDOM)
@LAW
@given(st.permutations(range(6)), st.integers(1, 6), fractions, sizes)
def test_mask_belongs_to_its_image(
    pattern: str, order: list[int], batch: int, level: float, size: tuple[int, int]
) -> None:
    setting = setting_of(6)
    whole = hidden(pattern, level, setting, size)
    parts = [
        hidden(pattern, level, Setting(keys, setting.seed, 28, setting.mean), size)
        for keys in setting.keys[order].split(batch)
    ]
    assert torch.equal(torch.cat(parts), whole[order])


@pytest.mark.parametrize("pattern", sorted(set(PATTERNS) - set(RANDOM)))
@LAW
@given(fractions, sizes, st.integers(0, 2**32 - 1))
def test_fixed_masks_are_the_same_for_all(pattern: str, level: float, size: tuple[int, int], seed: int) -> None:
    masks = hidden(pattern, level, setting_of(5, seed), size)
    assert masks.shape == (1, *size)
    assert torch.equal(masks, hidden(pattern, level, setting_of(1, 0), size))


# ---- masks: each pattern against a slow drawing of one image


def drawn_patches(words: list[int], level: float, size: tuple[int, int]) -> np.ndarray:
    """Cells painted one after the other, the smallest random word first."""
    grid = math.isqrt(len(words))
    height, width = size
    mask = np.zeros(size, dtype=bool)
    for cell in sorted(range(len(words)), key=lambda c: (words[c], c))[: round(level * len(words))]:
        for y in range(height):
            for x in range(width):
                if (y * grid // height, x * grid // width) == divmod(cell, grid):
                    mask[y, x] = True
    return mask


@LAW
@given(st.integers(2, 4), st.data(), fractions, st.tuples(st.integers(8, 16), st.integers(8, 16)))
def test_random_patches_are_the_cells_with_the_smallest_words(
    grid: int, data: st.DataObject, level: float, size: tuple[int, int]
) -> None:
    # few different words, so that ties are common
    drawn = st.lists(st.one_of(st.integers(0, 3), words32), min_size=grid * grid, max_size=grid * grid)
    words = [data.draw(drawn) for _ in range(2)]
    masks = random_patches(torch.tensor(words), level, size).numpy()
    shifted = random_patches(torch.tensor(words), level, size, offset=True).numpy()
    half = tuple(side // (2 * grid) for side in size)
    for row, mask, other in zip(words, masks, shifted, strict=True):
        expected = drawn_patches(row, level, size)
        assert np.array_equal(mask, expected)
        # half a cell to the upper left, what leaves the image coming back at the other side
        assert np.array_equal(other, np.roll(expected, (-half[0], -half[1]), axis=(0, 1)))


@pytest.mark.parametrize("reference_size", GRIDS)
def test_patches_follow_the_suites_grid_and_offset_ones_do_not(reference_size: int) -> None:
    grid, cell = GRIDS[reference_size], reference_size // GRIDS[reference_size]
    size = (reference_size, reference_size)
    setting = setting_of(8, reference_size=reference_size)

    def whole_cells(pattern: str) -> torch.Tensor:
        blocks = hidden(pattern, 0.5, setting, size).reshape(8, grid, cell, grid, cell).float().mean(dim=(2, 4))
        return (blocks == 0) | (blocks == 1)

    assert bool(whole_cells("random_patch").all())
    # a cell of the grid meets four shifted ones, which are alike once in eight
    assert float(whole_cells("random_patch_offset").float().mean()) < 0.3


@pytest.mark.parametrize("pattern", GRID)
def test_every_cell_is_hidden_equally_often(pattern: str) -> None:
    count = 3000
    often = hidden(pattern, 0.25, setting_of(count), (28, 28)).sum(dim=0).numpy()
    share = round(0.25 * 49) / 49
    # 49 counts, the largest of them within 4.5 standard deviations
    assert np.abs(often - share * count).max() <= 4.5 * math.sqrt(count * share * (1 - share))


@LAW
@given(sizes, fractions, st.lists(st.tuples(words32, words32), min_size=1, max_size=3))
def test_random_block_is_placed_by_its_words(size: tuple[int, int], level: float, words: list[tuple[int, int]]) -> None:
    masks = random_block(torch.tensor(words), level, size).numpy()
    for pair, mask in zip(words, masks, strict=True):
        expected = np.zeros(size, dtype=bool)
        corner, extent = [], []
        for word, side in zip(pair, size, strict=True):
            block = round(math.sqrt(level) * side)
            corner.append(math.floor(Fraction(word, 2**32) * (side - block + 1)))
            extent.append(block)
        expected[corner[0] : corner[0] + extent[0], corner[1] : corner[1] + extent[1]] = True
        assert int(expected.sum()) == extent[0] * extent[1]
        assert np.array_equal(mask, expected)


def test_random_block_lies_anywhere_equally_often() -> None:
    # a block of 14 in 28 pixels: 15 x 15 places
    masks = hidden("random_block", 0.25, setting_of(9000), (28, 28))
    top = masks.any(dim=2).float().argmax(dim=1)
    left = masks.any(dim=1).float().argmax(dim=1)
    counts = np.bincount((top * 15 + left).numpy(), minlength=225)
    assert len(counts) == 225
    # at a level of 1e-4: the outcome is a constant of the definition
    assert stats.chisquare(counts).pvalue > 1e-4


@LAW
@given(sizes, fractions)
def test_center_block_is_one_block_around_the_middle(size: tuple[int, int], level: float) -> None:
    mask = center_block(level, size, torch.device("cpu"))[0].numpy()
    for axis, side in enumerate(size):
        lines = np.flatnonzero(mask.any(axis=1 - axis))
        if len(lines):
            assert np.array_equal(lines, np.arange(lines[0], lines[0] + len(lines)))
            # as far from one end as from the other, but for half a pixel
            assert abs(lines[0] - (side - 1 - lines[-1])) <= 1
            # with the image's proportions
            assert abs(len(lines) - math.sqrt(level) * side) <= 0.5 + 1e-9
            assert int(mask.sum()) == mask.any(axis=0).sum() * mask.any(axis=1).sum()


@LAW
@given(sizes, st.floats(0.0, 1.0))
def test_border_is_what_a_center_block_leaves(size: tuple[int, int], level: float) -> None:
    border = hidden("border", level, setting_of(1), size)[0].numpy()
    visible = np.argwhere(~border)
    expected = np.ones(size, dtype=bool)
    if len(visible):
        (top, left), (bottom, right) = visible.min(axis=0), visible.max(axis=0)
        expected[top : bottom + 1, left : right + 1] = False
        assert abs(top - (size[0] - 1 - bottom)) <= 1
        assert abs(left - (size[1] - 1 - right)) <= 1
    assert np.array_equal(border, expected)


def drawn_stripes(words: tuple[int, int], level: float, size: tuple[int, int], periods: int) -> np.ndarray:
    """Lines painted one after the other: the first line of every stripe, then the second of every stripe, ..."""
    vertical = words[1] >= 2**31
    side = size[1] if vertical else size[0]
    period = max(2, side // periods)
    phase = math.floor(Fraction(words[0], 2**32) * period)
    lines = []
    for place in range(period):
        for stripe in range(side // period + 2):
            line = stripe * period + place - phase
            if 0 <= line < side:
                lines.append(line)
    assert sorted(lines) == list(range(side))
    mask = np.zeros(size, dtype=bool)
    for line in lines[: round(level * side)]:
        mask[(slice(None), line) if vertical else line] = True
    return mask


@LAW
@given(sizes, fractions, st.integers(1, 7), st.lists(st.tuples(words32, words32), min_size=1, max_size=3))
def test_stripes_are_drawn_line_by_line(
    size: tuple[int, int], level: float, periods: int, words: list[tuple[int, int]]
) -> None:
    masks = stripes(torch.tensor(words), level, size, periods).numpy()
    for pair, mask in zip(words, masks, strict=True):
        assert np.array_equal(mask, drawn_stripes(pair, level, size, periods))


@LAW
@given(sizes, fractions)
def test_stripes_are_whole_lines_of_nearly_one_width(size: tuple[int, int], level: float) -> None:
    for mask in hidden("stripes", level, setting_of(4), size).numpy():
        across = mask if np.array_equal(mask.all(axis=1), mask.any(axis=1)) else mask.T
        line = across[:, 0]
        assert np.array_equal(across, np.repeat(line[:, None], across.shape[1], axis=1))
        runs = np.split(line, np.flatnonzero(np.diff(line.astype(int))) + 1)
        # those cut by the border may be of any width
        widths = {len(run) for run in runs[1:-1] if run[0]}
        assert not widths or max(widths) - min(widths) <= 1


def test_stripes_are_horizontal_and_vertical_equally_often_with_every_phase() -> None:
    masks = hidden("stripes", 0.1, setting_of(4000), (28, 28))
    vertical = int(masks.all(dim=1).any(dim=1).sum())
    assert stats.binomtest(vertical, 4000).pvalue > 1e-4
    # a period of 28 // 3 = 9 pixels: every phase occurs
    assert len({mask.numpy().tobytes() for mask in masks}) == 2 * 9


def test_patterns_are_drawn_from_streams_of_their_own() -> None:
    """Else one image's block and stripes would be placed alike, and patches hidden alike with and without offset."""
    setting = setting_of(64)
    plain, offset = (hidden(pattern, 0.5, setting, (28, 28)) for pattern in GRID)
    back = offset.roll((2, 2), dims=(1, 2))
    # two independent masks of 24 of 49 cells agree on half of the pixels
    assert abs(float((plain == back).float().mean()) - 0.5) < 0.03


@pytest.mark.parametrize("reference_size", GRIDS)
def test_random_patch_is_drawn_from_the_words_of_its_stream(reference_size: int) -> None:
    cells = GRIDS[reference_size] ** 2
    setting = setting_of(3, seed=5, reference_size=reference_size)
    words = random_words(setting.keys, cells, 5, "random_patch").tolist()
    masks = hidden("random_patch", 0.3, setting, (28, 28)).numpy()
    for row, mask in zip(words, masks, strict=True):
        assert np.array_equal(mask, drawn_patches(row, 0.3, (28, 28)))


# ---- fills


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_visible_pixels_are_untouched_and_hidden_ones_are_filled(pattern: str, fill: str) -> None:
    images, setting = noise(5, 3, 28, 35), setting_of(5)
    name = pattern if fill == "black" else f"{pattern}_{fill}"
    mask = hidden(pattern, 0.5, setting, (28, 35))[:, None].expand(5, 3, 28, 35)
    degraded = degrade(name, images, 0.5, setting)
    assert torch.equal(degraded[~mask], images[~mask])
    assert torch.equal(degraded[mask], filling(fill, images, setting).expand(5, 3, 28, 35)[mask])


@LAW
@given(st.integers(0, 1000), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_occluding_chooses_between_image_and_fill(seed: int, dtype: torch.dtype) -> None:
    images, fill = noise(3, 2, 5, 6, seed=seed).to(dtype), noise(3, 2, 5, 6, seed=seed + 1)
    for mask in (noise(3, 5, 6, seed=seed + 2) < 0.5, noise(1, 5, 6, seed=seed + 3) < 0.5):
        found = occlude(images, mask, fill).float().numpy()
        for i, c, y, x in np.ndindex(3, 2, 5, 6):
            shown = fill if bool(mask[i % len(mask), y, x]) else images
            assert found[i, c, y, x] == float(shown[i, c, y, x].to(dtype))


def test_black_is_zero() -> None:
    images = noise(2, 3, 28, 28)
    degraded = degrade("center_block", images, 1.0, setting_of(2))
    assert torch.equal(degraded, torch.zeros_like(images))


@pytest.mark.parametrize("mean", [(0.25,), (0.485, 0.456, 0.406)], ids=["grey", "colour"])
def test_mean_is_the_suites_mean_pixel(mean: tuple[float, ...]) -> None:
    images = noise(2, len(mean), 28, 28)
    degraded = degrade("random_patch_mean", images, 1.0, setting_of(2, mean=mean))
    for channel, value in enumerate(mean):
        # as float32
        assert degraded[:, channel].unique().tolist() == [float(np.float32(value))]


def test_uniform_is_uniform_over_pixels_channels_and_images() -> None:
    fill = filling("uniform", noise(16, 3, 28, 28), setting_of(16)).double().numpy()
    assert fill.shape == (16, 3, 28, 28)
    # at a level of 1e-4: the outcome is a constant of the definition
    assert stats.kstest(fill.ravel(), "uniform").pvalue > 1e-4
    assert fill.var() == pytest.approx(1 / 12, abs=0.002)
    for a, b in ((fill[:, 0], fill[:, 1]), (fill[:-1], fill[1:]), (fill[..., 1:], fill[..., :-1])):
        assert stats.pearsonr(a.ravel(), b.ravel()).pvalue > 1e-4


def test_uniform_belongs_to_the_image_and_the_seed_not_to_pixels_or_level() -> None:
    setting = setting_of(4)
    fill = filling("uniform", noise(4, 3, 28, 28), setting)
    assert torch.equal(fill, filling("uniform", noise(4, 3, 28, 28, seed=1), setting))
    alone = [filling("uniform", noise(1, 3, 28, 28), Setting(setting.keys[i : i + 1], 0, 28, (0.5,))) for i in range(4)]
    assert torch.equal(torch.cat(alone), fill)
    assert not torch.equal(fill, filling("uniform", noise(4, 3, 28, 28), setting_of(4, seed=1)))
    low, high = (degrade("random_patch_uniform", torch.zeros(4, 3, 28, 28), level, setting) for level in (0.25, 0.5))
    shown = low > 0
    assert torch.equal(low[shown], high[shown])


@pytest.mark.parametrize("size", [(28, 28), (32, 48), (36, 20)])
def test_lowpass_is_the_image_blurred_by_an_eighth_of_its_side(size: tuple[int, int]) -> None:
    images = noise(3, 3, *size)
    sigma = min(size) / 8
    expected = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=4.0)
    # sides whose half, four deviations, is a whole number: both cut the kernel at the same pixel
    assert np.abs(filling("lowpass", images, setting_of(3)).numpy() - expected).max() <= 1e-5


def test_lowpass_of_one_image_does_not_look_at_another() -> None:
    images = noise(4, 1, 28, 28)
    together = filling("lowpass", images, setting_of(4))
    alone = torch.cat([filling("lowpass", images[i : i + 1], setting_of(1)) for i in range(4)])
    assert float((together - alone).abs().max()) <= 1e-5


# ---- names


@pytest.mark.parametrize("pattern", PATTERNS)
def test_name_is_a_pattern_with_an_optional_fill(pattern: str) -> None:
    assert split(pattern) == (pattern, "black")
    for fill in FILLS:
        assert split(f"{pattern}_{fill}") == (pattern, fill)


@pytest.mark.parametrize(
    "name", ["", "black", "random", "random_patch_blue", "_black", "patch_uniform", "stripes-mean"]
)
def test_name_of_no_occlusion_is_refused_with_patterns_and_fills(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name!r} is no occlusion") as caught:
        split(name)
    assert all(word in str(caught.value) for word in (*PATTERNS, *FILLS))
