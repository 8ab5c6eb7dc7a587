from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import features

from mae_bench.degradations import Setting, digital
from mae_bench.degradations.digital import (
    boxed_levels,
    compressed_levels,
    contrast,
    jpeg_compression,
    pixelate,
    saturate,
    stored,
)
from mae_bench.degradations.severity import SEVERITIES
from references import imagenet_c

LAW = settings(max_examples=25, deadline=None, derandomize=True)

NAMES = ("contrast", "saturate", "pixelate", "jpeg_compression")
NOTHING_DRAWN = Setting(torch.zeros(0, dtype=torch.int64), 0, 224, (0.5,))

to_the_bit = pytest.mark.skipif(
    not features.check_feature("libjpeg_turbo"),
    reason="this Pillow writes JPEG with another library than libjpeg-turbo",
)


def photograph(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(H, W, C) in 8 bits with the spectrum of a photograph, its channels correlated and its ends saturated."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    white = np.fft.rfft2(generator.standard_normal((channels, height, width)))
    pink = np.fft.irfft2(white / frequency**1.2, s=(height, width))
    mixed = pink[0] + 0.6 * pink
    scaled = 127.5 + 80 * (mixed - mixed.mean()) / mixed.std()
    return np.ascontiguousarray(scaled.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def tensor_of(*pixels: np.ndarray) -> torch.Tensor:
    """(B, C, H, W) in [0, 1] from (H, W, C) in 8 bits each."""
    return torch.stack([torch.from_numpy(each).permute(2, 0, 1).float() / 255 for each in pixels])


def array_of(images: torch.Tensor) -> np.ndarray:
    """(H, W, C) from 0 to 255 from a batch of one."""
    pixels: np.ndarray = images[0].permute(1, 2, 0).double().numpy() * 255
    return pixels


def pillow(pixels: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def array_of_pillow(image: PIL.Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def boxed(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Down and up by Pillow, one axis at a time: recent versions take the longer one of an image first."""
    height, width = pixels.shape[:2]
    rows, columns = int(height * factor), int(width * factor)
    image = pillow(pixels)
    for size in ((columns, height), (columns, rows), (width, rows), (width, height)):
        image = image.resize(size, PIL.Image.Resampling.BOX)
    return array_of_pillow(image).copy()


def through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = BytesIO()
    pillow(pixels).save(file, "JPEG", quality=quality)
    return array_of_pillow(PIL.Image.open(file))


# ---- each corruption against a reference of its own


@pytest.mark.parametrize("side", [32, 96, 224])
@pytest.mark.parametrize("name", NAMES)
def test_corruption_is_that_of_the_reference(name: str, side: int) -> None:
    pixels = photograph(side, side, seed=side)
    for severity in range(1, 6):
        parameters = SEVERITIES[name].at(severity, side)
        result = digital.corrupt(name, tensor_of(pixels), parameters, NOTHING_DRAWN)
        expected = getattr(imagenet_c, name)(pixels, *parameters)
        if name == "jpeg_compression" and not features.check_feature("libjpeg_turbo"):
            assert np.abs(array_of(result) - expected).mean() < 1
        else:
            # float32 against float64
            assert np.abs(array_of(result) - expected).max() <= 2e-4


@LAW
@given(st.integers(8, 260), st.integers(8, 260), st.floats(0.15, 1), st.sampled_from([1, 3]), st.integers(0, 99))
def test_pixelate_is_pillows(height: int, width: int, factor: float, channels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    expected = boxed(pixels, factor)
    assert torch.equal(pixelate(tensor_of(pixels), factor), tensor_of(expected))
    assert np.array_equal(by_arithmetic(pixels, factor), expected)


def by_arithmetic(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Pixelated as on other devices than a CPU."""
    levels = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    small = int(pixels.shape[0] * factor), int(pixels.shape[1] * factor)
    return boxed_levels(levels, small)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("factor", [0.95, 0.9, 0.85, 0.75, 0.65, 0.6, 0.5, 0.4, 0.3, 0.25])
def test_pixelate_is_pillows_where_centres_lie_on_a_border(factor: float) -> None:
    # odd sides, whose boxes end on the centre of a pixel and where rounding decides
    for side in (9, 13, 17, 19, 31, 47, 101, 225, 383):
        pixels = np.random.default_rng(side).integers(0, 256, (side, 10, 1), dtype=np.uint8)
        expected = boxed(pixels, factor)
        assert np.array_equal(by_arithmetic(pixels, factor), expected), side
        assert torch.equal(pixelate(tensor_of(pixels), factor), tensor_of(expected)), side


PICTURES = {
    "photograph": photograph,
    "noise": lambda h, w, c, seed: np.random.default_rng(seed).integers(0, 256, (h, w, c), dtype=np.uint8),
    "black and white": lambda h, w, c, seed: (
        255 * np.random.default_rng(seed).integers(0, 2, (h, w, c), dtype=np.uint8)
    ),
}


@to_the_bit
@pytest.mark.parametrize("picture", PICTURES)
@LAW
@given(st.integers(8, 50), st.integers(8, 50), st.integers(1, 100), st.sampled_from([1, 3]), st.integers(0, 99))
def test_jpeg_is_pillows_to_the_bit(
    picture: str, height: int, width: int, quality: int, channels: int, seed: int
) -> None:
    pixels = PICTURES[picture](height, width, channels, seed)
    expected = through_jpeg(pixels, quality)
    assert np.abs(array_of(jpeg_compression(tensor_of(pixels), quality)) - expected).max() <= 1e-4
    # and by the arithmetic that other devices are left with
    levels = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    assert np.array_equal(compressed_levels(levels, quality)[0].permute(1, 2, 0).numpy(), expected)


@to_the_bit
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_stored_is_cut_to_eight_bits_and_compressed(channels: int) -> None:
    generator = np.random.default_rng(0)
    levels = photograph(45, 38, channels) * (254 / 255) + generator.uniform(0.01, 0.99, (45, 38, channels))
    images = torch.from_numpy(levels / 255).float().permute(2, 0, 1)[None]
    expected = imagenet_c.stored(levels if channels == 3 else levels[..., 0]).reshape(levels.shape)
    assert np.abs(array_of(stored(images)) - expected).max() <= 1e-4
    assert stored(images.bfloat16()).dtype == torch.bfloat16


def test_what_is_stored_of_whole_numbers_is_these() -> None:
    levels = torch.arange(256.0)
    for images in (levels / 255, levels * (1 / 255), torch.nextafter(levels / 255, torch.zeros(256))):
        # a flat picture survives a JPEG of this quality
        flat = images[:, None, None, None].expand(256, 1, 8, 8)
        assert torch.equal((stored(flat) * 255).round(), levels[:, None, None, None].expand(256, 1, 8, 8))


def test_saturate_is_that_of_the_reference_for_every_kind_of_colour() -> None:
    values = np.array([0, 1, 51, 127, 128, 254, 255], dtype=np.uint8)
    colours = np.stack(np.meshgrid(values, values, values), axis=-1).reshape(7, 49, 3)
    for factor, added in {*SEVERITIES["saturate"].large, *SEVERITIES["saturate"].small, (1.0, 0.0), (0.0, 0.0)}:
        result = saturate(tensor_of(colours), factor, added)
        expected = imagenet_c.saturate(colours, factor, added)
        assert np.abs(array_of(result) - expected).max() <= 2e-4, (factor, added)


# ---- what each one means


@LAW
@given(st.integers(0, 99), st.floats(0, 3), st.floats(0, 0.5))
def test_saturate_keeps_value_and_moves_saturation(seed: int, factor: float, added: float) -> None:
    images = tensor_of(np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8))
    result = saturate(images, factor, added)
    value, lowest = images.amax(1), images.amin(1)
    assert torch.allclose(result.amax(1), value)
    wanted = ((1 - lowest / value.clamp(min=1e-9)) * factor + added).clamp(0, 1)
    lit = value > 0
    assert torch.allclose((1 - result.amin(1) / value)[lit], wanted[lit], atol=1e-5)


def test_saturate_reddens_grey_pixels_only_where_saturation_is_added() -> None:
    grey = torch.full((1, 3, 1, 1), 0.5)
    assert torch.equal(saturate(grey, 20, 0), grey)
    assert torch.allclose(saturate(grey, 5, 0.2).flatten(), torch.tensor([0.5, 0.4, 0.4]))


def test_saturate_leaves_images_of_one_channel_as_they_are() -> None:
    images = tensor_of(photograph(12, 9, 1))
    assert torch.equal(saturate(images, 5, 0.1), images)


@LAW
@given(st.floats(0, 1), st.integers(0, 99))
def test_contrast_keeps_the_mean_of_each_channel_and_scales_the_deviation(factor: float, seed: int) -> None:
    images = tensor_of(photograph(15, 12, 3, seed), photograph(15, 12, 3, seed + 1))
    result = contrast(images, factor)
    assert torch.allclose(result.mean((2, 3)), images.mean((2, 3)), atol=1e-5)
    assert torch.allclose(result.std((2, 3)), factor * images.std((2, 3)), atol=1e-5)


@pytest.mark.parametrize("factor", [0.25, 0.5])
def test_pixelate_of_whole_boxes_is_their_rounded_mean(factor: float) -> None:
    pixels, box = photograph(16, 24), round(1 / factor)
    small = pixels.astype(float).reshape(16, 24 // box, box, 3).mean(2)
    # rounded between the axes, halves up
    small = np.floor(np.floor(small + 0.5).reshape(16 // box, box, 24 // box, 3).mean(1) + 0.5)
    expected = small.repeat(box, axis=0).repeat(box, axis=1)
    assert np.abs(array_of(pixelate(tensor_of(pixels), factor)) - expected).max() <= 1e-4


def test_jpeg_of_lower_quality_loses_more() -> None:
    images = tensor_of(photograph(64, 64))
    lost = [float((jpeg_compression(images, q) - images).square().mean()) for q in (95, 75, 50, 25, 10, 1)]
    assert lost == sorted(lost)
    assert lost[-1] > 5 * lost[0] > 0


# ---- laws of every corruption


@pytest.mark.parametrize("name", [*NAMES, "stored"])
@LAW
@given(st.integers(1, 5), st.sampled_from([1, 3]), st.integers(1, 5), st.data())
def test_corruption_does_not_depend_on_batch_or_order(
    name: str, count: int, channels: int, severity: int, data: st.DataObject
) -> None:
    images = tensor_of(*(photograph(9, 19, channels, seed) for seed in range(count)))

    def corrupted(part: torch.Tensor) -> torch.Tensor:
        if name == "stored":
            return stored(part)
        return digital.corrupt(name, part, SEVERITIES[name].at(severity, 224), NOTHING_DRAWN)

    whole = corrupted(images)
    order = torch.tensor(data.draw(st.permutations(range(count))))
    for part in order.split(data.draw(st.integers(1, count))):
        assert torch.equal(corrupted(images[part]), whole[part])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 3), (17, 30, 3)])
def test_shape_dtype_and_range_are_kept(name: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    images = tensor_of(photograph(*shape), photograph(*shape, seed=1)).to(dtype)
    for severity in (1, 5):
        parameters = SEVERITIES[name].at(severity, 224)
        result = digital.corrupt(name, images, parameters, NOTHING_DRAWN)
        assert (result.shape, result.dtype) == (images.shape, dtype)
        assert bool(((result >= 0) & (result <= 1)).all())
        # computed in float32, whatever the images are held in
        assert torch.equal(result, digital.corrupt(name, images.float(), parameters, NOTHING_DRAWN).to(dtype))


@pytest.mark.parametrize("name", ["contrast", "pixelate"])
def test_channels_do_not_mix(name: str) -> None:
    images = tensor_of(photograph(20, 26))
    parameters = SEVERITIES[name].at(3, 224)
    alone = [digital.corrupt(name, images[:, c : c + 1], parameters, NOTHING_DRAWN) for c in range(3)]
    assert torch.equal(digital.corrupt(name, images, parameters, NOTHING_DRAWN), torch.cat(alone, dim=1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_flat_picture_stays_what_it_is(name: str, level: int) -> None:
    flat = torch.full((1, 1, 12, 20), level / 255)
    result = digital.corrupt(name, flat, SEVERITIES[name].at(3, 224), NOTHING_DRAWN)
    # quality 15 has steps of 53 / 8 for the mean of a block
    assert float((result - flat).abs().max()) * 255 <= (53 / 16 + 0.51 if name == "jpeg_compression" else 1e-4)
