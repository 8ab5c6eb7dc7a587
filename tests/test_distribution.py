"""The wheel and the sdist: what they hold, and that they install and run in a fresh environment of each Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from email import message_from_string
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hatchling.build import build_sdist, build_wheel

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
NAME = f"mae_bench-{PROJECT['version']}"
INFO = f"{NAME}.dist-info"
MEGABYTE = 1e6

# what a wheel may hold of the package
CODE = ("*.py", "mae_bench/py.typed")
TEMPLATES = ("mae_bench/report/*.html.jinja", "mae_bench/report/*.css", "mae_bench/report/*.js")
IMAGES = tuple(f"mae_bench/suites/data/fashion_mnist/{name}" for name in ("LICENSE", "manifest.json", "*-ubyte.gz"))
WEIGHTS = tuple(f"mae_bench/models/weights/*.{ending}" for ending in ("safetensors", "json", "md"))
# what an sdist leaves out of what is committed
LEFT_OUT = ("results/fashion_mnist/trajectories/*",)
# what lies about in a tree that was worked in
LITTER = (
    "mae_bench/__pycache__/cells.cpython-311.pyc",
    "tests/__pycache__/conftest.cpython-311.pyc",
    "mae_bench.egg-info/PKG-INFO",
    "results/runs/1/manifest.json",
    "results/training/weights.safetensors",
    "dist/mae_bench-0.0.0-py3-none-any.whl",
    ".tox/py311/pyvenv.cfg",
    ".pytest_cache/README.md",
    "notes.txt",
    "data/val/1.png",
)


@pytest.fixture(scope="module")
def committed() -> list[str]:
    """The files that git tracks, as they are in this tree."""
    if not (ROOT / ".git").exists():
        pytest.skip("an unpacked sdist has no git to say what is committed")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(name for name in names.split("\0") if (ROOT / name).is_file())


@pytest.fixture(scope="module")
def archives(committed: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist of the tree with what lies about in it."""
    tree = tmp_path_factory.mktemp("tree")
    for name in committed:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for name in LITTER:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("litter")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tree)
        return tree / "out" / build_wheel("out"), tree / "out" / build_sdist("out")


@pytest.fixture
def wheel(archives: tuple[Path, Path]) -> Path:
    return archives[0]


@pytest.fixture
def sdist(archives: tuple[Path, Path]) -> Path:
    return archives[1]


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        assert len(set(archive.namelist())) == len(archive.namelist())
        return {name: archive.read(name) for name in archive.namelist()}


