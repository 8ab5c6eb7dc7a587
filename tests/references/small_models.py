"""Models whose forward pass takes no time, loaded as those of users are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import LoadedModel, Pool
from mae_bench.models.registry import ModelEntry


def loaded(module: nn.Module, name: str = "vit", channels: int = 1, **preprocessing: Any) -> LoadedModel:
    defaults: dict[str, Any] = {
        "mean": (0.45, 0.5, 0.4)[:channels],
        "std": (0.25, 0.3, 0.2)[:channels],
        "input_size": (channels, 28, 28),
        "crop_pct": 0.9,
    }
    model = Classifier(module, **(defaults | preprocessing))
    return Pool("cpu").load(ModelEntry(name), lambda: model)


def linear(outputs: int = 8, channels: int = 1, scale: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(channels * 28 * 28, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * scale)
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)
