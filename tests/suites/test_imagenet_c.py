"""ImageNet-C and its kin as published: every clean image with its own corrupted copy, and none resized."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae_bench.degradations import CORRUPTIONS
from mae_bench.images import View, content_hash, decoded
from mae_bench.suites import Suite, SuiteError, suite_entry
from mae_bench.suites.imagenet_c import FOLDERS

VIEW = View(224, 224, "bicubic", 0.9)
PREPARATION = View(224, 224, "bilinear", 0.875)
SYNSETS = ("n01440764", "n02099601")


def encoded(seed: int, size: tuple[int, int], suffix: str = "PNG") -> bytes:
    """A smooth picture, so that it is small, of no two pixels alike in the large."""
    generator = np.random.default_rng(seed)
    image = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size)
    buffer = io.BytesIO()
    image.save(buffer, suffix)
    return buffer.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


NAMES = [f"{SYNSETS[i % 2]}/ILSVRC2012_val_{i:08}" for i in range(1, 5)]


class Published:
    """A set of four clean images and copies under ``fog`` and ``frost`` at severities 1 and 3."""

    def __init__(self, data: Path) -> None:
        self.data = data
        for i, name in enumerate(NAMES):
            put(data / "clean" / f"{name}.JPEG", encoded(i, (300, 260), "JPEG"))
        for corruption in ("fog", "frost"):
            for severity in (1, 3):
                self.corrupt(corruption, severity)

    def corrupt(self, corruption: str, severity: int, names: list[str] = NAMES) -> None:
        for name in names:
            content = encoded(self.seed(corruption, severity, name), (224, 224), "JPEG")
            put(self.data / corruption / str(severity) / f"{name}.JPEG", content)

    @staticmethod
    def seed(corruption: str, severity: int, name: str) -> int:
        return 1000 * len(corruption) + 100 * severity + NAMES.index(name)

    def load(self, name: str = "imagenet_c") -> Suite:
        suite_entry(name).check(self.data)
        return suite_entry(name).load(self.data)

    def name_at(self, suite: Suite, position: int) -> str:
        """Which of :data:`NAMES` stands at a position of the manifest."""
        hashes = {content_hash((self.data / "clean" / f"{name}.JPEG").read_bytes()): name for name in NAMES}
        return hashes[suite.manifest.ids[position].removesuffix("-0")]


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path)


def test_each_clean_image_has_its_own_copy(published: Published) -> None:
    suite = published.load()
    assert suite.stored is not None
    for corruption in ("fog", "frost"):
        for severity in (1, 3):
            stored = suite.stored(corruption, severity)
            for position in range(4):
                name = published.name_at(suite, position)
                file = published.data / corruption / str(severity) / f"{name}.JPEG"
                assert np.array_equal(np.asarray(stored.read(position)), np.asarray(Image.open(file)))


def test_manifest_is_that_of_the_clean_images(published: Published) -> None:
    clean = suite_entry("imagenet").load(published.data / "clean")
    suite = published.load()
    assert suite.manifest_hash == clean.manifest_hash
    assert suite.label_map("model", 1000) == clean.label_map("model", 1000)


@pytest.mark.parametrize(("place", "layout"), [("clean", "parquet"), ("val", "folders"), ("validation", "webdataset")])
def test_clean_images_may_have_any_layout(place: str, layout: str, writer: Any, tmp_path: Path) -> None:
    getattr(writer, layout)(tmp_path / place)
    for i, photograph in enumerate(writer.photographs):
        put(tmp_path / "fog" / "1" / photograph.synset / photograph.name, encoded(i, (224, 224), "JPEG"))
    suite = suite_entry("imagenet_c").load(tmp_path)
    assert suite.stored is not None
    stored = suite.stored("fog", 1)
    expected = {content_hash(p.content): i for i, p in enumerate(writer.photographs)}
    for position, known in enumerate(suite.manifest.ids):
        copy = io.BytesIO(encoded(expected[known.removesuffix("-0")], (224, 224), "JPEG"))
        assert np.array_equal(np.asarray(stored.read(position)), np.asarray(Image.open(copy)))


def test_linked_clean_images_are_found(published: Published, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = published.load().manifest_hash
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "val"
    shutil.move(published.data / "clean", elsewhere)
    (published.data / "clean").symlink_to(elsewhere)
    assert published.load().manifest_hash == before


# ---- pixels


def test_images_of_the_models_size_are_not_resized(published: Published, tmp_path_factory: Any) -> None:
    suite = published.load()
    assert suite.stored is not None
    stored = suite.stored("fog", 1)
    folder = tmp_path_factory.mktemp("decoded")
    found = decoded(suite.manifest, 4, suite.stored_view(VIEW), 3, stored.read, folder, variant="fog 1").pixels
    for position in range(4):
        file = published.data / "fog" / "1" / f"{published.name_at(suite, position)}.JPEG"
        assert np.array_equal(found[position].transpose(1, 2, 0), np.asarray(Image.open(file)))


def test_clean_images_are_resized_and_cropped_as_the_published_ones_were(
    published: Published, tmp_path_factory: Any
) -> None:
    """Shorter side to 256 pixels, bilinear, then the centre, whatever the model's own view."""
    suite = published.load()
    found = decoded(suite.manifest, 4, suite.view(VIEW), 3, suite.read, tmp_path_factory.mktemp("decoded")).pixels
    for position in range(4):
        image = Image.open(published.data / "clean" / f"{published.name_at(suite, position)}.JPEG")
        resized = image.resize((256 * 300 // 260, 256), Image.Resampling.BILINEAR)
        left, top = round((resized.width - 224) / 2), 16
        expected = np.asarray(resized)[top : top + 224, left : left + 224]
        assert np.array_equal(found[position].transpose(1, 2, 0), expected)


@pytest.mark.parametrize(
    "view", [VIEW, View(160, 160, "bilinear", 0.8), View(288, 288, "bicubic", 1.0, "squash")], ids=str
)
def test_copy_that_is_not_corrupted_is_the_clean_image_in_every_view(
    view: View, published: Published, tmp_path_factory: Any
) -> None:
    suite = published.load()
    assert suite.stored is not None
    for position in range(4):
        buffer = io.BytesIO()
        prepared = PREPARATION.transform()(suite.read(position)).transpose(1, 2, 0)
        Image.fromarray(prepared).save(buffer, "PNG")
        put(published.data / "fog" / "2" / f"{published.name_at(suite, position)}.png", buffer.getvalue())
    folder = tmp_path_factory.mktemp("decoded")
    clean = decoded(suite.manifest, 4, suite.view(view), 3, suite.read, folder).pixels
    copies = decoded(suite.manifest, 4, suite.stored_view(view), 3, suite.stored("fog", 2).read, folder, "fog 2")
    assert clean.shape == (4, 3, view.height, view.width)
    assert np.array_equal(clean, copies.pixels)


@pytest.mark.parametrize("size", [(256, 256), (224, 225), (64, 64)])
def test_copy_of_another_size_is_refused_by_path(size: tuple[int, int], published: Published) -> None:
    suite = published.load()
    path = published.data / "fog" / "1" / f"{NAMES[2]}.JPEG"
    put(path, encoded(0, size, "JPEG"))
    assert suite.stored is not None
    stored = suite.stored("fog", 1)
    position = next(p for p in range(4) if published.name_at(suite, p) == NAMES[2])
    with pytest.raises(SuiteError, match=f"{size[0]}x{size[1]} pixels; as published it would have 224x224") as caught:
        stored.read(position)
    assert str(path) in str(caught.value)


def test_fingerprint_changes_with_the_copies_of_the_manifest_alone(published: Published) -> None:
    suite = published.load()
    assert suite.stored is not None
    before = suite.stored("fog", 1).fingerprint
    assert suite.stored("fog", 1).fingerprint == before
    assert len({suite.stored(name, s).fingerprint for name in ("fog", "frost") for s in (1, 3)}) == 4
    put(published.data / "fog" / "1" / "n15075141" / "ILSVRC2012_val_00009999.JPEG", encoded(77, (224, 224)))
    assert suite.stored("fog", 1).fingerprint == before
    put(published.data / "fog" / "1" / f"{NAMES[0]}.JPEG", encoded(78, (224, 224), "JPEG"))
    assert suite.stored("fog", 1).fingerprint != before


# ---- where corruptions lie


def test_archives_may_unpack_one_folder_deeper(published: Published) -> None:
    before = published.load()
    assert before.stored is not None
    fingerprint = before.stored("fog", 3).fingerprint
    for corruption in ("fog", "frost"):
        (published.data / "weather").mkdir(exist_ok=True)
        (published.data / corruption).rename(published.data / "weather" / corruption)
    suite = published.load()
    assert suite.stored is not None
    assert suite.stored("fog", 3).fingerprint == fingerprint


def test_corruption_in_two_places_is_refused_with_both(published: Published) -> None:
    shutil.copytree(published.data / "fog", published.data / "weather" / "fog")
    with pytest.raises(SuiteError, match="take one of them away") as caught:
        published.load()
    assert str(published.data / "weather" / "fog") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "severity", "place"), [("snow", 1, "snow"), ("fog", 2, "fog/2"), ("gaussian_blur", 5, "gaussian_blur")]
)
def test_cell_whose_images_are_missing_is_refused_by_their_folder(
    name: str, severity: int, place: str, published: Published
) -> None:
    suite = published.load()
    assert suite.stored is not None
    with pytest.raises(SuiteError, match="no such directory") as caught:
        suite.stored(name, severity)
    assert str(published.data / place) in str(caught.value)


