"""Rows kept as Parquet are the rows that were measured, and DuckDB ranks models as the leaderboard does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mae_bench.baseline import Baseline
from mae_bench.cells import Cell
from mae_bench.cli import app
from mae_bench.labelled_images import LabelledImages
from mae_bench.leaderboard import Leaderboard, default_conditions
from mae_bench.outcomes import Outcomes
from mae_bench.rows import CellResult, ResultRow
from mae_bench.suites import SUITES
from mae_bench.warehouse import SORTED_BY, WarehouseError, leaderboard, row_tables, rows_of, schema, write_warehouse
from references.runs import CELLS, Sessions

RESULTS = Path(__file__).parent.parent / "results" / "fashion_mnist"
SUITE = SUITES["fashion_mnist"]
CONDITIONS = [
    "clean-0.00",
    *(c for family in ("blur", "geometry", "token_drop") for c in sorted(default_conditions(family, SUITE))),
    "box_blur-3.50",  # beyond the default matrix
]
IMAGES = 6


@pytest.fixture(scope="session")
def sessions(cell_result: Callable[..., CellResult]) -> Sessions:
    return Sessions(cell_result)


def read(folder: Path) -> list[ResultRow]:
    import pyarrow.parquet as pq

    return [
        ResultRow.from_dict({**record, "suite": file.parent.name.removeprefix("suite=")})
        for file in sorted(folder.glob("suite=*/*.parquet"))
        for record in pq.ParquetFile(file).read().to_pylist()
    ]


def test_rows_come_back_as_they_were_measured(sessions: Sessions, tmp_path: Path) -> None:
    runs = [sessions.leave(tmp_path / "a", CELLS[:7]).path, sessions.leave(tmp_path / "b", CELLS[7:]).path]
    rows = list(rows_of(runs))
    rows.append(replace(rows[0], suite="cifar10", distinct=None, top1=None, status="not_applicable"))
    write_warehouse(row_tables(rows, size=5), tmp_path / "rows")
    found = read(tmp_path / "rows")
    assert sorted(map(repr, found)) == sorted(map(repr, rows))
    assert [name.name for name in sorted((tmp_path / "rows").iterdir())] == ["suite=cifar10", "suite=fashion_mnist"]


def test_every_field_has_the_type_of_the_row(sessions: Sessions) -> None:
    record = sessions.result(CELLS[0]).row.to_dict()
    assert schema().names == list(record)
    kinds = {"string": str, "int64": int, "double": float}
    for field in schema():
        value = record[field.name]
        assert value is None or type(value) is kinds[str(field.type)], field
        assert field.nullable == (field.name in NULLABLE), field


NULLABLE = {name for name, kind in ResultRow.__annotations__.items() if "None" in kind}


def test_rows_of_a_file_are_sorted(sessions: Sessions, tmp_path: Path) -> None:
    run = sessions.leave(tmp_path / "run").path
    write_warehouse(row_tables(reversed(list(rows_of([run])))), tmp_path / "rows")
    keys = [tuple(getattr(row, name) for name in SORTED_BY) for row in read(tmp_path / "rows")]
    assert keys == sorted(keys)
    assert len(keys) == len(CELLS)


def test_nothing_is_left_of_rows_that_could_not_be_written(sessions: Sessions, tmp_path: Path) -> None:
    def broken() -> object:
        yield from row_tables([sessions.result(CELLS[0]).row])
        raise OSError(28, "No space left on device")

    with pytest.raises(WarehouseError, match="No space left"):
        write_warehouse(broken(), tmp_path / "rows")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "file").touch()
    with pytest.raises(WarehouseError, match="is not empty"):
        write_warehouse([], tmp_path / "rows")
    with pytest.raises(WarehouseError, match="no finished cells"):
        list(rows_of([tmp_path / "nowhere"]))


# --------------------------------------------------------------------------- asked by DuckDB


def ranked(folder: Path) -> list[tuple[str, float, float]]:
    pytest.importorskip("duckdb")
    return [(place.model, place.score, place.clean) for place in leaderboard(folder, "fashion_mnist")]


def expected(board: Leaderboard) -> list[tuple[str, float, float]]:
    return [(s.model, s.score, s.clean[0]) for s in board.standings if s.score is not None]


def agree(found: list[tuple[str, float, float]], wanted: list[tuple[str, float, float]]) -> None:
    """The same models with the same numbers; in the same order where scores differ by more than they round."""
    assert sorted(model for model, *_ in found) == sorted(model for model, *_ in wanted)
    numbers = {model: values for model, *values in wanted}
    assert all(values == pytest.approx(numbers[model], abs=1e-9) for model, *values in found)
    scores = [score for _, score, _ in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.thorough  # bootstraps over 10,000 images
def test_committed_results_are_ranked_as_their_leaderboard(tmp_path: Path) -> None:
    baseline = Baseline.load(RESULTS, "fashion_mnist")
    assert baseline is not None
    write_warehouse(row_tables(baseline.rows.values(), size=100), tmp_path / "rows")
    board = Leaderboard.of(baseline.rows.values(), baseline.outcomes)
    found = ranked(tmp_path / "rows")
    agree(found, expected(board))
    assert [model for model, *_ in found] == [standing.model for standing in board.standings]


cells = st.lists(st.sampled_from(CONDITIONS), unique=True, max_size=6)  # that a model lacks
lacking = st.dictionaries(st.sampled_from(["vit", "cnn", "resnet"]), cells, min_size=1)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(lacking=lacking, partial=st.sampled_from([None, *CONDITIONS]), seed=st.integers(0, 99))
@example(lacking={"vit": [], "cnn": CONDITIONS[1:2], "resnet": ["box_blur-3.50"]}, partial=None, seed=0)
def test_incomplete_models_are_left_out_as_in_the_leaderboard(
    cell_result: Callable[..., CellResult],
    tmp_path_factory: pytest.TempPathFactory,
    lacking: dict[str, list[str]],
    partial: str | None,
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    labels = np.arange(IMAGES) % 3
    results = [
        cell_result(f"{model}-{condition}", prediction, labels, n_expected=IMAGES, manifest_hash="x")
        for model, missing in lacking.items()
        for condition in CONDITIONS
        if condition not in missing
        for n in [IMAGES - 2 if (model, condition) == (next(iter(lacking)), partial) else IMAGES]
        for prediction in [generator.integers(0, 3, n)]
    ]
    ids = [f"{i:032x}-0" for i in range(IMAGES)]
    outcomes = Outcomes.of(results, LabelledImages.of(ids, labels, ["a", "b", "c"]))
    folder = tmp_path_factory.mktemp("store") / "rows"
    write_warehouse(row_tables([result.row for result in results], size=17), folder)
    agree(ranked(folder), expected(Leaderboard.of([result.row for result in results], outcomes)))


def test_a_cell_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    baseline = Baseline.load(RESULTS, "fashion_mnist")
    assert baseline is not None
    row = baseline.rows["cnn_s0-gaussian_blur-3.00"]
    assert Cell.parse("cnn_s0-gaussian_blur-3.00").condition == row.condition
    write_warehouse(row_tables([*baseline.rows.values(), replace(row, top1=0.0)]), tmp_path / "rows")
    with pytest.raises(WarehouseError, match="1 cells of fashion_mnist twice"):
        leaderboard(tmp_path / "rows", "fashion_mnist")


def test_runs_are_gathered_and_asked_on_the_command_line(sessions: Sessions, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    run = sessions.leave(tmp_path / "it's a run").path
    rows = tmp_path / "it's rows"

    def said(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        return result.exit_code, result.output

    assert said("query", rows)[0] == 2
    assert said("gather", run, "--out", rows)[0] == 0
    code, text = said("query", rows, "select count(*) as cells, count(distinct model) as models from cells")
    assert (code, text.split()[-2:]) == (0, [str(len(CELLS)), "3"])
    assert said("query", rows, "--suite", "fashion_mnist")[0] == 0
    code, text = said("query", rows)
    assert code == 2
    assert "no rows of imagenet, but of fashion_mnist" in " ".join(text.split())
    code, text = said("query", rows, "select nothing from nowhere")
    assert code == 2
    assert "cannot be answered" in text
