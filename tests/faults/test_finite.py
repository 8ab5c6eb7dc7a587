"""Logits, or the features behind indicators, are not finite: the cell is invalid and has no row, and others go on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faults.reliability import Injection
from mae_bench.cells import Cell
from mae_bench.errors import BenchError
from mae_bench.executors.local import LocalExecutor
from mae_bench.models.classifier import Classifier
from mae_bench.models.registry import ModelEntry
from mae_bench.settings import Settings
from mae_bench.store import RunDirectory
from mae_bench.suites import Suite, SuiteEntry

pytestmark = pytest.mark.usefixtures("one_thread")

Journal = Callable[[Injection], None]
Build = Callable[..., Any]

CLEAN, BLOCKED, BLURRED = "clean-0.00", "center_block-0.25", "gaussian_blur-1.00"
ALL = (CLEAN, BLOCKED, BLURRED)
NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class InMemory(SuiteEntry):
    """The entry of a suite that is in memory, whose decoded images runs share. What it holds is noise, of which no
    network is expected to know.
    """

    suite: Suite | None = None

    def load(self, data: Path | None) -> Suite:  # noqa: ARG002
        assert self.suite is not None
        return replace(self.suite, entry=self)


@pytest.fixture(scope="module")
def entry(random_suite: Build) -> InMemory:
    """A whole block of 256 images and one of 44, in none of which there is a black pixel."""
    suite = random_suite(300)
    return InMemory("random_images", 28, 0, False, "noise", adversarial=True, suite=suite)


@pytest.fixture(scope="module")
def images(entry: InMemory) -> Tensor:
    """(300, 1, 28, 28) as a network is given them."""
    suite = entry.load(None)
    transform = Classifier(nn.Identity(), **PREPROCESSING).view.transform()
    return torch.stack([torch.as_tensor(transform(suite.read(i))) for i in range(300)]).float() / 255


PREPROCESSING: dict[str, Any] = {"mean": (0.0,), "std": (1.0,), "input_size": (1, 28, 28), "crop_pct": 0.9}


# --------------------------------------------------------------------------- what is not finite

Which = Callable[[Tensor], Tensor]
"""(B,) which images of a batch."""


@dataclass(frozen=True)
class Pattern:
    """``build`` gives a network from one whose weights are scattered. ``invalid`` are the conditions that it spoils,
    and ``count`` is how much of the first of them is said to be.
    """

    build: Callable[[nn.Module, Tensor], nn.Module]
    invalid: tuple[str, ...]
    count: str = "256 of 256 images"
    dtype: str = "float32"


class Spoilt(nn.Module):
    """A network whose logits are ``value`` in the ``columns`` of the images of ``which``."""

    def __init__(self, network: nn.Module, value: float, which: Which, columns: slice = slice(None)) -> None:
        super().__init__()
        self.network, self.value, self.which, self.columns = network, value, which, columns

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images).clone()
        logits[self.which(images), self.columns] = self.value
        return logits


def every(images: Tensor) -> Tensor:
    """But for the two that try a model out, of which one is black."""
    return images.flatten(1).any(1) & torch.tensor(len(images) > 2)


def blocked(images: Tensor) -> Tensor:
    return (images[:, 0, 14, 14] == 0) & every(images)


def among(some: Tensor) -> Which:
    """Those that are one of ``some`` (N, C, H, W), undegraded."""
    return lambda images: (images[:, None] == some[None]).flatten(2).all(2).any(1)


def logits(
    value: float, which: Which | slice = every, columns: slice = slice(None)
) -> Callable[[nn.Module, Tensor], nn.Module]:
    def build(network: nn.Module, images: Tensor) -> nn.Module:
        return Spoilt(network, value, among(images[which]) if isinstance(which, slice) else which, columns)

    return build


def mended(network: Any, value: float, which: Which, place: str) -> nn.Module:
    """A transformer that goes on with zeros where its features are not finite, so that its logits are. At ``place`` it
    has ``value`` for the images of ``which``, and all that comes behind is mended.
    """
    chosen: list[Tensor] = [torch.zeros(0, dtype=torch.bool)]

    def choose(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        chosen[0] = which(args[0])

    def spoil(tokens: Tensor) -> Tensor:
        spoilt = tokens.clone()
        spoilt[chosen[0], ..., 3] = value
        return spoilt

    def mend(tokens: Tensor) -> Tensor:
        return tokens.nan_to_num(0, 0, 0).clamp(-100, 100)

    network.register_forward_pre_hook(choose)
    first, second = network.blocks
    if place == "block":
        first.register_forward_hook(lambda _, __, tokens: spoil(tokens))
        second.register_forward_pre_hook(lambda _, args: (mend(args[0]),))
    elif place == "norm":
        network.norm.register_forward_hook(lambda _, __, tokens: spoil(tokens))
        network.head.register_forward_pre_hook(lambda _, args: (mend(args[0]),))
    else:  # what the heads give, before it is projected
        first.attn.norm.register_forward_pre_hook(lambda _, args: (spoil(args[0]),))
        first.attn.norm.register_forward_hook(lambda _, __, tokens: mend(tokens))
    module: nn.Module = network
    return module


def features(value: float, which: Which | slice, place: str) -> Callable[[nn.Module, Tensor], nn.Module]:
    def build(network: nn.Module, images: Tensor) -> nn.Module:
        return mended(network, value, among(images[which]) if isinstance(which, slice) else which, place)

    return build


def scaled(factor: float) -> Callable[[nn.Module, Tensor], nn.Module]:
    def build(network: Any, _: Tensor) -> nn.Module:
        with torch.no_grad():
            network.norm.weight.mul_(100)
            network.head.weight.mul_(factor)
        module: nn.Module = network
        return module

    return build


ONE, LAST, COLUMN = slice(7, 8), slice(256, None), slice(2, 3)
PATTERNS: dict[str, Pattern] = {
    "all logits are NaN": Pattern(logits(NAN), ALL),
    "all logits are +inf": Pattern(logits(INF), ALL),
    "all logits are -inf": Pattern(logits(-INF), ALL),
    "logits of one output are NaN": Pattern(logits(NAN, columns=COLUMN), ALL),
    "logits of one output are +inf": Pattern(logits(INF, columns=COLUMN), ALL),
    "logits of one output are -inf": Pattern(logits(-INF, columns=COLUMN), ALL),
    "one logit of one image is NaN": Pattern(logits(NAN, ONE, COLUMN), ALL, "1 of 256 images"),
    "one logit of one image is +inf": Pattern(logits(INF, ONE, COLUMN), ALL, "1 of 256 images"),
    "one logit of one image is -inf": Pattern(logits(-INF, ONE, COLUMN), ALL, "1 of 256 images"),
    "logits of the last block are NaN": Pattern(logits(NAN, LAST), ALL, "44 of 44 images"),
    "logits of all images but the last block are NaN, when clean": Pattern(logits(NAN, slice(0, 256)), ALL),
    "logits under one degradation alone are NaN": Pattern(logits(NAN, blocked), (BLOCKED,)),
    "logits overflow in float16": Pattern(scaled(1e4), ALL, dtype="float16"),
    "logits overflow in bfloat16": Pattern(scaled(1e37), ALL, dtype="bfloat16"),
    "tokens of a block are NaN, and logits are not": Pattern(features(NAN, every, "block"), ALL),
    "tokens of a block are infinite, and logits are not": Pattern(features(INF, every, "block"), ALL),
    "tokens of a block are NaN for one image": Pattern(features(NAN, ONE, "block"), ALL, "1 of 256 images"),
    "what the head reads is NaN under one degradation": Pattern(features(NAN, blocked, "norm"), (BLOCKED,)),
    "outputs of attention heads are NaN, and tokens are not": Pattern(features(NAN, blocked, "heads"), (BLOCKED,)),
    "outputs of attention heads are infinite in the last block": Pattern(
        features(INF, LAST, "heads"), ALL, "44 of 44 images"
    ),
    "tokens are so long that they have no direction": Pattern(features(1e25, blocked, "block"), (BLOCKED,)),
}


def test_what_is_not_finite_has_no_row_and_spoils_no_other_cell(
    entry: InMemory, images: Tensor, small_vit: Build, tmp_path: Path, journal: Journal
) -> None:
    silent = lost = 0
    for number, (what, pattern) in enumerate(PATTERNS.items()):
        run = RunDirectory.create(tmp_path / str(number), resume=False)
        executor = LocalExecutor(entry, None, Settings(batch_size=64, dtype=pattern.dtype), run, resume=False)
        model = Classifier(pattern.build(small_vit(), images), **PREPROCESSING)
        executor.load(ModelEntry("spoilt"), lambda model=model: model)
        said: dict[str, str] = {}
        for condition in ALL:
            try:
                executor.run(Cell.parse(f"spoilt-{condition}"))
            except BenchError as error:
                said[condition] = str(error)
        executor.release()
        assert set(said) == set(pattern.invalid), (what, said)
        on_disk = {path.stem for path in run.path.glob("cells/*/*.json")}
        silent += bool(on_disk & set(pattern.invalid))
        lost += on_disk != set(ALL) - set(pattern.invalid)
        first = said[pattern.invalid[0]]
        assert re.search(rf"cell spoilt-\S+ is invalid: .*{pattern.count}.* (NaN|infinite)", first), (what, first)
    journal(
        Injection(
            failure="finite",
            what="; ".join(PATTERNS),
            count=len(PATTERNS),
            behaviour="The cell ends in an error that counts the images and has no row; cells that are not "
            "concerned have theirs.",
            lost=lost,
            silent=silent,
        )
    )
