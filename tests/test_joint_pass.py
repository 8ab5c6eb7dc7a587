"""Processes that are asked for the same cell make a part of it each, and all get what one alone would."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mae_bench.cells import Level
from mae_bench.errors import BenchError
from mae_bench.evaluation import Evaluation
from mae_bench.images import BLOCK, PROBE_BLOCKS
from mae_bench.indicators.block_sums import BlockSums
from mae_bench.joint_pass import from_bytes, joint_pass, to_bytes
from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.reference import ScratchError
from mae_bench.rows import CellResult
from mae_bench.settings import Settings
from mae_bench.shard import Shard
from mae_bench.suites import Suite

Build = Callable[..., nn.Module]

BLOCKS = range(6)
KEY = (2, "mean_patch")
IMAGES = 3 * BLOCK + 5


def shard_of(block: int) -> Shard:
    """What a pass over one block might leave, numbers with all their digits."""
    generator = np.random.default_rng(block)
    shard = Shard({block: generator.integers(0, 10, 7)})
    shard.cell.update(block, {"images": 7.0, "hits": torch.tensor(3), "bins": generator.normal(size=(3, 2))})
    for store, name in ((shard.tokens, "alignment"), (shard.heads, "retention")):
        store[KEY] = BlockSums()
        store[KEY].update(block, {name: generator.normal(size=4) / 3, "images": 1 / 3})
    shard.scores[block] = {"alignment": torch.from_numpy(generator.normal(size=7)).float()}
    return shard


def whole(blocks: range = BLOCKS) -> Shard:
    joined = Shard()
    for block in blocks:
        joined.merge(shard_of(block))
    return joined


def assert_equal(one: Shard, other: Shard) -> None:
    for prediction, others in ((one.prediction, other.prediction), (other.prediction, one.prediction)):
        for block, values in prediction.items():
            assert values.dtype == others[block].dtype
            assert np.array_equal(values, others[block])
    for block, each in one.scores.items():
        for name, values in each.items():
            assert values.dtype == other.scores[block][name].dtype
            assert torch.equal(values, other.scores[block][name])
    assert one.scores.keys() == other.scores.keys()
    assert one.tokens.keys() == other.tokens.keys()
    assert one.heads.keys() == other.heads.keys()
    pairs = [(one.cell, other.cell)]
    pairs += [(sums, other.tokens[key]) for key, sums in one.tokens.items()]
    pairs += [(sums, other.heads[key]) for key, sums in one.heads.items()]
    for sums, others_sums in pairs:
        mine, theirs = list(sums.items()), list(others_sums.items())
        assert [place[:2] for place in mine] == [place[:2] for place in theirs]
        for (_, name, value), (_, _, same) in zip(mine, theirs, strict=True):
            assert value.shape == same.shape
            assert value.tobytes() == same.tobytes(), name


class Work:
    """Computes blocks, and counts who did which."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def __call__(self, block: int) -> tuple[Shard, float]:
        self.done.append(block)
        return shard_of(block), block / 8


# ----------------------------------------------------------------------------- on the disk

numbers = st.floats(allow_nan=False)
arrays = st.lists(numbers, max_size=3).map(lambda values: np.array(values, dtype=np.float64))
texts = st.text(max_size=5)
sums = st.dictionaries(texts, numbers | arrays, max_size=3)
keys = st.tuples(st.integers(0, 99), texts)


@given(
    st.dictionaries(st.integers(0, 9), st.lists(st.integers(-(2**63), 2**63 - 1)).map(np.array), max_size=3),
    st.dictionaries(st.integers(0, 9), sums, max_size=3),
    st.dictionaries(keys, sums, max_size=3),
    numbers,
)
def test_nothing_is_lost_on_the_way_over_the_disk(
    prediction: dict[int, Any], cell: dict[int, Any], tokens: dict[tuple[int, str], Any], seconds: float
) -> None:
    shard = Shard(prediction)
    for block, each in cell.items():
        shard.cell.update(block, each)
    for key, each in tokens.items():
        for store in (shard.tokens, shard.heads):
            store[key] = BlockSums()
            store[key].update(3, each)
    found, took = from_bytes(to_bytes(shard, seconds))
    assert took == seconds
    shard.cell = shard.cell.of(range(10))
    held = {key: value for key, value in found.tokens.items() if value.blocks}
    # sums of a block that names none leave nothing
    for store in (shard.tokens, shard.heads):
        for key in [key for key, value in store.items() if not list(value.items())]:
            del store[key]
    assert held.keys() == shard.tokens.keys()
    assert_equal(found, shard)


