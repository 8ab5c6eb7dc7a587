"""The training loop on a data set small enough to watch: resumable to the bit, fair in compute, and it learns."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.errors import BenchError
from mae_bench.models import zoo
from mae_bench.training.recipes import RECIPES, Optimisation, Pretraining, Recipe

pytestmark = [pytest.mark.train, pytest.mark.usefixtures("one_thread")]

PATCH, SIDE = 4, 28
PATCHES = (SIDE // PATCH) ** 2


@pytest.fixture(scope="module")
def loop() -> Any:
    """The module under test, which needs the extra."""
    pytest.importorskip("lightly")
    import mae_bench.training.loop

    return mae_bench.training.loop


def write_idx(path: Path, values: np.ndarray) -> None:
    header = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 images of ten classes: ramps of ten directions, at another brightness in each image. No direction is the
    mirror image of another, so that the augmentation keeps the classes apart.
    """
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(10), 60))
    angles = np.pi * ((labels + 0.5) / 10 - 0.5)
    y, x = np.mgrid[0:SIDE, 0:SIDE] - (SIDE - 1) / 2
    ramps = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
    images = (0.5 + ramps / 40) * generator.uniform(0.6, 1.0, (600, 1, 1))
    folder = tmp_path_factory.mktemp("data")
    write_idx(folder / "train-images-idx3-ubyte.gz", np.round(255 * images))
    write_idx(folder / "train-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.fixture
def few(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the images held out, a checkpoint every four steps, three evaluations."""
    monkeypatch.setattr(loop, "VALIDATION_IMAGES_PER_CLASS", 6)
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 4)
    monkeypatch.setattr(loop, "EVALUATIONS", 3)


SHORT = Optimisation(steps=10, batch_size=40, learning_rate=1e-3, warmup_steps=3)
TINY_MAE = replace(
    RECIPES["mae_ft_s0"],
    name="tiny",
    pretraining=Pretraining(SHORT),
    classification=replace(SHORT, steps=16, layer_decay=0.8),
)
TINY_CNN = replace(RECIPES["cnn_s0"], name="tiny", classification=replace(SHORT, steps=16))


class KilledError(Exception):
    """Stands for the end of the process."""


def killed_at(report: int) -> Callable[[str], None]:
    """A report that ends the training the given time it is called."""
    calls = itertools.count(1)

    def say(text: str) -> None:
        if next(calls) == report:
            raise KilledError(text)

    return say


def silent(_: str) -> None:
    pass


def produced(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix != ".checkpoint"}


# --------------------------------------------------------------------------- resumed is uninterrupted


@pytest.fixture(scope="module")
def uninterrupted(
    loop: Any,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
    one_thread: None,  # noqa: ARG001
) -> dict[str, dict[str, bytes]]:
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("VALIDATION_IMAGES_PER_CLASS", 6), ("CHECKPOINT_EVERY", 4), ("EVALUATIONS", 3)):
            patch.setattr(loop, name, value)
        for kind, recipe in (("mae", TINY_MAE), ("cnn", TINY_CNN)):
            out = tmp_path_factory.mktemp(kind)
            loop.train(recipe, data, out, silent)
            results[kind] = produced(out)
    return results


# reports of the autoencoder's recipe: pretraining at steps 3 4 7 8 10, classification at 4 5 8 11 12 16
@pytest.mark.parametrize(
    ("kind", "kills"),
    [("mae", [1]), ("mae", [2, 3]), ("mae", [5]), ("mae", [6]), ("mae", [8, 5, 4]), ("cnn", [2, 3, 4])],
)
@pytest.mark.usefixtures("few")
def test_resumed_training_ends_as_the_uninterrupted_one_to_the_bit(
    loop: Any, data: Path, tmp_path: Path, uninterrupted: dict[str, dict[str, bytes]], kind: str, kills: list[int]
) -> None:
    recipe = {"mae": TINY_MAE, "cnn": TINY_CNN}[kind]
    for kill in kills:
        with pytest.raises(KilledError):
            loop.train(recipe, data, tmp_path, killed_at(kill))
        assert not (tmp_path / "tiny.safetensors").exists()
        torch.manual_seed(kill)  # another process draws other numbers
    loop.train(recipe, data, tmp_path, silent)
    assert produced(tmp_path) == uninterrupted[kind]


@pytest.mark.usefixtures("few")
def test_kill_while_a_checkpoint_is_written_costs_no_more_than_the_steps_since_the_last(
    loop: Any, data: Path, tmp_path: Path, uninterrupted: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = torch.save

    def torn(state: dict[str, Any], path: Path) -> None:
        if state["step"] == 8:
            Path(path).write_bytes(b"half a check")
            raise KilledError
        saved(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(KilledError):
            loop.train(TINY_CNN, data, tmp_path, silent)
    reports: list[str] = []
    loop.train(TINY_CNN, data, tmp_path, reports.append)
    assert "resumed at step 5" in reports[0]
    assert produced(tmp_path) == uninterrupted["cnn"]


@pytest.mark.parametrize(
    "changed",
    [
        replace(TINY_CNN, seed=1),
        replace(TINY_CNN, classification=replace(TINY_CNN.classification, steps=17)),
        replace(TINY_CNN, classification=replace(TINY_CNN.classification, learning_rate=2e-3)),
    ],
    ids=["seed", "steps", "learning rate"],
)
@pytest.mark.usefixtures("few")
def test_checkpoint_of_another_recipe_is_not_gone_on_with(
    loop: Any, data: Path, tmp_path: Path, uninterrupted: dict[str, dict[str, bytes]], changed: Recipe
) -> None:
    """The result would be that of neither."""
    with pytest.raises(KilledError):
        loop.train(TINY_CNN, data, tmp_path, killed_at(3))
    with pytest.raises(BenchError, match="is of another recipe: remove it to start anew, or choose another") as caught:
        loop.train(changed, data, tmp_path, silent)
    assert str(tmp_path / "tiny.classification.checkpoint") in str(caught.value)
    loop.train(TINY_CNN, data, tmp_path, silent)
    assert produced(tmp_path) == uninterrupted["cnn"]


@pytest.mark.usefixtures("few")
def test_another_seed_is_another_model(
    loop: Any, data: Path, tmp_path: Path, uninterrupted: dict[str, dict[str, bytes]]
) -> None:
    loop.train(replace(TINY_CNN, seed=1), data, tmp_path, silent)
    assert produced(tmp_path)["tiny.safetensors"] != uninterrupted["cnn"]["tiny.safetensors"]


def test_what_is_written_is_what_was_measured(
    loop: Any,
    data: Path,
    tmp_path: Path,
    uninterrupted: dict[str, dict[str, bytes]],
    few: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, content in uninterrupted["mae"].items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    model = zoo.bundled("tiny")
    record = json.loads((tmp_path / "tiny.json").read_text())
    images, labels = loop.fashion_mnist.training_images(data)
    _, held_out = loop.split(labels, TINY_MAE.seed)
    x = (torch.from_numpy(images[held_out])[:, None].float() / 255 - loop.fashion_mnist.MEAN[0]) / 0.3530
    with torch.inference_mode():
        hits = (model(x).argmax(1).numpy() == labels[held_out]).mean()
    assert record["validation_top1"] == pytest.approx(hits)
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["recipe"]["name"] == "tiny"
    assert f"validation top-1: {100 * hits:.2f} %" in (tmp_path / "tiny.md").read_text()

    classification = record["phases"]["classification"]
    assert [point["step"] for point in classification["curve"]] == [4, 5, 8, 11, 12, 16]
    measured = {p["step"]: p["validation_top1"] for p in classification["curve"] if "validation_top1" in p}
    assert list(measured) == [5, 11, 16]
    # the best weights, and of equally good ones the first
    assert classification["chosen_step"] == max(measured, key=lambda step: (measured[step], -step))
    assert [point["step"] for point in record["phases"]["pretraining"]["curve"]] == [3, 4, 7, 8, 10]
    assert record["phases"]["pretraining"]["chosen_step"] == 10


@pytest.mark.parametrize(("measured", "best"), [((0.5, 0.9, 0.7), 1), ((0.9, 0.9, 0.5), 0), ((0.1, 0.2, 0.3), 2)])
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.usefixtures("few")
def test_best_weights_are_kept_and_of_equally_good_ones_the_first(
    loop: Any, tmp_path: Path, measured: tuple[float, ...], best: int, killed: bool
) -> None:
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (80, SIDE, SIDE), dtype=np.uint8), generator.integers(0, 10, 80)
    seen: list[torch.Tensor] = []

    def run(report: Callable[[str], None]) -> tuple[torch.nn.Module, dict[str, Any]]:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE * SIDE, 10))

        def validation_top1() -> float:
            step = len(seen)
            seen.append(module[1].weight.detach().clone())
            return measured[step]

        phase = loop.Phase("classification", TINY_CNN, replace(SHORT, steps=6), tmp_path)
        curve = phase.run(
            module,
            lambda x, y: torch.nn.functional.cross_entropy(module(x), y),
            images,
            labels,
            validation_top1,
            report,
        )
        return module, curve

    if killed:  # steps 2, 4 and 6 are validated; the last report is not followed by a checkpoint
        with pytest.raises(KilledError):
            run(killed_at(3))
        seen.pop()
    module, curve = run(silent)
    assert len(seen) == 3
    assert curve["chosen_step"] == (2, 4, 6)[best]
    assert torch.equal(module[1].weight, seen[best])  # type: ignore[index]
    assert not any(torch.equal(seen[best], other) for i, other in enumerate(seen) if i != best)


@pytest.mark.usefixtures("few")
def test_measured_is_the_half_precision_that_is_shipped(
    loop: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top1, exact = loop.top1, []

    def observed(model: torch.nn.Module, *arguments: Any) -> float:
        exact.append(all(torch.equal(p, p.half().float()) for p in model.parameters()))
        measured: float = top1(model, *arguments)
        return measured

    monkeypatch.setattr(loop, "top1", observed)
    loop.train(TINY_CNN, data, tmp_path, silent)
    assert exact == [False, False, False, True]


def test_missing_images_are_named_before_anything_is_written(loop: Any, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"train-images-idx3-ubyte\.gz is missing: install .* or name the folder"
    ):
        loop.train(TINY_CNN, tmp_path, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------- data


@settings(max_examples=50, derandomize=True)
@given(st.lists(st.integers(60, 90), min_size=10, max_size=10), st.integers(0, 100))
def test_split_is_balanced_disjoint_and_complete(loop: Any, counts: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), counts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "VALIDATION_IMAGES_PER_CLASS", 50)
        training, validation = loop.split(labels, seed)
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(len(labels)))
    assert np.bincount(labels[validation]).tolist() == [50] * 10


def test_split_is_a_function_of_the_seed(loop: Any) -> None:
    labels = np.arange(10_000) % 10
    again = [loop.split(labels, seed)[1].tolist() for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def batch_of(loop: Any, recipe: Recipe, name: str, step: int, images: int) -> tuple[list[int], float]:
    positions, generator = loop.Phase(name, recipe, SHORT, Path()).batch(step, images)
    return positions.tolist(), float(torch.rand((), generator=generator))


@pytest.mark.parametrize("name", ["pretraining", "classification"])
def test_batches_of_an_epoch_hold_every_image_at_most_once(loop: Any, name: str) -> None:
    images, per_epoch = 210, 210 // SHORT.batch_size
    epochs = []
    for epoch in range(3):
        batches = [batch_of(loop, TINY_MAE, name, epoch * per_epoch + i, images)[0] for i in range(per_epoch)]
        assert all(len(batch) == SHORT.batch_size for batch in batches)
        seen = list(itertools.chain(*batches))
        assert len(set(seen)) == len(seen) == per_epoch * SHORT.batch_size
        assert set(seen) <= set(range(images))
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batch_is_a_function_of_seed_phase_and_step_alone(loop: Any) -> None:
    keys = list(itertools.product((0, 1), ("pretraining", "classification"), range(12)))
    forward = {key: batch_of(loop, replace(TINY_MAE, seed=key[0]), *key[1:], 210) for key in keys}
    backward = {key: batch_of(loop, replace(TINY_MAE, seed=key[0]), *key[1:], 210) for key in reversed(keys)}
    assert forward == backward
    assert len({tuple(positions) for positions, _ in forward.values()}) == len(keys)
    assert len({draw for _, draw in forward.values()}) == len(keys)


def test_augmentation_is_a_flip_and_a_shift_of_the_padded_image(loop: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(300, 1, 9, 9)
    before = images.clone()
    result = loop.augmented(images, generator)
    assert torch.equal(images, before)
    assert result.shape == images.shape
    seen = set()
    for image, augmented in zip(images.numpy()[:, 0], result.numpy()[:, 0], strict=True):
        matches = [
            (flipped, top, left)
            for flipped, source in ((False, image), (True, image[:, ::-1]))
            for top in range(5)
            for left in range(5)
            if (np.pad(source, 2)[top : top + 9, left : left + 9] == augmented).all()
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    # with 300 draws of 50 the chance of missing a given one is 0.2 %
    assert len(seen) >= 48


def test_augmentation_is_a_function_of_its_generator(loop: Any) -> None:
    images = torch.rand(20, 1, 28, 28)
    draws = []
    for seed, elsewhere in ((1, 7), (1, 8), (2, 7)):
        torch.manual_seed(elsewhere)
        draws.append(loop.augmented(images, torch.Generator().manual_seed(seed)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(("steps", "warmup", "rising"), [(1000, 200, 100), (1000, 50, 50), (20, 200, 2), (3, 200, 1)])
def test_learning_rate_rises_to_its_peak_then_falls_to_almost_nothing(
    loop: Any, steps: int, warmup: int, rising: int
) -> None:
    optimisation = replace(SHORT, steps=steps, warmup_steps=warmup)
    phase = loop.Phase("classification", TINY_CNN, optimisation, Path())
    rates = [phase.schedule(step) for step in range(steps)]
    assert rates[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    cosine = [0.5 + 0.5 * math.cos(math.pi * i / (steps - rising)) for i in range(steps - rising)]
    assert rates[rising:] == pytest.approx(cosine)


# --------------------------------------------------------------------------- compute


def hand_counted(tokens: int, width: int, depth: int) -> float:
    """FLOPs of a forward pass through transformer blocks: two per multiplication."""
    linear = tokens * width * (3 * width + width + 4 * width + 4 * width)
    attention = 2 * tokens * tokens * width
    return 2.0 * depth * (linear + attention)


def test_compute_is_counted_as_by_hand(loop: Any) -> None:
    """Backward costs twice the forward pass, but for the first layer, whose input needs no gradient."""
    pretraining, classification = loop.image_flops(RECIPES["mae_ft_s0"])
    embed = 2.0 * PATCHES * 16 * 64
    assert classification == pytest.approx(3 * (hand_counted(50, 64, 6) + 2 * 64 * 10) + 2 * embed, rel=0.01)
    decoder = hand_counted(50, 32, 2) + 2 * 13 * 64 * 32 + 2 * 37 * 32 * 16
    assert pretraining == pytest.approx(3 * (hand_counted(13, 64, 6) + decoder) + 2 * embed, rel=0.01)
    assert loop.image_flops(RECIPES["supervised_s0"]) == (0, classification)


def test_counting_leaves_the_attention_kernel_as_it_was(loop: Any) -> None:
    from timm.layers import use_fused_attn

    before = use_fused_attn()
    loop.image_flops(RECIPES["mae_ft_s0"])
    assert use_fused_attn() == before


def test_compute_of_a_recipe_is_that_of_its_phases(loop: Any) -> None:
    per_pretraining, per_classification = loop.image_flops(TINY_MAE)
    assert loop.training_flops(TINY_MAE) == 40 * (10 * per_pretraining + 16 * per_classification)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.equal_compute_to is not None])
def test_equal_compute_is_spent_to_within_one_step(loop: Any, name: str) -> None:
    recipe = RECIPES[name]
    budget = loop.training_flops(RECIPES[str(recipe.equal_compute_to)])
    bought = loop.classification_of(recipe)
    step = loop.image_flops(recipe)[1] * bought.batch_size
    assert abs(loop.training_flops(recipe) - budget) <= step
    assert bought == replace(recipe.classification, steps=bought.steps)
    record = json.loads((zoo.WEIGHTS / f"{name}.json").read_text())
    assert record["phases"]["classification"]["steps"] == bought.steps
    assert record["training_flops"] == pytest.approx(budget, rel=1e-3)


# --------------------------------------------------------------------------- the masked autoencoder


@pytest.fixture
def autoencoder(loop: Any) -> Any:
    torch.manual_seed(0)
    return loop.MaskedAutoencoder(zoo.ARCHITECTURES["vit_28_patch4"].build(0), Pretraining(SHORT))


@pytest.fixture
def masks(autoencoder: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:  # noqa: ARG001
    """Positions (B, kept) and (B, hidden) of the tokens in each call; position 0 is the class token."""
    from lightly.models import utils

    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []
    draw = utils.random_token_mask

    def observed(*arguments: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(draw(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(utils, "random_token_mask", observed)
    return drawn


Masks = list[tuple[torch.Tensor, torch.Tensor]]


def test_all_but_twelve_of_49_patches_are_hidden(autoencoder: Any, masks: Masks) -> None:
    autoencoder(torch.rand(200, 1, SIDE, SIDE))
    [(kept, hidden)] = masks
    assert (kept.shape, hidden.shape) == ((200, 13), (200, 37))
    assert torch.equal(torch.cat([kept, hidden], 1).sort(1).values, torch.arange(50).expand(200, -1))
    assert bool((kept == 0).any(1).all())
    assert len({tuple(sorted(row)) for row in kept.tolist()}) == 200
    # every patch is kept in 12 of 49 images, within four standard errors
    share = torch.bincount(kept.flatten(), minlength=50)[1:].double() / 200
    assert float((share - 12 / 49).abs().max()) < 4 * (12 / 49 * 37 / 49 / 200) ** 0.5


def patch_slices() -> list[tuple[slice, slice]]:
    """Rows and columns of each patch, in the order of the tokens."""
    starts = range(0, SIDE, PATCH)
    return [(slice(top, top + PATCH), slice(left, left + PATCH)) for top in starts for left in starts]


def test_encoder_sees_the_kept_patches_and_no_other(autoencoder: Any, masks: Masks) -> None:
    encoded: list[torch.Tensor] = []
    autoencoder.embed.register_forward_hook(lambda *arguments: encoded.append(arguments[1][0].detach()))

    def encoding(images: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)  # the same masks
        autoencoder.eval()(images)
        return encoded[-1]

    images = torch.rand(4, 1, SIDE, SIDE)
    first = encoding(images)
    assert first.shape == (4, 13, 64)
    places = patch_slices()
    other = images.clone()
    for image, positions in zip(other, masks[0][1].tolist(), strict=True):
        for position in positions:
            image[0][places[position - 1]] = torch.rand(PATCH, PATCH)
    assert torch.equal(encoding(other), first)
    for image, positions in zip(other, masks[0][0].tolist(), strict=True):
        image[0][places[max(positions) - 1]] = torch.rand(PATCH, PATCH)
    assert bool((encoding(other) != first).any(2).any(1).all())


def slow_targets(image: np.ndarray) -> np.ndarray:
    """(49, 16): the pixels of each patch, row by row, normalised by the patch's own mean and variance."""
    patches = [image[place].reshape(-1).astype(np.float64) for place in patch_slices()]
    return np.stack([(patch - patch.mean()) / math.sqrt(patch.var() + 0.01) for patch in patches])


def test_loss_is_the_error_on_the_hidden_patches_each_normalised(autoencoder: Any, masks: Masks) -> None:
    predicted: list[torch.Tensor] = []
    autoencoder.predict.register_forward_hook(lambda *arguments: predicted.append(arguments[2].detach()))
    images = torch.rand(5, 1, SIDE, SIDE)
    images[0, 0, :, :8] = 0.5  # flat patches, for which the variance's floor is there
    loss = float(autoencoder(images).detach())
    errors = []
    for image, hidden, guesses in zip(images.numpy()[:, 0], masks[0][1].tolist(), predicted[0].numpy(), strict=True):
        targets = slow_targets(image)
        errors += [(guess - targets[position - 1]) ** 2 for position, guess in zip(hidden, guesses, strict=True)]
    assert len(errors) == 5 * 37
    assert loss == pytest.approx(float(np.mean(errors)), rel=1e-5)


@pytest.mark.usefixtures("few")
def test_short_pretraining_beats_predicting_the_mean_patch(loop: Any, data: Path, tmp_path: Path) -> None:
    images, labels = loop.fashion_mnist.training_images(data)
    training, _ = loop.split(labels, 0)
    shown = torch.from_numpy(images[training])[:, None].float() / 255
    shown = loop.normalised(loop.augmented(shown, torch.Generator().manual_seed(0)))
    targets = np.stack([slow_targets(image) for image in shown.numpy()[:, 0]])
    # the best prediction that looks at no other patch: the mean patch of each place
    blind = float(((targets - targets.mean(0)) ** 2).mean())

    optimisation = replace(SHORT, steps=200, batch_size=32, learning_rate=3e-3, warmup_steps=20)
    torch.manual_seed(0)
    autoencoder = loop.MaskedAutoencoder(zoo.ARCHITECTURES["vit_28_patch4"].build(0), Pretraining(optimisation))
    phase = loop.Phase("pretraining", TINY_MAE, optimisation, tmp_path)
    curve = phase.run(
        autoencoder, lambda x, _: autoencoder(loop.normalised(x)), images[training], labels[training], None, silent
    )["curve"]
    late = [point["loss"] for point in curve if point["step"] > 160]
    assert np.mean(late) < 0.9 * blind
    assert np.mean(late) < 0.9 * curve[0]["loss"]


@pytest.mark.usefixtures("few")
def test_pretrained_weights_are_what_classification_starts_from(
    loop: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = initial_states(loop, TINY_MAE, data, tmp_path, monkeypatch)
    pretrained = torch.load(tmp_path / "tiny.pretraining.checkpoint", weights_only=True)["module"]
    for name, tensor in started["classification"].items():
        if not name.startswith("head."):
            assert torch.equal(tensor, pretrained[f"encoder.{name}"]), name
    moved = {
        name
        for name, tensor in started["pretraining"].items()
        if not torch.equal(tensor, started["classification"][name])
    }
    assert "blocks.0.attn.qkv.weight" in moved


def initial_states(
    loop: Any, recipe: Recipe, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of the ViT at the start of each phase."""
    states: dict[str, dict[str, torch.Tensor]] = {}
    run = loop.Phase.run

    def observed(phase: Any, module: torch.nn.Module, *arguments: Any) -> Any:
        vit: Any = getattr(module, "encoder", module)
        states[phase.name] = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
        return run(phase, module, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Phase, "run", observed)
        loop.train(recipe, data, out, silent)
    return states


@pytest.mark.usefixtures("few")
def test_supervised_twin_is_initialised_as_pretraining_initialises(
    loop: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other draws of the same distribution, so that what differs between the arms is pretraining."""
    model = initial_states(loop, TINY_MAE, data, tmp_path / "model", monkeypatch)["pretraining"]
    recipe = replace(TINY_MAE, pretraining=None)
    twin = initial_states(loop, recipe, data, tmp_path / "twin", monkeypatch)["classification"]
    assert torch.equal(model["pos_embed"], twin["pos_embed"])
    matrices = [name for name, tensor in model.items() if tensor.ndim == 2 and tensor.numel() >= 1000]
    assert matrices
    for name in matrices:
        assert float(twin[name].std()) == pytest.approx(float(model[name].std()), rel=0.15), name
