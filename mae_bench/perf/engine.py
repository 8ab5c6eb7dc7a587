"""Whole cells beside the pure forward pass: ours, and the loops that others run, on the same images and batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mae_bench.cells import Level
from mae_bench.evaluation import Evaluation
from mae_bench.images import BLOCK, PROBE_BLOCKS, content_hash, stratified
from mae_bench.indicators.alignment import alignment_scores
from mae_bench.indicators.attention import attention_values
from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import LoadedModel, Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.models.zoo import bundled
from mae_bench.perf.conditions import Conditions
from mae_bench.perf.degradations import SIDE, smooth_images
from mae_bench.perf.measurement import LONGER, Findings, Measurement
from mae_bench.perf.timing import Work, interleaved, ratio
from mae_bench.representation import ATTENTION_IMAGES
from mae_bench.settings import Settings
from mae_bench.suites import SUITES, Suite, SuiteEntry

SECTION = "engine"
CELL = ("random_patch", Level(0.5))
"""The cell that is evaluated: of little cost itself, so that what is seen is the loop."""
LARGE = {"cpu": "vit_tiny_patch16_224", "cuda": "vit_base_patch16_224"}
"""timm's name of the model at 224 pixels by kind of device; its weights are random, on which speed does not depend."""
BUNDLED = "mae_ft_s0"
CLASSES = 10
CELL_IMAGES = 1024
"""Images of a cell over which the probe subset counts: those of a default run."""

SLOW = 2.0
"""How many times as long a forward pass in bfloat16 takes where a processor has no instructions for it, at least."""

FORWARD = "the pure forward pass"
POOLED = "a cell, every pooled indicator"
PROBE = "a cell, patch tokens too"
ATTENTION = "attention maps"
WHOLE = f"a cell of {CELL_IMAGES:,} images with its probe indicators"
ROBUSTBENCH = "RobustBench's loop, no indicator"
TIMM = "timm's validation loop, no indicator"
NAIVE = "the naive loop, the clean pass in every cell"
CONVERSION = "bytes to normalised images alone, the most that fusing this with anything could save"


def measured(conditions: Conditions) -> Findings:
    findings = Findings()
    device = conditions.device
    with tempfile.TemporaryDirectory() as scratch:
        small = SUITES["fashion_mnist"].load(None)
        blocks = PROBE_BLOCKS + conditions.either(2, 1)
        settings = Settings(device=str(device), limit=blocks * BLOCK)
        with evaluated(small, BUNDLED, lambda: bundled(BUNDLED), settings, Path(scratch)) as evaluation:
            findings.measurements += _measurements(f"{BUNDLED}, 28 px, float32", evaluation, conditions, {})
        if conditions.quick:
            findings.notes.append("a model at 224 pixels takes longer than a quick run")
            return findings
        architecture = LARGE[device.type]
        beyond = 128 if device.type == "cpu" else 8 * BLOCK
        suite = smooth_suite(PROBE_BLOCKS * BLOCK + beyond)
        dtypes = ["float32", "bfloat16"]
        if device.type == "cpu" and (slowdown := bfloat16_slowdown(trained(architecture), conditions)) > SLOW:
            findings.notes.append(
                f"bfloat16 is left out: this processor takes {slowdown:.1f} times as long for a forward pass in it"
            )
            dtypes.remove("bfloat16")
        for dtype in dtypes:
            settings = Settings(device=str(device), dtype=dtype)
            if device.type == "cuda":
                goals = {POOLED: "pooled cuda"} if dtype == "bfloat16" else {}
            else:
                goals = {POOLED: f"pooled {dtype}"} | ({WHOLE: "probe"} if dtype == "float32" else {})
            every = dtype == "float32" or device.type == "cuda"
            with evaluated(suite, architecture, lambda: trained(architecture), settings, Path(scratch)) as evaluation:
                named = f"{architecture}, {dtype}, {beyond:,} images"
                findings.measurements += _measurements(named, evaluation, conditions, goals, every)
    return findings


def bfloat16_slowdown(network: Classifier, conditions: Conditions) -> float:
    """How many times as long a forward pass of two images takes in bfloat16 as in float32."""
    network = network.to(conditions.device).eval()
    images = torch.rand(2, 3, network.view.height, network.view.width, device=conditions.device)

    def forward(lowered: bool) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=lowered):
                return network(images)

        return run

    work = {str(lowered): Work(forward(lowered)) for lowered in (False, True)}
    seconds = interleaved(work, conditions.clock, rounds=3)
    return ratio(seconds["True"], seconds["False"]).value