def test_sums_on_a_device_arrive_as_the_numbers_that_they_are() -> None:
    found, _ = from_bytes(to_bytes(shard_of(1), 0.0))
    assert_equal(found, shard_of(1))


# ----------------------------------------------------------------------------- together


def test_one_alone_does_all(tmp_path: Path) -> None:
    work = Work()
    shard, _ = joint_pass(tmp_path, "a cell", BLOCKS, work)
    assert_equal(shard, whole())
    assert work.done == list(BLOCKS)


@pytest.mark.parametrize("workers", [2, 5, 9])
def test_each_block_is_done_by_one_and_all_get_the_same(workers: int, tmp_path: Path) -> None:
    work = Work()
    first = min(workers, len(BLOCKS))
    all_at_it = threading.Barrier(first)

    def compute(block: int) -> tuple[Shard, float]:
        if block < first:  # until as many are at it as can be
            all_at_it.wait(60)
        return work(block)

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda _: joint_pass(tmp_path, "a cell", BLOCKS, compute), range(workers)))
    assert sorted(work.done) == list(BLOCKS)
    for shard, seconds in found:
        assert_equal(shard, whole())
        assert seconds == sum(BLOCKS) / 8


def test_the_blocks_of_one_that_fails_are_done_by_the_others(tmp_path: Path) -> None:
    work = Work()

    def dies(block: int) -> tuple[Shard, float]:
        if block == 2:
            raise MemoryError("here")
        return work(block)

    with pytest.raises(MemoryError, match="here"):
        joint_pass(tmp_path, "a cell", BLOCKS, dies)
    assert work.done == [0, 1]
    shard, _ = joint_pass(tmp_path, "a cell", BLOCKS, work)
    assert work.done == list(BLOCKS)
    assert_equal(shard, whole())


def test_what_is_cut_changed_or_of_another_cell_is_made_again(tmp_path: Path) -> None:
    joint_pass(tmp_path, "a cell", BLOCKS, Work())
    cut, changed, *_ = sorted(tmp_path.rglob("*.part"))
    cut.write_bytes(cut.read_bytes()[:-5])
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(bytes(content))
    again, other = Work(), Work()
    assert_equal(joint_pass(tmp_path, "a cell", BLOCKS, again)[0], whole())
    assert again.done == [0, 1]
    joint_pass(tmp_path, "another cell", BLOCKS, other)
    assert other.done == list(BLOCKS)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScratchError, match=r"file.*--mae-run DIR"):
        joint_pass(tmp_path / "file", "a cell", BLOCKS, Work())


# ----------------------------------------------------------------------------- of a model


@pytest.fixture(scope="module")
def suite(random_suite: Callable[..., Any]) -> Suite:
    built: Suite = random_suite(IMAGES)
    return built


def evaluation(
    suite: Suite,
    network: nn.Module,
    scratch: Path,
    joint: Path | None,
    represented: tuple[str, ...] = (),
    shared: Path | None = None,
    head: bool = True,
    batch_size: int = 100,
) -> Evaluation:
    classifier = Classifier(network, mean=(0.5,), std=(0.25,), input_size=(1, 28, 28))
    model = Pool("cpu").load(ModelEntry("vit", head=head), lambda: classifier)
    return Evaluation(
        suite, model, Settings(batch_size=batch_size), scratch, "run", represented, shared=shared, joint=joint
    )


def counted(network: nn.Module) -> list[int]:
    """How many images pass through ``network``, pass by pass."""
    seen: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def assert_same(result: CellResult, alone: CellResult) -> None:
    differing = {
        name
        for name, value in asdict(result.row).items()
        if value != asdict(alone.row)[name] and name not in ("seconds", "images_per_second")
    }
    assert differing == set()
    assert np.array_equal(result.prediction, alone.prediction)
    assert result.indicators == alone.indicators
    assert result.block_sums == alone.block_sums


def test_a_cell_is_the_same_whoever_made_its_blocks(suite: Suite, small_vit: Build, tmp_path: Path) -> None:
    cell = ("random_patch", Level(0.5))
    alone = evaluation(suite, small_vit(), tmp_path / "alone", None).run(*cell)
    one, other = (evaluation(suite, small_vit(), tmp_path / name, tmp_path / "joint") for name in ("one", "other"))
    halfway = threading.Event()
    block_of_one = one._block

    def block(name: str, level: Level, block: int) -> tuple[Shard, float]:
        if block == 2:  # the other takes the rest
            halfway.set()
        return block_of_one(name, level, block)

    one._block = block  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(one.run, *cell)
        halfway.wait(60)
        found = [other.run(*cell), first.result()]
    for result in found:
        assert_same(result, alone)
    assert found[0].row.seconds == found[1].row.seconds


