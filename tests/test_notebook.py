"""The benchmark as a function gives the rows that pytest gives, and changes nothing else."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import mae_bench
from mae_bench import Classifier, Results, evaluate
from mae_bench.degradations.ladders import conditions
from mae_bench.errors import BenchError
from mae_bench.evaluation import Evaluation
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.models.zoo import bundled
from mae_bench.settings import Settings
from mae_bench.store import RunDirectory, cell_of
from mae_bench.suites import suite_entry
from mae_bench.verify import verification

if TYPE_CHECKING:
    from tests.conftest import Project

REPOSITORY = Path(__file__).parents[1]
MOMENTARY = ("seconds", "images_per_second", "run_id")


class MeanColour(nn.Module):
    """Tells red, green and blue images apart by their mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3).flip(1))
        self.images = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return images.mean((2, 3)) @ self.weight


def colour(network: nn.Module | None = None) -> Classifier:
    """The network that the conftest.py of a :class:`Project` registers."""
    return Classifier(network or MeanColour(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 16, 16), crop_pct=1.0)


def lasting(results: Results) -> list[dict[str, Any]]:
    """All that is known of each cell but what depends on the moment."""
    records = [result.to_dict() for result in results.cells]
    return [record | {"row": {k: v for k, v in record["row"].items() if k not in MOMENTARY}} for record in records]


# --------------------------------------------------------------------------- the same rows


def test_rows_are_those_of_pytest(project: Project, one_thread: None) -> None:  # noqa: ARG001
    project.matrix("blur", "occlusion", models=("colour",))
    project.write("test_y.py", "import pytest\n\n\n@pytest.mark.clean\ndef test_cell(cell):\n    cell.check()\n")
    project.run("--mae-run", "run", "--mae-seed", "3").assert_outcomes(passed=40)
    written = Results.load(project.path / "run")
    network = written.cells[0].row
    mine = evaluate(
        {"colour": colour()},
        "imagefolder",
        [cell_of(row).condition for row in written.rows],
        data=project.path / "data",
        seed=3,
        threads=network.threads,
    )
    found = {(record["row"]["condition"]): record for record in lasting(mine)}
    for record in lasting(written):
        assert found.pop(record["row"]["condition"]) == record
    assert not found


def test_rows_are_those_of_the_engine_with_the_same_settings(tmp_path: Path, one_thread: None) -> None:  # noqa: ARG001
    results = evaluate("cnn_s0", degradations=["gaussian_blur-2.00", "token_drop-0.50"], limit=1, seed=1, threads=1)
    model = Pool("cpu").load(ModelEntry("cnn_s0"), lambda: bundled("cnn_s0"))
    settings = Settings(limit=1, seed=1, threads=1)
    evaluation = Evaluation(suite_entry("fashion_mnist").load(None), model, settings, tmp_path, "x")
    cells = [cell_of(row) for row in results.rows]
    assert [cell.condition for cell in cells] == ["clean-0.00", "gaussian_blur-2.00", "token_drop-0.50"]
    expected = [evaluation.run(cell.degradation, cell.level) for cell in cells]
    evaluation.close()
    assert lasting(results) == lasting(Results(expected, results.images, {}))
    assert [row.status for row in results.rows] == ["partial", "partial", "not_applicable"]


@pytest.mark.thorough
def test_rows_are_those_of_the_benchmark_of_this_repository(project: Project) -> None:
    selection = ("-k", "(blur or token_drop or clean) and mae_ft_s0", "--mae-limit", "1", "--mae-run", "run")
    paths = (REPOSITORY / "benchmarks" / f"test_{family}.py" for family in ("clean", "blur", "token_drop"))
    run = project.pytester.runpytest_subprocess(
        *selection, "-p", "no:cacheprovider", "--rootdir", REPOSITORY, "--mae-baseline", "none", *paths
    )
    assert run.ret == 0
    written = Results.load(project.path / "run")
    rows = written.rows
    mine = evaluate("mae_ft_s0", "fashion_mnist", [row.condition for row in rows], limit=1, threads=rows[0].threads)
    assert len(rows) > 10
    assert lasting(mine) == lasting(written)
    assert mine.models == written.models