def test_corruption_of_another_suite_is_refused(published: Published) -> None:
    suite = published.load()
    assert suite.stored is not None
    with pytest.raises(SuiteError, match="suite 'imagenet_c' was not published under 'blue_sample'"):
        suite.stored("blue_sample", 1)


def test_folders_are_those_of_the_families(published: Published) -> None:
    for suite, folders in FOLDERS.items():
        families = suite_entry(suite).stored
        assert set(folders) == {name for name, kind in CORRUPTIONS.items() if kind.family in families}
    assert set(FOLDERS["imagenet_c_bar"].values()) == {
        "blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout", "cocentric_sine_waves",
        "inverse_sparkles", "perlin_noise", "plasma_noise", "single_frequency_greyscale", "sparkles",
    }  # fmt: skip
    for name, folder in FOLDERS["imagenet_c_bar"].items():
        for image in NAMES:
            put(published.data / folder / "1" / f"{image}.JPEG", encoded(len(name), (224, 224), "JPEG"))
    suite = published.load("imagenet_c_bar")
    assert suite.stored is not None
    for name, folder in FOLDERS["imagenet_c_bar"].items():
        expected = np.asarray(Image.open(published.data / folder / "1" / f"{NAMES[0]}.JPEG"))
        assert np.array_equal(np.asarray(suite.stored(name, 1).read(0)), expected)


