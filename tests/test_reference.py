"""What the clean pass leaves behind."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mae_bench.images import BLOCK
from mae_bench.models.taps import Features
from mae_bench.reference import Reference, ScratchError, mapped

PROBE = 512
WIDTH, PATCHES, HEADS, HEAD_WIDTH = 6, 4, 2, 5
LAYERS = (0, 1, 2)

Clean = dict[tuple[str, int, str], Tensor]


def clean_features(images: int, seed: int = 0) -> Clean:
    """Everything a network would leave, of all images at once."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return 1 + torch.randn(*shape, generator=generator)

    found: Clean = {}
    for layer in LAYERS:
        found["tokens", layer, "cls"] = normal(images, WIDTH)
        found["tokens", layer, "mean_patch"] = normal(images, WIDTH)
        found["tokens", layer, "patch"] = normal(images, PATCHES, WIDTH)
    found["tokens", 0, "cls"] = normal(1, WIDTH).expand(images, -1)
    for block in LAYERS[1:]:
        found["heads", block, "cls"] = normal(images, HEADS, HEAD_WIDTH)
        found["heads", block, "mean_patch"] = normal(images, HEADS, HEAD_WIDTH)
        found["heads", block, "patch"] = normal(images, PATCHES, HEADS, HEAD_WIDTH)
    return found


