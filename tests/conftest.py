"""Small suites and networks that several test files share. Heavy imports are inside: many tests need none."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mae_bench.rows import CellResult
    from mae_bench.suites import Suite

# a slow machine is no failure, so neither the deadline nor the health check that looks at the clock applies
settings.register_profile("any_machine", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")


def pytest_runtest_setup() -> None:
    """What a test draws from torch's global generator does not hang on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_search() -> None:
    """statsmodels collects garbage at every correction for multiplicity, which among thousands of tests takes longer
    than they do: what is there before a file of tests begins is not searched.
    """
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the harness keeps beyond a run is kept for this session alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAE_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Networks this small lose more to threads than they gain."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scattered(one_thread: None) -> Callable[..., Any]:  # noqa: ARG001
    """Give a network random weights so large that its predictions and its activity vary from image to image."""
    import torch

    def scatter(module: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if name.endswith("weight") and parameter.ndim > 1:
                    parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
                else:
                    is_norm = name.endswith("weight")
                    parameter.copy_(is_norm + 0.3 * noise)
        return module.eval()

    return scatter


@pytest.fixture(scope="session")
def small_vit(scattered: Callable[..., Any]) -> Callable[..., Any]:
    """Builds timm ViTs of 16 patches, two blocks and two heads of eight features."""
    from timm.models.vision_transformer import VisionTransformer

    def build(seed: int = 0, **changes: Any) -> nn.Module:
        shape: dict[str, Any] = {
            "img_size": 28,
            "patch_size": 7,
            "in_chans": 1,
            "num_classes": 8,
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "global_pool": "token",
        }
        network: nn.Module = scattered(VisionTransformer(**(shape | changes)), seed)
        return network

    return build


@pytest.fixture(scope="session")
def small_resnet(scattered: Callable[..., Any]) -> Callable[..., Any]:
    """Builds timm ResNets of one basic block per stage."""
    from timm.models.resnet import BasicBlock, ResNet

    def build(seed: int = 0, **changes: Any) -> nn.Module:
        shape: dict[str, Any] = {"num_classes": 8, "in_chans": 1, "channels": (8, 8, 16, 16)}
        network: nn.Module = scattered(ResNet(BasicBlock, (1, 1, 1, 1), **(shape | changes)), seed)
        return network

    return build


@pytest.fixture(scope="session")
def vit_by_hand() -> Callable[[Any, Tensor], tuple[list[Tensor], list[Tensor], Tensor]]:
    """The forward pass of a timm ViT written out from its weights.

    Gives the tokens (B, N, D) before the first block, after each block and after the final norm, the head
    outputs (B, N, heads, d) of each block before the output projection, and the logits.
    """
    import torch

    def normalised(x: Tensor, norm: Any) -> Tensor:
        if isinstance(norm, torch.nn.Identity):
            return x
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        return centred / (variance + norm.eps).sqrt() * norm.weight + norm.bias

    def linear(x: Tensor, layer: Any) -> Tensor:
        return x @ layer.weight.T + layer.bias

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    def embedded(model: Any, images: Tensor) -> Tensor:
        kernel, side = model.patch_embed.proj, model.patch_embed.patch_size[0]
        patches = [
            images[:, :, top : top + side, left : left + side].flatten(1)
            for top in range(0, images.shape[2], side)
            for left in range(0, images.shape[3], side)
        ]
        tokens = torch.stack(patches, 1) @ kernel.weight.flatten(1).T + kernel.bias
        prefix = [t for t in (model.cls_token, model.reg_token) if t is not None]
        tokens = torch.cat([*(t.expand(len(images), -1, -1) for t in prefix), tokens], 1)
        summed: Tensor = tokens + model.pos_embed
        return summed

    def forward(model: Any, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        with torch.no_grad():
            x = embedded(model, images)
            tokens, heads = [x], []
            for block in model.blocks:
                q, k, v = linear(normalised(x, block.norm1), block.attn.qkv).chunk(3, -1)
                each = []
                for h in range(block.attn.num_heads):
                    part = slice(h * block.attn.head_dim, (h + 1) * block.attn.head_dim)
                    score = q[..., part] @ k[..., part].transpose(1, 2) / block.attn.head_dim**0.5
                    weight = score.exp() / score.exp().sum(-1, keepdim=True)
                    each.append(weight @ v[..., part])
                heads.append(torch.stack(each, 2))
                x = x + linear(torch.cat(each, -1), block.attn.proj)
                x = x + linear(gelu(linear(normalised(x, block.norm2), block.mlp.fc1)), block.mlp.fc2)
                tokens.append(x)
            tokens.append(normalised(x, model.norm))
            if model.global_pool == "avg":
                pooled = normalised(tokens[-1][:, model.num_prefix_tokens :].mean(1), model.fc_norm)
            else:
                pooled = tokens[-1][:, 0]
            return tokens, heads, linear(pooled, model.head)

    return forward


@pytest.fixture(scope="session")
def random_suite() -> Callable[..., Suite]:
    """Builds suites of smooth random images of 8 to 28 pixels a side, none of them with a black pixel."""
    from PIL import Image

    from mae_bench.images import content_hash, stratified
    from mae_bench.suites import Suite, SuiteEntry

    def build(
        count: int,
        channels: int = 1,
        classes: tuple[str, ...] = ("a", "b", "c", "d", "e", "f", "g", "h"),
        reference_size: int = 28,
        name: str = "random_images",
    ) -> Suite:
        generator = np.random.default_rng(count)
        images = []
        for _ in range(count):
            shape = (3, 3) if channels == 1 else (3, 3, channels)
            coarse = generator.integers(1, 256, shape, dtype=np.uint8)
            side = tuple(int(length) for length in generator.integers(8, 29, 2))
            images.append(Image.fromarray(coarse).resize(side, Image.Resampling.BILINEAR))
        labels = [int(label) for label in generator.integers(0, len(classes), count)]
        hashes = [content_hash(f"{image.size}".encode() + image.tobytes()) for image in images]
        order, manifest = stratified(hashes, labels, classes)
        entry = SuiteEntry(name, reference_size, 0, True, "random images")
        mean = (0.5,) if channels == 1 else (0.5, 0.45, 0.4)
        return Suite(entry, manifest, mean, lambda position: images[order[position]])

    return build


@pytest.fixture(scope="session")
def cell_result() -> Callable[..., CellResult]:
    """Builds finished cells of the bundled suite from their id and the class predicted for each image; fields of
    the row that are not given are made up.
    """
    from mae_bench.cells import Cell
    from mae_bench.degradations import degradation
    from mae_bench.rows import CellResult, ResultRow

    def build(
        name: str,
        prediction: Sequence[int] | np.ndarray = (),
        labels: Sequence[int] | np.ndarray | None = None,
        *,
        indicators: Sequence[dict[str, Any]] = (),
        block_sums: dict[str, list[float]] | None = None,
        **changes: Any,
    ) -> CellResult:
        cell = Cell.parse(name)
        values = np.array(prediction, dtype=np.int64)
        kind = degradation(cell.degradation, cell.level.severity)
        n = len(values)
        top1 = float(np.mean(values == np.asarray(labels)[:n])) if labels is not None and n else 0.5
        expected = changes.get("n_expected", n)
        record: dict[str, Any] = {
            field.name: None if "None" in str(field.type) else {"str": "", "int": 1, "float": 1.0}.get(str(field.type))
            for field in fields(ResultRow)
            if field.name != "schema_version"
        }
        record |= {
            "suite": "fashion_mnist", "model": cell.model, "family": kind.family, "degradation": cell.degradation,
            "level": cell.level.value, "unit": kind.unit_at(28), "condition": cell.condition, "n": n,
            "n_expected": expected,
            "status": "ok" if n == expected else "partial", "top1": top1, "top1_low": top1, "top1_high": top1,
            "images_per_second": 100.0, "classes": 10,
        }  # fmt: skip
        return CellResult(ResultRow(**record | changes), values, list(indicators), block_sums or {})

    return build


@pytest.fixture
def imports() -> Iterator[dict[str, ModuleType]]:
    """Modules that pytest runs in this process import: the pytester forgets them, but torch cannot come in twice."""
    import torch

    assert torch.__name__ in sys.modules
    kept = dict(sys.modules)
    yield kept
    for name, module in kept.items():
        sys.modules.setdefault(name, module)


@pytest.fixture
def project(
    imports: dict[str, ModuleType], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    """An empty directory in which a user writes models and tests, outside any continuous integration."""
    import torch

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # whose child this process may be
    monkeypatch.setenv("PYTEST_ADDOPTS", "--mae-report=none")  # which takes longer than all cells of such a project
    # as if there were a worker for each core, since networks this small lose more to threads than they gain
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", str(os.cpu_count()))
    threads = torch.get_num_threads()
    empty = Project(pytester, imports)
    yield empty
    empty.keep_imports()
    torch.set_num_threads(threads)


NETWORKS = '''
"""Networks that tell red, green and blue images apart by their mean colour, and write down what becomes of them."""

import gc
import json
import os
import weakref
import zlib
from pathlib import Path

import torch

from mae_bench import Classifier

HERE = Path(__file__).parent


def note(text):
    with (HERE / "log.txt").open("a") as log:
        log.write(text + "\\n")


class MeanColour(torch.nn.Module):
    """wrong.json may map the id of a cell to the first and the last of the images that it gets wrong there, or to null
    where it breaks down. What the first cell that runs is told also befalls the clean pass. Each such table comes with
    weights of its own, drift.json with the same weights as ever."""

    def __init__(self, name):
        super().__init__()
        self.name, self.cell, self.seen = name, None, 0
        self.weight = torch.nn.Parameter(torch.eye(3).flip(1))
        files = HERE / "wrong.json", HERE / "drift.json"
        wrong, drift = (json.loads(file.read_text()) if file.exists() else {} for file in files)
        own = [item for item in sorted(wrong.items()) if item[0].startswith(name + "-") and item[1]]
        self.weight.data *= 1 + zlib.crc32(repr(own).encode()) % 997 if own else 1
        self.wrong = wrong | drift

    def forward(self, images):
        logits = images.mean((2, 3)) @ self.weight
        if not images[0].any():
            return logits  # none of the suite's images is black, but the first that tries a model out
        note(f"forward {self.name} {len(images)}")
        cell = os.environ["PYTEST_CURRENT_TEST"].partition("[")[2].partition("]")[0]
        self.cell, self.seen = cell, self.seen if cell == self.cell else 0
        bounds = self.wrong.get(cell, (0, 0))
        if bounds is None:
            raise RuntimeError("the network broke down")
        first, last = (max(0, bound - self.seen) for bound in bounds)
        self.seen += len(images)
        logits[first:last] *= -1
        return logits


def mean_colour(name):
    note(f"build {name}")
    network = MeanColour(name)
    weakref.finalize(network, note, f"free {name}")
    return Classifier(network, mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 16, 16), crop_pct=1.0)
'''
MODEL = '''
@model_fixture
def {name}():
    """Reads the mean colour of an image."""
    from networks import mean_colour

    return mean_colour("{name}")
'''


class Project:
    """A directory with a conftest.py, tests and images, and the results of running pytest there."""

    def __init__(self, pytester: pytest.Pytester, imports: dict[str, ModuleType]) -> None:
        self.pytester = pytester
        self.imports = imports
        self.path = pytester.path

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def images(self, folder: str = "data", per_class: int = 5, classes: str = "bgr", seed: int = 0) -> Path:
        """Noisy images of 16 px, those of class k brightest in channel 2 - k and none with a black pixel."""
        from PIL import Image

        generator = np.random.default_rng(seed)
        for k, name in enumerate(classes):
            (self.path / folder / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = generator.integers(1, 100, (16, 16, 3), dtype=np.uint8)
                pixels[..., 2 - k] += 120
                Image.fromarray(pixels).save(self.path / folder / name / f"{i}.png", compress_level=0)
        return self.path / folder

    def conftest(self, text: str) -> None:
        self.write("networks.py", NETWORKS)
        self.write("conftest.py", f"import pytest\n\nfrom mae_bench import model_fixture\n\n{text}")

    def models(self, *names: str) -> None:
        """A conftest.py with a linear read-out of the mean colour under each name."""
        self.conftest("\n".join(MODEL.format(name=name) for name in names))

    def test(self, *families: str, name: str = "test_x.py") -> None:
        """The three lines that run every cell of the families."""
        marks = "\n".join(f"@pytest.mark.{family}" for family in families)
        self.write(name, f"import pytest\n\n\n{marks}\ndef test_cell(cell):\n    cell.check()\n")

    def matrix(self, *families: str, models: tuple[str, ...] = ("colour",), per_class: int = 5) -> None:
        """A whole project: models, images, settings, and a test of the families."""
        self.models(*models)
        self.images(per_class=per_class)
        self.write("pytest.ini", "[pytest]\nmae_suite = imagefolder\nmae_data = data\n")
        self.test(*families)

    def run(self, *arguments: object, plugins: tuple[object, ...] = ()) -> pytest.RunResult:
        """What pytest makes of the arguments, in this process."""
        keep_imports = self.keep_imports

        class Imports:
            def pytest_unconfigure(self) -> None:
                keep_imports()

        result = self.pytester.runpytest_inprocess(*map(str, arguments), plugins=[Imports(), *plugins])
        for name, module in self.imports.items():
            sys.modules.setdefault(name, module)
        return result

    def keep_imports(self) -> None:
        """Remember what is imported now, but for the project's own modules."""
        for name in sys.modules.keys() - self.imports.keys():
            module = sys.modules[name]
            if not str(getattr(module, "__file__", "")).startswith(str(self.path)):
                self.imports[name] = module

    @property
    def log(self) -> list[str]:
        """What the networks wrote down."""
        path = self.path / "log.txt"
        return path.read_text().splitlines() if path.exists() else []

    def cells(self, run: str = "run") -> dict[str, dict[str, Any]]:
        """The finished cells of a run directory: id to what is on file."""
        files = (self.path / run / "cells").glob("*/*.json")
        return {f"{file.parent.name}-{file.stem}": json.loads(file.read_text()) for file in files}

    def rows(self, run: str = "run") -> dict[str, dict[str, Any]]:
        """Rows by cell, without what depends on the moment."""
        momentary = ("seconds", "images_per_second", "run_id", "threads")
        return {
            cell: {name: value for name, value in record["row"].items() if name not in momentary}
            for cell, record in self.cells(run).items()
        }
