"""Weights & Biases: a run of its own, on this machine's disk unless ``WANDB_MODE`` says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_bench.sinks import Sink, measured, series, step

if TYPE_CHECKING:
    from mae_bench.leaderboard import Leaderboard
    from mae_bench.rows import ResultRow

PROJECT = "mae_bench"
"""Where ``WANDB_PROJECT`` names none."""


class WeightsAndBiases:
    """Logs cells against the number of their level, which is a metric: wandb's own steps never go back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run: Any = None

    def open(self, run_id: str, config: Mapping[str, Any]) -> None:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_id,
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=os.environ.get("WANDB_DIR", str(self.folder)),
            settings=wandb.Settings(silent=True, console="off"),  # the terminal is pytest's
        )
        self._run.define_metric("level")
        self._run.define_metric("*", step_metric="level")

    def cell(self, row: ResultRow) -> None:
        self._run.log({f"{series(row)}/{name}": value for name, value in measured(row).items()} | {"level": step(row)})

    def finish(self, leaderboard: Leaderboard, files: Sequence[Path]) -> str:
        import wandb

        self._run.log({"leaderboard": wandb.Table(dataframe=leaderboard.to_frame())})
        artifact = wandb.Artifact("results", type="results")
        for path in files:
            artifact.add_file(str(path), name=path.name)
        self._run.log_artifact(artifact)
        url, kept = self._run.url, Path(self._run.dir).parent
        self._run.finish()
        return f"{url}" if url else f"wandb sync {kept}"


def sink(place: str | None, folder: Path) -> Sink:  # noqa: ARG001
    return WeightsAndBiases(folder)
