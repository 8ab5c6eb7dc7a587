"""A network with its preprocessing."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from mae_bench.models import ModelError
from mae_bench.models.classifier import Classifier, heads_of, untrained_head, weights_hash
from mae_bench.models.probes import linear_probe
from mae_bench.models.zoo import bundled

REMEDY = r"Classifier\(module, mean=\.\.\., std=\.\.\., input_size=\.\.\.\)"


class Recorder(nn.Module):
    """Keeps what it was given."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return images.flatten(1)


def tiny_timm_vit(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    shape = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}
    network: nn.Module = timm.create_model("vit_tiny_patch16_224", **(shape | changes))
    return network.eval()


def test_pixels_are_normalised_per_channel() -> None:
    recorder = Recorder()
    mean, std = (0.1, 0.5, 0.9), (0.5, 0.25, 2.0)
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    Classifier(recorder, mean=mean, std=std, input_size=(3, 4, 5))(images)
    for b in range(2):
        for c in range(3):
            for y in range(4):
                for x in range(5):
                    expected = (images[b, c, y, x].item() - mean[c]) / std[c]
                    assert recorder.seen[b, c, y, x].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_grey_image_becomes_three_equal_channels_before_it_is_normalised() -> None:
    recorder = Recorder()
    images = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    Classifier(recorder, mean=(0.0, 0.5, 1.0), std=(1.0, 1.0, 0.5), input_size=(3, 3, 3))(images)
    assert recorder.seen.shape == (2, 3, 3, 3)
    torch.testing.assert_close(recorder.seen[:, 0], images[:, 0])
    torch.testing.assert_close(recorder.seen[:, 1], images[:, 0] - 0.5)
    torch.testing.assert_close(recorder.seen[:, 2], (images[:, 0] - 1) * 2)


def test_the_images_given_are_left_as_they_were() -> None:
    images = torch.full((1, 1, 2, 2), 0.5)
    Classifier(nn.Flatten(), mean=(0.2, 0.2, 0.2), std=(0.1, 0.1, 0.1), input_size=(3, 2, 2))(images)
    assert images.unique().tolist() == [0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [8, 512])
