"""Images with a bright bar at the top, in the middle or at the bottom."""

from pathlib import Path

import numpy as np
from PIL import Image

from mae_bench.images import content_hash, stratified
from mae_bench.suites import Suite, SuiteEntry

CLASSES = ("bottom", "middle", "top")


def load(entry: SuiteEntry, data: Path | None) -> Suite:
    """Twenty images of each class."""
    assert data is None
    generator = np.random.default_rng(0)
    labels = [k for k in range(3) for _ in range(20)]
    images = []
    for k in labels:
        pixels = generator.integers(1, 60, (27, 27), dtype=np.uint8)
        pixels[18 - 9 * k : 27 - 9 * k] += 150
        images.append(pixels)
    order, manifest = stratified([content_hash(image.tobytes()) for image in images], labels, CLASSES)
    return Suite(entry, manifest, (0.3,), lambda position: Image.fromarray(images[order[position]]))
