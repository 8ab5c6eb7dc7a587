"""What other packages add: found, checked, named by whom it is from, and used like what comes with the benchmark."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from mae_bench import Classifier, evaluate
from mae_bench.cells import FAMILIES, Level
from mae_bench.cli import app
from mae_bench.degradations import BUILT_IN, Setting, added_degradations, degradation, every, families
from mae_bench.degradations.ladders import conditions, levels
from mae_bench.entry_points import EntryPointError
from mae_bench.errors import BenchError
from mae_bench.evaluation import Evaluation
from mae_bench.indicators import BUILT_IN as OWN_INDICATORS
from mae_bench.indicators import added_indicators, alignment, retention, software
from mae_bench.leaderboard import Leaderboard
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.models.zoo import bundled
from mae_bench.report.charts import charts
from mae_bench.report.contents import Contents
from mae_bench.report.page import page
from mae_bench.report.pictures import Pictures
from mae_bench.representation import ATTENTION, SEPARABILITY
from mae_bench.results import Results
from mae_bench.settings import Settings
from mae_bench.shard import FORETELLING
from mae_bench.store import RunDirectory
from mae_bench.suites import SUITES, every_suite, suite_entry
from mae_bench.verify import verification

if TYPE_CHECKING:
    from tests.conftest import Project

DEGRADATIONS, OF_INDICATORS, OF_SUITES = (f"mae_bench.{what}" for what in ("degradations", "indicators", "suites"))

ACME = Path(__file__).parent / "data" / "acme_vision"


def installed(target: Path, name: str, version: str, points: dict[str, dict[str, str]]) -> Path:
    """What installing a package leaves in ``target`` beside its modules."""
    record = target / f"{name.replace('-', '_')}-{version}.dist-info"
    record.mkdir(parents=True)
    record.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        line for group, each in points.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in each.items()))
    ]
    record.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")
    return target


def acme(target: Path) -> Path:
    """The package of tests/data, as installing it leaves it in ``target``."""
    project = tomllib.loads((ACME / "pyproject.toml").read_text())["project"]
    shutil.copytree(ACME / "acme_vision", target / "acme_vision")
    return installed(target, project["name"], project["version"], project["entry-points"])


@pytest.fixture
def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Path]]:
    """Has this process find what is installed in a folder, for the length of a test."""
    caches = (added_degradations, added_indicators, every_suite)

    def forget() -> None:
        for cache in caches:
            cache.cache_clear()
        for name in [name for name in sys.modules if name.partition(".")[0].startswith("acme")]:
            del sys.modules[name]

    def add() -> Path:
        target = tmp_path / "site"
        target.mkdir()
        monkeypatch.syspath_prepend(str(target))
        forget()
        return target

    yield add
    forget()


def bands() -> Classifier:
    """Tells by their brightness whether the bottom, the middle or the top of an image is brightest."""

    class Bands(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.stack([images[:, 0, 18 - 9 * k : 27 - 9 * k].mean((1, 2)) for k in range(3)], 1) * self.weight

    return Classifier(Bands(), mean=(0,), std=(1,), input_size=(1, 27, 27), crop_pct=1.0)


# --------------------------------------------------------------------------- what is found


def test_without_packages_there_is_what_comes_with_the_benchmark() -> None:
    assert every() == BUILT_IN
    assert families() == FAMILIES
    assert every_suite() == SUITES


def test_what_a_package_adds_stands_last_with_its_name(find: Callable[[], Path]) -> None:
    acme(find())
    assert every()[:-1] == BUILT_IN
    assert (every()[-1].name, every()[-1].package) == ("raindrops", "acme-vision 1.2")
    assert families() == (*FAMILIES, "acme")
    assert suite_entry("acme_shapes").package == "acme-vision 1.2"
    assert {name: one.package for name, one in added_indicators().items()} == {"lengthening": "acme-vision 1.2"}
    assert degradation("raindrops").unit_at(28) == "share of rows (acme-vision 1.2)"


def test_finding_it_imports_no_torch(tmp_path: Path) -> None:
    code = """
