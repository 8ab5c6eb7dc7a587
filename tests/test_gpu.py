"""What must hold on a GPU, against the same on the CPU. Deselected unless asked for with -m gpu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from mae_bench.cells import Level
from mae_bench.degradations import BUILT_IN, DEGRADATIONS, PATTERNS, Degradation
from mae_bench.degradations.ladders import ladder
from mae_bench.degradations.occlusion import hidden, hidden_tokens
from mae_bench.evaluation import Evaluation
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.models.zoo import bundled
from mae_bench.perf.degradations import setting_of
from mae_bench.randomness import random_normal, random_uniform, random_words
from mae_bench.reference import to_device
from mae_bench.settings import Settings
from mae_bench.suites import SUITES

pytestmark = pytest.mark.gpu

PIXELS = [kind for kind in BUILT_IN if kind.family != "clean" and not kind.on_tokens]
STATED_SHARE = 0.001
"""Of the pixels of a corruption that rounds, thresholds or counts, how many may differ."""
GLASS_SHARE = 0.005
"""Of glass, which carries a turned pixel along a chain of copies."""
COORDINATES = 1e-4
"""How far pixels may lie apart that are looked up between others, at places computed in float32."""
CPU = torch.device("cpu")


def named(kind: Degradation) -> str:
    return f"{kind.family}-{kind.name}"


@pytest.fixture(scope="module")
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.fail(f"torch {torch.__version__} sees no CUDA device: run tox -e gpu on a machine that has one")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda:0")


def smooth_images(count: int, side: int = 224) -> torch.Tensor:
    """8-bit images with edges and smooth parts."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 12, 12, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return (images * 255).round() / 255


