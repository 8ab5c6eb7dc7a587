"""What the page about large grids says is what was simulated and asked."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import mean

import pytest

from mae_bench.degradations.ladders import conditions
from mae_bench.perf.scale import GRID, STORED, ideal, made_up_tables, store_section, works
from mae_bench.rows import ResultRow
from mae_bench.simulation import simulated
from mae_bench.warehouse import leaderboard, schema, write_warehouse

CELLS = len(conditions(STORED))


@pytest.mark.parametrize(("models", "nodes"), [(7, 3), (3, 20), (1, 500)])
def test_groups_hold_every_degraded_cell_once_and_none_less_than_the_ideal(models: int, nodes: int) -> None:
    groups = works(GRID, models, nodes)
    assert sum(len(group.cells) for group in groups) == models * (len(conditions(GRID)) - 1)
    assert simulated(groups, nodes).makespan >= ideal(groups, models, nodes)


def test_made_up_rows_are_rows_of_whole_models() -> None:
    rows = [ResultRow.from_dict(record) for table in made_up_tables(2 * CELLS + 1) for record in table.to_pylist()]
    assert len(rows) == 3 * CELLS
    assert len({(row.model, row.condition) for row in rows}) == 3 * CELLS
    assert next(iter(made_up_tables(1))).schema == schema()


def test_made_up_models_are_ranked_by_the_mean_over_families_of_the_mean_over_cells(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    write_warehouse(made_up_tables(20 * CELLS), tmp_path / "rows")
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for table in made_up_tables(20 * CELLS):
        for record in table.to_pylist():
            if record["family"] not in ("clean", "token_drop"):
                values[record["model"]][record["family"]].append(record["top1"])
    scores = {model: mean(mean(cells) for cells in families.values()) for model, families in values.items()}
    found = leaderboard(tmp_path / "rows", STORED.name)
    assert [place.model for place in found] == sorted(scores, key=lambda model: -scores[model])
    assert [place.score for place in found] == pytest.approx([scores[place.model] for place in found])


def test_page_says_how_many_rows_were_asked(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    text = store_section(5 * CELLS, tmp_path / "rows", rounds=1)
    assert f"{5 * CELLS:,} rows of 5 models" in text
