"""The one loop: a model on a suite under a degradation, from pixels to a row."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_bench import cached, memory
from mae_bench.cells import Cell, Level
from mae_bench.clean_pass import CleanPass, shared_clean_pass
from mae_bench.degradations import Degradation, Setting, degradation
from mae_bench.degradations.occlusion import dropped_tokens, hidden_tokens
from mae_bench.duplicates import distinct, duplicate_of, near_duplicates
from mae_bench.errors import BenchError
from mae_bench.images import BLOCK, PROBE_BLOCKS, Decoded, View, cache_folder, decoded
from mae_bench.indicators import INDICATOR_VERSION, added_indicators, alignment, retention, software
from mae_bench.indicators.accuracy import TOP_K, Outcomes, accuracy_sums, outcomes
from mae_bench.indicators.attention import attention_values
from mae_bench.indicators.block_sums import BlockSums
from mae_bench.indicators.calibration import calibration_sums, expected_calibration_error
from mae_bench.indicators.chance import at_chance
from mae_bench.indicators.profile import Record, profile
from mae_bench.joint_pass import joint_pass
from mae_bench.machine import libraries, machine
from mae_bench.models.pool import LoadedModel
from mae_bench.models.recorded import Forward, Recorded, on_gpu
from mae_bench.models.taps import KINDS, POOLED, Features
from mae_bench.reference import CleanSide, Key, Reference, to_device
from mae_bench.representation import (
    ATTENTION_IMAGES,
    Collector,
    Representation,
    Sample,
    attention_records,
    separability_records,
)
from mae_bench.rows import CellResult, ResultRow
from mae_bench.salience import Salience
from mae_bench.shard import FORETELLING, Comparison, HeldSums, Part, Shard, windows
from mae_bench.statistics import auc, wilson
from mae_bench.suites import LabelMap, Suite

ROW_KIND = "mean_patch"
"""Token kind whose retention stands in a row, and whose alignment is held against flips: the one that every model has.
"""

CARD_SHARE = 0.4
"""Share of a GPU's free memory that decoded images may take."""
STACKED = 4096
"""Numbers of an image up to which what several layers give is looked at together."""
Progress = Callable[[int, int], None]
CPU_BATCH, CUDA_BATCH = 64, 256
"""Images per forward pass where the batch size is ``auto``: what fits a core's cache, and one block."""


class EvaluationError(BenchError):
    """A cell that has no valid result."""


@dataclass(frozen=True)
class Settings:
    """How cells are evaluated. ``limit`` 0 means all images, ``batch_size`` 0 means automatic; ``suite_view``
    forces the suite's view on every model; ``jackknife`` asks clean representations for values without each tenth
    of the images, which costs their separability ten times over; ``compiles`` has torch compile what it can of a model;
    ``memory_format`` is one of :data:`mae_bench.models.pool.MEMORY_FORMATS`; ``graphs`` has a GPU play back forward
    passes (:mod:`mae_bench.models.recorded`) and ``prefetch`` sends it images and clean features while it works on
    those before; neither changes a number.
    """

    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 0
    seed: int = 0
    limit: int = 0
    threads: int = 1
    suite_view: bool = False
    jackknife: bool = False
    compiles: bool = False
    memory_format: str = "auto"
    graphs: bool = False
    prefetch: bool = True

    @property
    def arithmetic(self) -> str:
        """``dtype`` with what else was asked for that forward passes round by.

        >>> Settings(dtype="bfloat16", compiles=True).arithmetic
        'bfloat16 compiled'
        """
        return self.dtype + " compiled" * self.compiles + f" {self.memory_format}" * (self.memory_format != "auto")


