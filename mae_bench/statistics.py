"""Statistics of proportions and of paired outcomes, thin over scipy and statsmodels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

JACKKNIFE_GROUPS = 10
"""Groups of images of which one is left out at a time."""


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), in [0, 1].

    Raises:
        ValueError: no trials, or successes outside 0..trials.

    >>> low, high = wilson(700, 1000)
    >>> round(low, 4), round(high, 4)
    (0.6709, 0.7276)
    """
    from statsmodels.stats.proportion import proportion_confint

    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials have no proportion")
    low, high = proportion_confint(successes, trials, alpha=1 - confidence, method="wilson")
    # the bounds of an extreme proportion may miss it by a rounding error
    return min(float(low), successes / trials), max(float(high), successes / trials)


@lru_cache(maxsize=4096)
def mcnemar(lost: int, gained: int) -> float:
    """Exact one-sided McNemar p-value (McNemar 1947) that losses outweigh gains.

    ``lost`` images were right before and are wrong now, ``gained`` the reverse; without any discordant
    image the p-value is 1.

    >>> mcnemar(5, 0)
    0.03125
    """
    from scipy.stats import binomtest

    discordant = lost + gained
    if discordant == 0:
        return 1.0
    return float(binomtest(lost, discordant, 0.5, alternative="greater").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values (Holm 1979) in the given order."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def paired_drop_upper(lost: int, gained: int, images: int, confidence: float = 0.95) -> float:
    """Upper end of the one-sided interval of the drop ``(lost - gained) / images``.

    Tango's score interval (Tango 1998, Statistics in Medicine 17:891) of a paired difference: unlike
    Wald's it does not collapse where few predictions changed.

    Raises:
        ValueError: no images, more discordant images than images, or a confidence outside (0.5, 1).

    >>> round(paired_drop_upper(0, 0, 1000), 4)
    0.0027
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if images <= 0 or lost < 0 or gained < 0 or lost + gained > images:
        raise ValueError(f"{lost} lost and {gained} gained of {images} images is impossible")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence {confidence} is outside (0.5, 1)")
    z = float(norm.ppf(confidence))

    def score(delta: float) -> float:
        # maximum-likelihood share of gains under a drop of exactly delta
        a = 2.0 * images
        b = -lost - gained + (2.0 * images - lost + gained) * delta
        c = -gained * delta * (1.0 - delta)
        share = max(0.0, (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a))
        variance = images * (2 * share + delta * (1 - delta))
        return float((lost - gained - images * delta) / np.sqrt(variance)) + z

    estimate = (lost - gained) / images
    if estimate >= 1.0:
        return 1.0
    low = max(estimate, -1 + 1e-12) + 1e-12
    return float(brentq(score, low, 1 - 1e-12))


_SUMS = 2**16
"""Sums of differences that a sign-flip test tells apart, where fewer than a quarter as many images differ."""


def sign_flip(differences: np.ndarray, unit: int = 1) -> float:
    """Exact two-sided p-value that the mean of paired ``differences`` (n,) is none: the share of all ways to give them
    signs whose sum lies as far from zero (Fisher 1935; Pitman 1937). Of differences of one size it is two-sided
    McNemar's.

    They are multiples of 1 / ``unit``. The chances of all sums follow from their characteristic function (Pagano and
    Tritchler 1983, Journal of the American Statistical Association 78:435), to about 1e-13, and a p-value below 1e-12
    is given as that. Where there are more sums than max(2**16, 4 n), differences are rounded to a coarser unit; the
    test is as exact, as those of either sign are rounded alike.

    >>> sign_flip(np.array([-1, -1, -1, -1, 0, 0]))
    0.125
    >>> round(sign_flip(np.array([0.5, 0.25, 0.25]), unit=4), 12)
    0.25
    """
    whole = np.rint(np.asarray(differences, dtype=np.float64) * min(unit, 2**40))
    whole = whole[whole != 0].astype(np.int64)
    whole //= max(1, int(np.gcd.reduce(whole, initial=0)))
    most = max(_SUMS, 4 * len(whole))
    if (sums := int(np.abs(whole).sum())) > most:
        whole = np.rint(whole * (most / sums)).astype(np.int64)
    sizes, counts = np.unique(np.abs(whole[whole != 0]), return_counts=True)
    gained, lost = int(whole[whole > 0].sum()), int(-whole[whole < 0].sum())
    if sizes.max(initial=0) <= 1:
        return min(1.0, 2 * mcnemar(max(lost, gained), min(lost, gained)))
    # chances of the sum of those that are positive, which lies in 0..gained + lost
    period = gained + lost + 1
    turns = np.arange(period // 2 + 1)

    def angle(size: int) -> np.ndarray:
        return np.asarray(np.pi * (turns * size % (2 * period)) / period)

    spectrum = np.exp(-1j * angle(gained + lost))
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spectrum *= np.cos(angle(size)) ** count
    chances = np.fft.irfft(spectrum, period)
    return min(1.0, max(1e-12, 2 * float(chances[max(gained, lost) :].sum())))


def paired_mean_interval(differences: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of paired ``differences`` (n,) in [-1, 1]: Wald's after one more of -1 and one of 1, which
    keep it from collapsing where few differ (Bonett and Price 2012, Journal of Educational and Behavioral Statistics
    37:479, for differences that are -1, 0 or 1).

    >>> low, high = paired_mean_interval(np.zeros(1000))
    >>> round(low, 4), round(high, 4)
    (-0.0028, 0.0028)
    """
    from scipy.stats import norm

    n = len(differences) + 2
    mean = float(np.sum(differences)) / n
    variance = (float(np.square(differences).sum()) + 2) / n - mean**2
    half = float(norm.ppf(0.5 + confidence / 2)) * (variance / n) ** 0.5
    return max(-1.0, mean - half), min(1.0, mean + half)


def detectable_drop(images: int, discordance: float, alpha: float, power: float = 0.8) -> float | None:
    """Smallest true drop that exact one-sided McNemar finds with ``power``, as a fraction; None if none.

    ``discordance`` is the share of images whose outcome changes. For planning; it decides nothing.

    Raises:
        ValueError: no images, or a discordance outside (0, 1].

    >>> drop = detectable_drop(1000, 0.05, 0.05)
    >>> round(100 * drop, 2)
    1.82
    """
    from scipy.stats import binom

    if images <= 0 or not 0 < discordance <= 1:
        raise ValueError(f"a share of {discordance} of {images} images cannot change")
    fewest, most = binom.interval(1 - 1e-9, images, discordance)
    changed = np.arange(fewest, most + 1)
    weight = binom.pmf(changed, images, discordance)
    critical = binom.isf(alpha, changed, 0.5)

    def reached(drop: float) -> float:
        return float((weight * binom.sf(critical, changed, 0.5 * (1 + drop / discordance))).sum())

    if reached(discordance) < power:
        return None
    low, high = 0.0, discordance
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) >= power else (middle, high)
    return high


