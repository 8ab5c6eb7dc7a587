"""A run in an object store, as a user sees it: what is finished is there, and another machine goes on with it."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from mae_bench.mirror import Mirror

if TYPE_CHECKING:
    from tests.conftest import Project

CHOSEN = ("-k", "gaussian_blur", "--mae-baseline", "none")


@pytest.fixture
def url() -> str:
    return f"memory://runs/{uuid.uuid4()}"


def said(result: pytest.RunResult) -> str:
    return re.sub(r"\s+", " ", f"{result.stdout} {result.stderr}")


def objects(url: str) -> dict[str, bytes]:
    store, root = fsspec.core.url_to_fs(url)
    return {path[len(root) :].strip("/"): store.cat_file(path) for path in store.find(root)}


def rows(content: dict[str, bytes]) -> dict[str, Any]:
    """What cells say but for circumstances."""
    found = {}
    for name, cell in content.items():
        if name.startswith("cells/"):
            row = json.loads(cell)["row"]
            found[name] = {k: row[k] for k in row if k not in ("seconds", "images_per_second", "run_id")}
    return found


def of_folder(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*.*") if file.is_file()}


def test_a_run_in_an_object_store_is_that_of_a_folder(project: Project, url: str) -> None:
    project.matrix("blur")
    assert project.run(*CHOSEN, "--mae-run", "run").ret == 0
    result = project.run(*CHOSEN, "--mae-run", url)
    assert result.ret == 0
    assert f"Results: {url}" in said(result)
    folder, there = of_folder(project.path / "run"), objects(url)
    assert there.keys() == folder.keys() - {".lock"}
    assert project.run(*CHOSEN, "--mae-run", url, "--co", "-q").ret == 0
    assert objects(url) == there  # whoever lists it changes nothing
    assert rows(there) == rows(folder)
    assert len(rows(there)) == 4
    assert not Mirror(url).folder.exists()  # what is there in the end is kept nowhere else
    again = project.run(*CHOSEN, "--mae-run", url)
    assert again.ret == pytest.ExitCode.USAGE_ERROR
    assert f"{url} is not empty: add --mae-resume" in said(again)


def test_another_machine_goes_on_with_what_is_finished(
    project: Project, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.matrix("blur")
    assert project.run("-k", "gaussian_blur-1", "--mae-baseline", "none", "--mae-run", url).ret == 0
    monkeypatch.setenv("MAE_BENCH_CACHE", str(project.path / "of another machine"))
    before = rows(objects(url))
    assert len(before) == 2
    assert project.run(*CHOSEN, "--mae-run", url, "--mae-resume").ret == 0
    after = rows(objects(url))
    assert len(after) == 4
    assert before.items() <= after.items()
    assert [line for line in project.log if line.startswith("build")] == ["build colour"] * 2


def test_what_is_gone_from_the_store_is_not_brought_back(project: Project, url: str) -> None:
    project.matrix("blur")
    mirror = Mirror(url)
    (mirror.folder / "cells/colour").mkdir(parents=True)
    (mirror.folder / "cells/colour/clean-0.00.json").write_text("left by a session that was killed")
    assert project.run(*CHOSEN, "--mae-run", url).ret == 0
    assert len(rows(objects(url))) == 4


def test_a_run_that_cannot_be_sent_fails_and_is_kept(
    project: Project, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.matrix("blur")

    written = type(Mirror(url)._store).pipe_file

    def fail(self: Any, path: str, content: bytes) -> None:
        if path.endswith(".writable"):  # it is only full later
            written(self, path, content)
        else:
            raise OSError("the bucket is full")

    with monkeypatch.context() as patch:
        patch.setattr(type(Mirror(url)._store), "pipe_file", fail)
        result = project.run(*CHOSEN, "--mae-run", url)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes()["passed"] == 3
    assert "cannot be written to (the bucket is full); what was not sent is in" in said(result)
    kept = Mirror(url).folder
    assert len(rows(of_folder(kept))) == 4
    assert rows(objects(url)) == {}
    (project.path / "log.txt").unlink()
    assert project.run(*CHOSEN, "--mae-run", url, "--mae-resume").ret == 0
    assert len(rows(objects(url))) == 4
    assert not [line for line in project.log if line.startswith("forward")]  # nothing was run again
    assert not kept.exists()


def test_a_folder_that_was_left_behind_does_not_replace_what_is_newer(project: Project, url: str) -> None:
    project.matrix("blur")
    assert project.run(*CHOSEN, "--mae-run", url).ret == 0
    newer = objects(url)
    folder = Mirror(url).folder
    (folder / "cells/colour").mkdir(parents=True)
    (folder / "plan.json").write_text("of a session that was killed")
    for arguments in (("--co", "-q"), ("-k", "nothing"), ("--mae-baseline", "none")):
        project.run(*arguments, "--mae-run", url)
        assert objects(url) == newer


def test_a_store_that_is_not_known_is_refused_before_anything_runs(project: Project) -> None:
    project.matrix("blur")
    result = project.run(*CHOSEN, "--mae-run", "nowhere://bucket/run")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--mae-run nowhere://bucket/run: Protocol not known" in said(result)
    assert project.log == []


@pytest.mark.thorough
def test_workers_of_one_machine_write_to_one_folder_which_is_sent(project: Project) -> None:
    project.matrix("blur", models=("bright", "dim"))
    url = (project.path / "store").as_uri() + "/run"  # a store that other processes see
    result = project.run(*CHOSEN, "--mae-run", url, "-n", "2")
    assert result.ret == 0
    assert len(rows(of_folder(project.path / "store/run"))) == 8
