"""What a run writes down of its images, and which of them are copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.images import stratified
from mae_bench.labelled_images import LabelledImages, check_copies, first_copies

LAW = settings(max_examples=100, derandomize=True)
RECORD = {"classes": ["a", "b"], "ids": ["0a-0", "0b-0", "0a-1"], "labels": [0, 1, 1]}


@LAW
@given(st.lists(st.tuples(st.sampled_from(["0a", "0b", "0c", "0d"]), st.integers(0, 1)), max_size=12))
def test_copies_are_what_shares_its_content(images: list[tuple[str, int]]) -> None:
    hashes, labels = [h for h, _ in images], [label for _, label in images]
    order, manifest = stratified(hashes, labels, ["x", "y"])
    contents = [hashes[i] for i in order]
    assert first_copies(manifest.ids).tolist() == [contents.index(content) for content in contents]
    assert first_copies(manifest.ids).dtype == np.int32
    check_copies(first_copies(manifest.ids), len(images))
    written = LabelledImages.from_dict(
        {"classes": ["x", "y"], "ids": list(manifest.ids), "labels": manifest.labels.tolist()}
    )
    assert written.manifest_hash == manifest.hash
    assert LabelledImages.from_dict(written.to_dict()).to_dict() == written.to_dict()


def test_ids_of_another_form_are_no_copies() -> None:
    assert first_copies(["a", "b", "c-0-0", "c-0-1"]).tolist() == [0, 1, 2, 2]


def test_what_is_given_counts_before_what_the_ids_tell() -> None:
    assert LabelledImages.from_dict(RECORD).duplicate_of.tolist() == [0, 1, 0]
    assert LabelledImages.from_dict({**RECORD, "duplicate_of": [0, 0, 0]}).duplicate_of.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"ids": ["0a-0", "0b-0"]},
        {"ids": ["0a-0", "0b-0", "0b-0"]},
        {"ids": [0, 1, 2]},
        {"ids": None},
        {"ids": 3},
        {"labels": [0, 1, 2]},
        {"labels": [0, 1, -1]},
        {"labels": [0, 1, 0.5]},
        {"labels": [0, 1, True]},
        {"classes": []},
        {"classes": [1, 2]},
        {"duplicate_of": [0, 1]},
        {"duplicate_of": [0, 1, 3]},
        {"duplicate_of": [0, 2, 2]},
        {"duplicate_of": [0, 0, 1]},
        {"duplicate_of": [-1, 1, 0]},
        {"duplicate_of": [0, 1, 0.5]},
        {"duplicate_of": [0, 1, 2**70]},
        {"duplicate_of": "012"},
        {"duplicate_of": [[0], [1], [0]]},
    ],
    ids=str,
)
def test_other_content_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, LookupError, TypeError, ArithmeticError)):
        LabelledImages.from_dict({**RECORD, **change})


@pytest.mark.parametrize("missing", ["ids", "labels", "classes"])
def test_missing_entry_is_refused(missing: str) -> None:
    with pytest.raises(LookupError, match=missing):
        LabelledImages.from_dict({name: value for name, value in RECORD.items() if name != missing})
