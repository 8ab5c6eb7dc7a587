"""Peers are measured as they are meant to be, and one that is absent is named with what installs it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from mae_bench.perf import peers
from mae_bench.perf.corruptions import NAMES
from mae_bench.perf.degradations import gaussian_blur, peer_blur, smooth_images, stacked_blur
from mae_bench.perf.peers import PEERS, AbsentPeerError, peer, present


@pytest.mark.parametrize("name", PEERS)
def test_an_absent_peer_is_named_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PEERS[name].module, None)
    with pytest.raises(AbsentPeerError, match=f"{name} was absent .*: {PEERS[name].command}$"):
        peer(name)


def test_a_peer_that_breaks_on_import_is_absent_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise AttributeError(f"module {name} has no attribute float_")

    monkeypatch.setattr(peers, "import_module", broken)
    with pytest.raises(
        AbsentPeerError, match="AttributeError: module numba has no attribute float_; pip install numba"
    ):
        peer("numba")


def test_those_that_are_present_are_had_and_the_others_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    notes: list[str] = []
    assert list(present(("kornia", "OpenCV"), notes)) == ["kornia"]
    assert len(notes) == 1
    assert "OpenCV was absent" in notes[0]


@pytest.mark.parametrize("name", ["kornia", "torchvision", "OpenCV", "scikit-image"])
@pytest.mark.parametrize(("channels", "side", "sigma"), [(3, 224, 1.0), (3, 32, 1.0), (1, 28, 2.0)])
def test_peers_blur_as_we_do(name: str, channels: int, side: int, sigma: float) -> None:
    batch = smooth_images(2, channels, side)
    found: Any = peer_blur(name, peer(name), batch, sigma)()
    if not isinstance(found, torch.Tensor):
        found = torch.from_numpy(np.stack([picture.reshape(side, side, channels) for picture in found])).movedim(-1, 1)
    torch.testing.assert_close(found.float(), gaussian_blur(batch, sigma)(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28)])
def test_all_sigmas_in_one_product_are_those_one_after_the_other(channels: int, side: int) -> None:
    batch, sigmas = smooth_images(5, channels, side), (0.5, 1.0, 2.0)
    for found, sigma in zip(stacked_blur(batch, sigmas)(), sigmas, strict=True):
        torch.testing.assert_close(found, gaussian_blur(batch, sigma)(), rtol=0, atol=1e-5)


@pytest.mark.skipif(find_spec("imagecorruptions") is None, reason=PEERS["imagecorruptions"].command)
@pytest.mark.thorough
def test_every_corruption_of_the_peer_runs_and_its_surroundings_are_left_alone() -> None:
    before = set(vars(np))
    module = peer("imagecorruptions")
    picture = (255 * smooth_images(1, 3, 64)[0]).byte().movedim(0, -1).numpy()
    for name in NAMES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert module.corrupt(picture, corruption_name=name, severity=3).shape == picture.shape
    assert set(vars(np)) == before
    assert "pkg_resources" not in sys.modules
    assert peer("imagecorruptions") is module  # patched once


def test_the_pixel_loop_of_glass_blur_moves_pixels_and_makes_none() -> None:
    image = np.arange(20 * 20 * 3, dtype=np.int64).reshape(20, 20, 3)
    shuffled = image.copy()
    np.random.seed(0)
    peers._swap(shuffled, 2, 1)
    assert not np.array_equal(shuffled, image)
    assert sorted(map(tuple, shuffled.reshape(-1, 3))) == sorted(map(tuple, image.reshape(-1, 3)))
    assert np.array_equal(shuffled[:1, :1], image[:1, :1])


def test_multichannel_means_the_last_axis() -> None:
    seen: list[Any] = []

    def gaussian(image: Any, sigma: float, channel_axis: Any = None) -> Any:
        seen.append((sigma, channel_axis))
        return image

    filtered: Callable[..., Any] = peers._with_multichannel(gaussian)
    filtered(0, sigma=1.0, multichannel=True)
    filtered(0, 2.0)
    assert seen == [(1.0, -1), (2.0, None)]
