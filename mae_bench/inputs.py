"""What a model is given of a suite's images: decoded under its view, on its device, degraded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mae_bench.cells import Level
from mae_bench.degradations import Setting, degradation
from mae_bench.duplicates import duplicate_of, near_duplicates
from mae_bench.images import BLOCK, Decoded, View, cache_folder, decoded
from mae_bench.reference import to_device
from mae_bench.representation import Sample
from mae_bench.salience import Salience
from mae_bench.settings import Settings
from mae_bench.suites import Suite

CARD_SHARE = 0.4
"""Share of a GPU's free memory that decoded images may take."""
CPU_BATCH, CUDA_BATCH = 64, 256
"""Images per forward pass where the batch size is ``auto``: what fits a core's cache, and one block."""
Progress = Callable[[int, int], None]


class Inputs:
    """The images of a ``suite`` under a ``view``, of which a run takes the first ``images``, ``batch_size`` at a time.

    Args:
        scratch: a folder for the decoded images of a bundled suite, which evaluations share, and until :meth:`close`
            for those that are stored degraded; all others are kept in :func:`mae_bench.images.cache_folder`.
        progress: is told how many images are decoded, and of how many.
        salience: gives the suite's reference model with what it has seen under a view.
    """

    def __init__(
        self,
        suite: Suite,
        view: View,
        settings: Settings,
        scratch: Path,
        progress: Progress | None = None,
        salience: Callable[[View], Salience] | None = None,
    ) -> None:
        self.suite = suite
        self.view = view
        self.stored_view = suite.stored_view(view)
        self.settings = settings
        self.device = torch.device(settings.device)
        self.images = suite.manifest.subset(settings.limit)
        self.scratch = scratch
        self.at_once = settings.batch_size or (CUDA_BATCH if self.device.type == "cuda" else CPU_BATCH)
        """Images per forward pass that were asked for, halved as often as memory ran out."""
        self._progress = progress
        self._salience = salience or (lambda _: Salience(suite.entry, self.device))
        self._attended: Salience | None = None
        self._decoded: dict[tuple[str, int], Decoded] = {}
        self._folder: Path | None = None
        self._card: Tensor | None = None

    @property
    def blocks(self) -> range:
        """Numbers of the blocks of the run."""
        return range(-(-self.images // BLOCK))

    @property
    def batch_size(self) -> int:
        """:attr:`at_once`, above a block rounded down to whole blocks."""
        return self.at_once if self.at_once <= BLOCK else self.at_once // BLOCK * BLOCK

    @cached_property
    def sample(self) -> Sample:
        """Images on which classes are told apart."""
        return Sample.of(self.suite)

    def decode(self, name: str = "clean", level: Level | None = None) -> None:
        """Have the images that a cell is made of decoded, if they are not yet.

        Raises:
            ImageError: one cannot be read, or there is no room for them.
        """
        self._pixels(name, level or Level(0.0), self.images)

    def degraded(self, name: str, level: Level, start: int, stop: int) -> Tensor:
        """Images ``start`` to ``stop`` of the suite in [0, 1] on the device, degraded: (B, C, H, W) float32."""
        pixels = self._shown(name, level, start, stop)
        if self.is_stored(level):
            return pixels
        kind = degradation(name, level.severity)
        return kind.apply(pixels, level, self.setting(start, stop, kind.by_salience))

    def setting(self, start: int, stop: int, by_salience: bool = False) -> Setting:
        """What images ``start`` to ``stop`` are degraded by beside a level."""
        return Setting(
            keys=self.keys(start, stop),
            seed=self.settings.seed,
            reference_size=self.suite.entry.reference_size,
            mean=self.suite.mean,
            salience=self._salience_of(start, stop) if by_salience else None,
        )

    def keys(self, start: int, stop: int) -> Tensor:
        """(B,) keys of images ``start`` to ``stop``, on the device."""
        return to_device(torch.from_numpy(self.suite.manifest.keys[start:stop]), self.device, self.settings.prefetch)

    def is_stored(self, level: Level) -> bool:
        """Whether the images of a cell are read degraded from the suite's files."""
        return self.suite.stored is not None and bool(level.severity)

    def method(self, name: str, level: Level) -> str | None:
        """By which of several equal ways the images of a cell are degraded; None where there is one."""
        if self.is_stored(level):
            return None
        size = (self.view.height, self.view.width)
        return degradation(name, level.severity).method(level, size, self.device, self.suite.entry.reference_size)

    def unit(self, name: str, level: Level) -> str:
        """The unit of a level with what else a cell's pixels come from: the table of its severities, the published
        files, or the reference model.
        """
        kind = degradation(name, level.severity)
        if self.suite.stored is not None and level.severity:
            return f"severity (as published, {self.suite.stored(kind.name, int(level.value)).fingerprint[:12]})"
        if kind.by_salience:
            return f"{kind.unit} of {self.suite.entry.salience}"
        return kind.unit_at(min(self.view.height, self.view.width))

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

    def close(self) -> None:
        """Let go of what this alone holds."""
        self._card = None
        self._forget_stored()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    @property
    def _seen(self) -> Decoded:
        self.decode()
        return self._decoded["", self.images]

    def _pixels(self, name: str, level: Level, stop: int) -> np.ndarray:
        """Decoded images of the run, or where ``stop`` lies behind them those of the sample too: as they are stored
        under a degradation where they are, else clean.
        """
        suite = self.suite
        count = self.images if stop <= self.images else min(len(suite.manifest.ids), self.sample.blocks.stop * BLOCK)
        key = (f"{name}-{level}" if self.is_stored(level) else "", count)
        if key not in self._decoded:
            if self.is_stored(level):
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
                    progress=self._progress,
                    order=suite.order,
                )
        return self._decoded[key].pixels

    def _stored_pixels(self, name: str, level: Level, count: int) -> Decoded:
        """Decoded images as they are stored under a degradation, kept until those of another cell are asked for: all of
        ImageNet-C's would fill 700 GB.
        """
        suite = self.suite
        assert suite.stored is not None
        if self._folder is None:
            self.scratch.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="stored-", dir=self.scratch))
        self._forget_stored()
        folder = self._folder / "decoded"
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
            self._progress,
            suite.order,
        )

    def _forget_stored(self) -> None:
        for known in [known for known in self._decoded if known[0]]:
            del self._decoded[known]

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
        if self._card is not None and len(self._card) == len(pixels) and not self.is_stored(level):
            return self._card[start:stop]
        return to_device(torch.from_numpy(np.array(pixels[start:stop])), self.device, self.settings.prefetch)

    def _salience_of(self, start: int, stop: int) -> Tensor:
        """(B, cells) where the suite's reference model looks in the clean images, as :mod:`mae_bench.salience` has it;
        known of whole blocks, once they were asked for.
        """
        if self._attended is None:
            self._attended = self._salience(self.view)
        blocks = []
        for number in range(start // BLOCK, -(-stop // BLOCK)):
            first, last = number * BLOCK, min((number + 1) * BLOCK, len(self.suite.manifest.ids))
            if number not in self._attended:
                clean = self._shown("clean", Level(0.0), first, last)
                self._attended.add(number, clean, self.batch_size)
            blocks.append(self._attended[number])
        offset = start // BLOCK * BLOCK
        return torch.cat(blocks)[start - offset : stop - offset]
