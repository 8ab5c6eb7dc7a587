"""Counter-based random numbers that belong to an image, not to a batch, an order or a device."""

from __future__ import annotations

import hashlib
import math
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

Words = NDArray[np.int64]


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
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed} is outside 0..{2**32 - 1}")
    label = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "little")
    if keys.device.type == "cpu":
        return torch.from_numpy(_words_in_cache(keys.numpy(), math.ceil(count / 4), label, seed)).flatten(1)[:, :count]
    position = torch.arange(math.ceil(count / 4), device=keys.device)[None, :]
    key = ((keys & _LOW)[:, None], ((keys >> 32) & _LOW)[:, None])
    zero = torch.zeros_like(position)
    words = philox((position, zero, zero + label, zero + seed), key)
    return torch.stack(words, dim=-1).reshape(len(keys), 4 * position.shape[1])[:, :count]


def _words_in_cache(keys: NDArray[np.int64], positions: int, label: int, seed: int, rounds: int = 10) -> Words:
    """(B, positions, 4): :func:`philox` of the counters (position, 0, ``label``, ``seed``), few at a time and in place,
    so that what is worked on stays in the cache of a CPU; by numpy, whose operations on few numbers cost less to call.
    """
    low, half = np.uint64(_LOW), np.uint64(32)
    words = np.empty((len(keys), positions, 4), np.uint64)
    columns = max(1, min(positions, _COUNTERS))
    rows = max(1, _COUNTERS // columns)
    for first, start in product(range(0, len(keys), rows), range(0, positions, columns)):
        part = words[first : first + rows, start : start + columns]
        c0, c1, c2, c3, p0, p1 = np.empty((6, *part.shape[:2]), np.uint64)
        c0[:] = np.arange(start, start + part.shape[1], dtype=np.uint64)
        c1[:], c2[:], c3[:] = 0, label, seed
        key = keys[first : first + rows, None].view(np.uint64)
        k0, k1 = key & low, key >> half
        for _ in range(rounds):
            np.multiply(c0, np.uint64(_M0), out=p0)
            np.multiply(c2, np.uint64(_M1), out=p1)
            # what lies above 32 bits of c1 and c3 is cut off with the rest
            for counter, product_, other, k in ((c0, p1, c1, k0), (c2, p0, c3, k1)):
                np.right_shift(product_, half, out=counter)
                counter ^= other
                counter ^= k
                counter &= low
            c1, p1, c3, p0 = p1, c1, p0, c3
            k0, k1 = (k0 + np.uint64(_W0)) & low, (k1 + np.uint64(_W1)) & low
        c1 &= low
        c3 &= low
        for place, word in enumerate((c0, c1, c2, c3)):
            part[..., place] = word
    return words.view(np.int64)


def random_uniform(keys: Tensor, count: int, seed: int, stream: str) -> Tensor:
    """(B, count) float32 uniform on [0, 1): the upper 24 bits of :func:`random_words`, exact on every device."""
    return random_words(keys, count, seed, stream).bitwise_right_shift_(8).to(torch.float32).mul_(2.0**-24)


def random_normal(keys: Tensor, count: int, seed: int, stream: str) -> Tensor:
    """(B, count) float32 standard normal numbers, two from each pair of :func:`random_words` (Box and Muller 1958);
    none lies beyond 6.7, where the tail holds 2e-11.
    """
    words = random_words(keys, 2 * math.ceil(count / 2), seed, stream).reshape(-1, 2)
    normals = torch.empty(words.shape, device=keys.device)
    at_a_time = _COUNTERS if keys.device.type == "cpu" else max(1, len(words))
    for pairs, numbers in zip(torch.split(words, at_a_time), torch.split(normals, at_a_time), strict=True):
        # the words of a pair in (0, 1] and [0, 1); all their 32 bits count for the tail
        radius = pairs[:, 0].double().add_(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = pairs[:, 1].double().mul_(2.0**-32 * 2 * math.pi)
        numbers[:, 0] = angle.cos().mul_(radius)
        numbers[:, 1] = angle.sin_().mul_(radius)
    return normals.view(len(keys), 2 * math.ceil(count / 2))[:, :count]
