"""The whole chain, small: pretrain, fine-tune, probe, train from scratch; and what is written of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from mae_bench.errors import BenchError
from mae_bench.models.zoo import WEIGHTS, digest, load_weights, save_weights
from mae_bench.suites.cifar10 import CLASSES
from mae_bench.training.data import TrainingData
from mae_bench.training.recipes import RECIPES, FineTuning, LinearProbe, Optimisation, Pretraining, Supervised

pytestmark = [pytest.mark.train, pytest.mark.usefixtures("one_thread")]

SHORT = Optimisation(steps=10, batch_size=40, learning_rate=1e-3, warmup_steps=3)
SIDE = 28


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def arms() -> Any:
    """The module under test, which needs the extra."""
    pytest.importorskip("lightly")
    import mae_bench.training.arms

    return mae_bench.training.arms


@pytest.fixture(scope="module")
def images() -> TrainingData:
    """600 ramps of ten directions, no two mirror images of each other, each of another brightness."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(10), 60))
    angles = np.pi * ((labels + 0.5) / 10 - 0.5)
    y, x = np.mgrid[0:SIDE, 0:SIDE] - (SIDE - 1) / 2
    ramps = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
    pixels = (255 * (0.5 + ramps / 40) * generator.uniform(0.6, 1.0, (600, 1, 1))).round().astype(np.uint8)
    return TrainingData(pixels[:, None], labels, np.arange(500), np.arange(500, 600), (0.4,), (0.3,))


def recipe(name: str, **changes: Any) -> Any:
    found: Any = RECIPES[name]
    if hasattr(found, "optimisation"):
        changes = {"optimisation": replace(found.optimisation, **vars(SHORT) | {"layer_decay": None})} | changes
    return replace(found, **changes)


