"""Whether predictions know anything of the labels."""

from __future__ import annotations

import numpy as np

IMAGES = 100
"""Fewer images say nothing either way."""
CLASSES = 10
"""Of fewer classes too many are recognised by luck."""
IMAGES_LEVEL, CLASSES_LEVEL = 0.001, 0.02
"""Probabilities above which as many images, or classes, are taken for luck."""


def at_chance(prediction: np.ndarray, labels: np.ndarray, outputs: int) -> str | None:
    """Why the ``prediction`` (n,) of a model that chooses among ``outputs`` is no better than chance for the ``labels``
    (n,), in words; None where it is better, or where there are fewer than :data:`IMAGES`.

    It is no better where as many images are right by luck with a probability above 0.001, in an exact one-sided
    binomial test against the share that the same predictions would get right if they had nothing to do with the labels
    (Cohen 1960, Educational and Psychological Measurement 20:37). Where all predictions are of one class, that is the
    share of this class; it is never above that of the largest.

    Images of a class are not independent, though: an untrained head gives most of them the same output, which is the
    right one for about one class of all, whatever their number. So of ten classes or more, as many must be recognised,
    as the most frequent prediction for their own images, as are by luck with a probability of at most 0.02: four, where
    there is an output for each.

    >>> labels = np.arange(200) % 4
    >>> at_chance((labels + 1) % 4, labels, outputs=4)
    'predictions that know nothing of the labels reach 25.0 %'
    >>> at_chance(labels, labels, outputs=4) is None
    True
    """
    from scipy.stats import binom

    if len(labels) < IMAGES:
        return None
    present, of_class = np.unique(labels, return_counts=True)
    shares = np.array([float(np.mean(prediction == label)) for label in present])
    blind = min(1.0, float(shares @ of_class) / len(labels))
    hits = int(np.sum(prediction == labels))
    if binom.sf(hits - 1, len(labels), blind) > IMAGES_LEVEL:
        return f"predictions that know nothing of the labels reach {100 * blind:.1f} %"
    if len(present) < CLASSES:
        return None
    recognised = sum(_most_frequent(prediction[labels == label]) == label for label in present)
    if binom.sf(recognised - 1, len(present), 1 / outputs) > CLASSES_LEVEL:
        return f"{recognised} of {len(present)} classes are recognised, as by an untrained head"
    return None


def _most_frequent(values: np.ndarray) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])
