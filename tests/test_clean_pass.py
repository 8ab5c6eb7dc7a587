"""Processes that evaluate one model share its clean pass, whoever dies in it and whatever is found on the disk."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mae_bench.cells import Level
from mae_bench.clean_pass import FINISHED, CleanPass, shared_clean_pass
from mae_bench.evaluation import Evaluation
from mae_bench.images import BLOCK
from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.models.taps import Features
from mae_bench.reference import Reference, ScratchError
from mae_bench.representation import Collector, Sample
from mae_bench.settings import Settings
from mae_bench.shard import Shard
from mae_bench.suites import Suite

Build = Callable[..., Any]

IMAGES = 300
SAMPLE = Sample(np.arange(40), torch.arange(40) % 4)
MOMENTARY = ("seconds", "images_per_second")


@dataclass
class Passes:
    """Makes the clean pass of a network of one layer, and counts how often."""

    made: list[Path] = field(default_factory=list)

    def compute(self, folder: Path) -> CleanPass:
        self.made.append(folder)
        reference = Reference(folder / "features", IMAGES)
        collector = Collector(SAMPLE, folder / "collected")
        for start in range(0, IMAGES, BLOCK):
            features = features_of(min(BLOCK, IMAGES - start), start)
            reference.add(start, min(start + BLOCK, IMAGES), features)
            reference.complete(start // BLOCK)
            collector.add(start, features, torch.arange(start, min(start + BLOCK, IMAGES)))
        collector.add_attention({(1, "attention_distance"): torch.ones(3, 2)})
        collector.add_attention({(1, "attention_distance"): torch.zeros(1, 2)})
        shard = Shard({0: np.arange(BLOCK) % 7, 1: np.arange(BLOCK, IMAGES) % 7})
        for block, images in enumerate((BLOCK, IMAGES - BLOCK)):
            shard.cell.update(block, {"images": images, "nll": images / 7})
        return CleanPass(reference, shard, 1 / 3, collector, 48)

    def shared(self, folder: Path, identity: str = "a model") -> CleanPass:
        return shared_clean_pass(folder, identity, lambda: SAMPLE, self.compute)


def features_of(images: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(images, *shape, generator=generator)

    tokens = {(layer, kind): normal(6) for layer in (0, 1) for kind in ("cls", "mean_patch")}
    return Features(
        tokens | {(1, "patch"): normal(4, 6), (0, "cls"): torch.ones(images, 6)}, {(1, "mean_patch"): normal(2, 5)}
    )


def assert_equal(one: CleanPass, other: CleanPass) -> None:
    assert one.batch_size == other.batch_size
    assert one.seconds == other.seconds
    assert one.shard.prediction.keys() == other.shard.prediction.keys()
    for block, prediction in one.shard.prediction.items():
        assert np.array_equal(prediction, other.shard.prediction[block])
    assert [*one.shard.cell.items()] == [*other.shard.cell.items()]
    assert one.reference.arrays.keys() == other.reference.arrays.keys()
    for name, value in one.reference.arrays.items():
        assert value.dtype == other.reference.arrays[name].dtype
        assert np.array_equal(value, other.reference.arrays[name]), name
    for layer, kind in one.reference._tokens:
        rows = IMAGES
        assert torch.equal(one.reference.tokens((layer, kind), 0, rows), other.reference.tokens((layer, kind), 0, rows))
    for key in one.reference._active:
        assert torch.equal(one.reference.active(key, 0, IMAGES), other.reference.active(key, 0, IMAGES))
    assert one.collector is not None
    assert other.collector is not None
    assert one.collector.tokens.keys() == other.collector.tokens.keys()
    for key, tokens in one.collector.tokens.items():
        assert np.array_equal(tokens, other.collector.tokens[key])
    assert one.collector.attention.keys() == other.collector.attention.keys()
    for key, parts in one.collector.attention.items():
        assert torch.equal(torch.cat(parts), torch.cat(other.collector.attention[key]))


def test_it_is_made_once_and_comes_back_as_it_was(tmp_path: Path) -> None:
    expected = Passes().compute(tmp_path / "alone")
    passes = Passes()
    for _ in range(2):
        assert_equal(passes.shared(tmp_path / "shared"), expected)
    assert len(passes.made) == 1


def test_it_is_read_alone(tmp_path: Path) -> None:
    found = Passes().shared(tmp_path / "shared")
    assert found.collector is not None
    for store in (
        *found.reference._tokens.values(),
        *found.reference._active.values(),
        *found.collector.tokens.values(),
    ):
        with pytest.raises(ValueError, match="read-only"):
            store[0] = 0


def test_of_several_who_come_at_once_one_makes_it_and_the_others_wait(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)
    passes = Passes()

    def come(_: int) -> CleanPass:
        barrier.wait()
        return passes.shared(tmp_path / "shared")

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(come, range(4)))
    assert len(passes.made) == 1
    for each in found[1:]:
        assert_equal(found[0], each)


def child(act: Callable[[], None]) -> int:
    """A process that acts, and dies at the end of it."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(1)
    return pid


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked, so that it dies of its own")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_where_one_dies_in_the_middle_the_next_one_makes_it(tmp_path: Path) -> None:
    begun, waits = os.pipe(), os.pipe()
    folder = tmp_path / "shared"

    def compute(own: Path) -> CleanPass:
        (own / "features").mkdir()
        (own / "features" / "tokens-0-cls.bin").write_bytes(b"half of it")
        os.write(begun[1], b".")
        os.read(waits[0], 1)  # while another one waits
        os._exit(1)

    pid = child(lambda: shared_clean_pass(folder, "a model", lambda: SAMPLE, compute) and None)
    os.read(begun[0], 1)
    passes = Passes()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(passes.shared, folder)
        assert not passes.made
        os.write(waits[1], b".")
        os.waitpid(pid, 0)
        found = other.result()
    assert len(passes.made) == 1
    assert_equal(found, Passes().compute(tmp_path / "alone"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "shared"
    Passes().shared(folder)
    return folder


@given(position=st.integers(0, 2**16), value=st.integers(1, 255))
def test_a_changed_mark_is_not_believed(finished: Path, position: int, value: int) -> None:
    whole = (finished / FINISHED).read_bytes()
    assert CleanPass.finished(finished, "a model", lambda: SAMPLE) is not None
    content = bytearray(whole)
    content[position % len(content)] ^= value
    (finished / FINISHED).write_bytes(content)
    try:
        assert CleanPass.finished(finished, "a model", lambda: SAMPLE) is None
    finally:
        (finished / FINISHED).write_bytes(whole)


def without_mark(folder: Path) -> None:
    (folder / FINISHED).unlink()


def with_half_a_mark(folder: Path) -> None:
    (folder / FINISHED).write_bytes((folder / FINISHED).read_bytes()[:-9])


def with_short_tokens(folder: Path) -> None:
    os.truncate(folder / "features" / "tokens-1-cls.bin", 100)


def with_long_activity(folder: Path) -> None:
    os.truncate(folder / "features" / "active-1-mean_patch.bin", 10_000)


def without_collected(folder: Path) -> None:
    (folder / "collected" / "1-patch.bin").unlink()


@pytest.mark.parametrize(
    "spoil", [without_mark, with_half_a_mark, with_short_tokens, with_long_activity, without_collected]
)
def test_what_is_not_whole_is_made_again(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    passes = Passes()
    expected = Passes().compute(tmp_path / "alone")
    passes.shared(tmp_path / "shared")
    spoil(tmp_path / "shared")
    assert_equal(passes.shared(tmp_path / "shared"), expected)
    assert len(passes.made) == 2


def test_the_mark_of_something_else_is_not_believed(tmp_path: Path) -> None:
    passes = Passes()
    passes.shared(tmp_path / "one", "a model")
    passes.shared(tmp_path / "one", "a model at another batch size")
    assert len(passes.made) == 2
    # nor one that was put beside other files
    passes.shared(tmp_path / "other", "another model")
    (tmp_path / "other" / FINISHED).write_bytes((tmp_path / "one" / FINISHED).read_bytes())
    passes.shared(tmp_path / "other", "another model")
    assert len(passes.made) == 4


def test_a_folder_that_cannot_be_made_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScratchError, match=r"clean features cannot be kept .*--mae-run DIR"):
        Passes().shared(tmp_path / "file" / "shared")


# --------------------------------------------------------------------------- evaluations


def counted(network: nn.Module) -> list[int]:
    """How many images pass through ``network``, pass by pass."""
    seen: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


@pytest.fixture(scope="module")
def suite(random_suite: Build) -> Suite:
    """One whole block and a short one, and beyond them what the sample needs."""
    built: Suite = random_suite(700)
    return built


def evaluation(suite: Suite, network: nn.Module, scratch: Path, shared: Path | None, head: bool = True) -> Evaluation:
    classifier = Classifier(network, mean=(0.5,), std=(0.25,), input_size=(1, 28, 28))
    model = Pool("cpu").load(ModelEntry("vit", head=head), lambda: classifier)
    return Evaluation(
        suite,
        model,
        Settings(batch_size=64, limit=512),
        scratch,
        "run",
        represented=("clean-0.00", "random_patch-0.50"),
        shared=shared,
    )


def measured(own: Evaluation, head: bool) -> dict[str, Any]:
    """All that is written of a clean and a degraded cell, without what depends on the moment."""
    found: dict[str, Any] = {}
    for name, level in (("clean", Level(0.0)), ("random_patch", Level(0.5))):
        if head:
            found[name] = own.run(name, level).to_dict()
            found[name]["row"] = {k: v for k, v in found[name]["row"].items() if k not in MOMENTARY}
        found[f"{name} represented"] = own.represent(name, level).to_dict()
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("head", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_rows_are_those_of_one_process(suite: Suite, small_vit: Build, tmp_path: Path, head: bool) -> None:
    alone = evaluation(suite, small_vit(), tmp_path, None, head)
    expected = measured(alone, head)
    networks = [small_vit(), small_vit()]
    shares = [evaluation(suite, network, tmp_path, tmp_path / "shared", head) for network in networks]
    seen = [counted(network) for network in networks]
    assert measured(shares[0], head) == expected
    shares[0].close()
    # whoever shares it has it beyond the end of who made it, and does not run it again
    assert measured(shares[1], head) == expected
    assert sum(seen[0]) - sum(seen[1]) == 700
    for own in (alone, shares[1]):
        own.close()


def test_another_number_of_images_or_threads_is_another_clean_pass(
    suite: Suite, small_vit: Build, tmp_path: Path
) -> None:
    own = evaluation(suite, small_vit(), tmp_path, tmp_path / "shared")
    known = own._all_that_decides("clean", Level(0.0))
    assert own.settings.threads == 1
    for changes in ({"threads": 2}, {"batch_size": 32}, {"limit": 0}, {"dtype": "bfloat16"}, {"seed": 1}):
        other = Evaluation(
            suite, own.model, Settings(**{"batch_size": 64, "limit": 512, **changes}), tmp_path, "run", ("x",)
        )
        assert other._all_that_decides("clean", Level(0.0)) != known
    same = Evaluation(suite, own.model, own.settings, tmp_path, "run", ("x",))
    assert same._all_that_decides("clean", Level(0.0)) == known