def test_batches_of_any_size_type_and_layout_are_normalised_as_by_hand(
    side: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    """And what a module hands through is not overwritten by the next batch."""
    model = Classifier(nn.Identity(), mean=(0.2, 0.7), std=(0.5, 0.3), input_size=(2, side, side)).to(dtype)
    batches = [torch.rand(2, 2, side, side).to(dtype).to(memory_format=layout) for _ in range(2)]
    with torch.inference_mode():
        first, second = (model(batch) for batch in batches)
    for found, batch in zip((first, second), batches, strict=True):
        wanted = (batch - model._mean) / model._std
        assert torch.equal(found, wanted)
        assert (found.dtype, found.stride()) == (dtype, wanted.stride())
    assert torch.equal(first, (batches[0] - model._mean) / model._std)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.5,) * 3), ((0.5,) * 3, (0.5,)), ((0.5,) * 2, (0.5,) * 2), ((), ())]
)
def test_counts_of_means_and_channels_must_agree(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    message = rf"{len(mean)} means and {len(std)} standard deviations do not fit 3 channels"
    with pytest.raises(ModelError, match=message):
        Classifier(nn.Flatten(), mean=mean, std=std, input_size=(3, 8, 8))


@pytest.mark.parametrize("std", [0.0, -0.5])
def test_a_standard_deviation_must_be_positive(std: float) -> None:
    with pytest.raises(ModelError, match=rf"std \({std},\) must be positive"):
        Classifier(nn.Flatten(), mean=(0.5,), std=(std,), input_size=(1, 8, 8))


@pytest.mark.parametrize("crop_pct", [0.0, -0.1, 1.5])
def test_a_crop_must_lie_within_the_image(crop_pct: float) -> None:
    with pytest.raises(ModelError, match=rf"crop_pct {crop_pct} in \(0, 1\]"):
        Classifier(nn.Flatten(), mean=(0.5,), std=(0.5,), input_size=(1, 8, 8), crop_pct=crop_pct)


def test_only_modules_are_wrapped() -> None:
    with pytest.raises(ModelError, match=r"was given a function; it wraps a torch\.nn\.Module"):
        Classifier(tiny_timm_vit, mean=(0.5,), std=(0.5,), input_size=(1, 8, 8))  # type: ignore[arg-type]


def test_a_timm_model_sees_what_its_own_transform_would_show_it() -> None:
    network = tiny_timm_vit()
    # pixels beside the crop, so that a wrong resize or crop shows
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((300, 260), Image.Resampling.BILINEAR)
    own = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    classifier = Classifier.of("vit", network)
    shown = torch.as_tensor(classifier.view.transform()(image)).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(classifier(shown[None]), network(own(image)[None]), rtol=1e-4, atol=1e-5)


def test_a_timm_model_brings_its_preprocessing() -> None:
    network = tiny_timm_vit(
        pretrained_cfg_overlay={
            "mean": (0.1, 0.2, 0.3),
            "std": (0.4, 0.5, 0.6),
            "crop_pct": 0.75,
            "interpolation": "bicubic",
            "crop_mode": "squash",
        }
    )
    classifier = Classifier.of("vit", network)
    assert classifier.mean == pytest.approx((0.1, 0.2, 0.3))
    assert classifier.std == pytest.approx((0.4, 0.5, 0.6))
    view = classifier.view
    assert (view.height, view.width, view.interpolation, view.crop_pct, view.crop_mode) == (
        224, 224, "bicubic", 0.75, "squash",
    )  # fmt: skip


@pytest.mark.parametrize("size", [(28, 28), (28, 56)])
def test_a_timm_model_built_for_another_image_size_gets_images_of_that_size(size: tuple[int, int]) -> None:
    network = tiny_timm_vit(img_size=size, patch_size=7)
    classifier = Classifier.of("vit", network)
    assert (classifier.view.height, classifier.view.width) == size
    image = Image.fromarray(np.full((30, 30, 3), 7, dtype=np.uint8))
    shown = torch.as_tensor(classifier.view.transform()(image)).float() / 255
    assert classifier(shown[None]).isfinite().all()


def test_a_timm_model_built_for_grey_images_is_normalised_by_the_mean_over_colours() -> None:
    overlay = {"mean": (0.1, 0.2, 0.6), "std": (0.2, 0.3, 0.4)}
    network = tiny_timm_vit(img_size=28, patch_size=7, in_chans=1, pretrained_cfg_overlay=overlay)
    classifier = Classifier.of("vit", network)
    assert classifier.channels == 1
    assert classifier.mean == pytest.approx((0.3,))
    assert classifier.std == pytest.approx((0.3,))
    assert classifier(torch.zeros(2, 1, 28, 28)).shape == (2, 5)


def test_a_classifier_is_taken_as_it_is() -> None:
    classifier = Classifier(nn.Flatten(), mean=(0.5,), std=(0.5,), input_size=(1, 8, 8))
    assert Classifier.of("mine", classifier) is classifier


def test_a_module_without_preprocessing_is_refused_with_the_remedy() -> None:
    with pytest.raises(ModelError, match=rf"'mine' returned a Sequential.*preprocessing is unknown: return {REMEDY}"):
        Classifier.of("mine", nn.Sequential(nn.Flatten()))


@pytest.mark.parametrize(("returned", "described"), [(None, "None"), (3, "a int"), ({}, "a dict"), (nn.ReLU, "a type")])
def test_a_fixture_that_returned_no_module_is_named(returned: object, described: str) -> None:
    with pytest.raises(ModelError, match=rf"'mine' returned {described}, not a torch\.nn\.Module: .*{REMEDY}"):
        Classifier.of("mine", returned)


def preprocessing(**changes: Any) -> str:
    settings: dict[str, Any] = {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "input_size": (3, 28, 28),
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    return Classifier(nn.Flatten(), **(settings | changes)).preprocessing


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.5, 0.5, 0.5001)},
        {"mean": (0.5, 0.4, 0.5)},
        {"std": (0.5, 0.5, 0.25)},
        {"input_size": (3, 28, 32)},
        {"input_size": (3, 32, 28)},
        {"interpolation": "bicubic"},
        {"crop_pct": 0.901},
        {"crop_mode": "squash"},
        {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)},
    ],
    ids=str,
)
def test_preprocessing_tells_apart_whatever_changes_the_input(change: dict[str, Any]) -> None:
    assert preprocessing() == preprocessing()
    assert preprocessing(**change) != preprocessing()


def tiny_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    return network.eval()


def hash_of(module: nn.Module, **preprocessing: Any) -> str:
    settings: dict[str, Any] = {"mean": (0.5,), "std": (0.5,), "input_size": (1, 4, 4)}
    return Classifier(module, **(settings | preprocessing)).weights_hash()


