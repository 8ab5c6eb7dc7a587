"""Geometric shifts of image batches: rotation, scale and translation about the centre, black where nothing was.

Images are (B, C, H, W) in [0, 1]; computation is in float32 and the dtype is kept. Sign, sense and direction belong to
the image and are the same at every level.
"""

from __future__ import annotations

import math

import torch
from kornia.geometry.transform import rotate, scale, translate
from torch import Tensor

from mae_bench.degradations import Setting
from mae_bench.randomness import random_uniform


def degrade(name: str, images: Tensor, level: float, setting: Setting) -> Tensor:
    """Geometric shift ``name``: ``rotation`` by ``level`` degrees to either side, ``scale`` by 1 + ``level``, larger
    or smaller, ``translation`` by ``level`` times the shorter side in any direction.
    """
    draw = random_uniform(setting.keys, 1, setting.seed, name)[:, 0]
    if name == "rotation":
        return rotated(images, torch.where(draw < 0.5, level, -level))
    if name == "scale":
        return scaled(images, torch.where(draw < 0.5, 1 + level, 1 / (1 + level)))
    direction = 2 * math.pi * draw
    distance = level * min(images.shape[-2:])
    return translated(images, distance * torch.stack((direction.cos(), direction.sin()), dim=1))


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotation by ``degrees`` (B,), anticlockwise."""
    return _pixels(rotate(images.float(), degrees), images)


def scaled(images: Tensor, factor: Tensor) -> Tensor:
    """Enlargement by ``factor`` (B,), below 1 a reduction."""
    return _pixels(scale(images.float(), factor), images)


def translated(images: Tensor, shift: Tensor) -> Tensor:
    """Translation by ``shift`` (B, 2) pixels to the right and down."""
    return _pixels(translate(images.float(), shift), images)


def _pixels(moved: Tensor, images: Tensor) -> Tensor:
    return moved.clamp(0, 1).to(images.dtype)