def block_mean(block_means: Sequence[float], weights: Sequence[int]) -> tuple[float, float, float]:
    """Mean over images from its means over blocks, its standard error, and the degrees of freedom of that error.

    Blocks are as precise as their ``weights`` (numbers of images) say, and count as Kish's effective number of them
    (Kish 1965), so that a short last block neither narrows the error nor adds a whole degree of freedom.

    Raises:
        ValueError: fewer than two blocks.

    >>> block_mean([1.0, 3.0], [256, 256])
    (2.0, 1.0, 1.0)
    """
    if len(block_means) < 2:
        raise ValueError(f"{len(block_means)} blocks have no spread")
    values = np.asarray(block_means, dtype=np.float64)
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    mean = float((share * values).sum())
    effective = 1 / float((share**2).sum())
    variance = float((share**2 * (values - mean) ** 2).sum()) * effective / (effective - 1)
    return mean, variance**0.5, effective - 1


@lru_cache
def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t distribution, which scipy takes longer to find than a cell to be summed up.

    >>> round(student_quantile(0.975, 3.0), 4)
    3.1824
    """
    from scipy.stats import t

    return float(t.ppf(probability, freedom))


def block_interval(
    block_means: Sequence[float], weights: Sequence[int], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Interval of a mean over images from its means over blocks (Student's t); None under four blocks."""
    if len(block_means) < 4:
        return None
    mean, error, freedom = block_mean(block_means, weights)
    half = student_quantile(0.5 + confidence / 2, freedom) * error
    return mean - half, mean + half


def auc(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float, float] | None:
    """Area under the ROC curve: the probability that one of the ``positive`` (n,) has a higher score than one of the
    others, ties counting half, with its 95 % interval (DeLong et al. 1988). None where one of the groups has fewer than
    two members.

    >>> auc(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    (1.0, 1.0, 1.0)
    """
    from scipy.stats import norm, rankdata

    positive = np.asarray(positive, dtype=bool)
    above, below = np.asarray(scores)[positive], np.asarray(scores)[~positive]
    if min(len(above), len(below)) < 2:
        return None
    ranks = rankdata(np.concatenate([above, below]))
    # the share of the other group that each member outranks
    outranks = (ranks[: len(above)] - rankdata(above)) / len(below)
    outranked = 1 - (ranks[len(above) :] - rankdata(below)) / len(above)
    area = float(outranks.mean())
    error = (outranks.var(ddof=1) / len(above) + outranked.var(ddof=1) / len(below)) ** 0.5
    half = float(norm.ppf(0.975)) * float(error)
    return area, max(0.0, area - half), min(1.0, area + half)


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Student's t interval of the mean of independent ``values``; (None, None) for fewer than two.

    >>> mean_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 2:
        return None, None
    half = student_quantile(0.5 + confidence / 2, len(data) - 1) * float(data.std(ddof=1)) / len(data) ** 0.5
    mean = float(data.mean())
    return mean - half, mean + half


def jackknife_interval(value: float, replicates: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a statistic over images from its ``replicates``, each without one of as many equal groups of images:
    the delete-a-group jackknife (Kott 2001, Journal of Official Statistics 17:521), with Student's t.

    Raises:
        ValueError: fewer than two replicates.

    >>> low, high = jackknife_interval(2.0, [1.5, 2.5])
    >>> round(low, 3), round(high, 3)
    (-4.353, 8.353)
    """
    groups = len(replicates)
    if groups < 2:
        raise ValueError(f"{groups} replicates have no spread")
    spread = np.asarray(replicates, dtype=np.float64) - float(np.mean(replicates))
    error = ((groups - 1) / groups * float((spread**2).sum())) ** 0.5
    half = student_quantile(0.5 + confidence / 2, groups - 1) * error
    return value - half, value + half
