"""What a model is given: the pixels of each image alone, as they are published or hidden by whom the suite names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageOps

from mae_bench.cells import Level
from mae_bench.images import View
from mae_bench.inputs import Inputs
from mae_bench.models.classifier import Classifier
from mae_bench.settings import Settings
from mae_bench.suites import StoredImages, Suite


def inputs(suite: Suite, scratch: Path, batch_size: int = 64) -> Inputs:
    return Inputs(suite, View(28, 28, "bilinear", 0.9), Settings(batch_size=batch_size, seed=3), scratch)


def test_degraded_pixels_do_not_depend_on_who_is_degraded_together(suite: Suite, tmp_path: Path) -> None:
    given = inputs(suite, tmp_path)
    for name, level in (("random_patch", 0.5), ("random_patch_uniform", 0.25), ("stripes", 0.5)):
        whole = given.degraded(name, Level(level), 0, 600)
        for start, stop in ((0, 1), (17, 300), (599, 600)):
            assert torch.equal(given.degraded(name, Level(level), start, stop), whole[start:stop])


def test_salient_patches_are_hidden_by_the_reference_model_alone(
    suite: Suite, small_vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As many images as the sample holds, or none, see the same patches hidden, however many are passed at once."""
    seer = Classifier(small_vit(patch_size=4, num_classes=0), mean=(0.4,), std=(0.3,), input_size=(1, 28, 28))
    monkeypatch.setattr("mae_bench.salience.pretrained_encoder", {"seer": seer}.__getitem__)
    seen = replace(suite, entry=replace(suite.entry, salience="seer"))
    level = Level(0.5)
    given, other = inputs(seen, tmp_path), inputs(seen, tmp_path, batch_size=17)
    top, bottom = (given.degraded(name, level, 100, 400) for name in ("salient", "nonsalient"))
    torch.testing.assert_close(
        top, torch.cat([other.degraded("salient", level, i, i + 50) for i in range(100, 400, 50)])
    )
    clean = given.degraded("clean", Level(0.0), 100, 400)
    hidden = [(part == 0).all(1) for part in (top, bottom)]
    assert not (hidden[0] & hidden[1]).any()
    assert (hidden[0] | hidden[1]).all()
    assert torch.equal(top.where(~hidden[0][:, None], clean), clean.where(~hidden[0][:, None], clean))
    # half of the attention falls on fewer patches where they are the most attended to
    assert hidden[0].float().mean() < hidden[1].float().mean()
    assert given.unit("salient", level) == "fraction of attention of seer"


def test_published_degraded_images_are_read_and_not_made(suite: Suite, tmp_path: Path) -> None:
    asked = []

    def stored(name: str, severity: int) -> StoredImages:
        asked.append((name, severity))
        return StoredImages(f"{name} {severity}", lambda position: ImageOps.invert(suite.read(position)))

    entry = replace(suite.entry, stored=("imagenet_c", "c_extra"))
    given = inputs(replace(suite, entry=entry, stored=stored), tmp_path)
    level = Level(4.0, severity=True)
    clean, read = given.degraded("clean", Level(0.0), 0, 300), given.degraded("fog", level, 0, 300)
    # resizing rounds, in each of its two passes
    assert float((read - (1 - clean)).abs().max()) <= 2.01 / 255
    assert given.unit("fog", level) == "severity (as published, fog 4)"
    assert set(asked) == {("fog", 4)}
    assert [*tmp_path.glob("stored-*")]
    given.close()
    assert not [*tmp_path.glob("stored-*")]
