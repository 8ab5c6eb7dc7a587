"""What is played back is what the network would give, image by image; the recorder of a CPU runs everything again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mae_bench.cells import Level
from mae_bench.evaluation import Evaluation
from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import Pool
from mae_bench.models.recorded import Recorded
from mae_bench.models.registry import ModelEntry
from mae_bench.models.taps import Features
from mae_bench.settings import Settings

if TYPE_CHECKING:
    from mae_bench.suites import Suite


def forward(images: Tensor, patches: bool, maps: bool) -> tuple[Tensor, Features]:
    logits = images.flatten(1).cumsum(1)
    tokens = {(0, "mean_patch"): logits * 2} | ({(0, "patch"): logits[:, None]} if patches else {})
    return logits, Features(tokens, {(1, "cls"): logits + 1}, {1: logits - 1} if maps else {})


class Recorder:
    """As a graph does, it puts all that is computed again into the memory of the first time."""

    def __init__(self) -> None:
        self.recorded = self.played = 0

    def __call__(self, call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        logits, features = call()
        into = [logits, *tensors(features)]

        def play() -> None:
            self.played += 1
            with torch.inference_mode():
                again, more = call()
                for old, new in zip(into, [again, *tensors(more)], strict=True):
                    old.copy_(new)

        return (logits, features), play


def tensors(features: Features) -> list[Tensor]:
    return [*features.tokens.values(), *features.heads.values(), *features.attention.values()]


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.booleans()), max_size=25))
def test_every_pass_gives_what_the_network_gives_and_the_next_leaves_it_alone(
    asked: list[tuple[int, bool, bool]],
) -> None:
    recorder = Recorder()
    recorded = Recorded(forward, recorder)
    given_out = []
    for number, (count, patches, maps) in enumerate(asked):
        images = torch.full((count, 1, 2, 2), float(number))
        given_out.append(((images.clone(), patches, maps), recorded(images, patches, maps)))
        images.zero_()
    for (images, patches, maps), (logits, features) in given_out:
        expected, expected_features = forward(images, patches, maps)
        assert torch.equal(logits, expected)
        assert features.tokens.keys() == expected_features.tokens.keys()
        assert all(map(torch.equal, tensors(features), tensors(expected_features)))
    seen = [asked.count(each) for each in set(asked)]
    assert recorder.recorded == sum(count > 1 for count in seen)
    assert recorder.played == sum(count - 1 for count in seen)


def test_what_is_cleared_is_recorded_again() -> None:
    recorder = Recorder()
    recorded = Recorded(forward, recorder)
    images = torch.ones(2, 1, 2, 2)
    for _ in range(3):
        recorded(images, False, False)
    recorded.clear()
    for _ in range(2):
        assert torch.equal(recorded(images, False, False)[0], forward(images, False, False)[0])
    assert recorder.recorded == 2


def test_rows_do_not_depend_on_whether_passes_are_recorded(
    tmp_path: Path, random_suite: Callable[..., Suite], small_vit: Callable[..., nn.Module]
) -> None:
    suite = random_suite(600)
    recorder = Recorder()
    found = []
    for name in ("plain", "recorded"):
        network = Classifier(small_vit(), mean=(0.5,), std=(0.5,), input_size=(1, 28, 28))
        model = Pool("cpu").load(ModelEntry("vit"), lambda network=network: network)
        condition = "gaussian_blur-1.00"
        evaluation = Evaluation(suite, model, Settings(), tmp_path / name, "run", represented=[condition])
        if name == "recorded":
            evaluation.forward_pass.network = Recorded(evaluation.forward_pass.network, recorder)
        blurred, dropped = ("gaussian_blur", Level(1.0)), ("token_drop", Level(0.5))
        cells = [evaluation.clean, evaluation.run(*blurred), evaluation.run(*dropped)]
        found.append([(cell.prediction.tolist(), cell.indicators, cell.block_sums) for cell in cells])
        found[-1].append(evaluation.represent(*blurred).records)
        evaluation.close()
    assert recorder.played > 4
    assert found[0] == found[1]