CLEAN, DEGRADED, MORE = ("clean", Level(0.0)), ("random_patch", Level(0.5)), ("gaussian_blur", Level(1.0))
FIRST = PROBE_BLOCKS * BLOCK
"""Images whose clean features everybody needs."""


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_of_a_machine_pass_the_clean_images_once(
    suite: Suite, small_vit: Build, tmp_path: Path, processes: int
) -> None:
    alone = evaluation(suite, small_vit(), tmp_path, None)
    expected = [alone.run(*cell) for cell in (CLEAN, DEGRADED)]
    networks = [small_vit() for _ in range(processes)]
    seen = [counted(network) for network in networks]
    shares = [evaluation(suite, network, tmp_path, None, shared=tmp_path / "shared") for network in networks]
    before = sum(map(sum, seen))  # what loading a network takes
    barrier = threading.Barrier(processes)

    def clean(own: Evaluation) -> CellResult:
        barrier.wait()
        return own.run(*CLEAN)

    with ThreadPoolExecutor(processes) as pool:
        found = [*pool.map(clean, shares)]
    assert sum(map(sum, seen)) - before == IMAGES
    for own, result in zip(shares, found, strict=True):
        assert_same(result, expected[0])
        assert result.row.seconds == found[0].row.seconds
        assert_same(own.run(*DEGRADED), expected[1])
    assert sum(map(sum, seen)) - before == (1 + processes) * IMAGES


def test_a_machine_has_the_clean_features_of_the_blocks_that_it_takes_part_in(
    suite: Suite, small_vit: Build, tmp_path: Path
) -> None:
    alone = evaluation(suite, small_vit(), tmp_path, None)
    networks = [small_vit(), small_vit()]
    seen = [counted(network) for network in networks]
    one, other = (
        evaluation(suite, network, tmp_path, tmp_path / "joint", shared=tmp_path / name)
        for name, network in zip(("one", "other"), networks, strict=True)
    )
    before = [sum(each) for each in seen]

    def passed() -> list[int]:
        return [sum(each) - start for each, start in zip(seen, before, strict=True)]

    assert_same(one.run(*CLEAN), alone.run(*CLEAN))
    assert passed() == [IMAGES, 0]
    # what is the same for all it need not pass again
    assert_same(other.run(*CLEAN), alone.run(*CLEAN))
    assert passed() == [IMAGES, FIRST]
    # of a cell that the one has made the other needs nothing
    assert_same(one.run(*DEGRADED), alone.run(*DEGRADED))
    assert_same(other.run(*DEGRADED), alone.run(*DEGRADED))
    assert passed() == [2 * IMAGES, FIRST]
    # of one that it makes itself, the clean images too, once
    assert_same(other.run(*MORE), alone.run(*MORE))
    assert passed() == [2 * IMAGES, 2 * IMAGES]
    other.run("gaussian_blur", Level(2.0))
    assert passed() == [2 * IMAGES, 3 * IMAGES]


def test_blocks_whose_clean_features_are_at_hand_are_taken_first(
    suite: Suite, small_vit: Build, tmp_path: Path
) -> None:
    one, other = (
        evaluation(suite, small_vit(), tmp_path, tmp_path / "joint", shared=tmp_path / name)
        for name in ("one", "other")
    )
    one.run(*CLEAN)
    other.run(*CLEAN)
    last = one.blocks[-1]
    other._pass(*CLEAN, range(last, last + 1), other.reference, None)
    taken = []
    block_of_other = other._block

    def block(name: str, level: Level, block: int) -> tuple[Shard, float]:
        if name != "clean":
            taken.append(block)
        return block_of_other(name, level, block)

    other._block = block  # type: ignore[method-assign]
    other.run(*DEGRADED)
    assert taken == [*range(PROBE_BLOCKS), last, *range(PROBE_BLOCKS, last)]


def test_encoders_share_their_clean_features_too(suite: Suite, small_vit: Build, tmp_path: Path) -> None:
    network = small_vit()
    seen = counted(network)
    alone, one, other = (
        evaluation(suite, network, tmp_path, None, shared=shared, head=False)
        for shared in (None, tmp_path / "shared", tmp_path / "shared")
    )
    before = sum(seen)
    for own in (one, other):
        for key in [(2, "cls"), (2, "mean_patch")]:
            assert torch.equal(own.reference.tokens(key, 0, IMAGES), alone.reference.tokens(key, 0, IMAGES))
    assert sum(seen) - before == 2 * IMAGES


