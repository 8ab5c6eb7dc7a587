"""What a user writes in Python, run as it stands; type checkers read it too, and hold what it says of types."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import altair as alt
import pandas as pd
import pytest
import timm
import torch
from torch import nn

import mae_bench


def test_a_notebook(tmp_path: Path) -> None:
    results = mae_bench.evaluate("cnn_s0", suite="fashion_mnist", degradations=["gaussian_blur-2.00"], limit=512)
    assert_type(results, mae_bench.Results)
    assert_type(results.to_frame(), pd.DataFrame)
    assert_type(results.rows, list[mae_bench.ResultRow])
    assert_type(results.rows[0].top1, float | None)
    assert_type(results.plot(), alt.FacetChart)
    assert_type(results.compare(results).is_worse, bool)
    assert_type(results.indicators(), pd.DataFrame)
    assert_type(results.save(tmp_path / "run"), Path)
    assert_type(mae_bench.Results.load(tmp_path / "run"), mae_bench.Results)
    assert list(results.to_frame()["condition"]) == ["clean-0.00", "gaussian_blur-2.00"]


def test_models_of_every_kind_are_taken() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    wrapped = mae_bench.Classifier(network, mean=(0.5,), std=(0.5,), input_size=(1, 28, 28), crop_pct=1.0)
    of_timm = timm.create_model("resnet18", in_chans=1, num_classes=10)
    for model in (wrapped, [wrapped, "cnn_s0"], {"mine": wrapped, "theirs": of_timm}):
        with pytest.raises(ValueError, match=r"was never trained|no better than chance"):
            mae_bench.evaluate(model, degradations="box_blur", limit=512, device="cpu", progress=False)
    assert isinstance(wrapped, torch.nn.Module)


def test_cells_are_values() -> None:
    cell = mae_bench.Cell("mae_ft_s0", "gaussian_blur", mae_bench.Level(2.0))
    assert_type(cell.id, str)
    assert cell.id == "mae_ft_s0-gaussian_blur-2.00"
