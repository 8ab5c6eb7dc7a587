"""What a report says is worst, against looking at every image of every cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mae_bench.report import ReportError
from mae_bench.report.contents import Contents
from mae_bench.store import RunDirectory, StoreError, cell_of
from tests.report.conftest import write_report


@pytest.fixture
def contents(make_run: Callable[..., Path]) -> Contents:
    return Contents.of(RunDirectory(make_run()))


def lost_of(contents: Contents, position: int, family: str | None = None) -> tuple[int, int]:
    """In how many cells an image is wrong that is right when clean, and of how many."""
    results = {cell_of(result.row).id: result for result in contents.results}
    lost = of = 0
    for name, result in results.items():
        row = result.row
        if row.family == "clean" or family not in (None, row.family):
            continue
        before = results[f"{row.model}-clean-0.00"].prediction[position] == contents.images.labels[position]
        after = results[name].prediction[position] == contents.images.labels[position]
        of += before
        lost += before and not after
    return int(lost), int(of)


def test_images_are_lost_as_often_as_a_loop_over_cells_says(contents: Contents) -> None:
    lost, of = contents.lost
    for position in range(0, len(lost), 7):
        assert (lost[position], of[position]) == lost_of(contents, position)
    worst = contents.worst_images
    known = [i for i in range(len(lost)) if of[i] == max(of)]
    shares = sorted((lost[i] / of[i] for i in known), reverse=True)
    assert [lost[i] / of[i] for i in worst] == shares[: len(worst)]


def test_classes_are_lost_as_often_as_a_loop_over_images_says(contents: Contents) -> None:
    assert len(contents.worst_classes) == 3
    for name, shares in contents.worst_classes.items():
        members = np.flatnonzero(contents.images.labels == contents.images.classes.index(name))
        for family, share in shares.items():
            pairs = [lost_of(contents, int(i), family) for i in members]
            assert share == pytest.approx(sum(lost for lost, _ in pairs) / sum(of for _, of in pairs))


def test_every_degradation_of_every_model_has_a_breaking_point(contents: Contents) -> None:
    points = {(point.model, point.degradation): point for point in contents.breaking_points}
    assert len(points) == 3 * 3
    row = {cell_of(row).id: row for row in contents.rows}
    weak = points["weak", "gaussian_blur"]
    assert weak.top1 == row["weak-gaussian_blur-3.00"].top1
    assert weak.kept == pytest.approx(weak.top1 / row["weak-clean-0.00"].top1)
    assert [point.kept for point in contents.breaking_points] == sorted(p.kept for p in contents.breaking_points)


def test_a_run_without_a_finished_cell_has_no_report(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", resume=False)
    with pytest.raises(ReportError, match="no clean cell is finished"):
        write_report(tmp_path / "run")
    assert not (tmp_path / "run/report.html").exists()


def test_a_part_of_a_run_without_its_clean_cells_has_no_report(make_run: Callable[..., Path]) -> None:
    run = make_run()
    for path in run.glob("cells/*/clean-0.00.json"):
        path.unlink()
    with pytest.raises(ReportError, match="no clean cell is finished"):
        write_report(run)


def test_a_damaged_comparison_is_named(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "comparison.json").write_text("{}")
    with pytest.raises(StoreError, match=r"comparison\.json: cannot be read"):
        write_report(run)
