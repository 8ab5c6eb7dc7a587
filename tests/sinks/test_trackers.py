"""Runs sent to the trackers themselves, and read back from where these keep them on this machine."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mae_bench.rows import ResultRow
from mae_bench.sinks import measured, series, step

if TYPE_CHECKING:
    from tests.conftest import Project

pytestmark = pytest.mark.sinks


def ran(project: Project, *sinks: str) -> dict[tuple[str, int], float]:
    """Run blurs with these sinks; name and step of each value that is to be found there."""
    project.matrix("blur")
    given = [part for sink in sinks for part in ("--mae-sink", sink)]
    # a process of its own, since what trackers do to theirs stays
    result = project.pytester.runpytest_subprocess("--mae-run", "run", "-k", "box_blur", "--mae-report", "page", *given)
    assert result.ret == 0
    assert "WARNING" not in str(result.stdout)
    assert re.search(r"^test_x\.py \.+ +\[100%\]$", str(result.stdout), re.MULTILINE)
    assert str(result.stderr) == ""
    rows = [ResultRow.from_dict(record["row"]) for record in project.cells().values()]
    values = {(f"{series(row)}/{name}", step(row)): value for row in rows for name, value in measured(row).items()}
    assert ("colour/blur/box_blur/top1", 1) in values
    assert ("colour/clean/clean/top1", 0) in values
    return values


def test_tensorboard_shows_every_value_at_its_level_and_the_leaderboard(project: Project) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = ran(project, "tensorboard:events")
    events = EventAccumulator(str(project.path / "events/run"))
    events.Reload()
    tags = events.Tags()
    found = {(tag, one.step): one.value for tag in tags["scalars"] for one in events.Scalars(tag)}
    assert found == {key: pytest.approx(value, rel=1e-6) for key, value in values.items()}
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    assert texts["leaderboard/text_summary"] == (project.path / "run/leaderboard.md").read_text()
    assert '"run_id": "run"' in texts["manifest/text_summary"]
    for name in ("report.html", "leaderboard.md", "leaderboard.csv"):
        assert (project.path / "events/run" / name).is_file()


def logged(content: bytes) -> list[Any]:
    """The records of a ``.wandb`` file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    block, header = 32_768, 7
    records, whole, place = [], b"", header
    while place < len(content):
        if block - place % block < header:  # filled up
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + header])
        whole += content[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # all of a record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            records.append(record)
            whole = b""
    return records


def test_wandb_keeps_a_run_on_disk_with_every_value_table_and_file(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    values = ran(project, "wandb")
    (folder,) = (project.path / "results/wandb").glob("offline-run-*")
    records = logged((folder / next(folder.glob("*.wandb"))).read_bytes())
    found: dict[tuple[str, int], float] = {}
    for record in records:
        items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        found |= {(name, items["level"]): value for name, value in items.items() if name.startswith("colour/")}
    assert found == pytest.approx(values)
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.display_name, run.project) == ("run", "mae_bench")
    assert json.loads(next(one.value_json for one in run.config.update if one.key == "run_id")) == "run"
    sent = [entry.path for record in records for entry in record.request.log_artifact.artifact.manifest.contents]
    sent += [entry.path for record in records for entry in record.artifact.manifest.contents]
    assert {"report.html", "leaderboard.md", "leaderboard.csv"} <= set(sent)
    assert list(folder.rglob("leaderboard_*.table.json"))


@pytest.mark.filterwarnings("ignore")  # reading back warns of what mlflow uses
@pytest.mark.parametrize("store", ["default", "named"])
def test_mlflow_has_every_value_parameter_table_and_file(
    project: Project, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    from mlflow import MlflowClient

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    uri = (
        f"sqlite:///{project.path}/results/mlflow/mlflow.db" if store == "default" else f"sqlite:///{project.path}/x.db"
    )
    values = ran(project, "mlflow" if store == "default" else f"mlflow:{uri}")
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'mae_bench'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    found: dict[tuple[str, int], Any] = {
        (name, one.step): one.value
        for name in run.data.metrics
        for one in client.get_metric_history(run.info.run_id, name)
    }
    assert found == pytest.approx(values)
    assert run.data.params["seed"] == "0"
    artifacts = Path(client.download_artifacts(run.info.run_id, "", str(project.path)))
    for name in ("report.html", "leaderboard.md", "leaderboard.csv", "leaderboard.json", "manifest.json"):
        assert (artifacts / name).is_file()
