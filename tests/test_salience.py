"""Where the reference model looks, and which patches that hides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae_bench.models import ModelError
from mae_bench.models.classifier import Classifier
from mae_bench.salience import HEAD, Salience
from mae_bench.suites import SUITES

ENTRY = replace(SUITES["fashion_mnist"], salience="seer")
CPU = torch.device("cpu")


def images(count: int, side: int = 28) -> Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def seer(small_vit: Callable[..., nn.Module]) -> Classifier:
    """Its 7 x 7 patches are the cells of the occlusion grid at 28 px."""
    network = small_vit(patch_size=4)
    return Classifier(network, mean=(0.4,), std=(0.3,), input_size=(1, 28, 28))


def test_salience_is_what_the_class_token_gives_to_each_patch_in_the_last_block(
    seer: Classifier, vit_by_hand: Callable[..., Any]
) -> None:
    salience = Salience(ENTRY, CPU, lambda _: seer)
    batch = images(10)
    salience.add(3, batch, 4)
    assert 3 in salience
    assert 2 not in salience
    block = seer.module.blocks[-1]
    tokens, _, _ = vit_by_hand(seer.module, (batch - 0.4) / 0.3)
    normed = block.norm1(tokens[-3])
    queries, keys, _ = block.attn.qkv(normed).reshape(10, 50, 3, 2, 8).permute(2, 0, 3, 1, 4)
    attended = (queries[:, HEAD, :1] @ keys[:, HEAD].transpose(1, 2) / 8**0.5).softmax(-1)[:, 0, 1:]
    torch.testing.assert_close(salience[3], (attended / attended.sum(1, keepdim=True)).double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(salience[3].sum(1), torch.ones(10, dtype=torch.float64))


def test_images_of_another_size_are_shown_at_the_reference_models_own(seer: Classifier) -> None:
    salience = Salience(ENTRY, CPU, lambda _: seer)
    flat = torch.full((2, 1, 56, 56), 0.25)
    salience.add(0, flat, 8)
    salience.add(1, flat[..., :28, :28], 8)
    torch.testing.assert_close(salience[0], salience[1])


def test_a_suite_without_a_reference_model_and_one_of_another_grid_are_refused(
    small_vit: Callable[..., nn.Module], seer: Classifier
) -> None:
    with pytest.raises(ModelError, match="'fashion_mnist' names no reference model"):
        Salience(SUITES["fashion_mnist"], CPU, lambda _: seer)
    coarse = Classifier(small_vit(num_classes=0), mean=(0.4,), std=(0.3,), input_size=(1, 28, 28))
    with pytest.raises(ModelError, match="no class token that attends to 7 x 7 patches"):
        Salience(ENTRY, CPU, lambda _: coarse)
