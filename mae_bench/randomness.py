"""Counter-based random numbers that belong to an image, not to a batch, an order or a device."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF

_COUNTERS = 16384
"""Counters that are worked on at a time on a CPU: six arrays of as many 64-bit numbers. Fewer cost more calls: on one
core with AVX2 1,024 take 3.7 times, 4,096 1.5 times as long.
"""

Drawn = tuple[tuple[slice, slice], NDArray[np.uint32]]


def philox(counter: tuple[Tensor | int, ...], key: tuple[Tensor, Tensor], rounds: int = 10) -> tuple[Tensor, ...]:
    """Philox4x32 (Salmon et al. 2011, SC'11): four random 32-bit words for each counter and key.

    Counter and key words are int64 tensors that hold unsigned 32-bit values and broadcast together.
    Integer arithmetic alone, so that CPU and GPU agree to the bit.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # the product of two 32-bit words fits 64 bits; int64 wraps, so its bit pattern is right
        p0, p1 = c0 * torch.as_tensor(_M0), c2 * torch.as_tensor(_M1)
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    words: tuple[Tensor, ...] = torch.broadcast_tensors(*(torch.as_tensor(word) for word in (c0, c1, c2, c3)))  # type: ignore[no-untyped-call]
    return words


def random_words(keys: Tensor, count: int, seed: int, stream: str) -> Tensor:
    """(B, count) int64 words uniform on [0, 2**32), a function of (seed, stream, image key, position) alone.

    Args:
        keys: (B,) int64, one per image (the first 64 bits of its content hash).
        count: words per image.
        seed: of the run, in [0, 2**32).
        stream: what the numbers are for, such as ``"random_patch"``; other streams are independent.

    Raises:
        ValueError: the seed does not fit 32 bits.
    """
    if keys.device.type == "cpu":
        wide = np.empty((len(keys), math.ceil(count / 4), 4), np.int64)
        for place, drawn in _drawn_in_cache(keys, wide.shape[1], seed, stream):
            wide[place] = drawn
        return torch.from_numpy(wide).flatten(1)[:, :count]
    label = _label(seed, stream)
    position = torch.arange(math.ceil(count / 4), device=keys.device)[None, :]
    key = ((keys & _LOW)[:, None], ((keys >> 32) & _LOW)[:, None])
    zero = torch.zeros_like(position)
    words = philox((position, zero, zero + label, zero + seed), key)
    return torch.stack(words, dim=-1).reshape(len(keys), 4 * position.shape[1])[:, :count]


def _label(seed: int, stream: str) -> int:
    """The word that stands for ``stream``."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed} is outside 0..{2**32 - 1}")
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "little")


def _drawn_in_cache(keys: Tensor, positions: int, seed: int, stream: str, rounds: int = 10) -> Iterator[Drawn]:
    """:func:`philox` of the counters (position, 0, label, ``seed``), few at a time and in place, so that what is worked
    on stays in the cache of a CPU; by numpy, whose operations on few numbers cost less to call. Each time the place,
    images and positions, and its words (images, positions, 4), which the caller may change.
    """
    # an array without dimensions is an operand at once, a number only after a conversion
    low, half, m0, m1 = (np.array(number, np.uint64) for number in (_LOW, 32, _M0, _M1))
    weyl = np.array([_W0, _W1], np.uint64) * np.arange(rounds, dtype=np.uint64)[:, None]
    keys_of_rounds = (np.stack((keys & _LOW, keys >> 32), -1).view(np.uint64)[:, None] + weyl) & low
    label = _label(seed, stream)
    # in pieces alike, since a small one takes as many calls as a large one
    columns = max(1, math.ceil(positions / max(1, math.ceil(positions / _COUNTERS))))
    rows = max(1, _COUNTERS // columns)
    room = np.empty((6, min(rows, len(keys)), columns), np.uint64)
    for first, start in product(range(0, len(keys), rows), range(0, positions, columns)):
        place = slice(first, min(first + rows, len(keys))), slice(start, min(start + columns, positions))
        c0, c1, c2, c3, p0, p1 = room[:, : place[0].stop - first, : place[1].stop - start]
        c0[:] = np.arange(place[1].start, place[1].stop, dtype=np.uint64)
        c1[:], c2[:], c3[:] = 0, label, seed
        for k0, k1 in keys_of_rounds[place[0], :, :, None].transpose(1, 2, 0, 3):
            np.multiply(c0, m0, p0)
            np.multiply(c2, m1, p1)
            # what lies above 32 bits of c1 and c3 is cut off with the rest
            for counter, product_, other, k in ((c0, p1, c1, k0), (c2, p0, c3, k1)):
                np.right_shift(product_, half, counter)
                np.bitwise_xor(counter, other, counter)
                np.bitwise_xor(counter, k, counter)
                np.bitwise_and(counter, low, counter)
            c1, p1, c3, p0 = p1, c1, p0, c3
        words = np.empty((*c0.shape, 4), np.uint32)
        for index, word in enumerate((c0, c1, c2, c3)):
            # 64 bits are cut to the lower 32
            words[..., index] = word
        yield place, words


def random_uniform(keys: Tensor, count: int, seed: int, stream: str) -> Tensor:
    """(B, count) float32 uniform on [0, 1): the upper 24 bits of :func:`random_words`, exact on every device."""
    if keys.device.type != "cpu":
        return random_words(keys, count, seed, stream).bitwise_right_shift_(8).to(torch.float32).mul_(2.0**-24)
    uniform = np.empty((len(keys), math.ceil(count / 4), 4), np.float32)
    for place, drawn in _drawn_in_cache(keys, uniform.shape[1], seed, stream):
        drawn >>= 8
        uniform[place] = drawn.view(np.int32)
        uniform[place] *= np.float32(2.0**-24)
    return torch.from_numpy(uniform).flatten(1)[:, :count]


def random_normal(keys: Tensor, count: int, seed: int, stream: str) -> Tensor:
    """(B, count) float32 standard normal numbers, two from each pair of :func:`random_words` (Box and Muller 1958);
    none lies beyond 6.7, where the tail holds 2e-11.
    """
    if keys.device.type != "cpu":
        words = random_words(keys, 2 * math.ceil(count / 2), seed, stream)
        pairs = _normal_pairs(words[:, 0::2].double(), words[:, 1::2].double())
        return torch.stack(pairs, -1).float().flatten(1)[:, :count]
    normals = np.empty((len(keys), math.ceil(count / 4), 4), np.float32)
    for place, drawn in _drawn_in_cache(keys, normals.shape[1], seed, stream):
        part, numbers = normals[place], (torch.from_numpy(drawn[..., of::2].astype(np.float64)) for of in (0, 1))
        part[..., 0::2], part[..., 1::2] = _normal_pairs(*numbers)
    return torch.from_numpy(normals).flatten(1)[:, :count]


def _normal_pairs(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two normal numbers from each two words, all float64; the words are overwritten."""
    # the words of a pair in (0, 1] and [0, 1); all their 32 bits count for the tail
    radius = first.add_(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = second.mul_(2.0**-32 * 2 * math.pi)
    return angle.cos().mul_(radius), angle.sin_().mul_(radius)
