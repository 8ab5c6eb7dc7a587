"""The one loop: a model on a suite under a degradation, from its inputs to a row."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
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
from mae_bench.degradations import Degradation, degradation
from mae_bench.duplicates import distinct
from mae_bench.errors import BenchError
from mae_bench.forward_pass import ForwardPass
from mae_bench.images import BLOCK, PROBE_BLOCKS, View
from mae_bench.indicators import INDICATOR_VERSION, added_indicators, alignment, retention, software
from mae_bench.indicators.accuracy import TOP_K, Outcomes, accuracy_sums, outcomes
from mae_bench.indicators.block_sums import BlockSums
from mae_bench.indicators.calibration import calibration_sums, expected_calibration_error
from mae_bench.indicators.chance import at_chance
from mae_bench.indicators.profile import Record, profile
from mae_bench.inputs import Inputs, Progress
from mae_bench.joint_pass import joint_pass
from mae_bench.machine import libraries, machine
from mae_bench.models.pool import LoadedModel
from mae_bench.models.taps import KINDS, POOLED
from mae_bench.reference import Key, Reference
from mae_bench.representation import (
    Collector,
    Representation,
    Sample,
    attention_records,
    separability_records,
)
from mae_bench.rows import CellResult, ResultRow
from mae_bench.salience import Salience
from mae_bench.settings import Settings
from mae_bench.shard import FORETELLING, Comparison, HeldSums, Shard
from mae_bench.statistics import auc, wilson
from mae_bench.suites import LabelMap, Suite

ROW_KIND = "mean_patch"
"""Token kind whose retention stands in a row, and whose alignment is held against flips: the one that every model has.
"""


class EvaluationError(BenchError):
    """A cell that has no valid result."""


class Evaluation:
    """All cells of one model on one suite. The clean pass runs once, when it is first needed.

    ``scratch`` is a folder for clean features, which :meth:`close` removes, and for decoded images as
    :class:`mae_bench.inputs.Inputs` has it.
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
        self.represented = frozenset(represented)
        self.label_map = (
            suite.label_map(model.entry.name, model.outputs) if model.entry.head else LabelMap("no classifier", ())
        )
        if model.classifier.channels not in (suite.channels, 3):
            raise EvaluationError(
                f"model {model.entry.name!r} takes {model.classifier.channels} channel(s) but suite "
                f"{suite.entry.name!r} has {suite.channels}: give the model {suite.channels} input channels"
            )
        view = self._suite_view() if settings.suite_view else suite.view(model.classifier.view)
        self.inputs = Inputs(suite, view, settings, scratch, progress, salience)
        self.forward_pass = ForwardPass(model, self.inputs)
        self._failed: tuple[type[BenchError], str] | None = None
        self._clean: CellResult | None = None
        self._reference: Reference | None = None
        self._folder: Path | None = None
        self._clean_collector: Collector | None = None
        self._representations: dict[str, Representation] = {}

    @property
    def clean(self) -> CellResult:
        """The clean cell.

        Raises:
            EvaluationError: the model is an encoder, which classifies nothing; or logits are not finite.
            ForwardPassError: its logits change their shape, or there is no memory for a single image.
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
            EvaluationError, ForwardPassError: as :attr:`clean`.
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
        self.inputs.decode(name, level)  # what is stored, before the clock starts
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
            EvaluationError, ForwardPassError, ValueError: as :meth:`run`.
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

    @property
    def images(self) -> int:
        """How many images of the suite the run takes."""
        return self.inputs.images

    @property
    def blocks(self) -> range:
        """Numbers of the blocks of the run."""
        return self.inputs.blocks

    @property
    def sample(self) -> Sample:
        """Images on which classes are told apart."""
        return self.inputs.sample

    @property
    def batch_size(self) -> int:
        """Images per forward pass: as set, above a block rounded down to whole blocks, less where memory ran out."""
        return self.inputs.batch_size

    def degraded(self, name: str, level: Level, start: int, stop: int) -> Tensor:
        """Images ``start`` to ``stop`` of the suite in [0, 1] on the device, degraded: (B, C, H, W) float32."""
        return self.inputs.degraded(name, level, start, stop)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, outputs) in float32 of ``images`` (B, C, H, W) in [0, 1].

        Raises:
            ForwardPassError: the model's logits change their shape.
        """
        return self.forward_pass.logits(images)

    def close(self) -> None:
        """Remove the clean features from disk; another cell would need another clean pass."""
        self._clean = self._reference = self._clean_collector = None
        self.inputs.close()
        self.forward_pass.clear()
        if self._folder is not None:
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
            "unit": self.inputs.unit(name, level),
            "manifest_hash": self.suite.manifest_hash,
            "label_map": self.label_map.name,
            "weights_hash": self.model.weights_hash,
            "preprocessing": self.model.classifier.preprocessing,
            "degradation_version": kind.version,
            "seed": self.settings.seed,
            "dtype": self.settings.arithmetic,
            "device": self.device.type,
            "view": str(self.inputs.view),
            "subset": f"first {self.images} of {len(self.suite.manifest.ids)}",
            "indicator_version": INDICATOR_VERSION,
            "torch_version": str(torch.__version__),
            "mae_bench_version": software(),
        }

    @property
    def _own_folder(self) -> Path:
        """A folder of this evaluation alone, until it is closed."""
        if self._folder is None:
            self.scratch.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="reference-", dir=self.scratch))
        return self._folder

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
        if self._failed is not None:
            kind, why = self._failed
            raise kind(why)
        # decoded before the clock starts, and before there is anything to clean up
        self.inputs.decode()
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
            self.inputs.at_once = done.batch_size
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
                self._failed = (type(error), str(error))
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
        return CleanPass(reference, shard, seconds, collector, self.inputs.at_once)

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
        for number, parts in groupby(
            self.forward_pass.parts(name, level, blocks, reference, collector), lambda p: p.block
        ):
            counted = number in self.blocks
            comparison = Comparison(reference, last) if counted and name != "clean" else None
            new = name == "clean" and counted and not reference.has(number)
            logits = []
            for part in parts:
                logits.append(part.logits)
                if collector is not None:
                    collector.add(part.start, part.features, self.inputs.keys(part.start, part.stop))
                if comparison is not None:
                    comparison.add(part)
                elif new:
                    own = part.features if reference.in_probe(part.start) else part.features.pooled
                    reference.add(part.start, part.stop, own)
            passed[number] = self._outcomes(number, torch.cat(logits))
            if comparison is not None:
                sums[number] = comparison.finish()
                if comparison.scores:
                    shard.scores[number] = comparison.scores
            elif new:
                added.append(number)
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
        different = distinct(self.inputs.duplicate_of)
        low, high = _interval(hits, n, different)
        ranked = self.model.outputs > TOP_K
        low5, high5 = _interval(top5, n, different) if ranked else (None, None)
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
            top5_low=low5,
            top5_high=high5,
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
