"""How fast each model classifies a batch, how fast a batch is degraded, and what a whole cell costs.

Each entry says in ``extra_info`` how many images it is about.
"""

import pytest

from mae_bench import Level

DEGRADATION, LEVEL = "random_patch", Level(0.5)


@pytest.fixture
def batch(evaluation):
    return 0, min(evaluation.batch_size, evaluation.images)


def test_forward(benchmark, evaluation, batch):
    images = evaluation.degraded("clean", Level(0.0), *batch)
    benchmark.extra_info["images"] = len(images)
    benchmark.pedantic(evaluation.logits, args=(images,), rounds=10, warmup_rounds=2)


def test_degrade(benchmark, evaluation, batch):
    benchmark.extra_info["images"] = batch[1]
    benchmark.pedantic(evaluation.degraded, args=(DEGRADATION, LEVEL, *batch), rounds=10, warmup_rounds=2)


def test_evaluate(benchmark, evaluation):
    # reading the clean row runs the clean pass, which all cells of a model share
    benchmark.extra_info["images"] = evaluation.clean.row.n
    benchmark.pedantic(evaluation.run, args=(DEGRADATION, LEVEL), rounds=3)
