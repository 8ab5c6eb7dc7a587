"""Where a fixed reference model looks in the clean images of a suite: by that, never by the model under test, the
``salient`` and ``nonsalient`` patches of an image are told (IPViT, arXiv 2105.10497: DINO's ViT-S/16).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mae_bench.degradations.ladders import GRIDS
from mae_bench.models import ModelError
from mae_bench.models.checkpoints import pretrained_encoder
from mae_bench.models.classifier import Classifier
from mae_bench.models.taps import taps_of
from mae_bench.suites import SuiteEntry

HEAD = 1
"""The head of the last block whose class token is asked, as in IPViT's code."""


class Salience:
    """The share of attention that each cell of the occlusion grid has, by block of images.

    Args:
        suite: names the reference model.
        device: where it runs.
        load: gives the model of that name.

    Raises:
        ModelError: it cannot be had, or has no class token that attends to a grid of patches like the suite's.
    """

    def __init__(self, suite: SuiteEntry, device: torch.device, load: Callable[[str], nn.Module] | None = None) -> None:
        if suite.salience is None:
            raise ModelError(f"suite {suite.name!r} names no reference model, so that no patch of it is salient")
        model = (load or pretrained_encoder)(suite.salience)
        self.classifier = Classifier.of(suite.salience, model).to(device).eval()
        view = self.classifier.view
        self.size = (view.height, view.width)
        self.taps = taps_of(self.classifier.module, torch.zeros(1, self.classifier.channels, *self.size, device=device))
        grid = GRIDS[suite.reference_size]
        if self.taps.attention_reason is not None or self.taps.grid != (grid, grid) or self.taps.prefix != 1:
            raise ModelError(
                f"reference model {suite.salience!r} of suite {suite.name!r} has no class token that attends to "
                f"{grid} x {grid} patches"
            )
        self._blocks: dict[int, Tensor] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def __getitem__(self, block: int) -> Tensor:
        """(B, cells) shares of the images of a block, each image's summing to 1."""
        return self._blocks[block]

    def add(self, block: int, images: Tensor, batch_size: int) -> None:
        """Look at the clean ``images`` (B, C, H, W) in [0, 1] of a block, ``batch_size`` at a time, in float32."""
        parts = []
        with torch.inference_mode():
            for batch in torch.split(images, batch_size):
                seen = batch
                if batch.shape[-2:] != self.size:
                    seen = functional.interpolate(batch, self.size, mode="bilinear", antialias=True)
                last = self.taps.blocks
                with self.taps.capture(patches=False, attention={last: _attended}) as features:
                    self.classifier(seen)
                attended = features.attention[last, "attended"].double()
                parts.append(attended / attended.sum(1, keepdim=True))
        self._blocks[block] = torch.cat(parts)


def _attended(scores: Tensor) -> dict[str, Tensor]:
    """What the class token gives to each patch in one head."""
    return {"attended": scores[:, HEAD, 0].softmax(-1)[:, 1:]}
