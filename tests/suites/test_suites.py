from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mae_bench.errors import BenchError
from mae_bench.images import Manifest, View
from mae_bench.suites import SUITES, Suite, SuiteEntry, SuiteError, suite_entry
from mae_bench.suites.synsets import published_synsets

LAW = settings(max_examples=10, deadline=None, derandomize=True)


def suite_of(*classes: str, name: str = "imagefolder") -> Suite:
    """A suite of one image per class that are never looked at."""

    def read(position: int) -> Image.Image:
        raise AssertionError(f"image {position} was read")

    ids = tuple(f"{i:032x}-0" for i in range(len(classes)))
    manifest = Manifest(classes, ids, np.arange(len(classes)))
    return Suite(suite_entry(name), manifest, (0.5, 0.5, 0.5), read)


@pytest.mark.parametrize("name", SUITES)
def test_suite_is_found_by_its_name(name: str) -> None:
    assert suite_entry(name).name == name


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("fashion-mnist", "fashion_mnist"), ("fashon_mnist", "fashion_mnist"), ("imagefoldr", "imagefolder")],
)
def test_unknown_suite_is_refused_with_the_nearest_name(typo: str, meant: str) -> None:
    with pytest.raises(SuiteError, match=rf"unknown suite {typo!r}: did you mean {meant}\?"):
        suite_entry(typo)


def test_unknown_suite_is_refused_with_all_names_where_none_is_near() -> None:
    with pytest.raises(SuiteError) as caught:
        suite_entry("xyzzy")
    assert all(name in str(caught.value) for name in SUITES)
    assert isinstance(caught.value, BenchError)


@pytest.mark.parametrize("name", [name for name, entry in SUITES.items() if entry.bundled])
def test_bundled_suite_takes_no_data(name: str, tmp_path: Path) -> None:
    for use in (suite_entry(name).check, suite_entry(name).load):
        with pytest.raises(SuiteError, match=rf"suite {name!r} is bundled and takes no --mae-data") as caught:
            use(tmp_path)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", [name for name, entry in SUITES.items() if not entry.bundled])
def test_suite_on_disk_needs_data(name: str) -> None:
    for use in (suite_entry(name).check, suite_entry(name).load):
        with pytest.raises(SuiteError, match=rf"suite {name!r} reads images from disk: .* --mae-data DIR"):
            use(None)


@pytest.mark.parametrize("entry", SUITES.values(), ids=SUITES)
def test_default_run_is_whole_blocks(entry: SuiteEntry) -> None:
    assert entry.default_limit % 256 == 0
    assert entry.default_limit == 0 or entry.default_limit >= 512


def test_published_suites_know_how_many_images_they_have() -> None:
    assert {name: entry.images for name, entry in SUITES.items()} == {
        "fashion_mnist": 10_000, "cifar10": 10_000, "imagefolder": 0, "imagenet": 50_000, "imagenet_v2": 10_000,
        "imagenet_a": 7_500, "imagenet_r": 30_000, "imagenet_sketch": 50_889, "imagenet_c": 50_000,
        "imagenet_c_bar": 50_000, "cifar10_c": 10_000, "cifar100_c": 10_000,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), [("imagefolder", 2), ("imagenet", 50_000), ("imagenet_a", 7500)])
def test_complete_run_is_of_all_that_were_published_or_all_that_a_user_has(name: str, expected: int) -> None:
    assert suite_of("n01440764", "n02099601", name=name).expected == expected


def test_only_images_that_were_chosen_for_it_may_be_misclassified_by_all() -> None:
    assert [name for name, entry in SUITES.items() if entry.adversarial] == ["imagenet_a"]


# ---- label maps

# indices as in every list of ImageNet-1k's classes
ANCHORS = {"n01440764": 0, "n02099601": 207, "n02123045": 281, "n15075141": 999}


def imagenet() -> list[str]:
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def test_synsets_are_mapped_to_their_imagenet_index() -> None:
    assert suite_of(*ANCHORS).label_map("model", 1000).outputs == tuple(ANCHORS.values())
    backwards = tuple(reversed(ANCHORS))
    assert suite_of(*backwards).label_map("model", 1000).outputs == tuple(reversed(ANCHORS.values()))


def test_all_synsets_in_sorted_order_are_mapped_to_all_outputs() -> None:
    assert suite_of(*sorted(imagenet())).label_map("model", 1000).outputs == tuple(range(1000))


@LAW
@given(st.data())
def test_map_of_some_synsets_is_the_restriction_of_the_map_of_all(data: st.DataObject) -> None:
    names = imagenet()
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=10, unique=True))
    assert [names[i] for i in suite_of(*chosen).label_map("model", 1000).outputs] == chosen


def test_unknown_synset_is_refused_by_name() -> None:
    with pytest.raises(SuiteError, match=r"suite 'imagefolder': class 'n99999999' is no synset of ImageNet-1k"):
        suite_of("n01440764", "n99999999").label_map("model", 1000)


