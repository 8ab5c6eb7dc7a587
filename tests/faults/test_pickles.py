"""Programs where weights and arrays are expected: none of them runs, whoever reads it."""

from __future__ import annotations

import contextlib
import copyreg
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faults.reliability import Injection
from mae_bench.errors import BenchError

EXTENSION = 0x7F
"""Number under which a pickle may ask for ``os.system`` without naming it."""


def text(content: str) -> bytes:
    """A pickled text."""
    return b"X" + struct.pack("<I", len(content)) + content.encode()


class Called:
    """Is made by calling a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class CalledInTheirWay(Called):
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.call


# --------------------------------------------------------------------------- pickles, by what touches a file in them


def touching(canary: Path) -> Called:
    return Called(Path.touch, canary)


def shell(canary: Path) -> str:
    return f"touch {canary}"


def with_array(canary: Path) -> dict[bytes, object]:
    """A batch of images but for one of its entries."""
    return {b"data": np.zeros((1, 3072), np.uint8), b"labels": [0], b"filenames": touching(canary)}


def opened(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


def mapped(canary: Path) -> bytes:
    """A ``map`` in a pickle, whose function is called by who asks for its values."""
    return b"cbuiltins\nmap\ncos\nsystem\n(" + text(shell(canary)) + b"l\x86\x81"


Payload = Callable[[Path], bytes]
PICKLES: dict[str, Payload] = {
    "reduce": lambda canary: pickle.dumps(touching(canary), 2),
    "reduce_ex": lambda canary: pickle.dumps(CalledInTheirWay(os.system, shell(canary)), 4),
    "GLOBAL": lambda canary: b"cos\nsystem\n(" + text(shell(canary)) + b"tR.",
    "STACK_GLOBAL": lambda canary: (
        b"\x80\x04" + text("builtins") + text("exec") + b"\x93" + text(opened(canary)) + b"\x85R."
    ),
    "INST": lambda canary: b"(" + text(shell(canary)) + b"ios\nsystem\n.",
    "OBJ": lambda canary: b"(cos\nsystem\n" + text(shell(canary)) + b"o.",
    "NEWOBJ": lambda canary: b"\x80\x02cbuiltins\nbytes\n" + mapped(canary) + b"\x85\x81.",
    "NEWOBJ_EX": lambda canary: b"\x80\x04cbuiltins\nbytes\n" + mapped(canary) + b"\x85}\x92.",
    "EXT": lambda canary: b"\x80\x02\x82" + bytes([EXTENSION]) + text(shell(canary)) + b"\x85R.",
    "BUILD": lambda canary: (
        b"\x80\x02cfunctools\npartial\ncbuiltins\nprint\n\x85\x81(cos\nsystem\n" + text(shell(canary)) + b"\x85}Ntb)R."
    ),
    "persistent": lambda canary: text(shell(canary)) + b"Q.",
    "persistent name": lambda canary: b"P" + shell(canary).encode() + b"\n.",
    "attribute": lambda canary: (
        b"cbuiltins\ngetattr\n(cos\n__dict__\n" + text("get") + b"tR"
        + text("system") + b"\x85R" + text(shell(canary)) + b"\x85R."
    ),
    "in a pickle": lambda canary: b"\x80\x03cpickle\nloads\nB" + _sized(pickle.dumps(touching(canary))) + b"\x85R.",
    "in a scalar": lambda canary: (
        b"\x80\x03cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + text("O8") + b"\x85RB"
        + _sized(pickle.dumps(touching(canary))) + b"\x86R."
    ),
    "in NumPy's tests": lambda canary: (
        b"cnumpy.testing._private.utils\nrunstring\n(" + text(opened(canary)) + b"}tR."
    ),
    "in a subclass of tensors": lambda canary: (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncbuiltins\nstr\n"
        + text(shell(canary)) + b"\x85NtR."
    ),
    "in a namespace": lambda canary: (
        b"cargparse\nNamespace\n)R}" + text("lr") + b"cos\nsystem\n" + text(shell(canary)) + b"\x85Rsb."
    ),
    "beside an array": lambda canary: pickle.dumps(with_array(canary), 2),
    "array of objects": lambda canary: pickle.dumps({b"data": np.array([touching(canary)]), b"labels": [0]}, 2),
    "before the weights": lambda canary: pickle.dumps(touching(canary), 2)[:-1] + b"0}.",
}  # fmt: skip


def _sized(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


# --------------------------------------------------------------------------- files around them


def zipped(content: bytes) -> bytes:
    """What torch.save writes, with another pickle in it."""
    import torch

    file, hostile = io.BytesIO(), io.BytesIO()
    torch.save({"model": {"weight": torch.zeros(3)}}, file)
    with zipfile.ZipFile(file) as clean, zipfile.ZipFile(hostile, "w") as archive:
        for name in clean.namelist():
            archive.writestr(name, content if name.endswith("data.pkl") else clean.read(name))
    return hostile.getvalue()


def scripted(canary: Path) -> bytes:
    """An archive of TorchScript, whose constants are a pickle and whose code is code."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/constants.pkl", PICKLES["reduce"](canary))
        archive.writestr("x/data.pkl", PICKLES["reduce"](canary))
        archive.writestr("x/code/__torch__.py", opened(canary))
        archive.writestr("x/version", "3\n")
    return file.getvalue()