def filled(folder: Path, clean: Clean) -> Reference:
    images = len(clean["tokens", 0, "cls"])
    reference = Reference(folder, images)
    for start in range(0, images, BLOCK):
        features = Features()
        for (what, layer, kind), values in clean.items():
            if kind != "patch" or reference.in_probe(start):
                getattr(features, what)[layer, kind] = values[start : start + BLOCK]
        reference.add(start, min(start + BLOCK, images), features)
        reference.complete(start // BLOCK)
    return reference


@pytest.mark.parametrize("images", [600, 300, 70])
@pytest.mark.parametrize("batch", [64, 100, 256])
def test_it_does_not_matter_in_what_parts_a_block_comes(tmp_path: Path, images: int, batch: int) -> None:
    clean = clean_features(images)
    whole = filled(tmp_path / "whole", clean)
    by_parts = Reference(tmp_path / "parts", images)
    for start in range(0, images, BLOCK):
        for begin in range(start, min(start + BLOCK, images), batch):
            end = min(begin + batch, start + BLOCK, images)
            features = Features()
            for (what, layer, kind), values in clean.items():
                if kind != "patch" or by_parts.in_probe(begin):
                    getattr(features, what)[layer, kind] = values[begin:end]
            by_parts.add(begin, end, features)
        by_parts.complete(start // BLOCK)
    mine, theirs = by_parts.arrays, whole.arrays
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    for file in whole.folder.iterdir():
        assert (by_parts.folder / file.name).read_bytes() == file.read_bytes()


def block_of(clean: Clean, start: int, stop: int) -> Features:
    """What a network would leave of some images behind the probe subset."""
    features = Features()
    for (what, layer, kind), values in clean.items():
        if kind != "patch":
            getattr(features, what)[layer, kind] = values[start:stop]
    return features


def rows_kept(reference: Reference, kind: str) -> int:
    return reference.probe if kind == "patch" else reference.images


@pytest.fixture(scope="module", params=[600, 512, 300, 256, 100, 1])
def images(request: pytest.FixtureRequest) -> int:
    """More than the probe subset, exactly it, less, one block, less than one block, one."""
    count: int = request.param
    return count


@pytest.fixture(scope="module")
def clean(images: int) -> Clean:
    return clean_features(images)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, clean: Clean) -> Reference:
    return filled(tmp_path_factory.mktemp("reference") / "features", clean)


def test_the_probe_is_the_first_two_blocks_or_all_of_a_smaller_suite(images: int, reference: Reference) -> None:
    assert reference.probe == min(images, PROBE)
    assert [reference.in_probe(start) for start in (0, 256, 512)] == [True, images > 256, False]


def test_tokens_come_back_as_they_were(clean: Clean, reference: Reference) -> None:
    for (what, layer, kind), values in clean.items():
        if what == "tokens":
            kept = rows_kept(reference, kind)
            assert torch.equal(reference.tokens((layer, kind), 0, kept), values[:kept])
            middle = slice(kept // 3, kept // 3 + kept // 2 + 1)
            assert torch.equal(reference.tokens((layer, kind), middle.start, middle.stop), values[:kept][middle])


def test_centers_are_the_mean_of_the_probe(clean: Clean, reference: Reference) -> None:
    for (what, layer, kind), values in clean.items():
        if what == "tokens":
            expected = values[:PROBE].double().mean(0)
            torch.testing.assert_close(reference.centers[layer, kind].double(), expected, rtol=1e-4, atol=1e-5)


def test_thresholds_are_the_upper_quartile_of_the_probe(clean: Clean, reference: Reference) -> None:
    for (what, layer, kind), values in clean.items():
        if what == "heads":
            assert len(reference.thresholds[layer, kind]) == HEADS
            for h in range(HEADS):
                expected = np.quantile(values[:PROBE].abs().numpy()[..., h, :].astype(np.float64), 0.75)
                assert reference.thresholds[layer, kind][h].item() == pytest.approx(expected, rel=1e-6)


def test_active_features_exceed_the_threshold_of_their_head(clean: Clean, reference: Reference) -> None:
    for (what, layer, kind), values in clean.items():
        if what == "heads":
            kept = rows_kept(reference, kind)
            expected = np.zeros(values[:kept].shape, dtype=bool)
            for h in range(HEADS):
                threshold = np.quantile(values[:PROBE].abs().numpy()[..., h, :].astype(np.float64), 0.75)
                expected[..., h, :] = values[:kept].abs().numpy()[..., h, :] > threshold
            assert np.array_equal(reference.active((layer, kind), 0, kept).numpy(), expected)
            last = reference.active((layer, kind), kept - 1, kept)
            assert np.array_equal(last.numpy(), expected[-1:])


def test_what_no_image_changes_is_constant(images: int, reference: Reference) -> None:
    # of a single image nothing can be said
    assert reference.constant == ({(0, "cls")} if images > 1 else set())


def test_no_raw_head_output_stays_on_disk(clean: Clean, reference: Reference) -> None:
    expected = 0
    for (what, _, kind), values in clean.items():
        rows, shape = rows_kept(reference, kind), values.shape[1:]
        expected += rows * (4 * math.prod(shape) if what == "tokens" else math.ceil(math.prod(shape) / 8))
    files = [path for path in reference.folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) == expected


def changed(clean: Clean, position: int) -> Clean:
    copies = {key: values.clone() for key, values in clean.items()}
    for values in copies.values():
        values[position:] = values[position:] * -3 + 1
    return copies


@pytest.mark.parametrize("position", [PROBE, PROBE + BLOCK, PROBE + 50])
def test_calibration_does_not_depend_on_images_after_the_probe(tmp_path: Path, position: int) -> None:
    clean = clean_features(900)
    before = filled(tmp_path / "before", clean)
    after = filled(tmp_path / "after", changed(clean, position))
    assert after.constant == before.constant
    for name in ("centers", "thresholds"):
        values, others = getattr(before, name), getattr(after, name)
        assert values.keys() == others.keys()
        for key in values:
            assert torch.equal(values[key], others[key])
    # the images before the change have the activity that they had, those after it do not
    key = (1, "cls")
    assert torch.equal(after.active(key, 0, position), before.active(key, 0, position))
    assert not torch.equal(after.active(key, position, 900), before.active(key, position, 900))


def test_calibration_depends_on_the_last_image_of_the_probe(tmp_path: Path) -> None:
    clean = clean_features(600)
    before = filled(tmp_path / "before", clean)
    after = filled(tmp_path / "after", changed(clean, PROBE - 1))
    assert not torch.equal(after.centers[1, "cls"], before.centers[1, "cls"])
    assert not torch.equal(after.thresholds[1, "cls"], before.thresholds[1, "cls"])


def test_the_number_of_images_changes_nothing_for_those_that_both_have(tmp_path: Path) -> None:
    clean = clean_features(900)
    whole = filled(tmp_path / "whole", clean)
    part = filled(tmp_path / "part", {key: values[:PROBE] for key, values in clean.items()})
    for key in whole.thresholds:
        assert torch.equal(whole.thresholds[key], part.thresholds[key])
        assert torch.equal(whole.active(key, 0, PROBE), part.active(key, 0, PROBE))


def test_clean_features_of_another_model_are_not_overwritten(tmp_path: Path) -> None:
    Reference(tmp_path / "features", 10)
    with pytest.raises(FileExistsError):
        Reference(tmp_path / "features", 10)


@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_tokens_and_activity_survive_at_any_scale(
    tmp_path_factory: pytest.TempPathFactory, seed: int, scale: float
) -> None:
    clean = {key: values * scale for key, values in clean_features(40, seed).items()}
    reference = filled(tmp_path_factory.mktemp("scaled") / "features", clean)
    assert torch.equal(reference.tokens((2, "patch"), 0, 40), clean["tokens", 2, "patch"])
    # a quarter, whatever the unit of the outputs
    share = reference.active((2, "patch"), 0, 40).float().mean((0, 1, 3))
    torch.testing.assert_close(share, torch.full((HEADS,), 0.25), rtol=0, atol=2 / (40 * PATCHES * HEAD_WIDTH))


def test_a_vit_s_own_features_fit(small_vit: Callable[..., torch.nn.Module], tmp_path: Path) -> None:
    from mae_bench.models.taps import taps_of

    network = small_vit()
    batch = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    taps = taps_of(network, batch)
    with torch.no_grad(), taps.capture(True) as features:
        network(batch)
    reference = Reference(tmp_path / "features", 20)
    reference.add(0, 20, features)
    assert reference.constant == {(0, "cls")}
    for key, values in features.tokens.items():
        assert torch.equal(reference.tokens(key, 0, 20), values)
    for key, values in features.heads.items():
        assert torch.equal(reference.active(key, 0, 20), values.abs() > reference.thresholds[key][:, None])


@given(holder_of=st.lists(st.integers(0, 2), min_size=3, max_size=3), order=st.permutations((2, 3, 4)))
def test_whoever_adds_blocks_to_its_files_and_in_whatever_order_all_have_them(
    tmp_path_factory: pytest.TempPathFactory, holder_of: list[int], order: list[int]
) -> None:
    clean = clean_features(4 * BLOCK + 7)
    folder = tmp_path_factory.mktemp("shared")
    alone = filled(folder / "alone", clean)
    first = Reference(folder / "features", 4 * BLOCK + 7)
    for start in (0, BLOCK):
        features = block_of(clean, start, start + BLOCK)
        for (what, layer, kind), values in clean.items():
            if kind == "patch":
                getattr(features, what)[layer, kind] = values[start : start + BLOCK]
        first.add(start, start + BLOCK, features)
        first.complete(start // BLOCK)
    holders = [Reference.finished(folder / "features", first.arrays) for _ in range(3)]
    for holder, block in zip(holder_of, order, strict=True):
        assert not any(each.has(block) for each in holders)
        start, stop = block * BLOCK, min((block + 1) * BLOCK, 4 * BLOCK + 7)
        holders[holder].add(start, stop, block_of(clean, start, stop))
        assert not any(each.has(block) for each in holders)
        holders[holder].complete(block)
        assert all(each.has(block) for each in holders)
    for each in holders:
        for layer in LAYERS[1:]:
            for key in ((layer, "cls"), (layer, "mean_patch")):
                assert torch.equal(each.tokens(key, 0, each.images), alone.tokens(key, 0, each.images))
                assert torch.equal(each.active(key, 0, each.images), alone.active(key, 0, each.images))


def test_a_disk_that_takes_no_mark_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = clean_features(3 * BLOCK)
    shared = Reference.finished(tmp_path / "features", filled(tmp_path / "features", clean).arrays)
    shared._blocks.discard(2)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(ScratchError, match=r"features: clean features cannot be kept .*--mae-run DIR"):
        shared.complete(2)
    assert not shared.has(2)


def test_a_disk_without_room_is_named_before_anything_is_written_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ScratchError, match=r"tokens-1-cls\.bin: no room for 4\.0 GiB of clean features"):
        mapped(tmp_path / "tokens-1-cls.bin", (1024, 1024, 1024), np.float32)


def test_a_mapped_file_keeps_what_is_written(tmp_path: Path) -> None:
    values = mapped(tmp_path / "a.bin", (3, 5), np.float32)
    assert not values.any()
    values[1] = 2.5
    values.flush()
    assert (np.fromfile(tmp_path / "a.bin", dtype=np.float32).reshape(3, 5)[1] == 2.5).all()
