"""How fast each model classifies, how fast images are degraded, and what a whole cell costs."""

import pytest

from mae_bench import Level

IMAGES = 256
DEGRADATION, LEVEL = "random_patch", Level(0.5)


@pytest.fixture
def clean_images(evaluation):
    return evaluation.degraded("clean", Level(0.0), 0, IMAGES)


def test_forward(benchmark, evaluation, clean_images):
    benchmark.extra_info["images"] = len(clean_images)
    benchmark.pedantic(evaluation.logits, args=(clean_images,), rounds=5, warmup_rounds=1)


def test_degrade(benchmark, evaluation):
    benchmark.extra_info["images"] = IMAGES
    arguments = (DEGRADATION, LEVEL, 0, IMAGES)
    benchmark.pedantic(evaluation.degraded, args=arguments, rounds=5, warmup_rounds=1)


def test_evaluate(benchmark, evaluation):
    # reading the clean row runs the clean pass, which all cells of a model share
    benchmark.extra_info["images"] = evaluation.clean.row.n
    benchmark.pedantic(evaluation.run, args=(DEGRADATION, LEVEL), rounds=3)
