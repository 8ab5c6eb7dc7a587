"""The recipe of each bundled model as one frozen value: an arm, a suite, a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mae_bench.cells import near_name
from mae_bench.errors import BenchError

SEEDS = (0, 1, 2)
SEARCHED_RATES = (1e-3, 2e-3, 4e-3)
"""Learning rates tried for each arm, with one seed and a quarter of the steps, on the validation images."""


@dataclass(frozen=True)
class Optimisation:
    """AdamW with linear warm-up and cosine decay, counted in steps."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.05
    warmup_steps: int = 300
    beta2: float = 0.999
    layer_decay: float | None = None
    label_smoothing: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every recipe names. Training images are flipped at random and shifted by up to ``shift`` pixels."""

    name: str
    arm: str
    suite: str
    architecture: str
    seed: int
    summary: str
    shift: int = 0


@dataclass(frozen=True, kw_only=True)
class Pretraining(Recipe):
    """Masked-autoencoder pretraining (He et al. 2021, arXiv 2111.06377); the encoder is kept.

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


@dataclass(frozen=True, kw_only=True)
class FineTuning(Recipe):
    """Training of the whole network with labels, from the encoder of the recipe called ``start``."""

    optimisation: Optimisation
    start: str


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Recipe):
    """A linear classifier on the frozen encoder of the recipe called ``start``: the convex optimum, so that no
    learning rate enters; of ``penalties`` (L2, per image) the one that is best on the validation images.
    """

    start: str
    penalties: tuple[float, ...] = (1e-6, 1e-5, 1e-4)


@dataclass(frozen=True, kw_only=True)
class Supervised(Recipe):
    """Training with labels from random weights.

    ``equal_compute_to`` names the fine-tuning whose counted FLOPs (forward and backward, its pretraining
    included) this one may spend; ``optimisation.steps`` is then 0, and the budget says how many it buys.
    """

    optimisation: Optimisation
    equal_compute_to: str | None = None


def _fashion_mnist(seed: int) -> tuple[Recipe, ...]:
    vit = {"suite": "fashion_mnist", "architecture": "vit_28_patch4", "seed": seed}
    labelled = Optimisation(steps=9000, batch_size=64, learning_rate=2e-3)
    return _masked_and_supervised("", vit, Optimisation(5000, 128, 1.5e-3, beta2=0.95), labelled, shift=0)


def _cifar10(seed: int) -> tuple[Recipe, ...]:
    vit = {"suite": "cifar10", "architecture": "vit_32_patch4", "seed": seed}
    labelled = Optimisation(steps=40_000, batch_size=64, learning_rate=2e-3)
    return _masked_and_supervised("cifar10_", vit, Optimisation(40_000, 128, 1.5e-3, beta2=0.95), labelled, shift=4)


def _masked_and_supervised(
    prefix: str, vit: dict[str, object], pretraining: Optimisation, labelled: Optimisation, shift: int
) -> tuple[Recipe, ...]:
    """The arms that the claims compare, of one seed. Rates of training with labels are those that the search found best
    on Fashion-MNIST; no search was made on CIFAR-10.
    """
    scratch = replace(labelled, learning_rate=1e-3)
    seed = vit["seed"]
    encoder, tuned = f"{prefix}mae_pretrained_s{seed}", f"{prefix}mae_ft_s{seed}"
    common: dict[str, object] = {**vit, "shift": shift}
    return (
        Pretraining(
            name=encoder,
            arm="mae_pretrained",
            optimisation=pretraining,
            summary="encoder of a masked autoencoder (75 % masked), never shown a label",
            **common,  # type: ignore[arg-type]
        ),
        FineTuning(
            name=tuned,
            arm="mae_ft",
            start=encoder,
            optimisation=replace(labelled, layer_decay=0.8),
            summary="ViT pretrained as a masked autoencoder (75 % masked), then fine-tuned",
            **common,  # type: ignore[arg-type]
        ),
        LinearProbe(
            name=f"{prefix}mae_probe_s{seed}",
            arm="mae_probe",
            start=encoder,
            summary="the pretrained encoder that the fine-tuned model starts from, frozen, with a linear classifier",
            **common,  # type: ignore[arg-type]
        ),
        Supervised(
            name=f"{prefix}supervised_s{seed}",
            arm="supervised",
            equal_compute_to=tuned,
            optimisation=replace(scratch, steps=0),
            summary="the same ViT trained supervised from scratch with the same training FLOPs",
            **common,  # type: ignore[arg-type]
        ),
        Supervised(
            name=f"{prefix}supervised_ep_s{seed}",
            arm="supervised_ep",
            optimisation=scratch,
            summary="the same ViT trained supervised from scratch for the labelled epochs of the fine-tuned model",
            **common,  # type: ignore[arg-type]
        ),
    )


_CNN = Supervised(
    name="cnn_s0",
    arm="cnn",
    suite="fashion_mnist",
    architecture="resnet_28",
    seed=0,
    shift=2,
    optimisation=Optimisation(steps=2600, batch_size=128, learning_rate=2e-3, warmup_steps=200),
    summary="a residual CNN of the same size, trained supervised",
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *(recipe for seed in SEEDS for recipe in _fashion_mnist(seed)),
        _CNN,
        *(recipe for seed in SEEDS for recipe in _cifar10(seed)),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe of the bundled model called ``name``.

    Raises:
        BenchError: there is none; the message names the nearest.
    """
    if name not in RECIPES:
        raise BenchError(f"unknown recipe {name!r}: {near_name(name, RECIPES)}")
    return RECIPES[name]


def recipe_of(arm: str, suite: str, seed: int) -> Recipe:
    """The recipe of ``arm`` on ``suite`` from ``seed``.

    Raises:
        BenchError: there is none; the message names the nearest suite, or the arms and seeds that there are.
    """
    suites = {recipe.suite for recipe in RECIPES.values()}
    if suite not in suites:
        raise BenchError(f"no recipe is for suite {suite!r}: {near_name(suite, suites)}")
    found = {(r.arm, r.seed): r for r in RECIPES.values() if r.suite == suite}
    if (arm, seed) not in found:
        known = ", ".join(f"{a} {s}" for a, s in found)
        raise BenchError(f"no recipe of arm {arm!r} with seed {seed} on {suite}; there are {known}")
    return found[arm, seed]
