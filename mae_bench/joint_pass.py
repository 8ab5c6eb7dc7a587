"""A pass over the images of a cell that several processes make together, block by block."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from filelock import FileLock, Timeout

from mae_bench import cached
from mae_bench.atomic import written_whole
from mae_bench.indicators.block_sums import BlockSums
from mae_bench.reference import keeping
from mae_bench.shard import Shard

PART = "a part of a cell"


def joint_pass(
    folder: Path, identity: str, blocks: Sequence[int], compute: Callable[[int], tuple[Shard, float]]
) -> tuple[Shard, float]:
    """What a pass of ``identity`` over ``blocks`` leaves, and the seconds that it took all processes together.

    Whoever calls this with the same ``folder`` and ``identity`` takes the first of its blocks that nobody is at, until
    there is none, and waits for the others; the blocks of one that dies are taken over. ``compute`` gives what a block
    leaves and the seconds that it took. All get the same, in whatever order they name the blocks.

    Raises:
        ScratchError: the folder cannot be written to.
    """
    own = folder / cached.key(identity)
    with keeping(PART, own):
        own.mkdir(parents=True, exist_ok=True)
    parts: dict[int, tuple[Shard, float]] = {}
    for wait in (False, True):
        for block in blocks:
            if block in parts:
                continue
            lock = FileLock(own / f"{block}.lock")
            try:
                with keeping(PART, own):
                    lock.acquire(blocking=wait)
            except Timeout:
                continue
            try:
                parts[block] = _part(own / f"{block}.part", identity, block, compute)
            finally:
                lock.release()
    joined = Shard()
    for block in sorted(parts):
        joined.merge(parts[block][0])
    return joined, math.fsum(seconds for _, seconds in parts.values())


def _part(path: Path, identity: str, block: int, compute: Callable[[int], tuple[Shard, float]]) -> tuple[Shard, float]:
    """A block as it lies at ``path``, computed and put there if it does not."""
    content = cached.kept(path, identity)
    if content is not None:
        try:
            return from_bytes(content)
        except (BadZipFile, LookupError, TypeError, ValueError):
            pass  # of another version of this code, and made again
    shard, seconds = compute(block)
    with keeping(PART, path), written_whole(path) as file:
        file.write(cached.stamped(to_bytes(shard, seconds), identity))
    return shard, seconds


def to_bytes(shard: Shard, seconds: float) -> bytes:
    """``shard`` and the ``seconds`` that it took, without loss.

    >>> from_bytes(to_bytes(Shard({3: np.array([1, 0])}), 0.5))
    (Shard(prediction={3: array([1, 0])}, cell=..., tokens={}, heads={}, scores={}), 0.5)
    """
    places: list[tuple[str, Any, int, str, tuple[int, ...]]] = []
    values: list[np.ndarray] = []
    for what, key, sums in _sums(shard):
        for block, name, value in sums.items():
            places.append((what, key, block, name, value.shape))
            values.append(value.reshape(-1))
    arrays = {f"prediction {block}": prediction for block, prediction in shard.prediction.items()}
    arrays |= {
        f"scores {block} {name}": value.cpu().numpy()
        for block, each in shard.scores.items()
        for name, value in each.items()
    }
    # in one array, for each of which an archive has a file
    arrays["sums"] = np.concatenate(values) if values else np.empty(0)
    arrays["places"] = np.frombuffer(json.dumps(places).encode(), dtype=np.uint8)
    arrays["seconds"] = np.array(seconds)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()


def from_bytes(content: bytes) -> tuple[Shard, float]:
    """The shard and the seconds of :func:`to_bytes`.

    Raises:
        BadZipFile, LookupError, TypeError, ValueError: it is nothing of the kind.
    """
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = dict(archive)
    shard = Shard()
    for name, array in arrays.items():
        what, _, rest = name.partition(" ")
        if what == "prediction":
            shard.prediction[int(rest)] = array
        elif what == "scores":
            block, _, kind = rest.partition(" ")
            shard.scores.setdefault(int(block), {})[kind] = torch.from_numpy(array)
    sums: dict[tuple[str, Any, int], dict[str, Any]] = {}
    offset = 0
    for what, key, block, name, shape in json.loads(arrays["places"].tobytes()):
        own = arrays["sums"][offset : offset + math.prod(shape)]
        place = (what, key and (int(key[0]), str(key[1])), int(block))
        sums.setdefault(place, {})[name] = own.reshape(shape) if shape else float(own[0])
        offset += len(own)
    for (what, key, block), each in sums.items():
        store = (
            shard.cell
            if key is None
            else {"tokens": shard.tokens, "heads": shard.heads}[what].setdefault(key, BlockSums())
        )
        store.update(block, each)
    return shard, float(arrays["seconds"])


def _sums(shard: Shard) -> Iterator[tuple[str, Any, BlockSums]]:
    yield "cell", None, shard.cell
    for what, each in (("tokens", shard.tokens), ("heads", shard.heads)):
        for key, sums in each.items():
            yield what, key, sums
