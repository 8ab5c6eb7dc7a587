"""The recipes of the bundled models, as values."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter

import pytest

from mae_bench.errors import BenchError
from mae_bench.models.zoo import ARCHITECTURES, WEIGHTS
from mae_bench.suites import SUITES
from mae_bench.training.recipes import (
    RECIPES,
    SEARCHED_RATES,
    SEEDS,
    FineTuning,
    LinearProbe,
    Pretraining,
    Supervised,
    recipe_named,
    recipe_of,
)

NAMED = sorted(RECIPES)
RECORDED = {path.stem: json.loads(path.read_text()) for path in WEIGHTS.glob("*_s?.json")}
SEARCHES = {path.stem: json.loads(path.read_text()) for path in sorted(WEIGHTS.glob("*_search.json"))}


@pytest.mark.parametrize("name", NAMED)
def test_recipe_is_found_by_its_name_and_by_what_it_is(name: str) -> None:
    recipe = recipe_named(name)
    assert recipe.name == name
    assert recipe_of(recipe.arm, recipe.suite, recipe.seed) is recipe
    assert recipe.architecture in ARCHITECTURES
    assert recipe.suite in SUITES
    assert recipe.summary


def test_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(BenchError, match=r"unknown recipe 'supervised_s': did you mean supervised_s"):
        recipe_named("supervised_s")
    with pytest.raises(BenchError, match=r"no recipe is for suite 'fashion': did you mean fashion_mnist\?"):
        recipe_of("mae_ft", "fashion", 0)
    with pytest.raises(BenchError, match=r"no recipe of arm 'mae' with seed 7 on cifar10; there are mae_pretrained 0"):
        recipe_of("mae", "cifar10", 7)


@pytest.mark.parametrize("suite", ["fashion_mnist", "cifar10"])
def test_every_arm_has_every_seed(suite: str) -> None:
    arms = Counter(recipe.arm for recipe in RECIPES.values() if recipe.suite == suite and recipe.arm != "cnn")
    assert arms == dict.fromkeys(("mae_pretrained", "mae_ft", "mae_probe", "supervised", "supervised_ep"), len(SEEDS))


@pytest.mark.parametrize("name", [name for name, record in RECORDED.items() if "kind" in record["recipe"]])
def test_shipped_model_was_made_by_the_recipe_of_today(name: str) -> None:
    """Else "made again by mae-bench train" in its card would be untrue."""
    recipe, record = RECIPES[name], RECORDED[name]
    assert record["recipe"] == json.loads(json.dumps({"kind": type(recipe).__name__, **dataclasses.asdict(recipe)}))
    steps = 0 if isinstance(recipe, LinearProbe) else recipe.optimisation.steps  # type: ignore[attr-defined]
    if steps:
        assert record["steps"] == steps


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if isinstance(r, FineTuning | LinearProbe)])
def test_probe_and_fine_tuned_model_start_from_the_encoder_of_their_seed(name: str) -> None:
    recipe = RECIPES[name]
    assert isinstance(recipe, FineTuning | LinearProbe)
    start = RECIPES[recipe.start]
    assert isinstance(start, Pretraining)
    for field in ("suite", "architecture", "seed", "shift"):
        assert getattr(start, field) == getattr(recipe, field)


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.arm.startswith("supervised")])
def test_supervised_twin_differs_in_pretraining_and_rate_alone(name: str) -> None:
    """Else a difference between the two would say nothing about pretraining."""
    twin = RECIPES[name]
    tuned = recipe_of("mae_ft", twin.suite, twin.seed)
    assert isinstance(twin, Supervised)
    assert isinstance(tuned, FineTuning)
    for field in ("suite", "architecture", "seed", "shift"):
        assert getattr(twin, field) == getattr(tuned, field)
    for field in ("batch_size", "weight_decay", "warmup_steps", "label_smoothing", "beta2"):
        assert getattr(twin.optimisation, field) == getattr(tuned.optimisation, field)
    if twin.arm == "supervised":
        assert (twin.optimisation.steps, twin.equal_compute_to) == (0, tuned.name)
    else:
        assert (twin.optimisation.steps, twin.equal_compute_to) == (tuned.optimisation.steps, None)


def test_rates_of_both_arms_were_searched() -> None:
    assert SEARCHES.keys() == {"fashion_mnist_mae_ft_search", "fashion_mnist_supervised_search"}


@pytest.mark.parametrize("name", SEARCHES)
def test_recipe_takes_the_best_rate_of_its_search(name: str) -> None:
    found = SEARCHES[name]
    trials = {trial["learning_rate"]: trial["validation_top1"] for trial in found["trials"]}
    assert tuple(trials) == SEARCHED_RATES
    assert trials[found["best"]] == max(trials.values())
    for recipe in RECIPES.values():
        same = recipe.arm.removesuffix("_ep") == found["arm"]
        if recipe.suite == found["suite"] and same and isinstance(recipe, FineTuning | Supervised):
            assert recipe.optimisation.learning_rate == found["best"]


def test_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["cnn_s0"].seed = 1  # type: ignore[misc]


def test_reading_recipes_needs_no_network_library() -> None:
    code = "import sys, mae_bench.training.recipes; print({'torch', 'timm', 'lightly'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("set()\n", "")
