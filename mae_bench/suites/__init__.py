"""Suites: labelled images with stable ids, class names and a fixed order.

What a suite is called and which ladders it takes is known here without reading a single image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mae_bench.cells import near_name
from mae_bench.errors import BenchError

if TYPE_CHECKING:
    from PIL import Image

    from mae_bench.images import Manifest


class SuiteError(BenchError):
    """A suite that does not exist, or whose data cannot be used."""


@dataclass(frozen=True)
class SuiteEntry:
    """What collection needs to know of a suite.

    ``reference_size`` is the image side in pixels that its ladders are meant for, ``default_limit`` the
    images of a default run (0 = all), ``bundled`` whether it comes with the package. The suite's own view is
    ``reference_size`` cut from the centre, bilinear, at ``crop_pct``. ``grey`` says that its images have one
    channel. ``stored`` are families whose degraded images are read from disk as they were published; a suite that
    has some has no others. ``salience`` names the reference model (timm's name) by whose attention the ``salient``
    patches of its images are told.
    """

    name: str
    reference_size: int
    default_limit: int
    bundled: bool
    summary: str
    crop_pct: float = 1.0
    grey: bool = False
    stored: tuple[str, ...] = ()
    salience: str | None = None

    def check(self, data: Path | None) -> None:
        """Look at ``data`` as far as that is cheap.

        Raises:
            SuiteError: the directory is missing or needless, or its layout is not the suite's.
        """
        if self.bundled and data is not None:
            raise SuiteError(f"suite {self.name!r} is bundled and takes no --mae-data (given: {data})")
        if not self.bundled:
            if data is None:
                raise SuiteError(
                    f"suite {self.name!r} reads images from disk: give their directory with --mae-data DIR"
                )
            import_module(f"mae_bench.suites.{self.name}").check(data)

    def load(self, data: Path | None) -> Suite:
        """The suite itself, every content hash computed.

        Raises:
            SuiteError: as :meth:`check`.
        """
        self.check(data)
        suite: Suite = import_module(f"mae_bench.suites.{self.name}").load(self, data)
        return suite


@dataclass(frozen=True)
class LabelMap:
    """Which model output stands for each class of a suite; ``name`` belongs to a cell's identity. Where ``masked``, the
    model chooses among these outputs alone.
    """

    name: str
    outputs: tuple[int, ...]
    masked: bool = False


@dataclass(frozen=True)
class StoredImages:
    """Degraded images that were published: ``read`` as in :class:`Suite`, and a ``fingerprint`` that changes with the
    files.
    """

    fingerprint: str
    read: Callable[[int], Image.Image]


@dataclass(frozen=True)
class Suite:
    """Labelled images. ``read`` gives the image at a position of the manifest; ``mean`` is the mean pixel
    per channel in [0, 1] of the data set (for fills), and has one entry where images are grey. ``stored`` gives, for
    a degradation and a severity, the same images as they were published under it.
    """

    entry: SuiteEntry
    manifest: Manifest
    mean: tuple[float, ...]
    read: Callable[[int], Image.Image]
    stored: Callable[[str, int], StoredImages] | None = None

    @property
    def channels(self) -> int:
        return len(self.mean)

    @cached_property
    def manifest_hash(self) -> str:
        return self.manifest.hash

    def label_map(self, model: str, outputs: int) -> LabelMap:
        """The map from classes to the ``outputs`` of ``model``: ImageNet synset names by their ImageNet index
        where there are 1,000 outputs, else the sorted classes by position.

        Raises:
            SuiteError: the counts differ, or a class is no ImageNet synset.
        """
        classes = self.manifest.classes
        if outputs == 1000 and all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in classes):
            from timm.data import ImageNetInfo

            index = {synset: i for i, synset in enumerate(ImageNetInfo("imagenet-1k").label_names())}
            unknown = [name for name in classes if name not in index]
            if unknown:
                raise SuiteError(f"suite {self.entry.name!r}: class {unknown[0]!r} is no synset of ImageNet-1k")
            return _label_map("imagenet-1k", tuple(index[name] for name in classes))
        if outputs != len(classes):
            raise SuiteError(
                f"model {model!r} has {outputs} outputs but suite {self.entry.name!r} has {len(classes)} classes: "
                f"give the model {len(classes)} outputs, or bind it to its own suite with @model_fixture(suite=...)"
            )
        return _label_map("sorted position", tuple(range(outputs)))


def _label_map(rule: str, outputs: tuple[int, ...]) -> LabelMap:
    digest = hashlib.sha256(repr(outputs).encode()).hexdigest()[:8]
    return LabelMap(f"{rule} {digest}", outputs)


SUITES: dict[str, SuiteEntry] = {
    entry.name: entry
    for entry in (
        SuiteEntry(
            "fashion_mnist", 28, 1024, True, "10,000 bundled Fashion-MNIST test images, 28 px, greyscale", grey=True
        ),
        SuiteEntry("cifar10", 32, 1024, False, "10,000 CIFAR-10 test images, 32 px, colour, below --mae-data"),
        SuiteEntry("imagefolder", 224, 0, False, "one folder of images per class, below --mae-data", 0.875),
    )
}


def suite_entry(name: str) -> SuiteEntry:
    """The suite called ``name``.

    Raises:
        SuiteError: there is none; the message names the nearest.
    """
    if name not in SUITES:
        raise SuiteError(f"unknown suite {name!r}: {near_name(name, SUITES)}")
    return SUITES[name]
