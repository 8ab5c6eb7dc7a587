"""A network together with the preprocessing that it expects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from mae_bench.images import View
from mae_bench.models import ModelError


class Classifier(nn.Module):
    """Logits from images in [0, 1].

    Args:
        module: maps normalised images (B, C, H, W) to logits (B, classes).
        mean, std: per channel, in units of [0, 1] pixels.
        input_size: (C, H, W) that the module takes.
        interpolation, crop_pct, crop_mode: timm's evaluation resize and crop, which make the view.

    Raises:
        ModelError: ``module`` is no ``nn.Module``, or the numbers do not fit each other.

    >>> model = Classifier(nn.Flatten(), mean=(0.5,), std=(0.25,), input_size=(1, 2, 2))
    >>> model(torch.full((1, 1, 2, 2), 0.75))
    tensor([[1., 1., 1., 1.]])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: tuple[int, int, int],
        interpolation: str = "bilinear",
        crop_pct: float = 0.875,
        crop_mode: str = "center",
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise ModelError(f"Classifier was given a {type(module).__name__}; it wraps a torch.nn.Module")
        self.channels, height, width = input_size
        if not len(mean) == len(std) == self.channels:
            raise ModelError(
                f"{len(mean)} means and {len(std)} standard deviations do not fit {self.channels} channels"
            )
        if min(std) <= 0 or not 0 < crop_pct <= 1:
            raise ModelError(f"std {tuple(std)} must be positive and crop_pct {crop_pct} in (0, 1]")
        self.module = module
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.view = View(height, width, interpolation, float(crop_pct), crop_mode)

    @property
    def preprocessing(self) -> str:
        """Everything between a decoded image and the module, as text."""
        return json.dumps({"view": asdict(self.view), "mean": self.mean, "std": self.std, "channels": self.channels})

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        logits: Tensor = self.module((images - mean) / std)
        return logits

    @classmethod
    def of(cls, name: str, returned: object) -> Classifier:
        """What the fixture ``name`` returned, as a classifier; a timm model brings its ``pretrained_cfg``.

        Raises:
            ModelError: it is no module, or a module whose preprocessing is unknown.
        """
        if isinstance(returned, Classifier):
            return returned
        if not isinstance(returned, nn.Module):
            raise ModelError(
                f"model fixture {name!r} returned {_described(returned)}, not a torch.nn.Module: return a timm model "
                "or Classifier(module, mean=..., std=..., input_size=...)"
            )
        if not getattr(returned, "pretrained_cfg", None):
            raise ModelError(
                f"model fixture {name!r} returned a {type(returned).__name__} without timm's pretrained_cfg, so its "
                "preprocessing is unknown: return Classifier(module, mean=..., std=..., input_size=...)"
            )
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(returned)
        channels, height, width = config["input_size"]
        channels = _input_channels(returned, channels)
        # a model built for another image size than its pretrained weights says so in its patch embedding
        height, width = getattr(getattr(returned, "patch_embed", None), "img_size", None) or (height, width)
        return cls(
            returned,
            mean=_per_channel(config["mean"], channels),
            std=_per_channel(config["std"], channels),
            input_size=(channels, height, width),
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )

    def weights_hash(self) -> str:
        """SHA-256 over every tensor's name, type, shape and bytes (64 bits of it, hexadecimal)."""
        digest = hashlib.sha256()
        for key, value in sorted(self.module.state_dict().items()):
            tensor = value.detach().cpu().contiguous()
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def _described(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _input_channels(module: nn.Module, default: int) -> int:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels
    return default


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """``values`` for ``channels``: as they are, or their mean for every channel (as timm averages RGB stems)."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
