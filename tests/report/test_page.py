"""The page of a run holds all that it shows, says what the run says, and does nothing that a name asks for."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mae_bench.report import charts
from mae_bench.report.contents import Contents
from mae_bench.report.pictures import parsed_view
from mae_bench.store import RunDirectory
from tests.report.conftest import CONDITIONS, HOSTILE, write_report

MOST = 3_000_000
"""Bytes of a page."""


class Page(HTMLParser):
    """The elements of a page, the text of its tables' cells by the table's id, and what its attributes name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.elements: list[str] = []
        self.text: list[str] = []
        self._table, self._cell = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        given = dict(attributes)
        self.addresses += [
            str(given[name]) for name in ("src", "href", "srcset", "action", "xlink:href") if name in given
        ]
        if tag == "table":
            self._table = str(given["id"])
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._cell:
            self.tables[self._table][-1][-1] += data


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    return make_run()


@pytest.fixture
def page(run: Path) -> str:
    return write_report(run).read_text()


def test_a_page_asks_the_network_for_nothing_and_is_small(page: str) -> None:
    read = Page(page)
    assert all(address.startswith(("#", "data:")) for address in read.addresses)
    assert page.count("<link ") == 1  # an empty icon
    assert "default-src 'none'" in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert len(page.encode()) < MOST


def test_the_leaderboard_is_that_of_the_run(run: Path, page: str) -> None:
    board = Contents.of(RunDirectory(run)).leaderboard
    header, *lines = Page(page).tables["leaderboard"]
    assert header == board.header
    assert lines == board.cells()
    of_csv = list(csv.DictReader(io.StringIO(board.to_csv())))
    assert [line[header.index("clean (%)")].split()[0] for line in lines] == [
        f"{100 * float(each['clean']):.1f}" for each in of_csv
    ]


def test_every_chart_has_a_description_and_the_table_of_its_numbers(run: Path, page: str) -> None:
    drawn = charts.charts(Contents.of(RunDirectory(run)))
    families = ("blur", "occlusion", "imagenet_c")
    assert {chart.name for chart in drawn} == {
        "standings", *(f"curves-{family}" for family in families), "profiles", "retention", "attention", "scatter",
    }  # fmt: skip
    read = Page(page)
    for chart in drawn:
        assert len(read.tables[f"behind-{chart.name}"]) == 1 + len(chart.table)
        assert chart.description in "".join(read.text)
    curves = next(chart for chart in drawn if chart.name == "curves-blur")
    values = {(line.model, line.level): line.top1 for line in curves.table.itertuples()}
    for result in Contents.of(RunDirectory(run)).results:
        if result.row.family == "blur":
            assert values[result.row.model, result.row.level] == pytest.approx(100 * (result.row.top1 or 0))


def test_charts_are_drawn_without_a_script_in_the_colour_of_the_text(run: Path) -> None:
    for chart in charts.charts(Contents.of(RunDirectory(run))):
        svg = ElementTree.fromstring(chart.to_svg())
        assert svg.tag.endswith("svg")
        labels = [element for element in svg.iter() if element.tag.endswith("}text")]
        assert labels
        assert {label.get("fill") for label in labels} == {"currentColor"}


def test_answers_name_the_leader_and_where_it_breaks(page: str) -> None:
    text = re.sub(r"\s+", " ", "".join(Page(page).text))
    assert "By clean top-1 strong leads" in text
    assert "Of the clean top-1 of strong, fog (severity (32 px): 3) leaves" in text
    assert "The run was not compared with a baseline." in text


def test_a_hostile_name_stays_text(make_run: Callable[..., Path]) -> None:
    page = write_report(make_run((HOSTILE, "</style><b>x</b>"))).read_text()
    plain = write_report(make_run(("strong", "middle"), "plain")).read_text()
    hostile, usual = Page(page), Page(plain)
    assert hostile.elements == usual.elements
    assert any("onerror=alert(1)" in cell for line in hostile.tables["leaderboard"] for cell in line)
    assert "\u202e" not in page
    specifications = re.search(r'<script type="application/json" id="specifications">(.*?)</script>', page, re.DOTALL)
    assert specifications is not None
    assert "onerror=alert(1)" in json.dumps(json.loads(specifications[1]))


def test_conditions_are_all_in_the_tables(page: str) -> None:
    shown = {(line[2], line[3]) for line in Page(page).tables["breaking"][1:]}
    assert {name for name, _ in shown} == {condition.rsplit("-", 1)[0] for condition in CONDITIONS}


@pytest.mark.parametrize("text", ["", "224", "224x224 bicubic", "0x0"])
def test_what_is_no_view_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no view"):
        parsed_view(text)


def test_a_view_is_read_as_it_was_written() -> None:
    text = "256x256 bilinear center 0.875, then 224x224 bicubic center 1.0"
    assert str(parsed_view(text)) == text
