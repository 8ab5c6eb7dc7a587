"""``mae-bench run``, and what the command line offers before any command: examples, completion, its version."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from mae_bench import __version__
from mae_bench.cells import GROUPS
from mae_bench.cli import app
from mae_bench.command import pytest_command, without_tests
from mae_bench.degradations import every, families
from mae_bench.degradations.ladders import conditions
from mae_bench.degradations.selection import selected as conditions_of
from mae_bench.models import bundled_names
from mae_bench.models.zoo import cards
from mae_bench.suites import SUITES

if TYPE_CHECKING:
    from tests.conftest import Project

PROGRAM: Any = typer.main.get_command(app)


# --------------------------------------------------------------------------- help


def commands(command: Any = PROGRAM, name: str = "mae-bench") -> Iterator[tuple[str, Any]]:
    yield name, command
    for inner, each in getattr(command, "commands", {}).items():
        yield from commands(each, f"{name} {inner}")


COMMANDS = dict(commands())


def examples(command: Any) -> list[str]:
    """Lines of a help text that are commands."""
    return [line for line in str(command.help).splitlines() if line.startswith("mae-bench ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_in_a_help_text_can_be_typed(name: str) -> None:
    found = examples(COMMANDS[name])
    assert found
    for example in found:
        words = shlex.split(example)[1:]
        command, called = PROGRAM, "mae-bench"
        while hasattr(command, "commands"):
            called, command, words = f"{called} {words[0]}", command.commands[words[0]], words[1:]
        assert called == name or name in ("mae-bench", "mae-bench train")
        command.make_context(called, words)  # refuses what it does not know


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_text_shows_each_example_on_a_line_of_its_own(name: str) -> None:
    result = CliRunner().invoke(app, [*name.split()[1:], "--help"], terminal_width=80)
    assert result.exit_code == 0
    shown = [line.strip() for line in result.stdout.splitlines()]
    for example in examples(COMMANDS[name]):
        assert example in shown
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


def test_the_version_is_said() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"mae-bench {__version__}\n")


def test_help_and_completion_wait_neither_for_pytest_nor_for_torch() -> None:
    code = """
import sys
from mae_bench.cli import app
from mae_bench.cli.program import degradation_names, model_names, suite_names
for arguments in (["--help"], ["run", "--help"]):
    try:
        app(arguments)
    except SystemExit as end:
        assert not end.code
assert all(names("") for names in (degradation_names, model_names, suite_names))
print({"pytest", "_pytest", "torch", "timm", "pandas"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"


# --------------------------------------------------------------------------- completion


def completed(line: str) -> list[str]:
    """What bash is offered behind ``line``."""
    words = line.split(" ")
    variables = {
        "_MAE_BENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    return CliRunner().invoke(app, [], env=variables, prog_name="mae-bench").stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mae-bench run --suite fash", ["fashion_mnist"]),
        ("mae-bench run --model cnn", ["cnn_s0"]),
        ("mae-bench run --model ", bundled_names(encoders=True)),
        ("mae-bench run --degradation box", ["box_blur"]),
        ("mae-bench run --degradation occ", ["occlusion"]),
        ("mae-bench export --model mae_ft", ["mae_ft_s0", "mae_ft_s1", "mae_ft_s2"]),
        ("mae-bench plan --suite cifar100", ["cifar100_c"]),
        ("mae-bench train cnn --suite ci", ["cifar10"]),
        ("mae-bench sel", ["selfcheck"]),
    ],
)
def test_a_shell_completes_what_an_argument_names(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


def test_every_suite_degradation_family_and_group_is_offered() -> None:
    assert set(SUITES) <= set(completed("mae-bench run --suite "))
    names = {*families(), *GROUPS, *(kind.name for kind in every())}
    assert set(completed("mae-bench run --degradation ")) == names


def test_a_completion_for_bash_can_be_shown() -> None:
    typed = f"{shlex.quote(sys.executable)} -m mae_bench --show-completion; exit $?"  # the shell is who waits for it
    done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "_MAE_BENCH_COMPLETE=complete_bash" in done.stdout


def test_names_of_bundled_models_are_those_of_their_cards() -> None:
    assert bundled_names(encoders=True) == [card.name for card in cards()]
    assert bundled_names() == [card.name for card in cards() if card.validation_top1 is not None]


# --------------------------------------------------------------------------- what is run


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, []),
        ({"models": ["a"]}, ["-k", "[a-"]),
        ({"models": ["a", "b"]}, ["-k", "[a- or [b-"]),
        ({"degradations": ["box_blur"]}, ["-k", "(-box_blur-)"]),
        ({"degradations": ["token_drop", "box_blur", "token_drop"]}, ["-k", "(-token_drop- or -box_blur-)"]),
        (
            {"models": ["a", "b"], "degradations": ["geometry", "box_blur-1.00"]},
            ["-k", "([a- or [b-) and (-rotation- or -scale- or -translation- or -box_blur-1.00])"],
        ),
        ({"models": ["a"], "degradations": ["motion_blur"]}, ["-k", "[a- and (-motion_blur- and not -motion_blur-s)"]),
    ],
)
def test_a_command_selects_by_ids_and_marks(given: dict[str, Any], words: list[str]) -> None:
    command = pytest_command("fashion_mnist", **given)
    assert command == [
        *["python", "-m", "pytest", "benchmarks", "-m"],
        "not representation",
        *words,
        "--mae-suite",
        "fashion_mnist",
    ]


