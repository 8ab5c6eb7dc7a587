"""Damaged files of the cache: each is made again, as if it had not been there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image

from faults.reliability import Injection
from mae_bench import images as module
from mae_bench.images import Manifest, View, content_hash, decoded
from mae_bench.suites.index import remembered

Journal = Callable[[Injection], None]


class Cache(Protocol):
    """Something that keeps one file."""

    def ask(self) -> tuple[bytes, bool]:
        """What is kept, and whether it had to be made."""

    @property
    def file(self) -> Path: ...


class DecodedImages:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = [
            Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8))
            for seed in range(20)
        ]
        self.manifest = Manifest(("a",), tuple(f"{place:032x}-0" for place in range(20)), np.zeros(20, np.int64))

    def ask(self) -> tuple[bytes, bool]:
        read = []

        def image(position: int) -> Image.Image:
            read.append(position)
            return self.images[position]

        module._checked.clear()  # as if it were another process
        found = decoded(self.manifest, 20, View(16, 16, "bilinear", 1.0), 3, image, self.folder)
        return found.pixels.tobytes() + found.digests.tobytes() + found.likeness.tobytes(), sorted(read) == [*range(20)]

    @property
    def file(self) -> Path:
        (path,) = self.folder.glob("*.images")
        return path


class IndexOfHashes:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = []
        for number in range(30):
            path = folder / "data" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes([number]))
            os.utime(path, ns=(10**18, 10**18))
            self.files.append(path)

    def ask(self) -> tuple[bytes, bool]:
        asked = []

        def examine(path: Path) -> str:
            asked.append(path)
            return content_hash(path.read_bytes())

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MAE_BENCH_CACHE", str(self.folder / "cache"))
            answers = remembered("content hash", self.folder / "data", self.files, examine)
        return "".join(answers).encode(), sorted(asked) == sorted(self.files)

    @property
    def file(self) -> Path:
        (path,) = (self.folder / "cache" / "index").glob("*.index")
        return path


class FittedHead:
    def __init__(self, folder: Path, encoder: Any) -> None:
        self.folder = folder
        self.encoder = encoder

    def ask(self) -> tuple[bytes, bool]:
        from mae_bench.models.probes import probed

        asked = []

        def training(view: View, per_class: int) -> tuple[np.ndarray, np.ndarray]:
            asked.append(view)
            labels = np.arange(2).repeat(per_class)
            noise = np.random.default_rng(0).integers(0, 90, (len(labels), 1, view.height, view.width))
            return (noise + 90 * labels[:, None, None, None]).astype(np.uint8), labels

        model = probed("mine", self.encoder, training, subset="all", per_class=4, kind="linear", folder=self.folder)
        return b"".join(value.numpy().tobytes() for value in model.head.state_dict().values()), len(asked) == 1

    @property
    def file(self) -> Path:
        (path,) = self.folder.glob("*.head")
        return path


KINDS = {
    "decoded images": lambda folder, _: DecodedImages(folder),
    "content hashes of files": lambda folder, _: IndexOfHashes(folder),
    "a fitted head": FittedHead,
}


def flipped(content: bytes, random: np.random.Generator) -> bytes:
    place = int(random.integers(len(content)))
    return content[:place] + bytes([content[place] ^ 1 << int(random.integers(8))]) + content[place + 1 :]


def cut(content: bytes, random: np.random.Generator) -> bytes:
    return content[: int(random.integers(len(content)))]


def zeroed(content: bytes, random: np.random.Generator) -> bytes:
    """A block of up to 512 bytes that were not all zero."""
    damaged = content
    while damaged == content:
        place = int(random.integers(len(content)))
        end = min(len(content), place + int(random.integers(1, 513)))
        damaged = content[:place] + bytes(end - place) + content[end:]
    return damaged


DAMAGES = {"one bit is flipped": flipped, "the end is missing": cut, "a block is zero": zeroed}


@pytest.fixture
def encoder(small_vit: Callable[..., Any]) -> Any:
    network = small_vit(num_classes=0)
    network.pretrained_cfg = {
        "input_size": (1, 28, 28), "mean": (0.4,), "std": (0.3,), "interpolation": "bilinear", "crop_pct": 1.0,
    }  # fmt: skip
    return network


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [4, pytest.param(60, marks=pytest.mark.faults)])
def test_damaged_cache_is_made_again(
    count: int, kind: str, damage: str, encoder: Any, journal: Journal, tmp_path: Path
) -> None:
    cache: Cache = KINDS[kind](tmp_path, encoder)
    first, made = cache.ask()
    assert made
    whole = cache.file.read_bytes()
    assert cache.ask() == (first, False)
    random = np.random.default_rng(0)
    lost = silent = 0
    for _ in range(count):
        cache.file.write_bytes(DAMAGES[damage](whole, random))
        again, made = cache.ask()
        silent += not made
        lost += again != first or cache.file.read_bytes() != whole
    journal(
        Injection(
            "images",
            f"the cached file of {kind}: {damage}",
            count,
            "it is not used but made again, byte for byte",
            lost,
            silent,
        )
    )
