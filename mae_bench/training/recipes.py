"""The recipe of each bundled model as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from mae_bench.cells import near_name
from mae_bench.errors import BenchError


@dataclass(frozen=True)
class Optimisation:
    """AdamW with linear warm-up and cosine decay, counted in steps."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.05
    warmup_steps: int = 200
    layer_decay: float | None = None
    label_smoothing: float = 0.1


@dataclass(frozen=True)
class Pretraining:
    """Masked-autoencoder pretraining (He et al. 2021, arXiv 2111.06377).

    ``mask_ratio`` of the patches are hidden; the decoder predicts each hidden patch, normalised by
    its own mean and by its own variance plus ``variance_floor`` (so that flat background
    patches ask for zero rather than for amplified noise).
    """

    optimisation: Optimisation
    mask_ratio: float = 0.75
    decoder_width: int = 32
    decoder_depth: int = 2
    decoder_heads: int = 2
    variance_floor: float = 1e-2


@dataclass(frozen=True)
class Recipe:
    """How one bundled model is made.

    ``equal_compute_to`` names the recipe whose counted training FLOPs (forward and backward, all of
    its phases) this one may spend; ``classification.steps`` is then 0, and the budget says how many it buys.
    """

    name: str
    architecture: str
    seed: int
    classification: Optimisation
    pretraining: Pretraining | None = None
    equal_compute_to: str | None = None
    summary: str = ""


_MAE = Recipe(
    name="mae_ft_s0",
    architecture="vit_28_patch4",
    seed=0,
    pretraining=Pretraining(Optimisation(steps=5200, batch_size=128, learning_rate=1.5e-3, weight_decay=0.05)),
    classification=Optimisation(steps=3000, batch_size=128, learning_rate=2e-3, layer_decay=0.8),
    summary="ViT pretrained as a masked autoencoder (75 % masked), then fine-tuned",
)
_SUPERVISED = Recipe(
    name="supervised_s0",
    architecture="vit_28_patch4",
    seed=0,
    classification=Optimisation(steps=0, batch_size=128, learning_rate=2e-3),
    equal_compute_to="mae_ft_s0",
    summary="the same ViT trained supervised from scratch with the same training FLOPs",
)
_CNN = Recipe(
    name="cnn_s0",
    architecture="resnet_28",
    seed=0,
    classification=Optimisation(steps=2600, batch_size=128, learning_rate=2e-3),
    summary="a residual CNN of the same size, trained supervised",
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (_MAE, _SUPERVISED, _CNN)}


def recipe_named(name: str) -> Recipe:
    """The recipe of the bundled model called ``name``.

    Raises:
        BenchError: there is none; the message names the nearest.
    """
    if name not in RECIPES:
        raise BenchError(f"unknown recipe {name!r}: {near_name(name, RECIPES)}")
    return RECIPES[name]