@given(st.data())
def test_any_bit_of_any_weight_or_buffer_changes_the_hash(data: st.DataObject) -> None:
    network = tiny_network()
    before = hash_of(network)
    state = network.state_dict()
    tensor = state[data.draw(st.sampled_from(sorted(state)))]
    words = tensor.reshape(-1).view(torch.uint8)  # the memory of the weights themselves
    position = data.draw(st.integers(0, len(words) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    words[position] ^= bit
    assert hash_of(network) != before
    words[position] ^= bit
    assert hash_of(network) == before


def test_a_copy_has_the_same_hash() -> None:
    network = tiny_network()
    assert hash_of(copy.deepcopy(network)) == hash_of(network)
    loaded = tiny_network()
    nn.init.zeros_(loaded[0].weight)
    loaded.load_state_dict(network.state_dict())
    assert hash_of(loaded) == hash_of(network)


def test_the_hash_is_that_of_the_weights_and_not_of_the_preprocessing() -> None:
    assert hash_of(tiny_network(), mean=(0.1,)) == hash_of(tiny_network())


def named(*names: str) -> nn.Module:
    container = nn.Module()
    for name in names:
        container.register_parameter(name, nn.Parameter(torch.ones(2)))
    return container


def test_the_hash_depends_on_names_but_not_on_the_order_of_definition() -> None:
    assert hash_of(named("a", "b")) == hash_of(named("b", "a"))
    assert hash_of(named("a", "b")) != hash_of(named("a", "c"))


@pytest.mark.parametrize(
    "other",
    [torch.zeros(6), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.int32)],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_the_hash_depends_on_shape_and_type(other: torch.Tensor) -> None:
    def holding(tensor: torch.Tensor) -> nn.Module:
        container = nn.Module()
        container.register_buffer("weight", tensor)
        return container

    assert hash_of(holding(other)) != hash_of(holding(torch.zeros(2, 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int8, torch.complex64], ids=str)
def test_weights_of_every_type_can_be_hashed(dtype: torch.dtype) -> None:
    def holding(values: list[int]) -> nn.Module:
        container = nn.Module()
        container.register_buffer("weight", torch.tensor(values).to(dtype))
        container.register_buffer("scalar", torch.ones((), dtype=dtype))
        container.register_buffer("empty", torch.ones(0, dtype=dtype))
        return container

    assert hash_of(holding([0, 1])) == hash_of(holding([0, 1]))
    assert hash_of(holding([0, 1])) != hash_of(holding([1, 0]))


def test_a_view_into_memory_hashes_as_the_values_that_it_shows() -> None:
    def holding(tensor: torch.Tensor) -> nn.Module:
        container = nn.Module()
        container.register_buffer("weight", tensor)
        return container

    values = torch.arange(6.0).reshape(2, 3)
    assert hash_of(holding(values.T)) == hash_of(holding(values.T.contiguous()))


def test_a_timm_vit_and_its_hash(small_vit: Callable[..., nn.Module]) -> None:
    first = {"mean": (0.5,), "std": (0.5,), "input_size": (1, 28, 28)}
    assert hash_of(small_vit(seed=0), **first) == hash_of(small_vit(seed=0), **first)
    assert hash_of(small_vit(seed=0), **first) != hash_of(small_vit(seed=1), **first)


# --------------------------------------------------------------------------- classifiers that were never trained


SMALL_VIT: dict[str, Any] = {"embed_dim": 64, "depth": 1, "num_heads": 2, "num_classes": 100}
NORMAL = "its bias is zero, and they are normal with a standard deviation of "
UNTRAINED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", **SMALL_VIT), f"100 x 64 .* {NORMAL}0\\.02$"),
    "vit jax": (
        lambda: timm.create_model("vit_tiny_patch16_224", weight_init="jax", **SMALL_VIT),
        "100 x 64 .*: all are zero$",
    ),
    "vit jax with a prior": (
        lambda: timm.create_model("vit_tiny_patch16_224", weight_init="jax_nlhb", **SMALL_VIT),
        "100 x 64 .*: all are zero$",
    ),
    "distilled": (lambda: timm.create_model("deit_tiny_distilled_patch16_224", **SMALL_VIT), f"{NORMAL}0\\.02$"),
    "beit": (lambda: timm.create_model("beit_base_patch16_224", **SMALL_VIT), f"{NORMAL}2e-05$"),
    "swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", embed_dim=16, depths=(1, 1), num_heads=(1, 1)),
        f"1000 x 32 .* {NORMAL}0\\.02$",
    ),
    "convnext": (lambda: timm.create_model("convnextv2_atto"), f"1000 x 320 .* {NORMAL}0\\.02$"),
    "hiera": (
        lambda: timm.create_model("hiera_tiny_224", embed_dim=16, stages=(1, 1, 1, 1)),
        "1000 x 128 .*: all are zero$",
    ),
    "resnet": (
        lambda: timm.create_model("resnet10t", channels=(8, 8, 16, 64)),
        r"1000 x 64 .*: they are uniform within 0\.125$",
    ),
    "efficientnet": (
        lambda: timm.create_model("efficientnet_lite0", num_classes=100),
        r"100 x 1280 .*: they are uniform within 0\.1$",
    ),
    "regnet": (lambda: timm.create_model("regnetx_002"), f"1000 x 368 .* {NORMAL}0\\.01$"),
}  # fmt: skip


