"""Results as they are looked at, and as they lie in a run directory."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rich.console

from mae_bench.errors import BenchError
from mae_bench.labelled_images import LabelledImages, first_copies
from mae_bench.markup import terminal_text
from mae_bench.results import SHOWN_AT_MOST, Results, ResultsError
from mae_bench.rows import ResultRow
from mae_bench.store import RunDirectory, StoreError
from mae_bench.verify import verification

IDS = [f"{i:02x}-0" for i in range(8)]
LABELS = np.arange(8) % 10
CLASSES = [f"class {k}" for k in range(10)]
CONDITIONS = ("clean-0.00", "gaussian_blur-0.50", "gaussian_blur-1.50", "random_patch-0.50", "fog-s3")


@pytest.fixture
def results(cell_result: Callable[..., Any]) -> Callable[..., Results]:
    """Builds results in which a model is right on the fewer images the further down the condition stands."""

    def build(models: Sequence[str] = ("vit",), conditions: Sequence[str] = CONDITIONS) -> Results:
        images = LabelledImages(IDS, LABELS, CLASSES, first_copies(IDS))
        cells = []
        for model in models:
            for wrong, condition in enumerate(conditions):
                prediction = np.where(np.arange(8) < wrong, 9, LABELS)
                own = {"weights_hash": f"{model} weights", "manifest_hash": images.manifest_hash}
                cells.append(
                    cell_result(f"{model}-{condition}", prediction, LABELS, subset="first 8 of 8", distinct=8, **own)
                )
        records = {
            model: {"name": model, "arm": None, "training_seed": None, "weights_hash": f"{model} weights"}
            for model in models
        }
        manifest = {"run_id": "july", "suite": "fashion_mnist", "manifest_hash": images.manifest_hash, "images": 8}
        return Results(tuple(cells), images, records, manifest)

    return build


# --------------------------------------------------------------------------- table


def test_a_frame_has_a_line_for_each_cell_and_a_column_for_each_field(results: Callable[..., Results]) -> None:
    found = results(("vit", "cnn"))
    frame = found.to_frame()
    assert list(frame.columns) == [field.name for field in fields(ResultRow)]
    for (_, line), row in zip(frame.iterrows(), found.rows, strict=True):
        expected = {name: value for name, value in row.to_dict().items() if value is not None}
        assert {name: line[name] for name in expected} == expected
        assert all(pd.isna(line[name]) for name in row.to_dict().keys() - expected.keys())


def test_indicators_are_those_of_each_cell(results: Callable[..., Results], cell_result: Callable[..., Any]) -> None:
    record = {"indicator": "alignment", "layer": 1, "head": None, "token": "cls", "value": 0.5, "low": None}
    record |= {"high": None, "reason": "few_blocks"}
    with_one = cell_result("vit-box_blur-1.75", LABELS, LABELS, indicators=[record])
    found = results()
    table = Results((*found.cells, with_one), found.images, found.models).indicators()
    assert len(table) == 1
    line = table.iloc[0].to_dict()
    expected = {"cell": "vit-box_blur-1.75", **record}
    assert {k: v for k, v in line.items() if not pd.isna(v)} == {k: v for k, v in expected.items() if v is not None}


def test_text_shows_each_condition_once_with_each_model_beside_it(results: Callable[..., Results]) -> None:
    text = repr(results(("vit", "cnn")))
    assert str(results(("vit", "cnn"))) == text
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:2] == ["fashion_mnist:", "all"]
    assert lines[2] == ["degradation", "level", "unit", "vit", "cnn"]
    blurred = next(line for line in lines if line[:2] == ["gaussian_blur", "1.50"])
    assert blurred == ["gaussian_blur", "1.50", "px", *("75.0", "[75.0,", "75.0]") * 2]
    assert len(lines) == 4 + len(CONDITIONS)


def test_a_long_table_is_cut_and_says_so(results: Callable[..., Results]) -> None:
    conditions = ["clean-0.00", *(f"gaussian_blur-{i / 100:.2f}" for i in range(1, SHOWN_AT_MOST + 5))]
    text = repr(results(conditions=conditions))
    assert text.endswith("5 more conditions; to_frame() has them all.")
    assert len(text.splitlines()) == 4 + SHOWN_AT_MOST + 2


class Texts(HTMLParser):
    """Gathers tags, and texts by the tag that they stand in."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.tags[-1], data.strip()))


def test_the_page_of_a_notebook_shows_the_same_and_no_name_acts_in_it(results: Callable[..., Results]) -> None:
    page = Texts(results(("vit", "<script>alert(1)</script>"))._repr_html_())
    assert set(page.tags) == {"p", "table", "thead", "tbody", "tr", "th", "td"}
    assert [text for tag, text in page.texts if tag == "th"][3:] == ["vit", "<script>alert(1)</script>"]
    assert ("td", "87.5 [87.5, 87.5]") in page.texts


