"""The one loop: a model on a suite under a degradation, from pixels to a row."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_bench.cells import Cell, Level
from mae_bench.degradations import Setting, degradation
from mae_bench.errors import BenchError
from mae_bench.images import BLOCK, View, decoded
from mae_bench.indicators import INDICATOR_VERSION, alignment, retention
from mae_bench.indicators.accuracy import TOP_K, accuracy_sums, outcomes
from mae_bench.indicators.block_sums import BlockSums
from mae_bench.indicators.calibration import calibration_sums, expected_calibration_error
from mae_bench.indicators.profile import profile
from mae_bench.models.pool import LoadedModel
from mae_bench.models.taps import KINDS, Features
from mae_bench.reference import Key, Reference
from mae_bench.rows import ResultRow
from mae_bench.statistics import wilson
from mae_bench.suites import Suite

RETENTION_KIND = "mean_patch"
"""Token kind whose retention stands in a row: the one that every model with heads has."""

CPU_BATCH, CUDA_BATCH = 64, 256
"""Images per forward pass where the batch size is ``auto``: what fits a core's cache, and one block."""


class EvaluationError(BenchError):
    """A cell that has no valid result."""


@dataclass(frozen=True)
class Settings:
    """How cells are evaluated. ``limit`` 0 means all images, ``batch_size`` 0 means automatic; ``suite_view``
    forces the suite's view on every model.
    """

    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 0
    seed: int = 0
    limit: int = 0
    threads: int = 1
    suite_view: bool = False


@dataclass(frozen=True)
class CellResult:
    """A row and what stands behind it.

    ``prediction`` (n,) is the class predicted for each image by position in the suite's classes; an output
    that stands for none of them is ``-1 - output``. ``indicators`` are the records of
    :func:`mae_bench.indicators.profile.profile`. ``block_sums`` are sums per block of 256 images of what the row
    reports.
    """

    row: ResultRow
    prediction: np.ndarray
    indicators: list[dict[str, Any]]
    block_sums: dict[str, list[float]]


@dataclass
class Shard:
    """What a pass over some blocks of a cell leaves: predicted outputs per block, sums of the cell, and sums per
    layer and kind. Shards of disjoint blocks merge into what one pass over all of them gives.
    """

    prediction: dict[int, np.ndarray] = field(default_factory=dict)
    cell: BlockSums = field(default_factory=BlockSums)
    tokens: dict[Key, BlockSums] = field(default_factory=dict)
    heads: dict[Key, BlockSums] = field(default_factory=dict)

    def merge(self, other: Shard) -> None:
        """Raises:
        ValueError: a block is in both.
        """
        self.cell.merge(other.cell)
        self.prediction |= other.prediction
        for mine, theirs in ((self.tokens, other.tokens), (self.heads, other.heads)):
            for key, sums in theirs.items():
                mine.setdefault(key, BlockSums()).merge(sums)


