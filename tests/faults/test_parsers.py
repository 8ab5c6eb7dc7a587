"""Whatever is in a file: it is read for what it means, or refused with the error that is documented, and never in
more memory than the reader of a whole file needs.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faults.prepared import Interpreter
from faults.reliability import Injection
from mae_bench.cells import Cell, Level
from mae_bench.errors import BenchError
from mae_bench.images import ImageError
from mae_bench.models import ModelError
from mae_bench.suites import SuiteError

Make = Callable[[Path], Path]


@dataclass(frozen=True)
class Format:
    """A kind of file: ``valid`` puts one into an empty folder, ``read`` gives what a file means, or ends in ``error``.
    Damage never means anything else, but where ``shown`` says how that shows. ``times`` is its share of the examples.
    """

    valid: Make
    read: Callable[[Path], object]
    error: type[Exception] = BenchError
    shown: str = ""
    times: float = 1.0

    @property
    def checked(self) -> bool:
        return not self.shown


# --------------------------------------------------------------------------- what is done to files

HOSTILE = [
    *(
        b"",
        b"\0",
        b"\n",
        b'"',
        b"'",
        b",",
        b"-1",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"null",
        b"true",
        b"1e999",
        b"0.5",
    ),
    *(
        b"9" * 30,
        b"9" * 5000,
        b"[" * 20_000,
        b'{"a":' * 20_000,
        b"(" * 3000,
        b"-" * 3000,
        b"[]",
        b"{}",
        b'"x"',
        b"[[1]]",
    ),
    *(b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 8, b"\x80" + b"\0" * 7, b"\x7f\xff\xff\xff", b"\xed\xa0\x80"),
    *("\u202e".encode(), b"\\ud800", b"../../x", b"=1+1", b"\x1f\x8b", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x04\x95"),
]
"""Numbers, texts, ends and beginnings that parsers stumble over."""

PLACES = st.integers(0, 2**32 - 1)
PIECES = st.integers(0, len(HOSTILE) - 1) | st.binary(min_size=1, max_size=16)
"""Some of them by number, so that an example can be printed."""
EDITS = st.one_of(
    st.tuples(st.just("flip"), PLACES, st.integers(0, 7)),
    st.tuples(st.just("cut"), PLACES, st.none()),
    st.tuples(st.just("delete"), PLACES, st.integers(1, 64)),
    st.tuples(st.just("insert"), PLACES, PIECES),
    st.tuples(st.just("overwrite"), PLACES, PIECES),
    st.tuples(st.just("token"), PLACES, PIECES),
    st.tuples(st.just("splice"), PLACES, PLACES),
)
Edit = tuple[str, int, Any]
CHANGES = st.lists(EDITS, min_size=1, max_size=3) | st.binary(max_size=300)
"""Edits of a valid file, or anything in its place."""
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+.\w]+')


def changed(content: bytes, change: list[Edit] | bytes) -> bytes:
    if isinstance(change, bytes):
        return change
    for edit in change:
        content = edited(content, *edit)
    return content


def edited(content: bytes, what: str, place: int, how: Any) -> bytes:
    at = place % (len(content) + 1)
    if what == "flip":
        at = place % max(1, len(content))
        return content[:at] + bytes(byte ^ (1 << how) for byte in content[at : at + 1]) + content[at + 1 :]
    if what == "cut":
        return content[:at]
    if what == "delete":
        return content[:at] + content[at + how :]
    if what == "splice":
        start = how % (len(content) + 1)
        return content[:at] + content[start : start + 200] + content[at:]
    piece: bytes = HOSTILE[how] if isinstance(how, int) else how
    if what == "insert":
        return content[:at] + piece + content[at:]
    if what == "overwrite":
        return content[:at] + piece + content[at + len(piece) :]
    tokens = list(TOKEN.finditer(content[:50_000]))
    start, end = tokens[place % len(tokens)].span() if tokens else (0, 0)
    return content[:start] + piece + content[end:]


# --------------------------------------------------------------------------- kinds of files


def text(content: str, name: str = "text") -> Make:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return write


def level(path: Path) -> object:
    content = path.read_text(errors="replace")
    found = Level.parse(content)
    assert str(found) == content
    return found


def cell(path: Path) -> object:
    content = path.read_text(errors="replace")
    found = Cell.parse(content)
    assert found.id == content
    return found


def write_idx(folder: Path) -> Path:
    path = folder / "images.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\x05" * 3 + bytes(range(125)), mtime=0))
    return path


def idx(path: Path) -> object:
    from mae_bench.images import read_idx

    return read_idx(path).tolist()


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3072), dtype=np.uint8)


def write_batch(folder: Path) -> Path:
    from references.python2_batch import python2_batch

    path = folder / "test_batch"
    path.write_bytes(python2_batch(pixels(3), [0, 5, 9], [b"a.png", b"b.png", b"c.png"]))
    return path


def write_pickle(protocol: int) -> Make:
    def write(folder: Path) -> Path:
        path = folder / "test_batch"
        path.write_bytes(pickle.dumps({b"data": pixels(2), b"labels": [0, 9]}, protocol=protocol))
        return path

    return write


def write_records(folder: Path) -> Path:
    path = folder / "test_batch.bin"
    path.write_bytes(b"".join(bytes([i]) + row.tobytes() for i, row in enumerate(pixels(3))))
    return path


class Arrays(pickle.Unpickler):
    """Python's own unpickler, as the reference; what it may make is no more than an array."""

    def find_class(self, module: str, name: str) -> Any:
        assert f"{module}.{name}" in (
            "numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct", "_codecs.encode",
        )  # fmt: skip
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def unpickled(path: Path) -> dict[bytes, Any] | None:
    """None where the unpickler minds what does not matter, such as the length of a frame."""
    try:
        found = Arrays(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except (pickle.UnpicklingError, ValueError):
        return None
    return {key if isinstance(key, bytes) else key.encode("latin-1"): value for key, value in found.items()}


def batch(path: Path) -> object:
    from mae_bench.suites.batches import read_batches

    images, labels = read_batches([path])
    assert images.dtype == np.uint8
    assert images.shape == (len(labels), 3, 32, 32)
    assert 0 <= labels.min() <= labels.max() <= 9
    reference = None if path.suffix == ".bin" else unpickled(path)
    if reference is not None:
        np.testing.assert_array_equal(images.reshape(-1, 3072), reference[b"data"])
        assert labels.tolist() == reference[b"labels"]
    return images.tobytes(), labels.tolist()


def write_npy(kind: type, shape: tuple[int, ...]) -> Make:
    def write(folder: Path) -> Path:
        np.save(folder / "fog.npy", np.arange(np.prod(shape)).reshape(shape).astype(kind))
        return folder / "fog.npy"

    return write


def npy(shape: tuple[int, ...]) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        from mae_bench.suites import cifar_c

        found = cifar_c._array(path, shape)
        assert found.shape == shape
        return found.tobytes()

    return read


def write_weights(folder: Path) -> Path:
    import torch

    from mae_bench.models.zoo import ARCHITECTURES, save_weights

    torch.manual_seed(0)
    return save_weights(ARCHITECTURES["resnet_28"].build(3), "mine", "resnet_28", folder)


def weights(path: Path) -> object:
    from mae_bench.models.zoo import load_weights

    return {name: value.shape for name, value in load_weights(path).state_dict().items()}


def write_checkpoint(suffix: str, legacy: bool = False) -> Make:
    def write(folder: Path) -> Path:
        import torch
        from safetensors.torch import save_file

        path = folder / f"own{suffix}"
        state = network().state_dict()
        if suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save({"model": state, "epoch": 3}, path, _use_new_zipfile_serialization=not legacy)
        return path

    return write


def network() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))


