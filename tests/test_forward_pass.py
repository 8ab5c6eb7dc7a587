"""Forward passes take as many images as memory has room for, and give one row of logits for each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mae_bench.cells import Level
from mae_bench.forward_pass import ForwardPass, ForwardPassError
from mae_bench.inputs import Inputs
from mae_bench.models.pool import LoadedModel
from mae_bench.reference import Reference
from mae_bench.settings import Settings
from mae_bench.suites import Suite
from references.small_models import linear, loaded


class AllImages:
    """Passes of a model over all images of a suite."""

    def __init__(self, suite: Suite, model: LoadedModel, folder: Path, batch_size: int = 64) -> None:
        self.inputs = Inputs(suite, model.classifier.view, Settings(batch_size=batch_size), folder)
        self.forward_pass = ForwardPass(model, self.inputs)
        self.reference = Reference(folder / "features", self.inputs.images)

    def logits(self, name: str, level: Level) -> Tensor:
        parts = self.forward_pass.parts(name, level, self.inputs.blocks, self.reference, None)
        return torch.cat([part.logits for part in parts])


CLEAN, HALF = ("clean", Level(0.0)), ("random_patch", Level(0.5))


class RunsOutOfMemory(nn.Module):
    """Takes no more than ``room`` images at once, as a GPU does."""

    def __init__(self, module: nn.Module, room: int) -> None:
        super().__init__()
        self.module, self.room, self.sizes = module, room, list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.module(images)
        return logits


@pytest.mark.parametrize(("batch_size", "fits"), [(64, 16), (256, 32), (512, 64)])
def test_a_batch_too_large_for_memory_is_halved_and_stays_so(
    suite: Suite, tmp_path: Path, batch_size: int, fits: int
) -> None:
    network = RunsOutOfMemory(linear(), 600)
    whole = AllImages(suite, loaded(network), tmp_path / "whole", batch_size)
    expected = [whole.logits(*condition) for condition in (CLEAN, HALF)]
    assert whole.inputs.batch_size == batch_size
    network.room = fits + 5
    halved = AllImages(suite, loaded(network), tmp_path / "halved", batch_size)
    for condition, logits in zip((CLEAN, HALF), expected, strict=True):
        network.sizes.clear()
        found = halved.logits(*condition)
        assert halved.inputs.batch_size == fits
        torch.testing.assert_close(found, logits)
        assert torch.equal(found.argmax(1), logits.argmax(1))
    # the second condition begins with what fitted in the first
    assert max(network.sizes) <= fits


def test_a_model_for_which_one_image_is_too_much_is_refused(suite: Suite, tmp_path: Path) -> None:
    network = RunsOutOfMemory(linear(), 2)  # which loading tries out
    model = loaded(network)
    network.room = 0
    with pytest.raises(ForwardPassError, match="no memory left for a forward pass of a single image"):
        AllImages(suite, model, tmp_path).logits(*HALF)


def test_logits_that_change_their_shape_are_refused(suite: Suite, tmp_path: Path) -> None:
    class Growing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, : 8 + (len(images) > 2)]

    with pytest.raises(ForwardPassError, match=r"'growing' gave logits of shape \(64, 9\) for 64.*expected \(64, 8\)"):
        AllImages(suite, loaded(Growing(), "growing"), tmp_path).logits(*CLEAN)