class Evaluation:
    """All cells of one model on one suite. The clean pass runs once, when it is first needed.

    ``scratch`` is a folder for clean features, which :meth:`close` removes, and for the decoded images of a bundled
    suite, which evaluations share; those of others are kept in :func:`mae_bench.images.cache_folder`.
    ``represented`` names conditions whose representation will be asked for, so that one forward pass feeds both.
    ``progress`` is told how many images are decoded, and of how many; ``salience`` gives the suite's
    reference model with what it has seen under a view. ``shared`` is a folder for the clean pass, where other processes
    of this machine evaluate the same model: the first of them passes the blocks that calibrate it, and of the others
    each a part (:mod:`mae_bench.joint_pass`); ``joint`` is one, on whichever machines, for the passes of cells that
    several of them are asked for, the clean one among them.
    """

    def __init__(
        self,
        suite: Suite,
        model: LoadedModel,
        settings: Settings,
        scratch: Path,
        run_id: str,
        represented: Collection[str] = (),
        progress: Progress | None = None,
        salience: Callable[[View], Salience] | None = None,
        shared: Path | None = None,
        joint: Path | None = None,
    ) -> None:
        self.suite = suite
        self.model = model
        self.settings = settings
        self.scratch = scratch
        self.shared = shared
        self.joint = joint
        self.run_id = run_id
        self.device = torch.device(settings.device)
        self.images = suite.manifest.subset(settings.limit)
        self.represented = frozenset(represented)
        self.label_map = (
            suite.label_map(model.entry.name, model.outputs) if model.entry.head else LabelMap("no classifier", ())
        )
        if model.classifier.channels not in (suite.channels, 3):
            raise EvaluationError(
                f"model {model.entry.name!r} takes {model.classifier.channels} channel(s) but suite "
                f"{suite.entry.name!r} has {suite.channels}: give the model {suite.channels} input channels"
            )
        self.view = self._suite_view() if settings.suite_view else suite.view(model.classifier.view)
        self.stored_view = suite.stored_view(self.view)
        self.progress = progress
        self.salience = salience or (lambda _: Salience(suite.entry, self.device))
        self._failed = ""
        self._clean: CellResult | None = None
        self._reference: Reference | None = None
        self._folder: Path | None = None
        self._clean_collector: Collector | None = None
        self._representations: dict[str, Representation] = {}
        self._batch_size = settings.batch_size or (CUDA_BATCH if self.device.type == "cuda" else CPU_BATCH)
        self._decoded: dict[tuple[str, int], Decoded] = {}
        self._card: Tensor | None = None
        self._attended: Salience | None = None
        self._network: Forward = (
            Recorded(self._pass_through, partial(on_gpu, self.device)) if settings.graphs else self._pass_through
        )

    @property
    def clean(self) -> CellResult:
        """The clean cell.

        Raises:
            EvaluationError: the model is an encoder, which classifies nothing.
        """
        if not self.model.entry.head:
            raise EvaluationError(
                f"model {self.model.entry.name!r} is registered with head=False: it joins representation items only"
            )
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
        """The cell of degradation ``name`` at ``level``; status ``not_applicable`` where the model cannot have it.

        Raises:
            EvaluationError: logits are not finite.
            ValueError: the degradation is unknown, or the level outside its domain.
        """
        kind = degradation(name, level.severity)
        kind.check(level)
        if kind.family == "clean":
            return self.clean
        if (reason := self.not_applicable(kind)) is not None:
            return self._without_result(name, level, reason)
        assert self.clean is not None
        collector = self._collector(name, level) if f"{name}-{level}" in self.represented else None
        self._pixels(name, level, self.images)  # what is stored is decoded before the clock starts
        # parts are of one block, and so is each forward pass of them
        if self.joint is not None and collector is None and self.batch_size <= BLOCK:
            shard, seconds = joint_pass(
                self.joint,
                self._all_that_decides(name, level),
                sorted(self.blocks, key=lambda block: not self.reference.has(block)),  # its clean features are here
                partial(self._block, name, level),
            )
        else:
            shard, seconds = self._timed(name, level, self.blocks, self.reference, collector)
        result = self.result(name, level, shard, seconds)
        if collector is not None:
            self._pass(name, level, self._blocks_beyond, self.reference, collector)
            self._represent(name, level, shard, collector)
        return result

    def represent(self, name: str, level: Level) -> Representation:
        """The representation of a cell; the pass that a :meth:`run` of a represented cell made is not made again.

        Raises:
            EvaluationError, ValueError: as :meth:`run`.
        """
        condition = f"{name}-{level}"
        kind = degradation(name, level.severity)
        kind.check(level)
        if condition not in self._representations:
            clean = self._collected_clean()
            if name == "clean":
                self._represent(name, level, Shard(), clean)
            elif self.not_applicable(kind) is not None:
                self._represent(name, level, Shard(), None)
            else:
                collector = self._collector(name, level)
                shard, _ = self._timed(name, level, self.sample.blocks, self.reference, collector)
                self._represent(name, level, shard, collector)
        return self._representations[condition]

    def not_applicable(self, kind: Degradation) -> str | None:
        """Why the model cannot have cells of a degradation; None where it can."""
        return self.model.taps.token_reason if kind.on_tokens else None

    def method(self, name: str, level: Level) -> str | None:
        """By which of several equal ways the images of a cell are degraded; None where there is one."""
        if self.suite.stored is not None and level.severity:
            return None
        size = (self.view.height, self.view.width)
        return degradation(name, level.severity).method(level, size, self.device, self.suite.entry.reference_size)

    def decode(self) -> None:
        """Have the clean images decoded, if they are not yet.

        Raises:
            ImageError: one cannot be read, or there is no room for them.
        """
        self._pixels("clean", Level(0.0), self.images)

    @cached_property
    def duplicate_of(self) -> np.ndarray:
        """(images,) for each image of the run the position of the first that is the same to the model: by its file, or
        by its pixels under the view.
        """
        return duplicate_of(self.suite.manifest.ids[: self.images], self._seen.digests[: self.images])

    @property
    def copies(self) -> list[tuple[int, int]]:
        """Positions of images that are copies, each with that of the first."""
        first = self.duplicate_of
        return [(int(i), int(first[i])) for i in np.flatnonzero(first != np.arange(len(first)))]

    @cached_property
    def near_duplicates(self) -> list[tuple[int, int]]:
        """Pairs of images of the run that look the same and yet are not, which is worth a warning."""
        seen = self._seen
        return near_duplicates(seen.likeness[: self.images], seen.pixels[: self.images], self.duplicate_of)

    @property
    def _seen(self) -> Decoded:
        self.decode()
        return self._decoded["", self.images]

    def shard(self, name: str, level: Level, blocks: range) -> Shard:
        """The given blocks of a degraded cell alone, to be merged with the others before :meth:`result`."""
        return self._timed(name, level, blocks, self.reference, None)[0]

    def clean_tokens(self, kind: str) -> dict[int, Tensor]:
        """Clean tokens (N, D) of one ``kind`` of the :attr:`sample` by layer."""
        tokens = self._collected_clean().tokens
        return {
            layer: torch.from_numpy(np.array(values))
            for (layer, name), values in sorted(tokens.items())
            if name == kind
        }

    @cached_property
    def sample(self) -> Sample:
        """Images on which classes are told apart."""
        return Sample.of(self.suite)

    @property
    def blocks(self) -> range:
        return range(-(-self.images // BLOCK))

    def close(self) -> None:
        """Remove the clean features from disk; another cell would need another clean pass."""
        self._clean = self._reference = self._clean_collector = self._card = None
        if isinstance(self._network, Recorded):
            self._network.clear()
        if self._folder is not None:
            for known in [known for known in self._decoded if known[0]]:
                del self._decoded[known]
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def identity(self, name: str, level: Level) -> dict[str, Any]:
        """Fields by which a finished cell is recognised before it is run, as :data:`mae_bench.rows.IDENTITY`."""
        kind = degradation(name, level.severity)
        return {
            "suite": self.suite.entry.name,
            "model": self.model.entry.name,
            "degradation": name,
            "level": level.value,
            "unit": self._unit(kind, level),
            "manifest_hash": self.suite.manifest_hash,
            "label_map": self.label_map.name,
            "weights_hash": self.model.weights_hash,
            "preprocessing": self.model.classifier.preprocessing,
            "degradation_version": kind.version,
            "seed": self.settings.seed,
            "dtype": self.settings.arithmetic,
            "device": self.device.type,
            "view": str(self.view),
            "subset": f"first {self.images} of {len(self.suite.manifest.ids)}",
            "indicator_version": INDICATOR_VERSION,
            "torch_version": str(torch.__version__),
            "mae_bench_version": software(),
        }

    def _unit(self, kind: Degradation, level: Level) -> str:
        """The unit of a level with what else a cell's pixels come from: the table of its severities, the published
        files, or the reference model.
        """
        if self.suite.stored is not None and level.severity:
            return f"severity (as published, {self.suite.stored(kind.name, int(level.value)).fingerprint[:12]})"
        if kind.by_salience:
            return f"{kind.unit} of {self.suite.entry.salience}"
        return kind.unit_at(min(self.view.height, self.view.width))

    @property
    def batch_size(self) -> int:
        """Images per forward pass: as set, above a block rounded down to whole blocks; halved as often as memory ran
        out.
        """
        size = self._batch_size
        return size if size <= BLOCK else size // BLOCK * BLOCK

    def _pixels(self, name: str, level: Level, stop: int) -> np.ndarray:
        """Decoded images of the run, or where ``stop`` lies behind them those of the sample too: as they are stored
        under a degradation where they are, else clean.
        """
        suite = self.suite
        count = self.images if stop <= self.images else min(len(suite.manifest.ids), self.sample.blocks.stop * BLOCK)
        is_stored = suite.stored is not None and level.severity
        key = (f"{name}-{level}" if is_stored else "", count)
        if key not in self._decoded:
            if suite.stored is not None and is_stored:
                self._decoded[key] = self._stored_pixels(name, level, count)
            else:
                folder = self.scratch if suite.entry.bundled else cache_folder()
                self._decoded[key] = decoded(
                    suite.manifest,
                    count,
                    self.view,
                    suite.channels,
                    suite.read,
                    folder / "decoded",
                    progress=self.progress,
                    order=suite.order,
                )
        return self._decoded[key].pixels

    @property
    def _own_folder(self) -> Path:
        """A folder of this evaluation alone, until it is closed."""
        if self._folder is None:
            self.scratch.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="reference-", dir=self.scratch))
        return self._folder

    def _stored_pixels(self, name: str, level: Level, count: int) -> Decoded:
        """Decoded images as they are stored under a degradation, kept until those of another cell are asked for: all of
        ImageNet-C's would fill 700 GB.
        """
        suite = self.suite
        assert suite.stored is not None
        folder = self._own_folder / "stored"
        for known in [known for known in self._decoded if known[0]]:
            del self._decoded[known]
        shutil.rmtree(folder, ignore_errors=True)
        variant = suite.stored(name, int(level.value))
        return decoded(
            suite.manifest,
            count,
            self.stored_view,
            suite.channels,
            variant.read,
            folder,
            f"{name} {level} {variant.fingerprint}",
            self.progress,
            suite.order,
        )

    def _shown(self, name: str, level: Level, start: int, stop: int) -> Tensor:
        """(B, C, H, W) float32 images ``start`` to ``stop`` in [0, 1] on the device, before they are degraded."""
        if self.device.type == "cuda":
            return self._on_card(name, level, start, stop).float() / 255
        # numpy converts and divides in one pass, piece by piece in the cache
        stored = self._pixels(name, level, stop)[start:stop]
        return torch.from_numpy(np.divide(stored, np.float32(255), dtype=np.float32))

    def _on_card(self, name: str, level: Level, start: int, stop: int) -> Tensor:
        """(B, C, H, W) uint8 images ``start`` to ``stop``. Clean ones are kept on a GPU that has room for them."""
        pixels = self._pixels(name, level, stop)
        if self._card is None or len(self._card) != len(pixels):
            free, _ = torch.cuda.mem_get_info(self.device)
            if name == "clean" and pixels.nbytes < CARD_SHARE * free:
                self._card = torch.from_numpy(np.array(pixels)).to(self.device)
        if self._card is not None and len(self._card) == len(pixels) and not (level.severity and self.suite.stored):
            return self._card[start:stop]
        return to_device(torch.from_numpy(np.array(pixels[start:stop])), self.device, self.settings.prefetch)

    @cached_property
    def _choice(self) -> tuple[Tensor | None, Tensor]:
        """Which outputs (outputs,) the model chooses among, None where all; and which of them stands for each image's
        class (images,).
        """
        stands = np.asarray(self.label_map.outputs)
        targets = torch.from_numpy(stands[self.suite.manifest.labels[: self.images]]).to(self.device)
        if not self.label_map.masked:
            return None, targets
        among = torch.zeros(self.model.outputs, dtype=torch.bool)
        among[list(self.label_map.outputs)] = True
        return among.to(self.device), targets

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
        if self._reference is not None:
            return
        if self._failed:
            raise EvaluationError(self._failed)
        # decoded before the clock starts, and before there is anything to clean up
        self._pixels("clean", Level(0.0), self.images)
        try:
            first = self._first_blocks  # by the batch size that was asked for, as in the other processes
            identity = self._all_that_decides("clean", Level(0.0))
            if self.shared is None:
                done = self._clean_pass(self._own_folder)
            else:
                here = self.shared / cached.key(identity)
                done = shared_clean_pass(here, identity, lambda: self.sample, self._clean_pass)
            self._reference, self._clean_collector = done.reference, done.collector
            self._reference.prefetch = self.settings.prefetch  # also where another process made it
            self._batch_size = done.batch_size
            shard, seconds = done.shard, done.seconds
            if self.shared is not None and (others := self.blocks[first.stop :]):
                more, took = self._clean_together(here / "blocks", identity, others)
                shard.merge(more)
                seconds += took
            if self.model.entry.head:
                self._reference.prediction[:] = np.concatenate([shard.prediction[block] for block in self.blocks])
                self._clean = self.result("clean", Level(0.0), shard, seconds)
        except BaseException as error:
            if isinstance(error, BenchError):  # every cell needs the clean pass, and it would end the same way
                self._failed = str(error)
            self.close()
            raise

    @cached_property
    def _first_blocks(self) -> range:
        """Blocks of the clean pass that one process passes alone: those that calibrate its features and those whose
        tokens are collected; all where no other shares it, or where a forward pass takes several of them.
        """
        if self.shared is None or self.batch_size > BLOCK:
            return self.blocks
        return self.blocks[: max(PROBE_BLOCKS, self.sample.blocks.stop if self.represented else 0)]

    def _clean_together(self, here: Path, identity: str, blocks: Sequence[int]) -> tuple[Shard, float]:
        """Clean ``blocks`` by the processes of this machine, which meet in the folder ``here``, and by those of others
        where these too share the cells of the model.
        """

        def on_this_machine(blocks: Sequence[int]) -> tuple[Shard, float]:
            return joint_pass(here, identity, blocks, partial(self._block, "clean", Level(0.0)))

        if self.joint is None:
            return on_this_machine(blocks)
        # who has a block on this machine waits for nobody on others
        return joint_pass(self.joint, identity, blocks, lambda block: on_this_machine([block]))

    def _all_that_decides(self, name: str, level: Level) -> str:
        """All that decides what a pass leaves for other processes of this run."""
        settings = asdict(replace(self.settings, device=self.device.type))  # several GPUs of a machine are alike
        asked = {"head": self.model.entry.head, "represented": bool(self.represented), "run_id": self.run_id}
        where = {"machine": machine(self.settings.device), "libraries": libraries()}
        return json.dumps(self.identity(name, level) | settings | asked | where, sort_keys=True)

    def _clean_pass(self, folder: Path) -> CleanPass:
        """Run it over its first blocks, with its files below ``folder``."""
        reference = Reference(folder / "features", self.images)
        collector = Collector(self.sample, folder / "collected") if self.represented else None
        shard, seconds = self._timed("clean", Level(0.0), self._first_blocks, reference, collector)
        if collector is not None:
            self._pass("clean", Level(0.0), self._blocks_beyond, reference, collector)
        return CleanPass(reference, shard, seconds, collector, self._batch_size)

    def _collected_clean(self) -> Collector:
        """Clean tokens of the sample."""
        reference = self.reference
        if self._clean_collector is None:
            collector = self._collector("clean", Level(0.0))
            self._pass("clean", Level(0.0), self.sample.blocks, reference, collector)
            self._clean_collector = collector
        return self._clean_collector

    @property
    def _blocks_beyond(self) -> range:
        """Blocks of the sample that are not among those of the run."""
        return range(self.blocks.stop, self.sample.blocks.stop)

    def _collector(self, name: str, level: Level) -> Collector:
        return Collector(self.sample, self._own_folder / f"{name}-{level}")

    def _represent(self, name: str, level: Level, shard: Shard, collector: Collector | None) -> None:
        """Make the representation of a cell from its pass, whose tokens are then let go."""
        taps = self.model.taps
        clean = self._collected_clean()
        kind = degradation(name, level.severity)
        absent = self.not_applicable(kind) or taps.reason
        degraded = None if name == "clean" else collector
        jackknife = self.settings.jackknife and name == "clean"
        records, replicates = separability_records(
            taps.blocks, clean, degraded, self.reference.constant, absent, self.device, jackknife
        )
        of_attention, more = attention_records(
            taps.blocks,
            collector or Collector(self.sample, Path()),
            getattr(taps, "grid", None),
            self.not_applicable(kind) or taps.attention_reason or ("tokens were dropped" if kind.on_tokens else None),
            jackknife,
        )
        records += of_attention
        replicates |= more
        if name != "clean":
            sums = [{k: v.of(self.sample.blocks) for k, v in each.items()} for each in (shard.tokens, shard.heads)]
            records += self._profile(*sums)
        self._representations[f"{name}-{level}"] = Representation(self.identity(name, level), records, replicates)
        if degraded is not None:
            degraded.tokens.clear()
            shutil.rmtree(degraded.folder, ignore_errors=True)

    def _block(self, name: str, level: Level, block: int) -> tuple[Shard, float]:
        """A pass over one block, and its seconds."""
        return self._timed(name, level, range(block, block + 1), self.reference, None)

    def _timed(
        self, name: str, level: Level, blocks: range, reference: Reference, collector: Collector | None
    ) -> tuple[Shard, float]:
        """A pass, and the seconds that it takes once what it is compared with is there."""
        if name != "clean":
            self._have_clean(blocks)
        started = time.perf_counter()
        shard = self._pass(name, level, blocks, reference, collector)
        return shard, time.perf_counter() - started

    def _have_clean(self, blocks: range) -> None:
        """Pass the clean images of blocks of the run whose features are on another machine alone."""
        for block in blocks:
            if block in self.blocks and not self.reference.has(block):
                self._block("clean", Level(0.0), block)

    @memory.named()
    def _pass(self, name: str, level: Level, blocks: range, reference: Reference, collector: Collector | None) -> Shard:
        """Send ``blocks`` through the model: what the cell sums up, and in ``collector`` what its representation needs.
        Blocks beyond those of the run are collected only.
        """
        shard = Shard()
        # on the device until all blocks have passed, so that it is not waited for
        passed: dict[int, Outcomes] = {}
        sums: dict[int, HeldSums] = {}
        added: list[int] = []
        last = (self.model.taps.blocks, ROW_KIND)
        for number, parts in groupby(self._forward(name, level, blocks, reference, collector), lambda p: p.block):
            counted = number in self.blocks
            comparison = Comparison(reference, last) if counted and name != "clean" else None
            new = name == "clean" and counted and not reference.has(number)
            kept: list[Part] = []
            logits = []
            for part in parts:
                logits.append(part.logits)
                if collector is not None:
                    collector.add(part.start, part.features, self._keys(part.start, part.stop))
                if comparison is not None:
                    comparison.add(part)
                elif new:
                    kept.append(part)
            passed[number] = self._outcomes(number, torch.cat(logits))
            if comparison is not None:
                sums[number] = comparison.finish()
                if comparison.scores:
                    shard.scores[number] = comparison.scores
            elif new:
                added.append(number)
                features = Features.concatenated([part.features for part in kept])
                reference.add(number * BLOCK, features if reference.in_probe(number * BLOCK) else features.pooled)
        self._settle(shard, name, level, passed, reference)
        for number in added:
            reference.complete(number)
        for number, held in sums.items():
            held.settle(number, shard)
        return shard

    def _outcomes(self, number: int, logits: Tensor) -> Outcomes:
        """Outcomes of a block; one beyond those of the run, or of an encoder, has none but whether all is finite."""
        among, targets = self._choice if self.model.entry.head else (None, None)
        target = torch.zeros_like(logits[:, 0], dtype=torch.int64)
        if targets is not None and number in self.blocks:
            target = targets[number * BLOCK : number * BLOCK + len(logits)]
        return outcomes(logits, target, among)

    def _settle(
        self, shard: Shard, name: str, level: Level, passed: Mapping[int, Outcomes], reference: Reference
    ) -> None:
        """Bring what ``passed`` says of each image to the host, and sum it up for the blocks of the run.

        Raises:
            EvaluationError: logits or features are not finite.
        """
        for number, on_device in passed.items():
            block = on_device.cpu()
            start = number * BLOCK
            stop = start + len(block.finite)
            bad = ~block.finite
            if bool(bad.any()):
                first = start + int(bad.int().argmax())
                raise EvaluationError(
                    f"cell {Cell(self.model.entry.name, name, level).id} is invalid: {int(bad.sum())} of "
                    f"{len(bad)} images in a block have NaN or infinite logits or features, the first is "
                    f"{self.suite.manifest.ids[first]}; check the weights and --mae-dtype ({self.settings.dtype})"
                )
            if number not in self.blocks or not self.model.entry.head:
                continue
            shard.prediction[number] = block.prediction.numpy()
            clean = shard.prediction[number] if name == "clean" else reference.prediction[start:stop]
            shard.cell.update(
                number,
                {
                    **accuracy_sums(block, torch.from_numpy(clean)),
                    **calibration_sums(block.confidence.numpy(), block.hit.numpy()),
                },
            )

    def _forward(
        self, name: str, level: Level, blocks: range, reference: Reference, collector: Collector | None
    ) -> Iterator[Part]:
        """Parts of blocks after their forward pass; several blocks share one where it is large."""
        remaining = list(blocks)
        while remaining:
            at_once = max(1, self.batch_size // BLOCK)
            group, remaining = remaining[:at_once], remaining[at_once:]
            begin = group[0] * BLOCK
            last = min(
                (group[-1] + 1) * BLOCK, self.images if group[-1] in self.blocks else len(self.suite.manifest.ids)
            )
            patches = reference.in_probe(begin) or (collector is not None and group[0] in self.sample.blocks)
            while begin < last:
                end = min(begin + self.batch_size, last)
                maps = collector is not None and begin < ATTENTION_IMAGES
                found, why = None, ""
                try:
                    found = self._forward_part(name, level, begin, end, reference, patches, maps)
                except (MemoryError, OSError, RuntimeError) as error:
                    if not memory.ran_out(error):
                        raise
                    why = str(error)
                if found is None:  # only here: what the pass held is free once the error is gone
                    self._halve(end - begin, why)
                    continue
                logits, features, side = found
                if collector is not None and features.attention:
                    collector.add_attention(
                        {key: values[: ATTENTION_IMAGES - begin] for key, values in features.attention.items()}
                    )
                for start, stop in windows(begin, end):
                    window = slice(start - begin, stop - begin)
                    own = features.window(window)
                    if not reference.in_probe(start) and collector is None:
                        own = own.pooled
                    yield Part(start, logits[window], own, None if side is None else side.window(window))
                begin = end

    def _forward_part(
        self, name: str, level: Level, start: int, stop: int, reference: Reference, patches: bool, maps: bool
    ) -> tuple[Tensor, Features, CleanSide | None]:
        """Logits, features and clean side of the images that one forward pass takes; logits are NaN where features are
        not finite.
        """
        taps = self.model.taps
        hidden = self._hidden_tokens(name, level, start, stop)
        images = self.degraded(name, level, start, stop)
        kept = 0 if hidden is None else hidden.shape[1] - dropped_tokens(level.value, hidden.shape[1])
        if hidden is None:
            logits, features = self._network(images, patches, maps)
        else:
            with taps.dropping(hidden, kept):
                logits, features = self._pass_through(images, patches, False)
        side = None if hidden is None else self._side_of_kept(reference, images, hidden, kept, patches)
        return logits, features, side

    def _pass_through(self, images: Tensor, patches: bool, maps: bool) -> tuple[Tensor, Features]:
        """Logits and features of ``images`` (B, C, H, W)."""
        taps = self.model.taps
        reading = partial(attention_values, prefix=taps.prefix, grid=taps.grid)
        readings = dict.fromkeys(range(1, taps.blocks + 1), reading) if maps else None
        with taps.capture(patches, readings) as features:
            logits = self.logits(images)
        # an image whose features are not finite has no outcome, however finite what the network made of them
        return logits.masked_fill(~_finite(features, logits)[:, None], torch.nan), features

    def _halve(self, images: int, why: str) -> None:
        """Go on with half of the ``images`` for which memory ran out; ``why`` is what was said of it.

        Raises:
            EvaluationError: it was a single one.
        """
        if images == 1:
            raise EvaluationError(
                f"model {self.model.entry.name!r}: {self.device} has no memory left for a forward pass of a single "
                f"image ({why}); use another device, a smaller model, or --mae-dtype bfloat16"
            )
        self._batch_size = images // 2
        if isinstance(self._network, Recorded):
            self._network.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _hidden_tokens(self, name: str, level: Level, start: int, stop: int) -> Tensor | None:
        """(B, P) which tokens the degradation takes away; None where it changes pixels."""
        if not degradation(name, level.severity).on_tokens or level.value == 0:
            return None
        return hidden_tokens(level.value, self._setting(start, stop), self.model.taps.grid)

    def _side_of_kept(
        self, reference: Reference, images: Tensor, hidden: Tensor, kept: int, patches: bool
    ) -> CleanSide:
        """The clean side of images that lose tokens: a mean over the kept ones depends on which they are, so the clean
        forward pass is made again beside the degraded one.
        """
        with self.model.taps.capture(patches=True) as features:
            self.logits(images)
        with torch.inference_mode():
            left = self.model.taps.of_kept(features, hidden, kept)
        return reference.side_of_kept(left if patches else left.pooled, hidden)

    def _keys(self, start: int, stop: int) -> Tensor:
        return to_device(torch.from_numpy(self.suite.manifest.keys[start:stop]), self.device, self.settings.prefetch)

    def _setting(self, start: int, stop: int, by_salience: bool = False) -> Setting:
        return Setting(
            keys=self._keys(start, stop),
            seed=self.settings.seed,
            reference_size=self.suite.entry.reference_size,
            mean=self.suite.mean,
            salience=self._salience_of(start, stop) if by_salience else None,
        )

    def _salience_of(self, start: int, stop: int) -> Tensor:
        """(B, cells) where the suite's reference model looks in the clean images, as :mod:`mae_bench.salience` has it;
        known of whole blocks, once they were asked for.
        """
        if self._attended is None:
            self._attended = self.salience(self.view)
        blocks = []
        for number in range(start // BLOCK, -(-stop // BLOCK)):
            first, last = number * BLOCK, min((number + 1) * BLOCK, len(self.suite.manifest.ids))
            if number not in self._attended:
                clean = self._shown("clean", Level(0.0), first, last)
                self._attended.add(number, clean, self.batch_size)
            blocks.append(self._attended[number])
        offset = start // BLOCK * BLOCK
        return torch.cat(blocks)[start - offset : stop - offset]

    def degraded(self, name: str, level: Level, start: int, stop: int) -> Tensor:
        """Images ``start`` to ``stop`` of the suite in [0, 1] on the device, degraded: (B, C, H, W) float32."""
        pixels = self._shown(name, level, start, stop)
        if self.suite.stored is not None and level.severity:
            return pixels
        kind = degradation(name, level.severity)
        return kind.apply(pixels, level, self._setting(start, stop, kind.by_salience))

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
        # copies tell nothing new, so that intervals are those of as many images as there are different ones
        different = distinct(self.duplicate_of)
        low, high = _interval(hits, n, different)
        low5, high5 = _interval(top5, n, different)
        ranked = self.model.outputs > TOP_K
        indicators = self._profile(shard.tokens, shard.heads) + self._foretold(shard, prediction) if not clean else []
        summary = self._summary(indicators)
        kind = degradation(name, level.severity)
        row = ResultRow(
            **self.identity(name, level),
            family=kind.family,
            condition=Cell(self.model.entry.name, name, level).condition,
            status="ok" if n == self.suite.expected else "partial",
            n=n,
            n_expected=self.suite.expected,
            distinct=different,
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
            machine=machine(self.settings.device),
            libraries=libraries(),
            classes=len(self.suite.manifest.classes),
            parameters=self.model.parameters,
            run_id=self.run_id,
        )
        return CellResult(row, self._class_of_output[prediction], indicators, self._block_sums(shard))

    def check_chance(self, clean: CellResult) -> None:
        """Ask of the ``clean`` cell whether the model knows anything of the suite's classes.

        Raises:
            EvaluationError: it is no better than chance, and images were not chosen because models get them wrong.
        """
        outputs = len(self.label_map.outputs) if self.label_map.masked else self.model.outputs
        why = at_chance(clean.prediction, self.suite.manifest.labels[: self.images], outputs)
        if why is not None and not self.suite.entry.adversarial:
            raise EvaluationError(
                f"model {self.model.entry.name!r}: clean top-1 {100 * (clean.row.top1 or 0.0):.1f} % of "
                f"{clean.row.n:,} images is no better than chance ({why}): its head is untrained, or the label map or "
                "the preprocessing is wrong; compare its outputs with the suite's sorted classes, and mean, std and "
                "input range with those that it was trained with, or register an encoder with head=False"
            )

    def _without_result(self, name: str, level: Level, reason: str) -> CellResult:
        """The cell that the model cannot have."""
        row: dict[str, Any] = {f.name: None for f in fields(ResultRow) if "None" in str(f.type)}
        row |= {
            **self.identity(name, level),
            "family": degradation(name, level.severity).family,
            "condition": Cell(self.model.entry.name, name, level).condition,
            "status": "not_applicable",
            "n": 0,
            "n_expected": self.suite.expected,
            "machine": machine(self.settings.device),
            "libraries": libraries(),
            "seconds": 0.0,
            "batch_size": self.batch_size,
            "threads": self.settings.threads,
            "classes": len(self.suite.manifest.classes),
            "parameters": self.model.parameters,
            "run_id": self.run_id,
        }
        return CellResult(ResultRow(**row), np.zeros(0, dtype=np.int64), [], {}, reason)

    def _profile(self, tokens: Mapping[Key, BlockSums], heads: Mapping[Key, BlockSums]) -> list[dict[str, Any]]:
        taps = self.model.taps
        layers = [(layer, token) for layer in range(taps.blocks + 2) for token in KINDS]
        reasons = dict.fromkeys(self.reference.constant, "constant")
        if taps.reason is not None:
            reasons = dict.fromkeys(layers, taps.reason)
        return profile(taps.blocks, tokens, heads, reasons, taps.head_reason, [*added_indicators()])

    def _foretold(self, shard: Shard, prediction: np.ndarray) -> list[dict[str, Any]]:
        """Whether a low alignment at the last block tells which predictions differ from the clean ones."""
        if not shard.scores:
            return []
        flipped = prediction != self.reference.prediction
        records = []
        for name in FORETELLING:
            # those of a block that another process made are on the host
            values = torch.cat([shard.scores[block][name].cpu() for block in sorted(shard.scores)]).numpy()
            area = auc(-values, flipped)
            record = Record(f"{name}_flip_auc", self.model.taps.blocks, None, ROW_KIND, reason="too_few_flips")
            if area is not None:
                record = Record(f"{name}_flip_auc", self.model.taps.blocks, None, ROW_KIND, *area)
            records.append(record.to_dict())
        return records

    def _summary(self, indicators: list[dict[str, Any]]) -> dict[str, Any]:
        """The row's layer indicators: those of the last block, all heads together."""
        last = {
            (r["indicator"], r["token"]): r["value"]
            for r in indicators
            if r["layer"] == self.model.taps.blocks and r["head"] is None
        }
        summary = {f"{name}_{kind}": last.get((name, kind)) for name in alignment.INDICATORS for kind in POOLED}
        return summary | {name: last.get((name, ROW_KIND)) for name in retention.INDICATORS}

    def _block_sums(self, shard: Shard) -> dict[str, list[float]]:
        """Per block: images, hits, and the sums of the last block's indicators behind the row."""
        result = {name: shard.cell.per_block(name).tolist() for name in ("images", "hits", "nll")}
        last = self.model.taps.blocks
        for kind in POOLED:
            if (block := shard.tokens.get((last, kind))) is not None:
                result |= {f"{name}_{kind}": block.per_block(name).tolist() for name in alignment.INDICATORS}
        if (heads := shard.heads.get((last, ROW_KIND))) is not None:
            for name in ("overlap", "clean", "degraded"):
                result[f"active_{name}"] = heads.per_block(name).sum(axis=(1, 2)).tolist()
        return result


def _interval(hits: int, images: int, different: int) -> tuple[float, float]:
    """Wilson's interval of ``hits`` of ``images`` of which so many are ``different``."""
    if different == images:
        return wilson(hits, images)
    low, high = wilson(round(hits * different / images), different)
    return min(low, hits / images), max(high, hits / images)


def _finite(features: Features, logits: Tensor) -> Tensor:
    """(B,) whether all ``features`` of an image have a finite length, without which they have no direction either."""
    alike: dict[torch.Size, list[Tensor]] = {}  # pooled ones together, of which there are many small ones
    for values in (*features.tokens.values(), *features.heads.values(), *features.attention.values()):
        alike.setdefault(values.shape, []).append(values.flatten(1))
    finite = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    for shape, each in alike.items():
        # to stack what is large would take longer than to look at it
        for stack in [torch.stack(each)] if shape.numel() < STACKED * len(logits) else each:
            finite &= torch.isfinite(torch.linalg.vector_norm(stack, dim=-1)).reshape(-1, len(logits)).all(0)
    return finite
