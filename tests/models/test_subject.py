"""Models as they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from mae_bench.models import ModelError
from mae_bench.models.classifier import Classifier
from mae_bench.models.subject import subjects_of
from mae_bench.models.zoo import bundled, cards


def wrapped(module: nn.Module) -> Classifier:
    return Classifier(module, mean=(0.5,), std=(0.5,), input_size=(1, 28, 28))


def test_a_module_is_called_as_timm_calls_it_or_by_its_class(small_vit: Callable[..., Any]) -> None:
    published = timm.create_model("resnet18", num_classes=8)
    names = [subjects_of(one)[0].entry.name for one in (published, small_vit(), wrapped(nn.Flatten()))]
    assert names == ["resnet18", "VisionTransformer", "Flatten"]
    assert subjects_of(published)[0].build() is published


def test_several_are_taken_in_order_by_list_or_by_name() -> None:
    one, other = wrapped(nn.Flatten()), wrapped(nn.Identity())
    assert [subject.module for subject in subjects_of([one, other])] == [one, other]
    assert [(s.entry.name, s.module) for s in subjects_of({"b": one, "a": other})] == [("b", one), ("a", other)]


@pytest.mark.parametrize("card", [card for card in cards() if card.validation_top1 is not None], ids=lambda c: c.name)
def test_a_bundled_model_has_the_arm_and_the_seed_of_its_training(card: Any) -> None:
    (subject,) = subjects_of(card.name)
    assert (subject.entry.name, subject.entry.arm, subject.entry.training_seed) == (card.name, card.arm, card.seed)
    assert subject.module is None


def test_a_bundled_model_is_built_when_it_is_asked_for() -> None:
    (subject,) = subjects_of({"mine": "cnn_s0"})
    assert (subject.entry.name, subject.entry.arm) == ("mine", None)
    built: Any = subject.build()
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), bundled("cnn_s0").parameters(), strict=True))


def test_the_name_of_a_published_model_reads_no_weights() -> None:
    (subject,) = subjects_of("vit_base_patch16_224.augreg_in1k")
    assert subject.entry.name == "vit_base_patch16_224.augreg_in1k"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("mea_ft_s1", "unknown model 'mea_ft_s1': did you mean mae_ft_s1? Bundled: cnn_s0, mae_ft_s0"),
        ("resnet5O", "did you mean resnet50"),
        ("mae_pretrained_s0", "is an encoder, which classifies nothing"),
        (3, "3 is no model: give a timm model"),
        ([None], "None is no model"),
        ([], "no model was given"),
        ({}, "no model was given"),
        (["cnn_s0", "cnn_s0"], "two models are called 'cnn_s0': give them as {name: model}"),
        ({"blur_net": "cnn_s0"}, "contains 'blur', the name of a family"),
        ({"a b": "cnn_s0"}, "must be free of white space"),
    ],
)
def test_what_is_no_model_is_refused(model: object, words: str) -> None:
    with pytest.raises(ModelError) as refused:
        subjects_of(model)
    assert words in str(refused.value)
