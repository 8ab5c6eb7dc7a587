import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mae_bench.images import ImageError, View, content_hash, decoded
from mae_bench.suites import Suite, SuiteError, suite_entry

LAW = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)).convert(mode)


def save(path: Path, seed: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of four images each."""
    root = tmp_path / "data"
    for label, name in enumerate(("ant", "bee", "cat")):
        for i in range(4):
            save(root / name / f"{i}.png", 10 * label + i)
    return root


def loaded(data: Path) -> Suite:
    return suite_entry("imagefolder").load(data)


def listing(suite: Suite) -> list[tuple[str, str]]:
    manifest = suite.manifest
    return [(i, manifest.classes[label]) for i, label in zip(manifest.ids, manifest.labels, strict=True)]


def test_every_file_is_an_image_of_its_folders_class(folder: Path) -> None:
    suite = loaded(folder)
    assert suite.manifest.classes == ("ant", "bee", "cat")
    on_disk = {(content_hash(path.read_bytes()) + "-0", path.parent.name): path for path in folder.glob("*/*.png")}
    assert sorted(listing(suite)) == sorted(on_disk)
    for position, entry in enumerate(listing(suite)):
        expected = np.asarray(Image.open(on_disk[entry]).convert("RGB"))
        assert np.array_equal(np.asarray(suite.read(position)), expected)


def test_moved_folder_is_the_same_suite(folder: Path, tmp_path: Path) -> None:
    before = loaded(folder)
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, moved)
    shutil.rmtree(folder)
    after = loaded(moved)
    assert listing(after) == listing(before)
    assert after.manifest_hash == before.manifest_hash


@LAW
@given(st.permutations(range(12)), st.integers(0, 10**6))
def test_names_of_files_do_not_matter(tmp_path: Path, order: list[int], number: int) -> None:
    suites = []
    for root, names in ((tmp_path / "plain", range(12)), (tmp_path / "renamed", order)):
        shutil.rmtree(root, ignore_errors=True)
        for image, name in enumerate(names):
            # renamed files also lie at another depth
            depth = Path("deeper") if root.name == "renamed" and name % 2 else Path()
            save(root / "abc"[image % 3] / depth / f"{number + name}.png", image)
        suites.append(loaded(root))
    assert listing(suites[0]) == listing(suites[1])


def test_renamed_class_is_another_suite(folder: Path) -> None:
    before = loaded(folder)
    (folder / "cat").rename(folder / "cow")
    assert loaded(folder).manifest_hash != before.manifest_hash


@pytest.mark.parametrize("change", ["pixel", "one more", "one less", "other class"])
def test_changed_folder_is_another_suite(change: str, folder: Path) -> None:
    before = loaded(folder)
    if change == "pixel":
        save(folder / "ant" / "0.png", 99)
    elif change == "one more":
        save(folder / "ant" / "4.png", 99)
    elif change == "one less":
        (folder / "ant" / "0.png").unlink()
    else:
        (folder / "ant" / "0.png").rename(folder / "bee" / "4.png")
    assert loaded(folder).manifest_hash != before.manifest_hash


def test_same_image_twice_has_two_ids(folder: Path) -> None:
    shutil.copy(folder / "ant" / "0.png", folder / "ant" / "copy.png")
    ids = [i for i, name in listing(loaded(folder)) if name == "ant"]
    content = content_hash((folder / "ant" / "0.png").read_bytes())
    assert [i for i in ids if i.startswith(content)] == [f"{content}-0", f"{content}-1"]
    assert len(set(ids)) == 5


def test_greyscale_and_rgb_files_mix(tmp_path: Path) -> None:
    for i, mode in enumerate(("L", "RGB", "RGBA", "P", "1", "L")):
        save(tmp_path / "data" / "ab"[i % 2] / f"{i}.png", i, mode)
    suite = loaded(tmp_path / "data")
    pixels = decoded(suite.manifest, 6, View(10, 12, "bilinear", 1.0), 3, suite.read, tmp_path / "cache").pixels
    grey = np.sort([int(np.ptp(image.astype(int), axis=0).max() == 0) for image in pixels])
    # the three grey ones have equal channels, none of the coloured ones has
    assert grey.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "PNG", "webp", "bmp", "ppm", "tif", "tiff"])
def test_usual_formats_are_found_in_either_case(suffix: str, tmp_path: Path) -> None:
    save(tmp_path / "a" / f"x.{suffix}", 0)
    save(tmp_path / "b" / f"x.{suffix}", 1)
    suite = loaded(tmp_path)
    assert [suite.read(position).size for position in range(len(suite.manifest.ids))] == [(12, 10)] * 2


def test_what_is_no_image_and_what_is_hidden_is_passed_over(folder: Path) -> None:
    before = listing(loaded(folder))
    (folder / "ant" / "notes.txt").write_text("not an image")
    (folder / "labels.csv").write_text("not a class")
    save(folder / "ant" / ".thumbnail.png", 50)
    save(folder / ".cache" / "x.png", 51)
    assert listing(loaded(folder)) == before


def test_hidden_folder_in_a_class_is_passed_over(folder: Path) -> None:
    # notebooks leave copies of opened images there, which would count twice
    before = listing(loaded(folder))
    save(folder / "ant" / ".ipynb_checkpoints" / "0-checkpoint.png", 0)
    assert listing(loaded(folder)) == before


def test_checking_finds_nothing_wrong_with_a_good_folder(folder: Path) -> None:
    suite_entry("imagefolder").check(folder)


def refusal(data: Path) -> str:
    """The message that both a look at the folder and loading it end in."""
    messages = set()
    for use in (suite_entry("imagefolder").check, suite_entry("imagefolder").load):
        with pytest.raises(SuiteError) as caught:
            use(data)
        messages.add(str(caught.value))
    (message,) = messages
    return message


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == f"--mae-data {tmp_path / 'absent'}: no such directory"


def test_file_instead_of_a_directory_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "image.png", 0)
    assert f"--mae-data {path}: no such directory" in refusal(path)


def test_empty_directory_is_refused_with_the_expected_layout(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert f"--mae-data {tmp_path}: holds no class folders" in message
    assert f"{tmp_path}/<class>/<image files>" in message


def test_directory_of_images_without_classes_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "0.png", 0)
    save(tmp_path / ".hidden" / "0.png", 0)
    assert "holds no class folders" in refusal(tmp_path)


def test_one_class_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "ant" / "0.png", 0)
    message = refusal(tmp_path)
    assert "one class only (ant)" in message
    assert "at least two" in message


def test_class_without_images_is_refused_by_name(folder: Path) -> None:
    (folder / "emu").mkdir()
    (folder / "emu" / "readme.txt").write_text("to do")
    message = refusal(folder)
    assert f"{folder / 'emu'}: holds no image" in message
    assert ".jpeg" in message
    assert "fill the class or remove its folder" in message


def test_broken_image_is_refused_by_path_when_it_is_read(folder: Path) -> None:
    broken = folder / "bee" / "2.png"
    broken.write_bytes(broken.read_bytes()[:100])
    suite = loaded(folder)
    position = [i.startswith(content_hash(broken.read_bytes())) for i in suite.manifest.ids].index(True)
    with pytest.raises(ImageError) as caught:
        suite.read(position)
    assert str(broken) in str(caught.value)


def test_image_that_vanished_is_refused_by_path(folder: Path) -> None:
    suite = loaded(folder)
    shutil.rmtree(folder / "cat")
    position = suite.manifest.labels.tolist().index(2)
    with pytest.raises(ImageError, match="No such file") as caught:
        suite.read(position)
    assert str(folder / "cat") in str(caught.value)


def test_image_that_changed_after_it_was_hashed_is_refused_by_path(folder: Path) -> None:
    suite = loaded(folder)
    changed = folder / "bee" / "2.png"
    position = [i.startswith(content_hash(changed.read_bytes())) for i in suite.manifest.ids].index(True)
    save(changed, 99)
    with pytest.raises(ImageError, match="was changed after its content hash was taken; start again") as caught:
        suite.read(position)
    assert str(changed) in str(caught.value)


def test_file_that_cannot_be_read_is_refused_by_path(folder: Path) -> None:
    (folder / "bee" / "9.png").symlink_to(folder / "absent.png")
    with pytest.raises(ImageError, match=r"bee/9\.png: cannot be read .*; restore it"):
        loaded(folder)


def test_numbers_that_sort_otherwise_by_name_are_refused_with_both(tmp_path: Path) -> None:
    for number in range(11):
        save(tmp_path / str(number) / "x.png", number)
    message = refusal(tmp_path)
    assert "sorted by name 10 stands where the number 2 would" in message
    assert "(00, 01, ...)" in message


@pytest.mark.parametrize("names", [["0", "1", "2"], ["00", "02", "10"], ["1", "2", "3"], ["0", "1", "10", "two"]])
def test_numbers_that_sort_as_their_names_and_other_names_are_classes(names: list[str], tmp_path: Path) -> None:
    for seed, name in enumerate(names):
        save(tmp_path / name / "x.png", seed)
    assert loaded(tmp_path).manifest.classes == tuple(names)
