"""Hostile names of models, runs, classes, machines and folders: they come back as they were, lie where nothing else
lies, and are text wherever they are shown.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faults.hostile import NAMES, TEXTS, place
from faults.reliability import Injection
from mae_bench.baseline import read_rows, table
from mae_bench.cells import Cell, Level
from mae_bench.comparison import verdict_table
from mae_bench.corruption_error import CorruptionScores
from mae_bench.corruption_error import to_markdown as corruption_page
from mae_bench.labelled_images import LabelledImages
from mae_bench.leaderboard import Leaderboard
from mae_bench.markup import csv_text, csv_value, markdown_text, terminal_text
from mae_bench.models import ModelError
from mae_bench.models.registry import ModelEntry
from mae_bench.outcomes import Outcomes
from mae_bench.published import ANCHORS
from mae_bench.regression import Verdict
from mae_bench.selfcheck import Check
from mae_bench.selfcheck import to_markdown as selfcheck_page
from mae_bench.selfcheck import to_text as selfcheck_text
from mae_bench.store import RunDirectory, cell_of
from mae_bench.tables import write_tables
from references import page

if TYPE_CHECKING:
    from conftest import Project
    from mae_bench.rows import CellResult

Journal = Callable[[Injection], None]
MakeResult = Callable[..., "CellResult"]

ALIKE = ("a!!!!!!?\u52d9", "a!!!!??????????\u4e4d")
CONDITIONS = ("clean-0.00", "box_blur-1.75")
TAGS = {"h1", "h2", "p", "em", "strong", "code", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
every_name = pytest.mark.parametrize("count", [8, pytest.param(len(NAMES), marks=pytest.mark.faults)])


@pytest.fixture
def results(cell_result: MakeResult) -> Callable[[Sequence[str]], list[CellResult]]:
    """Builds two cells of every name, which is that of the model, the run, the machine, the weights and the view."""

    def build(names: Sequence[str]) -> list[CellResult]:
        return [
            cell_result(
                f"{name}-{condition}", [0, 1, 2], [0, 1, 1], run_id=name, machine=name, weights_hash=name, view=name
            )
            for name in names
            for condition in CONDITIONS
        ]

    return build


def is_unicode(name: str) -> bool:
    """Whether UTF-8, and so a table of Parquet, can hold the name."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet would compute what is no number."""
    try:
        float(cell)
    except ValueError:
        return re.match(r"[\s\0]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]", cell) is not None
    return False


def column(lines: Sequence[Sequence[str]], title: str) -> list[str]:
    return [line[lines[0].index(title)] for line in lines[1:]]


def cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


# --------------------------------------------------------------------------- on disk


@every_name
def test_runs_keep_hostile_names(
    count: int, journal: Journal, results: Callable[[Sequence[str]], list[CellResult]], tmp_path: Path
) -> None:
    names = NAMES[:count]
    run = RunDirectory.create(tmp_path / "runs" / "run", resume=False)
    written = {cell_of(result.row): result for result in results(names)}
    for result in written.values():
        run.write_cell(result)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.resolve().is_relative_to(run.path.resolve()) for path in files)
    assert len({place(path) for path in files}) == len(files) == len(written)
    found = {cell_of(result.row): result for result in RunDirectory(run.path).cells()}
    lost = {cell.model for cell, result in written.items() if cell not in found or found[cell].row != result.row}
    journal(
        Injection(
            "names", "hostile names of models, runs and machines, written to a run and read again", len(names),
            "Every cell has a file of its own in the run's directory, also where the disk knows no case, and comes "
            "back under its name.",
            lost=len(lost), silent=len(found.keys() - written.keys()),
        )
    )  # fmt: skip


@every_name
def test_merged_tables_keep_hostile_names(
    count: int, journal: Journal, results: Callable[[Sequence[str]], list[CellResult]], tmp_path: Path
) -> None:
    import pandas as pd

    names = list(filter(is_unicode, NAMES[:count]))
    run = RunDirectory.create(tmp_path / "run", resume=False)
    for result in results(names):
        run.write_cell(result)
    images = LabelledImages.of(["00-0", "01-0", "02-0"], np.array([0, 1, 1]), names)
    write_tables(run, run.cells(), Outcomes.of(run.cells(), images))
    outcomes = Outcomes.load(run.path / "outcomes.npz")
    merged = pd.read_parquet(run.path / "cells.parquet")
    lost = [name for name in names if any(f"{name}-{condition}" not in outcomes.prediction for condition in CONDITIONS)]
    lost += [name for name, found in zip(names, outcomes.classes.tolist(), strict=True) if name != found]
    lost += sorted(set(names) - set(merged["model"]))
    journal(
        Injection(
            "names", "hostile names of models and classes, in the merged tables of a run", len(names),
            "Tables and arrays hold every name as it was.", lost=len(set(lost)),
        )
    )  # fmt: skip


