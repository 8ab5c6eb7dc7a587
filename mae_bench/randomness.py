"""Counter-based random numbers that belong to an image, not to a batch, an order or a device."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


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
    position = torch.arange(math.ceil(count / 4), device=keys.device)[None, :]
    key = ((keys & _LOW)[:, None], ((keys >> 32) & _LOW)[:, None])
    zero = torch.zeros_like(position)
    words = philox((position, zero, zero + label, zero + seed), key)
    return torch.stack(words, dim=-1).reshape(len(keys), 4 * position.shape[1])[:, :count]


def random_uniform(keys: Tensor, count: int, seed: int, stream: str) -> Tensor:
    """(B, count) float32 uniform on [0, 1): the upper 24 bits of :func:`random_words`, exact on every device."""
    return (random_words(keys, count, seed, stream) >> 8).to(torch.float32) * 2.0**-24


def random_normal(keys: Tensor, count: int, seed: int, stream: str) -> Tensor:
    """(B, count) float32 standard normal numbers, two from each pair of :func:`random_words` (Box and Muller 1958);
    none lies beyond 6.7, where the tail holds 2e-11.
    """
    words = random_words(keys, 2 * math.ceil(count / 2), seed, stream).reshape(len(keys), math.ceil(count / 2), 2)
    # the words of a pair in (0, 1] and [0, 1); all their 32 bits count for the tail
    radius = (-2 * ((words[..., 0] + 1).double() * 2.0**-32).log()).sqrt()
    angle = words[..., 1].double() * (2.0**-32 * 2 * math.pi)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(1)[:, :count].float()