@pytest.mark.parametrize("classes", [["n01440764", "n02099601"], ["cat", "dog", "emu"]])
def test_as_many_outputs_as_classes_are_mapped_by_position(classes: list[str]) -> None:
    assert suite_of(*classes).label_map("model", len(classes)).outputs == tuple(range(len(classes)))


def test_thousand_classes_that_are_no_synsets_are_mapped_by_position() -> None:
    classes = [f"class {i:03}" for i in range(1000)]
    assert suite_of(*classes).label_map("model", 1000).outputs == tuple(range(1000))


@pytest.mark.parametrize(
    ("classes", "outputs"),
    [
        (["cat", "dog"], 1000),
        (["n01440764", "dog"], 1000),
        (["n01440764", "n02099601"], 999),
        (["n01440764", "n02099601"], 1001),
        (["n01440764", "n02099601"], 21843),
        (["a", "b", "c"], 2),
        (["a", "b", "c"], 4),
    ],
)
def test_wrong_number_of_outputs_is_refused_with_both_counts_and_the_remedy(classes: list[str], outputs: int) -> None:
    with pytest.raises(SuiteError) as caught:
        suite_of(*classes).label_map("my_model", outputs)
    message = str(caught.value)
    assert "'my_model'" in message
    assert f"{outputs} outputs" in message
    assert f"{len(classes)} classes" in message
    assert "@model_fixture(suite=...)" in message


@LAW
@given(st.lists(st.sampled_from(sorted(ANCHORS)), min_size=1, unique=True), st.data())
def test_name_of_a_map_tells_maps_apart(classes: list[str], data: st.DataObject) -> None:
    """The name stands for the map in a cell's identity."""
    other = data.draw(st.lists(st.sampled_from(sorted(ANCHORS)), min_size=1, unique=True))
    a, b = (suite_of(*names).label_map("model", 1000) for names in (classes, other))
    assert (a.name == b.name) == (classes == other)
    assert a.name != suite_of(*classes).label_map("model", len(classes)).name


def test_channels_are_those_of_the_mean_pixel() -> None:
    grey = Suite(suite_entry("fashion_mnist"), suite_of("a", "b").manifest, (0.5,), suite_of("a", "b").read)
    assert (grey.channels, suite_of("a", "b").channels) == (1, 3)


def test_manifest_hash_is_that_of_the_manifest() -> None:
    assert suite_of("a", "b").manifest_hash == suite_of("a", "b").manifest.hash != suite_of("a", "c").manifest_hash


def test_name_of_a_map_tells_a_choice_from_competition() -> None:
    classes = published_synsets("imagenet_a")
    chosen, competing = (suite_of(*classes, name=name).label_map("m", 1000) for name in ("imagenet_a", "imagenet"))
    assert chosen.outputs == competing.outputs
    assert (chosen.masked, competing.masked) == (True, False)
    assert chosen.name != competing.name


# ---- views

CROPPED = ("imagenet_c", "imagenet_c_bar")
LARGE = View(384, 320, "bicubic", 0.9, "squash")
OWN = View(224, 224, "bilinear", 0.875)


@pytest.mark.parametrize("name", [name for name in SUITES if name not in CROPPED])
def test_models_view_is_that_of_all_images(name: str) -> None:
    suite = suite_of("n01440764", "n02099601", name=name)
    assert suite.view(LARGE) == suite.stored_view(LARGE) == LARGE


@pytest.mark.parametrize("name", CROPPED)
def test_clean_images_are_first_seen_as_stored_ones_were_made(name: str) -> None:
    suite = suite_of("n01440764", "n02099601", name=name)
    assert suite.stored_view(LARGE) == View(384, 320, "bicubic", 1.0)
    assert suite.view(LARGE) == View(384, 320, "bicubic", 1.0, before=OWN)
    assert str(suite.view(LARGE)) == "224x224 bilinear center 0.875, then 384x320 bicubic center 1.0"


@pytest.mark.parametrize("name", CROPPED)
@pytest.mark.parametrize(
    "view", [OWN, View(224, 224, "bicubic", 0.9), View(224, 224, "bicubic", 1.0, "squash")], ids=str
)
def test_all_models_of_the_stored_size_share_pixels(name: str, view: View) -> None:
    suite = suite_of("n01440764", "n02099601", name=name)
    assert suite.view(view) == OWN
    assert suite.stored_view(view) == View(224, 224, "bilinear", 1.0)


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("view", [LARGE, OWN], ids=str)
def test_view_of_a_view_changes_nothing(name: str, view: View) -> None:
    suite = suite_of("n01440764", "n02099601", name=name)
    once = suite.view(view)
    assert suite.view(once) == once
    assert suite.stored_view(once) == suite.stored_view(view)


@pytest.mark.parametrize("entry", SUITES.values(), ids=SUITES)
def test_suites_own_view_is_kept(entry: SuiteEntry) -> None:
    own = View(entry.reference_size, entry.reference_size, "bilinear", entry.crop_pct)
    assert suite_of("n01440764", "n02099601", name=entry.name).view(own) == own
