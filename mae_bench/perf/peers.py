"""The programs that ours are held against, imported where they are measured; each may be absent, with a reason."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mae_bench.perf import PerfError


class AbsentPeerError(PerfError):
    """A peer that is not installed, or that cannot be imported."""


@dataclass(frozen=True)
class Peer:
    """What is imported, and the command that installs it."""

    module: str
    command: str


PEERS = {
    "kornia": Peer("kornia", "pip install kornia"),
    "torchvision": Peer("torchvision", "pip install torchvision"),
    "OpenCV": Peer("cv2", "pip install opencv-python-headless"),
    "scikit-image": Peer("skimage", "pip install scikit-image"),
    # which asks for opencv-python, whose window toolkit overwrites the headless build and needs a display's libraries
    "imagecorruptions": Peer("imagecorruptions", "pip install --no-deps imagecorruptions"),
    "numba": Peer("numba", "pip install numba"),
}


def peer(name: str) -> Any:
    """The module of the peer called ``name``, with one thread.

    Raises:
        AbsentPeerError: it cannot be imported; the message says why, and what installs it.
    """
    one = PEERS[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = _imagecorruptions() if name == "imagecorruptions" else import_module(one.module)
    except ModuleNotFoundError as error:
        raise AbsentPeerError(f"{name} was absent ({error}): {one.command}") from error
    except Exception as error:  # a package that does not fit the others breaks in its own way
        raise AbsentPeerError(
            f"{name} was absent, since its import raises {type(error).__name__}: {error}; {one.command}"
        ) from error
    if name == "OpenCV":
        module.setNumThreads(1)
    return module


def present(names: tuple[str, ...], notes: list[str]) -> dict[str, Any]:
    """Those of the peers that can be imported; why the others cannot joins the ``notes``."""
    found = {}
    for name in names:
        try:
            found[name] = peer(name)
        except AbsentPeerError as error:
            notes.append(str(error))
    return found


# ----------------------------------------------------------------------------- imagecorruptions


def _imagecorruptions() -> ModuleType:
    """The release, with what its surroundings have dropped since given back to it alone, and with the loop of its glass
    blur compiled by numba where that is installed, as in its repository.
    """
    with _pkg_resources():
        module = import_module("imagecorruptions")
        inside: Any = import_module("imagecorruptions.corruptions")
    if not hasattr(inside.np, "float_"):
        inside.np = ModuleType("numpy")
        inside.np.__dict__.update(vars(np), float_=np.float64)
    if "multichannel" not in signature(inside.gaussian).parameters and inside.gaussian.__name__ == "gaussian":
        inside.gaussian = _with_multichannel(inside.gaussian)
    try:
        inside.glass_blur = _compiled_glass_blur(inside.gaussian, import_module("numba"))
    except ModuleNotFoundError:
        return module
    module.corruption_dict["glass_blur"] = inside.glass_blur
    return module


@contextmanager
def _pkg_resources() -> Iterator[None]:
    """Inside, ``pkg_resources``, which setuptools no longer has, finds the files beside a module."""
    name = "pkg_resources"
    try:
        import_module(name)
    except ModuleNotFoundError:
        stand_in: Any = ModuleType(name)
        stand_in.resource_filename = lambda module, path: str(Path(str(sys.modules[module].__file__)).parent / path)
        sys.modules[name] = stand_in
        try:
            yield
        finally:
            del sys.modules[name]
    else:
        yield


def _with_multichannel(gaussian: Callable[..., Any]) -> Callable[..., Any]:
    """scikit-image's filter with the argument that ``channel_axis`` has replaced."""

    def filtered(image: Any, *arguments: Any, multichannel: bool = False, **options: Any) -> Any:
        return gaussian(image, *arguments, channel_axis=-1 if multichannel else None, **options)

    return filtered


def _swap(image: Any, delta: int, iterations: int) -> None:
    """Swap each pixel of (H, W, C), from the last to the first, with one that is drawn within ``delta`` of it."""
    height, width, channels = image.shape
    for _ in range(iterations):
        for h in range(height - delta, delta, -1):
            for w in range(width - delta, delta, -1):
                right, below = np.random.randint(-delta, delta), np.random.randint(-delta, delta)
                for c in range(channels):
                    kept = image[h, w, c]
                    image[h, w, c] = image[h + below, w + right, c]
                    image[h + below, w + right, c] = kept


GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
"""Sigma, distance and iterations of the published glass blur by severity."""


def _compiled_glass_blur(gaussian: Callable[..., Any], numba: Any) -> Callable[..., Any]:
    swap = numba.njit(_swap)

    def glass_blur(image: Any, severity: int = 1) -> Any:
        sigma, delta, iterations = GLASS[severity - 1]
        pixels = np.uint8(gaussian(np.array(image) / 255.0, sigma=sigma, multichannel=True) * 255)
        swap(pixels, delta, iterations)
        return np.clip(gaussian(pixels / 255.0, sigma=sigma, multichannel=True), 0, 1) * 255

    return glass_blur