@contextmanager
def evaluated(
    suite: Suite, name: str, build: Callable[[], object], settings: Settings, scratch: Path
) -> Iterator[Evaluation]:
    """An evaluation whose clean pass has run."""
    pool = Pool(settings.device)
    evaluation = Evaluation(suite, pool.load(ModelEntry(name), build), settings, scratch, "perf")
    try:
        assert evaluation.reference is not None
        yield evaluation
    finally:
        evaluation.close()
        pool.release()


def _measurements(
    case: str, evaluation: Evaluation, conditions: Conditions, goals: dict[str, str], every: bool = True
) -> list[Measurement]:
    """What loops take as multiples of the forward pass; of ``every`` loop, or of ours with pooled indicators alone."""
    loops = Loops.of(evaluation)
    blocks = range(PROBE_BLOCKS, evaluation.blocks.stop)
    work = {
        FORWARD: Work(loops.forward, loops.images),
        POOLED: Work(lambda: evaluation.shard(*CELL, blocks), loops.images),
    }
    if every:
        batch = len(loops.batches[0])
        work |= {
            PROBE: Work(lambda: evaluation.shard(*CELL, range(PROBE_BLOCKS - 1, PROBE_BLOCKS)), BLOCK),
            ATTENTION: Work(loops.attention, batch),
            ROBUSTBENCH: Work(loops.robustbench, batch),
            TIMM: Work(loops.timm, batch),
            NAIVE: Work(loops.naive, batch),
            CONVERSION: Work(loops.conversion, loops.images),
        }
    for name in (FORWARD, POOLED):  # the clean pass has warmed up what they share
        work[name].do()
    # a round at 224 pixels takes half a minute of a processor
    seconds = interleaved(work, conditions.clock, conditions.rounds, warm_up=loops.side < SIDE)
    forward = seconds[FORWARD]
    found = [Measurement.rate(SECTION, case, name, each) for name, each in seconds.items() if name != ATTENTION]
    if every:
        seconds[WHOLE] = tuple(map(_whole_cell, *(seconds[name] for name in (FORWARD, POOLED, PROBE, ATTENTION))))
    return found + [
        Measurement.of(SECTION, case, name, LONGER, ratio(each, forward), goals.get(name, ""))
        for name, each in seconds.items()
        if name not in (FORWARD, ATTENTION)
    ]


def _whole_cell(forward: float, pooled: float, probe: float, attention: float) -> float:
    """Seconds per image of a cell of :data:`CELL_IMAGES`: two blocks of it are the probe subset, and of those the
    leading images have their attention maps read, which costs what a forward pass with them costs beyond one without.

    >>> _whole_cell(1.0, 1.0, 1.0, 1.5)
    1.125
    """
    in_probe = PROBE_BLOCKS * BLOCK / CELL_IMAGES
    attended = ATTENTION_IMAGES / CELL_IMAGES
    return (1 - in_probe) * pooled + in_probe * probe + attended * (attention - forward)


