"""Suites: labelled images with stable ids, class names and a fixed order.

What a suite is called and which ladders it takes is known here without reading a single image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_bench.cells import near_name
from mae_bench.entry_points import EntryPointError, added, implementation
from mae_bench.errors import BenchError
from mae_bench.suites.synsets import SYNSET, published_synsets

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from mae_bench.images import Manifest, View


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
    patches of its images are told. ``synsets`` names the published list that an ImageNet suite has its classes from,
    ``module`` beside this one reads it (by default that of its name). ``images`` is how many were published (0 where
    they are a user's own), ``adversarial`` says that they were chosen because models get them wrong, so that a good one
    may be right less often than chance.

    A package adds one by an entry point of its name in :data:`ENTRY_POINTS`. Its ``module`` is then a full path, whose
    function ``load(entry, data)`` gives a :class:`Suite`, and where the suite is not ``bundled`` with the package
    ``check(entry, data)`` raises a :class:`SuiteError` where the directory ``data`` cannot be used; it is imported when
    the suite is chosen. ``package`` is filled in when it is found.
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
    synsets: str = ""
    module: str = ""
    images: int = 0
    adversarial: bool = False
    package: str = ""

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
            self._module.check(self, data)

    def load(self, data: Path | None) -> Suite:
        """The suite itself, every content hash computed.

        Raises:
            SuiteError: as :meth:`check`.
        """
        self.check(data)
        suite: Suite = self._module.load(self, data)
        if self.package and not isinstance(suite, Suite):
            raise EntryPointError(
                f"package {self.package}: load of suite {self.name!r} gave a {type(suite).__name__}, not a "
                "mae_bench.suites.Suite; mend or uninstall it"
            )
        return suite

    def training(self, data: Path | None, per_class: int) -> Suite:
        """The first ``per_class`` training images of each class, for models that were only pretrained.

        Raises:
            SuiteError: the suite has none, or they are not below ``data``.
        """
        if data is None or not hasattr(self._module, "training"):
            raise SuiteError(
                f"suite {self.name!r} has no training images to fit a classifier to: use --mae-suite imagenet with "
                "--mae-data DIR, where DIR/train holds one folder per synset"
            )
        subset: Suite = self._module.training(self, data, per_class)
        return subset

    @property
    def _module(self) -> Any:
        """Raises:
        EntryPointError: it is that of a package, and cannot be used.
        """
        if self.package:
            return implementation(self.package, self.module, "load", *([] if self.bundled else ["check"]))
        return import_module(f"mae_bench.suites.{self.module or self.name}")


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
    a degradation and a severity, the same images as they were published under it. ``order`` (N,) are the positions in
    the order in which the images lie on the disk, where that is not the manifest's.
    """

    entry: SuiteEntry
    manifest: Manifest
    mean: tuple[float, ...]
    read: Callable[[int], Image.Image]
    stored: Callable[[str, int], StoredImages] | None = None
    order: np.ndarray | None = None

    @property
    def channels(self) -> int:
        return len(self.mean)

    @cached_property
    def manifest_hash(self) -> str:
        return self.manifest.hash

    @property
    def expected(self) -> int:
        """How many images a complete run is of: all that were published, whether or not they are on the disk."""
        return max(self.entry.images, len(self.manifest.ids))

    def view(self, model_view: View) -> View:
        """How a model that sees images under ``model_view`` sees those of the suite. Stored ImageNet images were
        published under the suite's own view, so there the clean ones are brought to it as well, and both then to the
        size of the model.
        """
        if not self._stores_cropped:
            return model_view
        from mae_bench.images import View

        size = self.entry.reference_size
        own = View(size, size, "bilinear", self.entry.crop_pct)
        return own if self._is_reference(model_view) else replace(self.stored_view(model_view), before=own)

    def stored_view(self, model_view: View) -> View:
        """How the model sees the stored images: no part of a cropped one is cropped again, and where the model has its
        size no pixel of it changes.
        """
        if not self._stores_cropped:
            return model_view
        interpolation = "bilinear" if self._is_reference(model_view) else model_view.interpolation
        return replace(model_view, interpolation=interpolation, crop_pct=1.0, crop_mode="center", before=None)

    @property
    def _stores_cropped(self) -> bool:
        return bool(self.entry.stored and self.entry.synsets)

    def _is_reference(self, view: View) -> bool:
        return (view.height, view.width) == (self.entry.reference_size, self.entry.reference_size)

    def label_map(self, model: str, outputs: int) -> LabelMap:
        """The map from classes to the ``outputs`` of ``model``: ImageNet synset names by their ImageNet index
        where there are 1,000 outputs, else the sorted classes by position. Where the classes are a published choice
        from the thousand, a model of 1,000 outputs chooses among them alone.

        Raises:
            SuiteError: the counts differ, or a class is no ImageNet synset.
        """
        classes = self.manifest.classes
        if outputs == 1000 and all(SYNSET.fullmatch(name) for name in classes):
            index = {synset: i for i, synset in enumerate(published_synsets("imagenet"))}
            unknown = [name for name in classes if name not in index]
            if unknown:
                raise SuiteError(f"suite {self.entry.name!r}: class {unknown[0]!r} is no synset of ImageNet-1k")
            masked = self.entry.synsets not in ("", "imagenet")
            rule = f"imagenet-1k among {len(classes)}" if masked else "imagenet-1k"
            return _label_map(rule, tuple(index[name] for name in classes), masked)
        expected = len(published_synsets(self.entry.synsets)) if self.entry.synsets else len(classes)
        if outputs != expected:
            raise SuiteError(
                f"model {model!r} has {outputs} outputs but suite {self.entry.name!r} has {expected} classes: "
                f"give the model {expected} outputs, or bind it to its own suite with @model_fixture(suite=...)"
            )
        return _label_map("sorted position", tuple(range(outputs)))