import sys
from mae_bench.degradations import every
from mae_bench.suites import every_suite
print(every()[-1].name, *list(every_suite())[-1:], "torch" in sys.modules)
"""
    acme(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert run.stdout.split() == ["raindrops", "acme_shapes", "False"]


def test_its_levels_are_those_it_states_and_join_every_matrix(find: Callable[[], Path]) -> None:
    acme(find())
    kind = degradation("raindrops")
    for suite in (suite_entry("fashion_mnist"), suite_entry("imagenet")):
        assert [str(level) for level in levels(kind, suite)] == ["0.10", "0.25", "0.50"]
        assert (kind, Level(0.25)) in conditions(suite)
    assert levels(kind, suite_entry("imagenet_c")) == ()
    with pytest.raises(ValueError, match="outside its domain, 0 to any finite number"):
        kind.check(Level(-1.0))
    with pytest.raises(ValueError, match=r"its levels are as 0\.50"):
        degradation("raindrops", severity=True)
    with pytest.raises(ValueError, match="did you mean raindrops"):
        degradation("raindrop")


def test_its_module_changes_the_pixels(find: Callable[[], Path]) -> None:
    acme(find())
    images = torch.rand(8, 1, 28, 28) / 2 + 0.25
    setting = Setting(torch.arange(8), 0, 28, (0.5,))
    for value in (0.1, 0.5):
        degraded = degradation("raindrops").apply(images, Level(value), setting)
        black = (degraded == 0).all(3)
        assert torch.equal(degraded, torch.where(black[..., None], 0, images))
        assert abs(float(black.float().mean()) - value) < 0.12
    assert torch.equal(degradation("raindrops").apply(images, Level(0.0), setting), images)


def test_models_may_not_be_called_like_its_family(find: Callable[[], Path]) -> None:
    acme(find())
    with pytest.raises(BenchError, match="contains 'acme', the name of a family"):
        ModelEntry("acme_net")


# --------------------------------------------------------------------------- what it gives


def test_its_suite_and_its_degradation_are_evaluated_from_python(find: Callable[[], Path], tmp_path: Path) -> None:
    acme(find())
    results = evaluate({"bands": bands()}, "acme_shapes", ["raindrops", "acme", "box_blur-1.75"])
    assert [row.condition for row in results.rows] == [
        "clean-0.00", "raindrops-0.10", "raindrops-0.25", "raindrops-0.50", "box_blur-1.75",
    ]  # fmt: skip
    assert {row.family for row in results.rows} == {"clean", "acme", "blur"}
    assert {row.unit for row in results.rows if row.family == "acme"} == {"share of rows (acme-vision 1.2)"}
    assert results.rows[0].top1 == 1.0
    place = results.save(tmp_path / "run")
    assert not verification(place).findings
    assert results.leaderboard.families == ("blur", "acme")


@pytest.mark.thorough
def test_a_run_is_read_where_the_package_is_not_installed(
    find: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = acme(find())
    place = evaluate("cnn_s0", degradations=["acme", "gaussian_blur"], limit=1).save(tmp_path / "run")
    board = Results.load(place).leaderboard
    shutil.rmtree(target)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(target)])
    added_degradations.cache_clear()
    assert families() == FAMILIES
    again = Results.load(place)
    assert again.leaderboard.to_markdown() == board.to_markdown()
    assert again.plot().to_dict()["facet"]
    assert isinstance(board, Leaderboard)


def test_another_version_is_another_cell(find: Callable[[], Path]) -> None:
    target = find()
    acme(target)
    first = evaluate({"bands": bands()}, "acme_shapes", ["raindrops-0.50"]).rows[-1]
    (target / "acme_vision-1.2.dist-info").rename(target / "acme_vision-1.3.dist-info")
    metadata = target / "acme_vision-1.3.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.2", "1.3"))
    added_degradations.cache_clear()
    every_suite.cache_clear()
    second = evaluate({"bands": bands()}, "acme_shapes", ["raindrops-0.50"]).rows[-1]
    assert (first.unit, second.unit) == ("share of rows (acme-vision 1.2)", "share of rows (acme-vision 1.3)")
    assert first.top1 == second.top1


def test_its_indicator_is_the_mean_of_its_scores_at_every_layer(find: Callable[[], Path], tmp_path: Path) -> None:
    acme(find())
    model = Pool("cpu").load(ModelEntry("mae_ft_s0"), lambda: bundled("mae_ft_s0"))
    suite = suite_entry("fashion_mnist").load(None)
    evaluation = Evaluation(suite, model, Settings(limit=1), tmp_path, "x")
    cell = evaluation.run("gaussian_blur", Level(1.5))
    images = [
        evaluation.degraded(name, Level(value), 0, 512) for name, value in (("clean", 0.0), ("gaussian_blur", 1.5))
    ]
    evaluation.close()
    with torch.inference_mode():
        sides = []
        for each in images:
            with model.taps.capture(patches=False) as features:
                model.classifier(each)
            sides.append(features.tokens)
    records = {(r["layer"], r["token"]): r for r in cell.indicators if r["indicator"] == "lengthening"}
    assert records.keys() == {(layer, token) for layer in range(8) for token in ("cls", "mean_patch")}
    absent = {key: record["reason"] for key, record in records.items() if record["value"] is None}
    assert absent == {(0, "cls"): "constant", (7, "cls"): "no cls token"}
    for key, record in records.items():
        if key in absent:
            continue
        clean, degraded = (tokens[key].double().norm(dim=-1) for tokens in sides)
        assert record["value"] == pytest.approx(float((degraded / clean - 1).mean()), abs=1e-5)


@pytest.mark.thorough
def test_without_it_every_other_number_is_the_same(find: Callable[[], Path]) -> None:
    alone = evaluate("mae_ft_s0", degradations="gaussian_blur-1.50", limit=1, threads=1)
    acme(find())
    beside = evaluate("mae_ft_s0", degradations="gaussian_blur-1.50", limit=1, threads=1)
    for one, other in zip(alone.cells, beside.cells, strict=True):
        assert one.indicators == [r for r in other.indicators if r["indicator"] in OWN_INDICATORS]
        changed = {name for name, value in one.row.to_dict().items() if other.row.to_dict()[name] != value}
        assert changed - {"seconds", "images_per_second", "run_id"} == {"mae_bench_version"}
        assert other.row.mae_bench_version == software() == f"{one.row.mae_bench_version} with acme-vision 1.2"


@pytest.mark.thorough
def test_its_indicator_is_in_the_table_and_on_the_page(find: Callable[[], Path], tmp_path: Path) -> None:
    acme(find())
    results = evaluate("mae_ft_s0", degradations=["gaussian_blur-1.50", "token_drop-0.50"], limit=1)
    place = results.save(tmp_path / "run")
    table = pd.read_parquet(place / "indicators.parquet")
    mine = table[table["indicator"] == "lengthening"]
    assert len(mine) == 2 * 8 * 2
    assert set(mine["cell"]) == {"mae_ft_s0-gaussian_blur-1.50", "mae_ft_s0-token_drop-0.50"}
    contents = Contents.of(RunDirectory(place))
    (chart,) = (chart for chart in charts(contents) if chart.name.startswith("added-"))
    assert chart.title == "lengthening along the layers"
    assert len(chart.table) == 8 * 2
    assert 'id="chart-added-0"' in page(contents, Pictures.of(contents, None))


def test_names_of_the_benchmarks_own_indicators_are_those_it_writes() -> None:
    names = [*alignment.INDICATORS, *retention.INDICATORS, *SEPARABILITY, *ATTENTION]
    assert set(OWN_INDICATORS) == {*names, *(f"{name}_flip_auc" for name in FORETELLING)}


# --------------------------------------------------------------------------- as a user types it

CONFTEST = """
@model_fixture
def bands():
    \'\'\'Reads how bright each third of an image is.\'\'\'
    import torch

    from mae_bench import Classifier

    class Bands(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, images):
            return torch.stack([images[:, 0, 18 - 9 * k : 27 - 9 * k].mean((1, 2)) for k in range(3)], 1) * self.weight

    return Classifier(Bands(), mean=(0,), std=(1,), input_size=(1, 27, 27), crop_pct=1.0)