def test_random_numbers_are_the_same_to_the_bit(cuda: torch.device) -> None:
    keys = torch.randint(-(2**62), 2**62, (7,), generator=torch.Generator().manual_seed(1))
    for draw in (random_words, random_uniform):
        assert torch.equal(draw(keys, 1001, 3, "x"), draw(keys.to(cuda), 1001, 3, "x").cpu())
    torch.testing.assert_close(
        random_normal(keys, 1001, 3, "x"), random_normal(keys.to(cuda), 1001, 3, "x").cpu(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks_are_the_same_to_the_bit(cuda: torch.device, pattern: str) -> None:
    for level in ladder(DEGRADATIONS[pattern], 224):
        on_cpu, on_gpu = (hidden(pattern, level.value, setting_of(16, device), (224, 224)) for device in (CPU, cuda))
        assert torch.equal(on_cpu, on_gpu.cpu())


def test_the_same_tokens_are_dropped(cuda: torch.device) -> None:
    for level in ladder(DEGRADATIONS["token_drop"], 224):
        on_cpu, on_gpu = (hidden_tokens(level.value, setting_of(16, device), (14, 14)) for device in (CPU, cuda))
        assert torch.equal(on_cpu, on_gpu.cpu())


@pytest.mark.parametrize("kind", PIXELS, ids=named)
def test_pixels_are_the_same_but_for_rounding(cuda: torch.device, kind: Degradation) -> None:
    images = smooth_images(8)
    for level in ladder(kind, 224)[::2]:
        on_cpu = kind.apply(images, level, setting_of(8, CPU))
        on_gpu = kind.apply(images.to(cuda), level, setting_of(8, cuda)).cpu()
        looked_up = kind.family == "geometry" or kind.module == "elastic"
        off = (on_cpu - on_gpu).abs() > (COORDINATES if looked_up else 1e-5)
        share = GLASS_SHARE if kind.name == "glass_blur" else STATED_SHARE
        assert float(off.float().mean()) <= (share if kind.by_severity or kind.by_salience else 0)


@pytest.fixture(scope="module")
def evaluated(cuda: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Top-1 and predictions of a bundled model's cells by device and number format."""
    suite = SUITES["fashion_mnist"].load(None)
    cells = [("random_patch", Level(0.5)), ("gaussian_blur", Level(1.5)), ("fog", Level(3.0, severity=True))]

    def run(name: str, device: torch.device, dtype: str, graphs: bool = False, prefetch: bool = True) -> list[Any]:
        model = Pool(str(device)).load(ModelEntry(name), lambda: bundled(name))
        settings = Settings(device=str(device), dtype=dtype, limit=1024, graphs=graphs, prefetch=prefetch)
        evaluation = Evaluation(suite, model, settings, tmp_path_factory.mktemp("scratch"), "run")
        try:
            return [evaluation.clean, *(evaluation.run(*cell) for cell in cells)]
        finally:
            evaluation.close()

    assert cuda.type == "cuda"
    return run


def test_predictions_in_float32_are_those_of_the_cpu_but_for_near_ties(
    evaluated: Callable[..., Any], cuda: torch.device
) -> None:
    for on_cpu, on_gpu in zip(
        evaluated("mae_ft_s0", CPU, "float32"), evaluated("mae_ft_s0", cuda, "float32"), strict=True
    ):
        turned = int((on_cpu.prediction != on_gpu.prediction).sum())
        assert turned <= on_cpu.row.near_ties + (on_cpu.row.n * STATED_SHARE if "fog" in on_cpu.row.condition else 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["mae_ft_s0", "cnn_s0"])
def test_what_is_played_back_is_what_was_recorded(
    evaluated: Callable[..., Any], cuda: torch.device, name: str, dtype: str
) -> None:
    for plain, played in zip(evaluated(name, cuda, dtype), evaluated(name, cuda, dtype, graphs=True), strict=True):
        assert (plain.prediction == played.prediction).all()
        assert played.indicators == plain.indicators


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_sent_ahead_changes_nothing(evaluated: Callable[..., Any], cuda: torch.device, dtype: str) -> None:
    ahead, waited = (evaluated("mae_ft_s0", cuda, dtype, prefetch=prefetch) for prefetch in (True, False))
    for one, other in zip(ahead, waited, strict=True):
        assert (one.prediction == other.prediction).all()
        assert one.indicators == other.indicators


def test_what_is_sent_is_what_arrives_whatever_the_gpu_is_at(cuda: torch.device) -> None:
    sent = [torch.full((1 << 22,), float(number)) for number in range(20)]
    busy = torch.rand(4096, 4096, device=cuda)
    totals = []
    for values in sent:
        busy = (busy @ busy).clamp(0, 1)
        totals.append(to_device(values, cuda).double().sum())
    assert [float(total) for total in totals] == [number * float(1 << 22) for number in range(20)]


def test_bfloat16_ranks_models_as_float32_does(evaluated: Callable[..., Any], cuda: torch.device) -> None:
    names = ("mae_ft_s0", "supervised_s0", "mae_probe_s0", "cnn_s0")
    tops = {
        dtype: np.array([[cell.row.top1 for cell in evaluated(name, cuda, dtype)] for name in names])
        for dtype in ("float32", "bfloat16")
    }
    assert np.abs(tops["float32"] - tops["bfloat16"]).max() < 0.01
    for cell in range(tops["float32"].shape[1]):
        # two models closer than a point may change places
        steps = [np.round(tops[dtype][:, cell], 2) for dtype in tops]
        assert kendalltau(*steps).statistic > 0.6


@pytest.mark.parametrize(
    "cell", [("random_patch", 0.5, False), ("token_drop", 0.5, False), ("gaussian_noise", 3.0, True)]
)
def test_a_cell_waits_for_the_gpu_only_at_its_end(
    cuda: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: tuple[str, float, bool]
) -> None:
    """Between the first block and the last the host reads nothing back."""
    name, level = cell[0], Level(cell[1], severity=cell[2])
    suite = SUITES["fashion_mnist"].load(None)
    model = Pool(str(cuda)).load(ModelEntry("mae_ft_s0"), lambda: bundled("mae_ft_s0"))
    evaluation = Evaluation(suite, model, Settings(device=str(cuda), limit=2048), tmp_path, "run")
    assert evaluation.clean.row.top1 is not None
    evaluation.run(name, level)  # what is sent to the device once has been sent
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_settle", lambda *_: None)
        torch.cuda.set_sync_debug_mode("error")
        try:
            shard = evaluation.shard(name, level, range(3, 7))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert shard.tokens
    evaluation.close()
