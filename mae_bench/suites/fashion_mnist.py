"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747; MIT licence, Zalando SE): 28x28 greyscale, ten classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mae_bench.images import content_hash, read_idx, stratified
from mae_bench.suites import Suite, SuiteEntry, SuiteError

CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
MEAN = (0.2860,)
"""Mean pixel of the training images, in [0, 1]."""
STD = (0.3530,)
"""Standard deviation of the training pixels, in [0, 1]."""
BUNDLED = Path(__file__).parent / "data" / "fashion_mnist"


def training_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 60,000 training images (N, 1, 28, 28) uint8 and their labels (N,) int64.

    Raises:
        FileNotFoundError: ``folder`` does not hold the two idx files.
    """
    names = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: install Debian's package dataset-fashion-mnist "
                "(its files lie in /usr/share/datasets/fashion-mnist) or name the folder with --data"
            )
    return read_idx(folder / names[0])[:, None], read_idx(folder / names[1]).astype(np.int64)


def load(entry: SuiteEntry, data: None) -> Suite:  # noqa: ARG001 - every suite is loaded alike
    """The 10,000 bundled test images.

    Raises:
        SuiteError: the bundled files are not those that were published.
    """
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "manifest.json"):
        if not (BUNDLED / name).is_file():
            raise SuiteError(f"{BUNDLED / name} is missing: install mae_bench again")
    images = read_idx(BUNDLED / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(BUNDLED / "t10k-labels-idx1-ubyte.gz")
    if len(images) != len(labels):
        raise SuiteError(f"{BUNDLED} holds {len(images)} images but {len(labels)} labels: install mae_bench again")
    hashes = [content_hash(image.tobytes()) for image in images]
    order, manifest = stratified(hashes, [int(label) for label in labels], CLASSES)
    published = json.loads((BUNDLED / "manifest.json").read_text())
    if published["manifest_hash"] != manifest.hash:
        raise SuiteError(
            f"the bundled images in {BUNDLED} hash to {manifest.hash}, not to {published['manifest_hash']}: "
            "install mae_bench again"
        )

    def read(position: int) -> Image.Image:
        return Image.fromarray(images[order[position]])

    return Suite(entry, manifest, MEAN, read)