def test_rich_shows_the_same_and_no_name_acts_in_it(results: Callable[..., Results]) -> None:
    console = rich.console.Console(file=io.StringIO(), width=160)
    console.print(results(("vit", "[red]x[/red]")))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]x[/red]" in shown
    assert shown.count("75.0 [75.0, 75.0]") == 2


def test_what_a_model_cannot_have_is_said_so(results: Callable[..., Results], cell_result: Callable[..., Any]) -> None:
    found = results()
    none = cell_result("vit-token_drop-0.50", status="not_applicable", top1=None, top1_low=None, top1_high=None)
    text = repr(Results((*found.cells, none), found.images, found.models))
    assert "not applicable" in text.splitlines()[-1]


# --------------------------------------------------------------------------- chart


def test_a_chart_holds_every_degraded_cell_and_clean_at_level_0(results: Callable[..., Results]) -> None:
    found = results(("vit", "cnn\u115f"))  # a letter that is not seen, which is shown as it is written
    specification = found.plot().to_dict()
    (values,) = specification["datasets"].values()
    drawn = {(v["model"], v["degradation"], v["level"]): (v["top1"], v["top1_low"], v["top1_high"]) for v in values}
    expected = {}
    for row in found.rows:
        of_row = tuple(100 * (value or 0) for value in (row.top1, row.top1_low, row.top1_high))
        names = ["gaussian_blur, px", "random_patch, fraction of area", "fog, severity (32 px)"]
        for name in names if row.family == "clean" else [f"{row.degradation}, {row.unit}"]:
            expected[terminal_text(row.model), name, row.level] = of_row
    assert drawn == expected
    assert specification["facet"]["sort"] == names


def test_without_degraded_cells_there_is_no_chart(results: Callable[..., Results]) -> None:
    with pytest.raises(ResultsError, match="only clean cells"):
        results(conditions=("clean-0.00",)).plot()


# --------------------------------------------------------------------------- comparison


def test_models_are_compared_by_name_and_single_ones_with_each_other(results: Callable[..., Results]) -> None:
    vit, cnn, both = results(("vit",)), results(("cnn",)), results(("vit", "cnn"))
    pairs = [
        {(cell.pair.a, cell.pair.b) for cell in compared.cells}
        for compared in (vit.compare(cnn), both.compare(vit), both.compare(both, {"vit": "cnn"}), both.compare(both))
    ]
    assert pairs == [{("vit", "cnn")}, {("vit", "vit")}, {("vit", "cnn")}, {("vit", "vit"), ("cnn", "cnn")}]


def test_a_comparison_says_what_the_other_gains(results: Callable[..., Results]) -> None:
    worse = results()
    better = Results(
        tuple(replace(cell, prediction=LABELS) for cell in worse.cells), worse.images, worse.models, worse.manifest
    )
    compared = worse.compare(better)
    assert {cell.condition: (cell.lost, cell.gained) for cell in compared.cells} == {
        condition: (0, wrong) for wrong, condition in enumerate(CONDITIONS)
    }
    assert repr(compared) == compared.to_text()
    assert compared._repr_markdown_() == compared.to_markdown()


def test_what_has_nothing_in_common_is_not_compared(results: Callable[..., Results]) -> None:
    with pytest.raises(BenchError, match="no model"):
        results(("vit", "cnn")).compare(results(("resnet",)))
    with pytest.raises(BenchError, match=r"^vit=vti: .* has no model vti; did you mean vit"):
        results(("vit", "cnn")).compare(results(("vit",)), {"vit": "vti"})


# --------------------------------------------------------------------------- run directory


def test_what_is_saved_is_a_whole_run_that_loads_again(results: Callable[..., Results], tmp_path: Path) -> None:
    found = results(("vit", "cnn"))
    place = found.save(str(tmp_path / "deep" / "run"))
    again = Results.load(place)
    assert {r.row.model: r.row.condition for r in again.cells[::5]} == {"cnn": "clean-0.00", "vit": "clean-0.00"}
    by_cell = [sorted((r.to_dict() for r in one.cells), key=lambda r: str(r["row"])) for one in (found, again)]
    assert by_cell[0] == by_cell[1]
    assert (again.models, again.manifest) == (found.models, found.manifest)
    assert repr(again.leaderboard) == repr(found.leaderboard)
    run = RunDirectory(place)
    assert not run.unfinished()
    assert {path.name for path in place.iterdir()} == {
        "cells", "models", "manifest.json", "images.json", "plan.json", "cells.parquet", "indicators.parquet",
        "outcomes.npz", "leaderboard.md",
    }  # fmt: skip
    assert not verification(place).findings


def test_what_is_there_is_not_written_over(results: Callable[..., Results], tmp_path: Path) -> None:
    place = results().save(tmp_path / "run")
    for taken in (place, place / "manifest.json"):
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        with pytest.raises(StoreError, match="is not empty"):
            results(("cnn",)).save(taken)
        assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no clean cell is finished"):
        Results.load(tmp_path)