def selected(project: Project, *arguments: str) -> list[str]:
    """Ids of the cells that pytest collects."""
    lines = project.run(*arguments, "--co", "-q").outlines
    return sorted(line.partition("[")[2].removesuffix("]") for line in lines if "[" in line and "::" in line)


def test_what_is_named_is_what_pytest_selects_with_and_without_tests_of_a_project(project: Project) -> None:
    names = ["mae_ft_s0", "mae_probe_s0"]
    wanted = ["random_patch", "gaussian_blur-3.00"]
    command = pytest_command("fashion_mnist", names, degradations=wanted, tests=without_tests())[3:]
    found = selected(project, *command)
    levels = {"0.10", "0.50", "0.90"}
    ids = {f"{name}-random_patch-{level}" for name in names for level in levels}
    assert {one for one in found if "random_patch" in one} == ids
    assert {one for one in found if "random_patch" not in one} == {f"{name}-gaussian_blur-3.00" for name in names}

    project.matrix("occlusion", "blur", models=("colour", "other"))
    (project.path / "benchmarks").mkdir()
    (project.path / "test_x.py").rename(project.path / "benchmarks/test_x.py")
    found = selected(project, *pytest_command("imagefolder", ["other"], Path("data"), degradations=["stripes"])[3:])
    assert found
    assert {one.rpartition("-")[0] for one in found} == {"other-stripes"}


def asked(names: Sequence[str], models: Sequence[str], full: bool = False) -> list[str]:
    """Ids of the cells on imagefolder that a command has pytest collect."""
    entry = SUITES["imagefolder"]
    wanted = [one for name in names for one in conditions_of([name], entry)[name not in ("clean", "clean-0.00") :]]
    matrix = conditions(entry, full)
    return sorted(f"{model}-{kind.name}-{level}" for model in models for kind, level in {*wanted} & {*matrix})


CONDITIONS = ("clean-0.00", "gaussian_blur-6.00", "gaussian_blur-s3", "random_patch-0.50", "fog-s5")
KINDS = [kind.name for kind in every() if not kind.by_salience]  # of which the suite has no cells
NAMES = tuple(dict.fromkeys([*families(), *GROUPS, *KINDS, *CONDITIONS]))


def whole_project(project: Project) -> None:
    """One test of every family, so that no mark of it tells its cells apart, in a file that is named like one."""
    project.matrix(*families(), models=("colour", "other"))
    project.test(*families(), name="benchmarks/test_blur.py")
    (project.path / "test_x.py").unlink()


@pytest.mark.parametrize("models", [(), ("other",), ("other", "colour")])
@pytest.mark.parametrize("names", [("blur",), ("gaussian_blur-6.00",), ("noise", "defocus_blur", "clean-0.00")])
def test_what_is_collected_is_what_the_names_stand_for(
    project: Project, names: tuple[str, ...], models: tuple[str, ...]
) -> None:
    whole_project(project)
    command = pytest_command(None, models, degradations=names)[3:]
    assert selected(project, *command) == asked(names, models or ("colour", "other"))


