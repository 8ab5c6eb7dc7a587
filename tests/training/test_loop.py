"""The training loop: draws depend on seed, phase and step alone, so that a resumed run is an uninterrupted one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mae_bench.errors import BenchError
from mae_bench.training.data import TrainingData
from mae_bench.training.recipes import RECIPES, Optimisation, Recipe

pytestmark = [pytest.mark.usefixtures("one_thread")]

SHORT = Optimisation(steps=20, batch_size=16, learning_rate=1e-2, warmup_steps=3)
RECIPE = replace(RECIPES["cnn_s0"], name="tiny", optimisation=SHORT)  # type: ignore[call-arg]


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


@pytest.fixture(scope="module")
def images() -> TrainingData:
    generator = np.random.default_rng(0)
    labels = np.arange(210) % 10
    pixels = generator.integers(0, 256, (210, 1, 8, 8), dtype=np.uint8)
    return TrainingData(pixels, labels, np.arange(200), np.arange(200, 210), (0.5,), (0.25,))


def run(
    images: TrainingData, out: Path, report: Callable[[str], None] = silent, recipe: Recipe = RECIPE, **changes: Any
) -> tuple[nn.Module, list[dict[str, float]], list[float]]:
    from mae_bench.training.loop import Loop

    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5))
    shares: list[float] = []

    def at_share(share: float) -> dict[str, float]:
        shares.append(share)
        return {"share": share}

    loop = Loop(recipe, replace(SHORT, **changes), images, out, report, at_share)
    curve = loop.run(module, lambda x, y: functional.cross_entropy(module(x), y))
    return module, curve, shares


@pytest.mark.parametrize("kills", [[1], [4], [2, 3], [9, 1], [10]])
def test_resumed_training_ends_as_the_uninterrupted_one_to_the_bit(
    images: TrainingData, tmp_path: Path, kills: list[int]
) -> None:
    (tmp_path / "whole").mkdir()
    expected, curve, _ = run(images, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    for kill in kills:
        with pytest.raises(KilledError):
            run(images, tmp_path / "killed", killed_at(kill))
    module, resumed, _ = run(images, tmp_path / "killed")
    assert resumed == curve
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])


def test_curve_has_a_point_at_every_tenth(images: TrainingData, tmp_path: Path) -> None:
    _, curve, shares = run(images, tmp_path)
    assert shares == [k / 10 for k in range(1, 11)]
    assert [point["step"] for point in curve] == list(range(2, 21, 2))
    assert all(math.isfinite(point["loss"]) for point in curve)


def test_kill_while_a_checkpoint_is_written_costs_no_more_than_the_steps_since_the_last(
    images: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "torn").mkdir()
    expected, _, _ = run(images, tmp_path / "whole")
    saved = torch.save

    def torn(state: dict[str, Any], file: BinaryIO) -> None:
        if state["step"] == 8:
            file.write(b"half a check")
            raise KilledError
        saved(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(KilledError):
            run(images, tmp_path / "torn")
    reports: list[str] = []
    module, _, _ = run(images, tmp_path / "torn", reports.append)
    assert "resumed at step 6" in reports[0]
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [(replace(RECIPE, seed=1), {}), (RECIPE, {"steps": 30}), (RECIPE, {"learning_rate": 1e-3})],
    ids=["seed", "steps", "rate"],
)
def test_checkpoint_of_another_recipe_is_not_gone_on_with(
    images: TrainingData, tmp_path: Path, recipe: Recipe, changes: dict[str, Any]
) -> None:
    """The result would be that of neither."""
    with pytest.raises(KilledError):
        run(images, tmp_path, killed_at(3))
    with pytest.raises(BenchError, match="is of another recipe: remove it to start anew, or choose another") as caught:
        run(images, tmp_path, recipe=recipe, **changes)
    assert str(tmp_path / "tiny.checkpoint") in str(caught.value)


def test_loss_that_is_not_finite_ends_the_training(images: TrainingData, tmp_path: Path) -> None:
    from mae_bench.training.loop import Loop

    module = nn.Linear(1, 1)
    loop = Loop(RECIPE, SHORT, images, tmp_path, silent, lambda _: {})
    with pytest.raises(BenchError, match="tiny: the loss is nan at step 2"):
        loop.run(module, lambda x, _: module(x[:, 0, :, :1]).sum() * float("nan"))
    assert not list(tmp_path.iterdir())


def batch_of(images: TrainingData, recipe: Recipe, step: int) -> tuple[list[int], float]:
    from mae_bench.training.loop import Loop

    loop = Loop(recipe, SHORT, images, Path(), silent, lambda _: {})
    positions, generator = loop.batch(step)
    return positions.tolist(), float(torch.rand((), generator=generator))


@pytest.mark.parametrize("name", ["mae_pretrained_s0", "mae_ft_s0"])
def test_batches_of_an_epoch_hold_every_training_image_at_most_once(images: TrainingData, name: str) -> None:
    per_epoch = 200 // SHORT.batch_size
    epochs = []
    for epoch in range(3):
        batches = [batch_of(images, RECIPES[name], epoch * per_epoch + i)[0] for i in range(per_epoch)]
        seen = list(itertools.chain(*batches))
        assert len(set(seen)) == len(seen) == per_epoch * SHORT.batch_size
        assert set(seen) <= set(range(200))
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batch_is_a_function_of_seed_phase_and_step_alone(images: TrainingData) -> None:
    names = ("mae_pretrained_s0", "mae_pretrained_s1", "mae_ft_s0", "mae_ft_s1")
    keys = list(itertools.product(names, range(14)))
    forward = {key: batch_of(images, RECIPES[key[0]], key[1]) for key in keys}
    backward = {key: batch_of(images, RECIPES[key[0]], key[1]) for key in reversed(keys)}
    assert forward == backward
    assert len({tuple(positions) for positions, _ in forward.values()}) == len(keys)
    assert len({draw for _, draw in forward.values()}) == len(keys)


@pytest.mark.parametrize(("steps", "warmup", "rising"), [(1000, 200, 100), (1000, 50, 50), (20, 200, 2), (3, 200, 1)])
def test_learning_rate_rises_to_its_peak_then_falls_to_almost_nothing(
    images: TrainingData, steps: int, warmup: int, rising: int
) -> None:
    from mae_bench.training.loop import Loop

    optimisation = replace(SHORT, steps=steps, warmup_steps=warmup)
    loop = Loop(RECIPE, optimisation, images, Path(), silent, lambda _: {})
    rates = [loop.schedule(step) for step in range(steps)]
    assert rates[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    cosine = [0.5 + 0.5 * math.cos(math.pi * i / (steps - rising)) for i in range(steps - rising)]
    assert rates[rising:] == pytest.approx(cosine)
