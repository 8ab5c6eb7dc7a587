"""A dozen tiny photographs of four of ImageNet's classes, written down in every layout that people have them in."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae_bench.suites.synsets import published_synsets

CLASSES = ("n01440764", "n02099601", "n02123045", "n15075141")
POSITIONS = (0, 207, 281, 999)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache of its own, beside its data."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MAE_BENCH_CACHE", str(folder))
    return folder


@dataclass(frozen=True)
class Photograph:
    number: int
    synset: str
    content: bytes

    @property
    def name(self) -> str:
        return f"ILSVRC2012_val_{self.number:08}.JPEG"

    @property
    def position(self) -> int:
        return POSITIONS[CLASSES.index(self.synset)]


@pytest.fixture(scope="session")
def photographs() -> tuple[Photograph, ...]:
    """Numbered in another order than that of their classes."""
    generator = np.random.default_rng(0)
    taken = []
    for number, index in enumerate(generator.permutation(12), start=1):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=95)
        taken.append(Photograph(number, CLASSES[index % 4], buffer.getvalue()))
    return tuple(taken)


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def every_number(photographs: Sequence[Photograph], value: Callable[[str], str]) -> str:
    """One line for each of 50,000 images, those that are not among ``photographs`` of the first class."""
    synset_of = {photograph.number: photograph.synset for photograph in photographs}
    rest = value(CLASSES[0])
    return "".join(f"{value(synset_of[n]) if n in synset_of else rest}\n" for n in range(1, 50_001))


class Writer:
    """Writes photographs in one layout or another."""

    def __init__(self, photographs: tuple[Photograph, ...]) -> None:
        self.photographs = photographs

    def folders(self, place: Path) -> None:
        for photograph in self.photographs:
            put(place / photograph.synset / photograph.name, photograph.content)

    def flat(self, place: Path) -> None:
        for photograph in self.photographs:
            put(place / photograph.name, photograph.content)

    def kaggle(self, place: Path) -> Path:
        rows = [f"{p.name.removesuffix('.JPEG')},{p.synset} 1 2 3 4 {p.synset} 5 6 7 8 \n" for p in self.photographs]
        return put(place / "LOC_val_solution.csv", "ImageId,PredictionString\n" + "".join(rows))

    def caffe(self, place: Path) -> Path:
        return put(place / "val.txt", "".join(f"{p.name} {p.position}\n" for p in self.photographs))

    def synset_list(self, place: Path) -> Path:
        text = every_number(self.photographs, lambda synset: synset)
        return put(place / "imagenet_2012_validation_synset_labels.txt", text)

    def devkit(self, place: Path) -> Path:
        """Numbers are ids, which are in no order of the synsets; above the classes there are further ones."""
        from scipy.io import savemat

        shuffled = np.random.default_rng(1).permutation(1000)
        id_of = {published_synsets("imagenet")[i]: number for number, i in enumerate(shuffled, start=1)}
        assert all(id_of[synset] != position + 1 for synset, position in zip(CLASSES, POSITIONS, strict=True))
        rows = [*((number, synset, 0) for synset, number in id_of.items()), (1001, "n00001740", 2)]
        types = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
        place.mkdir(parents=True, exist_ok=True)
        savemat(place / "meta.mat", {"synsets": np.array(rows, dtype=types)[:, None]})
        numbers = every_number(self.photographs, lambda synset: str(id_of[synset]))
        return put(place / "ILSVRC2012_validation_ground_truth.txt", numbers)

    def table(self, part: Sequence[Photograph], **columns: list[Any]) -> Any:
        """Some photographs in the columns that Hugging Face has, or in others."""
        import pyarrow as pa

        # some of its copies have the class in the name
        names = [f"{p.name.removesuffix('.JPEG')}_{p.synset}.JPEG" for p in part]
        images = [{"bytes": p.content, "path": name} for p, name in zip(part, names, strict=True)]
        return pa.table({"image": images, "label": [p.position for p in part]} | columns)

    def parquet(self, place: Path) -> None:
        from pyarrow.parquet import write_table

        place.mkdir(parents=True, exist_ok=True)
        for shard, part in enumerate((self.photographs[:7], self.photographs[7:])):
            path = place / f"validation-{shard:05}-of-00002.parquet"
            write_table(self.table(part), path, row_group_size=3)

    def arrow(self, place: Path) -> None:
        import pyarrow as pa

        place.mkdir(parents=True, exist_ok=True)
        for shard, part in enumerate((self.photographs[:7], self.photographs[7:])):
            table = self.table(part)
            path = place / f"imagenet-1k-validation-{shard:05}-of-00002.arrow"
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table, max_chunksize=3)

    def webdataset(self, place: Path) -> None:
        for shard, part in enumerate((self.photographs[:7], self.photographs[7:])):
            self.tar(
                place / f"imagenet1k-validation-{shard:02}.tar",
                {
                    f"{shard:02}{i:04}.{suffix}": content
                    for i, p in enumerate(part)
                    for suffix, content in (
                        ("jpg", p.content),
                        ("cls", str(p.position).encode()),
                        ("json", json.dumps({"filename": p.name, "label": p.position}).encode()),
                    )
                },
            )

    @staticmethod
    def tar(path: Path, members: dict[str, bytes]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def writer(photographs: tuple[Photograph, ...]) -> Writer:
    return Writer(photographs)
