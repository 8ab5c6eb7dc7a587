"""Noises of ImageNet-C: Gaussian, shot and impulse noise and, of the four extra corruptions, speckle noise.

Images are (B, C, H, W) in [0, 1]; computation is in float32 and the dtype is kept. The random numbers, one per pixel
and channel, are a function of the image's key and the seed alone; those of one image are the same at every severity.
Source: Hendrycks and Dietterich 2019, arXiv 1903.12261, and the code that made the set.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mae_bench.degradations import Setting
from mae_bench.degradations.parts import by_parts
from mae_bench.randomness import random_normal, random_uniform, random_words

_FIRST = 1024
"""Into how many parts [0, 1) is cut by the first bits of a number."""


def corrupt(name: str, images: Tensor, parameters: tuple[float, ...], setting: Setting) -> Tensor:
    """Noise ``name`` with the only one of the ``parameters`` of a severity."""
    (amount,) = parameters

    def noisy(part: slice) -> Tensor:
        pixels = images[part].float()
        drawn = (setting.keys[part], images.shape[1:].numel(), setting.seed, name)
        if name == "shot_noise":
            changed = shot_noise(pixels, amount, random_words(*drawn).double().mul_(2.0**-32).view(pixels.shape))
        elif name == "impulse_noise":
            changed = impulse_noise(pixels, amount, random_uniform(*drawn).view(pixels.shape))
        else:
            noise = gaussian_noise if name == "gaussian_noise" else speckle_noise
            changed = noise(pixels, amount, random_normal(*drawn).view(pixels.shape))
        return changed.clamp_(0, 1)

    return by_parts(images, noisy)


def gaussian_noise(images: Tensor, sigma: float, normals: Tensor) -> Tensor:
    """``images`` plus ``sigma`` times standard ``normals`` of their shape; may leave [0, 1]."""
    return images.add(normals, alpha=sigma)


def speckle_noise(images: Tensor, sigma: float, normals: Tensor) -> Tensor:
    """``images`` plus ``sigma`` times standard ``normals`` of their shape, in proportion to how bright a pixel is; may
    leave [0, 1].
    """
    return images.addcmul(images, normals, value=sigma)


def impulse_noise(images: Tensor, amount: float, uniform: Tensor) -> Tensor:
    """``images`` with a share of ``amount`` of the values turned to 0 (pepper) or 1 (salt), each half of the time and
    in each channel by itself, where the ``uniform`` numbers of their shape, in [0, 1), are lowest and highest.

    >>> impulse_noise(torch.full((4,), 0.5), 0.5, torch.tensor([0.1, 0.3, 0.7, 0.8]))
    tensor([0.0000, 0.5000, 0.5000, 1.0000])
    """
    # 1 where a comparison holds and 0 elsewhere: by arithmetic, which is faster than to choose where it holds
    salt, kept = uniform.clone().ge_(1 - amount / 2), uniform.clone().ge_(amount / 2)
    return torch.maximum(images, salt).mul_(kept)


def shot_noise(images: Tensor, photons: float, uniform: Tensor) -> Tensor:
    """What a sensor counts that expects ``photons`` from a white pixel, divided by that number. A count is a Poisson
    number: the smallest whose distribution function exceeds the float64 ``uniform`` number in [0, 1) of its place.
    ``images`` are read in 8 bits, as the published ones were; the result may exceed 1.

    >>> shot_noise(torch.tensor([0.0, 1.0, 1.0]), 4, torch.tensor([0.5, 0.5, 0.99], dtype=torch.float64))
    tensor([0.0000, 1.0000, 2.2500])
    """
    levels = (images * 255).round_().int().flatten()
    numbers = uniform.flatten()
    if images.device.type != "cpu":
        counts = _searched(_sequence(photons, images.device), levels, numbers)
    else:
        # most numbers are told what they count by their first bits
        first = (numbers * _FIRST).int().add_(levels, alpha=_FIRST)
        counts = _counts_by_first_bits(photons).index_select(0, first)
        # eight times as fast as torch finds them
        open_ = torch.from_numpy(np.flatnonzero(counts.numpy() < 0))
        counts[open_] = _searched(_sequence(photons, images.device), levels[open_], numbers[open_]).to(counts.dtype)
    return counts.to(images.dtype).div_(photons).view_as(images)


def _searched(sequence: Tensor, levels: Tensor, numbers: Tensor, right: bool = True) -> Tensor:
    """How many of the values of its level in ``sequence`` are at most each of the ``numbers``, or without ``right``
    below it.
    """
    found = torch.searchsorted(sequence, numbers + levels, right=right)
    return found - levels * (len(sequence) // 256)


@lru_cache(maxsize=8)
def _sequence(photons: float, device: torch.device) -> Tensor:
    """The distribution functions of all levels, each shifted by its level, so that each continues the one before: a
    single sorted sequence to search.
    """
    # what is kept may be used in another mode than the one that it is made in
    with torch.inference_mode(False):
        return (_poisson_distribution(photons, device) + torch.arange(256, device=device)[:, None]).flatten()


@lru_cache(maxsize=8)
def _counts_by_first_bits(photons: float) -> Tensor:
    """(256 * _FIRST,) int16: what every number in [0, 1) counts whose first bits are these, by level, and -1 where not
    all of them count the same.
    """
    with torch.inference_mode(False):
        sequence = _sequence(photons, torch.device("cpu"))
        levels = torch.arange(256)[:, None].expand(-1, _FIRST).flatten()
        starts = (torch.arange(_FIRST, dtype=torch.float64) / _FIRST).repeat(256)
        lowest = _searched(sequence, levels, starts)
        highest = _searched(sequence, levels, starts + 1 / _FIRST, right=False)
        return torch.where(lowest == highest, lowest, -1).short()


def _poisson_distribution(photons: float, device: torch.device) -> Tensor:
    """(256, counts) float64: the probability of at most 0, 1, 2, ... events where each of 256 levels, from black to
    white, expects its share of ``photons``; up to a count beyond which 32 random bits do not reach.
    """
    rates = torch.arange(256, device=device, dtype=torch.float64)[:, None] * (photons / 255)
    counts = torch.arange(math.ceil(photons + 8 * math.sqrt(photons) + 16), device=device, dtype=torch.float64)
    chances = (torch.xlogy(counts, rates) - rates - torch.lgamma(counts + 1)).exp()
    return chances.cumsum(1).clamp(max=1)
