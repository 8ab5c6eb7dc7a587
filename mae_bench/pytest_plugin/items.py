"""What tests ask for: ``cell``, ``representation``, ``claim``, ``evaluation`` and what they are made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from mae_bench.cells import Cell
from mae_bench.degradations import degradation
from mae_bench.errors import BenchError
from mae_bench.images import ImageError
from mae_bench.pytest_plugin.harness import HARNESS, fail

if TYPE_CHECKING:
    from mae_bench.evaluation import Evaluation
    from mae_bench.representation import Representation
    from mae_bench.rows import CellResult

PARAMETERS = ("mae_bench_cell", "mae_bench_represented", "mae_bench_model", "mae_bench_claim")
"""Hidden fixtures that are parametrized."""
NO_EVIDENCE = "no_evidence"
"""Id of the one claim that is collected, and skipped, where there is nothing to decide from."""


class BoundCell:
    """The ``cell`` of a test: one model x degradation x level, ready to run."""

    def __init__(self, cell: Cell, request: pytest.FixtureRequest) -> None:
        self.cell = cell
        self._request = request
        self._harness = request.config.stash[HARNESS]

    def run(self) -> CellResult:
        """Evaluate the cell, or take it from the resumed run; its row is on disk when this returns. A cell that the
        model cannot have skips the test, with the reason.
        """
        self._images()
        try:
            self._harness.load(self.cell.model, self._request)
            self._harness.executor.prepare()  # takes as long as it takes
            with self._harness.deadline(self.cell):
                result, note = self._harness.executor.run(self.cell)
            method = self._harness.executor.evaluation.inputs.method(self.cell.degradation, self.cell.level)
        except BenchError as error:
            self._fail(error)
        told = {"images": result.row.n, "reused": self._harness.executor.reused, "note": note, "method": method}
        self._say("mae_cell", {"cell": self.cell.id, "top1": result.row.top1, **told})
        if result.row.status == "not_applicable":
            pytest.skip(f"not applicable: {result.reason}")
        return result

    def check(self) -> None:
        """Run the cell and judge it against the baseline; a regression, or a difference where there can be none, fails
        the test with its table.
        """
        harness = self._harness
        ids = self._images()
        try:
            if harness.baseline is not None:
                manifest = harness.executor.suite.manifest
                harness.baseline.check_images(ids, manifest.labels, manifest.classes)
        except BenchError as error:
            self._end(error)
        result = self.run()
        if harness.baseline is None:
            return
        from mae_bench.comparison import Comparison, failure_text

        duplicate_of = harness.executor.evaluation.inputs.duplicate_of
        comparison = Comparison().add(result, ids, harness.baseline, harness.rule, duplicate_of)
        self._say("mae_comparison", comparison.to_dict())
        failed = comparison.failures(harness.rule, harness.options["strict"]).cells
        if failed and not harness.options["update-baseline"]:
            pytest.fail(failure_text(failed), pytrace=False)

    def _images(self) -> tuple[str, ...]:
        """Ids of the suite's images, once there is a place for results."""
        try:
            _ = self._harness.plan
            return self._harness.executor.suite.manifest.ids
        except BenchError as error:
            self._end(error)

    def _fail(self, error: BenchError) -> NoReturn:
        """Fail the test, and where an image cannot be read or the disk not be written to, end the run."""
        from mae_bench.store import StoreError

        if isinstance(error, ImageError) or (isinstance(error, StoreError) and isinstance(error.__cause__, OSError)):
            self._end(error)
        fail(error)

    def _end(self, error: BenchError) -> NoReturn:
        """Fail the test and end the run, since every other cell would fail alike."""
        self._request.session.shouldfail = "no cell of this run can be evaluated"
        fail(error)

    def _say(self, key: str, value: dict[str, Any]) -> None:
        # plain text, so that it survives the way from a worker to the controller
        self._request.node.user_properties.append((key, json.dumps(value)))


class BoundRepresentation(BoundCell):
    """The ``representation`` of a test: one model x degradation x level, of whose layers, heads and tokens it is."""

    def run(self) -> Representation:  # type: ignore[override]
        """Its records, on disk when this returns; an item that the model cannot have skips the test."""
        self._images()
        harness = self._harness
        try:
            harness.load(self.cell.model, self._request)
            executor = harness.executor
            executor.prepare()
            with harness.deadline(self.cell):
                representation = executor.represent(self.cell, self.cell.id in harness.collected)
            kind = degradation(self.cell.degradation, self.cell.level.severity)
            reason = executor.evaluation.not_applicable(kind)
        except BenchError as error:
            self._fail(error)
        self._say("mae_representation", {"cell": self.cell.id, "note": executor.note, "reused": executor.reused})
        if reason is not None:
            pytest.skip(f"not applicable: {reason}")
        return representation

    def check(self) -> None:
        """Measure it; there is nothing to judge but that it can be measured."""
        self.run()