def test_names_that_agree_in_32_bits_of_their_hash_lie_apart(tmp_path: Path) -> None:
    """Of a few ten thousand names that read alike there are two such."""
    first, second = (RunDirectory(tmp_path).cell_path(Cell(name, "clean", Level(0))) for name in ALIKE)
    assert place(first) != place(second)


# --------------------------------------------------------------------------- shown


@every_name
def test_pages_and_tables_show_hostile_names(
    count: int, journal: Journal, results: Callable[[Sequence[str]], list[CellResult]]
) -> None:
    names = NAMES[:count]
    made = results(names)
    outcomes = Outcomes.of(made, LabelledImages.of(["0", "1", "2"], np.array([0, 1, 1]), ["a", "b", "c"]))
    board = Leaderboard.of([result.row for result in made], outcomes)
    scores = {name: CorruptionScores(name, "imagenet", None, None, reason=f"the view is {name}") for name in names}
    checks = [Check(name, ANCHORS[0], "top1", 1.0, 0.1, "differs", (f"view {name}",)) for name in names]
    verdicts = [Verdict(f"{name}-clean-0.00", 0.9, 0.8, 100, 10, 10, 0, 0.1, "inconclusive", name) for name in names]
    pages = {
        "model": [board.to_markdown(), corruption_page(scores), selfcheck_page(checks)],
        "cell": [verdict_table(verdicts, markdown=True)],
    }
    texts = [board.to_text(), selfcheck_text(checks), verdict_table(verdicts)]
    seen = {"model": [terminal_text(name) for name in names]}
    seen["cell"] = [terminal_text(f"{name}-clean-0.00") for name in names]
    wrong: set[str] = set()
    for title, sources in pages.items():
        for source in sources:
            read = page.read(source)
            assert set(read.tags) <= TAGS
            for lines in read.tables:
                assert {len(line) for line in lines} == {len(lines[0])}
                wrong |= set(column(lines, title)) ^ set(seen[title])
    for text in texts:
        assert all(character.isprintable() or character == "\n" for character in text)
        wrong |= {name for name in names if terminal_text(name) not in text}
    journal(
        Injection(
            "names", "hostile names in leaderboards, comparisons, corruption errors and checks, in Markdown and on a "
            "terminal", len(names),
            "A parser of Markdown finds one cell with the name and no element, link or emphasis in it; what cannot be "
            "seen is shown as an escape.",
            silent=len(wrong),
        )
    )  # fmt: skip


@every_name
def test_csv_keeps_hostile_names_and_computes_none(
    count: int, journal: Journal, results: Callable[[Sequence[str]], list[CellResult]], tmp_path: Path
) -> None:
    names = NAMES[:count]
    made = results(names)
    outcomes = Outcomes.of(made, LabelledImages.of(["0", "1", "2"], np.array([0, 1, 1]), ["a", "b", "c"]))
    board, text = Leaderboard.of([result.row for result in made], outcomes).to_csv(), table([r.row for r in made])
    path = tmp_path / "cells.csv"
    path.write_bytes(text.encode())
    back = read_rows(path)
    lost = {r.row.model for r in made} - {row.model for row in back if row.run_id == row.machine == row.model}
    lost |= set(names) - {csv_value(cell) for cell in column(cells(board), "model")}
    formulas = [cell for written in (text, board) for line in cells(written) for cell in line if is_formula(cell)]
    journal(
        Injection(
            "names", "hostile names in cells.csv and leaderboard.csv", len(names),
            "Every name comes back as it was, and no cell begins like a formula of a spreadsheet.",
            lost=len(lost), silent=len(formulas),
        )
    )  # fmt: skip


