"""Options of the forward pass are held against float32, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mae_bench.models.classifier import Classifier
from mae_bench.models.zoo import bundled
from mae_bench.perf import options
from mae_bench.perf.conditions import Conditions
from mae_bench.perf.measurement import LONGER, PREDICTIONS, Measurement
from mae_bench.perf.options import worth_being_default
from mae_bench.suites import SUITES

IMAGES = 512


def test_predictions_that_an_option_changes_are_counted(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:  # noqa: ARG001
    name, lowered = "mae_probe_s0", "--mae-dtype bfloat16"
    monkeypatch.setattr(options, "MODELS", (name,))
    monkeypatch.setattr(options, "IMAGES", IMAGES)
    monkeypatch.setattr(options, "TIMED", 1)
    monkeypatch.setattr(options, "OPTIONS", {lowered: options.OPTIONS[lowered]})
    found = options.measured(Conditions(torch.device("cpu"), rounds=1))
    counted = {one.case: one.value for one in found.measurements if one.unit == PREDICTIONS}
    assert [one.value > 0 for one in found.measurements if one.unit == LONGER] == [True]

    suite = SUITES["fashion_mnist"].load(None)
    pixels = np.stack([np.asarray(suite.read(position)) for position in range(IMAGES)])
    images = torch.from_numpy(pixels).reshape(IMAGES, 1, 28, 28).float() / 255
    network = Classifier.of(name, bundled(name)).eval()
    with torch.inference_mode():
        exact = network(images).argmax(1)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(images).argmax(1)
    assert counted[f"{name}, clean, {IMAGES} images"] == int((exact != rounded).sum())
    assert f"{name}, random_patch-0.50, {IMAGES} images" in counted


def of(subject: str, unit: str, value: float) -> Measurement:
    return Measurement("options", "a model", subject, unit, value, value - 0.01, value + 0.01)


def test_a_default_is_faster_for_every_model_and_changes_next_to_nothing() -> None:
    faster = [of(name, LONGER, 0.9) for name in ("fast", "fast but wrong", "fast for one model")]
    slower = [of("fast for one model", LONGER, 1.2), of("as fast as before, but for noise", LONGER, 0.995)]
    wrong = [of("fast", PREDICTIONS, 1), of("fast but wrong", PREDICTIONS, 3)]
    assert worth_being_default([*faster, *slower, *wrong], images=1000) == ["fast"]
