"""A run whose nodes have no file system in common: what they finish goes through a bucket of S3."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from mae_bench.mirror import Mirror

if TYPE_CHECKING:
    from tests.conftest import Project

pytestmark = pytest.mark.cluster

BUCKET = "robustness"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One that a server of this machine holds, in a process of its own."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    address = next(found[0] for line in server.stderr if (found := re.search(r"http://127[.0-9]+:\d+", line)))
    for variable, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "FSSPEC_S3_ENDPOINT_URL": address,
    }.items():
        monkeypatch.setenv(variable, value)
    import fsspec
    import s3fs

    # which reads the environment once, when it is imported, and here that may have been before
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": address})
    store = s3fs.S3FileSystem(endpoint_url=address)
    store.call_s3("create_bucket", Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    yield f"s3://{BUCKET}"
    server.kill()
    server.communicate()


def said(result: pytest.RunResult) -> str:
    return re.sub(r"\s+", " ", f"{result.stdout} {result.stderr}")


def test_nodes_that_share_no_folder_share_a_bucket(
    project: Project, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAE_BENCH_CACHE", str(project.path / "cache"))
    project.matrix("blur", models=("bright", "dim"))
    chosen = ("-k", "gaussian_blur", "--mae-baseline", "none", "--mae-device", "cpu")
    assert project.run(*chosen, "--mae-run", "serial").ret == 0
    url = f"{bucket}/runs/july"
    # in processes of their own, as a user's are: Ray forks, and other tests have left threads in this one
    run = project.pytester.runpytest_subprocess
    first = run(*chosen, "--mae-executor", "ray", "--mae-run", url, "-k", "gaussian_blur-1")
    assert first.ret == 0, said(first)
    result = run(*chosen, "--mae-executor", "ray", "--mae-run", url, "--mae-resume")
    assert result.ret == 0, said(result)
    assert f"Results: {url}" in said(result)
    copy = Mirror(url, project.path / "copy")
    copy.fetch()
    assert project.rows("copy") == project.rows("serial")
    cluster = json.loads((project.path / "copy/manifest.json").read_text())["cluster"]
    assert cluster["workers_died"] == 0
    tried = [cell for cell in project.log if cell.startswith("build")]
    assert len(tried) == 2 + 2 + 2
    assert not os.path.exists(Mirror(url).folder)  # on no node


def test_a_bucket_that_is_not_there_is_named_before_anything_runs(project: Project, bucket: str) -> None:
    project.matrix("blur")
    result = project.run("--mae-run", f"{bucket}-of-others/run", "--mae-baseline", "none", "--mae-device", "cpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"{bucket}-of-others/run: cannot be" in said(result)
    assert project.log == []