def test_what_cannot_be_kept_of_the_clean_pass_ends_it_with_its_remedy(
    suite: Suite, small_vit: Build, tmp_path: Path
) -> None:
    (tmp_path / "joint").write_text("")
    network = small_vit()
    own = evaluation(suite, network, tmp_path, tmp_path / "joint", shared=tmp_path / "shared")
    with pytest.raises(BenchError, match=r"joint.*--mae-run DIR"):
        own.run(*CLEAN)
    seen = counted(network)
    with pytest.raises(BenchError, match=r"joint.*--mae-run DIR"):
        own.run(*DEGRADED)
    assert not seen  # what cannot be done is not tried again


@pytest.mark.parametrize("where", [("clean", 2), ("clean", 3), ("random_patch", 0)])
def test_where_one_dies_the_others_go_on(
    suite: Suite, small_vit: Build, tmp_path: Path, where: tuple[str, int]
) -> None:
    alone = evaluation(suite, small_vit(), tmp_path, None).run(*DEGRADED)
    network = small_vit()
    one, other = (evaluation(suite, network, tmp_path, None, shared=tmp_path / "shared") for _ in range(2))

    class Killed(BaseException):
        """What nobody catches."""

    pass_of_one = one._pass

    def dies(name: str, level: Level, blocks: range, *rest: Any) -> Shard:
        shard = pass_of_one(name, level, blocks, *rest)
        if (name, blocks.start) == where:
            raise Killed
        return shard

    one._pass = dies  # type: ignore[method-assign]
    with pytest.raises(Killed):
        one.run(*DEGRADED)
    assert_same(other.run(*DEGRADED), alone)


def test_processes_that_ask_for_other_things_do_not_disturb_each_other(
    suite: Suite, small_vit: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = evaluation(suite, small_vit(), tmp_path, None).run(*DEGRADED)
    one = evaluation(suite, small_vit(), tmp_path, None, shared=tmp_path / "shared")
    other = evaluation(suite, small_vit(), tmp_path, None, ("gaussian_blur-1.00",), shared=tmp_path / "shared")
    together = one._clean_together

    def after_the_other(*given: Any) -> tuple[Shard, float]:
        assert_same(other.run(*DEGRADED), alone)
        return together(*given)

    monkeypatch.setattr(one, "_clean_together", after_the_other)
    assert_same(one.run(*DEGRADED), alone)
    assert_same(other.run(*MORE), evaluation(suite, small_vit(), tmp_path, None).run(*MORE))


def test_who_shares_cells_with_other_machines_shares_the_clean_images_with_its_own(
    suite: Suite, small_vit: Build, tmp_path: Path
) -> None:
    network = small_vit()
    whole, part = (
        evaluation(suite, network, tmp_path, joint, shared=tmp_path / "shared") for joint in (None, tmp_path / "joint")
    )
    seen = counted(network)
    assert_same(part.run(*CLEAN), whole.run(*CLEAN))
    assert sum(seen) == IMAGES


@pytest.mark.parametrize("batch_size", [512, 100])
def test_processes_agree_where_memory_ran_out_for_one(
    suite: Suite, small_vit: Build, tmp_path: Path, batch_size: int
) -> None:
    network = small_vit()
    own = [evaluation(suite, network, tmp_path, None, shared=tmp_path / "shared", batch_size=batch_size) for _ in "ab"]
    too_many = batch_size

    def small_memory(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) >= too_many:
            raise MemoryError

    handle = network.register_forward_pre_hook(small_memory)
    one = own[0].run(*CLEAN)
    # where a forward pass was to take several blocks, one process makes all of it
    parts = [*(tmp_path / "shared").rglob("*.part")]
    assert len(parts) == (0 if batch_size > BLOCK else len(own[0].blocks) - PROBE_BLOCKS)
    handle.remove()
    other = own[1].run(*CLEAN)
    assert one.row.batch_size == other.row.batch_size == batch_size // 2
    assert_same(other, one)
    assert_same(own[1].run(*DEGRADED), own[0].run(*DEGRADED))


def test_cells_that_are_represented_and_the_clean_images_for_it_are_one_process_s(
    suite: Suite, small_vit: Build, tmp_path: Path
) -> None:
    one = evaluation(suite, small_vit(), tmp_path / "one", tmp_path / "joint", ("random_patch-0.50",))
    for cell in (CLEAN, DEGRADED):
        one.run(*cell)
    assert not (tmp_path / "joint").exists()
    one.run("random_patch", Level(0.25))
    assert len([*(tmp_path / "joint").rglob("*.part")]) == len(one.blocks)