@pytest.mark.thorough  # collects for each name
@pytest.mark.parametrize("full", [False, True])
def test_a_name_stands_for_the_same_cells_on_the_command_line_as_everywhere(project: Project, full: bool) -> None:
    whole_project(project)
    for name in NAMES:
        command = pytest_command(None, degradations=[name], full=full)[3:]
        assert selected(project, *command) == asked([name], ("colour", "other"), full), name


# --------------------------------------------------------------------------- where it is run


def shown_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """The command that is shown, and not run."""

    class Ended:
        def __init__(self, words: Sequence[str]) -> None:
            self.words = words

        def __enter__(self) -> Ended:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def wait(self) -> int:
            return 0

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", Ended)
        result = CliRunner().invoke(app, ["run", *arguments])
    assert result.exit_code == 0, result.output
    return shlex.split(result.stdout)


def test_a_project_with_tests_in_its_root_has_its_own_models_and_suite(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.matrix("blur", models=("colour", "other"))
    monkeypatch.chdir(project.path)
    given = ("--model", "other", "--degradation", "box_blur")
    command = shown_command(monkeypatch, *given)
    assert command == [*["python", "-m", "pytest", ".", "-m"], "not representation", "-k", "[other- and -box_blur-"]
    assert selected(project, *command[3:]) == asked(["box_blur"], ["other"])
    assert shown_command(monkeypatch, *given, "--tests", ".") == command
    assert shown_command(monkeypatch, *given, "--suite", "imagenet")[-2:] == ["--mae-suite", "imagenet"]
    (project.path / "benchmarks").mkdir()
    assert shown_command(monkeypatch, *given)[3] == "benchmarks"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "there are neither a folder benchmarks of tests nor a conftest.py"),
        (("--model", "cnn_s0", "--tests", "tests"), "--tests tests: there is no such folder"),
        (("--model", "shapes_cnn"), "add --tests DIR"),
        (("--model", "mae_ft_s00"), "--model mae_ft_s00: no bundled model; did you mean mae_ft_s0?"),
        (("--model", "cnn_s0", "--suite", "fashon_mnist"), "did you mean fashion_mnist?"),
        (("--model", "cnn_s0", "--degradation", "gausian_blur"), "did you mean gaussian_blur?"),
        (("--model", "cnn_s0", "--degradation", "geometry"), "pytest has no such cell on fashion_mnist; add --full"),
        (("--model", "cnn_s0", "--degradation", "box_blur-1.11"), "name a level of its ladder"),
    ],
)
def test_what_cannot_be_run_is_refused_before_pytest_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["run", *arguments])
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def mae_bench_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mae_bench", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.thorough  # starts pytest
def test_in_an_empty_folder_a_bundled_model_is_evaluated_by_a_command_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "")
    arguments = ("--model", "cnn_s0", "--degradation", "gaussian_blur-3.00", "--limit", "1", "--device", "cpu")
    done = mae_bench_run(*arguments, "--out", "run", "--", "--mae-seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    first, *_ = done.stdout.splitlines()
    assert first.endswith("--mae-limit 1 --mae-run run --mae-device cpu --mae-seed 3")
    records = [json.loads(path.read_text()) for path in (tmp_path / "run/cells/cnn_s0").iterdir()]
    rows = [record["row"] for record in records]
    assert {(row["condition"], row["seed"]) for row in rows} == {("clean-0.00", 3), ("gaussian_blur-3.00", 3)}
    # and the command that was shown is that which ran
    again = subprocess.run(
        [sys.executable, *shlex.split(first)[1:], "--mae-resume"], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0
    assert "1 passed" in again.stdout


@pytest.mark.thorough  # starts pytest
def test_in_a_project_its_tests_are_run_and_the_exit_code_is_pytests(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "")
    project.matrix("blur", models=("colour", "other"))
    (project.path / "benchmarks").mkdir()
    (project.path / "test_x.py").rename(project.path / "benchmarks/test_x.py")
    given = ("--suite", "imagefolder", "--data", "data", "--out", "run")
    done = mae_bench_run(*given, "--model", "other", "--degradation", "box_blur", "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {cell.rpartition("-")[0] for cell in project.cells()} == {"other-clean", "other-box_blur"}
    done = mae_bench_run(*given, "--model", "nobody")
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "pytest selected nothing" in done.stderr
    assert mae_bench_run(*given, "--model", "other").returncode == pytest.ExitCode.USAGE_ERROR  # not empty