"""


def test_its_cells_are_collected_selected_and_run(find: Callable[[], Path], project: Project) -> None:
    acme(find())
    project.conftest(CONFTEST)
    project.test("acme")
    project.test("blur", name="test_y.py")
    listed = project.run("--mae-suite", "acme_shapes", "--co", "-q")
    listed.stdout.fnmatch_lines(["test_x.py::test_cell[[]bands-raindrops-0.25[]]"])
    options = ("--mae-suite", "acme_shapes", "--mae-run", "run", "-k", "acme", "--strict-markers")
    project.run(*options).assert_outcomes(passed=3, deselected=12)
    assert set(project.cells()) == {f"bands-{name}" for name in ("clean-0.00", "raindrops-0.10", "raindrops-0.25",
                                                                 "raindrops-0.50")}  # fmt: skip
    results = Results.load(project.path / "run")
    assert results.manifest["suite_from"] == "acme-vision 1.2"
    mine = evaluate({"bands": bands()}, "acme_shapes", "acme", threads=results.rows[0].threads)
    assert [row.top1 for row in mine.rows] == [row.top1 for row in results.rows]
    project.run("--markers").stdout.fnmatch_lines(["@pytest.mark.acme: cells of the acme family"])


@pytest.mark.parametrize("group", [DEGRADATIONS, OF_INDICATORS, OF_SUITES])
def test_one_that_is_broken_ends_the_session_of_cells_with_its_name(
    find: Callable[[], Path], project: Project, group: str
) -> None:
    """And no other session: who only has the package installed is none the worse for it."""
    target = installed(find(), "acme-rain", "0.3", {group: {"drops": "acme_things:THING"}})
    (target / "acme_things.py").write_text("import a_module_that_is_not_there\n")
    project.write("test_plain.py", "def test_plain():\n    pass\n")
    project.run().assert_outcomes(passed=1)
    project.models("colour")
    project.test("blur")
    result = project.run()
    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    said = f"{result.stdout}{result.stderr}"
    assert f"entry point 'drops' in '{group}', from package acme-rain 0.3:" in said


def test_lists_say_whom_each_is_from(find: Callable[[], Path]) -> None:
    acme(find())
    listed = CliRunner().invoke(app, ["degradations"])
    line = next(line for line in listed.output.splitlines() if line.startswith("raindrops"))
    assert re.split("  +", line) == ["raindrops", "acme", "share of rows", "0.10 0.25 0.50", "acme-vision 1.2"]
    listed = CliRunner().invoke(app, ["suites"])
    line = next(line for line in listed.output.splitlines() if line.startswith("acme_shapes"))
    assert re.split("  +", line)[4:] == ["acme-vision 1.2", "stripes and bars, drawn anew"]


@pytest.mark.parametrize("command", ["degradations", "suites"])
def test_lists_name_the_package_that_is_broken(find: Callable[[], Path], command: str) -> None:
    points = {f"mae_bench.{command}": {"drops": "acme_things:THING"}}
    installed(find(), "acme-rain", "0.3", points)
    listed = CliRunner().invoke(app, [command])
    assert listed.exit_code == 2
    assert listed.stderr.startswith(f"mae-bench {command}: entry point 'drops' in 'mae_bench.{command}', from package")


@pytest.mark.thorough
def test_pip_installs_it_from_its_folder(tmp_path: Path) -> None:
    shutil.copytree(ACME, tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(tmp_path / "source")], check=True)
    run = subprocess.run(
        [sys.executable, "-m", "mae_bench", "suites"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )
    assert "acme_shapes" in run.stdout
    assert "acme-vision 1.2" in run.stdout


# --------------------------------------------------------------------------- what is refused

HEAD = """from mae_bench.degradations import Degradation
from mae_bench.indicators import Indicator
from mae_bench.suites import SuiteEntry
"""
KIND = 'Degradation("{name}", {family!r}, {unit!r}, module="acme_drops", levels={levels}{more})'


def kind(
    name: str = "drops", family: str = "acme", unit: str = "drops", levels: object = (0.5,), more: str = ""
) -> str:
    return KIND.format(name=name, family=family, unit=unit, levels=levels, more=more)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ("import_error_here", "acme_things:THING cannot be loaded (NameError: name 'import_error_here'"),
        ("'a text'", "acme_things:THING is a str, not a mae_bench.degradations.Degradation"),
        ("Degradation", "is a type, not a mae_bench.degradations.Degradation"),
        (kind("other"), "it is called 'other' itself"),
        (kind(family="Acme-2"), "'Acme-2' is no name"),
        (kind(family="blur"), "mae_bench has a family 'blur' itself"),
        (kind(family="noise"), "mae_bench has a family 'noise' itself"),
        (kind(family="acme_blur"), "its name or its family contains 'blur'"),
        (kind(family="acme_noise"), "its name or its family contains 'noise'"),
        (kind(family="rotation"), "'rotation' contains 'rotation', so that -k rotation would select cells of both"),
        (kind(more=", group='rain'"), "its group 'rain' is none of noise, weather, digital"),
        (kind(unit="severity"), "its unit 'severity' is not one that a package can have"),
        (kind(unit="fraction of tokens"), "is not one that a package can have"),
        (kind(levels=()), "its levels () are to rise from above 0, in hundredths"),
        (kind(levels=(0.5, 0.25)), "are to rise from above 0"),
        (kind(levels=(0.0, 0.25)), "are to rise from above 0"),
        (kind(levels=(0.123,)), "in hundredths"),
        (kind(unit="fraction of area", levels=(0.5, 1.5)), "outside its domain, 0 to 1"),
        ("Degradation('drops', 'acme', 'drops', levels=(0.5,))", "it names no module with a function degrade("),
    ],
)
def test_a_degradation_that_cannot_be_used_is_refused_by_package(
    find: Callable[[], Path], thing: str, words: str
) -> None:
    target = installed(find(), "acme-rain", "0.3", {DEGRADATIONS: {"drops": "acme_things:THING"}})
    (target / "acme_things.py").write_text(f"{HEAD}THING = {thing}\n")
    with pytest.raises(EntryPointError) as refused:
        every()
    message = str(refused.value)
    assert message.startswith("entry point 'drops' in 'mae_bench.degradations', from package acme-rain 0.3: ")
    assert words in message
    assert message.endswith("mend it, or uninstall the package (python -m pip uninstall acme-rain)")


def test_the_name_of_another_degradation_is_refused(find: Callable[[], Path]) -> None:
    target = installed(find(), "acme-rain", "0.3", {DEGRADATIONS: {"box_blur": "acme_things:THING"}})
    (target / "acme_things.py").write_text(f"{HEAD}THING = {kind('box_blur')}\n")
    with pytest.raises(EntryPointError, match="mae_bench has a degradation 'box_blur' itself"):
        every()


def test_names_of_two_packages_that_clash_are_refused(find: Callable[[], Path]) -> None:
    target = installed(find(), "acme-rain", "0.3", {DEGRADATIONS: {"drops": "acme_things:THING"}})
    installed(target, "acme-snow", "0.4", {DEGRADATIONS: {"drops": "acme_things:THING"}})
    (target / "acme_things.py").write_text(f"{HEAD}THING = {kind()}\nFLAKES = {kind('flakes')}\n")
    with pytest.raises(EntryPointError, match=r"acme-(rain 0.3|snow 0.4) registers one of that name too"):
        every()
    points = target / "acme_snow-0.4.dist-info" / "entry_points.txt"
    points.write_text(f"[{DEGRADATIONS}]\nflakes = acme_things:FLAKES\n")
    added_degradations.cache_clear()
    with pytest.raises(EntryPointError, match=r"acme-snow 0.4: package acme-rain 0.3 has a family 'acme' too"):
        every()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "its module 'acme_drops' cannot be imported (ModuleNotFoundError"),
        ("raise RuntimeError('no rain')", "cannot be imported (RuntimeError: no rain)"),
        ("", "its module 'acme_drops' has no function 'degrade'"),
        ("degrade = lambda *given: None", "drops made NoneType of torch.float32 (2, 1, 4, 4)"),
        ("degrade = lambda name, images, *given: images[:1]", "made torch.float32 (1, 1, 4, 4) of"),
        ("degrade = lambda name, images, *given: images.double()", "made torch.float64 (2, 1, 4, 4) of"),
        ("degrade = lambda name, images, *given: images + 2", "gave pixels outside [0, 1] or NaN"),
        ("degrade = lambda name, images, *given: images * float('nan')", "gave pixels outside [0, 1] or NaN"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused_by_package(
    find: Callable[[], Path], code: str | None, words: str
) -> None:
    target = installed(find(), "acme-rain", "0.3", {DEGRADATIONS: {"drops": "acme_things:THING"}})
    (target / "acme_things.py").write_text(f"{HEAD}THING = {kind()}\n")
    if code is not None:
        (target / "acme_drops.py").write_text(code)
    with pytest.raises(EntryPointError) as refused:
        degradation("drops").apply(torch.rand(2, 1, 4, 4), Level(0.5), Setting(torch.arange(2), 0, 28, (0.5,)))
    assert str(refused.value).startswith("package acme-rain 0.3: ")
    assert words in str(refused.value)
    assert "mend or uninstall it" in str(refused.value)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ("'text'", "acme_things:THING is a str, not a mae_bench.indicators.Indicator"),
        ("Indicator('other', 'acme_drops')", "it is called 'other' itself"),
        ("Indicator('lengths', '')", "it names no module with a function scores(name, clean, degraded)"),
    ],
)
def test_an_indicator_that_cannot_be_used_is_refused_by_package(
    find: Callable[[], Path], thing: str, words: str
) -> None:
    target = installed(find(), "acme-rain", "0.3", {OF_INDICATORS: {"lengths": "acme_things:THING"}})
    (target / "acme_things.py").write_text(f"{HEAD}THING = {thing}\n")
    with pytest.raises(EntryPointError) as refused:
        added_indicators()
    assert "entry point 'lengths' in 'mae_bench.indicators', from package acme-rain 0.3" in str(refused.value)
    assert words in str(refused.value)


def test_the_name_of_another_indicator_is_refused(find: Callable[[], Path]) -> None:
    target = installed(find(), "acme-rain", "0.3", {OF_INDICATORS: {"alignment": "acme_things:THING"}})
    (target / "acme_things.py").write_text(f"{HEAD}THING = Indicator('alignment', 'acme_drops')\n")
    with pytest.raises(EntryPointError, match="mae_bench has an indicator 'alignment' itself"):
        added_indicators()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "its module 'acme_drops' has no function 'scores'"),
        ("scores = lambda *given: 0.5", "indicator 'lengths' gave float for 2 images, not a number for each"),
        ("scores = lambda name, clean, degraded: clean", "gave values of shape (2, 3) for 2 images"),
        ("scores = lambda name, clean, degraded: clean[:, 0] / 0", "gave a number that is not finite"),
    ],
)
def test_scores_that_cannot_be_used_are_refused_by_package(find: Callable[[], Path], code: str, words: str) -> None:
    target = installed(find(), "acme-rain", "0.3", {OF_INDICATORS: {"lengths": "acme_things:THING"}})
    (target / "acme_things.py").write_text(f"{HEAD}THING = Indicator('lengths', 'acme_drops')\n")
    (target / "acme_drops.py").write_text(code)
    with pytest.raises(EntryPointError) as refused:
        added_indicators()["lengths"].scores(torch.rand(2, 3), torch.rand(2, 3))
    assert str(refused.value).startswith("package acme-rain 0.3: ")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ("3", "acme_things:THING is a int, not a mae_bench.suites.SuiteEntry"),
        ("SuiteEntry('other', 28, 0, True, '', module='acme_drops')", "it is called 'other' itself"),
        ("SuiteEntry('shapes', 28, 0, True, '')", "it names no module with a function load(entry, data)"),
    ],
)
def test_a_suite_that_cannot_be_used_is_refused_by_package(find: Callable[[], Path], thing: str, words: str) -> None:
    target = installed(find(), "acme-rain", "0.3", {OF_SUITES: {"shapes": "acme_things:THING"}})
    (target / "acme_things.py").write_text(f"{HEAD}THING = {thing}\n")
    with pytest.raises(EntryPointError) as refused:
        suite_entry("shapes")
    assert "entry point 'shapes' in 'mae_bench.suites', from package acme-rain 0.3" in str(refused.value)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("bundled", "code", "words"),
    [
        (True, "", "has no function 'load'"),
        (False, "load = print", "has no function 'check'"),
        (True, "load = lambda entry, data: 3", "load of suite 'shapes' gave a int"),
    ],
)
def test_a_module_of_a_suite_that_cannot_be_used_is_refused_by_package(
    find: Callable[[], Path], bundled: bool, code: str, words: str
) -> None:
    target = installed(find(), "acme-rain", "0.3", {OF_SUITES: {"shapes": "acme_things:THING"}})
    (target / "acme_things.py").write_text(
        f"{HEAD}THING = SuiteEntry('shapes', 28, 0, {bundled}, '', module='acme_drops')\n"
    )
    (target / "acme_drops.py").write_text(code)
    with pytest.raises(EntryPointError) as refused:
        suite_entry("shapes").load(None if bundled else Path())
    assert "package acme-rain 0.3" in str(refused.value)
    assert words in str(refused.value)
