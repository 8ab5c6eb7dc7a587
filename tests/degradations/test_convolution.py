"""Sums of neighbouring pixels by each method, against scipy, kornia and each other."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.filters import gaussian_blur2d
from scipy import ndimage

from mae_bench.cells import Level
from mae_bench.degradations import BUILT_IN, Degradation, Setting, blur
from mae_bench.degradations.blur import gaussian_blur, gaussian_kernel
from mae_bench.degradations.convolution import (
    Method,
    correlation,
    correlation_method,
    inside,
    separable,
    separable_method,
)

pytestmark = pytest.mark.usefixtures("one_thread")
LAW = settings(max_examples=15, deadline=None, derandomize=True)

CPU = torch.device("cpu")
BORDERS = ("nearest", "mirror", "reflect")
# within one band, at the edge of one, and in several, the last of which is a short one
SIDES = st.sampled_from([5, 28, 32, 63, 64, 65, 97, 130])
METHODS: tuple[Method, ...] = ("shift-and-add", "fft")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 4 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 2


def random_kernel(count: int, radius: int, seed: int) -> torch.Tensor:
    """(count, 2r+1, 2r+1): weights of either sign, of which half are 0."""
    generator = np.random.default_rng(seed)
    kernel = generator.standard_normal((count, 2 * radius + 1, 2 * radius + 1))
    kernel *= generator.integers(0, 2, kernel.shape)
    return torch.from_numpy(kernel / max(np.abs(kernel).sum(), 1)).float()


@LAW
@given(SIDES, SIDES, st.integers(0, 40), st.sampled_from(BORDERS), st.integers(0, 99))
def test_separable_sum_is_scipys_whatever_the_size_and_the_border(
    height: int, width: int, radius: int, border: str, seed: int
) -> None:
    images = noise(2, 3, height, width, seed=seed)
    # not symmetric, so that a flipped kernel shows
    weights = np.random.default_rng(seed).uniform(-1, 1, 2 * radius + 1)
    weights /= np.abs(weights).sum()
    found = separable(images, tuple(weights.tolist()), border, "toeplitz").numpy()
    expected = images.double().numpy()
    for axis in (2, 3):
        expected = ndimage.correlate1d(expected, weights, axis=axis, mode=border)
    assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("border", BORDERS)
def test_it_does_not_matter_how_images_lie_in_memory(border: str, count: int) -> None:
    images = noise(count, 3, 97, 70)
    lying = {
        "channels last": images.movedim(1, -1).contiguous().movedim(-1, 1),
        "sideways": images.mT.contiguous().mT,
        "part of larger ones": noise(count, 3, 99, 80).copy_(torch.nn.functional.pad(images, (0, 10, 0, 2)))[
            ..., :97, :70
        ],
    }
    line, kernels = (0.25, 0.5, 0.25), [random_kernel(n, 2, 0) for n in {1, count}]
    for name, other in lying.items():
        assert torch.equal(other, images), name
        assert torch.equal(separable(other, line, border, "toeplitz"), separable(images, line, border, "toeplitz")), (
            name
        )
        for kernel in kernels:
            for method in METHODS:
                found, expected = (correlation(each, kernel, border, method) for each in (other, images))
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@LAW
@given(SIDES, SIDES, st.floats(0.3, 8.0), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_gaussian_blur_is_kornias(height: int, width: int, sigma: float, dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, height, width).to(dtype)
    radius = min(math.ceil(4 * sigma), height - 1, width - 1)
    expected = gaussian_blur2d(images.float(), 2 * radius + 1, (sigma, sigma), border_type="reflect")
    kernel = gaussian_kernel(sigma, radius)
    for method in ("toeplitz", "kornia"):
        assert float((separable(images.float(), kernel, "mirror", method) - expected).abs().max()) <= 1e-5
    rounded = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0
    assert float((gaussian_blur(images, sigma).float() - expected).abs().max()) <= 1e-5 + rounded


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("own", [False, True])
@LAW
@given(
    st.integers(2, 40), st.integers(2, 40), st.integers(0, 12), st.sampled_from(BORDERS), st.integers(0, 99)
)  # fmt: skip
def test_correlation_is_scipys_by_every_method(
    own: bool, method: Method, height: int, width: int, radius: int, border: str, seed: int
) -> None:
    images, kernel = noise(3, 2, height, width, seed=seed), random_kernel(3 if own else 1, radius, seed)
    found = correlation(images, kernel, border, method).numpy()
    for image, weights, summed in zip(images.double().numpy(), kernel.expand(3, -1, -1).numpy(), found, strict=True):
        for channel in range(2):
            expected = ndimage.correlate(image[channel], weights.astype(float), mode=border)
            assert np.abs(summed[channel] - expected).max() <= 1e-5


@LAW
@given(st.integers(13, 70), st.integers(13, 70), st.integers(0, 12), st.booleans(), st.integers(0, 99))
def test_correlation_is_kornias(height: int, width: int, radius: int, own: bool, seed: int) -> None:
    images, kernel = noise(2, 3, height, width, seed=seed), random_kernel(2 if own else 1, radius, seed)
    for border in ("mirror", "nearest"):
        expected = correlation(images, kernel, border, "kornia")
        for method in METHODS:
            assert float((correlation(images, kernel, border, method) - expected).abs().max()) <= 1e-5


@LAW
@given(st.sampled_from(BORDERS), st.integers(1, 9), st.integers(0, 20))
def test_what_stands_beyond_the_border_is_numpys(border: str, size: int, beyond: int) -> None:
    line = np.arange(size)
    mode = {"nearest": "edge", "mirror": "reflect", "reflect": "symmetric"}[border]
    expected = np.pad(line, beyond, mode=mode)
    assert inside(torch.arange(-beyond, size + beyond), size, border).tolist() == expected.tolist()


@pytest.mark.parametrize("method", ["toeplitz", *METHODS])
@LAW
@given(st.integers(1, 9), st.integers(3, 80), st.integers(0, 99))
def test_an_image_is_summed_alike_in_any_batch(method: Method, count: int, side: int, seed: int) -> None:
    """Whether there are more images than are worked on at a time, or fewer."""
    images, kernel = noise(count, 3, side, side, seed=seed), random_kernel(count, 3, seed)

    def summed(rows: slice) -> torch.Tensor:
        if method == "toeplitz":
            return separable(images[rows], gaussian_kernel(2.0, 8), "mirror", method)
        return correlation(images[rows], kernel[rows], "mirror", method)

    whole = summed(slice(None))
    for index in range(count):
        assert float((summed(slice(index, index + 1)) - whole[index : index + 1]).abs().max()) <= 1e-5


def test_a_batch_larger_than_what_is_worked_on_at_a_time_is_summed_whole() -> None:
    images = noise(6, 3, 224, 224)
    expected = images.double().numpy()
    kernel = gaussian_kernel(1.0, 4)
    for axis in (2, 3):
        expected = ndimage.correlate1d(expected, kernel, axis=axis, mode="mirror")
    assert np.abs(separable(images, kernel, "mirror", "toeplitz").numpy() - expected).max() <= 1e-5
    dense = torch.tensor(np.outer(kernel, kernel), dtype=torch.float32)[None]
    for method in METHODS:
        assert np.abs(correlation(images, dense, "mirror", method).numpy() - expected).max() <= 1e-5


def test_what_is_kept_in_inference_mode_serves_outside_of_it() -> None:
    images = noise(1, 1, 71, 71)
    kernel = gaussian_kernel(1.2345, 5)
    with torch.inference_mode():
        inside_it = separable(images, kernel, "mirror", "toeplitz")
    for side in (31, 71):
        learnt = images[..., :side, :side].clone().requires_grad_()
        separable(learnt, kernel, "mirror", "toeplitz").sum().backward()
        assert learnt.grad is not None
    assert torch.equal(separable(images, kernel, "mirror", "toeplitz"), inside_it)


# ---- which method


def test_on_another_device_than_a_cpu_the_method_stays_what_it_was() -> None:
    cuda = torch.device("cuda")
    assert separable_method(cuda, "kornia") == "kornia"
    assert separable_method(CPU, "kornia") == "toeplitz"
    for weights in (1, 1000):
        for elsewhere in ("kornia", "fft"):
            assert correlation_method(weights, True, (224, 224), cuda, elsewhere) == elsewhere
    for kind in BLURS:
        if not kind.by_severity:
            assert blur.method_of(kind.name, Level(8.0), (224, 224), cuda) == "kornia"


@LAW
@given(st.integers(1, 300), st.integers(1, 300), st.booleans(), st.integers(8, 400))
def test_more_weights_never_bring_shifted_copies_back(weights: int, others: int, own: bool, side: int) -> None:
    few, many = sorted((weights, others))
    for elsewhere in ("kornia", "fft"):
        methods = [correlation_method(count, own, (side, side), CPU, elsewhere) for count in (few, many)]
        assert methods != ["fft", "shift-and-add"]


@pytest.mark.parametrize(("side", "method"), [(28, "kornia"), (96, "kornia"), (224, "shift-and-add")])
def test_small_images_with_kernels_of_their_own_are_left_to_kornia(side: int, method: str) -> None:
    assert correlation_method(39, True, (side, side), CPU, "kornia") == method


BLURS = [kind for kind in BUILT_IN if (kind.module or kind.family) == "blur"]


@pytest.mark.parametrize("side", [28, 224])
@pytest.mark.parametrize("kind", BLURS, ids=lambda kind: f"{kind.family}-{kind.name}")
def test_a_blur_works_as_it_says(kind: Degradation, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Method] = []

    def watched(work: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(*arguments: Any) -> torch.Tensor:
            used.append(arguments[-1])
            return work(*arguments)

        return run

    said = []
    for value in (2.0, 3.0, 5.0):
        level = Level(value, severity=kind.by_severity)
        with monkeypatch.context() as patch:
            for work in (separable, correlation):
                patch.setattr(blur, work.__name__, watched(work))
            kind.apply(torch.rand(1, 1, side, side), level, Setting(torch.arange(1), 0, side, (0.5,)))
        said.append(blur.method_of(kind.name, level, (side, side), CPU, reference_size=side))
        # a disk is softened by a sum of its own first
        assert used[-1:] == [method for method in said[-1:] if method]
        used.clear()
    assert None not in said or kind.name == "zoom_blur"
