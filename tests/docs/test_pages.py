"""Every page does what it says: its files are written and its commands typed, from top to bottom."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from docs.guide import Reader, blocks, listed
from PIL import Image
from typer.main import get_command

from mae_bench.baseline import read_rows
from mae_bench.cli import app
from mae_bench.pytest_plugin.options import OPTIONS
from mae_bench.store import cell_of
from mae_bench.suites.synsets import published_synsets

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = [
    page.name
    for page in PAGES
    if page.name != "README.md"
    and any(block.language == "sh" for block in blocks(page.read_text()))
    and not any(f"<!-- after {page.name} -->" in other.read_text() for other in PAGES)
]
"""Pages with something to type, but for those that another goes on from, and so does too."""
INSTEAD = {
    # which has been done where this test runs
    'python -m pip install -e ".[dev]"': "true",
    "python -m pip install path/to/mae_bench": "true",
    "python -m pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu": "true",
    'python -m pip install "$MAE_BENCH"': "true",
    # where nothing is downloaded, and what is installed is not there for other tests
    "python -m pip install ./": "python -m pip install -q --no-deps --no-build-isolation --target packages ./",
    "--mae-device cuda ": "--mae-device cpu ",
    "/data/imagenet": "data/imagenet",
    "/shared": "shared",
}
FEW = "--mae-limit 512"
"""Images of the bundled suite that are enough to see that a command works."""
CHECKOUT, AFTER = "<!-- in a checkout -->", r"<!-- after (\S+) -->"


def commands(page: str) -> list[str]:
    """Single commands in blocks and tables, with what was continued on a next line."""
    typed = [block.text.replace("\\\n", "") for block in blocks(page) if block.language == "sh"]
    return [line for text in typed for line in text.splitlines()] + listed(page)


def ours(program: str) -> list[tuple[str, str]]:
    """Page and command of all that call ``program``."""
    return [
        (page.name, command)
        for page in PAGES
        for command in commands(page.read_text())
        if command.removeprefix("python -m ").startswith(f"{program} ")
    ]


@pytest.mark.parametrize(("page", "command"), ours("mae-bench"))
def test_a_command_is_one_of_the_program(page: str, command: str) -> None:  # noqa: ARG001
    _, *arguments = shlex.split(command)
    found: Any = get_command(app)
    while hasattr(found, "commands") and arguments[0] not in {name for each in found.params for name in each.opts}:
        name, *arguments = arguments
        found = found.commands[name]
    if not hasattr(found, "commands"):
        found.make_context(found.name, arguments)  # which raises what the reader would see


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_on_a_page_exists(page: Path) -> None:
    known = {f"--mae-{option.name}" for option in OPTIONS}
    assert set(re.findall(r"--mae-[a-z-]*[a-z]", page.read_text())) <= known


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """One in an empty repository, with the programs of this environment."""
    for variable in ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "project"
    subprocess.run(["git", "init", "-q", folder], check=True)
    path = f"{Path(sys.executable).parent}:{Path('/usr/local/bin')}:/usr/bin:/bin"
    who = {f"GIT_{role}_{what}": "reader@here" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    packages = os.pathsep.join(filter(None, [str(folder / "packages"), os.environ.get("PYTHONPATH")]))
    places = {"PATH": path, "PYTHONPATH": packages, "MAE_BENCH_CACHE": str(tmp_path / "cache")}
    return Reader(folder, {**places, **who}, INSTEAD)


def check_out(folder: Path) -> None:
    """The files of the repository as they are."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)


def photographs(folder: Path) -> None:
    """An image of each of two synsets."""
    for synset in published_synsets("imagenet")[:2]:
        (folder / synset).mkdir(parents=True)
        Image.effect_noise((260, 240), 50).save(folder / synset / "ILSVRC2012_val_00000001.JPEG")


def follow(reader: Reader, page: str) -> None:
    """Whatever page it goes on from, too."""
    text = (ROOT / "docs" / page).read_text()
    if CHECKOUT in text:
        check_out(reader.folder)
        for place in ("data", "shared"):
            photographs(reader.folder / place / "imagenet" / "val")
        reader = replace(reader, environment={**reader.environment, "PYTEST_ADDOPTS": FEW})
    elif before := re.search(AFTER, text):
        follow(reader, before[1])
    reader.follow(text)
    for command in listed(text):
        reader.type(command)


@pytest.mark.thorough  # runs the benchmark
@pytest.mark.parametrize("page", GUIDES)
def test_a_page_does_what_it_says(page: str, reader: Reader) -> None:
    follow(reader, page)


# --------------------------------------------------------------------------- what pages say


@pytest.mark.parametrize("name", ["architecture", "commands"])
def test_a_page_made_of_the_code_is_what_the_code_makes(name: str) -> None:
    page = import_module(f"docs.{name}").page()
    again = f"PYTHONPATH=tests python -m docs.{name} --out docs/{name}.md"
    assert (ROOT / f"docs/{name}.md").read_text() == page, f"make it again: {again}"


def test_indicators_are_quoted_as_they_are_committed() -> None:
    rows = {cell_of(row).id: row for row in read_rows(ROOT / "results/fashion_mnist/cells.csv")}
    quoted = re.findall(r"\| `([^`]+)` \| `([^`]+)` \| (-?[\d.]+) \|", (ROOT / "docs/indicators.md").read_text())
    assert len(quoted) >= 10
    for cell, field, value in quoted:
        assert f"{getattr(rows[cell], field):.3f}" == value, (cell, field)


def test_the_package_on_the_page_is_the_one_that_is_tested() -> None:
    package = ROOT / "tests/data/acme_vision"
    shown = {block.title: block.text for block in blocks((ROOT / "docs/extending.md").read_text())}
    for path in (package / "pyproject.toml", *package.glob("acme_vision/*.py")):
        assert shown[f"acme-vision/{path.relative_to(package)}"] == path.read_text()


@pytest.mark.thorough  # imports what the reference is made of
def test_the_site_is_built_strictly_and_asks_no_other_host_for_anything(tmp_path: Path) -> None:
    site = tmp_path / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    for page in pages:
        text = page.read_text()
        assert not re.findall(
            r"<(?:script|img|link rel=\"(?:stylesheet|preconnect)\")[^>]*(?:src|href)=\"https?:", text
        ), page
        assert not re.search(r":(?:class|func|meth|mod|data|attr):<code>", text), page