def test_without_names_of_degradations_it_is_the_default_matrix(project: Project) -> None:
    data = project.images()
    told: list[tuple[int, int, str]] = []
    results = evaluate({"colour": colour()}, "imagefolder", data=data, progress=lambda *cell: told.append(cell))
    expected = {f"{kind.name}-{level}" for kind, level in conditions(suite_entry("imagefolder"))}
    assert {row.condition for row in results.rows} == expected
    assert [done for done, _, _ in told] == list(range(1, len(expected) + 1))
    assert {total for _, total, _ in told} == {len(expected)}
    assert [cell for _, _, cell in told] == [cell_of(row).id for row in results.rows]


def test_several_models_are_evaluated_one_after_the_other(project: Project) -> None:
    data = project.images()
    better, worse = colour(), colour()
    with torch.no_grad():
        worse.module.weight.mul_(-1)
    results = evaluate({"worse": worse, "better": better}, "imagefolder", "box_blur-7.00", data=data)
    assert [cell_of(row).id for row in results.rows] == [
        f"{name}-{condition}" for name in ("worse", "better") for condition in ("clean-0.00", "box_blur-7.00")
    ]
    assert [row.top1 for row in results.rows] == [0.0, 0.0, 1.0, 1.0]
    assert list(results.models) == ["better", "worse"]


# --------------------------------------------------------------------------- nothing else changes


def test_models_and_torch_are_left_as_they_were(project: Project) -> None:
    data = project.images()
    module = nn.Sequential(MeanColour(), nn.Dropout(0.9)).train()
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    evaluate({"colour": colour(module)}, "imagefolder", "box_blur-7.00", data=data, threads=threads + 1)
    assert all(part.training for part in module.modules())
    assert [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()] == hooks
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_model_can_be_trained_on(project: Project) -> None:
    module = MeanColour()
    evaluate({"colour": colour(module)}, "imagefolder", "box_blur-7.00", data=project.images())
    module(torch.rand(2, 3, 16, 16)).sum().backward()
    assert module.weight.grad is not None


