"""docs/reliability.md from the log of the injected failures:

``PYTHONPATH=tests python -m faults.reliability LOG --out docs/reliability.md``
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tabulate import tabulate

from mae_bench.store import write_atomically

FAILURES = {
    "kill": "A process is killed",
    "disk": "The disk is full or read-only",
    "memory": "Memory runs out",
    "worker": "A worker dies or hangs",
    "writers": "Several processes write at once",
    "merge": "Runs and shards are merged",
    "finite": "Logits are not finite",
    "classes": "Outputs or head are not the suite's",
    "labels": "The label map is wrong",
    "preprocessing": "The preprocessing is wrong",
    "truncated": "A set is incomplete",
    "images": "Image files are damaged",
    "duplicates": "Images are copies of others",
    "pickles": "Weights and arrays are hostile",
    "checkpoints": "A checkpoint is the wrong one",
    "names": "Names are hostile",
    "stale": "A stored result is stale",
    "baseline": "A baseline is changed by mistake",
    "gate": "The gate is asked without a change",
    "determinism": "The same is run in another way",
    "selection": "A selection is empty or doubled",
    "parsers": "A file is anything at all",
}
"""Titles of the failures, in the order of the page."""


@dataclass(frozen=True)
class Injection:
    """What a test injected: ``failure`` is one of :data:`FAILURES`, ``what`` says how, ``count`` how often.

    ``lost`` counts injections after which something finished was gone or wrong, ``silent`` those that changed a result
    without a word. ``behaviour`` says in one sentence what the harness did instead.
    """

    failure: str
    what: str
    count: int
    behaviour: str
    lost: int = 0
    silent: int = 0

    def __post_init__(self) -> None:
        if self.failure not in FAILURES:
            raise ValueError(f"{self.failure!r} is no failure: name one of {', '.join(FAILURES)}")


def injections(log: Path) -> list[Injection]:
    """The injections of a log, each once: of those that were tried in several sizes the largest, the last of equals."""
    found = [Injection(**json.loads(line)) for line in log.read_text().splitlines()]
    return list({(one.failure, one.what): one for one in sorted(found, key=lambda one: one.count)}.values())


def page(found: Iterable[Injection]) -> str:
    """The page in Markdown."""
    by_failure = {name: [one for one in found if one.failure == name] for name in FAILURES}
    everything = [one for each in by_failure.values() for one in each]
    total, lost, silent = (sum(getattr(one, name) for one in everything) for name in ("count", "lost", "silent"))
    parts = [
        "# Reliability",
        "What was done to the benchmark, how often, and what was lost. `tox -e faults` repeats all of it and writes "
        "this page from its log.",
        f"**{total:,} injections: {lost} lost something finished, {silent} changed a result without a word.** Python "
        f"{platform.python_version()}, torch {version('torch')}, pytest {version('pytest')}, {platform.system()}.",
    ]
    for name, title in FAILURES.items():
        if by_failure[name]:
            lines = [(one.what, one.count, one.behaviour, one.lost, one.silent) for one in by_failure[name]]
            headers = ["injected", "times", "what happens", "lost", "silent"]
            parts += [f"## {title}", tabulate(lines, headers=headers, tablefmt="pipe", disable_numparse=True)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write_atomically(arguments.out, page(injections(arguments.log)).encode())


if __name__ == "__main__":
    main()
