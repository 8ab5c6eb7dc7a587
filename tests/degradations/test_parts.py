"""Batches in parts: all of a batch once and in order, few values at a time, and nothing else about the result."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.cells import Level
from mae_bench.degradations import CORRUPTIONS, Setting
from mae_bench.degradations.parts import ONE_IMAGE, by_parts, parts

BY_PARTS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "zoom_blur", "fog", "pixelate",
    "jpeg_compression",
)  # fmt: skip
"""Corruptions in which no sum is a matrix product, so that not even its rounding knows of the batch."""


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(1, 3), st.integers(1, 400), st.integers(1, 400))
def test_parts_hold_every_image_once_in_order_and_no_more_values_than_one_image(
    count: int, channels: int, height: int, width: int
) -> None:
    images = torch.empty(1, channels, height, width).expand(count, -1, -1, -1)
    slices = parts(images)
    assert [image for part in slices for image in range(part.start, part.stop)] == list(range(count))
    for part in slices:
        assert part.stop - part.start == 1 or images[part].numel() <= ONE_IMAGE
    # nor fewer than fit
    for part in slices[:-1]:
        assert images[: part.stop - part.start + 1].numel() > ONE_IMAGE


def test_a_batch_elsewhere_than_on_a_cpu_is_one_part() -> None:
    assert parts(torch.empty(500, 3, 224, 224, device="meta")) == [slice(0, 500)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_changed_by_parts_is_what_is_changed_at_once(dtype: torch.dtype) -> None:
    images = torch.rand(7, 3, 200, 150, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert len(parts(images)) > 1
    for batch in (images, images.contiguous(memory_format=torch.channels_last), images[:0]):
        changed = by_parts(batch, lambda part, batch=batch: batch[part].float() / 3)  # type: ignore[misc]
        assert changed.dtype == dtype
        assert torch.equal(changed, (batch.float() / 3).to(dtype))


@pytest.mark.parametrize("name", BY_PARTS)
def test_in_a_batch_of_several_parts_an_image_is_to_the_bit_what_it_is_alone(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(7, 3, 150, 160, generator=generator)
    keys = torch.randint(-(2**62), 2**62, (7,), generator=generator)
    assert 1 < len(parts(images)) < len(images)
    level = Level(3.0, severity=True)
    whole = CORRUPTIONS[name].apply(images, level, Setting(keys, 5, 224, (0.5, 0.5, 0.5)))
    for i in range(len(images)):
        alone = Setting(keys[i : i + 1], 5, 224, (0.5, 0.5, 0.5))
        assert torch.equal(CORRUPTIONS[name].apply(images[i : i + 1], level, alone), whole[i : i + 1])