@pytest.fixture(scope="module")
def trained(arms: Any, images: TrainingData, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:  # noqa: ARG001
    out = tmp_path_factory.mktemp("out")
    for name in ("mae_pretrained_s0", "mae_ft_s0", "mae_probe_s0"):
        arms._train(recipe(name), images, out, silent)
    arms._train(recipe("supervised_s0", equal_compute_to=None), images, out, silent)
    return out


def record(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return found


def test_every_arm_leaves_weights_card_and_curve(trained: Path) -> None:
    for name in ("mae_pretrained_s0", "mae_ft_s0", "mae_probe_s0", "supervised_s0"):
        made = record(trained, name)
        assert made["sha256"] == digest(trained / f"{name}.safetensors")
        assert made["recipe"]["name"] == name
        assert made["parameters"] == sum(p.numel() for p in load_weights(trained / f"{name}.safetensors").parameters())
        card = (trained / f"{name}.md").read_text()
        assert card.startswith(f"# {name}\n")
        assert "made again by `mae-bench train" in card
        assert ("validation_top1" in made) is (name != "mae_pretrained_s0")
        if made["steps"]:
            assert [point["step"] for point in made["curve"]] == list(range(1, 11))


def test_checkpoints_lie_along_trainings_with_labels(trained: Path) -> None:
    names = sorted(path.stem for path in (trained / "trajectories").iterdir())
    assert names == sorted(f"{m}@{s}" for m in ("mae_ft_s0", "supervised_s0") for s in ("0.2", "0.4", "0.6", "0.8"))
    final = load_weights(trained / "mae_ft_s0.safetensors").state_dict()
    along = load_weights(trained / "trajectories" / "mae_ft_s0@0.2.safetensors").state_dict()
    assert any(not torch.equal(final[key], along[key]) for key in final)


def test_recipes_of_cifar10_make_every_arm_from_class_folders(
    arms: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colour JPEGs, one folder a class: what the recipes of the larger suite are given."""
    monkeypatch.setattr("mae_bench.training.data.VALIDATION_IMAGES_PER_CLASS", 5)
    generator = np.random.default_rng(0)
    for name, colour in zip(CLASSES, generator.integers(40, 215, (10, 3)), strict=True):
        folder = tmp_path / "data" / "train" / name
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(colour + generator.normal(scale=20, size=(32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.jpg")
    out = tmp_path / "out"
    for name in ("cifar10_mae_pretrained_s0", "cifar10_mae_ft_s0", "cifar10_mae_probe_s0", "cifar10_supervised_s0"):
        more = {"equal_compute_to": None} if "supervised" in name else {}
        path = arms.train(recipe(name, **more), tmp_path / "data", out, silent)
        model = load_weights(path)
        outputs = model(torch.zeros(1, 3, 32, 32)).shape
        assert outputs == ((1, 64) if name == "cifar10_mae_pretrained_s0" else (1, 10))
        assert record(out, name)["recipe"]["suite"] == "cifar10"
    assert record(out, "cifar10_mae_probe_s0")["validation_top1"] > 0.5  # ten colours are told by any features


def test_measured_is_what_is_shipped(arms: Any, trained: Path, images: TrainingData) -> None:
    for name in ("mae_ft_s0", "mae_probe_s0", "supervised_s0"):
        model = load_weights(trained / f"{name}.safetensors")
        assert arms.top1(model, images) == pytest.approx(record(trained, name)["validation_top1"])


def test_encoder_reloads_to_the_bit(arms: Any, images: TrainingData, tmp_path: Path) -> None:
    encoder, _ = arms._pretrained(recipe("mae_pretrained_s0"), images, tmp_path, silent)
    halved = {key: value.half().float() for key, value in encoder.state_dict().items()}
    loaded = load_weights(save_weights(encoder, "encoder", "vit_28_patch4", tmp_path)).state_dict()
    assert loaded.keys() == halved.keys()
    assert all(torch.equal(loaded[key], value) for key, value in halved.items())


def test_probe_leaves_the_encoder_as_it_was(trained: Path) -> None:
    encoder = load_weights(trained / "mae_pretrained_s0.safetensors").state_dict()
    probe = load_weights(trained / "mae_probe_s0.safetensors").state_dict()
    assert probe.keys() - encoder.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(probe[key], value) for key, value in encoder.items())


def test_fine_tuning_starts_from_the_stored_encoder(
    arms: Any, trained: Path, images: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_weights(trained / "mae_pretrained_s0.safetensors").state_dict()
    seen: list[bool] = []

    def run(_: object, module: torch.nn.Module, __: object) -> list[dict[str, float]]:
        seen.append(all(torch.equal(module.state_dict()[key], value) for key, value in encoder.items()))
        return [{"step": 0, "validation_top1": 0.0}]

    monkeypatch.setattr(arms.Loop, "run", run)
    arms._classifier(recipe("mae_ft_s0"), images, trained, silent)
    assert seen == [True]
    with pytest.raises(BenchError, match=r"the encoder nowhere is neither in .* nor bundled: make it with mae-bench"):
        arms._classifier(recipe("mae_ft_s0", start="nowhere"), images, tmp_path, silent)
    save_weights(load_weights(trained / "supervised_s0.safetensors"), "classifier", "vit_28_patch4", tmp_path)
    encoder_of_other = arms.ARCHITECTURES["resnet_28"].build(10)
    save_weights(encoder_of_other, "other", "resnet_28", tmp_path)
    with pytest.raises(BenchError, match="the encoder does not fit the classifier"):
        arms._classifier(recipe("mae_ft_s0", start="other"), images, tmp_path, silent)


def test_linear_probe_is_the_convex_optimum(arms: Any) -> None:
    """At the optimum the gradient of the stated loss vanishes, and any step away costs."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 5, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0]) + 2
    labels = torch.randint(0, 3, (300,), generator=generator)
    weight, bias = arms.linear_probe(features, labels, 3, penalty=1e-3)
    mean, std = features.mean(0), features.std(0)

    def loss(w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(features @ w.T + b, labels) + 1e-3 * (w * std).square().sum()

    best = float(loss(weight, bias))
    for seed in range(20):
        step = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) * 0.05 / std
        assert float(loss(weight + step, bias - step @ mean)) > best


@pytest.mark.parametrize("channels", [1, 3])
def test_masks_hide_exactly_three_quarters_of_each_image(arms: Any, channels: int) -> None:
    from lightly.models import utils

    from mae_bench.training.masked_autoencoder import MaskedAutoencoder

    name = "mae_pretrained_s0" if channels == 1 else "cifar10_mae_pretrained_s0"
    recipe_: Any = RECIPES[name]
    architecture = arms.ARCHITECTURES[recipe_.architecture]
    autoencoder = MaskedAutoencoder(architecture.build(0), recipe_)
    patches = autoencoder.backbone.sequence_length - 1
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = utils.random_token_mask

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(original(*args, **kwargs))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "random_token_mask", watched)
        autoencoder(torch.rand(20, *architecture.input_size))
    [(kept, hidden)] = seen
    for image in range(20):
        assert sorted([*kept[image].tolist(), *hidden[image].tolist()]) == list(range(patches + 1))
        assert 0 in kept[image]  # the class token
    assert hidden.shape[1] == pytest.approx(0.75 * patches, abs=0.75)
    assert len({tuple(sorted(row.tolist())) for row in hidden}) > 15


def test_pretraining_beats_the_mean_patch(arms: Any, images: TrainingData, tmp_path: Path) -> None:
    """A normalised patch has mean zero: who predicts the mean predicts zero, and loses the mean square."""
    from mae_bench.training.masked_autoencoder import MaskedAutoencoder

    mine = recipe("mae_pretrained_s0", optimisation=replace(SHORT, steps=200, learning_rate=3e-3))
    autoencoder = MaskedAutoencoder(arms.ARCHITECTURES["vit_28_patch4"].build(0), mine)
    untrained = arms.validation_loss(autoencoder, images)
    _, made = arms._pretrained(mine, images, tmp_path, silent)
    x, _ = images.batch(images.validation)
    patches = functional.unfold(images.normalised(x), 4, stride=4).transpose(1, 2)
    centred = patches - patches.mean(-1, keepdim=True)
    mean_patch = float((centred.square() / (centred.square().mean(-1, keepdim=True) + mine.variance_floor)).mean())
    assert made["validation_loss"] < 0.5 * mean_patch
    assert made["validation_loss"] < 0.5 * untrained


def test_search_records_every_trial_and_its_best(
    arms: Any, images: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingData, "load", lambda *_: images)
    encoder = RECIPES["mae_pretrained_s0"]
    short = replace(SHORT, steps=40)
    monkeypatch.setitem(RECIPES, encoder.name, replace(encoder, optimisation=short))  # type: ignore[call-arg]
    for name in ("mae_ft_s0", "supervised_s0"):
        mine = replace(RECIPES[name], optimisation=short)  # type: ignore[call-arg]
        if isinstance(mine, Supervised):
            mine = replace(mine, equal_compute_to=None)
        found = json.loads(arms.search(mine, tmp_path, tmp_path, silent).read_text())
        tried = {trial["learning_rate"]: trial["validation_top1"] for trial in found["trials"]}
        assert list(tried) == [1e-3, 2e-3, 4e-3]
        assert tried[found["best"]] == max(tried.values())
        assert {trial["steps"] for trial in found["trials"]} == {10}


# --------------------------------------------------------------------------- compute


def hand_counted(tokens: int, width: int, depth: int) -> float:
    """FLOPs of a forward pass through transformer blocks: two per multiplication."""
    return 2.0 * depth * (tokens * width * 12 * width + 2 * tokens * tokens * width)


@pytest.mark.usefixtures("arms")
def test_compute_is_counted_as_by_hand() -> None:
    """Backward costs twice the forward pass, but for the first layer, whose input needs no gradient."""
    from mae_bench.training.compute import image_flops

    embed = 2.0 * 49 * 16 * 64
    labelled = 3 * (hand_counted(50, 64, 6) + 2 * 64 * 10) + 2 * embed
    assert image_flops(RECIPES["mae_ft_s0"]) == pytest.approx(labelled, rel=0.01)
    assert image_flops(RECIPES["supervised_s0"]) == image_flops(RECIPES["mae_ft_s0"])
    decoder = hand_counted(50, 32, 2) + 2 * 13 * 64 * 32 + 2 * 37 * 32 * 16
    masked = 3 * (hand_counted(13, 64, 6) + decoder) + 2 * embed
    assert image_flops(RECIPES["mae_pretrained_s0"]) == pytest.approx(masked, rel=0.01)
    assert image_flops(RECIPES["mae_probe_s0"]) == pytest.approx(labelled / 3, rel=0.02)


@pytest.mark.usefixtures("arms")
@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if isinstance(r, Supervised) and r.equal_compute_to])
def test_equal_compute_is_spent_to_within_half_a_step(name: str) -> None:
    from mae_bench.training.compute import image_flops, optimisation_of, training_flops

    twin = RECIPES[name]
    assert isinstance(twin, Supervised)
    assert twin.equal_compute_to is not None
    tuned = RECIPES[twin.equal_compute_to]
    assert isinstance(tuned, FineTuning)
    start = RECIPES[tuned.start]
    assert isinstance(start, Pretraining)
    budget = sum(image_flops(r) * r.optimisation.steps * r.optimisation.batch_size for r in (tuned, start))
    assert training_flops(tuned, 0) == budget
    step = image_flops(twin) * optimisation_of(twin).batch_size
    assert abs(training_flops(twin, 0) - budget) <= step / 2


@pytest.mark.usefixtures("arms")
@pytest.mark.parametrize("name", sorted(path.stem for path in WEIGHTS.glob("*_s?.json")))
def test_shipped_model_was_trained_for_the_steps_and_the_compute_of_its_recipe(name: str) -> None:
    from mae_bench.training.compute import optimisation_of, training_flops

    made = json.loads((WEIGHTS / f"{name}.json").read_text())
    mine = RECIPES[name]
    assert made["training_flops"] == training_flops(mine, 55_000)
    if not isinstance(mine, LinearProbe):
        assert made["steps"] == optimisation_of(mine).steps
        assert max(point["step"] for point in made["curve"]) == made["steps"]


def test_counting_leaves_the_attention_kernel_as_it_was() -> None:
    from timm.layers import use_fused_attn

    from mae_bench.training.compute import image_flops

    before = use_fused_attn()
    image_flops(RECIPES["mae_ft_s0"])
    assert use_fused_attn() == before
    assert isinstance(RECIPES["mae_probe_s0"], LinearProbe)
