"""MLflow: a run in the experiment ``mae_bench`` of a tracking server, a database or a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_bench.sinks import Sink, measured, series, step

if TYPE_CHECKING:
    from mae_bench.leaderboard import Leaderboard
    from mae_bench.rows import ResultRow

EXPERIMENT = "mae_bench"
"""Where ``MLFLOW_EXPERIMENT_NAME`` names none."""


class MLflow:
    """Logs through a client of its own, so that what the user's code has set up globally stays as it is. ``files`` is a
    folder for them where nothing else at ``uri`` has one.
    """

    def __init__(self, uri: str, files: Path | None = None) -> None:
        self.uri = uri
        self.files = files
        self._client: Any = None
        self._run = ""

    def open(self, run_id: str, config: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        kept = None
        if self.files is not None:
            self.files.mkdir(parents=True, exist_ok=True)
            kept = self.files.absolute().as_uri()
        self._client = MlflowClient(tracking_uri=self.uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name, kept)
        self._run = self._client.create_run(number, run_name=run_id).info.run_id
        for key, value in config.get("settings", {}).items():
            self._client.log_param(self._run, key, value)
        self._client.log_dict(self._run, dict(config), "manifest.json")

    def cell(self, row: ResultRow) -> None:
        for name, value in measured(row).items():
            self._client.log_metric(self._run, f"{series(row)}/{name}", value, step=step(row))

    def finish(self, leaderboard: Leaderboard, files: Sequence[Path]) -> str:
        self._client.log_table(self._run, leaderboard.to_frame(), "leaderboard.json")
        for path in files:
            self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run)
        return f"run {self._run} in {self.uri}"


def sink(place: str | None, folder: Path) -> Sink:
    uri = place or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return MLflow(uri)
    kept = folder.absolute() / "mlflow"
    return MLflow(f"sqlite:///{kept / 'mlflow.db'}", kept / "files")