# ---- sets of different images


def test_copies_of_images_that_are_not_among_the_clean_ones_are_passed_over(published: Published) -> None:
    (published.data / "clean" / f"{NAMES[1]}.JPEG").unlink()
    suite = published.load()
    assert len(suite.manifest.ids) == 3
    assert suite.stored is not None
    suite.stored("fog", 3).read(2)


def test_missing_copies_are_refused_with_their_number_and_the_first(published: Published) -> None:
    suite = published.load()
    for name in NAMES[1:3]:
        (published.data / "fog" / "3" / f"{name}.JPEG").unlink()
    assert suite.stored is not None
    with pytest.raises(SuiteError, match=f"lacks 2 of 4 images .* first {min(NAMES[1:3])}; unpack it again") as caught:
        suite.stored("fog", 3)
    assert str(published.data / "fog" / "3") in str(caught.value)


def test_subset_that_was_published_is_the_manifest(published: Published) -> None:
    for name in NAMES[2:]:
        for file in published.data.glob(f"f*/*/{name}.JPEG"):
            file.unlink()
    suite = published.load()
    assert {published.name_at(suite, p) for p in range(2)} == set(NAMES[:2])
    assert len(suite.manifest.ids) == 2
    assert suite.stored is not None
    suite.stored("frost", 3).read(1)


