"""What the clean pass of a model leaves behind for its degraded cells: memory-mapped features and calibration."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import Timeout
from torch import Tensor

from mae_bench.errors import BenchError
from mae_bench.images import BLOCK, PROBE_BLOCKS
from mae_bench.indicators import retention
from mae_bench.indicators.alignment import is_constant
from mae_bench.models.taps import Features, not_hidden

Key = tuple[int, str]


class ScratchError(BenchError):
    """Clean features that cannot be kept."""


@contextmanager
def keeping(what: str, path: Path) -> Iterator[None]:
    """Inside, what the disk refuses of ``what`` at ``path`` is a :class:`ScratchError` with its remedy; that a lock is
    held by another is no refusal.
    """
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise ScratchError(
            f"{path}: {what} cannot be kept ({error}); free some room, or name a run directory on another disk with "
            "--mae-run DIR"
        ) from error


def to_device(values: Tensor, device: torch.device, prefetch: bool = True) -> Tensor:
    """``values`` on ``device``. A GPU is sent them from pinned memory, without waiting for it, and with ``prefetch`` by
    a stream of their own, so that they come while it still works on what came before.
    """
    if device.type != "cuda":
        return values
    if not prefetch:
        return values.pin_memory().to(device, non_blocking=True)
    copies, work = _copies(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        sent = values.pin_memory().to(device, non_blocking=True)
    work.wait_stream(copies)
    sent.record_stream(work)  # whose memory is not to be taken before the work on it is done
    return sent


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


def mapped(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    """A new memory-mapped file. Its room on the disk is taken at once: a disk that fills up under a map ends the
    process without a word.

    Raises:
        ScratchError: the disk has no room for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        with path.open("wb") as file:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise ScratchError(
            f"{path}: no room for {size / 2**30:.1f} GiB of clean features ({error.strerror}); free some, evaluate "
            "fewer images with --mae-limit, or name a run directory on another disk with --mae-run DIR"
        ) from error
    return np.memmap(path, mode="r+" if size else "w+", dtype=dtype, shape=shape)


def mapped_again(path: Path, shape: tuple[int, ...], dtype: type, mode: Literal["r", "r+"] = "r") -> np.memmap:
    """A file that :func:`mapped` made and others may hold too, to be read alone or, by ``mode``, written to.

    Raises:
        ValueError: it has another size; beyond its end a map would end the process.
        OSError: it is missing.
    """
    if path.stat().st_size != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"{path} holds {path.stat().st_size} bytes, not {shape} of {np.dtype(dtype)}")
    return np.memmap(path, mode=mode, dtype=dtype, shape=shape)


def with_names(what: str, values: Mapping[Key, np.ndarray]) -> dict[str, np.ndarray]:
    """``values`` under names that say of what they are, of which layer and of which kind of token."""
    return {f"{what} {layer} {kind}": value for (layer, kind), value in values.items()}


def keyed(what: str, arrays: Mapping[str, np.ndarray]) -> dict[Key, np.ndarray]:
    """Those of ``arrays`` whose names :func:`with_names` made of ``what``.

    >>> keyed("centers", {**with_names("centers", {(3, "cls"): np.zeros(2)}), "images": np.array(4)})
    {(3, 'cls'): array([0., 0.])}
    """
    split = {name: name.split(" ") for name in arrays}
    return {(int(own[1]), own[2]): arrays[name] for name, own in split.items() if own[0] == what and len(own) == 3}


@dataclass(frozen=True)
class CleanSide:
    """What the images of a block are compared with: their clean ``tokens``, what was ``active`` in their heads, and the
    ``centers`` to subtract from tokens, which broadcast to them.
    """

    tokens: dict[Key, Tensor]
    active: dict[Key, Tensor]
    centers: dict[Key, Tensor]

    def of(self, features: Features) -> CleanSide:
        """What ``features`` are compared with, and no more."""

        def kept(values: dict[Key, Tensor], wanted: dict[Key, Tensor]) -> dict[Key, Tensor]:
            return {key: value for key, value in values.items() if key in wanted}

        tokens, heads = features.tokens, features.heads
        return CleanSide(kept(self.tokens, tokens), kept(self.active, heads), kept(self.centers, tokens))

    def window(self, images: slice) -> CleanSide:
        """Of some of the images; a center of one dimension is that of all."""
        return CleanSide(
            {key: value[images] for key, value in self.tokens.items()},
            {key: value[images] for key, value in self.active.items()},
            {key: value if value.ndim == 1 else value[images] for key, value in self.centers.items()},
        )

    @classmethod
    def concatenated(cls, sides: Sequence[CleanSide]) -> CleanSide:
        """The sides of one image after the other as one; centers are per image only where tokens are patches."""

        def joined(name: str) -> dict[Key, Tensor]:
            per_image = {key: [getattr(side, name)[key] for side in sides] for key in getattr(sides[0], name)}
            return {key: parts[0] if parts[0].ndim == 1 else torch.cat(parts) for key, parts in per_image.items()}

        return cls(joined("tokens"), joined("active"), joined("centers"))


