"""Training compute in counted FLOPs, forward and backward: what arms are held equal in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from timm.layers import set_fused_attn, use_fused_attn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mae_bench.models.zoo import ARCHITECTURES
from mae_bench.training.masked_autoencoder import MaskedAutoencoder
from mae_bench.training.recipes import (
    FineTuning,
    LinearProbe,
    Optimisation,
    Pretraining,
    Recipe,
    Supervised,
    recipe_named,
)

CLASSES = 10


def image_flops(recipe: Recipe) -> int:
    """FLOPs that one image costs in one step of ``recipe``, attention included; a linear probe counts its features'
    forward pass.
    """
    architecture = ARCHITECTURES[recipe.architecture]
    channels, height, width = architecture.input_size
    images = torch.zeros(8, channels, height, width)

    def counted(loss: Callable[[], Tensor], backward: bool = True) -> int:
        with FlopCounterMode(display=False) as counter:
            value = loss()
            if backward:
                torch.autograd.backward(value)
        return int(counter.get_total_flops()) // len(images)

    fused = use_fused_attn()
    set_fused_attn(False)  # the counter does not know every fused kernel; a module decides when it is built
    try:
        if isinstance(recipe, Pretraining):
            autoencoder = MaskedAutoencoder(architecture.build(0), recipe)
            return counted(lambda: autoencoder(images))
        model = architecture.build(CLASSES)
        return counted(lambda: model(images).sum(), backward=not isinstance(recipe, LinearProbe))
    finally:
        set_fused_attn(bool(fused))


def training_flops(recipe: Recipe, training_images: int) -> int:
    """Counted FLOPs of all that ``recipe`` needs: its own steps and those of the encoder it starts from."""
    own = image_flops(recipe)
    if isinstance(recipe, LinearProbe):
        return own * training_images + training_flops(recipe_named(recipe.start), training_images)
    if isinstance(recipe, FineTuning):
        spent = training_flops(recipe_named(recipe.start), training_images)
        return spent + own * recipe.optimisation.steps * recipe.optimisation.batch_size
    optimisation = optimisation_of(recipe)
    return own * optimisation.steps * optimisation.batch_size


def optimisation_of(recipe: Recipe) -> Optimisation:
    """The optimisation of ``recipe``, its steps bought from the compute budget where it names one."""
    assert isinstance(recipe, Pretraining | FineTuning | Supervised)
    optimisation = recipe.optimisation
    if not isinstance(recipe, Supervised) or recipe.equal_compute_to is None:
        return optimisation
    budget = training_flops(recipe_named(recipe.equal_compute_to), 0)
    return replace(optimisation, steps=round(budget / (image_flops(recipe) * optimisation.batch_size)))
