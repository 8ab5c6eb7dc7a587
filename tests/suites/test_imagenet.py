"""ImageNet's validation images are the same suite in every layout, and what is no layout of theirs is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae_bench.images import View, content_hash, decode, decoded
from mae_bench.suites import Suite, SuiteError, suite_entry
from mae_bench.suites.synsets import published_synsets

HUB = Path("datasets--ILSVRC--imagenet-1k/snapshots/0a1b2c/data")
TIMM = Path("datasets--timm--imagenet-1k-wds/snapshots/0a1b2c")
CACHED = Path("ILSVRC___imagenet-1k/default/0.0.0/0a1b2c")


def flat(place: str, truth: str, beside: str = ".") -> Callable[[Any, Path], None]:
    def write(writer: Any, data: Path) -> None:
        writer.flat(data / place)
        getattr(writer, truth)(data / beside)

    return write


LAYOUTS: dict[str, Callable[[Any, Path], None]] = {
    "folders": lambda writer, data: writer.folders(data),
    "folders in val": lambda writer, data: writer.folders(data / "val"),
    "folders in validation": lambda writer, data: writer.folders(data / "validation"),
    "flat, table beside": flat(".", "kaggle"),
    "flat, table above": flat("deep/val", "kaggle", "deep"),
    "flat in val, list": flat("val", "synset_list"),
    "flat in its archive's folder, caffe": flat("ILSVRC2012_img_val", "caffe", "ILSVRC2012_img_val"),
    "flat, development kit": flat("val", "devkit", "ILSVRC2012_devkit_t12/data"),
    "flat, development kit unpacked": flat("val", "devkit", "val"),
    "Kaggle's tree": flat("ILSVRC/Data/CLS-LOC/val", "kaggle"),
    "parquet": lambda writer, data: writer.parquet(data),
    "parquet in data": lambda writer, data: writer.parquet(data / "data"),
    "parquet in the hub's cache": lambda writer, data: writer.parquet(data / HUB),
    "parquet in the hub's cache above": lambda writer, data: writer.parquet(data / "hub" / HUB),
    "arrow": lambda writer, data: writer.arrow(data),
    "arrow in the cache of datasets": lambda writer, data: writer.arrow(data / CACHED),
    "arrow in the cache of datasets above": lambda writer, data: writer.arrow(data / "datasets" / CACHED),
    "webdataset": lambda writer, data: writer.webdataset(data),
    "webdataset in the hub's cache": lambda writer, data: writer.webdataset(data / TIMM),
}


def loaded(data: Path, name: str = "imagenet") -> Suite:
    entry = suite_entry(name)
    entry.check(data)
    return entry.load(data)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_images_are_the_same_suite_in_every_layout(
    layout: str, writer: Any, photographs: Any, tmp_path: Path
) -> None:
    LAYOUTS[layout](writer, tmp_path / "data")
    suite = loaded(tmp_path / ("data/deep/val" if "above" in layout and "flat" in layout else "data"))
    writer.folders(tmp_path / "folders")
    plain = loaded(tmp_path / "folders")
    assert suite.manifest_hash == plain.manifest_hash
    assert suite.manifest.ids == plain.manifest.ids
    expected = {content_hash(p.content): p for p in photographs}
    assert len(suite.manifest.ids) == len(expected)
    for position, (known, label) in enumerate(zip(suite.manifest.ids, suite.manifest.labels, strict=True)):
        photograph = expected[known.removesuffix("-0")]
        assert suite.manifest.classes[label] == photograph.synset
        assert np.array_equal(np.asarray(suite.read(position)), np.asarray(decode(photograph.content)))


@pytest.mark.parametrize("layout", ["folders", "parquet", "arrow", "webdataset"])
def test_order_is_that_on_the_disk_and_changes_no_pixel(layout: str, writer: Any, tmp_path: Path) -> None:
    LAYOUTS[layout](writer, tmp_path / "data")
    suite = loaded(tmp_path / "data")
    contents = {content_hash(p.content): i for i, p in enumerate(writer.photographs)}
    on_disk = [contents[suite.manifest.ids[position].removesuffix("-0")] for position in suite.order]
    if layout == "folders":
        on_disk = [(writer.photographs[i].synset, i) for i in on_disk]
    assert on_disk == sorted(on_disk)
    view = View(8, 8, "bilinear", 0.875)
    ordered, plain = (
        decoded(suite.manifest, 9, view, 3, suite.read, tmp_path / name, order=order).pixels
        for name, order in (("ordered", suite.order), ("plain", None))
    )
    assert np.array_equal(ordered, plain)


def test_classes_are_mapped_by_synset_though_most_are_missing(writer: Any, tmp_path: Path) -> None:
    writer.folders(tmp_path)
    suite = loaded(tmp_path)
    found = suite.label_map("model", 1000)
    assert found.outputs == (0, 207, 281, 999)
    assert not found.masked
    shutil.rmtree(tmp_path / "n02099601")
    assert loaded(tmp_path).label_map("model", 1000).outputs == (0, 281, 999)


@pytest.mark.parametrize("outputs", [4, 10, 200, 999, 1001, 21843])
def test_models_of_other_classes_are_refused(outputs: int, writer: Any, tmp_path: Path) -> None:
    """Four outputs for the four classes on the disk may still be four others."""
    writer.folders(tmp_path)
    with pytest.raises(SuiteError, match=f"model 'mine' has {outputs} outputs but suite 'imagenet' has 1000 classes"):
        loaded(tmp_path).label_map("mine", outputs)


def test_suite_of_the_bench_is_224_pixels_and_knows_its_reference_model() -> None:
    entry = suite_entry("imagenet")
    assert (entry.reference_size, entry.crop_pct, entry.default_limit) == (224, 0.875, 0)
    assert entry.salience == "vit_small_patch16_224.dino"
    others = ("imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_sketch", "imagenet_c", "imagenet_c_bar")
    assert all(suite_entry(name).salience is None for name in others)


# ---- refusals


def refusal(data: Path, name: str = "imagenet") -> str:
    """The message that both a look at the data and loading them end in."""
    messages = set()
    for use in (suite_entry(name).check, suite_entry(name).load):
        with pytest.raises(SuiteError) as caught:
            use(data)
        messages.add(str(caught.value))
    (message,) = messages
    return message


SUITES = ["imagenet", "imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_sketch"]


@pytest.mark.parametrize("name", SUITES)
def test_missing_directory_is_refused(name: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent", name) == f"--mae-data {tmp_path / 'absent'}: no such directory"


def test_what_is_no_layout_is_refused_with_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    message = refusal(tmp_path)
    assert str(tmp_path) in message
    for word in ("<synset>", "ILSVRC2012_val_", "LOC_val_solution.csv", "meta.mat", ".parquet", ".arrow", ".tar"):
        assert word in message


@pytest.mark.parametrize("name", SUITES[1:])
def test_shifted_suites_are_refused_with_the_one_layout_that_they_have(name: str, writer: Any, tmp_path: Path) -> None:
    writer.parquet(tmp_path)
    assert f"holds no class folders of {name}; expected {tmp_path}/<synset>/<image files>" in refusal(tmp_path, name)


@pytest.mark.parametrize("place", [".", "val"])
@pytest.mark.parametrize("folder", ["n99999999", "train", "tench"])
def test_folder_that_is_no_class_is_refused_by_name(place: str, folder: str, writer: Any, tmp_path: Path) -> None:
    writer.folders(tmp_path / place)
    (tmp_path / place / folder).mkdir()
    message = refusal(tmp_path)
    assert f"{tmp_path / place / folder}: is none of the 1,000 classes by WordNet id" in message


def test_empty_folder_is_refused_by_name(writer: Any, tmp_path: Path) -> None:
    writer.folders(tmp_path)
    (tmp_path / "n01443537").mkdir()
    assert f"{tmp_path / 'n01443537'}: holds no image" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["imagenet", "imagenet_a", "imagenet_sketch"])
def test_numbered_folders_are_refused_elsewhere_than_in_v2(name: str, writer: Any, tmp_path: Path) -> None:
    writer.folders(tmp_path)
    for position, folder in enumerate(sorted(tmp_path.iterdir())):
        folder.rename(tmp_path / str(position))
    message = refusal(tmp_path, name)
    assert f"{tmp_path / '0'}: a number does not say which class" in message
    assert "by WordNet id" in message


def test_one_numbered_folder_among_synsets_is_refused_by_name(writer: Any, tmp_path: Path) -> None:
    writer.folders(tmp_path)
    (tmp_path / "n02099601").rename(tmp_path / "207")
    assert f"{tmp_path / '207'}: is none of the 1,000 classes" in refusal(tmp_path)


def test_one_class_is_refused(writer: Any, photographs: Any, tmp_path: Path) -> None:
    type(writer)([p for p in photographs if p.position == 0]).folders(tmp_path)
    with pytest.raises(SuiteError, match="suite 'imagenet' has images of 1 class only"):
        loaded(tmp_path)


def test_flat_images_without_a_ground_truth_are_refused_with_its_names(writer: Any, tmp_path: Path) -> None:
    writer.flat(tmp_path / "val")
    message = refusal(tmp_path)
    assert f"{tmp_path / 'val'}: holds images by number" in message
    assert "LOC_val_solution.csv" in message
    assert "meta.mat" in message


def test_image_that_the_ground_truth_does_not_know_is_refused_by_name(
    writer: Any, photographs: Any, tmp_path: Path
) -> None:
    writer.flat(tmp_path)
    type(writer)(photographs[2:]).kaggle(tmp_path)
    message = refusal(tmp_path)
    assert str(tmp_path / "LOC_val_solution.csv") in message
    assert "2 of 12 images" in message
    assert "first ILSVRC2012_val_00000001.JPEG" in message


# ---- suites of a choice of the classes


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_model_chooses_among_the_published_classes_alone(name: str, photographs: Any, tmp_path: Path) -> None:
    """Also among those that have no image on the disk."""
    published = published_synsets(name)
    for i, photograph in enumerate(photographs):
        folder = tmp_path / published[[3, 150][i % 2]]
        folder.mkdir(exist_ok=True)
        (folder / photograph.name).write_bytes(photograph.content)
    suite = loaded(tmp_path, name)
    assert suite.manifest.classes == published
    assert set(suite.manifest.labels.tolist()) == {3, 150}
    found = suite.label_map("model", 1000)
    assert found.masked
    assert [published_synsets("imagenet")[output] for output in found.outputs] == list(published)
    assert "imagenet-1k among 200" in found.name
    tuned = suite.label_map("model", 200)
    assert (tuned.outputs, tuned.masked) == (tuple(range(200)), False)
    assert tuned.name.startswith("sorted position ")
    with pytest.raises(SuiteError, match=r"2 outputs but suite .* has 200 classes"):
        suite.label_map("model", 2)


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_class_outside_the_choice_is_refused_by_name(name: str, writer: Any, tmp_path: Path) -> None:
    writer.folders(tmp_path)
    outside = next(synset for synset in ("n01440764", "n15075141") if synset not in published_synsets(name))
    assert f"{tmp_path / outside}: is none of the 200 classes by WordNet id" in refusal(tmp_path, name)


@pytest.mark.parametrize("name", ["imagenet_v2", "imagenet_sketch"])
def test_all_outputs_compete_where_all_classes_were_published(name: str, writer: Any, tmp_path: Path) -> None:
    writer.folders(tmp_path)
    found = loaded(tmp_path, name).label_map("model", 1000)
    assert (found.outputs, found.masked) == ((0, 207, 281, 999), False)


# ---- numbered folders of ImageNet-V2


def test_numbered_folders_of_v2_are_taken_by_number_and_not_by_place(photographs: Any, tmp_path: Path) -> None:
    """As text, "10" comes before "2"."""
    numbers = [2, 10, 0, 999, 101]
    for i, photograph in enumerate(photographs):
        folder = tmp_path / str(numbers[i % 5])
        folder.mkdir(exist_ok=True)
        (folder / photograph.name).write_bytes(photograph.content)
    suite = loaded(tmp_path, "imagenet_v2")
    assert suite.label_map("model", 1000).outputs == tuple(sorted(numbers))
    expected = {content_hash(p.content): numbers[i % 5] for i, p in enumerate(photographs)}
    for known, label in zip(suite.manifest.ids, suite.manifest.labels, strict=True):
        assert suite.manifest.classes[label] == published_synsets("imagenet")[expected[known.removesuffix("-0")]]


def test_numbered_and_named_folders_of_v2_are_the_same_suite(writer: Any, tmp_path: Path) -> None:
    writer.folders(tmp_path / "named")
    for photograph in writer.photographs:
        folder = tmp_path / "numbered" / str(photograph.position)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photograph.name).write_bytes(photograph.content)
    named, numbered = (loaded(tmp_path / name, "imagenet_v2") for name in ("named", "numbered"))
    assert named.manifest_hash == numbered.manifest_hash


def test_numbers_from_1_to_1000_are_refused(writer: Any, tmp_path: Path) -> None:
    for photograph in writer.photographs:
        folder = tmp_path / str(photograph.position + 1)
        folder.mkdir(exist_ok=True)
        (folder / photograph.name).write_bytes(photograph.content)
    assert f"{tmp_path / '1000'}: is none of the 1,000 classes" in refusal(tmp_path, "imagenet_v2")


def test_class_by_number_and_by_name_is_refused(writer: Any, tmp_path: Path) -> None:
    writer.folders(tmp_path)
    (tmp_path / "207").mkdir()
    message = refusal(tmp_path, "imagenet_v2")
    assert "is class n02099601 a second time" in message
    assert str(tmp_path / "207") in message
