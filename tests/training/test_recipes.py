"""The recipes of the bundled models, as values."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from mae_bench.errors import BenchError
from mae_bench.models.zoo import ARCHITECTURES, WEIGHTS
from mae_bench.training.recipes import RECIPES, Optimisation, recipe_named

NAMED = sorted(RECIPES)


@pytest.mark.parametrize("name", NAMED)
def test_recipe_is_found_by_its_own_name(name: str) -> None:
    recipe = recipe_named(name)
    assert recipe.name == name
    assert recipe.architecture in ARCHITECTURES
    assert recipe.summary


def test_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(BenchError, match=r"unknown recipe 'supervised': did you mean supervised_s0\? Known: cnn_s0"):
        recipe_named("supervised")


def test_every_shipped_model_has_a_recipe_and_every_recipe_a_shipped_model() -> None:
    assert sorted(path.stem for path in WEIGHTS.glob("*.safetensors")) == NAMED


@pytest.mark.parametrize("name", NAMED)
def test_shipped_model_was_made_by_the_recipe_of_today(name: str) -> None:
    """Else "made again by mae-bench train" in its card would be untrue."""
    record = json.loads((WEIGHTS / f"{name}.json").read_text())
    recipe = RECIPES[name]
    assert record["recipe"] == json.loads(json.dumps(dataclasses.asdict(recipe)))
    phases = {"classification": recipe.classification}
    if recipe.pretraining is not None:
        phases["pretraining"] = recipe.pretraining.optimisation
    assert record["phases"].keys() == phases.keys()
    for phase, optimisation in phases.items():
        if optimisation.steps:
            assert record["phases"][phase]["steps"] == optimisation.steps


def optimisations() -> list[tuple[str, Optimisation]]:
    found = [(name, recipe.classification) for name, recipe in RECIPES.items()]
    return found + [(name, r.pretraining.optimisation) for name, r in RECIPES.items() if r.pretraining is not None]


@pytest.mark.parametrize(("name", "optimisation"), optimisations())
def test_steps_are_given_or_bought_but_not_both(name: str, optimisation: Optimisation) -> None:
    bought = RECIPES[name].equal_compute_to is not None and optimisation is RECIPES[name].classification
    assert (optimisation.steps == 0) is bought
    assert optimisation.batch_size > 0
    assert optimisation.learning_rate > 0
    assert 0 <= optimisation.label_smoothing < 1


@pytest.mark.parametrize("name", NAMED)
def test_compute_is_bought_at_the_price_of_a_recipe_that_states_its_own(name: str) -> None:
    """A chain could go round in a circle."""
    model = RECIPES[name].equal_compute_to
    if model is not None:
        assert RECIPES[model].equal_compute_to is None


def test_the_supervised_twin_differs_in_pretraining_alone() -> None:
    """Else a difference between the two would say nothing about pretraining."""
    twin, model = RECIPES["supervised_s0"], RECIPES["mae_ft_s0"]
    assert (twin.architecture, twin.seed, twin.equal_compute_to) == (model.architecture, model.seed, model.name)
    assert twin.pretraining is None
    assert model.pretraining is not None
    same = ("batch_size", "learning_rate", "weight_decay", "warmup_steps", "label_smoothing")
    for field in same:
        assert getattr(twin.classification, field) == getattr(model.classification, field)


def test_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["cnn_s0"].seed = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["cnn_s0"].classification.steps = 1  # type: ignore[misc]


def test_reading_recipes_needs_no_network_library() -> None:
    code = "import sys, mae_bench.training.recipes; print({'torch', 'timm', 'lightly'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("set()\n", "")
