"""What tells the classes of ImageNet's numbered images says the same in each file, and nothing where it is another."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mae_bench.suites import SuiteError
from mae_bench.suites.ground_truth import DEVKIT, FILES, ground_truth

WRITERS = ("kaggle", "synset_list", "caffe", "devkit")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("place", [".", DEVKIT])
def test_each_file_says_the_same(name: str, place: str, writer: Any, tmp_path: Path) -> None:
    path = getattr(writer, name)(tmp_path / place)
    found, synset_of = ground_truth([tmp_path / "absent", tmp_path]) or (None, {})
    assert found == path
    assert [synset_of[p.name.removesuffix(".JPEG")] for p in writer.photographs] == [
        p.synset for p in writer.photographs
    ]


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "meta.mat").write_bytes(b"alone it says nothing")
    assert ground_truth([tmp_path]) is None


def test_file_of_synsets_comes_before_one_of_numbers(writer: Any, tmp_path: Path) -> None:
    for name in WRITERS[::-1]:
        getattr(writer, name)(tmp_path)
    for name in FILES:
        found = ground_truth([tmp_path])
        assert found is not None
        assert found[0].name == name
        found[0].unlink()
    assert list(FILES) == [
        "LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "val.txt",
        "ILSVRC2012_validation_ground_truth.txt",
    ]  # fmt: skip


def test_numbers_of_the_development_kit_are_refused_without_what_they_stand_for(writer: Any, tmp_path: Path) -> None:
    """Taken for positions among the sorted synsets they would be classes, but others."""
    path = writer.devkit(tmp_path)
    (tmp_path / "meta.mat").unlink()
    with pytest.raises(SuiteError) as caught:
        ground_truth([tmp_path])
    message = str(caught.value)
    assert message.startswith(f"{path}: its numbers are ILSVRC2012 ids and not positions among the sorted synsets")
    assert str(tmp_path / "meta.mat") in message


def edit(change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda path: path.write_text(change(path.read_text()))


def of_columns(names: str) -> Callable[[Path], object]:
    return edit(lambda text: text.replace("ImageId,PredictionString", names))


def cut_table(path: Path) -> None:
    """Leave the head of the development kit's table of synsets."""
    table = path.with_name("meta.mat")
    table.write_bytes(table.read_bytes()[:5000])


def other_table(path: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    rows = [(number, f"n{number:08}", 0) for number in range(1, 1001)]
    table = np.array(rows, dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    savemat(path.with_name("meta.mat"), {"synsets": table[:, None]})


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut list": ("synset_list", edit(lambda text: text[:-10]), "holds 49999 lines, not one for each of 50000 images"),
    "long list": ("synset_list", edit(lambda text: text + "n01440764\n"), "holds 50001 lines"),
    "names in a list": ("synset_list", edit(lambda text: text.replace("n02099601", "retriever")), "'retriever' is no"),
    "cut numbers": ("devkit", edit(lambda text: text[: len(text) // 2]), "lines, not one for each of 50000 images"),
    "number from 0": ("devkit", edit(lambda text: "0\n" + text.split("\n", 1)[1]), "'0' is no ILSVRC2012 id of"),
    "number of a synset above": ("devkit", edit(lambda text: "1001\n" + text.split("\n", 1)[1]), "'1001' is no"),
    "cut table of ids": ("devkit", cut_table, "meta.mat: not the development kit's table of synsets"),
    "other table of ids": ("devkit", other_table, "meta.mat: its first 1,000 ids are not ImageNet's 1,000 classes"),
    "classes from 1": ("caffe", edit(lambda text: text.replace(" 999\n", " 1000\n")), "class from 0 to 999"),
    # the file of this name that Kaggle has numbers the images
    "numbers of images": ("caffe", edit(lambda text: text.replace(" 207\n", " 48981\n")), "class from 0 to 999"),
    "names alone": ("caffe", edit(lambda text: re.sub(r" \d+\n", "\n", text)), "class from 0 to 999"),
    "negative class": ("caffe", edit(lambda text: text.replace(" 0\n", " -1\n")), "class from 0 to 999"),
    "table of other columns": ("kaggle", of_columns("id,label"), "expected the columns ImageId and PredictionString"),
    "table of names": ("kaggle", edit(lambda text: text.replace("n02099601", "n99999999")), "'n99999999' is no synset"),
    "empty prediction": ("kaggle", edit(lambda text: text + "ILSVRC2012_val_00000013,\n"), "expected the columns"),
    "cut row": ("kaggle", edit(lambda text: text + "ILSVRC2012_val_00000013\n"), "expected the columns"),
    "enormous class": ("caffe", edit(lambda text: text.replace(" 999\n", f" {'9' * 5000}\n")), "class from 0 to 999"),
    "image twice": ("caffe", edit(lambda text: text + "ILSVRC2012_val_00000001.JPEG 5\n"), "is in it twice"),
    "row twice": ("kaggle", edit(lambda text: text + text.splitlines()[1] + "\n"), "is in it twice"),
    "no text": ("kaggle", lambda path: path.write_bytes(b"\xff\xfe\x80"), "cannot be read"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_file_that_is_another_is_refused_with_its_fault(what: str, writer: Any, tmp_path: Path) -> None:
    name, damage, complaint = DAMAGE[what]
    path = getattr(writer, name)(tmp_path)
    damage(path)
    with pytest.raises(SuiteError, match=re.escape(complaint)) as caught:
        ground_truth([tmp_path])
    assert str(tmp_path) in str(caught.value)
    assert "get it again from its source" in str(caught.value)


def test_blank_lines_are_no_images(writer: Any, tmp_path: Path) -> None:
    path = writer.caffe(tmp_path)
    path.write_text(path.read_text() + "\n \n")
    found = ground_truth([tmp_path])
    assert found is not None
    assert len(found[1]) == 12
