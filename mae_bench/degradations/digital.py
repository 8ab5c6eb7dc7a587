"""Digital corruptions of ImageNet-C: contrast, pixelate, JPEG compression and, of the four extra corruptions, saturate;
and what a published set keeps of a corrupted image.

Images are (B, C, H, W) in [0, 1], C = 1 or 3; computation is in float32, or in whole numbers held by float64, and the
dtype is kept. Nothing is random. Source: Hendrycks and Dietterich 2019, arXiv 1903.12261, and the code that made the
set; pixelate and JPEG compression are to the bit what Pillow and libjpeg-turbo give, and on a CPU they are these.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import PIL.features
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from mae_bench.degradations import Setting
from mae_bench.degradations.parts import by_parts

STORED_QUALITY = 85
"""JPEG quality at which ImageNet-C was published."""

_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)
"""Quantisation steps by vertical, then horizontal frequency: ITU-T T.81, tables K.1 and K.2."""

_COSINES = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)
"""The left half of the cosine transform of eight samples in units of 2**-13, by frequency. Some differ from the nearest
whole number by one: they are sums of the rounded constants by which libjpeg's accurate transform (Loeffler, Ligtenberg
and Moschytz 1989, ICASSP) multiplies.
"""

_TO_YCC = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))
_FROM_CHROMA = ((0, 91881), (-22554, -46802), (116130, 0))
"""RGB to luma and chroma, and what chroma adds to luma in RGB (JFIF 1.02), in units of 2**-16 rounded as in libjpeg."""


def corrupt(name: str, images: Tensor, parameters: tuple[float, ...], setting: Setting) -> Tensor:  # noqa: ARG001
    """Digital corruption ``name`` with the ``parameters`` of a severity, in the order of their table."""
    if name == "pixelate":
        (factor,) = parameters
        return pixelate(images, factor)
    if name == "jpeg_compression":
        (quality,) = parameters
        return jpeg_compression(images, int(quality))
    pixels = images.float()
    if name == "contrast":
        (factor,) = parameters
        corrupted = contrast(pixels, factor)
    else:
        factor, added = parameters
        corrupted = saturate(pixels, factor, added)
    return corrupted.clamp(0, 1).to(images.dtype)


def stored(images: Tensor) -> Tensor:
    """What a published set holds of ``images`` (B, C, H, W) in [0, 1]: cut to 8 bits, not rounded, and then JPEG of
    quality 85.

    >>> stored(torch.full((1, 1, 8, 8), 100.9 / 255)).mul(255).unique()
    tensor([100.])
    """
    # a whole number times 1/255 may come out of float32 a little below that number
    return _compressed(images, lambda pixels: (pixels.double().clamp(0, 1) * 255 + 1e-4).floor(), STORED_QUALITY)


def contrast(images: Tensor, factor: float) -> Tensor:
    """Differences from the mean of each image and channel, multiplied by ``factor``.

    >>> contrast(torch.tensor([[[[0.25, 0.75]]]]), 0.5)
    tensor([[[[0.3750, 0.6250]]]])
    """
    # in float64 the order of summing, which depends on the batch, cannot be seen
    mean = images.mean((2, 3), keepdim=True, dtype=torch.float64).to(images.dtype)
    return (images - mean) * factor + mean


def saturate(images: Tensor, factor: float, added: float) -> Tensor:
    """HSV saturation times ``factor`` plus ``added``, at most 1; value and hue are kept, and a grey pixel's hue is that
    of red. Images of one channel have no saturation and stay as they are.

    >>> saturate(torch.tensor([0.6, 0.3, 0.45]).reshape(1, 3, 1, 1), 2, 0).flatten()
    tensor([0.6000, 0.0000, 0.3000])
    """
    if images.shape[1] == 1:
        return images
    value, lowest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    span = value - lowest
    is_grey = span == 0
    red = torch.tensor([0.0, 1.0, 1.0], device=images.device, dtype=images.dtype)[:, None, None]
    # how far each channel is from the highest, in units of the span: what hue comes down to when saturation changes
    hue = torch.where(is_grey, red, (value - images) / span.masked_fill(is_grey, 1))
    saturation = (span / value.masked_fill(value == 0, 1) * factor + added).clamp(0, 1)
    return value * (1 - saturation * hue)


def pixelate(images: Tensor, factor: float) -> Tensor:
    """Height and width shrunk to ``factor`` of their pixels, at most all, by means over boxes and enlarged again, in 8
    bits throughout, first across and then down, as ``PIL.Image.resize`` with the filter ``BOX`` does it.
    """
    height, width = images.shape[-2:]
    rows, columns = int(height * factor), int(width * factor)
    if images.device.type != "cpu":
        return boxed_levels(_rounded(images).double(), (rows, columns)).div_(255).float().to(images.dtype)
    # where boxes are enlarged, each new pixel is the one that its centre lies in
    before, above = (
        ((np.arange(side) + 0.5) * (size / side)).astype(np.intp) for side, size in ((width, columns), (height, rows))
    )

    def boxed(picture: PIL.Image.Image, into: NDArray[np.float32]) -> None:
        for size in ((columns, height), (columns, rows)):
            picture = picture.resize(size, PIL.Image.Resampling.BOX)
        small = np.divide(_channels(picture), 255, dtype=into.dtype, order="C")
        small.take(before, 2).take(above, 1, out=into, mode="clip")

    return _by_pictures(images, _rounded, boxed)


def _rounded(images: Tensor) -> Tensor:
    """Whole numbers from 0 to 255, float32."""
    return (images.float() * 255).round_()


def _by_pictures(
    images: Tensor,
    levels: Callable[[Tensor], Tensor],
    change: Callable[[PIL.Image.Image, NDArray[np.float32]], None],
) -> Tensor:
    """``images`` (B, C, H, W) on the host as ``change`` leaves them, which is given each as a picture of its ``levels``
    and writes into (C, H, W).
    """
    changed = torch.empty(images.shape, dtype=torch.float32)
    height, width = images.shape[-2:]
    for image, into in zip(images.detach(), changed.numpy(), strict=True):
        # numpy converts to bytes five times as fast as torch, and Pillow puts channels together four times as fast as
        # an array is transposed
        planes = [
            PIL.Image.frombuffer("L", (width, height), channel, "raw", "L", 0, 1)
            for channel in levels(image).numpy().astype(np.uint8, order="C")
        ]
        change(PIL.Image.merge("RGB", planes) if len(planes) > 1 else planes[0], into)
    return changed.to(images.dtype)


def _channels(picture: PIL.Image.Image) -> NDArray[np.uint8]:
    """(C, H, W) of 0 to 255."""
    # line by line, each channel by itself, they are sooner turned about than where every third byte is of one channel
    lines = picture.tobytes("raw", "RGB;L" if picture.mode == "RGB" else picture.mode)
    return np.frombuffer(lines, np.uint8).reshape(picture.height, -1, picture.width).transpose(1, 0, 2)


def boxed_levels(levels: Tensor, size: tuple[int, int]) -> Tensor:
    """Whole numbers ``levels`` (B, C, H, W) from 0 to 255, float64, shrunk to ``size`` and enlarged again, in
    arithmetic that any device has.
    """
    height, width = levels.shape[-2:]
    rows, columns = size
    for across, down in (
        (_box_weights(width, columns, levels.device), _box_weights(height, rows, levels.device)),
        (_box_weights(columns, width, levels.device), _box_weights(rows, height, levels.device)),
    ):
        levels = _shifted(down @ _shifted(levels @ across.mT, 22), 22)
    return levels


def jpeg_compression(images: Tensor, quality: int) -> Tensor:
    """``images`` in 8 bits, compressed to a baseline JPEG of ``quality`` 1 to 100 and back, to the bit as Pillow with
    libjpeg-turbo does it by default: chroma halved in both directions and interpolated, the accurate integer transform.
    Images of one channel are luma.
    """
    return _compressed(images, _rounded, quality)


def _box_weights(side: int, size: int, device: torch.device) -> Tensor:
    """(size, side) float64 whole numbers: what each of ``side`` pixels adds to each of ``size``, in units of 2**-22. A
    pixel counts where its centre lies in the box that the new one covers, the far border included.
    """
    # in the order of Pillow's own operations: whether a centre lies on a border is a matter of rounding
    scale = side / size
    box = max(scale, 1.0)
    place = torch.arange(side, device=device)
    centre = (torch.arange(size, device=device, dtype=torch.float64)[:, None] + 0.5) * scale
    first, last = (centre - box / 2 + 0.5).floor(), (centre + box / 2 + 0.5).floor()
    offset = (place - centre + 0.5) * (1 / box)
    inside = (place >= first) & (place < last) & (offset > -0.5) & (offset <= 0.5)
    return inside * (2**22 / inside.sum(1, keepdim=True).double()).round()


def _compressed(images: Tensor, levels: Callable[[Tensor], Tensor], quality: int) -> Tensor:
    """``images`` (B, C, H, W) after JPEG compression of their whole ``levels`` from 0 to 255."""
    # other libraries than this one decide otherwise where a number is to be rounded
    if images.device.type != "cpu" or not PIL.features.check_feature("libjpeg_turbo"):
        return by_parts(
            images, lambda part: compressed_levels(levels(images[part]).double(), quality).div_(255).float()
        )

    def compressed(picture: PIL.Image.Image, into: NDArray[np.float32]) -> None:
        file = BytesIO()
        picture.save(file, "JPEG", quality=quality)
        np.divide(_channels(PIL.Image.open(file)), 255, out=into, dtype=into.dtype)

    return _by_pictures(images, levels, compressed)


def compressed_levels(levels: Tensor, quality: int) -> Tensor:
    """Whole numbers ``levels`` (B, C, H, W) from 0 to 255, float64, after JPEG compression, in arithmetic that any
    device has.
    """
    luma_steps, chroma_steps = (_steps(table, quality, levels.device) for table in (_LUMA_TABLE, _CHROMA_TABLE))
    if levels.shape[1] == 1:
        return _quantised(levels - 128, luma_steps) + 128
    to_ycc, from_chroma = (torch.tensor(m, device=levels.device).double() for m in (_TO_YCC, _FROM_CHROMA))
    # a hair below one half where chroma is rounded
    half = torch.tensor([2**15, 2**15 - 1, 2**15 - 1], device=levels.device)[:, None, None]
    ycc = ((torch.einsum("kc,bchw->bkhw", to_ycc, levels) + half) * 2.0**-16).floor()
    luma = _quantised(ycc[:, :1] - 128, luma_steps) + 128
    chroma = _enlarged(_quantised(_halved(ycc[:, 1:]), chroma_steps), (levels.shape[2], levels.shape[3]))
    added = _shifted(torch.einsum("kc,bchw->bkhw", from_chroma, chroma), 16)
    return (luma + added).clamp(0, 255)


def _steps(table: tuple[tuple[int, ...], ...], quality: int, device: torch.device) -> Tensor:
    """(8, 8) quantisation steps at a quality of 1 to 100: the ``table`` is that of 50."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table, device=device) * percent + 50) // 100).clamp(1, 255).double()


