"""Models: how they are registered, loaded one at a time, wrapped with their preprocessing, and tapped."""

from __future__ import annotations

import json
from pathlib import Path

from mae_bench.errors import BenchError


class ModelError(BenchError):
    """A model that cannot be registered, loaded or evaluated."""


def bundled_names(encoders: bool = False) -> list[str]:
    """Names of the models that ship with the package, with ``encoders`` those without a classifier too, read without
    torch.

    >>> bundled_names()[:3]
    ['cnn_s0', 'mae_ft_s0', 'mae_ft_s1']
    """
    weights = sorted((Path(__file__).parent / "weights").glob("*.safetensors"))
    records = {path.stem: json.loads(path.with_suffix(".json").read_bytes()) for path in weights}
    return [name for name, record in records.items() if encoders or record.get("validation_top1") is not None]
