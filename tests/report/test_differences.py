"""The page of a comparison says what was found, all of it, and does nothing that a name asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mae_bench.cells import Level
from mae_bench.paired_comparison import PairedComparison
from mae_bench.report import differences
from tests.report.conftest import CONDITIONS, HOSTILE, comparison_of, write_comparison
from tests.report.test_page import Page


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    return make_run()


@pytest.fixture
def found(run: Path) -> PairedComparison:
    return comparison_of(run, "weak", "strong")


def test_a_page_asks_the_network_for_nothing(run: Path) -> None:
    page = write_comparison(run, "weak", "strong").read_text()
    assert all(address.startswith(("#", "data:")) for address in Page(page).addresses)
    assert "default-src 'none'" in page
    assert "unsafe-eval" not in page
    assert len(page.encode()) < 300_000


def test_every_number_is_on_the_page(found: PairedComparison) -> None:
    read = Page(differences.page(found))
    header, *lines = read.tables["differences"]
    assert header == list(found.cell_header)
    assert sorted(lines) == sorted(found.cell_lines(found.cells))
    assert read.tables["means"][1:] == found.mean_lines(found.means)
    text = " ".join("".join(read.text).split())
    for sentence in (found.answer, found.legend, *found.remarks):
        assert sentence in text
    points = [float(line[header.index("points")]) for line in lines]
    worst = [line for line in lines if line[-1] == "worse"]
    assert lines[: len(worst)] == worst
    assert points[0] == min(points) or not worst


def test_every_chart_is_drawn_with_the_table_of_its_numbers(found: PairedComparison) -> None:
    charts = [differences.families(found), *differences.levels(found)]
    assert [chart.name for chart in charts if chart] == [
        "families",
        *(f"levels-{f}" for f in ("blur", "occlusion", "imagenet_c")),
    ]
    read = Page(differences.page(found))
    for chart in charts:
        assert chart is not None
        assert len(read.tables[f"behind-{chart.name}"]) == 1 + len(chart.table)
        assert ElementTree.fromstring(chart.to_svg()).tag.endswith("svg")
        assert (
            (chart.table["low"] <= chart.table["difference"]) & (chart.table["difference"] <= chart.table["high"])
        ).all()
    drawn = {
        (line.model, line.degradation, line.level): line.difference
        for chart in charts[1:]
        if chart is not None
        for line in chart.table.itertuples()
    }
    assert len(drawn) == 2 * len(CONDITIONS)
    for cell in found.cells:
        name, level = cell.condition.rsplit("-", 1)
        if name != "clean":
            assert drawn[str(cell.pair), name, Level.parse(level).value] == pytest.approx(100 * cell.difference)


def test_where_nothing_was_compared_the_page_says_so(found: PairedComparison) -> None:
    empty = PairedComparison(found.a, found.b, found.suite, found.rule, (), (), (), ())
    text = " ".join("".join(Page(differences.page(empty)).text).split())
    assert "No cell could be compared." in text
    assert "None did." in text


def test_a_hostile_name_stays_text(make_run: Callable[..., Path]) -> None:
    hostile = write_comparison(make_run((HOSTILE, "other")), "other", HOSTILE).read_text()
    usual = write_comparison(make_run(("plain", "other"), "plain"), "other", "plain").read_text()
    assert Page(hostile).elements == Page(usual).elements
    assert any("onerror=alert(1)" in cell for line in Page(hostile).tables["differences"] for cell in line)
    assert "\u202e" not in hostile