def checkpoint(path: Path) -> object:
    from mae_bench.models.checkpoints import load_checkpoint

    model = load_checkpoint(network(), path)
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def write_card(folder: Path) -> Path:
    from mae_bench.models import zoo

    for suffix in ("safetensors", "json"):
        shutil.copy(zoo.WEIGHTS / f"cnn_s0.{suffix}", folder)
    return folder / "cnn_s0.json"


def write_bundled(folder: Path) -> Path:
    return write_card(folder).with_suffix(".safetensors")


def with_weights_of(path: Path, ask: Callable[[], object]) -> object:
    from mae_bench.models import zoo

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "WEIGHTS", path.parent)
        return ask()


def card(path: Path) -> object:
    from mae_bench.models import zoo

    return with_weights_of(path, zoo.cards)


def bundled(path: Path) -> object:
    from mae_bench.models import zoo

    model = with_weights_of(path, lambda: zoo.bundled(path.stem))
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}  # type: ignore[attr-defined]


def synsets() -> tuple[str, ...]:
    from mae_bench.suites.synsets import published_synsets

    return published_synsets("imagenet")


def write_kaggle(folder: Path) -> Path:
    rows = "".join(f"ILSVRC2012_val_{i:08},{synsets()[i]} 1 2 3 4\n" for i in range(40))
    return text(f"ImageId,PredictionString\n{rows}", "LOC_val_solution.csv")(folder)


