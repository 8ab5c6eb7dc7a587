"""Runs verified: whole ones have no findings, and whatever is wrong is named with its place and a remedy."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mae_bench.cells import Cell
from mae_bench.outcomes import Outcomes
from mae_bench.rows import CellResult
from mae_bench.seals import sealed, unsealed
from mae_bench.store import RunDirectory, StoreError, cell_of
from mae_bench.tables import write_tables
from mae_bench.verify import verification
from references.runs import CELLS, Sessions

SCHEMA_1 = Path(__file__).parent / "data" / "schema_1" / "run"
CELL, OTHER = "vit-clean-0.00", "vit-gaussian_blur-3.00"


@pytest.fixture(scope="session")
def sessions(cell_result: Callable[..., CellResult]) -> Sessions:
    return Sessions(cell_result)


@pytest.fixture(scope="session")
def left(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as it was left."""
    return sessions.leave(tmp_path_factory.mktemp("left") / "run", CELLS[:5], CELLS[:2], tables=True).path


@pytest.fixture
def run(left: Path, tmp_path: Path) -> RunDirectory:
    """A copy of it, to be spoilt."""
    shutil.copytree(left, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_whole_runs_have_no_findings(left: Path, run: RunDirectory) -> None:
    for path in (left, run.path):
        found = verification(path)
        assert (found.findings, found.cells, found.partial, found.representations) == ((), 5, 0, 2)
    found = verification(SCHEMA_1)
    assert (found.findings, found.cells, found.representations) == ((), 4, 2)


def test_run_on_a_part_of_the_images_is_whole_and_said_to_be_partial(sessions: Sessions, tmp_path: Path) -> None:
    run = sessions.leave(tmp_path / "run", [CELL])
    result = sessions.result(CELL)
    first, hits = result.prediction[:8], int((result.prediction[:8] == sessions.images.labels[:8]).sum())
    row = replace(result.row, n=8, status="partial", subset="first 8 of 12", top1=hits / 8, distinct=8)
    run.write_cell(replace(result, row=row, prediction=first, block_sums={"images": [8.0], "hits": [float(hits)]}))
    write_tables(run, run.cells(), Outcomes.of(run.cells(), sessions.images))
    found = verification(run.path)
    assert (found.findings, found.cells, found.partial) == ((), 1, 1)


def test_cell_that_a_model_cannot_have_is_whole(sessions: Sessions, tmp_path: Path) -> None:
    run = sessions.leave(tmp_path / "run", ["cnn-clean-0.00"])
    result = sessions.result("cnn-token_drop-0.50")
    row = replace(result.row, n=0, status="not_applicable", top1=None, distinct=None, subset="first 12 of 12")
    run.write_cell(CellResult(row, np.zeros(0, dtype=np.int64), [], {}, "a CNN has no tokens"))
    write_tables(run, run.cells(), Outcomes.of(run.cells(), sessions.images))
    assert verification(run.path).findings == ()


# --------------------------------------------------------------------------- what is found


Spoil = Callable[[RunDirectory, Sessions], object]


def removed(name: str) -> Spoil:
    return lambda run, _: (run.path / name).unlink()


def flipped(name: str, place: float = 0.5) -> Spoil:
    def flip(run: RunDirectory, _: Sessions) -> None:
        path = run.path / name
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return flip


def rewritten(name: str, **changes: Any) -> Spoil:
    """Something else under a seal that is right."""

    def rewrite(run: RunDirectory, _: Sessions) -> None:
        path = run.path / name
        path.write_bytes(sealed({**unsealed(path.read_bytes())[0], **changes}))

    return rewrite


def rerun(**changes: Any) -> Spoil:
    """A cell whose row says something else."""
    return lambda run, sessions: run.write_cell(sessions.result(OTHER, **changes))


def added(**changes: Any) -> Spoil:
    """Another cell of a model that is in the tables."""
    return lambda run, sessions: run.write_cell(sessions.result(CELLS[6], **changes))


def refilled(**changes: Any) -> Spoil:
    """A cell behind whose row is something else."""
    return lambda run, sessions: run.write_cell(replace(sessions.result(OTHER), **changes))


def moved(source: str, target: str) -> Spoil:
    def move(run: RunDirectory, _: Sessions) -> None:
        (run.path / target).parent.mkdir(parents=True, exist_ok=True)
        (run.path / source).rename(run.path / target)

    return move


def table(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Spoil:
    return lambda run, _: change(pd.read_parquet(run.path / name)).to_parquet(run.path / name, index=False)


def cell_table(column: str, value: object) -> Spoil:
    return table("cells.parquet", lambda frame: frame.assign(**{column: value}))


def outcomes(change: Callable[[Outcomes], object]) -> Spoil:
    def spoil(run: RunDirectory, _: Sessions) -> None:
        held = Outcomes.load(run.path / "outcomes.npz")
        change(held)
        held.save(run.path / "outcomes.npz")

    return spoil


CELL_FILE, OTHER_FILE = "cells/vit/clean-0.00.json", "cells/vit/gaussian_blur-3.00.json"
REPRESENTATION = "representations/vit/clean-0.00.json"
SPOILT: dict[str, tuple[Spoil, str, str]] = {
    "no manifest": (removed("manifest.json"), "manifest.json", "is missing"),
    "a damaged manifest": (flipped("manifest.json"), "manifest.json", "sha256"),
    "a manifest of other images": (rewritten("manifest.json", manifest_hash="x"), "manifest.json", "manifest_hash x"),
    "a manifest of other runs": (rewritten("manifest.json", parts={"x": {}}), "manifest.json", "does not name run run"),
    "a manifest of another suite": (rewritten("manifest.json", suite="cifar10"), CELL_FILE, "the run of cifar10"),
    "no images": (removed("images.json"), "images.json", "is missing"),
    "damaged images": (flipped("images.json"), "images.json", "sha256"),
    "other labels": (rewritten("images.json", labels=[0] * 12), CELL_FILE, "other images than images.json"),
    "no model": (removed("models/vit.json"), "models/vit.json", "is missing"),
    "a damaged model": (flipped("models/vit.json"), "models/vit.json", "sha256"),
    "a model of other weights": (rewritten("models/vit.json", weights_hash="x"), CELL_FILE, "vit has x"),
    "no plan": (removed("plan.json"), "plan.json", "is missing"),
    "a damaged plan": (flipped("plan.json"), "plan.json", "sha256"),
    "a planned cell": (lambda run, _: run.write_plan([CELLS[9]], []), "plan.json", f"cell {CELLS[9]} was planned"),
    "a cell that is gone": (removed(OTHER_FILE), "plan.json", f"cell {OTHER} was planned"),
    "a cell that is gone from under the tables": (removed(OTHER_FILE), "cells.parquet", f"holds {OTHER}, of which"),
    "a representation that is gone": (removed(REPRESENTATION), "plan.json", f"representation of {CELL} was planned"),
    "a flip in a cell": (flipped(CELL_FILE), CELL_FILE, "sha256"),
    "a flip in the seal": (flipped(CELL_FILE, 0.02), CELL_FILE, "remove it"),
    "a flip in a representation": (flipped(REPRESENTATION), REPRESENTATION, "sha256"),
    "a cell in the place of another": (moved(CELL_FILE, "cells/cnn/clean-0.00.json"), "cnn", f"it is of {CELL}"),
    "a representation in the place of another": (
        moved(REPRESENTATION, "representations/cnn/clean-0.00.json"), "cnn", f"it is of {CELL}"
    ),
    "a representation of another identity": (
        rewritten(REPRESENTATION, identity={"model": "x"}), REPRESENTATION, "model is x, and is to be vit"
    ),
    "a file that was cut off": (lambda run, _: (run.path / "cells/vit/.x1.partial").touch(), ".x1.partial", "cut off"),
    "a status that is none": (rerun(status="ok", n_expected=13), OTHER_FILE, "its status is ok with 12 of 13 images"),
    "another subset": (rerun(subset="first 5 of 12"), OTHER_FILE, "was to be of the first 5 of 12"),
    "another top1": (rerun(top1=0.99), OTHER_FILE, "its top1 is 0.99"),
    "no top1": (rerun(top1=None), OTHER_FILE, "its top1 is None"),
    "other classes": (rerun(classes=7), OTHER_FILE, "other classes than the 3"),
    "more distinct images": (rerun(distinct=12), OTHER_FILE, "11 of its images are no copies"),
    "other images": (rerun(manifest_hash="x"), OTHER_FILE, "other images than images.json"),
    "another suite": (rerun(suite="cifar10"), OTHER_FILE, "it is of suite cifar10"),
    "other weights": (rerun(weights_hash="x"), OTHER_FILE, "was evaluated with weights x"),
    "another setting": (rerun(dtype="bfloat16"), "cells.parquet", f"has another dtype of {OTHER} than its file"),
    "a further cell of another setting": (added(dtype="bfloat16"), "vit_b~", "from the cells of the tables in dtype"),
    "a further cell of another model": (added(view="x"), "vit_b~", "from the cells of the tables in view"),
    "a class that is none": (refilled(prediction=np.full(12, 3)), OTHER_FILE, "other classes"),
    "other predictions": (refilled(prediction=np.full(12, -1)), OTHER_FILE, "0 of its 12 predictions are right"),
    "other hits": (refilled(block_sums={"hits": [99.0]}), OTHER_FILE, "and 99 in its blocks"),
    "other blocks": (refilled(block_sums={"images": [5.0]}), OTHER_FILE, "its blocks are of 5 images"),
    "other indicators": (refilled(indicators=[]), "indicators.parquet", "is not what the cells say"),
    "other sums": (refilled(block_sums={"nll": [5.0]}), "outcomes.npz", f"its block sums of {OTHER}"),
    "a cell in no table": (added(), "cells.parquet", "lacks ViT-B"),
    "no table of cells": (removed("cells.parquet"), "cells.parquet", "is missing"),
    "no table of indicators": (removed("indicators.parquet"), "indicators.parquet", "is missing"),
    "no table of representations": (removed("representations.parquet"), "representations.parquet", "is missing"),
    "no outcomes": (removed("outcomes.npz"), "outcomes.npz", "is missing"),
    "a damaged table of cells": (flipped("cells.parquet", 1.0), "cells.parquet", "cannot be read"),
    "a damaged table of indicators": (flipped("indicators.parquet", 1.0), "indicators.parquet", "cannot be read"),
    "damaged outcomes": (flipped("outcomes.npz"), "outcomes.npz", "not a file of outcomes"),
    "another number in a table": (cell_table("nll", 0.125), "cells.parquet", f"has another nll of {CELL}"),
    "a number that is none": (cell_table("seconds", float("inf")), "cells.parquet", "cannot be read"),
    "another column in a table": (cell_table("mood", "good"), "cells.parquet", "cannot be read"),
    "a row twice": (
        table("indicators.parquet", lambda frame: pd.concat([frame, frame[:1]])), "indicators.parquet", "is not what"
    ),
    "other numbers of representations": (
        table("representations.parquet", lambda frame: frame.assign(value=0.5)),
        "representations.parquet", "is not what the representations say",
    ),
    "another prediction": (
        outcomes(lambda held: held.prediction[CELL].fill(-1)), "outcomes.npz", f"its prediction of {CELL}"
    ),
    "another label": (outcomes(lambda held: held.labels.fill(1)), "outcomes.npz", "its labels"),
    "another id": (outcomes(lambda held: held.ids.put(0, b"x-0")), "outcomes.npz", "its ids"),
    "other copies": (outcomes(lambda held: held.duplicate_of.put(11, 11)), "outcomes.npz", "its duplicate_of"),
    "another suite of outcomes": (outcomes(lambda held: setattr(held, "suite", "x")), "outcomes.npz", "its suite"),
    "outcomes of fewer cells": (outcomes(lambda held: held.prediction.pop(CELL)), "outcomes.npz", "its list of cells"),
}  # fmt: skip
REMEDIES = ("remove", "restore", "go on with --mae-resume", "merge", "run the", "make the")


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_wrong_is_found_with_its_place_and_a_remedy(run: RunDirectory, sessions: Sessions, how: str) -> None:
    spoil, place, what = SPOILT[how]
    spoil(run, sessions)
    findings = verification(run.path).findings
    assert [finding for finding in findings if str(run.path) in finding and place in finding and what in finding]
    assert all(any(remedy in finding for remedy in REMEDIES) for finding in findings)
    assert all("\n" not in finding for finding in findings)


def test_planned_representation_without_a_file_is_found(run: RunDirectory) -> None:
    run.write_plan([], [CELLS[4]])
    [finding] = verification(run.path).findings
    assert f"the representation of {CELLS[4]} was planned and is not finished" in finding


def test_older_file_of_a_cell_is_found(run: RunDirectory) -> None:
    """Where a name is no everyday one, schema 1 had the file elsewhere."""
    cell = Cell.parse(CELLS[4])
    record = json.loads(run.cell_path(cell).read_bytes())
    older = run.path / "cells" / cell.model / f"{cell.condition}.json"
    older.parent.mkdir()
    older.write_text(json.dumps({name: record[name] for name in record if name not in ("sha256", "schema_version")}))
    findings = verification(run.path).findings
    assert [finding for finding in findings if f"there is an older file of {cell.id} too" in finding]


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreError, match="not a run directory") as caught:
            verification(path)
        assert str(path) in str(caught.value)


def test_every_byte_of_the_truth_counts(run: RunDirectory) -> None:
    """Whatever byte of a cell or representation changes is found."""
    for path in (run.cell_path(Cell.parse(CELL)), run.representation_path(Cell.parse(CELL))):
        whole = path.read_bytes()
        digest = hashlib.sha256(whole).digest()
        for place in (int.from_bytes(digest[i : i + 2]) % len(whole) for i in range(0, 8, 2)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            assert [finding for finding in verification(run.path).findings if str(path) in finding]
        path.write_bytes(whole)
    assert verification(run.path).findings == ()


def test_cells_are_verified_without_torch(run: RunDirectory) -> None:
    shutil.rmtree(run.path / "representations")
    code = "import sys; from pathlib import Path; from mae_bench.verify import verification; "
    code += f"print(verification(Path({str(run.path)!r})).cells, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "5 False\n"


def test_verifying_changes_nothing(run: RunDirectory) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    verification(run.path)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    assert [cell_of(result.row).id for result in run.cells()] == sorted(CELLS[:5])
