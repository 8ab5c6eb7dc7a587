"""Occlusion of image batches: which pixels are hidden (a pattern) and what is seen there instead (a fill).

Masks are (B, H, W), or (1, H, W) where all images share one, True where hidden. Sampling is integer
arithmetic on random words that belong to the image, so masks agree to the bit for any batch and device;
a mask at a lower level is contained in the mask at a higher one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mae_bench.degradations import FILLS, PATTERNS, SALIENT, Setting
from mae_bench.degradations.blur import gaussian_blur
from mae_bench.degradations.ladders import GRIDS
from mae_bench.randomness import random_uniform, random_words

_LOWPASS_SIGMA = 1 / 8
"""Standard deviation of the blur behind the ``lowpass`` fill, in image sides."""


def degrade(name: str, images: Tensor, level: float, setting: Setting) -> Tensor:
    """Occlusion ``name``, a pattern with an optional fill as suffix, hiding ``level`` of the area."""
    pattern, fill = split(name)
    mask = hidden(pattern, level, setting, (images.shape[-2], images.shape[-1]))
    return occlude(images, mask, filling(fill, images, setting))


def split(name: str) -> tuple[str, str]:
    """Pattern and fill that a degradation's name stands for; a bare pattern is filled with black.

    >>> split("random_patch_offset"), split("random_patch_uniform")
    (('random_patch_offset', 'black'), ('random_patch', 'uniform'))
    """
    if name in PATTERNS or name in SALIENT:
        return name, FILLS[0]
    pattern, _, fill = name.rpartition("_")
    if pattern not in PATTERNS or fill not in FILLS:
        raise ValueError(f"{name!r} is no occlusion: patterns are {', '.join(PATTERNS)}, fills {', '.join(FILLS)}")
    return pattern, fill


def occlude(images: Tensor, mask: Tensor, fill: Tensor) -> Tensor:
    """``images`` (B, C, H, W) with ``fill`` (broadcast to them) where ``mask`` (B or 1, H, W) is True.

    >>> occlude(torch.ones(1, 1, 1, 2), torch.tensor([[[True, False]]]), torch.zeros(()))
    tensor([[[[0., 1.]]]])
    """
    return torch.where(mask[:, None], fill.to(images.dtype), images)


def filling(fill: str, images: Tensor, setting: Setting) -> Tensor:
    """What is seen where pixels are hidden: ``black`` (0 before normalisation, as in IPViT, arXiv
    2105.10497), ``mean`` (the suite's mean pixel), ``uniform`` (uniform noise per pixel and channel) or
    ``lowpass`` (the image blurred by an eighth of its side).
    """
    count, channels, height, width = images.shape
    if fill == "black":
        return torch.zeros((), device=images.device)
    if fill == "mean":
        return torch.tensor(setting.mean, device=images.device)[:, None, None]
    if fill == "uniform":
        noise = random_uniform(setting.keys, channels * height * width, setting.seed, "uniform")
        return noise.reshape(count, channels, height, width)
    return gaussian_blur(images, _LOWPASS_SIGMA * min(height, width))


def hidden(pattern: str, level: float, setting: Setting, size: tuple[int, int]) -> Tensor:
    """Mask of ``pattern`` that hides ``level`` of the area of images of ``size`` (H, W)."""
    keys, seed = setting.keys, setting.seed
    grid = GRIDS[setting.reference_size]
    if pattern == "random_patch":
        return random_patches(random_words(keys, grid * grid, seed, "random_patch"), level, size)
    if pattern == "random_patch_offset":
        words = random_words(keys, grid * grid, seed, "random_patch_offset")
        return random_patches(words, level, size, offset=True)
    if pattern == "random_block":
        return random_block(random_words(keys, 2, seed, "random_block"), level, size)
    if pattern == "stripes":
        return stripes(random_words(keys, 2, seed, "stripes"), level, size, periods=grid // 2)
    if pattern in SALIENT:
        assert setting.salience is not None
        cells = salient(setting.salience, level if pattern == "salient" else 1 - level)
        return of_cells(cells if pattern == "salient" else ~cells, size)
    if pattern == "center_block":
        return center_block(level, size, keys.device)
    return ~center_block(1 - level, size, keys.device)


def random_patches(words: Tensor, level: float, size: tuple[int, int], offset: bool = False) -> Tensor:
    """Cells of a square grid, hidden in the order of their random ``words`` (B, cells): round(level * cells).

    With ``offset`` the grid is shifted by half a cell in both directions and wraps around the border,
    so that its cells do not follow a ViT's tokens and still all have the same area.
    """
    cells = words.shape[1]
    rank = words.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return of_cells(rank < round(level * cells), size, offset)


def salient(salience: Tensor, share: float) -> Tensor:
    """(B, cells) True for the cells that hold the top ``share`` of what a reference model attends to: with ``salience``
    (B, cells) summing to 1, those above which less than ``share`` lies (IPViT, arXiv 2105.10497, after DINO's code).

    >>> salient(torch.tensor([[0.1, 0.6, 0.3]]), 0.7).tolist()
    [[False, True, True]]
    """
    ordered = salience.double().sort(dim=1, stable=True)
    # in steps of 1e-9, so that sums that are equal but for their rounding are equal
    below = (ordered.values.cumsum(1) * 1e9).round()
    hidden = below > round((1 - share) * 1e9)
    return torch.zeros_like(hidden).scatter(1, ordered.indices, hidden)


def of_cells(cells: Tensor, size: tuple[int, int], offset: bool = False) -> Tensor:
    """(B, H, W) mask of the pixels of the hidden ``cells`` (B, cells) of a square grid; with ``offset`` the grid is
    shifted by half a cell.
    """
    grid = math.isqrt(cells.shape[1])
    rows, columns = (_cell_of_pixel(side, grid, offset, cells.device) for side in size)
    # in this order, and so selected, whole lines are copied
    return cells.reshape(-1, grid, grid).index_select(2, columns).index_select(1, rows)


def hidden_tokens(level: float, setting: Setting, grid: tuple[int, int]) -> Tensor:
    """(B, P) True for the tokens of a ``grid`` (rows, columns) that ``token_drop`` removes: round(level * P), at most
    all but one. They are those that ``random_patch`` would paint over, where its grid is the same.
    """
    words = random_words(setting.keys, grid[0] * grid[1], setting.seed, "random_patch")
    rank = words.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return rank < dropped_tokens(level, words.shape[1])


def dropped_tokens(level: float, tokens: int) -> int:
    """How many of an image's ``tokens`` are dropped at ``level``."""
    return min(round(level * tokens), tokens - 1)


def center_block(level: float, size: tuple[int, int], device: torch.device) -> Tensor:
    """One centred block with the image's proportions."""
    (top, bottom), (left, right) = (((side - block) // 2, (side + block) // 2) for side, block in _block(level, size))
    mask = torch.zeros(1, *size, dtype=torch.bool, device=device)
    mask[:, top:bottom, left:right] = True
    return mask


def random_block(words: Tensor, level: float, size: tuple[int, int]) -> Tensor:
    """One block with the image's proportions, its place uniform over all that fit, from ``words`` (B, 2)."""
    inside = []
    for axis, (side, block) in enumerate(_block(level, size)):
        start = (words[:, axis] * (side - block + 1)) >> 32
        position = torch.arange(side, device=words.device)
        inside.append((position >= start[:, None]) & (position < start[:, None] + block))
    return inside[0][:, :, None] & inside[1][:, None, :]


def stripes(words: Tensor, level: float, size: tuple[int, int], periods: int) -> Tensor:
    """Parallel stripes, horizontal or vertical and of random phase per image, from ``words`` (B, 2).

    About ``periods`` stripes cross the image; as the level rises they widen one after the other.
    """
    lines = []
    for side in size:
        period = max(2, side // periods)
        phase = (words[:, 0] * period) >> 32
        shifted = torch.arange(side, device=words.device) + phase[:, None]
        order = (shifted % period) * (2 * side) + shifted  # by place within the stripe, then stripe by stripe
        rank = order.argsort(dim=1).argsort(dim=1)
        lines.append(rank < round(level * side))
    vertical = (words[:, 1] >> 31).bool()[:, None, None]
    return torch.where(vertical, lines[1][:, None, :], lines[0][:, :, None])


def _block(level: float, size: tuple[int, int]) -> list[tuple[int, int]]:
    """For height and width: the side and how much of it a block of ``level`` of the area takes."""
    return [(side, round(math.sqrt(level) * side)) for side in size]


def _cell_of_pixel(side: int, grid: int, offset: bool, device: torch.device) -> Tensor:
    position = torch.arange(side, device=device)
    if offset:
        position = (position + side // (2 * grid)) % side
    return position * grid // side
