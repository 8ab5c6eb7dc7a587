"""What the clean pass of a model leaves, and how processes that evaluate the same model share it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock

from mae_bench import cached
from mae_bench.atomic import written_whole
from mae_bench.joint_pass import from_bytes, to_bytes
from mae_bench.reference import Reference, ScratchError, keeping
from mae_bench.representation import Collector, Sample
from mae_bench.shard import Shard

FINISHED = "finished"
"""Name of the file that is written last."""


@dataclass(frozen=True)
class CleanPass:
    """What the clean pass of a model over its first blocks, or all, leaves: clean features, what the clean cell sums up
    and the seconds that it took, the tokens of the sample (None where no representation was asked for), and the images
    per forward pass for which memory sufficed.
    """

    reference: Reference
    shard: Shard
    seconds: float
    collector: Collector | None
    batch_size: int

    def finish(self, folder: Path, identity: str) -> None:
        """Say in ``folder``, where its files lie, that they are all there, and what ``identity`` they are of.

        Raises:
            OSError: the disk cannot be written to.
        """
        arrays = {"batch size": np.array(self.batch_size), **self.reference.arrays}
        arrays["shard"] = np.frombuffer(to_bytes(self.shard, self.seconds), dtype=np.uint8)
        if self.collector is not None:
            arrays |= {"collects": np.array(1), **self.collector.arrays}
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        with written_whole(folder / FINISHED) as file:
            file.write(cached.stamped(content.getvalue(), identity))

    @classmethod
    def finished(cls, folder: Path, identity: str, sample: Callable[[], Sample]) -> CleanPass | None:
        """The one of ``identity`` in ``folder``, mapped; None where it is of something else, not finished or damaged.
        ``sample`` gives the sample whose tokens were collected.
        """
        content = cached.kept(folder / FINISHED, identity)
        if content is None:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = dict(archive)
            return cls(
                Reference.finished(folder / "features", arrays),
                *from_bytes(arrays["shard"].tobytes()),
                Collector.finished(sample(), folder / "collected", arrays) if "collects" in arrays else None,
                int(arrays["batch size"]),
            )
        except (BadZipFile, LookupError, OSError, TypeError, ValueError):
            return None


def shared_clean_pass(
    folder: Path, identity: str, sample: Callable[[], Sample], compute: Callable[[Path], CleanPass]
) -> CleanPass:
    """The clean pass of ``identity`` in ``folder``. Whichever process comes first makes it by ``compute``, below the
    folder that it is given, while the others wait; where it dies, the next one does.

    Raises:
        ScratchError: the folder cannot be written to, or what was written cannot be read.
    """
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    with keeping("clean features", folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        found = CleanPass.finished(folder, identity, sample)
        if found is None:
            with keeping("clean features", folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            made = compute(folder)
            with keeping("clean features", folder):
                made.finish(folder, identity)
            found = CleanPass.finished(folder, identity, sample)
    finally:
        lock.release()
    if found is None:
        raise ScratchError(f"{folder}: clean features that were just written cannot be read; check the disk")
    return found
