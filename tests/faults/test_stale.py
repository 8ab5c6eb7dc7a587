"""Decoded images in the cache are those of exactly what is asked for: whatever changes, they are decoded anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faults.reliability import Injection
from mae_bench import cached
from mae_bench import images as module
from mae_bench.images import Decoded, Manifest, View, decoded

Journal = Callable[[Injection], None]

COUNT = 12
VIEW = View(24, 24, "bilinear", 0.8888)


@dataclass(frozen=True)
class Asked:
    """All that decoded images are made of."""

    classes: tuple[str, ...] = ("cat", "dog")
    ids: tuple[str, ...] = tuple(f"{place:032x}-0" for place in range(COUNT))
    labels: tuple[int, ...] = tuple(place % 2 for place in range(COUNT))
    count: int = COUNT - 1
    view: View = VIEW
    channels: int = 3
    variant: str = "fog 1 0123456789ab"
    versions: dict[str, str] = field(default_factory=dict)
    format: int = cached.FORMAT
    order: tuple[int, ...] | None = None


BASE = Asked()
SWAPPED = (BASE.ids[1], BASE.ids[0], *BASE.ids[2:])
CHANGES: dict[str, Asked] = {
    "the name of a class": replace(BASE, classes=("cat", "hound")),
    "the order of classes": replace(BASE, classes=("dog", "cat")),
    "the content of an image": replace(BASE, ids=("f" * 32 + "-0", *BASE.ids[1:])),
    "the content of an image that is not asked for": replace(BASE, ids=(*BASE.ids[:-1], "f" * 32 + "-0")),
    "the order of images": replace(BASE, ids=SWAPPED),
    "a label": replace(BASE, labels=(1, *BASE.labels[1:])),
    "fewer images": replace(BASE, count=COUNT - 2),
    "more images": replace(BASE, count=COUNT),
    "the height": replace(BASE, view=replace(VIEW, height=25)),
    "the width": replace(BASE, view=replace(VIEW, width=25)),
    "the interpolation": replace(BASE, view=replace(VIEW, interpolation="bicubic")),
    "the fourth digit of the crop": replace(BASE, view=replace(VIEW, crop_pct=0.8889)),
    "the kind of crop": replace(BASE, view=replace(VIEW, crop_mode="squash")),
    "a view before": replace(BASE, view=replace(VIEW, before=View(40, 40, "bilinear", 1.0))),
    "the channels": replace(BASE, channels=1),
    "the fingerprint of a stored variant": replace(BASE, variant="fog 1 0123456789ac"),
    "no variant": replace(BASE, variant=""),
    "the version of pillow": replace(BASE, versions={"pillow": "99"}),
    "the version of torchvision": replace(BASE, versions={"torchvision": "99"}),
    "the version of timm": replace(BASE, versions={"timm": "99"}),
    "the format of cached files": replace(BASE, format=cached.FORMAT + 1),
}
SAME: dict[str, Asked] = {
    "nothing, asked anew": Asked(),
    "the order of reading": replace(BASE, order=tuple(range(COUNT))[::-1]),
}


def ask(asked: Asked, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Decoded, int]:
    """Decoded images, and how many had to be read for them."""
    read = []

    def image(position: int) -> Image.Image:
        read.append(position)
        seed = int(asked.ids[position][-4:-2], 16) + len(asked.variant)
        pixels = np.random.default_rng(seed).integers(0, 256, (50, 44, 3), dtype=np.uint8)
        return Image.fromarray(pixels).convert("RGB" if asked.channels == 3 else "L")

    installed = module.version_of
    with monkeypatch.context() as patch:
        patch.setattr(module, "version_of", lambda name: asked.versions.get(name, installed(name)))
        patch.setattr(cached, "FORMAT", asked.format)
        manifest = Manifest(asked.classes, asked.ids, np.array(asked.labels))
        order = None if asked.order is None else np.array(asked.order)
        found = decoded(manifest, asked.count, asked.view, asked.channels, image, folder, asked.variant, order=order)
    return found, len(read)


@pytest.mark.parametrize("count", [8, pytest.param(len(CHANGES), marks=pytest.mark.faults)])
def test_decoded_images_of_another_identity_miss(
    count: int, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(CHANGES)[:: len(CHANGES) // count][:count]
    silent, lost = 0, 0
    for name in names:
        folder = tmp_path / name
        kept = ask(BASE, folder, monkeypatch)[0].pixels.copy()
        changed, read = ask(CHANGES[name], folder, monkeypatch)
        fresh, _ = ask(CHANGES[name], folder / "fresh", monkeypatch)
        silent += read != CHANGES[name].count or not np.array_equal(changed.pixels, fresh.pixels)
        lost += not np.array_equal(ask(BASE, folder, monkeypatch)[0].pixels, kept)
    journal(
        Injection(
            "stale",
            f"decoded images are asked for after one change: {', '.join(names)}",
            len(names),
            "they are decoded anew, and those of before are still what they were",
            lost,
            silent,
        )
    )


@pytest.mark.parametrize("name", SAME)
def test_decoded_images_of_the_same_identity_hit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, read = ask(BASE, tmp_path, monkeypatch)
    assert read == BASE.count
    again, read = ask(SAME[name], tmp_path, monkeypatch)
    assert read == 0
    assert np.array_equal(first.pixels, again.pixels)