class Evaluation:
    """All cells of one model on one suite. The clean pass runs once, when it is first needed.

    ``scratch`` is a folder for decoded images, which evaluations share, and for clean features, which
    :meth:`close` removes.
    """

    def __init__(self, suite: Suite, model: LoadedModel, settings: Settings, scratch: Path, run_id: str) -> None:
        self.suite = suite
        self.model = model
        self.settings = settings
        self.scratch = scratch
        self.run_id = run_id
        self.device = torch.device(settings.device)
        self.images = suite.manifest.subset(settings.limit)
        self.label_map = suite.label_map(model.entry.name, model.outputs)
        if model.classifier.channels not in (suite.channels, 3):
            raise EvaluationError(
                f"model {model.entry.name!r} takes {model.classifier.channels} channel(s) but suite "
                f"{suite.entry.name!r} has {suite.channels}: give the model {suite.channels} input channels"
            )
        self.view = self._suite_view() if settings.suite_view else model.classifier.view
        self._failed = ""
        self._clean: CellResult | None = None
        self._reference: Reference | None = None
        self._folder: Path | None = None

    @property
    def clean(self) -> CellResult:
        """The clean cell."""
        self._run_clean()
        assert self._clean is not None
        return self._clean

    @property
    def reference(self) -> Reference:
        """The clean features."""
        self._run_clean()
        assert self._reference is not None
        return self._reference

    def run(self, name: str, level: Level) -> CellResult:
        """The cell of degradation ``name`` at ``level``.

        Raises:
            EvaluationError: logits are not finite.
            ValueError: the degradation is unknown, or the level outside its domain.
        """
        degradation(name).check(level)
        if degradation(name).family == "clean":
            return self.clean
        reference = self.reference
        started = time.perf_counter()
        shard = self._shard(name, level, self.blocks, reference)
        return self.result(name, level, shard, time.perf_counter() - started)

    def shard(self, name: str, level: Level, blocks: range) -> Shard:
        """The given blocks of a degraded cell alone, to be merged with the others before :meth:`result`."""
        return self._shard(name, level, blocks, self.reference)

    @property
    def blocks(self) -> range:
        return range(-(-self.images // BLOCK))

    def close(self) -> None:
        """Remove the clean features from disk; another cell would need another clean pass."""
        self._clean = self._reference = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def identity(self, name: str, level: Level) -> dict[str, Any]:
        """Fields by which a finished cell is recognised before it is run, as :data:`mae_bench.rows.IDENTITY`."""
        kind = degradation(name)
        return {
            "suite": self.suite.entry.name,
            "model": self.model.entry.name,
            "degradation": name,
            "level": level.value,
            "unit": kind.unit,
            "manifest_hash": self.suite.manifest_hash,
            "label_map": self.label_map.name,
            "weights_hash": self.model.weights_hash,
            "preprocessing": self.model.classifier.preprocessing,
            "degradation_version": kind.version,
            "seed": self.settings.seed,
            "dtype": self.settings.dtype,
            "device": self.device.type,
            "view": str(self.view),
            "subset": f"first {self.images} of {len(self.suite.manifest.ids)}",
            "indicator_version": INDICATOR_VERSION,
            "torch_version": str(torch.__version__),
            "mae_bench_version": version("mae_bench"),
        }

    @property
    def batch_size(self) -> int:
        """Images per forward pass: as set, above a block rounded down to whole blocks."""
        size = self.settings.batch_size or (CUDA_BATCH if self.device.type == "cuda" else CPU_BATCH)
        return size if size <= BLOCK else size // BLOCK * BLOCK

    @cached_property
    def _pixels(self) -> np.ndarray:
        suite = self.suite
        folder = self.scratch / "decoded"
        return decoded(suite.manifest, self.images, self.view, suite.channels, suite.read, folder)

    @cached_property
    def _targets(self) -> np.ndarray:
        """(images,) the model output that stands for each image's class."""
        return np.asarray(np.asarray(self.label_map.outputs)[self.suite.manifest.labels[: self.images]])

    @cached_property
    def _class_of_output(self) -> np.ndarray:
        classes: np.ndarray = -1 - np.arange(self.model.outputs)
        classes[list(self.label_map.outputs)] = np.arange(len(self.label_map.outputs))
        return classes

    def _suite_view(self) -> View:
        """The suite's own view, tried on the model."""
        entry, model = self.suite.entry, self.model
        size = entry.reference_size
        example = torch.zeros(2, self.suite.channels, size, size, device=self.device)
        try:
            with torch.inference_mode():
                model.classifier(example)
        except Exception as error:
            raise EvaluationError(
                f"model {model.entry.name!r} cannot take the view of suite {entry.name!r}, {size}x{size} pixels "
                f"({error}): leave it out, or use --mae-view model"
            ) from error
        return View(size, size, "bilinear", entry.crop_pct)

    def _run_clean(self) -> None:
        if self._clean is not None:
            return
        if self._failed:
            raise EvaluationError(self._failed)
        _ = self._pixels  # decoded before the clock starts, and before there is anything to clean up
        self.scratch.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="reference-", dir=self.scratch))
        reference = Reference(self._folder / "features", self.images)
        started = time.perf_counter()
        try:
            shard = self._shard("clean", Level(0.0), self.blocks, reference)
        except BenchError as error:
            self._failed = str(error)  # every cell needs the clean pass, and it would end the same way
            self.close()
            raise
        self._reference = reference
        self._clean = self.result("clean", Level(0.0), shard, time.perf_counter() - started)

    def _shard(self, name: str, level: Level, blocks: range, reference: Reference) -> Shard:
        clean = name == "clean"
        shard = Shard()
        for number, logits, features in self._forward(name, level, blocks, reference):
            start = number * BLOCK
            stop = start + len(logits)
            bad = ~torch.isfinite(logits).all(1)
            if bool(bad.any()):
                first = start + int(bad.int().argmax())
                raise EvaluationError(
                    f"cell {Cell(self.model.entry.name, name, level).id} is invalid: {int(bad.sum())} of "
                    f"{len(logits)} images in a block have NaN or infinite logits, the first is "
                    f"{self.suite.manifest.ids[first]}; check the weights and --mae-dtype ({self.settings.dtype})"
                )
            block = outcomes(logits, torch.from_numpy(self._targets[start:stop]).to(logits.device))
            shard.prediction[number] = block.prediction
            if clean:
                reference.prediction[start:stop] = block.prediction
                reference.add(start, features)
            shard.cell.update(
                number,
                {
                    **accuracy_sums(block, reference.prediction[start:stop]),
                    **calibration_sums(block.confidence, block.hit),
                },
            )
            if not clean:
                self._indicator_sums(shard, number, start, stop, features, reference)
        return shard

    def _forward(
        self, name: str, level: Level, blocks: range, reference: Reference
    ) -> Iterator[tuple[int, Tensor, Features]]:
        """Number, logits and features of each block; several blocks share a forward pass where it is large."""
        at_once = max(1, self.batch_size // BLOCK)
        for group in (blocks[i : i + at_once] for i in range(0, len(blocks), at_once)):
            first, last = group[0] * BLOCK, min((group[-1] + 1) * BLOCK, self.images)
            patches = reference.in_probe(first)
            step = self.batch_size if at_once == 1 else last - first
            parts: list[tuple[Tensor, Features]] = []
            for begin in range(first, last, step):
                with self.model.taps.capture(patches) as features:
                    logits = self.logits(self.degraded(name, level, begin, min(begin + step, last)))
                parts.append((logits, features))
            logits = torch.cat([part[0] for part in parts])
            features = Features.concatenated([part[1] for part in parts])
            for number in group:
                window = slice(number * BLOCK - first, min((number + 1) * BLOCK, last) - first)
                yield number, logits[window], _window(features, window, reference.in_probe(number * BLOCK))

    def degraded(self, name: str, level: Level, start: int, stop: int) -> Tensor:
        """Images ``start`` to ``stop`` of the suite in [0, 1] on the device, degraded: (B, C, H, W) float32."""
        pixels = torch.from_numpy(np.array(self._pixels[start:stop])).to(self.device).float() / 255
        setting = Setting(
            keys=torch.from_numpy(self.suite.manifest.keys[start:stop]).to(self.device),
            seed=self.settings.seed,
            reference_size=self.suite.entry.reference_size,
            mean=self.suite.mean,
        )
        return degradation(name).apply(pixels, level, setting)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, outputs) in float32 of images in [0, 1].

        Raises:
            EvaluationError: the model's logits change their shape.
        """
        dtype: torch.dtype = getattr(torch, self.settings.dtype)
        lowered = torch.autocast(self.device.type, dtype) if dtype != torch.float32 else nullcontext()
        with torch.inference_mode(), lowered:
            logits: Tensor = self.model.classifier(images)
        if logits.shape != (len(images), self.model.outputs):
            raise EvaluationError(
                f"model {self.model.entry.name!r} gave logits of shape {tuple(logits.shape)} for {len(images)} images; "
                f"expected ({len(images)}, {self.model.outputs})"
            )
        return logits.float()

    def _indicator_sums(
        self, shard: Shard, number: int, start: int, stop: int, features: Features, reference: Reference
    ) -> None:
        for key, degraded in features.tokens.items():
            if key not in reference.constant:
                clean = reference.tokens(key, start, stop).to(self.device)
                center = reference.centers[key].to(self.device)
                block = alignment.alignment_sums(clean, degraded, center)
                shard.tokens.setdefault(key, BlockSums()).update(number, {"images": stop - start, **block})
        for key, outputs in features.heads.items():
            mask = retention.active(outputs, reference.thresholds[key].to(self.device))
            block_counts = retention.retention_sums(reference.active(key, start, stop).to(self.device), mask)
            shard.heads.setdefault(key, BlockSums()).update(number, block_counts)

    def result(self, name: str, level: Level, shard: Shard, seconds: float) -> CellResult:
        """The cell that ``shard`` amounts to.

        Raises:
            ValueError: it lacks blocks.
        """
        if shard.cell.blocks != list(self.blocks):
            raise ValueError(f"{name}: the shard holds {len(shard.cell.blocks)} of {len(self.blocks)} blocks")
        sums = shard.cell
        prediction = np.concatenate([shard.prediction[block] for block in sorted(shard.prediction)])
        total = {key: float(sums.total(key)) for key in ("images", "hits", "top5", "nll", "flips", "near_ties")}
        n = int(total["images"])
        hits, top5 = int(total["hits"]), int(total["top5"])
        clean = name == "clean"
        clean_hits = hits if clean else round((self.clean.row.top1 or 0.0) * n)
        low, high = wilson(hits, n)
        low5, high5 = wilson(top5, n)
        ranked = self.model.outputs > TOP_K
        indicators = self._indicators(shard) if not clean else []
        summary = self._summary(indicators)
        kind = degradation(name)
        row = ResultRow(
            **self.identity(name, level),
            family=kind.family,
            condition=Cell(self.model.entry.name, name, level).condition,
            status="ok" if n == len(self.suite.manifest.ids) else "partial",
            n=n,
            n_expected=len(self.suite.manifest.ids),
            top1=hits / n,
            top1_low=low,
            top1_high=high,
            top5=top5 / n if ranked else None,
            top5_low=low5 if ranked else None,
            top5_high=high5 if ranked else None,
            nll=total["nll"] / n,
            ece=expected_calibration_error(
                sums.total("bin_images"), sums.total("bin_confidence"), sums.total("bin_hits")
            ),
            retained=hits / clean_hits if clean_hits else None,
            flip_rate=total["flips"] / n,
            near_ties=int(total["near_ties"]),
            **summary,
            seconds=seconds,
            images_per_second=n / seconds,
            batch_size=self.batch_size,
            threads=self.settings.threads,
            classes=len(self.suite.manifest.classes),
            parameters=self.model.parameters,
            run_id=self.run_id,
        )
        return CellResult(row, self._class_of_output[prediction], indicators, self._block_sums(shard))

    def _indicators(self, shard: Shard) -> list[dict[str, Any]]:
        taps = self.model.taps
        layers = [(layer, token) for layer in range(taps.blocks + 2) for token in KINDS]
        reasons = dict.fromkeys(self.reference.constant, "constant")
        if taps.reason is not None:
            reasons = dict.fromkeys(layers, taps.reason)
        return profile(taps.blocks, shard.tokens, shard.heads, reasons, taps.head_reason)

    def _summary(self, indicators: list[dict[str, Any]]) -> dict[str, Any]:
        """The row's layer indicators: those of the last block, all heads together."""
        last = {
            (r["indicator"], r["token"]): r["value"]
            for r in indicators
            if r["layer"] == self.model.taps.blocks and r["head"] is None
        }
        summary = {
            f"{name}_{kind}": last.get((name, kind)) for name in alignment.INDICATORS for kind in ("cls", "mean_patch")
        }
        return summary | {name: last.get((name, RETENTION_KIND)) for name in retention.INDICATORS}

    def _block_sums(self, shard: Shard) -> dict[str, list[float]]:
        """Per block: images, hits, and the sums of the last block's indicators behind the row."""
        result = {name: shard.cell.per_block(name).tolist() for name in ("images", "hits", "nll")}
        last = self.model.taps.blocks
        for kind in ("cls", "mean_patch"):
            if (block := shard.tokens.get((last, kind))) is not None:
                result |= {f"{name}_{kind}": block.per_block(name).tolist() for name in alignment.INDICATORS}
        if (heads := shard.heads.get((last, RETENTION_KIND))) is not None:
            for name in ("overlap", "clean", "degraded"):
                result[f"active_{name}"] = heads.per_block(name).sum(axis=(1, 2)).tolist()
        return result


def _window(features: Features, window: slice, probe: bool) -> Features:
    """The images of one block out of a forward pass; ``patch`` only where the block belongs to the probe."""

    def cut(values: dict[Key, Tensor]) -> dict[Key, Tensor]:
        return {key: value[window] for key, value in values.items() if probe or key[1] != "patch"}

    return Features(cut(features.tokens), cut(features.heads))
