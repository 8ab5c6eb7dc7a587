"""Sums per block, and why the order of arrival does not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_bench.indicators.block_sums import BlockSums

# magnitudes so far apart that floating-point addition in another order gives another sum
NUMBERS = st.floats(-1e12, 1e12, allow_subnormal=False) | st.floats(-1e-6, 1e-6, allow_subnormal=False)
SCATTERED = st.dictionaries(st.integers(0, 40), st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12)


def one_pass(blocks: dict[int, tuple[float, float]]) -> BlockSums:
    sums = BlockSums()
    for block in sorted(blocks):
        sums.update(block, {"scalar": blocks[block][0], "vector": np.array(blocks[block])})
    return sums


@given(blocks=SCATTERED, data=st.data())
def test_any_sharding_merged_in_any_order_gives_equal_bits(
    blocks: dict[int, tuple[float, float]], data: st.DataObject
) -> None:
    arrival = data.draw(st.permutations(sorted(blocks)))
    shards = [BlockSums() for _ in range(data.draw(st.integers(1, 4)))]
    for block in arrival:
        shard = shards[data.draw(st.integers(0, len(shards) - 1))]
        shard.update(block, {"scalar": blocks[block][0], "vector": np.array(blocks[block])})
    merged = BlockSums()
    for shard in data.draw(st.permutations(shards)):
        merged.merge(shard)
    whole = one_pass(blocks)
    assert merged.blocks == whole.blocks
    for name in ("scalar", "vector"):
        assert merged.total(name).tobytes() == whole.total(name).tobytes()
        assert merged.per_block(name).tobytes() == whole.per_block(name).tobytes()


@given(SCATTERED)
def test_a_total_adds_the_blocks_from_the_first_to_the_last(blocks: dict[int, tuple[float, float]]) -> None:
    expected = None
    for block in sorted(blocks):
        expected = blocks[block][0] if expected is None else expected + blocks[block][0]
    assert one_pass(blocks).total("scalar").item() == expected


def test_values_per_block_come_in_block_order() -> None:
    sums = BlockSums()
    for block in (7, 0, 3):
        sums.update(block, {"hits": [block, 10 * block]})
    assert sums.blocks == [0, 3, 7]
    assert sums.per_block("hits").tolist() == [[0, 0], [3, 30], [7, 70]]


def test_asking_for_a_total_changes_nothing() -> None:
    sums = BlockSums()
    sums.update(0, {"hits": np.array([1.0, 2.0])})
    sums.update(1, {"hits": np.array([10.0, 20.0])})
    assert sums.total("hits").tolist() == sums.total("hits").tolist() == [11, 22]
    assert sums.per_block("hits").tolist() == [[1, 2], [10, 20]]


def test_merging_leaves_the_other_as_it_was() -> None:
    left, right = BlockSums(), BlockSums()
    left.update(0, {"hits": 1})
    right.update(1, {"hits": 2})
    left.merge(right)
    left.update(2, {"hits": 4})
    assert right.blocks == [1]
    assert right.total("hits") == 2
    assert left.total("hits") == 7


def test_counts_are_kept_in_double_precision() -> None:
    sums = BlockSums()
    sums.update(0, {"hits": np.float32(2**24)})
    sums.update(1, {"hits": np.float32(1)})
    assert sums.total("hits").item() == 2**24 + 1


def test_no_block_is_counted_twice() -> None:
    sums = BlockSums()
    sums.update(3, {"hits": 1})
    with pytest.raises(ValueError, match="block 3 was counted already"):
        sums.update(3, {"hits": 1})
    assert sums.total("hits") == 1


def test_shards_that_overlap_are_refused() -> None:
    left, right = BlockSums(), BlockSums()
    left.update(5, {"hits": 1})
    right.update(5, {"hits": 1})
    with pytest.raises(ValueError, match="block 5 was counted already"):
        left.merge(right)
    assert left.total("hits") == 1
