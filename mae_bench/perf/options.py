"""What the options of the forward pass change: predictions against float32, and the time of a cell."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from mae_bench.cells import Level
from mae_bench.evaluation import Evaluation
from mae_bench.images import BLOCK
from mae_bench.models.zoo import bundled
from mae_bench.perf.conditions import Conditions
from mae_bench.perf.engine import evaluated
from mae_bench.perf.measurement import LONGER, PREDICTIONS, Findings, Measurement
from mae_bench.perf.timing import Spread, Work, interleaved, ratio
from mae_bench.settings import Settings
from mae_bench.suites import SUITES

SECTION = "options"
MODELS = ("mae_ft_s0", "supervised_s0", "mae_probe_s0", "cnn_s0")
"""Trained ones: of random weights no prediction is worth counting."""
CELL = ("random_patch", Level(0.5))
IMAGES = 2048
TIMED = 1
"""Blocks of a cell that are timed."""
OPTIONS: dict[str, dict[str, bool | str]] = {
    "--mae-dtype bfloat16": {"dtype": "bfloat16"},
    "--mae-compile": {"compiles": True},
    "--mae-memory-format channels_last": {"memory_format": "channels_last"},
}
"""What is held against float32 as the model was built."""
ON_GPU: dict[str, dict[str, bool | str]] = {
    "--mae-dtype float16": {"dtype": "float16"},
    "--mae-dtype bfloat16 --mae-compile": {"dtype": "bfloat16", "compiles": True},
    "--mae-cuda-graphs": {"graphs": True},
    "--mae-prefetch none": {"prefetch": False},
    "--mae-dtype bfloat16 --mae-cuda-graphs": {"dtype": "bfloat16", "graphs": True},
}
"""The same on a GPU alone: a CPU gains nothing by them."""
WORTH = 0.001
"""Share of the predictions of a cell that a default may change."""


def measured(conditions: Conditions) -> Findings:
    findings = Findings()
    settings = Settings(device=str(conditions.device), limit=IMAGES)
    options = OPTIONS | (ON_GPU if conditions.device.type == "cuda" else {})
    asked = {name: replace(settings, **changes) for name, changes in options.items()}  # type: ignore[arg-type]
    compiler = os.environ.get("CXX", "g++")
    if conditions.device.type == "cpu" and shutil.which(compiler) is None:
        findings.notes.append(f"--mae-compile is left out: torch compiles for a CPU by {compiler}, which is not there")
        asked = {name: each for name, each in asked.items() if not each.compiles}
    suite = SUITES["fashion_mnist"].load(None)
    for model in MODELS:
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as held:
            evaluations = {
                name: held.enter_context(
                    evaluated(suite, model, partial(bundled, model), each, Path(scratch) / str(number))
                )
                for number, (name, each) in enumerate({"": settings, **asked}.items())
            }
            findings.measurements += _measurements(model, evaluations, conditions)
    better = worth_being_default(findings.measurements)
    findings.notes.append(
        f"worth being a default is what makes a cell of every model faster, beyond the noise, and changes at most "
        f"{100 * WORTH:g} % of the predictions of each: {', '.join(better) or 'none of these'}"
    )
    return findings


def _measurements(model: str, evaluations: Mapping[str, Evaluation], conditions: Conditions) -> list[Measurement]:
    """Of the evaluation called "", and those that are held against it."""
    predictions = {name: _predictions(evaluation) for name, evaluation in evaluations.items()}
    work = {
        name: Work(partial(evaluation.shard, *CELL, range(TIMED)), TIMED * BLOCK)
        for name, evaluation in evaluations.items()
    }
    seconds = interleaved(work, conditions.clock, conditions.rounds)
    found = []
    for name in list(evaluations)[1:]:
        for cell, prediction in predictions[name].items():
            case = f"{model}, {cell}, {len(prediction):,} images"
            changed = float((prediction != predictions[""][cell]).sum())
            found.append(Measurement.of(SECTION, case, name, PREDICTIONS, Spread.of([changed])))
        found.append(Measurement.of(SECTION, case, name, LONGER, ratio(seconds[name], seconds[""])))
    return found


def _predictions(evaluation: Evaluation) -> dict[str, np.ndarray]:
    degraded = evaluation.shard(*CELL, evaluation.blocks).prediction
    return {
        "clean": evaluation.clean.prediction,
        f"{CELL[0]}-{CELL[1]}": np.concatenate([degraded[block] for block in sorted(degraded)]),
    }


def worth_being_default(measurements: Sequence[Measurement], images: int = IMAGES) -> list[str]:
    """Options that make every cell faster and change next to no prediction (:data:`WORTH`)."""
    options = dict.fromkeys(one.subject for one in measurements)
    slower = {one.subject for one in measurements if one.unit == LONGER and one.high >= 1}
    other = {one.subject for one in measurements if one.unit == PREDICTIONS and one.value > WORTH * images}
    return [option for option in options if option not in slower | other]