@pytest.mark.parametrize("cut", ["fog", "frost"])
def test_corruption_that_was_unpacked_in_part_does_not_shrink_the_manifest(cut: str, published: Published) -> None:
    """Whichever it is, the other shows what was published, and it is refused itself."""
    for file in published.data.glob(f"{cut}/1/{NAMES[3]}.JPEG"):
        file.unlink()
    suite = published.load()
    assert len(suite.manifest.ids) == 4
    assert suite.stored is not None
    with pytest.raises(SuiteError, match="lacks 1 of 4 images"):
        suite.stored(cut, 1)


def test_two_copies_of_one_image_are_refused(published: Published) -> None:
    put(published.data / "fog" / "3" / f"{NAMES[0]}.png", encoded(0, (224, 224)))
    suite = published.load()
    assert suite.stored is not None
    with pytest.raises(SuiteError, match="is a second image of this name"):
        suite.stored("fog", 3)


# ---- refusals


def refusal(data: Path, name: str = "imagenet_c") -> str:
    messages = set()
    for use in (suite_entry(name).check, suite_entry(name).load):
        with pytest.raises(SuiteError) as caught:
            use(data)
        messages.add(str(caught.value))
    (message,) = messages
    return message


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == f"--mae-data {tmp_path / 'absent'}: no such directory"


def test_without_clean_images_the_way_to_link_them_is_told(published: Published) -> None:
    shutil.rmtree(published.data / "clean")
    assert f"ln -s /data/imagenet/val {published.data / 'clean'}" in refusal(published.data)


def test_clean_folder_of_no_layout_is_refused_by_its_name(published: Published) -> None:
    shutil.rmtree(published.data / "clean")
    (published.data / "clean").mkdir()
    assert f"{published.data / 'clean'}: holds ImageNet's validation images in none" in refusal(published.data)


def test_without_corrupted_images_their_place_is_told(published: Published) -> None:
    message = refusal(published.data, "imagenet_c_bar")
    assert f"{published.data}/<corruption>/<1 to 5>/<synset>/<image files>" in message
    assert "blue_noise_sample" in message


def loading(data: Path) -> str:
    with pytest.raises(SuiteError) as caught:
        suite_entry("imagenet_c").load(data)
    return str(caught.value)


def test_sets_that_have_no_image_in_common_are_refused(published: Published) -> None:
    for file in sorted(published.data.glob("f*/*/*/*.JPEG")):
        file.rename(file.with_stem(f"renamed_{file.stem}"))
    assert f"holds none of the clean images, the first of which is {min(NAMES)}" in loading(published.data)


def test_clean_images_of_one_name_are_refused(published: Published) -> None:
    put(published.data / "clean" / f"{NAMES[0]}.png", encoded(0, (300, 260)))
    assert "1 of the clean images have a name that another has too" in loading(published.data)


def test_clean_images_without_names_are_refused(published: Published, writer: Any) -> None:
    from pyarrow.parquet import write_table

    shutil.rmtree(published.data / "clean")
    (published.data / "clean").mkdir()
    images = [{"bytes": p.content, "path": None} for p in writer.photographs]
    path = published.data / "clean" / "validation-00000-of-00001.parquet"
    write_table(writer.table(writer.photographs, image=images), path)
    message = loading(published.data)
    assert "has no file name" in message
    assert str(path) in message
