"""Runs to report: models of known strength, whose predictions are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae_bench.labelled_images import LabelledImages, first_copies
from mae_bench.paired_comparison import Pair, PairedComparison
from mae_bench.report import REPORT, page
from mae_bench.report.contents import Contents
from mae_bench.report.differences import write_differences
from mae_bench.representation import Representation
from mae_bench.side import Side
from mae_bench.store import RunDirectory, cell_of

IMAGES = 300
CLASSES = ("shirt", "boot", "bag")
CONDITIONS = ("gaussian_blur-1.00", "gaussian_blur-3.00", "random_patch-0.25", "random_patch-0.50", "fog-s3")
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\u202e"


def indicators(seed: int) -> list[dict[str, Any]]:
    """Of three layers and two heads."""
    generator = np.random.default_rng(seed)
    empty = {"low": None, "high": None, "reason": None}
    found = [
        {"indicator": "alignment_centered", "layer": k, "head": None, "token": "mean_patch", **empty} for k in range(4)
    ]
    found += [
        {"indicator": "retention_adjusted", "layer": k, "head": h, "token": "mean_patch", **empty}
        for k in range(1, 4)
        for h in (None, 0, 1)
    ]
    return [{**record, "value": float(generator.uniform())} for record in found]


def write_report(run: Path) -> Path:
    """The report of a run directory, in it."""
    place = run / REPORT
    page.write_report(Contents.of(RunDirectory(run)), place)
    return place


def comparison_of(run: Path, old: str, new: str) -> PairedComparison:
    """Two models of a run, one against the other."""
    side = Side.load(str(run), run)
    return PairedComparison.of(side, side, [Pair(old, new), Pair(new, new)])


def write_comparison(run: Path, old: str, new: str) -> Path:
    """The page of :func:`comparison_of`, in the run directory."""
    place = run / "differences.html"
    write_differences(comparison_of(run, old, new), place)
    return place


@pytest.fixture
def make_run(tmp_path: Path, cell_result: Callable[..., Any]) -> Callable[..., Path]:
    """Writes a run of ``models``, each a little weaker than the one before it."""

    def make(models: Sequence[str] = ("strong", "middle", "weak"), name: str = "run") -> Path:
        generator = np.random.default_rng(0)
        labels = generator.integers(0, len(CLASSES), IMAGES)
        ids = [f"{k:032x}-0" for k in range(IMAGES)]
        run = RunDirectory.create(tmp_path / name, resume=False)
        run.write_images(LabelledImages(ids, labels, list(CLASSES), first_copies(ids)))
        run.write_manifest({"run_id": name, "suite": "fashion_mnist", "data": None, "manifest_hash": "", "parts": None})
        for rank, model in enumerate(models):
            for number, condition in enumerate(("clean-0.00", *CONDITIONS)):
                share = (0.95 - 0.05 * rank) * 0.8**number
                right = generator.random(IMAGES) < share
                prediction = np.where(right, labels, (labels + 1) % len(CLASSES))
                clean = condition == "clean-0.00"
                seed = 10 * rank + number
                result = cell_result(
                    f"{model}-{condition}",
                    prediction,
                    labels,
                    indicators=[] if clean else indicators(seed),
                    retained=None if clean else share,
                    alignment_centered_mean_patch=None if clean else share / 2,
                    retention_adjusted=None if clean else share / 3,
                    classes=len(CLASSES),
                    view="28x28 bilinear center 1.0",
                    n_expected=IMAGES,
                )
                run.write_cell(result)
                if clean:
                    records = [
                        {"indicator": "attention_distance_ratio", "layer": k, "head": h, "token": "all", "value": 0.5,
                         "low": None, "high": None, "reason": None}
                        for k in range(1, 4)
                        for h in (0, 1)
                    ]  # fmt: skip
                    run.write_representation(cell_of(result.row), Representation(result.row.to_dict(), records))
        return run.path

    return make
