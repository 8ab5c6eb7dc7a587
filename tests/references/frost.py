"""What the published photographs of frost are like: statistics to hold procedural textures against."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
STATISTICS = ("mean", "deviation", "correlation", "quantiles", "octaves")

# Of the photographs frost1.png, frost2.png (which has the pixels of frost3.png), frost4.jpg and frost5.jpg in the PyPI
# package imagecorruptions 1.1.2 (their sha256 begin with ff9f9078, fe211a89, 3f8b91ca and 5fc6a19d): 300 crops of
# 224 pixels, and 2,000 crops of 32 pixels after cv2.resize(photograph, (0, 0), fx=0.2, fy=0.2).
PUBLISHED = {
    224: (
        ((.308, .582, .645), (.093, .056, .053), (.805, .547, .929), (-.131, -.097, -.045, -.004, .041, .113, .163),
         (.027, .023, .015, .012, .015, .037)),
        ((.775, .792, .828), (.076, .079, .082), (.995, .991, .995), (-.240, -.148, -.042, .012, .055, .106, .133),
         (.031, .033, .031, .028, .021, .032)),
        ((.567, .625, .675), (.102, .102, .107), (.997, .990, .992), (-.277, -.173, -.059, .003, .061, .161, .269),
         (.055, .055, .041, .033, .023, .030)),
        ((.396, .441, .487), (.142, .141, .138), (1.00, .998, .999), (-.285, -.216, -.101, -.011, .089, .256, .379),
         (.064, .056, .054, .053, .051, .050)),
    ),
    32: (
        ((.301, .581, .646), (.084, .051, .049), (.785, .518, .925), (-.121, -.087, -.040, -.004, .036, .101, .152),
         (.035, .018, .019, .019, .019)),
        ((.778, .795, .832), (.069, .071, .073), (.994, .991, .995), (-.218, -.134, -.037, .011, .049, .096, .125),
         (.052, .029, .020, .016, .016)),
        ((.562, .620, .670), (.101, .101, .105), (.997, .990, .992), (-.285, -.170, -.057, .002, .059, .160, .277),
         (.082, .039, .023, .016, .016)),
        ((.402, .447, .493), (.136, .135, .132), (1.00, .998, .999), (-.294, -.213, -.093, -.008, .085, .243, .357),
         (.098, .061, .048, .030, .026)),
    ),
}  # fmt: skip


def statistics_of(crops: np.ndarray) -> dict[str, np.ndarray]:
    """Of crops (N, S, S, 3): the mean colour; by channel the mean deviation within a crop; the mean correlation of red
    and green, red and blue, green and blue; quantiles of the luma less its mean in the crop; and for each octave of
    frequency, from half a cycle per pixel down, the deviation of the luma that lies in it, under a Hann window.
    """
    side = crops.shape[1]
    luma = crops @ LUMA
    luma -= luma.mean((1, 2), keepdims=True)
    correlation = np.mean([np.corrcoef(crop.reshape(-1, 3).T)[[0, 0, 1], [1, 2, 2]] for crop in crops], axis=0)
    window = np.outer(np.hanning(side), np.hanning(side))
    window /= np.sqrt((window**2).mean())
    power = np.abs(np.fft.fft2(luma * window)) ** 2 / side**4
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    # beyond half a cycle, along the diagonal, belongs to the first octave
    limits = [1.0, *(2.0 ** -(octave + 1) for octave in range(1, 6)), 0.0]
    octaves = [power[:, (frequency <= high) & (frequency > low)].sum(1).mean() for high, low in pairwise(limits)]
    return {
        "mean": crops.mean((0, 1, 2)),
        "deviation": crops.std((1, 2)).mean(0),
        "correlation": correlation,
        "quantiles": np.quantile(luma, QUANTILES),
        "octaves": np.sqrt(octaves),
    }