def _label_map(rule: str, outputs: tuple[int, ...], masked: bool = False) -> LabelMap:
    digest = hashlib.sha256(repr(outputs).encode()).hexdigest()[:8]
    return LabelMap(f"{rule} {digest}", outputs, masked)


C = ("imagenet_c", "c_extra")
"""Families of the corruptions that ImageNet-C and its kin were published under."""

SUITES: dict[str, SuiteEntry] = {
    entry.name: entry
    for entry in (
        SuiteEntry(
            "fashion_mnist", 28, 1024, True, "10,000 bundled Fashion-MNIST test images, 28 px, greyscale", grey=True,
            images=10_000,
        ),
        SuiteEntry(
            "cifar10", 32, 1024, False, "10,000 CIFAR-10 test images, 32 px, colour, below --mae-data", images=10_000
        ),
        SuiteEntry("imagefolder", 224, 0, False, "one folder of images per class, below --mae-data", 0.875),
        SuiteEntry(
            "imagenet", 224, 0, False, "50,000 validation images of ImageNet-1k in any usual layout, below --mae-data",
            0.875, salience="vit_small_patch16_224.dino", synsets="imagenet", images=50_000,
        ),
        SuiteEntry(
            "imagenet_v2", 224, 0, False, "ImageNet-V2: 10,000 images gathered anew, below --mae-data",
            0.875, synsets="imagenet", module="imagenet", images=10_000,
        ),
        SuiteEntry(
            "imagenet_a", 224, 0, False, "ImageNet-A: 7,500 adversarial photographs of 200 classes, below --mae-data",
            0.875, synsets="imagenet_a", module="imagenet", images=7_500, adversarial=True,
        ),
        SuiteEntry(
            "imagenet_r", 224, 0, False, "ImageNet-R: 30,000 renditions of 200 classes, below --mae-data",
            0.875, synsets="imagenet_r", module="imagenet", images=30_000,
        ),
        SuiteEntry(
            "imagenet_sketch", 224, 0, False, "ImageNet-Sketch: sketches of the 1,000 classes, below --mae-data",
            0.875, synsets="imagenet", module="imagenet", images=50_889,
        ),
        SuiteEntry(
            "imagenet_c", 224, 0, False, "ImageNet-C as published: 15 and 4 corruptions, below --mae-data",
            0.875, stored=C, synsets="imagenet", images=50_000,
        ),
        SuiteEntry(
            "imagenet_c_bar", 224, 0, False, "ImageNet-C-bar as published: 10 corruptions, below --mae-data",
            0.875, stored=("cbar",), synsets="imagenet", module="imagenet_c", images=50_000,
        ),
        SuiteEntry(
            "cifar10_c", 32, 0, False, "CIFAR-10-C as published: 15 and 4 corruptions, below --mae-data",
            stored=C, module="cifar_c", images=10_000,
        ),
        SuiteEntry(
            "cifar100_c", 32, 0, False, "CIFAR-100-C as published: 15 and 4 corruptions, below --mae-data",
            stored=C, module="cifar_c", images=10_000,
        ),
    )
}  # fmt: skip


IMAGENET = tuple(name for name, entry in SUITES.items() if entry.synsets)
"""Suites that models of ImageNet's classes are evaluated on."""


ENTRY_POINTS = "mae_bench.suites"
"""Group of the entry points by which packages add suites."""


@cache
def every_suite() -> dict[str, SuiteEntry]:
    """Every suite by name, those that installed packages add last.

    Raises:
        EntryPointError: one of these cannot be used; it is named with its package and the remedy.
    """
    return SUITES | added(ENTRY_POINTS, SuiteEntry, SUITES, _unfit)


def _unfit(entry: SuiteEntry, *_: object) -> str | None:
    """Why a suite cannot be used; None where it can."""
    return None if entry.module else "it names no module with a function load(entry, data)"


def suite_entry(name: str) -> SuiteEntry:
    """The suite called ``name``.

    Raises:
        SuiteError: there is none; the message names the nearest.
        EntryPointError: it is none of the benchmark's own, and as :func:`every_suite`.
    """
    known = SUITES if name in SUITES else every_suite()
    if name not in known:
        raise SuiteError(f"unknown suite {name!r}: {near_name(name, known)}")
    return known[name]
