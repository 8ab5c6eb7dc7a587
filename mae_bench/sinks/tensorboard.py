"""TensorBoard: a folder of event files for each run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_bench.sinks import Sink, measured, series, step

if TYPE_CHECKING:
    from mae_bench.leaderboard import Leaderboard
    from mae_bench.rows import ResultRow


class TensorBoard:
    """Writes scalars, and texts for what is no number: the manifest and the leaderboard. Files lie beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def open(self, run_id: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self.folder / run_id)
        manifest = json.dumps(config, indent=2, default=str)
        self._writer.add_text("manifest", "\n".join(f"    {line}" for line in manifest.splitlines()))

    def cell(self, row: ResultRow) -> None:
        for name, value in measured(row).items():
            self._writer.add_scalar(f"{series(row)}/{name}", value, step(row))
        self._writer.flush()

    def finish(self, leaderboard: Leaderboard, files: Sequence[Path]) -> str:
        self._writer.add_text("leaderboard", leaderboard.to_markdown())
        self._writer.close()
        for path in files:  # of which TensorBoard shows none
            shutil.copy(path, Path(self._writer.log_dir) / path.name)
        return f"tensorboard --logdir {self.folder}"


def sink(place: str | None, folder: Path) -> Sink:
    return TensorBoard(Path(place).expanduser() if place else folder / "tensorboard")
