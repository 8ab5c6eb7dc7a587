"""Rows of an image that drops have washed away."""

import torch
from torch import Tensor

from mae_bench.degradations import Setting
from mae_bench.randomness import random_uniform


def degrade(name: str, images: Tensor, value: float, setting: Setting) -> Tensor:
    """``images`` (B, C, H, W) with the share ``value`` of their rows black, other ones in each image."""
    rows = random_uniform(setting.keys, images.shape[2], setting.seed, name)
    return torch.where((rows < value)[:, None, :, None], torch.zeros_like(images), images)
