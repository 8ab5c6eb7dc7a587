"""A set is incomplete: what was not evaluated shows in the row, and a part is never ranked and never a baseline."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from faults.reliability import Injection
from mae_bench.baseline import Baseline, updated
from mae_bench.cells import Level
from mae_bench.errors import BenchError
from mae_bench.evaluation import Evaluation
from mae_bench.history import BaselineError
from mae_bench.labelled_images import LabelledImages
from mae_bench.leaderboard import Leaderboard, default_conditions
from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.outcomes import Outcomes
from mae_bench.rows import CellResult
from mae_bench.settings import Settings
from mae_bench.suites import Suite, suite_entry
from mae_bench.suites.synsets import published_synsets

pytestmark = pytest.mark.usefixtures("one_thread")

Journal = Callable[[Injection], None]
Build = Callable[..., Any]

CLEAN, BLURRED = ("clean", Level(0.0)), ("gaussian_blur", Level(1.0))
SYNSETS = published_synsets("imagenet")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CI", raising=False)


class Mean(nn.Module):
    """Answers by the mean of an image; ``answer`` may make something else of its logits."""

    def __init__(
        self, outputs: int, channels: int = 3, answer: Callable[[Tensor], Tensor] = lambda logits: logits
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(channels, outputs, generator=generator))
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(images.mean((2, 3)) @ self.weight)


def evaluation(suite: Suite, scratch: Path, network: nn.Module | None = None, **settings: Any) -> Evaluation:
    outputs = 1000 if suite.entry.synsets else len(suite.manifest.classes)
    network = network or Mean(outputs, suite.channels)
    model = Classifier(
        network,
        mean=(0.5,) * suite.channels,
        std=(0.5,) * suite.channels,
        input_size=(suite.channels, 8, 8),
        crop_pct=1.0,
    )
    loaded = Pool("cpu").load(ModelEntry("mean"), lambda: model)
    return Evaluation(suite, loaded, Settings(**settings), scratch, "run")


def encoded(shown: int, number: int, suffix: str = "JPEG", side: int = 8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(1000 * shown + number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, suffix)
    return buffer.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# --------------------------------------------------------------------------- fewer images than there are


def limited(data: Path, random_suite: Build) -> Evaluation:
    return evaluation(random_suite(600), data, limit=1)


def folders_that_lack_an_image(data: Path, _: Build) -> Evaluation:
    for shown, synset in enumerate(SYNSETS[:3]):
        for number in range(4 - (shown == 2)):
            put(data / synset / f"{number}.JPEG", encoded(shown, number))
    return evaluation(suite_entry("imagenet").load(data), data.parent / "scratch")


def folders_that_lack_a_class(data: Path, _: Build) -> Evaluation:
    for shown, synset in enumerate(published_synsets("imagenet_a")[:199]):
        put(data / synset / "0.JPEG", encoded(shown, 0))
    return evaluation(suite_entry("imagenet_a").load(data), data.parent / "scratch")


def numbers_that_lack_some(data: Path, _: Build) -> Evaluation:
    lines = []
    for number in range(1, 8):
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        lines.append(f"{name} {number % 3}\n")
        if number != 4:
            put(data / name, encoded(number % 3, number))
    (data / "val.txt").write_text("".join(lines))
    return evaluation(suite_entry("imagenet").load(data), data.parent / "scratch")


def table_of_fewer_rows(data: Path, _: Build) -> Evaluation:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    data.mkdir(parents=True)
    images = [{"bytes": encoded(number % 3, number), "path": f"{number}.JPEG"} for number in range(6)]
    table = pa.table({"image": images, "label": [number % 3 for number in range(6)]})
    write_table(table.slice(0, 5), data / "validation-00000-of-00001.parquet")
    return evaluation(suite_entry("imagenet").load(data), data.parent / "scratch")


def tar_of_fewer_images(data: Path, _: Build) -> Evaluation:
    data.mkdir(parents=True)
    with tarfile.open(data / "imagenet1k-validation-00.tar", "w") as archive:
        for number in range(5):
            for suffix, content in (("jpg", encoded(number % 3, number)), ("cls", str(number % 3).encode())):
                member = tarfile.TarInfo(f"{number:05}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return evaluation(suite_entry("imagenet").load(data), data.parent / "scratch")


def cifar_that_lacks_an_image(data: Path, _: Build) -> Evaluation:
    from mae_bench.suites.cifar10 import CLASSES

    for shown, name in enumerate(CLASSES):
        for number in range(2 - (shown == 9)):
            put(data / "test" / name / f"{number}.png", encoded(shown, number, "PNG", 32))
    return evaluation(suite_entry("cifar10").load(data), data.parent / "scratch")


def cifar_of_a_short_batch(data: Path, _: Build) -> Evaluation:
    records = np.random.default_rng(0).integers(0, 10, (25, 3073), dtype=np.uint8)
    put(data / "cifar-10-batches-bin" / "test_batch.bin", records.tobytes())
    return evaluation(suite_entry("cifar10").load(data), data.parent / "scratch")


PARTS: dict[str, Callable[[Path, Build], Evaluation]] = {
    "--mae-limit": limited,
    "a class folder of ImageNet that lacks an image": folders_that_lack_an_image,
    "an ImageNet-A that lacks a class": folders_that_lack_a_class,
    "numbered images of which one is missing": numbers_that_lack_some,
    "a parquet file of fewer rows": table_of_fewer_rows,
    "a tar of fewer images": tar_of_fewer_images,
    "a class folder of CIFAR-10 that lacks an image": cifar_that_lacks_an_image,
    "a batch of CIFAR-10 that is short": cifar_of_a_short_batch,
}


def test_a_part_of_a_set_says_so_and_is_no_baseline(tmp_path: Path, random_suite: Build, journal: Journal) -> None:
    silent = 0
    for number, (what, make) in enumerate(PARTS.items()):
        made = make(tmp_path / str(number) / "data", random_suite)
        results = [made.run(*CLEAN), made.run(*BLURRED)]
        manifest = made.suite.manifest
        told = all(result.row.status == "partial" and result.row.n < result.row.n_expected for result in results)
        expected = {("mean", "clean"): {"clean-0.00"}, ("mean", "blur"): {"gaussian_blur-1.00"}}
        try:
            updated(
                None, tmp_path, results, expected, LabelledImages.of(manifest.ids, manifest.labels, manifest.classes)
            )
            refused = ""
        except BaselineError as error:
            refused = str(error)
        assert told, (what, results[0].row)
        assert "no model-family is complete" in refused, what
        assert f"ran on {results[0].row.n} of {made.suite.expected} images" in refused, what
        silent += not (told and refused)
        made.close()
    journal(
        Injection(
            failure="truncated",
            what="; ".join(PARTS),
            count=len(PARTS),
            behaviour="Rows have status partial and say of how many images they are; an update of the baseline is "
            "refused with both numbers.",
            silent=silent,
        )
    )


def test_a_part_is_not_ranked_among_whole_sets(cell_result: Build, journal: Journal) -> None:
    """The part was right of every image, the other model of every second one."""
    labels = np.arange(20) % 10
    names = ["clean-0.00", *default_conditions("blur", suite_entry("fashion_mnist"))]
    whole = [cell_result(f"whole-{c}", np.where(labels % 2, labels, 0), labels) for c in names]
    part = [cell_result(f"part-{c}", labels[:10], labels[:10], n_expected=20) for c in names]
    classes = [f"class {number}" for number in range(10)]
    outcomes = Outcomes.of([*whole, *part], LabelledImages.of([f"{i:032x}-0" for i in range(20)], labels, classes))
    board = Leaderboard.of([result.row for result in [*whole, *part]], outcomes)
    ranked = [standing.model for standing in board.standings if standing.score is not None]
    (short,) = [standing for standing in board.standings if standing.model == "part"]
    journal(
        Injection(
            failure="truncated",
            what="a model that ran on half of the images, and was right of all of them, beside one that ran on all",
            count=1,
            behaviour=f"It stands last, without a rank and a score, and its families are marked: "
            f"{', '.join(short.partial)}.",
            silent=int(ranked != ["whole"] or board.standings[-1] is not short or not short.partial),
        )
    )


# --------------------------------------------------------------------------- passes that lack or repeat images


def drop_last(made: Evaluation) -> CellResult:
    return made.result(*BLURRED, made.shard(*BLURRED, range(2)), 1.0)


def short_shard(made: Evaluation) -> CellResult:
    shard = made.shard(*BLURRED, range(1))
    shard.merge(made.shard(*BLURRED, range(2, 3)))
    return made.result(*BLURRED, shard, 1.0)


def shard_twice(made: Evaluation) -> CellResult:
    shard = made.shard(*BLURRED, range(3))
    shard.merge(made.shard(*BLURRED, range(2, 3)))
    return made.result(*BLURRED, shard, 1.0)


PASSES: dict[str, tuple[Callable[[Evaluation], CellResult], str]] = {
    "the last block is dropped": (drop_last, "holds 2 of 3 blocks"),
    "the shard of one worker is missing": (short_shard, "holds 2 of 3 blocks"),
    "the shard of one worker is there twice": (shard_twice, "block 2 was counted already"),
}
ANSWERS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a network drops the images that fill no batch": (
        lambda logits: logits[: len(logits) // 64 * 64] if len(logits) > 64 else logits, "for 88 images",
    ),
    "a network pads its batch": (
        lambda logits: torch.cat([logits, logits[-1:]]) if len(logits) > 2 else logits, "gave logits of shape (89, 8)",
    ),
}  # fmt: skip


def test_a_pass_that_lacks_images_or_has_some_twice_is_no_cell(
    tmp_path: Path, random_suite: Build, journal: Journal
) -> None:
    suite = random_suite(600)
    said = {}
    made = evaluation(suite, tmp_path)
    for what, (run, _) in PASSES.items():
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - its words are looked at below
            run(made)
        said[what] = str(caught.value)
    made.close()
    for what, (answer, _) in ANSWERS.items():
        spoilt = evaluation(suite, tmp_path, Mean(8, 1, answer), batch_size=88)
        with pytest.raises(BenchError) as refused:
            spoilt.run(*CLEAN)
        said[what] = str(refused.value)
    wrong = {what: said[what] for what, (_, words) in {**PASSES, **ANSWERS}.items() if words not in said[what]}
    assert not wrong
    journal(
        Injection(
            failure="truncated",
            what="; ".join(said),
            count=len(said),
            behaviour="There is no row: an error counts the blocks, or the logits and the images.",
            silent=len(wrong),
        )
    )


# --------------------------------------------------------------------------- files that are gone


@dataclass(frozen=True)
class Gone:
    """Files below ``data`` of which ``name`` goes after the suite was loaded; ``cell`` asks for it."""

    suite: str
    name: str
    cell: tuple[str, Level]


def test_files_that_are_gone_are_named_and_no_cell_goes_without_them(tmp_path: Path, journal: Journal) -> None:
    data = tmp_path / "data"
    for shown, synset in enumerate(SYNSETS[:2]):
        for number in range(3):
            name = f"{synset}/ILSVRC2012_val_{3 * shown + number + 1:08}.JPEG"
            put(data / "val" / name, encoded(shown, number))
            put(data / "fog" / "1" / name, encoded(shown, number, side=224))
    first = f"{SYNSETS[0]}/ILSVRC2012_val_00000002.JPEG"
    said = {}
    for gone in (
        Gone("imagefolder", f"val/{first}", CLEAN),
        Gone("imagenet", f"val/{first}", CLEAN),
        Gone("imagenet_c", f"fog/1/{first}", ("fog", Level(1.0, severity=True))),
        Gone("imagenet_c", "fog/1", ("fog", Level(1.0, severity=True))),
    ):
        suite = suite_entry(gone.suite).load(data if gone.suite == "imagenet_c" else data / "val")
        made = evaluation(suite, tmp_path / "scratch", Mean(1000) if gone.suite == "imagenet_c" else None)
        kept = tmp_path / "kept"
        shutil.move(data / gone.name, kept)
        try:
            made.run(*gone.cell)
        except BenchError as error:
            said[f"{gone.name} of {gone.suite}"] = str(error)
        shutil.move(kept, data / gone.name)
        made.close()
    silent = 4 - len(said)
    silent += sum(
        not any(words in text for words in ("No such file", "lacks", "no such dir")) for text in said.values()
    )
    journal(
        Injection(
            failure="truncated",
            what="files that are gone after they were listed: " + ", ".join(said),
            count=4,
            behaviour="The cell ends in an error that names the file, or says how many are missing and the first.",
            silent=silent,
        )
    )


def test_a_folder_of_ones_own_that_lost_an_image_is_another_set(tmp_path: Path, journal: Journal) -> None:
    """How many there should be nobody knows; that they are others does the baseline."""
    data = tmp_path / "data"
    for shown, name in enumerate(("cat", "dog")):
        for number in range(4):
            put(data / name / f"{number}.png", encoded(shown, number, "PNG"))

    def ran() -> tuple[Suite, list[CellResult]]:
        made = evaluation(suite_entry("imagefolder").load(data), tmp_path / "scratch")
        results = [made.run(*CLEAN), made.run(*BLURRED)]
        made.close()
        return made.suite, results

    expected = {("mean", "clean"): {"clean-0.00"}, ("mean", "blur"): {"gaussian_blur-1.00"}}
    suite, results = ran()
    whole, *_ = updated(
        None,
        tmp_path,
        results,
        expected,
        LabelledImages.of(suite.manifest.ids, suite.manifest.labels, suite.manifest.classes),
    )
    assert isinstance(whole, Baseline)
    (data / "dog" / "2.png").unlink()
    suite, results = ran()
    assert {result.row.manifest_hash for result in results} != {row.manifest_hash for row in whole.rows.values()}
    images = LabelledImages.of(suite.manifest.ids, suite.manifest.labels, suite.manifest.classes)
    with pytest.raises(BaselineError, match="of other images and 1 of its cells were not run again"):
        updated(whole, tmp_path, results[:1], expected, images)
    journal(
        Injection(
            failure="truncated",
            what="a class folder of one's own loses an image between two runs",
            count=1,
            behaviour="The manifest is another, so that no cell is resumed and none of other images gets into the "
            "baseline, which is compared on the images that both have. That one is missing, nothing can tell.",
        )
    )
