"""Pixels as weighted sums of their neighbours: kernels that separate, and kernels that do not, each by the method that
is fastest on the device and at the size at hand.

Images are (B, C, H, W) float32 of whatever range. Borders are called as in scipy: beyond ``nearest`` the last pixel is
repeated, ``mirror`` mirrors about its centre, ``reflect`` about its edge. All methods give the same pixels but for the
rounding of float32; ``kornia`` is the one to read and to test the others against.

* ``toeplitz``: two matrix products, of the columns and of the rows, with a matrix that holds the kernel and the border;
  lines that are long are taken in bands, outside of which the matrix is 0.
* ``shift-and-add``: a shifted copy for each weight of the kernel that is not 0, one image after the other, so that
  what is summed stays in the cache.
* ``fft``: a product of Fourier transforms.
* ``kornia``: its ``filter2d_separable`` and ``filter2d``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from kornia.filters import filter2d, filter2d_separable
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn.functional import pad

from mae_bench.degradations.parts import parts

Method = Literal["toeplitz", "shift-and-add", "fft", "kornia"]
Size = tuple[int, int]

_PAD_MODE = {"mirror": "reflect", "nearest": "replicate"}
"""What torch and kornia call a border."""

_BAND = 32
"""Pixels of a line whose sums are one matrix product. On one core with AVX2 bands of 16, 32 and 56 pixels take 1.2, 1
and 1 times as long at a deviation of 1 to 8 pixels and 224 px.
"""

_CACHED_VALUES = 4 * 3 * 224 * 224
"""Values that are worked on at a time on a CPU: those of 4 images of 224 pixels, whose intermediate results are as fast
to reach as those of one, and whose products are called a quarter as often.
"""

_MOST_SHIFTS = 80
"""Weights of a kernel that all images share, up to which shifted copies are faster than Fourier transforms. On one core
with AVX2 copies for 60 weights take 0.5 to 0.6 of the time of transforms at 224 px, 0.7 to 1.3 at 96 and 0.4 to 1.4 at
32; for 100 weights 0.8 to 1, 1.3 to 1.6 and 0.7 to 1.4; for 150 weights 1 to 1.4, 1.5 to 2.8 and 0.6 to 2.1.
"""

_MOST_OWN_SHIFTS = ((128, 80), (64, 30), (0, 10))
"""The same for kernels of which each image has its own, from a side in pixels on: there each copy is of one image, and
the smaller it is, the more of its time is that of the call. For 31 weights copies take 0.2 to 0.4 of the time of
transforms at 224 px, 0.8 to 1.5 at 96 and 1 to 6 at 32; for 15 weights 0.2, 0.4 to 1 and 0.8 to 4.
"""


_KORNIA_BELOW = 192
"""Side in pixels up to which kornia is the fastest where its kernels are narrow and each image has its own: on one core
with AVX2 it takes 0.3 to 0.7 of the time of the faster of the others at 28 to 64 px, 0.5 to 0.9 at 96 and 128, 0.8 to 2
at 160, and 1.1 to 2.1 at 224.
"""


class _Band(NamedTuple):
    """``weights`` (pixels, neighbours): what the pixels of the slice ``to`` are made of in the slice ``of``."""

    to: slice
    of: slice
    weights: Tensor


def separable_method(device: torch.device, elsewhere: Method) -> Method:
    """How :func:`separable` works on ``device``: ``elsewhere`` than on a CPU by that method."""
    return "toeplitz" if device.type == "cpu" else elsewhere


def correlation_method(weights: int, own: bool, size: Size, device: torch.device, elsewhere: Method) -> Method:
    """How :func:`correlation` works on images of ``size`` (H, W) with a kernel of that many ``weights`` other than 0,
    or where each image has its ``own``: on a CPU by the fastest method, on another device by the one ``elsewhere``.

    >>> correlation_method(31, True, (224, 224), torch.device("cpu"), "kornia")
    'shift-and-add'
    """
    if device.type != "cpu" or (own and elsewhere == "kornia" and min(size) < _KORNIA_BELOW):
        return elsewhere
    most = next(most for side, most in _MOST_OWN_SHIFTS if min(size) >= side) if own else _MOST_SHIFTS
    return "shift-and-add" if weights <= most else "fft"


def separable(images: Tensor, kernel: tuple[float, ...], border: str, method: Method) -> Tensor:
    """Each pixel as the sum of its neighbours, weighted by an odd number of weights down and across: ``toeplitz`` or
    ``kornia``. To ``toeplitz`` a kernel may be wider than the image.

    >>> separable(torch.eye(3)[None, None], (0.25, 0.5, 0.25), "nearest", "toeplitz")[0, 0, 0]
    tensor([0.6250, 0.3125, 0.0625])
    """
    if method == "kornia":
        line = torch.tensor(kernel, device=images.device)[None]
        blurred: Tensor = filter2d_separable(images, line, line, border_type=_PAD_MODE[border])
        return blurred
    height, width = images.shape[-2:]
    # what is written into room of its own has no gradient
    if images.device.type != "cpu" or (images.requires_grad and torch.is_grad_enabled()):
        rows, columns = (toeplitz(side, kernel, border, images.device) for side in (height, width))
        return rows @ (images @ columns.mT)
    planes = images.reshape(-1, height, width).contiguous()  # also where channels come last
    result = torch.empty_like(planes)
    pieces = parts(planes, _CACHED_VALUES)
    between = torch.empty(pieces[0].stop if pieces else 0, height, width)
    for part in pieces:
        lines, summed = planes[part], between[: part.stop - part.start]
        for band in _bands(width, kernel, border):
            torch.mm(lines.view(-1, width)[:, band.of], band.weights.mT, out=summed.view(-1, width)[:, band.to])
        for band in _bands(height, kernel, border):
            weights = band.weights.expand(len(lines), -1, -1)
            torch.bmm(weights, summed[:, band.of], out=result[part][:, band.to])
    return result.view_as(images)


def correlation(images: Tensor, kernel: Tensor, border: str, method: Method) -> Tensor:
    """Each pixel as the sum of its neighbours, weighted by ``kernel`` (B or 1, 2r+1, 2r+1): ``shift-and-add``, ``fft``
    or ``kornia``. To all but ``kornia`` a kernel may be wider than the image.

    >>> correlation(torch.eye(2)[None, None], torch.tensor([[[0, 0, 0], [0, 1, 2], [0, 0, 0.0]]]), "nearest", "fft")
    tensor([[[[1., 0.],
              [2., 3.]]]])
    """
    if method == "kornia":
        summed: Tensor = filter2d(images, kernel, border_type=_PAD_MODE[border])
        return summed
    if images.device.type != "cpu":
        return _transformed(images, kernel, border)
    if method == "fft":
        own = len(kernel) > 1
        pieces = parts(images, _CACHED_VALUES)
        transformed = [_transformed(images[part], kernel[part] if own else kernel, border) for part in pieces]
        return torch.cat(transformed) if transformed else images.clone()
    result = torch.zeros_like(images)
    if len(kernel) == 1:
        for part in parts(images, _CACHED_VALUES):
            _add_shifted(result[part], images[part], kernel[0], border)
    else:
        for index, own_kernel in enumerate(kernel):
            _add_shifted(result[index : index + 1], images[index : index + 1], own_kernel, border)
    return result


def inside(position: Tensor, size: int, border: str) -> Tensor:
    """The pixels of a line of ``size`` that stand for integer ``position``, which may lie far outside of it.

    >>> inside(torch.arange(-2, 5), 3, "mirror").tolist()
    [2, 1, 0, 1, 2, 1, 0]
    """
    if border == "nearest":
        return position.clamp(0, size - 1)
    # the border pixel counts twice in a period of "reflect", once in one of "mirror"
    period = 2 * size if border == "reflect" else max(2 * size - 2, 1)
    position = position % period
    return torch.minimum(position, (2 * size - 1 if border == "reflect" else period) - position)


@lru_cache(maxsize=64)
def toeplitz(size: int, kernel: tuple[float, ...], border: str, device: torch.device) -> Tensor:
    """(size, size): the weight of each pixel of a line in each pixel of the line of sums. The border is folded in, so
    that a kernel may be wider than the line.

    >>> toeplitz(3, (0.25, 0.5, 0.25), "nearest", torch.device("cpu"))
    tensor([[0.7500, 0.2500, 0.0000],
            [0.2500, 0.5000, 0.2500],
            [0.0000, 0.2500, 0.7500]])
    """
    radius = len(kernel) // 2
    # what is kept may be used in another mode than the one that it is made in
    with torch.inference_mode(False):
        pixel = inside(torch.arange(size)[:, None] + torch.arange(-radius, radius + 1), size, border)
        weights = torch.tensor(kernel, dtype=torch.float64).expand(size, -1)
        return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, pixel, weights).float().to(device)


@lru_cache(maxsize=64)
def _bands(size: int, kernel: tuple[float, ...], border: str) -> tuple[_Band, ...]:
    bands = []
    matrix = toeplitz(size, kernel, border, torch.device("cpu"))
    step = _BAND if size > 2 * _BAND else size  # a short line is a single band
    for start in range(0, size, step):
        rows = matrix[start : start + step]
        used = rows.any(0).nonzero()
        of = slice(int(used[0]), int(used[-1]) + 1)
        bands.append(_Band(slice(start, start + len(rows)), of, rows[:, of].contiguous()))
    return tuple(bands)


def _around(images: Tensor, radius: int, border: str) -> Tensor:
    """``images`` with what stands for the ``radius`` pixels beyond each side."""
    if border in _PAD_MODE and radius < min(images.shape[-2:]):
        return pad(images, (radius,) * 4, mode=_PAD_MODE[border])
    rows, columns = (
        inside(torch.arange(-radius, side + radius, device=images.device), side, border) for side in images.shape[-2:]
    )
    return images.index_select(-2, rows).index_select(-1, columns)


def _add_shifted(result: Tensor, images: Tensor, kernel: Tensor, border: str) -> None:
    """Add to ``result`` the ``images`` shifted and weighted as one ``kernel`` (2r+1, 2r+1) has it."""
    height, width = images.shape[-2:]
    around = _around(images, kernel.shape[-1] // 2, border)
    places = kernel.nonzero()
    for (y, x), weight in zip(places.tolist(), kernel[tuple(places.T)].tolist(), strict=True):
        result.add_(around[..., y : y + height, x : x + width], alpha=weight)


def _transformed(images: Tensor, kernel: Tensor, border: str) -> Tensor:
    radius = kernel.shape[-1] // 2
    height, width = images.shape[-2:]
    # room to spare: what wraps around at the end of the transform is cut off
    size = [next_fast_len(side + 2 * radius, real=True) for side in (height, width)]
    spectrum = torch.fft.rfft2(_around(images, radius, border), s=size)
    spectrum *= torch.fft.rfft2(kernel, s=size)[:, None].conj()
    summed: Tensor = torch.fft.irfft2(spectrum, s=size)
    return summed[..., :height, :width]
