"""Every run ends with its page, as a user gets it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from mae_bench.cli import app

if TYPE_CHECKING:
    from tests.conftest import Project

REPRESENTATION = """
import pytest


@pytest.mark.representation
def test_representation(representation):
    representation.check()
"""


@pytest.fixture(autouse=True)
def with_report(monkeypatch: pytest.MonkeyPatch, project: Project) -> None:  # noqa: ARG001
    """These are about what other tests leave out."""
    monkeypatch.delenv("PYTEST_ADDOPTS")


def said(result: pytest.RunResult) -> str:
    return re.sub(r"\s+", " ", f"{result.stdout} {result.stderr}")


def text_of(page: Path) -> str:
    body = page.read_text().partition("<main>")[2].partition("</main>")[0]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_a_run_ends_with_a_page_that_shows_what_changed_and_what_was_seen(project: Project) -> None:
    project.matrix("blur", models=("bright", "dim"), per_class=60)
    baseline = ("--mae-limit", "0", "--mae-full", "--mae-update-baseline", "--mae-reason", "first")
    assert project.run(*baseline, "--mae-run", "first").ret == 0
    project.write("wrong.json", json.dumps({"dim-gaussian_blur-3.00": [0, 60]}))
    result = project.run("--mae-run", "second", "--mae-limit", "0")
    assert result.ret == 1
    assert f"{project.path / 'second'}/report.html" in said(result)
    page = project.path / "second/report.html"
    shown = text_of(page)
    assert "1 regression" in shown
    table = re.search(r'<table id="changes">(.*?)</table>', page.read_text(), re.DOTALL)
    assert table is not None
    first = re.findall(r"<td>(.*?)</td>", table[1])[:9]
    assert (first[0], first[1], first[-1]) == ("dim", "gaussian_blur-3.00", "regression")
    strip = page.read_text().count('alt="gaussian_blur at level')
    assert strip == 4  # clean and three levels
    assert 'alt="An image of class' in page.read_text()


def test_a_page_shows_no_comparison_of_an_earlier_session(project: Project) -> None:
    project.matrix("clean")
    update = ("--mae-limit", "0", "--mae-full", "--mae-update-baseline", "--mae-reason", "first")
    assert project.run(*update, "--mae-run", "first").ret == 0
    assert project.run("--mae-run", "run").ret == 0
    assert "1 unchanged" in text_of(project.path / "run/report.html")
    assert project.run("--mae-run", "run", "--mae-resume", "--mae-baseline", "none").ret == 0
    assert "The run was not compared with a baseline." in text_of(project.path / "run/report.html")


def test_a_page_that_cannot_be_made_fails_the_run_and_hides_no_regression(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vl_convert

    def fail(_: str) -> str:
        raise ValueError("no such mark")

    project.matrix("clean", per_class=60)
    update = ("--mae-limit", "0", "--mae-full", "--mae-update-baseline", "--mae-reason", "first")
    assert project.run(*update, "--mae-run", "first").ret == 0
    monkeypatch.setattr(vl_convert, "vegalite_to_svg", fail)
    good = project.run("--mae-run", "second", "--mae-limit", "0")
    assert good.ret == pytest.ExitCode.TESTS_FAILED
    assert "cannot be drawn (no such mark): --mae-report none leaves the report out" in said(good)
    project.write("wrong.json", json.dumps({"colour-clean-0.00": [0, 60]}))
    worse = project.run("--mae-run", "third", "--mae-limit", "0")
    assert worse.parseoutcomes()["failed"] == 1
    assert "regression" in said(worse)
    assert (project.path / "third/leaderboard.md").exists()


def test_no_page_is_written_where_none_is_wanted(project: Project) -> None:
    project.matrix("clean")
    assert project.run("--mae-run", "run", "--mae-report", "none").ret == 0
    assert not (project.path / "run/report.html").exists()


def test_what_happens_inside_is_on_the_page(project: Project) -> None:
    project.conftest(
        """
@model_fixture(suite="fashion_mnist")
def mae():
    from mae_bench.models.zoo import bundled

    return bundled("mae_ft_s0")
"""
    )
    project.test("blur")
    project.write("test_y.py", REPRESENTATION)
    chosen = ("-k", "gaussian_blur-1 or clean or gaussian_blur-2", "--mae-limit", "1", "--mae-baseline", "none")
    assert project.run(*chosen, "--mae-run", "run").ret == 0
    shown = text_of(project.path / "run/report.html")
    for title in ("Alignment along the layers", "What each head retains", "Attention distance"):
        assert f"Numbers: {title}" in shown


def test_a_page_is_made_of_an_older_run_and_of_several(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.matrix("blur", models=("bright", "dim"))
    monkeypatch.chdir(project.path)
    for model in ("bright", "dim"):
        chosen = ("-k", model, "--mae-report", "none", "--mae-baseline", "none")
        assert project.run(*chosen, "--mae-run", model).ret == 0
    runner = CliRunner()
    one = runner.invoke(app, ["report", "bright"])
    assert one.exit_code == 0, one.output
    assert "dim" not in text_of(project.path / "bright/report.html").split()
    nowhere = runner.invoke(app, ["report", "bright", "dim"])
    assert nowhere.exit_code == 2
    assert "name one with --out FILE" in nowhere.output
    both = runner.invoke(app, ["report", "bright", "dim", "--out", "both.html", "--data", "data"])
    assert both.exit_code == 0, both.output
    assert {"bright", "dim"} <= set(text_of(project.path / "both.html").split())
    missing = runner.invoke(app, ["report", "nowhere"])
    assert missing.exit_code == 2
    assert "no clean cell is finished" in missing.output