def write_caffe(folder: Path) -> Path:
    return text("".join(f"ILSVRC2012_val_{i:08}.JPEG {i}\n" for i in range(40)), "val.txt")(folder)


def write_list(folder: Path) -> Path:
    return text(f"{synsets()[7]}\n" * 50_000, "imagenet_2012_validation_synset_labels.txt")(folder)


def write_devkit(folder: Path) -> Path:
    text("7\n" * 50_000, "ILSVRC2012_validation_ground_truth.txt")(folder)
    from scipy.io import savemat

    rows = [(number, synset, 0) for number, synset in enumerate(synsets(), start=1)]
    table = np.array(rows, dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    savemat(folder / "meta.mat", {"synsets": table[:, None]})
    return folder / "meta.mat"


def truth(path: Path) -> object:
    from mae_bench.suites.ground_truth import ground_truth

    found = ground_truth([path.parent])
    assert found is not None
    assert set(found[1].values()) <= set(synsets())
    return found[1]


PHOTOGRAPHS = [(f"ILSVRC2012_val_{i:08}.JPEG", i, bytes([i]) * 50) for i in range(6)]


def table() -> Any:
    import pyarrow as pa

    images = [{"bytes": content, "path": name} for name, _, content in PHOTOGRAPHS]
    return pa.table({"image": images, "label": [label for _, label, _ in PHOTOGRAPHS]})


def write_parquet(folder: Path) -> Path:
    from pyarrow.parquet import write_table

    path = folder / "validation-00000-of-00001.parquet"
    write_table(table(), path, row_group_size=3)
    return path


def write_arrow(folder: Path) -> Path:
    import pyarrow as pa

    path = folder / "imagenet-1k-validation-00000-of-00001.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table().schema) as stream:
        stream.write_table(table(), max_chunksize=3)
    return path


def write_tar(folder: Path) -> Path:
    import tarfile

    path = folder / "imagenet1k-validation-00.tar"
    with tarfile.open(path, "w") as archive:
        for name, label, content in PHOTOGRAPHS:
            described = json.dumps({"filename": name, "label": label}).encode()
            for suffix, part in (("jpg", content), ("cls", str(label).encode()), ("json", described)):
                member = tarfile.TarInfo(f"{label:06}.{suffix}")
                member.size = len(part)
                archive.addfile(member, io.BytesIO(part))
    return path


def shard(layout: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        from mae_bench.images import content_hash
        from mae_bench.suites import shards

        reader = getattr(shards, layout)(path.parent)
        assert reader is not None
        records = reader()
        found = []
        for record in records:
            content = record.content()
            assert content_hash(content) == record.hash
            assert record.synset in synsets()
            found.append((record.path, record.synset, content))
        return found

    return read


# --------------------------------------------------------------------------- results


def result() -> Any:
    """A finished cell of four images."""
    from dataclasses import fields

    from mae_bench.evaluation import CellResult
    from mae_bench.rows import ResultRow

    made_up = {"str": "x", "int": 4, "float": 0.5}
    record: dict[str, Any] = {
        field.name: made_up.get(str(field.type).removesuffix(" | None")) for field in fields(ResultRow)
    }
    record |= {"model": "mae", "condition": "random_patch-0.50", "degradation": "random_patch", "status": "ok"}
    del record["schema_version"]
    indicator = {"indicator": "alignment", "layer": 1, "head": None, "token": "cls", "value": 0.5, "low": 0.25}
    indicators = [indicator | {"high": 0.75, "reason": None}]
    return CellResult(ResultRow(**record), np.array([0, 1, 2, -3]), indicators, {"alignment": [0.5, 1.5]})


CELL = Cell.parse("mae-random_patch-0.50")


def write_cell(folder: Path) -> Path:
    from mae_bench.store import RunDirectory

    RunDirectory(folder).write_cell(result())
    return RunDirectory(folder).cell_path(CELL)


def finished(path: Path) -> object:
    """What can be read could have been written, and is then read the same."""
    from mae_bench.store import RunDirectory

    run, again = RunDirectory(path.parents[2]), RunDirectory(path.parents[3] / "again")
    found = run.read_cell(CELL)
    assert found is not None
    again.write_cell(found)
    (written,) = again.cells()
    shutil.rmtree(again.path)
    assert written.to_dict() == found.to_dict()
    return found.to_dict()


def write_row(folder: Path) -> Path:
    return text(json.dumps(result().row.to_dict()))(folder)


def row(path: Path) -> object:
    from mae_bench.rows import ResultRow

    try:
        record = json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if not isinstance(record, dict):
        raise ValueError("no row at all")
    found = ResultRow.from_dict(record)
    assert ResultRow.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    return found


def write_rows(folder: Path) -> Path:
    from mae_bench.baseline import table

    return text(table([result().row]), "cells.csv")(folder)


def rows(path: Path) -> object:
    from mae_bench.baseline import read_rows, table

    found = read_rows(path)
    (path.parent / "again.csv").write_text(table(found))
    assert len(read_rows(path.parent / "again.csv")) == len(found)
    return found


def write_representation(folder: Path) -> Path:
    from mae_bench.representation import Representation
    from mae_bench.store import RunDirectory

    record = {"indicator": "fisher_ratio", "layer": 1, "head": None, "token": "cls", "value": 0.5, "low": None}
    one = Representation(
        {"suite": "x", "weights_hash": "w"}, [record | {"high": None, "reason": None}], {"a|1||cls": [0.5] * 10}
    )
    RunDirectory(folder).write_representation(CELL, one)
    return RunDirectory(folder).representation_path(CELL)


def representation(path: Path) -> object:
    from mae_bench.store import RunDirectory

    found = RunDirectory(path.parents[2]).read_representation(CELL)
    assert found is not None
    return found.to_dict()


def write_outcomes(folder: Path) -> Path:
    from mae_bench.labelled_images import LabelledImages
    from mae_bench.outcomes import Outcomes

    Outcomes.of([result()], LabelledImages.of(list("abcd"), np.arange(4), ["p", "q", "r", "s"])).save(
        folder / "outcomes.npz"
    )
    return folder / "outcomes.npz"


def outcomes(path: Path) -> object:
    from mae_bench.outcomes import Outcomes

    return Outcomes.load(path).to_bytes()


def write_evidence(folder: Path) -> Path:
    from mae_bench.evidence import Evidence, Training, Trajectories

    values = {"mae": {"clean-0.00": {"a|1||cls": (0.5, 0.25, np.nan)}}}
    along = Trajectories(4, {"mae": {0.5: {"clean-0.00": (3,)}}})
    evidence = Evidence("x", {"mae": Training("mae_ft", 0, "w")}, values, trajectories=along)
    (folder / "evidence.npz").write_bytes(evidence.to_bytes())
    return folder / "evidence.npz"


def evidence(path: Path) -> object:
    from mae_bench.evidence import Evidence

    return Evidence.load(path).to_bytes()


def write_model(folder: Path) -> Path:
    from mae_bench.store import RunDirectory

    record = {"name": "mae", "arm": "mae_ft", "training_seed": 0, "head": True, "weights_hash": "w", "parameters": 1}
    RunDirectory(folder).write_model_record(record)
    return RunDirectory(folder).model_path("mae")


def write_images(folder: Path) -> Path:
    from mae_bench.labelled_images import LabelledImages, first_copies
    from mae_bench.store import RunDirectory

    ids = ["a-0", "b-0", "a-1"]
    RunDirectory(folder).write_images(LabelledImages(ids, np.array([0, 1, 0]), ["p", "q"], first_copies(ids)))
    return folder / "images.json"


def write_plan(folder: Path) -> Path:
    from mae_bench.store import RunDirectory

    RunDirectory(folder).write_plan([CELL.id], ["mae-clean-0.00"])
    return folder / "plan.json"


def images(path: Path) -> object:
    from mae_bench.store import RunDirectory

    found = RunDirectory(path.parent).images()
    assert found is not None
    return found.to_dict()


def of_run(question: str, depth: int = 0) -> Callable[[Path], object]:
    def ask(path: Path) -> object:
        from mae_bench.store import RunDirectory

        return getattr(RunDirectory(path.parents[depth]), question)()

    return ask


def write_history(folder: Path) -> Path:
    from dataclasses import fields

    from mae_bench.history import Update

    of_kind = {"str": "x", "int": "3"}
    lines = [[field.name for field in fields(Update)], [of_kind[str(field.type)] for field in fields(Update)]]
    return text("".join(",".join(line) + "\n" for line in lines), "history.csv")(folder)


def history(path: Path) -> object:
    from mae_bench.history import HISTORY, history_of

    assert path.name == HISTORY
    return history_of(path.parent)


def write_claims(folder: Path) -> Path:
    shutil.copy(Path(__file__).parents[2] / "results" / "fashion_mnist" / "claims.csv", folder)
    return folder / "claims.csv"


def claims(path: Path) -> object:
    from mae_bench.claims import stored_verdicts

    found = stored_verdicts(path.read_text(errors="replace"))
    assert all(isinstance(verdict, str) for verdict in found.values())
    return found


def write_index(folder: Path) -> Path:
    (folder / "image.jpg").write_bytes(b"x")
    os.utime(folder / "image.jpg", (1, 1))
    index(folder.parent / "cache" / "index" / "x")
    (path,) = (folder.parent / "cache" / "index").glob("*.index")
    return path


def index(path: Path) -> object:
    """Answers that are asked anew where they were lost."""
    from mae_bench.suites.index import remembered

    folder = path.parents[2] / "files"
    return remembered("length", folder, [folder / "image.jpg"], lambda file: len(file.read_bytes()))


IMAGES, WEIGHTS = "under another hash of the set of images", "under another hash of weights"
FORMATS: dict[str, Format] = {
    "finished cell": Format(write_cell, finished, times=0.5),
    "representation": Format(write_representation, representation),
    "row": Format(write_row, row, ValueError, "as another row"),
    "table of rows": Format(write_rows, rows, shown="under another hash than the history of the baseline has"),
    "history of a baseline": Format(write_history, history, shown="as another line to be read in a diff"),
    "outcomes": Format(write_outcomes, outcomes),
    "evidence": Format(write_evidence, evidence),
    "model of a run": Format(write_model, of_run("models", 1), times=0.5),
    "images of a run": Format(write_images, images),
    "plan of a run": Format(write_plan, of_run("plan")),
    "index of files": Format(write_index, index, times=0.2),
    "claims": Format(write_claims, claims, shown="as another line to be read in a diff", times=0.3),
    "level": Format(text("0.50"), level, ValueError, "as another level"),
    "severity": Format(text("s2.50"), level, ValueError, "as another level"),
    "cell": Format(text("mae_ft_s0-random_patch-0.50"), cell, ValueError, "as another cell"),
    "idx": Format(write_idx, idx, ImageError),
    "batch of Python 2": Format(write_batch, batch, SuiteError, IMAGES),
    "batch of protocol 0": Format(write_pickle(0), batch, SuiteError, IMAGES, times=0.3),
    "batch of protocol 4": Format(write_pickle(4), batch, SuiteError, IMAGES, times=0.5),
    "batch of records": Format(write_records, batch, SuiteError, IMAGES),
    "corrupted images": Format(
        write_npy(np.uint8, (10, 2, 2, 3)), npy((10, 2, 2, 3)), SuiteError, "under another fingerprint"
    ),
    "corrupted labels": Format(
        write_npy(np.int64, (10,)), npy((10,)), SuiteError, "as others than the clean images have"
    ),
    "weights": Format(write_weights, weights, ModelError, WEIGHTS, times=0.1),
    "bundled weights": Format(write_bundled, bundled, ModelError, times=0.2),
    "model card": Format(write_card, card, ModelError, "in the list of models", times=0.5),
    "checkpoint": Format(write_checkpoint(".pth"), checkpoint, ModelError, times=0.3),
    "old checkpoint": Format(write_checkpoint(".pth", legacy=True), checkpoint, ModelError, WEIGHTS, times=0.2),
    "safetensors": Format(write_checkpoint(".safetensors"), checkpoint, ModelError, WEIGHTS, times=0.5),
    "Kaggle's classes": Format(write_kaggle, truth, SuiteError, IMAGES),
    "Caffe's classes": Format(write_caffe, truth, SuiteError, IMAGES),
    "list of synsets": Format(write_list, truth, SuiteError, IMAGES, times=0.1),
    "table of synsets": Format(write_devkit, truth, SuiteError, IMAGES, times=0.1),
    "parquet": Format(write_parquet, shard("parquet"), SuiteError, IMAGES, times=0.3),
    "arrow": Format(write_arrow, shard("arrow"), SuiteError, IMAGES, times=0.3),
    "tar": Format(write_tar, shard("webdataset"), SuiteError, IMAGES, times=0.5),
}


@pytest.mark.parametrize("count", [40, pytest.param(1500, marks=pytest.mark.faults)])
@pytest.mark.parametrize("name", FORMATS)
def test_file_is_read_for_what_it_means_or_refused(
    name: str,
    count: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    journal: Callable[[Injection], None],
) -> None:
    kind = FORMATS[name]
    monkeypatch.setenv("MAE_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    path = kind.valid(tmp_path / "files")
    valid, meant = path.read_bytes(), kind.read(path)
    seen: Counter[str] = Counter()

    @settings(max_examples=max(4, int(count * kind.times)), derandomize=True, database=None)
    @given(CHANGES)
    def law(change: list[Edit] | bytes) -> None:
        path.write_bytes(changed(valid, change))
        try:
            found = kind.read(path)
        except kind.error:
            seen["refused"] += 1
        else:
            assert found == meant or not kind.checked
            seen["the same" if found == meant else "another"] += 1

    law()
    journal(
        Injection(
            failure="parsers",
            what=f"{name}: bits, bytes, tokens and ends changed",
            count=seen["refused"] + seen["the same"] + seen["another"],
            behaviour=f"{seen['refused']} refused, {seen['the same']} read as before"
            + (f", {seen['another']} {kind.shown}" if seen["another"] else ""),
        )
    )


# --------------------------------------------------------------------------- files that say they are enormous

ENORMOUS = 10**12


def of_numpy(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(100)


def archived(names: Sequence[str], content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def packed_arrays() -> bytes:
    """An archive whose contents say that they unpack to much."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema_version.npy", of_numpy((1 << 20,)) + bytes(1 << 20))
        archive.filelist[0].file_size = ENORMOUS
    return file.getvalue()


def old_storage() -> bytes:
    """A tensor of many numbers, as torch wrote them before it wrote archives."""
    import torch

    file = io.BytesIO()
    torch.save({"model": {"weight": torch.zeros(1234)}}, file, _use_new_zipfile_serialization=False)
    few, many = b"M\xd2\x04", b"\x8a\x06" + ENORMOUS.to_bytes(6, "little")
    return file.getvalue().replace(few, many)


def packed_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in (("x/data.pkl", bytes(1 << 28)), ("x/version", b"3"), ("x/byteorder", b"little")):
            archive.writestr(name, content)
    return file.getvalue()


def of_safetensors(shape: list[int], end: int = 4, length: int | None = None) -> bytes:
    header = json.dumps({"0.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(4)


def of_tar(kind: bytes, size: int, times: int = 1) -> bytes:
    import tarfile

    member = tarfile.TarInfo("000000.jpg")
    member.type = kind
    header = bytearray(member.tobuf())
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:512]))
    return (bytes(header) + bytes(512 if size == 512 else 0)) * times + bytes(1024)


def of_matlab(nested: int = 0, zeros: int = 0) -> bytes:
    """A table of cells in cells, or of a packed array of zeros."""
    import zlib
    from struct import pack

    def element(kind: int, content: bytes) -> bytes:
        return pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)

    def matrix(kind: int, content: bytes, name: bytes = b"", columns: int = 1) -> bytes:
        flags = element(6, pack("<II", kind, 0)) + element(5, pack("<ii", 1, columns)) + element(1, name)
        return element(14, flags + content)

    found = matrix(9, element(2, bytes(zeros)), b"synsets", zeros) if zeros else matrix(1, b"")
    for depth in range(nested):
        found = matrix(1, found, b"synsets" if depth == nested - 1 else b"")
    return b"MATLAB 5.0".ljust(124) + b"\0\1IM" + element(15, zlib.compress(found, 1))


def of_parquet() -> bytes:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    file = io.BytesIO()
    packed = pa.table({"image": [{"bytes": bytes(1 << 28), "path": "x"}], "label": [0]})
    write_table(packed, file, compression="zstd", use_dictionary=False)
    return file.getvalue()


def of_arrow() -> bytes:
    """A packed stream whose buffers say that they unpack to much."""
    import pyarrow as pa

    file, batch = io.BytesIO(), pa.record_batch({"image": [{"bytes": bytes(1 << 16), "path": "x"}], "label": [0]})
    with pa.ipc.new_stream(file, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_batch(batch)
    small, enormous = ((1 << 16).to_bytes(8, "little"), ENORMOUS.to_bytes(8, "little"))
    assert small in file.getvalue()
    return file.getvalue().replace(small, enormous)


OUTCOMES = (
    "schema_version",
    "suite",
    "ids",
    "labels",
    "classes",
    "cells",
    "prediction",
    "block_sum_names",
    "block_sums",
)
EVIDENCE = ("evidence_version", "suite", "trained", "arms", "seeds", "weights")
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "array": ("corrupted images", lambda: of_numpy((ENORMOUS,))),
    "array of no bytes": ("corrupted images", lambda: of_numpy((ENORMOUS, 0))),
    "array beyond any integer": ("corrupted images", lambda: of_numpy((2**63, 2**63))),
    "archive of arrays": ("outcomes", lambda: archived(OUTCOMES, of_numpy((ENORMOUS,)))),
    "archive of long texts": ("outcomes", lambda: archived(OUTCOMES, of_numpy((), f"<U{2**31 - 1}"))),
    "archive of evidence": ("evidence", lambda: archived(EVIDENCE, of_numpy((ENORMOUS,)))),
    "archive of packed zeros": ("outcomes", packed_arrays),
    "idx": ("idx", lambda: gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12 + bytes(100))),
    "idx of packed zeros": ("idx", lambda: gzip.compress(b"\0\0\x08\x01\0\0\0\x05" + bytes(1 << 28), 1)),
    "pickled bytes": ("batch of Python 2", lambda: b"\x8e" + (2**60).to_bytes(8, "little") + b"x."),
    "pickled text": ("batch of Python 2", lambda: b"T" + (2**31 - 1).to_bytes(4, "little") + b"x."),
    "pickled number": ("batch of Python 2", lambda: b"\x8b" + (2**31 - 1).to_bytes(4, "little") + b"x."),
    "pickled memo": ("batch of Python 2", lambda: b"Nr\xff\xff\xff\xff."),
    "pickled nest": ("batch of Python 2", lambda: b"(" * 10**6 + b"l" * 10**6 + b"."),
    "packed checkpoint": ("checkpoint", packed_archive),
    "old checkpoint": ("old checkpoint", old_storage),
    "header of safetensors": ("safetensors", lambda: of_safetensors([1], length=2**60)),
    "tensor of safetensors": ("safetensors", lambda: of_safetensors([ENORMOUS], 4 * ENORMOUS)),
    "tensor of no bytes": ("safetensors", lambda: of_safetensors([ENORMOUS, 0], 0) [:-4]),
    "head of no bytes": ("weights", lambda: of_safetensors([ENORMOUS, 0], 0)[:-4]),
    "member of a tar": ("tar", lambda: of_tar(b"0", 2**60)),
    "name in a tar": ("tar", lambda: of_tar(b"L", 2**60)),
    "names of names in a tar": ("tar", lambda: of_tar(b"L", 512, 5000)),
    "notes on notes in a tar": ("tar", lambda: of_tar(b"x", 512, 5000)),
    "packed parquet": ("parquet", of_parquet),
    "buffer of arrow": ("arrow", of_arrow),
    "table in tables": ("table of synsets", lambda: of_matlab(nested=100_000)),
    "packed table": ("table of synsets", lambda: of_matlab(zeros=1 << 28)),
}  # fmt: skip

READ = """
import os, resource, sys
from pathlib import Path

from faults.test_parsers import FORMATS

kind, path = FORMATS[{name!r}], Path({path!r})
kind.read(path)  # whose memory is that of imports
os.replace(path.with_name("enormous"), path)
Path("/proc/self/clear_refs").write_text("5")


def kilobytes(name):
    return int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0])


before, seconds = kilobytes("VmRSS"), resource.getrusage(resource.RUSAGE_SELF).ru_utime
resource.setrlimit(resource.RLIMIT_AS, (kilobytes("VmSize") * 1024 + (1 << 30),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 30,) * 2)
try:
    kind.read(path)
    print("read")
except kind.error as error:
    print("refused")
print((kilobytes("VmHWM") - before) >> 10)
"""
MEGABYTES = 200


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux")
@pytest.mark.parametrize("count", [2, pytest.param(len(BOMBS), marks=pytest.mark.faults)])
def test_enormous_is_not_made_room_for(
    count: int, interpreter: Interpreter, tmp_path: Path, journal: Callable[[Injection], None]
) -> None:
    seen: Counter[str] = Counter()
    most = 0
    for what in (list(BOMBS)[i * len(BOMBS) // count] for i in range(count)):
        name, make = BOMBS[what]
        folder = tmp_path / what
        folder.mkdir()
        path = FORMATS[name].valid(folder)
        path.with_name("enormous").write_bytes(make())
        code = READ.format(name=name, path=str(path))
        with tempfile.TemporaryFile("w+") as output:
            status = interpreter.start(code, folder, output, {"MAE_BENCH_CACHE": str(folder / "cache")}).wait()
            output.seek(0)
            said = output.read()
        assert status == 0, f"{what}: {status} {said}"
        verdict, grown = said.split()[-2:]
        assert int(grown) < MEGABYTES, f"{what}: {grown} MB"
        assert verdict == "refused", what
        most = max(most, int(grown))
        seen[verdict] += 1
    journal(
        Injection(
            failure="parsers",
            what="files that declare, or unpack to, more than there is memory",
            count=count,
            behaviour=f"{seen['refused']} refused, in at most {most} MB beyond what was there before",
        )
    )
