"""A run against its baseline: what fails it, what does not, and when a baseline may be written."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Project

COMMITTED = ("cells.csv", "outcomes.npz", "leaderboard.md", "leaderboard.csv", "history.csv")
CELLS = 13  # of the clean and the blur family
Wrong = dict[str, tuple[int, int] | None]


def said(result: pytest.RunResult) -> str:
    """All that was printed, in one line."""
    return re.sub(r"\s+", " ", f"{result.stdout} {result.stderr}")


def failed(result: pytest.RunResult) -> set[str]:
    """Ids of the cells whose test failed."""
    return set(re.findall(r"^FAILED test_x\.py::test_cell\[(.*?)\]", result.stdout.str(), re.MULTILINE))


def update(project: Project, *arguments: str, run: str = "before") -> pytest.RunResult:
    return project.run(
        "--mae-limit", "0", "--mae-update-baseline", "--mae-reason", "a test", "--mae-run", run, *arguments
    )


def committed(project: Project) -> dict[str, bytes]:
    folder = project.path / "results/imagefolder"
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def edit_table(path: Path, cell: str, **values: str) -> None:
    """Change fields of one cell in cells.csv."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if f"{row['model']}-{row['condition']}" == cell:
            row.update(values)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def worse(project: Project, wrong: Wrong) -> None:
    """Let the network be wrong in some cells from now on."""
    project.write("wrong.json", json.dumps(wrong))


def chance(lost: int, gained: int) -> float:
    """Probability of at least so many losses among the images that changed, were each a coin's toss."""
    changed = lost + gained
    return sum(comb(changed, k) for k in range(lost, changed + 1)) / 2**changed


def regressions(project: Project, run: str, min_drop: float = 0.003) -> set[str]:
    """Cells that the rule fails, from the committed outcomes and those of the run."""
    with np.load(project.path / "results/imagefolder/outcomes.npz") as file:
        before = dict(zip(file["cells"].tolist(), file["prediction"], strict=True))
        labels = file["labels"]
    fails = set()
    for cell, record in project.cells(run).items():
        was, now = before[cell] == labels, np.array(record["prediction"]) == labels
        lost, gained = int((was & ~now).sum()), int((~was & now).sum())
        if chance(lost, gained) <= 0.05 / len(before) and (lost - gained) / len(labels) >= min_drop:
            fails.add(cell)
    return fails


# --------------------------------------------------------------------------- no baseline, and making one

HOW = "make one with --mae-limit 0 --mae-update-baseline --mae-reason TEXT and commit it"


def test_without_a_baseline_a_run_says_how_to_make_one(project: Project) -> None:
    project.matrix("clean")
    result = project.run()
    assert result.ret == 0
    assert f"there is no baseline in {project.path / 'results/imagefolder'}: {HOW}" in said(result)
    assert HOW not in said(project.run("--mae-baseline", "none"))


