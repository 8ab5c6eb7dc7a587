"""Checkpoints along trainings, evaluated: degraded against clean accuracy while a model is still learning."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mae_bench.cells import Level
from mae_bench.degradations import ladders
from mae_bench.errors import BenchError
from mae_bench.evaluation import Evaluation
from mae_bench.evidence import Trajectories
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.models.zoo import digest, load_weights
from mae_bench.settings import Settings
from mae_bench.store import write_atomically
from mae_bench.suites import Suite

FAMILIES = ("clean", "blur", "occlusion", "token_drop")
_NAME = re.compile(r"(?P<model>.+)@(?P<share>[01]\.\d)")


def conditions(suite: Suite) -> list[tuple[str, Level]]:
    """Degradations and levels of the default matrix that checkpoints are evaluated under."""
    return [(kind.name, level) for kind, level in ladders.conditions(suite.entry) if kind.family in FAMILIES]


def evaluated(
    folder: Path, suite: Suite, settings: Settings, scratch: Path, report: Callable[[str], None] = print
) -> Trajectories:
    """How many images of each of the first blocks the checkpoints ``<model>@<share>.safetensors`` in ``folder``
    classify rightly, under each of :func:`conditions`. What was evaluated before is read from ``folder/correct.json``,
    which grows with each finished checkpoint.

    Raises:
        BenchError: there is no checkpoint, one cannot be loaded, those evaluated before saw other images, or what was
            written of them is damaged.
    """
    paths = sorted(path for path in folder.glob("*.safetensors") if _NAME.fullmatch(path.stem))
    if not paths:
        raise BenchError(
            f"{folder} holds no checkpoint <model>@<share>.safetensors: mae-bench train leaves them in its --out"
        )
    images = suite.manifest.subset(settings.limit)
    record = folder / "correct.json"
    known: dict[str, Any] = {"manifest": suite.manifest_hash, "images": images, "checkpoints": {}}
    if record.exists():
        known = _read(record)
    if (known["manifest"], known["images"]) != (suite.manifest_hash, images):
        raise BenchError(
            f"{record} is of {known['images']} images of manifest {known['manifest']}, not of {images} of "
            f"{suite.manifest_hash}: use the same limit, or remove it"
        )
    finished: dict[str, dict[str, Any]] = known["checkpoints"]
    pool = Pool(settings.device)
    for path in paths:
        weights = digest(path)
        if finished.get(path.stem, {}).get("sha256") == weights:
            continue
        model = pool.load(ModelEntry(path.stem.replace("@", "_at_")), partial(load_weights, path))
        evaluation = Evaluation(suite, model, settings, scratch, run_id="trajectories")
        try:
            correct = {}
            for name, level in conditions(suite):
                result = evaluation.run(name, level)
                if result.row.status != "not_applicable":
                    correct[result.row.condition] = [round(hits) for hits in result.block_sums["hits"]]
        finally:
            evaluation.close()
            pool.release()
        finished[path.stem] = {"sha256": weights, "correct": correct}
        write_atomically(record, (json.dumps(known, indent=1) + "\n").encode())
        report(f"{path.stem}: clean top-1 {sum(correct['clean-0.00']) / images:.4f}")
    return _trajectories(images, {path.stem: finished[path.stem]["correct"] for path in paths})


def _read(record: Path) -> dict[str, Any]:
    """Raises:
    BenchError: ``record`` is not what :func:`evaluated` writes.
    """
    try:
        known: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        counts = [per_block for held in known["checkpoints"].values() for per_block in held["correct"].values()]
        whole = type(known["manifest"]) is str and all(type(count) is int for each in counts for count in each)
        if not whole or type(known["images"]) is not int:
            raise ValueError("a field is of another type")
        return known
    except (OSError, LookupError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise BenchError(
            f"{record}: cannot be read ({error}); restore it, or remove it to have the checkpoints evaluated again"
        ) from error


def _trajectories(images: int, correct: dict[str, dict[str, list[int]]]) -> Trajectories:
    found = Trajectories(images)
    for name, counts in correct.items():
        match = _NAME.fullmatch(name)
        assert match is not None
        hits = {condition: tuple(per_block) for condition, per_block in counts.items()}
        found.correct.setdefault(match["model"], {})[float(match["share"])] = hits
    return found
