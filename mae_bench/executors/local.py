"""Cells in this process: one model at a time, finished cells on disk, those of an earlier run reused."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from mae_bench.cells import Cell, Level
from mae_bench.errors import BenchError
from mae_bench.evaluation import Evaluation
from mae_bench.images import View, cache_folder, decoded
from mae_bench.inputs import Progress
from mae_bench.labelled_images import LabelledImages
from mae_bench.machine import machine, version_of
from mae_bench.models import ModelError
from mae_bench.models.checkpoints import pretrained_encoder
from mae_bench.models.pool import LoadedModel, Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.representation import Representation
from mae_bench.rows import CellResult, identity_difference
from mae_bench.salience import Salience
from mae_bench.settings import Settings
from mae_bench.store import RunDirectory, StoreError
from mae_bench.suites import Suite, SuiteEntry

Build = Callable[[], object]
Stored = TypeVar("Stored")


def resolved_dtype(name: str, device: str) -> str:
    """The number format that ``auto`` stands for on ``device``: half the bytes on a GPU, whose tensor cores want them.

    >>> resolved_dtype("auto", "cuda:0"), resolved_dtype("auto", "cpu"), resolved_dtype("float32", "cuda:0")
    ('bfloat16', 'float32', 'float32')
    """
    if name != "auto":
        return name
    return "bfloat16" if device.startswith("cuda") else "float32"


def resolved_device(name: str, place: int = 0) -> str:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:i`` stands for here; without a number, workers take turns:
    the one at ``place``, from 0 on, has the GPU of that number modulo how many there are.

    Raises:
        BenchError: it is a GPU that this machine, or this build of torch, does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        count = torch.cuda.device_count()
        index = int(name.partition(":")[2] or place % max(1, count))
        if index >= count:
            raise BenchError(
                f"--mae-device {name}: torch {torch.__version__} sees {count} CUDA devices here; "
                "use --mae-device auto or cpu"
            )
        return f"cuda:{index}"
    return name


class LocalExecutor:
    """Runs cells of one suite into one run directory. ``represented`` maps models to the conditions whose
    representation will be asked for; ``progress`` is told how many images are decoded, and of how many; ``weights`` are
    files by the name of the model that they are for, of which the suite's reference model is looked for. Executors of
    one ``session`` share the clean passes of models, and those that have the name of a ``joint`` session, which may be
    on several machines, the passes over cells.
    """

    def __init__(
        self,
        entry: SuiteEntry,
        data: Path | None,
        settings: Settings,
        run: RunDirectory,
        resume: bool,
        represented: Mapping[str, Collection[str]] | None = None,
        progress: Progress | None = None,
        weights: Mapping[str, Path] | None = None,
        session: str = "",
        joint: str = "",
    ) -> None:
        self.entry = entry
        self.data = data
        self.settings = settings
        self.run_directory = run
        self.resume = resume
        self.pool = Pool(settings.device, settings.compiles, settings.memory_format)
        self._evaluation: Evaluation | None = None
        self.represented = represented or {}
        self.progress = progress
        self.weights = weights or {}
        self.session = session
        self.joint = joint
        self._saliences: dict[View, Salience] = {}
        self._blind = ""
        self._clean_written = self._model_written = False
        self._finished: set[str] = set()
        self._notes: dict[str, str] = {}
        self.note = ""
        self.reused = False
        torch.set_num_threads(settings.threads)
        # float32 shall mean float32, in degradations as in models
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False

    @cached_property
    def suite(self) -> Suite:
        """The suite, loaded when the first cell needs it; what the run is made of is written down then.

        Raises:
            BenchError: the data cannot be used.
        """
        suite = self.entry.load(self.data)
        self.run_directory.write_manifest(self._manifest(suite))
        manifest = suite.manifest
        self.run_directory.write_images(LabelledImages.of(manifest.ids, manifest.labels, manifest.classes))
        return suite

    def load(self, entry: ModelEntry, build: Build) -> LoadedModel:
        """The model of ``entry``; another one held is released first.

        Raises:
            ModelError: it cannot be built or used.
        """
        if self._evaluation is not None and self._evaluation.model.entry.name != entry.name:
            self.release()
        return self.pool.load(entry, build)

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation of the model held on the suite.

        Raises:
            BenchError: the suite cannot be loaded, or does not fit the model.
        """
        if self._evaluation is None:
            run = self.run_directory
            self._clean_written = self._model_written = False
            model = self.pool.model
            represented = self.represented.get(model.entry.name, ())
            self._evaluation = Evaluation(
                self.suite,
                model,
                self.settings,
                run.scratch,
                run.run_id,
                represented,
                self.progress,
                self._salience,
                run.clean_pass(self.session, model.entry.name) if self.session else None,
                run.joint_passes(self.joint, model.entry.name) if self.joint else None,
            )
        return self._evaluation

    def prepare(self) -> None:
        """Have the clean images decoded for the model held, and write down what it is and which images it cannot tell
        apart.

        Raises:
            BenchError: an image cannot be read, or as :attr:`evaluation`.
        """
        evaluation = self.evaluation
        evaluation.inputs.decode()
        if not self._model_written:
            self.run_directory.write_model(
                evaluation.model, evaluation.inputs.copies, evaluation.inputs.near_duplicates
            )
            self._model_written = True

    def _salience(self, view: View) -> Salience:
        """The suite's reference model with what it has seen under ``view``, which models share; one that cannot be had
        is not tried again.

        Raises:
            ModelError: as :class:`mae_bench.salience.Salience`.
        """
        if self._blind:
            raise ModelError(self._blind)
        if view not in self._saliences:
            device = torch.device(self.settings.device)
            try:
                self._saliences[view] = Salience(
                    self.entry, device, lambda name: pretrained_encoder(name, self.weights.get(name))
                )
            except ModelError as error:
                self._blind = str(error)
                raise
        return self._saliences[view]

    def run(self, cell: Cell) -> tuple[CellResult, str]:
        """The finished ``cell`` of the model held, on disk, and a note where a stored one could not be reused.

        The clean cell of the model is on disk then too: as an earlier session left it, or written along with the first
        other one. :attr:`reused` says whether it was there before this executor ran it.
        """
        result = self._run(cell)
        notes = [self._notes.pop(name, "") for name in (_clean(cell).id, cell.id)]
        return result, "\n".join(filter(None, notes))

    def _run(self, cell: Cell) -> CellResult:
        """As :meth:`run`; what is to be noted is kept until that is asked for a cell of the model."""
        if not self._clean_written:
            self._finish(_clean(cell))
            self._clean_written = True
        return self._finish(cell)

    def _finish(self, cell: Cell) -> CellResult:
        if self.resume or cell.id in self._finished:
            stored, note = self._stored(self.run_directory.read_cell, cell)
            if stored is not None:
                wanted = self.evaluation.identity(cell.degradation, cell.level)
                differing = identity_difference(stored.row, wanted)
                if not differing and stored.row.machine:
                    self.reused = cell.id not in self._finished
                    return stored
                why = _differences(wanted, asdict(stored.row), differing)
                note = _again(cell, why or "it is of schema 1, which does not say on which machine")
            self._notes[cell.id] = note
        self.reused = False
        result = self.evaluation.run(cell.degradation, cell.level)
        if result.row.family == "clean":
            self.evaluation.check_chance(result)
        self.run_directory.write_cell(result)
        self._finished.add(cell.id)
        return result

    def represent(self, cell: Cell, with_cell: bool = False) -> Representation:
        """The representation of ``cell`` of the model held, on disk; ``with_cell`` says that the cell itself is of this
        run too, so that it is run now, and one forward pass feeds both. :attr:`reused` says whether a stored one was
        taken, :attr:`note` why it could not be.
        """
        evaluation = self.evaluation
        self.note = ""
        if self.resume:
            stored, self.note = self._stored(self.run_directory.read_representation, cell)
            if stored is not None:
                wanted = evaluation.identity(cell.degradation, cell.level)
                differing = [name for name in wanted if stored.identity.get(name) != wanted[name]]
                lacking = self.settings.jackknife and cell.degradation == "clean" and not stored.replicates
                if not differing and not lacking:
                    self.reused = True
                    return stored
                why = _differences(wanted, stored.identity, differing)
                self.note = _again(cell, why or "it has no values without each tenth of the images")
        if with_cell:
            self._run(cell)
        self.reused = False
        representation = evaluation.represent(cell.degradation, cell.level)
        self.run_directory.write_representation(cell, representation)
        return representation

    def _stored(self, read: Callable[[Cell], Stored | None], cell: Cell) -> tuple[Stored | None, str]:
        """What is on file of ``cell``, or None; a note where that cannot be read."""
        try:
            return read(cell), ""
        except StoreError as error:
            return None, _again(cell, f"its file is damaged ({error.__cause__ or error})")

    def probed(
        self, encoder: nn.Module, *, name: str, per_class: int, kind: Literal["linear", "knn"] = "linear"
    ) -> nn.Module:
        """``encoder``, a timm model without classifier, read by a head that is fitted to ``per_class`` training images
        of each class of the suite.

        Raises:
            BenchError: the suite has no training images where they are looked for, or the head cannot be fitted.
        """
        from mae_bench.models.probes import probed

        subset = self.entry.training(self.data, per_class)

        def images(view: View, _: int) -> tuple[np.ndarray, np.ndarray]:
            count = len(subset.manifest.ids)
            found = decoded(
                subset.manifest,
                count,
                view,
                subset.channels,
                subset.read,
                cache_folder() / "decoded",
                progress=self.progress,
                order=subset.order,
            )
            return found.pixels, subset.manifest.labels

        return probed(
            name,
            encoder,
            images,
            subset=subset.manifest_hash,
            per_class=per_class,
            kind=kind,
            folder=cache_folder() / "probes",
            device=self.settings.device,
        )

    @property
    def held(self) -> str | None:
        """Name of the model that is loaded."""
        return self.pool.held

    def release(self) -> None:
        """Let go of the model and its clean features."""
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None
        self.pool.release()

    def _manifest(self, suite: Suite) -> dict[str, Any]:
        return {
            "run_id": self.run_directory.run_id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "suite": self.entry.name,
            "suite_from": self.entry.package or "mae_bench",
            "data": str(self.data) if self.data else None,
            "manifest_hash": suite.manifest_hash,
            "images": len(suite.manifest.ids),
            "settings": asdict(self.settings),
            "device_name": machine(self.settings.device),
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "command": sys.argv,
            "versions": {
                **{
                    name: version_of(name)
                    for name in ("mae_bench", "torchvision", "timm", "kornia", "numpy", "pillow", "pytest")
                },
                "torch": str(torch.__version__),  # which names the build too
            },
        }


def _clean(cell: Cell) -> Cell:
    return Cell(cell.model, "clean", Level(0.0))


def _again(cell: Cell, why: str) -> str:
    return f"{cell.id} was run again: {why}"


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {wanted[name]} here, {found.get(name)} stored" for name in names)