@dataclass(frozen=True)
class Loops:
    """The loops beside ours, on the images behind the probe subset: ``batches`` as the network takes them, ``clean``
    and ``degraded`` ones in [0, 1], ``labels`` of each, and the ``pictures`` that timm's loader transforms. ``read``
    gives clean images in [0, 1] once more, batch by batch.
    """

    model: LoadedModel
    dtype: torch.dtype
    batches: list[Tensor]
    clean: list[Tensor]
    degraded: list[Tensor]
    labels: list[Tensor]
    pictures: list[tuple[Image.Image, int]]
    transform: Callable[[Image.Image], Tensor]
    read: Callable[[], Iterator[Tensor]]

    @classmethod
    def of(cls, evaluation: Evaluation) -> Loops:
        model, device = evaluation.model, evaluation.device
        first, last, size = PROBE_BLOCKS * BLOCK, evaluation.images, evaluation.batch_size
        edges = [(start, min(start + size, last)) for start in range(first, last, size)]
        clean = [evaluation.degraded("clean", Level(0.0), *edge) for edge in edges]
        degraded = [evaluation.degraded(*CELL, *edge) for edge in edges]
        classifier = model.classifier
        labels = evaluation.suite.manifest.labels
        view = classifier.view
        transform = timm.data.create_transform(
            input_size=(classifier.channels, view.height, view.width),
            interpolation=view.interpolation,
            mean=classifier.mean,
            std=classifier.std,
            crop_pct=view.crop_pct,
        )
        return cls(
            model,
            getattr(torch, evaluation.settings.dtype),
            [classifier.normalised(images) for images in degraded],
            clean,
            degraded,
            [torch.from_numpy(labels[start:stop]).to(device) for start, stop in edges],
            [(evaluation.suite.read(position), int(labels[position])) for position in range(*edges[0])],
            transform,
            lambda: (evaluation.degraded("clean", Level(0.0), *edge) for edge in edges),
        )

    @property
    def images(self) -> int:
        return sum(map(len, self.batches))

    @property
    def side(self) -> int:
        return int(self.batches[0].shape[-1])

    @property
    def _device(self) -> torch.device:
        return self.batches[0].device

    @contextmanager
    def _inference(self) -> Iterator[None]:
        lowered = self.dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self._device.type, self.dtype) if lowered else nullcontext():
            yield

    def forward(self) -> None:
        """The network on normalised batches that are ready, and nothing else."""
        with self._inference():
            for batch in self.batches:
                self.model.classifier.module(batch)

    def conversion(self) -> None:
        """Images as they are kept, made into what the network takes, and nothing else."""
        with self._inference():
            for images in self.read():
                self.model.classifier.normalised(images)

    def attention(self) -> None:
        """One batch with what is read from the attention maps of every block."""
        taps = self.model.taps
        reading = partial(attention_values, prefix=taps.prefix, grid=taps.grid)
        readings = dict.fromkeys(range(1, taps.blocks + 1), reading)
        with taps.capture(patches=True, attention=readings), self._inference():
            self.model.classifier(self.degraded[0])

    def robustbench(self) -> float:
        """Corrupted batches that lie ready, hits counted, as RobustBench's ``clean_accuracy``: the first of them."""
        hits = 0.0
        with self._inference():
            for batch, labels in zip(self.degraded[:1], self.labels, strict=False):
                hits += (self.model.classifier(batch).argmax(1) == labels).float().sum().item()
        return hits / len(self.degraded[0])

    def timm(self) -> float:
        """A batch of clean pictures through timm's transform and a loader, its loss and top-k, as ``validate.py``."""
        loader: Any = DataLoader(
            Transformed(self.pictures, self.transform),
            batch_size=len(self.batches[0]),
        )
        top1, losses = timm.utils.AverageMeter(), timm.utils.AverageMeter()
        criterion = nn.CrossEntropyLoss()
        with self._inference():
            for images, labels in loader:
                images, labels = images.to(self._device), labels.to(self._device)
                logits = self.model.classifier.module(images)
                losses.update(criterion(logits.float(), labels).item(), len(images))
                top1.update(timm.utils.accuracy(logits, labels, topk=(1, 5))[0].item(), len(images))
        return float(top1.avg)

    def naive(self) -> int:
        """One batch clean and degraded, every layer's pooled tokens held against each other, flips counted."""
        passes = []
        with self._inference():
            for images in (self.clean[0], self.degraded[0]):
                with self.model.taps.capture(patches=False) as features:
                    passes.append((self.model.classifier(images).argmax(1), features))
            (clean, before), (degraded, after) = passes
            for key, tokens in before.tokens.items():
                alignment_scores(tokens, after.tokens[key], tokens.mean(0))
            return int((clean != degraded).sum())


@dataclass(frozen=True)
class Transformed(Dataset[tuple[Tensor, int]]):
    """Pictures and labels as a loader takes them."""

    pictures: list[tuple[Image.Image, int]]
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture, label = self.pictures[index]
        return self.transform(picture), label


def smooth_suite(images: int, side: int = SIDE) -> Suite:
    """So many smooth colour images of :data:`CLASSES` made-up classes."""
    pixels = (255 * smooth_images(images, 3, side)).round().byte().movedim(1, -1).numpy()
    labels = [position % CLASSES for position in range(images)]
    classes = tuple(f"class {label}" for label in range(CLASSES))
    order, manifest = stratified([content_hash(picture.tobytes()) for picture in pixels], labels, classes)
    entry = SuiteEntry("smooth_images", side, 0, True, "made-up images")
    return Suite(
        entry, manifest, (0.5, 0.5, 0.5), lambda position: Image.fromarray(np.asarray(pixels[order[position]]))
    )


def trained(architecture: str) -> Classifier:
    """A network of timm's with random weights, and a head that does not look as if nobody had trained it."""
    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=CLASSES)
    with torch.no_grad():
        head = network.get_classifier()
        head.weight.normal_(std=0.5)
        head.bias.normal_()
    side = network.pretrained_cfg["input_size"][-1]
    mean, std = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
    return Classifier(network, mean=mean, std=std, input_size=(3, side, side), crop_pct=1.0)
