"""A text file with a line for each finished cell."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_bench.leaderboard import Leaderboard
from mae_bench.rows import ResultRow


class Lines:
    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, run_id: str, config: Mapping[str, Any]) -> None:
        self.path.write_text(f"{run_id} on {config['suite']}\n")

    def cell(self, row: ResultRow) -> None:
        with self.path.open("a") as file:
            file.write(f"{row.model} {row.condition} {row.top1:.3f}\n")

    def finish(self, leaderboard: Leaderboard, files: Sequence[Path]) -> str:  # noqa: ARG002
        return f"read {self.path}"


def sink(place: str | None, folder: Path) -> Lines:
    """``--mae-sink lines:FILE``; without a file, lines.txt in the results of the project."""
    return Lines(Path(place) if place else folder / "lines.txt")