def _halved(chroma: Tensor) -> Tensor:
    """(B, C, H / 2 rounded up, a multiple of 8) means over squares of two by two pixels, exact halves rounded down in
    even columns and up in odd ones. The last column is repeated to the end of a block, the last row only to the end of
    a square.
    """
    height, width = chroma.shape[-2:]
    whole = pad(chroma, (0, -width % 16, 0, height % 2), mode="replicate")
    rows = whole[..., 0::2, :] + whole[..., 1::2, :]
    squares = rows[..., 0::2] + rows[..., 1::2]
    bias = 1 + torch.arange(squares.shape[3], device=chroma.device) % 2
    return ((squares + bias) / 4).floor()


def _enlarged(chroma: Tensor, size: tuple[int, int]) -> Tensor:
    """``chroma`` interpolated at ``size`` (H, W), a quarter of the way from each sample to the next ones, exact halves
    rounded up in even columns and down in odd ones.
    """
    height, width = size
    inside = chroma[..., : (height + 1) // 2, : (width + 1) // 2]
    quarters = _quarters(_quarters(inside, 2), 3)
    bias = 8 - torch.arange(quarters.shape[3], device=chroma.device) % 2
    return ((quarters + bias) / 16).floor()[..., :height, :width]


def _quarters(samples: Tensor, dim: int) -> Tensor:
    """Two values for each of the ``samples`` along ``dim``, in units of 1/4: three parts its own and one part that of
    the sample before, then after; there is none beyond the ends.
    """
    place = torch.arange(samples.shape[dim], device=samples.device)
    before = samples.index_select(dim, (place - 1).clamp(min=0))
    after = samples.index_select(dim, (place + 1).clamp(max=len(place) - 1))
    return torch.stack((3 * samples + before, 3 * samples + after), dim + 1).flatten(dim, dim + 1)


def _quantised(planes: Tensor, steps: Tensor) -> Tensor:
    """``planes`` (B, C, H, W), whole numbers from -128 to 127, once the cosine transform of each block of 8 by 8 is
    rounded to multiples of ``steps``. The last column and row are repeated to the end of a block.
    """
    count, channels, height, width = planes.shape
    whole = pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = whole.reshape(count, channels, whole.shape[2] // 8, 8, whole.shape[3] // 8, 8).transpose(3, 4)
    cosines = _cosines(planes.device)
    # rows, then columns; two more bits are kept between the passes, and the result is eight times too large
    coefficients = _shifted(cosines @ _shifted(blocks @ cosines.mT, 11), 15)
    levels = ((coefficients.abs() + 4 * steps) / (8 * steps)).floor() * coefficients.sign() * steps
    # columns, then rows
    inverse = _shifted(_shifted(cosines.mT @ levels, 11) @ cosines, 18).clamp(-128, 127)
    return inverse.transpose(3, 4).reshape(whole.shape)[..., :height, :width]


def _cosines(device: torch.device) -> Tensor:
    """(8, 8) float64 cosine transform by frequency and place: the right half mirrors the left, with even frequencies as
    it is and odd ones negated.
    """
    left = torch.tensor(_COSINES, device=device).double()
    sign = 1 - 2 * (torch.arange(8, device=device) % 2)[:, None]
    return torch.cat((left, sign * left.flip(1)), dim=1)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Whole numbers ``values`` over 2**bits, rounded, halves up."""
    return values.mul(2.0**-bits).add_(0.5).floor_()