def old(canary: Path) -> bytes:
    """What torch.save wrote before it wrote archives."""
    import torch

    file = io.BytesIO()
    torch.save({"model": touching(canary)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def oldest(canary: Path) -> bytes:
    """What torch.save wrote at first."""
    parts = ("storages", "tensors", "pickle", "sys_info", "000000.jpg", "000000.cls", "000000.json", "000000.pickle")
    return tarred(dict.fromkeys(parts, PICKLES["reduce"](canary)))


def nested(canary: Path) -> bytes:
    return tarred({"000000.jpg": oldest(canary), "000000.cls": b"0", "../../x.pickle": oldest(canary)})


def array(canary: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([touching(canary)], dtype=object), allow_pickle=True)
    return file.getvalue()


def arrays(canary: Path) -> bytes:
    names = ("schema_version", "evidence_version", "suite", "ids", "labels", "classes", "cells", "prediction")
    file = io.BytesIO()
    objects = np.array([touching(canary)], dtype=object)
    np.savez(file, allow_pickle=True, **dict.fromkeys(names, objects))
    return file.getvalue()


def evaluated(canary: Path) -> bytes:
    """An array whose header is an expression."""
    header = f"{{'descr': {opened(canary)}, 'fortran_order': False, 'shape': (1,)}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0"


def extended(canary: Path) -> bytes:
    """A stream of arrow whose columns are of a type that is made by unpickling its description."""
    import pyarrow as pa

    described = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    described |= {b"ARROW:extension:metadata": PICKLES["reduce"](canary)}
    images = pa.array([{"bytes": b"x", "path": "x.jpg"}])
    fields = [pa.field("image", images.type, metadata=described), pa.field("label", pa.int64(), metadata=described)]
    stored = pa.record_batch([images, pa.array([0])], schema=pa.schema(fields, metadata=described))
    file = io.BytesIO()
    with pa.ipc.new_stream(file, stored.schema) as stream:
        stream.write_batch(stored)
    return file.getvalue()


def described(canary: Path) -> bytes:
    """Safetensors whose description asks for more than tensors."""
    call = {"__reduce__": ["os.system", shell(canary)], "pickle": PICKLES["reduce"](canary).hex()}
    entries = {"__metadata__": {name: json.dumps(value) for name, value in call.items()}}
    header = json.dumps(entries | {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


FILES: dict[str, Payload] = {
    "archive of torch": lambda canary: zipped(PICKLES["reduce"](canary)),
    "archive of TorchScript": scripted,
    "old file of torch": old,
    "oldest file of torch": oldest,
    "tar in a tar": nested,
    "array of objects of NumPy": array,
    "arrays of objects of NumPy": arrays,
    "header of NumPy": evaluated,
    "type of arrow": extended,
    "description of safetensors": described,
    "packed pickle": lambda canary: gzip.compress(PICKLES["reduce"](canary)),
    "joblib's": lambda canary: zlib.compress(PICKLES["reduce"](canary)),
}
PAYLOADS: dict[str, Payload] = {**PICKLES, **FILES}

# --------------------------------------------------------------------------- who reads them


def own(suffix: str, load: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """Who reads a file of a user."""

    def read(content: bytes, folder: Path) -> object:
        path = folder / f"own{suffix}"
        path.write_bytes(content)
        return load(path)

    return read


def small_network(path: Path) -> object:
    import torch

    from mae_bench.models.checkpoints import load_checkpoint

    return load_checkpoint(torch.nn.Linear(1, 3), path)


def by_name(path: Path) -> object:
    from mae_bench.models.checkpoints import pretrained

    return pretrained("mobilenetv3_small_050", path)


def masked_autoencoder(which: str) -> Callable[[Path], object]:
    def load(path: Path) -> object:
        from mae_bench.models import checkpoints

        return getattr(checkpoints, which)("base", [path])

    return load


def downloaded(content: bytes, folder: Path) -> object:
    """A file of the published name and the published hash."""
    import torch

    from mae_bench.models import checkpoints

    published = checkpoints.MAE_FINETUNED["base"]
    prefix = hashlib.md5(content).hexdigest()[:6]
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / published.name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "get_dir", lambda: str(folder))
        patch.setitem(
            checkpoints.MAE_FINETUNED,
            "base",
            checkpoints.Checkpoint(published.url, prefix, published.architecture),
        )
        return checkpoints.mae_finetuned("base")


def bundled(content: bytes, folder: Path) -> object:
    """Weights of the package, whose record knows their hash."""
    from mae_bench.models import zoo

    (folder / "mine.safetensors").write_bytes(content)
    (folder / "mine.json").write_text(json.dumps({"sha256": hashlib.sha256(content).hexdigest()}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "WEIGHTS", folder)
        return zoo.bundled("mine")


def cifar(name: str) -> Callable[[bytes, Path], object]:
    def read(content: bytes, folder: Path) -> object:
        from mae_bench.suites import suite_entry

        (folder / name).write_bytes(content)
        return suite_entry("cifar10").load(folder)

    return read


def corrupted(path: Path) -> object:
    from mae_bench.suites import cifar_c

    return cifar_c._array(path, (1,))


def outcomes(path: Path) -> object:
    from mae_bench.outcomes import Outcomes

    return Outcomes.load(path)


def evidence(path: Path) -> object:
    from mae_bench.evidence import Evidence

    return Evidence.load(path)


def idx(path: Path) -> object:
    from mae_bench.images import read_idx

    return read_idx(path)


def shard(layout: str, name: str) -> Callable[[bytes, Path], object]:
    def read(content: bytes, folder: Path) -> object:
        from mae_bench.suites import shards

        (folder / name).write_bytes(content)
        records = getattr(shards, layout)(folder)()
        return [record.image() for record in records]

    return read


def table_of_synsets(content: bytes, folder: Path) -> object:
    from mae_bench.suites.ground_truth import ground_truth

    (folder / "meta.mat").write_bytes(content)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n")
    return ground_truth([folder])


LOADERS: dict[str, Callable[[bytes, Path], object]] = {
    "a checkpoint": own(".pth", small_network),
    "a checkpoint called .safetensors": own(".safetensors", small_network),
    "timm's by name": own(".bin", by_name),
    "a fine-tuned masked autoencoder": own(".pth", masked_autoencoder("mae_finetuned")),
    "a pretrained masked autoencoder": own(".pth", masked_autoencoder("mae_pretrained")),
    "a download": downloaded,
    "bundled weights": bundled,
    "CIFAR's batches": cifar("test_batch"),
    "CIFAR's records": cifar("test_batch.bin"),
    "CIFAR-C": own(".npy", corrupted),
    "outcomes": own(".npz", outcomes),
    "evidence": own(".npz", evidence),
    "idx": own(".gz", idx),
    "parquet": shard("parquet", "validation-00000-of-00001.parquet"),
    "arrow": shard("arrow", "imagenet-1k-validation-00000-of-00001.arrow"),
    "a tar": shard("webdataset", "imagenet1k-validation-00.tar"),
    "the devkit's table": table_of_synsets,
}


@pytest.fixture
def extension() -> Iterator[None]:
    """``os.system`` has a number."""
    copyreg.add_extension("os", "system", EXTENSION)
    yield
    copyreg.remove_extension("os", "system", EXTENSION)


HARMLESS = {"persistent", "persistent name", "in a scalar"}
"""What the unpickler leaves to others to make."""


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", PICKLES)
def test_payload_touches_its_file_in_the_hands_of_the_unpickler(name: str, tmp_path: Path) -> None:
    with contextlib.suppress(Exception):
        pickle.loads(PICKLES[name](tmp_path / "canary"), encoding="bytes")
    assert (tmp_path / "canary").exists() == (name not in HARMLESS)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("count", [8, pytest.param(len(PAYLOADS), marks=pytest.mark.faults)])
def test_no_payload_runs_whoever_reads_it(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: Callable[[Injection], None]
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("MAE_BENCH_CACHE", str(tmp_path / "cache"))
    canary, seen = tmp_path / "canary", Counter[str]()
    for name in (list(PAYLOADS)[i * len(PAYLOADS) // count] for i in range(count)):
        content = PAYLOADS[name](canary)
        for reader, load in LOADERS.items():
            folder = tmp_path / "folder"
            folder.mkdir()
            try:
                load(content, folder)
                seen["read"] += 1
            except BenchError as error:
                seen["refused"] += 1
                seen["unnamed"] += str(folder) not in str(error)
            seen["run"] += canary.exists()
            assert not canary.exists(), (name, reader)
            shutil.rmtree(folder)
    assert seen["read"] == seen["unnamed"] == 0
    journal(
        Injection(
            failure="pickles",
            what=f"programs in place of weights or arrays, {len(LOADERS)} readers each",
            count=seen["refused"] + seen["read"],
            behaviour=f"{seen['refused']} refused by name, {seen['run']} run, whatever the environment allows",
            silent=seen["run"],
        )
    )