@pytest.mark.parametrize("count", [pytest.param(40, marks=pytest.mark.faults)])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_pictures_show_hostile_names(count: int, journal: Journal, tmp_path: Path) -> None:
    import torch

    from mae_bench.figures import class_map, save

    names = NAMES[:count]
    tokens = {1: torch.randn(2 * count, 4, generator=torch.Generator().manual_seed(0))}
    picture, _ = save(class_map(tokens, np.arange(2 * count) % count, names, names[0], "cls"), tmp_path, "map")
    root = ElementTree.parse(picture).getroot()
    written = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    wrong = {name for name in names if terminal_text(name) not in written}
    assert {element.tag.rpartition("}")[2] for element in root.iter()}.isdisjoint({"script", "a", "foreignObject"})
    journal(
        Injection(
            "names", "hostile names of classes in a figure", count,
            "The SVG is well-formed and has a text for each class with its name; nothing becomes a formula.",
            silent=len(wrong),
        )
    )  # fmt: skip


# --------------------------------------------------------------------------- a whole run

CONFTEST = """
def hostile(name):
    def load():
        from networks import mean_colour

        return mean_colour(name)

    load.__name__ = name
    load.__doc__ = f"<b>{{name}}|\\x1b[2J"
    return model_fixture(load)


globals().update({{name: hostile(name) for name in {names}}})
"""


def may_be_a_model(name: str) -> bool:
    """Whether a model may be called so."""
    try:
        ModelEntry(name)
    except ModelError:
        return False
    return is_unicode(name)


@pytest.mark.parametrize("count", [8, pytest.param(40, marks=pytest.mark.faults)])
def test_models_classes_and_runs_with_hostile_names_are_evaluated(
    count: int, journal: Journal, project: Project
) -> None:
    names = list(filter(may_be_a_model, NAMES))[:count]
    project.conftest(CONFTEST.format(names=names))
    project.images(classes=sorted(["<b>", "=1+1", "a|$x$"]), per_class=3)  # type: ignore[arg-type]
    project.write("pytest.ini", "[pytest]\nmae_suite = imagefolder\nmae_data = data\n")
    project.test("clean")
    ran = project.run("--mae-run", "a|<b>$x$`=1")
    folder = project.path / "a|<b>$x$`=1"
    found = {result.row.model: result.row for result in RunDirectory(folder).cells()}
    lost = set(names) - {name for name, row in found.items() if row.top1 == 1 and row.run_id == folder.name}
    seen = page.read((folder / "leaderboard.md").read_text())
    assert set(seen.tags) <= TAGS
    shown = column(seen.tables[0], "model")
    assert not [character for character in ran.stdout.str() if character != "\n" and not character.isprintable()]
    journal(
        Injection(
            "names", "models, classes and runs with hostile names, evaluated by pytest", len(names),
            "Names of models must be free of white space, brackets, slashes and colons; all others are evaluated, "
            "ranked and shown as they are written, whatever folders and classes are called.",
            lost=len(lost), silent=len(set(shown) ^ set(map(terminal_text, names))),
        )
    )  # fmt: skip


# --------------------------------------------------------------------------- any name


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.faults)])
def test_any_names_are_kept_apart_and_shown(count: int, journal: Journal, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    names = st.lists(TEXTS.filter(bool), min_size=2, max_size=4, unique=True)
    tried = 0

    @settings(max_examples=count, database=None)
    @given(names)
    def holds(names: list[str]) -> None:
        nonlocal tried
        tried += 1
        paths = [run.cell_path(Cell.parse(f"{name}-clean-0.00")) for name in names]
        assert len(set(map(place, paths))) == len(names)
        assert all(path.resolve().parent.parent == (run.path / "cells").resolve() for path in paths)
        assert all(len(part.encode()) < 200 for path in paths for part in path.relative_to(run.path).parts)
        lines = "\n".join(f"| {markdown_text(name)} | 1 |" for name in names)
        read = page.read(f"| a | b |\n|---|---|\n{lines}\n")
        assert read.tables == [[["a", "b"], *([terminal_text(name), "1"] for name in names)]]
        assert set(read.tags) <= TAGS
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerow(map(csv_text, names))
        [line] = cells(file.getvalue().encode().decode())
        assert list(map(csv_value, line)) == names
        assert not any(is_formula(cell) and csv_text(cell) != cell for cell in line)

    holds()
    journal(
        Injection(
            "names", "two to four arbitrary names at once: files, Markdown, CSV", tried,
            "Different names have different files in the run's directory, each is one cell of a table as it is "
            "written, and each comes back from CSV.",
        )
    )  # fmt: skip
