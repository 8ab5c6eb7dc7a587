"""Readings of encoders that were only pretrained: heads fitted to their features on a stated training subset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from mae_bench import cached
from mae_bench.images import View, locked, written_whole
from mae_bench.models import ModelError
from mae_bench.models.classifier import Classifier, heads_of, weights_hash

BATCH = 64
"""Training images in one forward pass."""
L2 = 1e-2
"""Weight of half the squared norm of a linear probe's weights, beside the mean cross-entropy."""
NEIGHBOURS = 20
TEMPERATURE = 0.07
"""How many neighbours vote, and how steeply a vote falls with distance: those of DINO (arXiv 2104.14294)."""
FLOOR = 1e-6
"""Share of the votes of a class that has none, so that its logit is finite."""
SETTINGS = {"linear": {"l2": L2}, "knn": {"k": NEIGHBOURS, "temperature": TEMPERATURE, "floor": FLOOR}}

Training = Callable[[View, int], tuple[Tensor | np.ndarray, Tensor | np.ndarray]]
"""Gives, of a view, so many training images of each class: uint8 (N, C, H, W), and their labels (N,)."""


class Probed(nn.Module):
    """Logits (B, classes) of ``head`` on the features (B, D) of a timm ``encoder``, with the preprocessing of that."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        classifier = Classifier.of(type(encoder).__name__, encoder)
        size = (classifier.channels, classifier.view.height, classifier.view.width)
        self.pretrained_cfg: dict[str, object] = {**encoder.pretrained_cfg, "input_size": size}  # type: ignore[dict-item]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images))
        return logits


class KnnHead(nn.Module):
    """Logits (B, classes) of features (B, D): the logarithm of each class's share of the votes of the ``k`` training
    features that are nearest in cosine, a vote weighing exp(cosine / temperature) (Wu et al. 2018, arXiv 1805.01978;
    Caron et al. 2021, arXiv 2104.14294), and no share below ``FLOOR``.

    Args:
        features: (N, D) of the training images.
        labels: (N,) in [0, classes), each class among them.

    Raises:
        ModelError: these do not fit each other, or there are fewer than ``k``.

    >>> head = KnnHead(torch.eye(2), torch.tensor([0, 1]), classes=2, k=2, temperature=1.0)
    >>> head(torch.tensor([[3.0, 0.0]])).exp()
    tensor([[0.7311, 0.2689]])
    """

    def __init__(
        self, features: Tensor, labels: Tensor, classes: int, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
    ) -> None:
        super().__init__()
        _check(features, labels, classes)
        if not 1 <= k <= len(features):
            raise ModelError(f"{k} neighbours are asked for among {len(features)} training features: take more images")
        self.classes = classes
        self.k = k
        self.temperature = temperature
        self.features: Tensor
        self.labels: Tensor
        self.register_buffer("features", functional.normalize(features.float(), dim=1))
        self.register_buffer("labels", labels.long())

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):  # similarities of near neighbours differ by little
            cosine = functional.normalize(features.float(), dim=1) @ self.features.T
        nearest = cosine.topk(self.k, dim=1)
        votes = (nearest.values / self.temperature).softmax(1)
        shares = votes.new_zeros(len(votes), self.classes).scatter_add_(1, self.labels[nearest.indices], votes)
        return shares.clamp_min(FLOOR).log()


@torch.inference_mode(mode=False)
@torch.enable_grad()
def linear_probe(
    features: Tensor, labels: Tensor, classes: int, l2: float = L2, tolerance: float = 1e-6, iterations: int = 2000
) -> nn.Linear:
    """Multinomial logistic regression on standardised features: the minimum of the mean cross-entropy plus ``l2`` times
    half the squared norm of the weights, biases aside, found by L-BFGS on all features at once in float64. The
    standardisation is folded into the layer that comes back, which reads the features as they are.

    Args:
        features: (N, D) of the training images.
        labels: (N,) in [0, classes), each class among them.
        l2: positive, without which there is no minimum where classes can be told apart.
        tolerance: largest component of the gradient at the end.

    Raises:
        ModelError: these do not fit each other, or the minimum is not reached.

    >>> points = torch.tensor([[-1.0], [1.0], [3.0], [5.0]])
    >>> probe = linear_probe(points, torch.tensor([0, 0, 1, 1]), classes=2)
    >>> probe(torch.tensor([[2.0]])).softmax(1)
    tensor([[0.5000, 0.5000]])
    """
    _check(features, labels, classes)
    if l2 <= 0:
        raise ModelError(f"a linear probe needs a positive l2, not {l2}")
    values, targets = features.double(), labels.long().clone()
    mean, deviation = values.mean(0), values.std(0, correction=0)
    deviation = torch.where(deviation > 1e-6 * mean.abs(), deviation, 1.0)  # a constant feature is one but for rounding
    values = (values - mean) / deviation
    weight = values.new_zeros(classes, values.shape[1]).requires_grad_()
    bias = values.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(values @ weight.T + bias, targets) + l2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    objective()
    assert weight.grad is not None
    assert bias.grad is not None
    steepest = max(float(weight.grad.abs().max()), float(bias.grad.abs().max()))
    if not steepest <= tolerance:
        raise ModelError(
            f"a linear probe did not settle in {iterations} iterations (gradient {steepest:.1e}, not {tolerance:.1e}): "
            f"raise l2 above {l2:g}"
        )
    probe = nn.Linear(values.shape[1], classes)
    with torch.no_grad():
        probe.weight.copy_(weight / deviation)
        probe.bias.copy_(bias - weight @ (mean / deviation))
    return probe.requires_grad_(requires_grad=False)


def features_of(encoder: nn.Module, batches: Iterable[Tensor], device: torch.device | str) -> Tensor:
    """(N, D) float32 on the CPU: what ``encoder``, evaluated on ``device``, gives for all images of ``batches``.

    Raises:
        ModelError: it gives no vector for an image.
    """
    encoder = encoder.to(device).eval()
    parts = []
    with torch.inference_mode():
        for images in batches:
            features = encoder(images.to(device))
            if not isinstance(features, Tensor) or features.ndim != 2:
                shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
                raise ModelError(f"an encoder gave features of shape {shape}; a probe reads (images, features)")
            parts.append(features.float().cpu())
    return torch.cat(parts)


def probed(
    name: str,
    encoder: nn.Module,
    training: Training,
    *,
    subset: str,
    per_class: int,
    kind: Literal["linear", "knn"],
    folder: Path,
    device: torch.device | str = "cpu",
) -> Probed:
    """``encoder``, read by a head that is fitted to ``per_class`` training images of each class, or that was before and
    is kept in ``folder``; one that is damaged there is fitted again.

    Args:
        name: of the model, for messages.
        encoder: a timm model without classifier.
        training: called only where there is no fitted head.
        subset: tells these training images from others, such as the hash of their manifest.
        kind: ``linear`` (:func:`linear_probe`) or ``knn`` (:class:`KnnHead`).
        device: where features are computed and the head is fitted; the model comes back on the CPU.

    Raises:
        ModelError: the encoder has a classifier, or its features or the training images are not what they should be.
        ImageError: ``folder`` cannot be written to.
    """
    if heads_of(encoder):
        raise ModelError(f"model {name!r} has a classifier of its own: a probe reads an encoder (num_classes=0)")
    classifier = Classifier.of(name, encoder)
    settings = {
        "encoder": weights_hash(encoder),
        "preprocessing": classifier.preprocessing,
        "subset": subset,
        "per_class": per_class,
        "kind": kind,
        **SETTINGS[kind],
    }
    identity = json.dumps(settings, sort_keys=True)
    path = folder / f"{kind}-{cached.key(identity)}.head"
    with locked(path):
        content = cached.kept(path, identity)
        head = None if content is None else _head(content, kind)
        if head is None:
            content = save(_fitted(name, classifier, training, per_class, kind, device))
            head = _head(content, kind)
            with written_whole(path) as file:
                file.write(cached.stamped(content, identity))
    return Probed(encoder.cpu(), head).eval()


def _fitted(
    name: str,
    classifier: Classifier,
    training: Training,
    per_class: int,
    kind: str,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """The tensors of the head."""
    view = classifier.view
    given, classes = training(view, per_class)
    images, labels = np.asarray(given), torch.from_numpy(np.array(classes)).long()
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2:] != (view.height, view.width):
        raise ModelError(
            f"the training images of {name!r} are {images.dtype} of shape {tuple(images.shape)}; expected uint8 "
            f"(N, C, {view.height}, {view.width})"
        )
    starts = range(0, len(images), BATCH)  # copied batch by batch: all of them may be a file on disk
    batches = (torch.from_numpy(np.array(images[i : i + BATCH])).to(device).float() / 255 for i in starts)
    features = features_of(classifier, batches, device).to(device)
    count = int(labels.max()) + 1 if len(labels) else 0
    _check(features, labels, count)
    most = int(labels.bincount().max())
    if most > per_class:
        raise ModelError(f"{most} training images of one class came for {name!r}, which says {per_class} a class")
    if kind == "linear":
        head: nn.Module = linear_probe(features, labels.to(device), count)
    else:
        head = KnnHead(features, labels.to(device), count)
    return {key: value.cpu().contiguous() for key, value in head.state_dict().items()}


def _head(content: bytes, kind: str) -> nn.Module:
    """The head of a ``kind`` whose tensors are in a safetensors file of this ``content``."""
    state = load(content)
    if kind == "linear":
        head: nn.Module = nn.Linear(state["weight"].shape[1], state["weight"].shape[0])
    else:
        head = KnnHead(state["features"], state["labels"], int(state["labels"].max()) + 1)
    head.load_state_dict(state)
    return head.requires_grad_(requires_grad=False)


def _check(features: Tensor, labels: Tensor, classes: int) -> None:
    """Raises:
    ModelError: ``features`` (N, D) and ``labels`` (N,) of ``classes`` do not fit each other.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ModelError(
            f"features {tuple(features.shape)} and labels {tuple(labels.shape)} do not fit: (N, D) and (N,)"
        )
    if not bool(features.isfinite().all()):
        raise ModelError("a probe's features are not finite: check the encoder's weights")
    present = set(labels.tolist())
    if missing := sorted(set(range(classes)) - present):
        raise ModelError(f"class {missing[0]} of {classes} has no training image: a probe needs some of each")
    if foreign := sorted(present - set(range(classes))):
        raise ModelError(f"label {foreign[0]} is none of {classes} classes")
