"""The loops beside ours do what they are named for, on the same images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mae_bench.evaluation import Evaluation
from mae_bench.images import BLOCK, PROBE_BLOCKS
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.models.zoo import bundled
from mae_bench.perf import engine
from mae_bench.perf.conditions import Conditions
from mae_bench.perf.engine import BUNDLED, CELL, Loops, smooth_suite, trained
from mae_bench.perf.measurement import LONGER
from mae_bench.settings import Settings
from mae_bench.suites import SUITES

BEYOND = 96
CPU = Conditions(torch.device("cpu"), rounds=1, quick=True)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Evaluation]:  # noqa: ARG001
    suite = SUITES["fashion_mnist"].load(None)
    model = Pool("cpu").load(ModelEntry(BUNDLED), lambda: bundled(BUNDLED))
    made = Evaluation(suite, model, Settings(), tmp_path_factory.mktemp("scratch"), "perf")
    made.inputs.images = PROBE_BLOCKS * BLOCK + BEYOND
    yield made
    made.close()


def test_loops_see_the_images_behind_the_probe_subset(evaluation: Evaluation) -> None:
    loops = Loops.of(evaluation)
    assert loops.images == BEYOND
    assert [len(batch) for batch in loops.batches] == [64, 32]
    first = PROBE_BLOCKS * BLOCK
    degraded = evaluation.degraded(*CELL, first, first + BEYOND)
    assert torch.equal(torch.cat(loops.degraded), degraded)
    assert not torch.equal(torch.cat(loops.clean), degraded)
    converted = [evaluation.model.classifier.normalised(images) for images in loops.read()]
    assert torch.equal(torch.cat(converted), evaluation.model.classifier.normalised(torch.cat(loops.clean)))
    with torch.inference_mode():
        logits = torch.cat([evaluation.model.classifier.module(batch) for batch in loops.batches])
    torch.testing.assert_close(logits, evaluation.logits(degraded), rtol=0, atol=1e-4)


def test_loops_find_the_accuracy_that_the_engine_finds(evaluation: Evaluation) -> None:
    loops = Loops.of(evaluation)
    labels = loops.labels[0]
    degraded, clean = (evaluation.logits(images[0]).argmax(1) for images in (loops.degraded, loops.clean))
    assert loops.robustbench() == pytest.approx(float((degraded == labels).float().mean()))
    assert loops.timm() == pytest.approx(100 * float((clean == labels).float().mean()))
    assert loops.naive() == int((clean != degraded).sum())


def test_a_probe_subset_weighs_as_much_as_it_is_of_a_cell() -> None:
    assert engine._whole_cell(1.0, 1.0, 1.0, 1.0) == 1.0
    assert engine._whole_cell(1.0, 1.1, 1.3, 1.6) == pytest.approx((512 * 1.1 + 512 * 1.3 + 256 * 0.6) / 1024)


def test_made_up_images_are_a_suite_of_balanced_classes() -> None:
    suite = smooth_suite(20, side=16)
    assert len(set(suite.manifest.ids)) == 20
    assert sorted(suite.manifest.labels.tolist()) == sorted([*range(10), *range(10)])
    assert suite.read(0).size == (16, 16)


def test_a_network_with_random_weights_is_taken_for_trained(tmp_path: Path) -> None:
    suite = smooth_suite(4, side=160)
    model = Pool("cpu").load(ModelEntry("test_vit"), lambda: trained("test_vit"))
    evaluation = Evaluation(suite, model, Settings(), tmp_path, "perf")
    assert evaluation.clean.row.n == 4
    evaluation.close()


@pytest.mark.thorough
def test_the_section_measures_every_loop() -> None:
    found = engine.measured(CPU)
    ratios = {m.subject: m.value for m in found.measurements if m.unit == LONGER}
    assert set(ratios) == {
        engine.POOLED, engine.PROBE, engine.WHOLE, engine.ROBUSTBENCH, engine.TIMM, engine.NAIVE,
        engine.CONVERSION,
    }  # fmt: skip
    assert all(value > 0 for value in ratios.values())
    assert found.notes == ["a model at 224 pixels takes longer than a quick run"]