def test_nothing_is_left_on_the_disk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    data = project.images()
    before = set(project.path.rglob("*"))
    (temporary := project.path.parent / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    evaluate({"colour": colour()}, "imagefolder", "box_blur-7.00", data=data)
    assert set(project.path.rglob("*")) == before
    assert not list(temporary.iterdir())


# --------------------------------------------------------------------------- a run directory


class Stops(MeanColour):
    """Fails once it has seen so many images, until it is mended."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = True

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.broken and self.images >= 50:
            raise RuntimeError("power cut")
        return super().forward(images)


def test_what_is_finished_is_kept_and_the_same_call_goes_on(project: Project) -> None:
    data = project.images()
    network = Stops()
    names = ["box_blur", "center_block"]

    def call(run: Path | None) -> Results:
        return evaluate({"colour": colour(network)}, "imagefolder", names, data=data, threads=1, run=run)

    run = project.path / "run"
    with pytest.raises(Exception, match="power cut") as stopped:
        call(run)
    assert (
        stopped.value.__notes__[-1]
        == f"What is finished is kept in {run}; without what stopped it the same call goes on."
    )
    left = RunDirectory(run)
    kept = [cell_of(result.row).id for result in left.cells()]
    assert kept
    assert left.unfinished()
    network.broken, seen = False, network.images
    results = call(run)
    whole = network.images
    assert not left.unfinished()
    assert lasting(call(run)) == lasting(results)
    to_try = network.images - whole
    assert to_try < 15
    # beside those on which it is tried, a clean pass and the cells that were left
    assert whole - seen == to_try + 15 * (1 + len(results.cells) - len(kept))
    assert lasting(results) == lasting(call(None))
    assert lasting(Results.load(run)) == lasting(results)
    assert verification(run).findings == ()
    assert not left.scratch.exists()


def test_tables_of_a_run_directory_are_of_like_cells_alone(project: Project) -> None:
    data, run = project.images(), project.path / "run"
    for seed in (0, 1):
        evaluate({"colour": colour()}, "imagefolder", "random_patch-0.50", data=data, seed=seed, run=run)
    evaluate({"colour": colour()}, "imagefolder", "box_blur-7.00", data=data, seed=1, run=run)
    assert {result.row.seed for result in RunDirectory(run).cells()} == {1}
    assert [cell_of(row).condition for row in Results.load(run).rows] == [
        "clean-0.00",
        "box_blur-7.00",
        "random_patch-0.50",
    ]


def test_a_directory_that_holds_something_else_is_left_as_it_is(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = project.images()
    folder = project.path / "thesis"
    (folder / "scratch").mkdir(parents=True)
    for name in ("scratch/chapter.txt", ".download.partial", "leaderboard.md"):
        (folder / name).write_text("mine")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    monkeypatch.chdir(folder)
    for run in (folder, ".", data / "b" / "0.png"):
        with pytest.raises(BenchError, match="is there and is no run directory; name another place"):
            evaluate({"colour": colour()}, "imagefolder", "box_blur-7.00", data=data, run=run)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_run_directory_serves_several_models_and_an_empty_one_any(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = project.images()
    (folder := project.path / "empty").mkdir()
    monkeypatch.chdir(folder)
    for name in ("one", "two"):
        results = evaluate({name: colour()}, "imagefolder", "box_blur-7.00", data=data, run=".")
        assert list(results.models) == [name]
        assert {row.run_id for row in results.rows} == {"empty"}
    assert sorted(Results.load(folder).models) == ["one", "two"]
    # what is damaged of another model is told before anything is evaluated
    (damaged := RunDirectory(folder).cell_path(cell_of(results.rows[0]))).write_text("{")
    network = MeanColour()
    with pytest.raises(BenchError, match=damaged.name):
        evaluate({"three": colour(network)}, "imagefolder", "box_blur-7.00", data=data, run=folder)
    assert network.images == 0
    assert lasting(evaluate({"two": colour()}, "imagefolder", "box_blur-7.00", data=data, run=folder)) == lasting(
        results
    )


def test_a_run_directory_has_one_writer(project: Project) -> None:
    other = RunDirectory.create(project.path / "run", resume=False)
    other.hold()
    with pytest.raises(BenchError, match="is being written by another session"):
        evaluate({"colour": colour()}, "imagefolder", data=project.images(), run=other.path)
    other.release()


# --------------------------------------------------------------------------- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("progress", "terminal", "shown"), [(None, True, True), (None, False, False),
                                                              (True, False, False), (False, True, False)])  # fmt: skip
def test_a_bar_is_shown_on_a_terminal(
    project: Project, monkeypatch: pytest.MonkeyPatch, progress: bool | None, terminal: bool, shown: bool
) -> None:
    data = project.images()
    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    evaluate({"colour": colour()}, "imagefolder", "box_blur-7.00", data=data, progress=progress)
    assert ("colour-box_blur-7.00" in stderr.getvalue()) is shown


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"suite": "fashon_mnist"}, "did you mean fashion_mnist?"),
        ({"degradations": ["gausian_blur"]}, "did you mean gaussian_blur?"),
        ({"model": "mea_ft_s0"}, "did you mean mae_ft_s0?"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"dtype": "float61"}, "did you mean float16?"),
        ({"limit": -1}, "limit -1: give a number from 0"),
        ({"seed": 2**32}, "seed 4294967296: give a number from 0 to 4294967295"),
        ({"batch_size": 0}, "batch_size 0: give a number from 1"),
        ({"threads": 0}, "threads 0: give a number from 1"),
        ({"data": "somewhere"}, "is bundled and takes no --mae-data"),
        ({"suite": "imagefolder"}, "give their directory with --mae-data DIR"),
        ({"device": "cuda:99"}, "sees"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_built(arguments: dict[str, Any], words: str) -> None:
    network = MeanColour()
    with pytest.raises(BenchError) as refused:
        evaluate(**{"model": colour(network)} | arguments)
    assert words in str(refused.value)
    if "--mae-" in str(refused.value):
        assert any("data=DIR" in note for note in refused.value.__notes__)
    assert network.images == 0


def test_a_model_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(BenchError, match="model 'colour' has 3 outputs but suite 'fashion_mnist' has 10 classes"):
        evaluate({"colour": colour()}, degradations="box_blur", limit=1)


def test_names_of_the_module_are_those_of_the_package() -> None:
    assert mae_bench.evaluate is evaluate
    assert "evaluate" in mae_bench.__all__
