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
        # on the device once, since a copy in every forward pass would wait for a GPU
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", torch.tensor(self.mean)[:, None, None], persistent=False)
        self.register_buffer("_std", torch.tensor(self.std)[:, None, None], persistent=False)

    @property
    def preprocessing(self) -> str:
        """Everything between a decoded image and the module, as text."""
        return json.dumps({"view": asdict(self.view), "mean": self.mean, "std": self.std, "channels": self.channels})

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(self.normalised(images))
        return logits

    def normalised(self, images: Tensor) -> Tensor:
        """``images`` (B, C, H, W) in [0, 1] as the module takes them."""
        if images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        return (images - self._mean).div_(self._std)

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
        """The :func:`weights_hash` of the module."""
        return weights_hash(self.module)


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes (64 bits of it, hexadecimal)."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def heads_of(module: nn.Module) -> list[nn.Linear]:
    """The linear layers that timm calls the classifier of ``module``: none where it is an encoder or no timm model, two
    where there is a distillation token.
    """
    found = getattr(module, "get_classifier", lambda: None)()
    return [head for head in (found if isinstance(found, tuple) else (found,)) if isinstance(head, nn.Linear)]


def untrained_head(module: nn.Module) -> str | None:
    """Why the classifier of ``module`` (a timm model, or a :class:`Classifier` of one) looks as it was before any
    training; None where it does not, or where it cannot be told.

    All weights are zero (timm's ``jax``, Hiera); or every bias is zero and the n weights are normal around 0 with a
    standard deviation of 0.02 (``trunc_normal_(std=0.02)``, whose bounds at -2 and 2 are never met), of 0.001 times
    that (Beit, Eva) or of 0.01 (RegNet), or uniform within 1 / sqrt(classes) (EfficientNet); or bias and weights are
    uniform within 1 / sqrt(features) (``torch.nn.Linear``). A distribution is recognised by its moments: mean, standard
    deviation and kurtosis within five standard errors of what n independent draws give, and for a uniform one no weight
    beyond its bounds. One step of training moves every bias, and brings weights beyond a bound.

    >>> untrained_head(Classifier(nn.Linear(8, 5), mean=(0.5,), std=(0.5,), input_size=(1, 2, 4))) is None
    True
    """
    heads = heads_of(module.module if isinstance(module, Classifier) else module)
    return next((reason for head in heads if (reason := _initial(head)) is not None), None)


def _initial(head: nn.Linear) -> str | None:
    """Which distribution ``head`` was drawn from, in words."""
    weight, bias = head.weight.detach().double(), head.bias
    classes, features = weight.shape
    untrained = f"its classifier of {classes} x {features} weights was never trained"
    if not bool(weight.any()):
        return f"{untrained}: all are zero"
    if bias is None:
        return None
    unmoved = not bool(bias.detach().any())
    for deviation in (0.02, 0.02 * 0.001, 0.01):
        if unmoved and _drawn(weight, deviation, kurtosis=3.0, variance_of_kurtosis=24.0):
            return f"{untrained}: its bias is zero, and they are normal with a standard deviation of {deviation:g}"
    for bound, fits in ((classes**-0.5, unmoved), (features**-0.5, _within(bias, features**-0.5))):
        if fits and _within(weight, bound) and _drawn(weight, bound / 3**0.5, 9 / 5, 1.317):
            return f"{untrained}: they are uniform within {bound:.4g}"
    return None


def _within(values: Tensor, bound: float) -> bool:
    return float(values.detach().abs().max()) <= bound * 1.001  # which half precision may have rounded up


def _drawn(values: Tensor, deviation: float, kurtosis: float, variance_of_kurtosis: float) -> bool:
    """Whether the moments of ``values`` are those of independent draws from a symmetric distribution around 0; n times
    the variance of a sample's kurtosis is mu_8 - 4 kurtosis mu_6 + 4 kurtosis^3 - kurtosis^2 of the standardised one.
    """
    n = values.numel()
    second = values.square().mean()
    errors = (
        (values.mean() / deviation, 1.0),
        (second.sqrt() / deviation - 1, (kurtosis - 1) / 4),
        (values.pow(4).mean() / second.square() - kurtosis, variance_of_kurtosis),
    )
    return all(abs(float(error)) <= 5 * (variance / n) ** 0.5 for error, variance in errors)


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
