"""Models that ship with the package, built from timm's classes so that their weights are timm-native."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mae_bench.cells import near_name
from mae_bench.models import ModelError
from mae_bench.models.checkpoints import load_state, outputs
from mae_bench.suites import cifar10, fashion_mnist

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Architecture:
    """A network and the preprocessing that it expects; ``build(classes)`` gives it with random weights."""

    name: str
    build: Callable[[int], nn.Module]
    pretrained_cfg: dict[str, object]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        size: tuple[int, int, int] = self.pretrained_cfg["input_size"]  # type: ignore[assignment]
        return size


def _vit(side: int, channels: int, classes: int) -> nn.Module:
    model: nn.Module = VisionTransformer(
        img_size=side,
        patch_size=4,
        in_chans=channels,
        num_classes=classes,
        global_pool="avg",
        embed_dim=64,
        depth=6,
        num_heads=4,
    )
    return model


def _resnet_28(classes: int) -> nn.Module:
    model: nn.Module = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=classes, in_chans=1, channels=(16, 32, 64, 128))
    # the stem for small images (He et al. 2016, section 4.2): no early stride, no pooling
    model.conv1 = nn.Conv2d(1, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


_PREPROCESSING_28: dict[str, object] = {
    "input_size": (1, 28, 28),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "mean": fashion_mnist.MEAN,
    "std": fashion_mnist.STD,
}
_PREPROCESSING_32: dict[str, object] = {
    "input_size": (3, 32, 32),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "mean": cifar10.MEAN,
    "std": cifar10.STD,
}
ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("vit_28_patch4", partial(_vit, 28, 1), _PREPROCESSING_28),
        Architecture("vit_32_patch4", partial(_vit, 32, 3), _PREPROCESSING_32),
        Architecture("resnet_28", _resnet_28, _PREPROCESSING_28),
    )
}


@dataclass(frozen=True)
class Card:
    """What is recorded of a bundled model beside its weights; top-1 in [0, 1], None for an encoder."""

    name: str
    arm: str
    seed: int
    architecture: str
    parameters: int
    validation_top1: float | None
    summary: str


def cards() -> list[Card]:
    """The cards of all bundled models, by name.

    Raises:
        ModelError: one is missing or damaged.
    """
    return [_card(path) for path in sorted(WEIGHTS.glob("*.safetensors"))]


def _card(weights: Path) -> Card:
    record = _record(weights)
    match record:
        case {
            "parameters": int(parameters),
            "recipe": {"arm": str(arm), "seed": int(seed), "architecture": str(architecture), "summary": str(summary)},
        }:
            top1 = record.get("validation_top1")
            if top1 is None or (isinstance(top1, float) and 0 <= top1 <= 1):
                return Card(weights.stem, arm, seed, architecture, parameters, top1, summary)
    raise ModelError(f"{weights.with_suffix('.json')} is no record of a bundled model; install mae_bench again")


def _record(weights: Path) -> dict[str, Any]:
    """What is recorded of a bundled model beside its weights.

    Raises:
        ModelError: it is missing or damaged.
    """
    path = weights.with_suffix(".json")
    if not path.exists():
        raise ModelError(f"{path} is missing, so {weights.name} cannot be checked; install mae_bench again")
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}); install mae_bench again") from error
    return record if isinstance(record, dict) else {}


def bundled(name: str) -> nn.Module:
    """The bundled model called ``name``, with its trained weights in float32.

    Raises:
        ModelError: there is no such model, or its file is not what this version expects; a tensor is named.
    """
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        known = (file.stem for file in WEIGHTS.glob("*.safetensors"))
        raise ModelError(f"unknown bundled model {name!r}: {near_name(name, known)}")
    recorded = str(_record(path).get("sha256"))
    if (found := digest(path)) != recorded:
        raise ModelError(
            f"{path} hashes to {found[:12]}, its record says {recorded[:12]}: the file was changed; install mae_bench "
            "again"
        )
    return load_weights(path)


def load_weights(path: Path) -> nn.Module:
    """The model whose weights :func:`save_weights` wrote to ``path``, in float32. Without a classifier's tensors it is
    an encoder.

    Raises:
        ModelError: the file is damaged, or of another architecture; the file, or a tensor, is named.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file ({error}); install mae_bench again") from error
    if metadata.get("architecture") not in ARCHITECTURES:
        hint = near_name(str(metadata.get("architecture")), ARCHITECTURES)
        raise ModelError(f"{path}: unknown architecture {metadata.get('architecture')!r}: {hint}")
    architecture = ARCHITECTURES[metadata["architecture"]]
    heads = ("head.weight", "head.bias", "fc.weight", "fc.bias")
    with torch.device("meta"):  # nothing to draw, and no room for a head that the file only claims to have
        model = architecture.build(outputs(state, heads, path) or 0)
    single = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    load_state(model, single, path, assign=True)
    model.pretrained_cfg = architecture.pretrained_cfg  # type: ignore[assignment]
    return model.eval()


def save_weights(model: nn.Module, name: str, architecture: str, folder: Path) -> Path:
    """Write ``model`` as half-precision safetensors; the architecture's name travels in the file's metadata."""
    path = folder / f"{name}.safetensors"
    tensors = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in model.state_dict().items()
    }
    save_file(tensors, path, metadata={"architecture": architecture})
    return path


def digest(path: Path) -> str:
    """SHA-256 of the file at ``path``."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
