"""Linear and nearest-neighbour readings of encoders, against optimisers and loops that are slow and obvious."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mae_bench.images import ImageError, View
from mae_bench.models import ModelError
from mae_bench.models.classifier import Classifier, weights_hash
from mae_bench.models.probes import FLOOR, KnnHead, Probed, features_of, linear_probe, probed
from mae_bench.models.taps import taps_of

pytestmark = pytest.mark.usefixtures("one_thread")

Build = Callable[..., Any]


def clusters(per_class: int = 12, classes: int = 3, features: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping clouds of points of different spread along each feature, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(per_class)[torch.randperm(classes * per_class, generator=generator)]
    centres = torch.randn(classes, features, generator=generator)
    points = centres[labels] + torch.randn(len(labels), features, generator=generator)
    return points * torch.logspace(-2, 2, features) + torch.arange(features), labels


# --------------------------------------------------------------------------- the linear probe


def loss_by_hand(parameters: np.ndarray, points: np.ndarray, labels: np.ndarray, classes: int, l2: float) -> float:
    weight = parameters[: classes * points.shape[1]].reshape(classes, -1)
    bias = parameters[classes * points.shape[1] :]
    total = 0.0
    for point, label in zip(points, labels, strict=True):
        logits = weight @ point + bias
        total += float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])
    return total / len(points) + l2 / 2 * float((weight**2).sum())


@pytest.mark.parametrize("l2", [0.001, 0.1])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_probe_is_the_minimum_that_scipy_finds(classes: int, l2: float) -> None:
    points, labels = clusters(per_class=6, classes=classes, features=3)
    probe = linear_probe(points, labels, classes, l2=l2)
    values = points.double().numpy()
    standardised = (values - values.mean(0)) / values.std(0)
    arguments = (standardised, labels.numpy(), classes, l2)
    best = scipy.optimize.minimize(loss_by_hand, np.zeros(classes * 4), arguments, tol=1e-10)
    weight, bias = best.x[: classes * 3].reshape(classes, 3), best.x[classes * 3 :]
    expected = standardised @ weight.T + bias
    torch.testing.assert_close(probe(points).double().numpy(), expected, rtol=1e-3, atol=1e-3)
    own = np.concatenate([(probe.weight.double().numpy() * values.std(0)).ravel(), np.zeros(classes)])
    own[-classes:] = probe.bias.double().numpy() + probe.weight.double().numpy() @ values.mean(0)
    assert loss_by_hand(own, *arguments) <= float(best.fun) + 1e-6


def test_the_scale_and_place_of_a_feature_do_not_matter() -> None:
    points, labels = clusters()
    points = points.double()
    moved = points * torch.tensor([3.0, 0.01, 1.0, 50.0, 2.0]) + 7
    torch.testing.assert_close(
        linear_probe(points, labels, 3).double()(points),
        linear_probe(moved, labels, 3).double()(moved),
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_feature_that_is_constant_but_for_rounding_is_not_read() -> None:
    points, labels = clusters()
    rounded = torch.where(labels == 1, torch.tensor(0.1), torch.nextafter(torch.tensor(0.1), torch.tensor(1.0)))
    with_constant = torch.cat([points, rounded[:, None]], 1)
    probe = linear_probe(with_constant, labels, 3)
    assert float(probe.weight[:, -1].abs().max()) < 1e-4
    torch.testing.assert_close(probe(with_constant), linear_probe(points, labels, 3)(points), rtol=1e-4, atol=1e-4)


def test_a_probe_is_the_same_each_time_whatever_was_drawn_before() -> None:
    points, labels = clusters()
    first = linear_probe(points, labels, 3)
    torch.rand(17)
    with torch.inference_mode():
        second = linear_probe(points.clone(), labels, 3)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert not first.weight.requires_grad


def test_more_l2_makes_smaller_weights() -> None:
    points, labels = clusters()
    norms = [float(linear_probe(points, labels, 3, l2=l2).weight.norm()) for l2 in (0.001, 0.1, 10)]
    assert norms == sorted(norms, reverse=True)


def test_a_probe_that_does_not_settle_says_so() -> None:
    points, labels = clusters()
    with pytest.raises(ModelError, match=r"did not settle in 2 iterations .*raise l2 above 0\.001"):
        linear_probe(points, labels, 3, l2=0.001, iterations=2)
    with pytest.raises(ModelError, match="needs a positive l2, not 0"):
        linear_probe(points, labels, 3, l2=0)


# --------------------------------------------------------------------------- nearest neighbours


def shares_by_hand(
    bank: np.ndarray, labels: np.ndarray, query: np.ndarray, classes: int, k: int, temperature: float
) -> list[float]:
    cosines = [float(query @ one) / (math.sqrt(float(query @ query)) * math.sqrt(float(one @ one))) for one in bank]
    nearest = sorted(range(len(bank)), key=lambda i: -cosines[i])[:k]
    votes = [0.0] * classes
    for i in nearest:
        votes[int(labels[i])] += math.exp(cosines[i] / temperature)
    return [vote / sum(votes) for vote in votes]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (36, 0.5)])
def test_votes_are_those_counted_one_by_one(k: int, temperature: float) -> None:
    bank, labels = clusters()
    queries, _ = clusters(seed=1)
    logits = KnnHead(bank, labels, 3, k=k, temperature=temperature)(queries)
    for query, row in zip(queries.double().numpy(), logits, strict=True):
        shares = shares_by_hand(bank.double().numpy(), labels.numpy(), query, 3, k, temperature)
        expected = [math.log(max(share, FLOOR)) for share in shares]
        torch.testing.assert_close(row, torch.tensor(expected), rtol=1e-3, atol=1e-3)


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 4))
def test_logits_are_finite_and_their_shares_sum_to_one(seed: int, k: int, classes: int) -> None:
    bank, labels = clusters(per_class=9, classes=classes, seed=seed)
    queries, _ = clusters(per_class=2, classes=2, seed=seed + 1)
    logits = KnnHead(bank, labels, classes, k=k)(torch.cat([queries, torch.zeros(1, 5)]))
    assert bool(logits.isfinite().all())
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(5), rtol=1e-4, atol=classes * FLOOR)


def test_a_training_image_votes_for_itself() -> None:
    bank, labels = clusters()
    assert torch.equal(KnnHead(bank, labels, 3, k=1)(bank * 5).argmax(1), labels)


def test_a_vote_is_not_rounded_by_autocast() -> None:
    bank, labels = clusters()
    head = KnnHead(bank, labels, 3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head(bank)
    assert torch.equal(rounded, head(bank))


def test_more_neighbours_than_images_are_refused() -> None:
    bank, labels = clusters()
    with pytest.raises(ModelError, match="37 neighbours are asked for among 36 training features: take more images"):
        KnnHead(bank, labels, 3, k=37)


@pytest.mark.parametrize("fit", [linear_probe, KnnHead])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y, 4), "class 3 of 4 has no training image"),
        (lambda x, y: (x, y, 2), "label 2 is none of 2 classes"),
        (lambda x, y: (x, y - 1, 2), "label -1 is none of 2 classes"),
        (lambda x, y: (x[:-1], y, 3), r"features \(35, 5\) and labels \(36,\) do not fit: \(N, D\) and \(N,\)"),
        (lambda x, y: (x[..., None], y, 3), r"features \(36, 5, 1\)"),
        (lambda x, y: (x[:0], y[:0], 3), r"features \(0, 5\)"),
        (lambda x, y: (x.where(x < x.max(), torch.nan), y, 3), "features are not finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(fit: Build, change: Build, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fit(*change(*clusters()))


# --------------------------------------------------------------------------- features


def test_features_are_what_the_encoder_gives_in_evaluation_mode(small_vit: Build) -> None:
    encoder = small_vit(num_classes=0, proj_drop_rate=0.5).train()
    batches = torch.randn(3, 4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    features = features_of(encoder, iter(batches), "cpu")
    assert features.shape == (12, 16)
    assert not features.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(features, encoder.eval()(batches.flatten(0, 1)), rtol=1e-4, atol=1e-5)


def test_an_encoder_must_give_vectors(small_vit: Build) -> None:
    with pytest.raises(ModelError, match=r"features of shape \(2, 17, 16\); a probe reads"):
        features_of(small_vit(num_classes=0, global_pool=""), [torch.zeros(2, 1, 28, 28)], "cpu")
    with pytest.raises(ModelError, match="features of shape tuple"):
        features_of(Pair(), [torch.zeros(2, 1, 28, 28)], "cpu")


class Pair(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


# --------------------------------------------------------------------------- an encoder with its head


CONFIG: dict[str, Any] = {
    "input_size": (1, 28, 28), "mean": (0.4,), "std": (0.3,), "interpolation": "bilinear", "crop_pct": 1.0,
}  # fmt: skip


class TrainingImages:
    """``per_class`` images of each of three classes, brighter from class to class; counts how often it is asked."""

    def __init__(self, **changes: Any) -> None:
        self.calls: list[tuple[View, int]] = []
        self.changes = changes

    def __call__(self, view: View, per_class: int) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append((view, per_class))
        labels = self.changes.get("labels", np.arange(3).repeat(per_class))
        noise = np.random.default_rng(0).integers(0, 60, (len(labels), 1, view.height, view.width), dtype=np.uint8)
        images = noise + (80 * labels).astype(np.uint8)[:, None, None, None]
        return self.changes.get("images", images), labels


@pytest.fixture
def encoder(small_vit: Build) -> Any:
    network = small_vit(num_classes=0)
    network.pretrained_cfg = CONFIG
    return network


def reading(encoder: Any, training: Any, folder: Path, **changes: Any) -> Probed:
    settings: dict[str, Any] = {"subset": "first images", "per_class": 8, "kind": "linear", "folder": folder}
    return probed("mine", encoder, training, **(settings | changes))


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_probed_encoder_reads_the_training_images_through_its_preprocessing(
    encoder: Any, tmp_path: Path, kind: str
) -> None:
    training = TrainingImages()
    model = reading(encoder, training, tmp_path, kind=kind)
    classifier = Classifier.of("mine", model)
    assert classifier.preprocessing == Classifier.of("mine", encoder).preprocessing
    assert training.calls == [(classifier.view, 8)]
    images, labels = (torch.as_tensor(values) for values in training(classifier.view, 8))
    with torch.no_grad():
        features = encoder((images.float() / 255 - 0.4) / 0.3)
        head = linear_probe(features, labels, 3) if kind == "linear" else KnnHead(features, labels, 3)
        torch.testing.assert_close(classifier(images.float() / 255), head(features), rtol=1e-3, atol=1e-3)
    assert torch.equal(classifier(images.float() / 255).argmax(1), labels)
    assert not model.training


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_fitted_head_is_kept_and_found(encoder: Any, tmp_path: Path, kind: str) -> None:
    training = TrainingImages()
    first = reading(encoder, training, tmp_path / "new", kind=kind)
    second = reading(encoder, training, tmp_path / "new", kind=kind)
    assert len(training.calls) == 1
    assert weights_hash(first) == weights_hash(second)
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first(images), second(images))
    assert sorted(path.suffix for path in (tmp_path / "new").iterdir()) == [".head", ".lock"]


def test_another_encoder_subset_or_setting_is_fitted_anew(encoder: Any, small_vit: Build, tmp_path: Path) -> None:
    other = small_vit(num_classes=0, seed=1)
    other.pretrained_cfg = CONFIG
    brighter = small_vit(num_classes=0)
    brighter.pretrained_cfg = CONFIG | {"mean": (0.3,)}
    training = TrainingImages()
    reading(encoder, training, tmp_path)
    for number, (network, changes) in enumerate(
        [(other, {}), (brighter, {}), (encoder, {"subset": "last images"}), (encoder, {"per_class": 9}),
         (encoder, {"kind": "knn"})],
        start=2,
    ):  # fmt: skip
        reading(network, training, tmp_path, **changes)
        assert len(training.calls) == len(list(tmp_path.glob("*.head"))) == number


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",  # noqa: ARG005
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"x",
    "another magic": lambda content: b"X" + content[1:],
    "another version": lambda content: content[:8] + bytes([content[8] + 1]) + content[9:],
    "a weight changed": lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    "zeros at the end": lambda content: content[:-64] + bytes(64),
    "no head at all": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_kept_head_that_is_damaged_is_fitted_again(encoder: Any, tmp_path: Path, what: str) -> None:
    training = TrainingImages()
    first = reading(encoder, training, tmp_path)
    [kept] = tmp_path.glob("*.head")
    whole = kept.read_bytes()
    kept.write_bytes(DAMAGED[what](whole))
    assert kept.read_bytes() != whole
    again = reading(encoder, training, tmp_path)
    assert len(training.calls) == 2
    assert weights_hash(first) == weights_hash(again)
    assert kept.read_bytes() == whole
    assert weights_hash(reading(encoder, training, tmp_path)) == weights_hash(first)
    assert len(training.calls) == 2


def test_a_head_of_another_encoder_is_not_taken_for_that_of_this(
    encoder: Any, small_vit: Build, tmp_path: Path
) -> None:
    """Whatever a file is named, it says itself what it is of."""
    other = small_vit(num_classes=0, seed=1)
    other.pretrained_cfg = CONFIG
    training = TrainingImages()
    reading(other, training, tmp_path / "other")
    first = reading(encoder, training, tmp_path)
    [kept], [foreign] = tmp_path.glob("*.head"), (tmp_path / "other").glob("*.head")
    kept.write_bytes(foreign.read_bytes())
    assert weights_hash(reading(encoder, training, tmp_path)) == weights_hash(first)
    assert len(training.calls) == 3


def test_a_folder_that_cannot_be_written_to_is_named(encoder: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match="MAE_BENCH_CACHE") as caught:
        reading(encoder, TrainingImages(), tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


def test_a_failed_fit_leaves_nothing(encoder: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="class 1 of 3 has no training image"):
        reading(encoder, TrainingImages(labels=np.array([0, 0, 2, 2])), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": np.zeros((24, 1, 28, 28))},
            r"training images of 'mine' are float64 of shape \(24, 1, 28, 28\)",
        ),
        ({"images": np.zeros((24, 1, 32, 32), np.uint8)}, r"expected uint8 \(N, C, 28, 28\)"),
        ({"labels": np.arange(3).repeat(9)}, "9 training images of one class came for 'mine', which says 8 a class"),
    ],
)
def test_training_images_must_be_what_was_said(
    encoder: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        reading(encoder, TrainingImages(**changes), tmp_path)


def test_a_model_with_a_classifier_is_not_probed(small_vit: Build, tmp_path: Path) -> None:
    network = small_vit()
    network.pretrained_cfg = CONFIG
    with pytest.raises(ModelError, match="'mine' has a classifier of its own: a probe reads an encoder"):
        reading(network, TrainingImages(), tmp_path)


def test_an_encoder_without_preprocessing_is_refused(small_vit: Build, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="without timm's pretrained_cfg"):
        reading(small_vit(num_classes=0), TrainingImages(), tmp_path)


def test_the_taps_of_a_probed_encoder_are_those_of_the_encoder(encoder: Any, tmp_path: Path) -> None:
    model = reading(encoder, TrainingImages(), tmp_path)
    batch = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    taps = taps_of(model, batch)
    scores = dict.fromkeys((1, 2), lambda scores: {"scores": scores})
    with torch.no_grad(), taps.capture(patches=True, attention=scores) as features:
        logits = model(batch)
    with torch.no_grad(), taps_of(encoder, batch).capture(patches=True, attention=scores) as expected:
        encoder(batch)
    assert (taps.reason, taps.grid, taps.blocks) == (None, (4, 4), 2)
    for kind in ("tokens", "heads", "attention"):
        mine, whole = getattr(features, kind), getattr(expected, kind)
        assert mine
        assert mine.keys() == whole.keys()
        assert all(torch.equal(values, whole[key]) for key, values in mine.items())
    torch.testing.assert_close(model.head(features.tokens[3, "cls"]), logits)