@pytest.mark.parametrize("value", ["true", "1", "woodpecker"])
def test_continuous_integration_does_not_run_without_a_baseline(
    project: Project, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    project.matrix("clean")
    monkeypatch.setenv("CI", value)
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert HOW in said(result)
    assert "--mae-baseline none runs without one" in said(result)
    assert project.log == []
    project.run("--mae-baseline", "none").assert_outcomes(passed=1)


def test_continuous_integration_may_be_switched_off(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.matrix("clean")
    for value in ("", "0", "false"):
        monkeypatch.setenv("CI", value)
        project.run().assert_outcomes(passed=1)


def test_a_complete_run_makes_a_baseline_that_itself_passes(project: Project) -> None:
    project.matrix("clean", "blur", models=("bright",))
    result = update(project)
    assert result.ret == 0
    assert sorted(committed(project)) == sorted(COMMITTED)
    assert "written to" in said(result)
    for family in ("bright blur", "bright clean"):
        assert family in said(result)
    assert "there is no baseline" not in said(result)
    with (project.path / "results/imagefolder/cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ids = [f"{row['model']}-{row['condition']}" for row in rows]
    assert len(ids) == CELLS
    assert set(ids) == set(project.rows("before"))
    leaderboard = (project.path / "results/imagefolder/leaderboard.md").read_text()
    assert "| bright" in leaderboard

    before = committed(project)
    again = project.run()
    assert again.ret == 0
    assert f"{CELLS} unchanged, 0 pass, 0 inconclusive, 0 regression" in said(again)
    assert committed(project) == before
    assert update(project, run="again").ret == 0
    assert committed(project)["outcomes.npz"] == before["outcomes.npz"]


def test_a_baseline_may_lie_elsewhere(project: Project) -> None:
    project.matrix("clean")
    assert update(project, "--mae-baseline", "elsewhere").ret == 0
    assert {path.name for path in (project.path / "elsewhere").iterdir()} == set(COMMITTED)
    assert committed(project) == {}
    assert "1 unchanged" in said(project.run("--mae-baseline", "elsewhere"))


def test_continuous_integration_may_not_update_a_baseline(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.matrix("clean")
    update(project)
    before = committed(project)
    monkeypatch.setenv("CI", "true")
    result = update(project, run="after")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--mae-update-baseline is refused where CI is set" in said(result)
    assert committed(project) == before


def test_a_selection_of_a_family_never_becomes_a_baseline(project: Project) -> None:
    project.matrix("clean", "blur")
    result = update(project, "-k", "gaussian")
    # the clean cell has run too, and is the whole of its family
    assert "left as it was: colour blur: 9 cells did not run, such as box_blur-10.50" in said(result)
    with (project.path / "results/imagefolder/cells.csv").open(newline="") as file:
        assert [row["condition"] for row in csv.DictReader(file)] == ["clean-0.00"]


def test_a_family_with_a_failed_cell_is_left_as_it_was_and_the_others_are_updated(project: Project) -> None:
    project.matrix("clean", "blur")
    update(project)
    before = committed(project)
    worse(project, {"colour-clean-0.00": (0, 3), "colour-box_blur-10.50": None})
    result = update(project, run="after")
    assert result.ret == 1
    assert failed(result) == {"colour-box_blur-10.50"}
    assert "left as it was: colour blur: 1 cells did not run, such as box_blur-10.50" in said(result)
    assert "colour clean" in said(result)

    def lines(table: bytes) -> dict[str, str]:
        return {line.split(",")[6]: line for line in table.decode().splitlines()}

    old, new = lines(before["cells.csv"]), lines(committed(project)["cells.csv"])
    assert old.keys() == new.keys()
    assert {condition for condition in old if old[condition] != new[condition]} == {"clean-0.00"}


def test_a_part_of_the_images_never_becomes_a_baseline(project: Project) -> None:
    project.matrix("clean", per_class=200)
    result = project.run("--mae-limit", "1", "--mae-update-baseline", "--mae-reason", "a test")
    assert result.ret == 1
    assert "no model-family is complete, so the baseline stays as it was" in said(result)
    assert "colour clean: ran on 512 of 600 images; use --mae-limit 0" in said(result)
    assert committed(project) == {}


def test_a_part_of_the_levels_does_not_replace_all_of_them(project: Project) -> None:
    project.matrix("clean", "blur")
    update(project, "--mae-full")
    before = committed(project)
    result = update(project, run="after")
    assert "left as it was: colour blur: 8 cells did not run" in said(result)
    assert "(add --mae-full)" in said(result)
    assert committed(project)["cells.csv"].count(b"\n") == before["cells.csv"].count(b"\n") == 1 + 1 + 20


# --------------------------------------------------------------------------- the gate

WORSE: Wrong = {
    "colour-gaussian_blur-3.00": (20, 60),
    "colour-box_blur-10.50": (0, 9),  # the fewest losses that are significant among thirteen cells
    "colour-motion_blur-10.50": (0, 8),
    "colour-defocus_blur-6.00": (0, 1),
}
FAILS = {"colour-gaussian_blur-3.00", "colour-box_blur-10.50"}
LATER = "colour-motion_blur-10.50"  # which eight losses are enough for once those two are rejected


def test_a_worse_model_fails_exactly_the_cells_that_are_worse_by_the_rule(project: Project) -> None:
    project.matrix("clean", "blur", per_class=60)
    assert update(project).ret == 0
    before = committed(project)
    worse(project, WORSE)
    result = project.run("--mae-run", "after")
    assert result.ret == 1
    assert regressions(project, "after") == FAILS
    assert failed(result) == FAILS | {LATER}
    table = result.stdout.str().partition("FAILURES")[2]
    for word in ("cell", "before", "after", "lost", "gained", "p", "verdict"):
        assert re.search(rf"\b{word}\b", table)
    line = r"colour-gaussian_blur-3\.00 +100\.00 % +77\.78 % +-22\.22 +40 of 180 +0 +9\.1e-13 +regression"
    assert re.search(rf"{line} \(weights changed\)", table)
    assert "colour" in said(result).partition("Other weights than the baseline's under the same name: ")[2][:7]
    assert "9 unchanged, 0 pass, 2 inconclusive, 2 regression" in said(result)
    assert committed(project) == before


def test_options_move_the_gate(project: Project) -> None:
    project.matrix("clean", "blur", per_class=60)
    update(project)
    worse(project, WORSE)
    differing = "clean-0.00 or 3.00 or 10.50 or defocus_blur-6.00"  # and a few beside them
    for arguments, fails in (
        (("-k", differing), FAILS | {LATER}),
        (("-k", differing, "--mae-min-drop", "6"), {"colour-gaussian_blur-3.00"}),
        (("-k", differing, "--mae-tolerance", "5"), FAILS | {LATER}),
        (("-k", differing, "--mae-strict"), set(WORSE)),
        (("-k", differing, "--mae-strict", "--mae-tolerance", "5"), set(WORSE) - {"colour-defocus_blur-6.00"}),
        (("-k", differing, "--mae-baseline", "none"), set()),
        (("-k", "box"), {"colour-box_blur-10.50"}),
    ):
        result = project.run(*arguments)
        assert failed(result) == fails, arguments
        assert result.ret == bool(fails), arguments


def test_a_better_model_does_not_fail(project: Project) -> None:
    project.matrix("clean", "blur", per_class=60)
    worse(project, WORSE)
    update(project)
    (project.path / "wrong.json").unlink()
    result = project.run("--mae-strict")
    assert result.ret == 0
    assert "9 unchanged, 4 pass, 0 inconclusive, 0 regression" in said(result)


def test_updating_takes_a_worse_model_for_the_new_baseline(project: Project) -> None:
    project.matrix("clean", "blur", per_class=60)
    update(project)
    worse(project, WORSE)
    result = update(project, run="after")
    assert result.ret == 0
    assert "2 regression" in said(result)
    assert project.run().ret == 0


def test_a_clean_cell_that_ran_as_the_reference_is_listed_and_not_judged(project: Project) -> None:
    project.matrix("clean", "blur", per_class=60)
    update(project)
    worse(project, {"colour-gaussian_blur-1.00": (0, 60)})  # which hits the clean pass, since that comes first
    result = project.run("-k", "gaussian", "--mae-run", "after")
    assert result.ret == 0
    assert project.rows("after")["colour-clean-0.00"]["top1"] == pytest.approx(120 / 180)
    result.stdout.re_match_lines([r"colour-clean-0\.00 +100\.00 % +66\.67 % .* reference"])
    assert "3 unchanged, 0 pass, 0 inconclusive, 0 regression" in said(result)
    assert "3 of the 13 cells that the baseline holds of these models were judged" in said(result)
    worse(project, {"colour-clean-0.00": (0, 60)})
    assert failed(project.run("-k", "gaussian or clean-0.00")) == {"colour-clean-0.00"}


CROSSED = """
import pytest


@pytest.mark.clean
@pytest.mark.parametrize("again", [1, 2])
def test_twice(cell, again):
    cell.check()
"""


def test_a_cell_that_several_tests_run_counts_once(project: Project) -> None:
    project.matrix("clean", "blur", per_class=60)
    worse(project, {"colour-gaussian_blur-1.00": (0, 6)})
    update(project)
    project.write("test_y.py", CROSSED)
    # one rejected cell lets the next step reject a chance of 0.05/12, however many tests run that cell
    worse(project, {"colour-clean-0.00": (0, 9), "colour-gaussian_blur-1.00": (6, 26)})
    assert 0.05 / 12 < chance(20, 6) < 0.05 / (CELLS - 3)
    result = project.run("-k", "clean-0.00 or gaussian or test_twice")
    result.assert_outcomes(passed=3, failed=3, deselected=9)
    assert "2 unchanged, 0 pass, 1 inconclusive, 1 regression" in said(result)
    assert "Holm's later steps:" not in said(result)


# --------------------------------------------------------------------------- pytest-xdist


@pytest.mark.thorough  # starts a worker
def test_with_workers_too_a_missing_baseline_stops_cells_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.matrix("clean")
    project.write("test_plain.py", "def test_plain():\n    pass\n")
    monkeypatch.setenv("CI", "true")
    plain = project.run("-n", "1", "-k", "plain")
    plain.assert_outcomes(passed=1)
    assert "mae_bench:" not in said(plain)
    result = project.run("-n", "1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert HOW in said(result)
    assert "Traceback" not in said(result)
    assert project.log == []
    assert not (project.path / "results").exists()


@pytest.mark.thorough  # starts two workers
def test_workers_keep_a_model_together_and_give_the_same_rows_and_verdicts(project: Project) -> None:
    project.matrix("clean", "blur", models=("colour", "other"), per_class=60)
    assert update(project).ret == 0
    (project.path / "log.txt").unlink()
    project.write("test_y.py", CROSSED)
    worse(project, WORSE)
    result = project.run("-n", "2", "--mae-run", "after")
    assert result.ret == 1
    result.assert_outcomes(passed=2 * CELLS + 2 * 2 - 2, failed=2)
    # with twice as many cells nine losses are no longer significant at the first step
    assert regressions(project, "after") == {"colour-gaussian_blur-3.00"}
    assert failed(result) == FAILS
    assert "22 unchanged, 0 pass, 3 inconclusive, 1 regression" in said(result)
    for title in ("mae_bench: leaderboard", "mae_bench: against"):
        assert said(result).count(title) == 1
    # each model was built by one worker, and by the other at most once, when that had nothing else to do
    events = Counter(line for line in project.log if not line.startswith("forward"))
    for model in ("colour", "other"):
        assert 1 <= events[f"build {model}"] == events[f"free {model}"] <= 2
        # and every cell was run once, the clean one too
        images = [int(line.split()[2]) for line in project.log if line.startswith(f"forward {model} ")]
        assert sum(images) == CELLS * 180
    assert {"manifest.json", "cells.parquet", "leaderboard.md"} <= {p.name for p in (project.path / "after").iterdir()}
    rows, expected = project.rows("after"), project.rows("before")
    assert rows.keys() == expected.keys()
    for cell in rows:
        assert cell.startswith("colour") or rows[cell] == expected[cell], cell


@pytest.mark.thorough  # starts a worker
def test_workers_count_cells_of_models_that_a_subfolder_registers(project: Project) -> None:
    project.matrix("clean", "blur", per_class=60)
    for name in ("conftest.py", "networks.py", "test_x.py"):
        project.write(f"sub/{name}", (project.path / name).read_text())
        (project.path / name).unlink()
    update(project)
    # seven losses would be enough for a family of a few cells, not for thirteen
    assert 0.05 / CELLS < chance(7, 0) < 0.05
    project.write("sub/wrong.json", json.dumps({"colour-gaussian_blur-3.00": (0, 7)}))
    for workers in ("0", "1"):
        result = project.run("-n", workers)
        assert result.ret == 0
        assert "12 unchanged, 0 pass, 1 inconclusive" in said(result)


# --------------------------------------------------------------------------- Holm's later steps


def test_a_cell_that_only_a_later_step_rejects_is_named_at_the_end(project: Project) -> None:
    project.matrix("clean", "blur", per_class=60)
    update(project)
    # 1/2^8 lies between 0.05/13 and 0.05/12
    worse(project, {"colour-gaussian_blur-3.00": (0, 12), "colour-box_blur-10.50": (0, 8)})
    result = project.run()
    assert result.ret == 1
    assert failed(result) == {"colour-gaussian_blur-3.00", "colour-box_blur-10.50"}
    result.assert_outcomes(passed=CELLS - 2, failed=2)
    result.stdout.re_match_lines([r"colour-box_blur-10\.50 .* regression \(Holm\)"])


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.thorough)])
def test_a_later_step_is_told_to_whoever_writes_down_what_failed(
    project: Project, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    project.matrix("clean", "blur", per_class=60)
    update(project)
    worse(project, {"colour-gaussian_blur-3.00": (0, 12), "colour-box_blur-10.50": (0, 8)})
    summary = project.write("summary.md", "Before.\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    both = {"test_x.py::test_cell[colour-gaussian_blur-3.00]", "test_x.py::test_cell[colour-box_blur-10.50]"}
    result = project.run("-n", workers, "--junitxml", "junit.xml", "--mae-run", "after")
    assert result.ret == 1
    lastfailed = project.path / ".pytest_cache/v/cache/lastfailed"
    assert set(json.loads(lastfailed.read_text())) == both
    lastfailed.unlink()
    cases = ElementTree.parse(project.path / "junit.xml").findall(".//testcase")
    broken = {
        str(case.get("name")): str(case.find("failure").text) for case in cases if case.find("failure") is not None
    }
    assert set(broken) == {node.partition("::")[2] for node in both}
    assert "regression (Holm)" in broken["test_cell[colour-box_blur-10.50]"]
    page = (project.path / "after/comparison.md").read_text()
    assert "2 regressions" in page
    assert "colour-box_blur-10.50" in page
    assert summary.read_text().startswith("Before.\n## imagefolder against its baseline")
    assert "2 regressions" in summary.read_text()
    assert failed(project.run("--lf")) == {"colour-gaussian_blur-3.00", "colour-box_blur-10.50"}


@pytest.mark.thorough  # starts four workers
def test_verdicts_are_the_same_from_workers_and_after_a_resumed_part(project: Project) -> None:
    project.matrix("clean", "blur", models=("colour", "other"), per_class=60)
    update(project)
    worse(project, WORSE)
    whole = project.run("--mae-run", "whole")
    project.run("-k", "gaussian or defocus", "--mae-run", "parts")
    (project.path / "log.txt").unlink()
    for name, result in (
        ("workers", project.run("-n", "4", "--mae-run", "workers")),
        ("parts", project.run("--mae-resume", "--mae-run", "parts")),
    ):
        assert failed(result) == failed(whole) == FAILS
        assert result.ret == whole.ret == 1
        pages = [(project.path / run / "comparison.md").read_text() for run in ("whole", name)]
        assert "22 unchanged" in pages[0]
        assert [line for line in pages[0].splitlines() if "-" in line] == [
            line for line in pages[1].splitlines() if "-" in line
        ]


# --------------------------------------------------------------------------- the same weights on the same machine


def test_the_same_weights_that_predict_otherwise_on_the_same_machine_are_a_fault(project: Project) -> None:
    project.matrix("clean", "blur", per_class=60)
    update(project)
    project.write("drift.json", json.dumps({"colour-gaussian_blur-3.00": (0, 1)}))
    result = project.run("--mae-run", "after")
    assert result.ret == 1
    assert failed(result) == {"colour-gaussian_blur-3.00"}  # one image of 180, of which no test would make anything
    assert "Same weights, machine and libraries, yet 1 prediction in 1 cell changed" in said(result)
    result.stdout.re_match_lines([r"colour-gaussian_blur-3\.00 .* determinism fault"])
    assert update(project, run="again").ret == 0  # which is the way to accept it
    assert project.run().ret == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("machine", "another"), ("machine", ""), ("libraries", "kornia 0.1"), ("threads", "77"), ("batch_size", "3"),
     ("torch_version", "1.0")],
)  # fmt: skip
def test_across_machines_a_difference_is_tested_and_the_manifest_says_so(
    project: Project, name: str, value: str
) -> None:
    project.matrix("clean", per_class=60)
    update(project)
    folder = project.path / "results/imagefolder"
    edit_table(folder / "cells.csv", "colour-clean-0.00", **{name: value})
    (folder / "history.csv").unlink()
    project.write("drift.json", json.dumps({"colour-clean-0.00": (0, 1)}))
    result = project.run("--mae-run", "after")
    assert result.ret == 0
    assert "1 inconclusive" in said(result)
    baseline = json.loads((project.path / "after/manifest.json").read_text())["baseline"]
    assert baseline["path"] == str(folder)
    (difference,) = baseline["differs"]
    assert (difference["field"], difference["there"]) == (name, value or "unknown")


def test_a_later_step_alone_fails_the_run(project: Project) -> None:
    project.matrix("clean", "blur", per_class=60)
    worse(project, {"colour-box_blur-10.50": (0, 7)})
    update(project)
    # nine losses are rejected at the first step, yet too small a drop to fail; which lets the second step
    # reject twenty-two losses against seven gains, whose chance too lies between 0.05/13 and 0.05/12
    assert chance(9, 0) < 0.05 / 13 < chance(22, 7) < 0.05 / 12
    first = {"colour-gaussian_blur-3.00": (0, 9)}
    second = {"colour-box_blur-10.50": (7, 29)}
    worse(project, {**first, **second})
    result = project.run("--mae-min-drop", "6")
    assert failed(result) == {"colour-box_blur-10.50"}
    assert result.ret == 1
    worse(project, {**second})
    assert project.run("--mae-min-drop", "6").ret == 0


def test_a_selection_says_that_later_steps_wait(project: Project) -> None:
    project.matrix("clean", "blur", per_class=60)
    update(project)
    worse(project, {"colour-gaussian_blur-3.00": (0, 8)})
    result = project.run("-k", "gaussian")
    assert result.ret == 0
    assert "Holm's later steps wait for the others" in said(result)


# --------------------------------------------------------------------------- baselines that cannot be compared


def test_cells_that_differ_in_what_must_agree_are_listed_with_the_field(project: Project) -> None:
    project.matrix("clean", "blur")
    update(project)
    table = project.path / "results/imagefolder/cells.csv"
    edit_table(table, "colour-gaussian_blur-1.00", seed="5")
    edit_table(table, "colour-gaussian_blur-3.00", degradation_version="9")
    edit_table(table, "colour-gaussian_blur-6.00", view="32x32 bicubic center 1.000")
    (table.parent / "history.csv").unlink()
    result = project.run("-k", "gaussian or box")
    assert result.ret == 0
    assert "3 unchanged" in said(result)
    for line in (
        r"colour-gaussian_blur-1\.00 +seed +0 +5",
        r"colour-gaussian_blur-3\.00 +degradation_version +1 +9",
        r"colour-gaussian_blur-6\.00 +view +16x16 bilinear .* +32x32 bicubic",
    ):
        assert re.search(line, result.stdout.str()), line


def test_a_run_of_which_nothing_can_be_compared_fails(project: Project) -> None:
    project.matrix("clean", "blur")
    update(project)
    result = project.run("--mae-seed", "1", "-k", "gaussian")
    result.assert_outcomes(passed=3, deselected=10)
    assert result.ret == 1
    assert re.search(r"colour-gaussian_blur-1\.00 +seed +1 +0", result.stdout.str())
    assert "no cell is comparable with" in said(result)
    assert "they differ in seed; run as the baseline was, name another with --mae-baseline DIR, or none" in said(result)


def test_a_new_model_and_a_new_level_are_told_apart(project: Project) -> None:
    project.matrix("clean", "blur")
    update(project)
    project.models("colour", "newcomer")
    result = project.run("--mae-full", "-k", "gaussian or newcomer-clean-0.00")
    assert result.ret == 0
    assert re.search(r"colour-gaussian_blur-2\.00 +level +2\.00 +1\.00, 3\.00, 6\.00", result.stdout.str())
    assert "cells are new, the baseline lacks them: model newcomer" in said(result)


def test_only_the_images_that_both_have_are_compared(project: Project) -> None:
    project.matrix("clean")
    update(project)
    (project.path / "data/b/0.png").unlink()
    project.images(folder="more", seed=7, per_class=3)
    for path in (project.path / "more/g").iterdir():
        path.rename(project.path / "data/g" / f"more{path.name}")
    worse(project, {"colour-clean-0.00": (0, 17)})
    result = project.run("--mae-run", "after")
    assert project.rows("after")["colour-clean-0.00"]["n"] == 17
    result.stdout.re_match_lines([r"colour-clean-0\.00 +100\.00 % +0\.00 % +-100\.00 +14 of 14 "])


def test_images_of_which_the_baseline_has_none_are_refused(project: Project) -> None:
    project.matrix("clean")
    update(project)
    before = committed(project)
    project.images(folder="others", seed=1)
    result = project.run("--mae-data", "others")
    assert result.ret == 1
    assert "have no image in common" in said(result)
    assert "name another with --mae-baseline DIR, or none" in said(result)
    assert committed(project) == before


def test_a_baseline_of_another_suite_is_refused(project: Project) -> None:
    project.matrix("clean")
    update(project)
    (project.path / "log.txt").unlink()
    text = project.path / "pytest.ini"
    text.write_text(text.read_text().replace("mae_data = data\n", "").replace("imagefolder", "fashion_mnist"))
    result = project.run("--mae-baseline", "results/imagefolder")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    folder = project.path / "results/imagefolder"
    assert f"baseline {folder} is of suite imagefolder, the run is of fashion_mnist: name another" in said(result)
    assert project.log == []


def other_schema(folder: Path) -> None:
    with np.load(folder / "outcomes.npz") as file:
        arrays = dict(file)
    np.savez(folder / "outcomes.npz", **(arrays | {"schema_version": np.array(99)}))


def other_schema_of_rows(folder: Path) -> None:
    edit_table(folder / "cells.csv", "colour-clean-0.00", schema_version="99")


def no_number(folder: Path) -> None:
    edit_table(folder / "cells.csv", "colour-clean-0.00", n="many")


def without_outcomes(folder: Path) -> None:
    (folder / "outcomes.npz").unlink()


def without_table(folder: Path) -> None:
    (folder / "cells.csv").unlink()


def cut_off(folder: Path) -> None:
    path = folder / "outcomes.npz"
    path.write_bytes(path.read_bytes()[:-300])


def other_cells(folder: Path) -> None:
    edit_table(folder / "cells.csv", "colour-clean-0.00", model="color")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (other_schema, ("outcomes.npz: schema 99, this mae_bench reads", "--mae-update-baseline")),
        (other_schema_of_rows, ("cells.csv, line 2: row schema 99 is not known here", "restore the file")),
        (no_number, ("cells.csv, line 2: ", "restore the file")),
        (without_outcomes, ("outcomes.npz is missing; restore it",)),
        (without_table, ("cells.csv is missing; restore it",)),
        (cut_off, ("outcomes.npz: not a file of outcomes", "restore it or make the baseline again")),
        (other_cells, ("cells.csv and outcomes.npz hold different cells; restore both",)),
    ],
)
def test_a_baseline_that_cannot_be_read_is_named_before_anything_runs(
    project: Project, spoil: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    project.matrix("clean")
    update(project)
    (project.path / "log.txt").unlink()
    spoil(project.path / "results/imagefolder")
    (project.path / "results/imagefolder/history.csv").unlink()  # which knows what the files were
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert str(project.path / "results/imagefolder") in said(result)
    for word in words:
        assert word in said(result)
    assert "Traceback" not in said(result)
    assert project.log == []
