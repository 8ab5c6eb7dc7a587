"""Groups and shards of a matrix: each cell in one, models parted no further than workers are many."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_bench.cells import Cell
from mae_bench.degradations.ladders import conditions
from mae_bench.grouping import GroupingError, Path, ShardNumber, grouped, path_of, sharded
from mae_bench.suites import SUITES

FAMILIES = {"clean": ("clean",), "blur": ("box", "motion"), "occlusion": ("stripes", "border")}
MATRIX: list[Path] = [
    (model, family, degradation, level)
    for model in ("vit", "cnn", "resnet")
    for family, degradations in FAMILIES.items()
    for degradation, level in product(degradations, ("1", "2", "3"))
] + [("vit",), ("cnn",)]
"""Cells of three models, and what is about two of these as a whole."""

paths = st.lists(st.sampled_from(MATRIX), max_size=60)
counts = st.integers(1, 70)


@given(paths, counts)
def test_every_position_is_in_one_group_of_one_model(paths: list[Path], workers: int) -> None:
    groups = grouped(paths, workers)
    assert sorted(position for group in groups for position in group) == list(range(len(paths)))
    assert all(len({paths[position][0] for position in group}) == 1 for group in groups)
    assert all(group == sorted(group) for group in groups)
    firsts = list(dict.fromkeys(path[0] for path in paths))
    models = [firsts.index(paths[group[0]][0]) for group in groups]
    assert models == sorted(models)


@given(paths, counts)
def test_no_more_groups_are_made_than_workers_need(paths: list[Path], workers: int) -> None:
    models = len({path[0] for path in paths})
    expected = models if models >= workers else min(workers, len(set(paths)))
    assert len(grouped(paths, workers)) == expected


@given(paths, counts)
def test_what_has_the_same_path_is_never_parted(paths: list[Path], workers: int) -> None:
    for groups in (grouped(paths, workers), sharded(paths, workers)):
        place = {paths[position]: number for number, group in enumerate(groups) for position in group}
        assert all(place[paths[position]] == number for number, group in enumerate(groups) for position in group)


@given(paths, counts)
def test_a_degradation_is_parted_only_where_a_group_holds_one_alone(paths: list[Path], workers: int) -> None:
    """And a family only where each group holds a single one of what it was parted into."""
    groups = grouped(paths, workers)
    for depth in (2, 3):
        parts = Counter(prefix for group in groups for prefix in {paths[position][:depth] for position in group})
        for group in groups:
            inside = {paths[position][:depth] for position in group}
            if any(parts[prefix] > 1 for prefix in inside):
                assert len(inside) == 1


@given(paths, counts)
def test_shards_part_the_matrix_and_none_is_needlessly_empty(paths: list[Path], count: int) -> None:
    shards = sharded(paths, count)
    assert len(shards) == count
    assert sorted(position for shard in shards for position in shard) == list(range(len(paths)))
    assert sum(map(bool, shards)) == min(count, len(set(paths)))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 30))
def test_no_shard_is_longer_than_list_scheduling_allows(sizes: list[int], count: int) -> None:
    """Whole models: at most the mean, and of the longest model what is not shared."""
    count = min(count, len(sizes))
    paths: list[Path] = [(f"model {i}", str(k)) for i, size in enumerate(sizes) for k in range(size)]
    passes = [len(shard) + len({paths[position][0] for position in shard}) for shard in sharded(paths, count)]
    work = sum(sizes) + len(sizes)
    assert max(passes) <= work / count + (1 - 1 / count) * (max(sizes) + 1) + 1e-9


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 3))
def test_the_longest_shard_is_at_most_four_thirds_of_the_best(sizes: list[int], count: int) -> None:
    """Graham's bound, beside every way to put whole models into shards."""
    count = min(count, len(sizes))
    paths: list[Path] = [(f"model {i}", str(k)) for i, size in enumerate(sizes) for k in range(size)]
    best = min(
        max(sum(1 + size for size, own in zip(sizes, way, strict=True) if own == shard) for shard in range(count))
        for way in product(range(count), repeat=len(sizes))
    )
    longest = max(len(shard) + len({paths[position][0] for position in shard}) for shard in sharded(paths, count))
    assert longest <= (4 / 3 - 1 / (3 * count)) * best + 1e-9


def test_small_models_go_together_beside_a_large_one() -> None:
    paths: list[Path] = [("large", str(k)) for k in range(7)] + [(f"small {i}", "") for i in range(4)]
    assert sharded(paths, 2) == [[*range(7)], [7, 8, 9, 10]]


def test_two_models_on_many_workers_are_cut_near_their_middle() -> None:
    cells = [Cell(model, kind.name, level) for model in "ab" for kind, level in conditions(SUITES["imagenet"])]
    sizes = [len(group) for group in grouped([path_of(cell) for cell in cells], 64)]
    assert len(sizes) == 64
    assert sum(sizes) == 288
    # the largest is halved again and again, so that none is more than about twice the mean
    assert max(sizes) <= 2 * 288 / 64


def test_path_tells_a_published_blur_from_the_plain_one() -> None:
    assert path_of(Cell.parse("vit-gaussian_blur-s3")) == ("vit", "c_extra", "gaussian_blur", "s3")
    assert path_of(Cell.parse("vit-gaussian_blur-3.00")) == ("vit", "blur", "gaussian_blur", "3.00")


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", "1 / 3", "1.0/3"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(GroupingError, match="no shard"):
        ShardNumber.parse(text)
