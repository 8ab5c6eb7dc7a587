"""A network with its preprocessing."""

from __future__ import annotations

import copy
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
from mae_bench.models.classifier import Classifier

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
