"""Training images: which are held out, how they are augmented and normalised."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

VALIDATION_IMAGES_PER_CLASS = 500


@dataclass(frozen=True)
class TrainingData:
    """Images (N, C, H, W) uint8, labels (N,), and the positions that train and that validate."""

    images: np.ndarray
    labels: np.ndarray
    training: np.ndarray
    validation: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, suite: str, folder: Path) -> TrainingData:
        """Raises:
        FileNotFoundError: the training images are not in ``folder``; the message says how to get them.
        """
        source: ModuleType = import_module(f"mae_bench.suites.{suite}")
        images, labels = source.training_images(folder)
        return cls(images, labels, *split(labels), source.MEAN, source.STD)

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def batch(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and labels."""
        return torch.from_numpy(self.images[positions]).float() / 255, torch.from_numpy(self.labels[positions])

    def normalised(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and of the class-balanced validation images, the same for every recipe."""
    order = np.random.default_rng(0).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    held_out = rank < VALIDATION_IMAGES_PER_CLASS
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def augmented(images: Tensor, generator: torch.Generator, shift: int) -> Tensor:
    """Random horizontal flip and random crop of the image padded with ``shift`` zeros, one draw per image."""
    count, _, height, width = images.shape
    flip = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    padded = functional.pad(images, (shift,) * 4)
    top, left = torch.randint(0, 2 * shift + 1, (2, count), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, :]
    return padded.movedim(1, -1)[torch.arange(count)[:, None, None], rows, columns].movedim(-1, 1).contiguous()