@pytest.fixture(params=UNTRAINED, scope="module")
def untrained(request: pytest.FixtureRequest) -> tuple[nn.Module, str]:
    """A timm model as it is built, and what is to be said of its classifier."""
    build, message = UNTRAINED[request.param]
    torch.manual_seed(0)
    return build(), message


def test_a_classifier_as_timm_builds_it_is_told(untrained: tuple[nn.Module, str]) -> None:
    network, message = untrained
    reason = untrained_head(network)
    assert reason is not None
    assert re.search(f"its classifier of {message}" if message[0].isdigit() else message, reason)
    assert untrained_head(copy.deepcopy(network).half()) == reason
    assert untrained_head(Classifier.of("mine", network)) == reason


def test_a_classifier_after_one_step_of_training_is_not(untrained: tuple[nn.Module, str]) -> None:
    network = copy.deepcopy(untrained[0])
    heads = heads_of(network)
    generator = torch.Generator().manual_seed(0)
    for head in heads:
        labels = torch.randint(head.out_features, (8,), generator=generator)
        loss = nn.functional.cross_entropy(head(torch.randn(8, head.in_features, generator=generator)), labels)
        loss.backward()
        torch.optim.SGD(head.parameters(), lr=0.01).step()
    assert untrained_head(network) is None


def test_one_untrained_head_of_two_is_told() -> None:
    network: Any = timm.create_model("deit_tiny_distilled_patch16_224", **SMALL_VIT)
    with torch.no_grad():
        network.head.bias += 0.1
    assert untrained_head(network) is not None
    with torch.no_grad():
        network.head_dist.bias += 0.1
    assert untrained_head(network) is None


@pytest.mark.parametrize("name", ["mae_ft_s0", "supervised_s0", "cnn_s0", "mae_probe_s0"])
def test_the_bundled_models_were_trained(name: str) -> None:
    assert untrained_head(bundled(name)) is None


def test_what_has_no_classifier_cannot_be_told() -> None:
    assert untrained_head(bundled("mae_pretrained_s0")) is None
    assert untrained_head(nn.Linear(16, 4)) is None


class Headed(nn.Module):
    """A classifier of 1000 x 256 weights and a bias of zero, as timm gives it away."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(256, 1000)
        self.head.bias.data.zero_()
        self.head.weight.data.copy_(weight)

    def get_classifier(self) -> nn.Module:
        return self.head


def drawn(kind: str, generator: np.random.Generator) -> np.ndarray:
    """(1000, 256) draws with a mean of 0 and a standard deviation of 1."""
    shape = (1000, 256)
    values: np.ndarray = {
        "normal": lambda: generator.normal(size=shape),
        "laplace": lambda: generator.laplace(size=shape) / 2**0.5,
        "uniform": lambda: generator.uniform(-(3**0.5), 3**0.5, size=shape),
        "student": lambda: generator.standard_t(10, size=shape) * 0.8**0.5,
    }[kind]()
    return values


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("kind", "deviation", "mean", "told"),
    [
        ("normal", 0.02, 0.0, "normal"),
        ("normal", 0.01, 0.0, "normal"),
        ("normal", 0.00002, 0.0, "normal"),
        ("uniform", 1 / 3**0.5 / 16, 0.0, "uniform within 0.0625"),
        ("uniform", 1 / 3000**0.5, 0.0, "uniform within 0.03162"),
        ("normal", 0.0195, 0.0, None),
        ("normal", 0.0205, 0.0, None),
        ("normal", 0.05, 0.0, None),
        ("normal", 0.02, 0.0005, None),
        ("laplace", 0.02, 0.0, None),
        ("student", 0.02, 0.0, None),
        ("uniform", 0.02, 0.0, None),
        ("normal", 1 / 3000**0.5, 0.0, None),
        ("uniform", 1.01 / 3000**0.5, 0.0, None),
        ("uniform", 0.99 / 3000**0.5, 0.0, None),
    ],
)
def test_only_the_distributions_that_are_drawn_from_are_told(
    seed: int, kind: str, deviation: float, mean: float, told: str | None
) -> None:
    weight = drawn(kind, np.random.default_rng(seed)) * deviation + mean
    reason = untrained_head(Headed(torch.from_numpy(weight)))
    assert (reason is None) == (told is None)
    assert told is None or told in str(reason)


def test_a_fitted_probe_with_a_zero_bias_is_trained(small_vit: Callable[..., Any]) -> None:
    network = small_vit(num_classes=4)
    points = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    network.head = linear_probe(points, torch.arange(4).repeat(16), 4)
    with torch.no_grad():
        network.head.bias.zero_()
    assert untrained_head(network) is None


def test_the_hash_of_a_classifier_is_that_of_its_module() -> None:
    network = tiny_timm_vit()
    assert (
        Classifier.of("mine", network).weights_hash() == weights_hash(network) != weights_hash(tiny_timm_vit(depth=2))
    )