class BoundClaim:
    """The ``claim`` of a test: one contrast, to be decided from the committed outcomes and evidence."""

    def __init__(self, name: str, request: pytest.FixtureRequest) -> None:
        self.name = name
        self._request = request
        self._harness = request.config.stash[HARNESS]

    def check(self) -> None:
        """Fail where the verdict is another than the committed one, or where a cell that this run evaluated lies off
        the interval that is committed for it.
        """
        harness = self._harness
        if self.name == NO_EVIDENCE:
            pytest.skip(
                f"{harness.baseline_path} holds no evidence.npz: evaluate with --mae-limit 0 --mae-full, then use "
                "mae-bench claims"
            )
        from mae_bench.claims import contradicted
        from mae_bench.store import RunDirectory

        try:
            found, stored = harness.decided
            finding = found[self.name]
            if (before := stored.get(self.name, "nothing")) != finding.confirmed:
                estimate = "none" if finding.estimate is None else f"{finding.estimate:.5g}"
                fail(
                    BenchError(
                        f"{self.name}: committed is {before!r}, outcomes and evidence now say {finding.confirmed!r} "
                        f"(estimate {estimate}, interval {finding.low} to {finding.high}); make claims.md again with "
                        "mae-bench claims if that is meant"
                    )
                )
            assert harness.baseline is not None
            contradiction = contradicted(
                finding.contrast,
                harness.baseline.rows,
                harness.evidence,
                RunDirectory(harness.run_path),
                harness.collected,
            )
            if contradiction is not None:
                fail(BenchError(contradiction))
        except BenchError as error:
            fail(error)


@pytest.fixture
def mae_bench_claim(request: pytest.FixtureRequest) -> str:
    """Name of a contrast. Parametrized in place of ``claim``."""
    return str(request.param)


@pytest.fixture
def claim(mae_bench_claim: str, request: pytest.FixtureRequest) -> BoundClaim:
    """One contrast of :mod:`mae_bench.contrasts`."""
    return BoundClaim(mae_bench_claim, request)


@pytest.fixture
def mae_bench_represented(request: pytest.FixtureRequest) -> str:
    """Id of a cell. Parametrized in place of ``representation``."""
    return str(request.param)


@pytest.fixture
def representation(mae_bench_represented: str, request: pytest.FixtureRequest) -> BoundRepresentation:
    """The representation of one cell; a test that asks for it is run at clean and at the middle and the top level of
    blur, occlusion and token_drop (all levels with ``--mae-full``), for encoders too.
    """
    return BoundRepresentation(Cell.parse(mae_bench_represented), request)


@pytest.fixture
def mae_bench_cell(request: pytest.FixtureRequest) -> str:
    """Id of a cell. Parametrized in place of ``cell``, so that a project's own ``cell`` is left alone."""
    return str(request.param)


@pytest.fixture
def mae_bench_model(request: pytest.FixtureRequest) -> str:
    """Name of a model. Parametrized in place of ``evaluation``."""
    return str(request.param)


@pytest.fixture
def cell(mae_bench_cell: str, request: pytest.FixtureRequest) -> BoundCell:
    """One cell of the matrix; a test that asks for it carries a family mark and is run for every cell."""
    return BoundCell(Cell.parse(mae_bench_cell), request)


@pytest.fixture
def evaluation(mae_bench_model: str, request: pytest.FixtureRequest) -> Evaluation:
    """The evaluation of one model on the selected suite; a test that asks for it is run for every model."""
    try:
        harness = request.config.stash[HARNESS]
        _ = harness.run_directory
        harness.load(mae_bench_model, request)
        return harness.executor.evaluation
    except BenchError as error:
        fail(error)


@pytest.fixture(scope="session")
def mae_weights(pytestconfig: pytest.Config) -> Callable[[str], list[Path]]:
    """``mae_weights(name)`` gives the file of ``--mae-weights`` for the model of that name, else those that have a name
    of the MAE authors.
    """
    try:
        named, authors = pytestconfig.stash[HARNESS].weights
    except BenchError as error:
        fail(error)
    return lambda name: [named[name]] if name in named else authors


@pytest.fixture(scope="session")
def mae_probe(pytestconfig: pytest.Config) -> Callable[..., object]:
    """Reads an encoder that was only pretrained: ``mae_probe(encoder, name=..., per_class=..., kind="linear")`` fits a
    linear classifier, or with ``kind="knn"`` a vote of neighbours, to so many training images of each class of the
    suite, and gives the whole as a model. What was fitted is kept in the cache.
    """
    return pytestconfig.stash[HARNESS].executor.probed