class Reference:
    """Clean features of one model on the first ``images`` of a suite, in files below ``folder``.

    Pooled tokens and packed activity are kept for all images, the ``patch`` kind for the probe subset alone.
    The blocks of the probe subset are added first and in order; with the last of them :attr:`centers` (clean mean per
    layer and kind), :attr:`thresholds` (per block, kind and head) and :attr:`constant` (layers and kinds that are the
    same for every image) are fixed. :attr:`prefetch` is how :func:`to_device` sends them, :attr:`prediction` the clean
    outputs, which whoever passes the images fills in.
    """

    def __init__(self, folder: Path, images: int) -> None:
        self._begin(folder, images)
        folder.mkdir(parents=True)

    def _begin(self, folder: Path, images: int) -> None:
        self.folder = folder
        self.images = images
        self.probe = min(images, PROBE_BLOCKS * BLOCK)
        self.centers: dict[Key, Tensor] = {}
        self.thresholds: dict[Key, Tensor] = {}
        self.constant: set[Key] = set()
        self.head_shapes: dict[Key, tuple[int, ...]] = {}
        self.prediction = np.zeros(images, dtype=np.int64)
        self._tokens: dict[Key, np.memmap] = {}
        self._active: dict[Key, np.memmap] = {}
        self._probe_heads: dict[Key, np.memmap] = {}
        self._written: dict[Path, np.memmap] = {}
        self._sent: dict[tuple[str, int, str], Tensor] = {}
        self._blocks: set[int] = set()
        self._shared = False
        self.prefetch = True

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """By name what is not in its files, and of these the shapes."""
        return {
            "images": np.array(self.images),
            "blocks": np.array(sorted(self._blocks), dtype=np.int64),
            **with_names("constant", {key: np.array(1) for key in self.constant}),
            **with_names("centers", {key: value.numpy() for key, value in self.centers.items()}),
            **with_names("thresholds", {key: value.numpy() for key, value in self.thresholds.items()}),
            **with_names("heads", {key: np.array(shape) for key, shape in self.head_shapes.items()}),
            **with_names("tokens", {key: np.array(store.shape) for key, store in self._tokens.items()}),
            **with_names("active", {key: np.array(store.shape) for key, store in self._active.items()}),
        }

    @classmethod
    def finished(cls, folder: Path, arrays: Mapping[str, np.ndarray]) -> Reference:
        """The one of which ``folder`` holds the files and ``arrays`` are :attr:`arrays`. What is added to it, of blocks
        behind the probe subset, is there for all who have those files.

        Raises:
            OSError, ValueError: a file is missing or has another size.
        """
        reference = cls.__new__(cls)
        reference._begin(folder, int(arrays["images"]))
        reference._blocks, reference._shared = set(arrays["blocks"].tolist()), True
        reference.constant = set(keyed("constant", arrays))
        reference.centers = {key: torch.from_numpy(value) for key, value in keyed("centers", arrays).items()}
        reference.thresholds = {key: torch.from_numpy(value) for key, value in keyed("thresholds", arrays).items()}
        reference.head_shapes = {key: tuple(shape.tolist()) for key, shape in keyed("heads", arrays).items()}
        for stores, what, dtype in (
            (reference._tokens, "tokens", np.float32),
            (reference._active, "active", np.uint8),
        ):
            for key, shape in keyed(what, arrays).items():
                stores[key] = mapped_again(folder / _file(what, key), tuple(shape.tolist()), dtype)
        return reference

    def in_probe(self, start: int) -> bool:
        return start < self.probe

    def has(self, block: int) -> bool:
        """Whether the features of a block are complete, by whomever."""
        if block not in self._blocks and self._shared and self._mark(block).exists():
            self._blocks.add(block)
        return block in self._blocks

    def add(self, start: int, stop: int, features: Features) -> None:
        """Keep the features of images ``start`` to ``stop``, which are of one block; once all of its images are there,
        it is to be :meth:`complete`. Images of the probe subset come in order.

        Raises:
            ScratchError: the disk has no room for them.
        """
        for key, values in features.tokens.items():
            rows = self.probe if key[1] == "patch" else self.images
            store = self._store(self._tokens, "tokens", key, (rows, *values.shape[1:]), np.float32)
            store[start:stop] = values.cpu().numpy()
        if self.in_probe(start):
            for key, values in features.heads.items():
                store = self._store(self._probe_heads, "heads", key, (self.probe, *values.shape[1:]), np.float32)
                store[start:stop] = values.cpu().numpy()
                self.head_shapes[key] = tuple(values.shape[1:])
            if stop >= self.probe:
                self._calibrate()
        else:
            for key, values in features.heads.items():
                self._keep_active(key, start, values)

    def complete(self, block: int) -> None:
        """Say, to all who have the files, that the features of a block are there.

        Raises:
            ScratchError: the disk cannot be written to.
        """
        if self._shared:
            with keeping("clean features", self.folder):
                self._mark(block).touch()
        self._blocks.add(block)

    def _mark(self, block: int) -> Path:
        """The file that says that the features of a block are in the others."""
        return self.folder / f"{block}.there"

    def side(self, start: int, stop: int, features: Features) -> CleanSide:
        """The clean side of images ``start`` to ``stop`` for the keys of their degraded ``features``."""
        device = next(iter([*features.tokens.values(), *features.heads.values()]), torch.empty(0)).device
        known = [key for key in features.tokens if key not in self.constant]
        return CleanSide(
            {key: to_device(self.tokens(key, start, stop), device, self.prefetch) for key in known},
            {key: to_device(self.active(key, start, stop), device, self.prefetch) for key in features.heads},
            {key: self.center(key, device) for key in known},
        )

    def side_of_kept(self, features: Features, hidden: Tensor) -> CleanSide:
        """The clean side of images whose tokens were dropped where ``hidden`` (B, P): ``features`` are their clean
        ones, already restricted to the kept tokens.
        """
        known = [key for key in features.tokens if key not in self.constant]
        centers = {key: self.center(key, hidden.device) for key in known if key in self.centers}
        for key in known:
            if key[1] == "patch":  # centred per position
                center = centers[key].expand(len(hidden), *centers[key].shape)
                centers[key] = not_hidden(center, hidden, features.tokens[key].shape[1])
        active = {
            key: retention.active(values, self.threshold(key, hidden.device)) for key, values in features.heads.items()
        }
        return CleanSide({key: features.tokens[key] for key in known}, active, centers)

    def center(self, key: Key, device: torch.device) -> Tensor:
        """The clean mean of a layer and kind, sent to ``device`` once."""
        if ("center", *key) not in self._sent:
            self._sent["center", *key] = to_device(self.centers[key], device, self.prefetch)
        return self._sent["center", *key]

    def threshold(self, key: Key, device: torch.device) -> Tensor:
        """The thresholds of the heads of a block and kind, sent to ``device`` once."""
        if ("threshold", *key) not in self._sent:
            self._sent["threshold", *key] = to_device(self.thresholds[key], device, self.prefetch)
        return self._sent["threshold", *key]

    def tokens(self, key: Key, start: int, stop: int) -> Tensor:
        return torch.from_numpy(np.array(self._tokens[key][start:stop]))

    def active(self, key: Key, start: int, stop: int) -> Tensor:
        return retention.unpacked(np.asarray(self._active[key][start:stop]), self.head_shapes[key])

    def _calibrate(self) -> None:
        for key, store in self._tokens.items():
            clean = torch.from_numpy(np.array(store[: self.probe]))
            self.centers[key] = clean.mean(0)
            if is_constant(clean):
                self.constant.add(key)
        for key, store in self._probe_heads.items():
            self.thresholds[key] = torch.from_numpy(retention.thresholds(np.asarray(store)))
            for start in range(0, self.probe, BLOCK):
                self._keep_active(key, start, torch.from_numpy(np.array(store[start : start + BLOCK])))
        for key in list(self._probe_heads):
            Path(str(self._probe_heads.pop(key).filename)).unlink()

    def _keep_active(self, key: Key, start: int, outputs: Tensor) -> None:
        bits = retention.packed(retention.active(outputs.cpu(), self.thresholds[key]))
        rows = self.probe if key[1] == "patch" else self.images
        store = self._store(self._active, "active", key, (rows, bits.shape[1]), np.uint8)
        store[start : start + len(bits)] = bits

    def _store(
        self, stores: dict[Key, np.memmap], what: str, key: Key, shape: tuple[int, ...], dtype: type
    ) -> np.memmap:
        path = self.folder / _file(what, key)
        if self._shared:  # whose own maps are to be read alone
            if path not in self._written:
                self._written[path] = mapped_again(path, shape, dtype, "r+")
            return self._written[path]
        if key not in stores:
            stores[key] = mapped(path, shape, dtype)
        return stores[key]


def _file(what: str, key: Key) -> str:
    return f"{what}-{key[0]}-{key[1]}.bin"