def like(name: str, *patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def unpacked(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def test_the_wheel_holds_the_package_its_data_and_its_weights_and_nothing_else(
    wheel: Path, committed: list[str]
) -> None:
    held = {name for name in contents(wheel) if not name.startswith(f"{INFO}/")}
    assert held == {name for name in committed if name.startswith("mae_bench/")}
    assert {name for name in held if not like(name, *CODE, *TEMPLATES, *IMAGES, *WEIGHTS)} == set()
    for kind in (*CODE, *TEMPLATES, *IMAGES, *WEIGHTS):
        assert any(like(name, kind) for name in held), kind


def test_every_bundled_model_is_in_the_wheel_with_its_record_and_its_card(wheel: Path) -> None:
    held = [Path(name) for name in contents(wheel) if like(name, *WEIGHTS)]
    weights = {path.stem for path in held if path.suffix == ".safetensors"}
    assert weights == set(re.findall(r'bundled\("(\w+)"\)', (ROOT / "conftest.py").read_text()))
    assert {path.stem for path in held if path.suffix == ".md"} == weights
    searches = {path.stem for path in held if path.stem.endswith("_search")}
    assert {path.stem for path in held if path.suffix == ".json"} == weights | searches


def test_what_the_wheel_says_of_itself_is_what_the_project_states(wheel: Path) -> None:
    held = contents(wheel)
    about = message_from_string(held[f"{INFO}/METADATA"].decode())
    assert about["Name"] == PROJECT["name"]
    assert about["Requires-Python"] == PROJECT["requires-python"]
    assert about.get_all("License-File") == PROJECT["license-files"]
    for name in PROJECT["license-files"]:
        assert held[f"{INFO}/licenses/{name}"] == (ROOT / name).read_bytes()
    others = {f"{INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    licenses = {f"{INFO}/licenses/{name}" for name in PROJECT["license-files"]}
    assert {name for name in held if name.startswith(f"{INFO}/")} == others | licenses

    entry_points = ConfigParser(delimiters="=")
    entry_points.read_string(held[f"{INFO}/entry_points.txt"].decode())
    stated = {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
    assert {group: dict(entry_points[group]) for group in entry_points.sections()} == stated


def test_the_sdist_holds_what_is_committed_but_the_checkpoints_along_trainings(
    sdist: Path, committed: list[str], tmp_path: Path
) -> None:
    tree = unpacked(sdist, tmp_path)
    held = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert held == {name for name in committed if not like(name, *LEFT_OUT)} | {"PKG-INFO"}
    assert all((tree / name).read_bytes() == (ROOT / name).read_bytes() for name in held - {"PKG-INFO"})


def test_the_wheel_made_of_the_sdist_is_the_wheel_made_of_the_tree(
    wheel: Path, sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unpacked(sdist, tmp_path / "tree"))
    again = tmp_path / "tree" / build_wheel(str(tmp_path / "tree"))
    assert contents(again) == contents(wheel)
    assert again.read_bytes() == wheel.read_bytes()


def test_the_readme_states_how_large_they_are(wheel: Path, sdist: Path) -> None:
    stated = re.search(r"wheel \((\d+) MB:.*?\) and the sdist \(less than\s+(\d+) MB:", README, re.DOTALL)
    assert stated is not None
    size, bound = map(int, stated.groups())
    assert abs(wheel.stat().st_size / MEGABYTE - size) <= 0.5
    assert sdist.stat().st_size / MEGABYTE < bound


@pytest.mark.thorough
def test_the_tests_of_an_unpacked_sdist_find_what_they_read(sdist: Path, tmp_path: Path) -> None:
    """All are collected there, and those that read results, pages and the sources run."""
    tree = unpacked(sdist, tmp_path)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for arguments in (["--co", "-q"], ["tests/test_readme.py", "tests/test_layers.py", "tests/test_distribution.py"]):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        run = subprocess.run(command, cwd=tree, env=clean, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr


# ------------------------------------------------------------------------------------------- in a fresh environment

CONFTEST = """
from mae_bench import model_fixture


@model_fixture
def mine():
    from mae_bench.models.zoo import bundled

    return bundled("mae_ft_s0")
"""
TEST = """
import pytest


@pytest.mark.occlusion
def test_cell(cell):
    cell.check()
"""


class User:
    """A fresh environment of one Python, and an empty directory in which somebody types commands."""

    def __init__(self, version: str, folder: Path) -> None:
        self.version, self.programs, self.project = version, folder / "venv" / "bin", folder / "project"
        self.project.mkdir(parents=True)
        self.site_packages = folder / "venv" / "lib" / f"python{version}" / "site-packages"
        foreign = ("CI", "GITHUB_STEP_SUMMARY", "VIRTUAL_ENV")
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in foreign and not name.startswith(("MAE_BENCH_", "PYTEST_", "PYTHON"))
        } | {"MAE_BENCH_CACHE": str(folder / "cache")}
        self.run(f"python{version}", "-m", "venv", folder / "venv")
        self.environment["PATH"] = f"{self.programs}{os.pathsep}{self.environment['PATH']}"

    def run(self, *command: object) -> str:
        """What is printed by a command, which must end well."""
        words = [str(word) for word in command]
        run = subprocess.run(words, cwd=self.project, env=self.environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{words} on Python {self.version}:\n{run.stdout}\n{run.stderr}"
        return run.stdout


@pytest.fixture
def user(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[User]:
    yield User(request.param, tmp_path)
    shutil.rmtree(tmp_path / "venv")  # some 6 GB, which pytest would keep for three more sessions


@pytest.mark.wheels
@pytest.mark.parametrize("form", ["wheel", "sdist"])
@pytest.mark.parametrize("user", PYTHONS, indirect=True)
def test_installed_alone_it_does_what_the_readme_shows(user: User, form: str, wheel: Path, sdist: Path) -> None:
    # what is not imported need not be compiled, of which there is much
    user.run("python", "-m", "pip", "install", "--no-compile", {"wheel": wheel, "sdist": sdist}[form])
    user.run("python", "-m", "pip", "check")
    where = user.run("python", "-c", "import mae_bench; print(mae_bench.__version__, mae_bench.__file__)")
    assert where.split() == [PROJECT["version"], str(user.site_packages / "mae_bench" / "__init__.py")]

    assert "models" in user.run("mae-bench", "--help")
    models = user.run("mae-bench", "models")
    for weights in (user.site_packages / "mae_bench/models/weights").glob("*.safetensors"):
        assert weights.stem in models

    (example, shown) = re.findall(r"## From Python\n\n```python\n(.*?)```\n```\n(.*?)```", README, re.DOTALL)[0]
    printed = user.run("python", "-c", example).splitlines()
    assert printed[:4] == shown.splitlines()[:4]
    assert [line.split()[:2] for line in printed[5:-1]] == [line.split()[:2] for line in shown.splitlines()[5:-1]]
    assert printed[-1].startswith("As a whole")

    (user.project / "conftest.py").write_text(CONFTEST)
    (user.project / "test_robustness.py").write_text(TEST)
    run = ("--mae-limit", 512, "--mae-run", "run", "-k", "random_patch-0.10 or random_patch-0.50")
    assert "2 passed" in user.run("pytest", *run)
    assert {path.stem for path in (user.project / "run/cells/mine").iterdir()} == {
        "clean-0.00", "random_patch-0.10", "random_patch-0.50",
    }  # fmt: skip
    assert "mine" in (user.project / "run/leaderboard.md").read_text()
    assert (user.project / "run/report.html").stat().st_size > MEGABYTE / 10
