"""The same cells run in other batches, threads, workers, orders and parts: the same rows.

They are equal bit by bit where batch size and threads are; otherwise no more predictions differ than there are images
whose two likeliest classes are as good as equal, which the rows count.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from faults.prepared import Interpreter, pytest_of
from faults.reliability import Injection
from mae_bench.rows import CellResult
from mae_bench.store import RunDirectory, cell_of

if TYPE_CHECKING:
    from conftest import Project

Journal = Callable[[Injection], None]

CONFTEST = """
import os
import random


def pytest_collection_modifyitems(items):
    if "SHUFFLE" in os.environ:
        random.Random(os.environ["SHUFFLE"]).shuffle(items)


@model_fixture
def one():
    from networks import vit

    return vit("one")


@model_fixture
def two():
    from networks import vit

    return vit("two")
"""
NETWORKS = '''
"""ViTs with random weights whose classifier has been fitted to the images."""

from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer

from mae_bench import Classifier

SHAPE = dict(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3)


def vit(name):
    network = VisionTransformer(**SHAPE)
    network.load_state_dict(torch.load(Path(__file__).parent / f"{name}.pt", weights_only=True))
    return Classifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 16, 16), crop_pct=1.0)
'''
CELLS = ("gaussian_blur-1.00", "gaussian_blur-6.00", "random_patch-0.10", "random_patch-0.50")
ALL = " or ".join(CELLS)
MOMENTARY = ("seconds", "images_per_second", "run_id", "batch_size", "threads")


@pytest.fixture
def determined(project: Project, scattered: Callable[..., Any]) -> Project:
    """A project of two ViTs that know their images, of which the last block is a short one."""
    import torch
    from PIL import Image
    from timm.models.vision_transformer import VisionTransformer

    folder = project.images(per_class=180)
    files = sorted(folder.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    targets = torch.tensor([["b", "g", "r"].index(file.parent.name) for file in files])
    project.conftest(CONFTEST)
    project.write("networks.py", NETWORKS)
    project.write("pytest.ini", "[pytest]\nmae_suite = imagefolder\nmae_data = data\n")
    project.test("blur")
    project.test("occlusion", name="test_y.py")
    for seed, name in enumerate(("one", "two")):
        shape: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
        network = scattered(VisionTransformer(**shape, num_classes=3), seed)
        with torch.inference_mode():
            features = network.forward_head(network.forward_features(images), pre_logits=True)
        solved = torch.linalg.lstsq(features, torch.nn.functional.one_hot(targets, 3).float()).solution
        network.head.weight.data, network.head.bias.data = solved.T.contiguous(), torch.full((3,), 0.01)
        torch.save(network.state_dict(), project.path / f"{name}.pt")
    return project


@dataclass(frozen=True)
class Way:
    """A way to run the cells: arguments, or several one after the other; environment; what is done before."""

    name: str
    arguments: tuple[tuple[str, ...], ...] = (("-k", ALL),)
    environment: dict[str, str] = field(default_factory=dict)
    before: str = ""
    cells: tuple[str, ...] = CELLS


ALONE = {"PYTEST_XDIST_WORKER_COUNT": "1"}
WAYS = (
    Way("in batches of 8", (("-k", ALL, "--mae-batch-size", "8"),)),
    Way("shuffled", environment={"SHUFFLE": "1"}),
    Way("one half, then the whole", (("-k", "gaussian_blur-1.00 or random_patch-0.10"), ("-k", ALL, "--mae-resume"))),
    Way("in single images", (("-k", ALL, "--mae-batch-size", "1"),)),
    Way("in batches of 100", (("-k", ALL, "--mae-batch-size", "100"),)),
    Way("in batches of two blocks", (("-k", ALL, "--mae-batch-size", "512"),)),
    *(Way(f"decoded by {n}", before=f"import mae_bench.images as i; i.cores = lambda: {n}") for n in (1, 2, 4)),
    *(Way(f"by {n} workers", (("-k", ALL, "-n", str(n)),)) for n in (1, 2, 4)),
    Way("by 2 workers, shuffled", (("-k", ALL, "-n", "2"),), {"SHUFFLE": "2"}),
    Way("with a thread for each core", environment=ALONE),
    Way("shuffled otherwise", environment={"SHUFFLE": "3"}),
    Way("one cell", (("-k", CELLS[3]),), cells=(CELLS[3],)),
    Way("files in the other order", (("test_y.py", "test_x.py", "-k", ALL),)),
    Way("by 2 workers, then alone", (("-k", CELLS[1], "-n", "2"), ("-k", ALL, "--mae-resume"))),
    Way("resumed under a shuffle", (("-k", CELLS[2]), ("-k", ALL, "--mae-resume")), {"SHUFFLE": "4"}),
)


def content(result: CellResult) -> tuple[Any, ...]:
    """What is in a cell, without times and what does not change outcomes."""
    row = {name: value for name, value in result.row.to_dict().items() if name not in MOMENTARY}
    return row, result.prediction.tolist(), result.indicators, result.block_sums


@pytest.mark.parametrize("count", [2, pytest.param(len(WAYS), marks=pytest.mark.faults)])
def test_rows_do_not_depend_on_how_cells_are_run(
    determined: Project, interpreter: Interpreter, journal: Journal, count: int
) -> None:
    def run(way: Way) -> dict[str, CellResult]:
        path = determined.path / way.name.replace(" ", "_")
        with tempfile.TemporaryFile("w+") as output:
            environment = {"MAE_BENCH_CACHE": str(path.with_suffix(".cache")), **way.environment}
            for arguments in way.arguments:
                common = ("--mae-run", path, "--mae-baseline", "none", "-p", "no:cacheprovider", "-q")
                code = f"{way.before}\n{pytest_of(*common, *arguments)}"
                status = interpreter.start(code, determined.path, output, environment).wait()
                output.seek(0)
                assert status == 0, output.read()
        return {cell_of(result.row).id: result for result in RunDirectory(path).cells()}

    with ThreadPoolExecutor(2) as threads:
        reference, *others = threads.map(run, (Way("as ever"), *WAYS[:count]))
    top1 = {cell: result.row.top1 or 0 for cell, result in reference.items()}
    assert len(reference) == 2 * (len(CELLS) + 1)
    assert 0.4 < min(top1.values()) < max(top1.values()) <= 1
    bitwise = loosely = 0
    for way, found in zip(WAYS, others, strict=False):
        assert found.keys() == {f"{model}-{cell}" for model in ("one", "two") for cell in (*way.cells, "clean-0.00")}
        for cell, result in found.items():
            expected = reference[cell]
            if (result.row.batch_size, result.row.threads) == (expected.row.batch_size, expected.row.threads):
                bitwise += content(result) != content(expected)
            else:
                ties = max(result.row.near_ties or 0, expected.row.near_ties or 0)
                loosely += int((result.prediction != expected.prediction).sum()) > ties
    journal(
        Injection(
            "determinism",
            f"the cells of two models run {', '.join(way.name for way in WAYS)}",
            count,
            "rows, predictions and indicators are equal bit by bit where batch size and threads are, predictions but "
            "for near ties otherwise",
            lost=loosely,
            silent=bitwise,
        )
    )
