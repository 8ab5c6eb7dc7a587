"""How far apart classes lie in a layer: subspaces of classes, and known references beside them.

The idea is that of arXiv 2602.03531 (class subspaces that become increasingly separable over depth), whose abstract
gives no formula; these are this project's readings.

Cost for C classes of n fitting tokens in D dimensions: the subspaces take C singular value decompositions of (n, D),
about C n D min(n, D) operations; their pairwise overlaps take C^2 D k^2 multiplications in chunks, and the memory of
C D k numbers plus one chunk. With 1,000 classes, D = 768, n = 50 and k = 10 that is 8e10 multiplications and 61 MB in
float64, beside 307 MB for the tokens. Neighbours of M queries take M N D multiplications in chunks of queries. Measured
for 100 tokens of each of 1,000 classes with D = 768 on one core of a busy CPU: 252 s for everything about one layer and
kind of token, 3.1 GB at the peak. All of it is computed on the device that holds the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mae_bench.errors import BenchError
from mae_bench.statistics import JACKKNIFE_GROUPS

SUBSPACE_DIMENSIONS = 10
NEIGHBOURS = 20
IMAGES_PER_CLASS = 100
PERMUTATIONS = 5
"""Labelings drawn at random, whose mean separability stands beside that of the true one."""
_CHUNK = 64
_QUERIES = 1024
_ROUNDING = 1e-24
"""Share of the sum of squares below which scatter in double precision is rounding."""


class SeparabilityError(BenchError):
    """Images that are too few for class subspaces."""


@dataclass(frozen=True)
class Subspaces:
    """Orthonormal bases ``basis`` (C, D, k) of classes around the common ``mean`` (D,). ``spanned`` says whether the
    tokens of every class span k dimensions; where they do not, the directions that are left are arbitrary.
    """

    basis: Tensor
    mean: Tensor
    spanned: bool = True

    @property
    def dimension(self) -> int:
        return self.basis.shape[2]


@dataclass(frozen=True)
class SeparabilityValues:
    """Separability of one layer. ``dimension`` is k; ``subspace_hits`` and ``knn_hits`` (M,) say which held-out images
    were told rightly. ``fisher_ratio`` is None where classes have no scatter, what rests on a subspace is None where
    the tokens of a class span fewer than k dimensions.
    """

    separability: float | None
    separability_permuted: float | None
    separability_excess: float | None
    separability_within: float | None
    subspace_accuracy: float | None
    fisher_ratio: float | None
    knn_accuracy: float
    dimension: int
    subspace_hits: np.ndarray
    knn_hits: np.ndarray


def subspace_dimension(features: int, smallest_class: int) -> int:
    """k = min(10, ``features`` / 4, ``smallest_class`` / 3), rounded down.

    Raises:
        SeparabilityError: that is less than one.

    >>> subspace_dimension(64, 50)
    10
    """
    k = min(SUBSPACE_DIMENSIONS, features // 4, smallest_class // 3)
    if k < 1:
        raise SeparabilityError(
            f"a class subspace needs 3 fitting images (of 5 images) a class and 4 features; the smallest class has "
            f"{smallest_class} fitting images, tokens have {features} features: add images, or leave the item out"
        )
    return k


def halves(labels: Tensor, per_class: int = IMAGES_PER_CLASS) -> tuple[Tensor, Tensor]:
    """Positions that fit and that are held out: of the first ``per_class`` images of each class, those in even places
    and those in odd places, ascending.

    >>> halves(torch.tensor([0, 1, 0, 1, 1]))
    (tensor([0, 1, 4]), tensor([2, 3]))
    """
    rank = _rank(labels)
    kept = rank < per_class
    return (kept & (rank % 2 == 0)).nonzero()[:, 0], (kept & (rank % 2 == 1)).nonzero()[:, 0]


def _rank(labels: Tensor) -> Tensor:
    """(N,) place of each image among those of its class."""
    rank = torch.empty_like(labels)
    for label in torch.unique(labels):
        members = (labels == label).nonzero()[:, 0]
        rank[members] = torch.arange(len(members), device=labels.device)
    return rank


def class_subspaces(tokens: Tensor, labels: Tensor, within: bool = False, dimension: int | None = None) -> Subspaces:
    """Per class the first k right singular vectors of its ``tokens`` (N, D) minus the mean of all; ``within`` takes
    away the mean of each class first. k is ``dimension``, by default :func:`subspace_dimension`.

    Raises:
        SeparabilityError: there are fewer than two classes, or too few images or features.
    """
    classes, index, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise SeparabilityError(
            f"separability needs at least two classes; the images have {len(classes)}: choose images of more classes"
        )
    k = dimension or subspace_dimension(tokens.shape[1], int(counts.min()))
    mean = tokens.double().mean(0)
    centred = tokens.double() - mean
    if within:
        centred = centred - _class_means(centred, index, counts)[index]
    # classes padded with zero rows to one length, which leaves right singular vectors as they are
    order = index.argsort(stable=True)
    place = torch.arange(len(index), device=index.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    stack = centred.new_zeros(len(classes), int(counts.max()), tokens.shape[1])
    stack[index[order], place] = centred[order]
    _, singular, directions = torch.linalg.svd(stack, full_matrices=False)
    least = float(singular[:, k - 1].min()) ** 2
    spanned = least > _ROUNDING * float(tokens.double().square().sum())
    return Subspaces(directions[:, :k].mT.contiguous(), mean, spanned)


def separability(subspaces: Subspaces, chunk: int = _CHUNK) -> float:
    """Mean over pairs of classes of sqrt(1 - |Qa^T Qb|^2 / k), in [0, 1]: 0 where subspaces coincide, 1 where they are
    orthogonal. ``chunk`` classes are compared with all others at once.
    """
    basis = subspaces.basis
    classes, features, k = basis.shape
    flat = basis.transpose(1, 2).reshape(classes * k, features)
    total = 0.0
    for start in range(0, classes, chunk):
        mine = flat[start * k : (start + chunk) * k]
        count = len(mine) // k
        overlap = (mine @ flat.T).square().reshape(count, k, classes, k).sum((1, 3)) / k
        apart = (1 - overlap).clamp(0, 1).sqrt()
        numbers = torch.arange(classes, device=basis.device)
        later = numbers > numbers[start : start + count, None]
        total += float(apart[later].sum())
    return total / (classes * (classes - 1) / 2)


def nearest_subspace(subspaces: Subspaces, tokens: Tensor) -> Tensor:
    """(M,) position of the class whose subspace leaves the smallest residual of ``tokens`` (M, D), which is the one
    that holds the largest part; the first of equals.
    """
    classes, features, k = subspaces.basis.shape
    flat = subspaces.basis.transpose(0, 1).reshape(features, classes * k)
    parts = []
    for start in range(0, len(tokens), _QUERIES):
        centred = tokens[start : start + _QUERIES].double() - subspaces.mean
        held = (centred @ flat).square().reshape(len(centred), classes, k).sum(2)
        share = held / centred.square().sum(1, keepdim=True).clamp_min(torch.finfo(held.dtype).tiny)
        # shares that differ by rounding alone are equal, so that the first class wins
        parts.append(share.round(decimals=9).argmax(1))
    return torch.cat(parts)


def fisher_ratio(tokens: Tensor, labels: Tensor) -> float | None:
    """Trace of the scatter between classes over that within; None where there is none within.

    >>> fisher_ratio(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([0, 0, 1, 1]))
    25.0
    """
    _, index, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    values = tokens.double()
    means = _class_means(values, index, counts)
    between = float(((means - values.mean(0)).square().sum(1) * counts).sum())
    within = float((values - means[index]).square().sum())
    return between / within if within > _ROUNDING * float(values.square().sum()) else None


def nearest_neighbours(bank: Tensor, bank_labels: Tensor, queries: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """(M,) class of most of the ``neighbours`` of each of ``queries`` (M, D) in ``bank`` (N, D) by cosine; of equals
    the one that is more similar in sum.
    """
    unit = functional.normalize(bank.double(), dim=1).T
    starts = range(0, len(queries), _QUERIES)
    return torch.cat([_vote(queries[start : start + _QUERIES], unit, bank_labels, neighbours) for start in starts])


def _vote(queries: Tensor, unit: Tensor, bank_labels: Tensor, neighbours: int) -> Tensor:
    k = min(neighbours, unit.shape[1])
    similarity = functional.normalize(queries.double(), dim=1) @ unit
    nearest = similarity.topk(k, dim=1)
    classes = int(bank_labels.max()) + 1
    labels = bank_labels[nearest.indices]
    votes = similarity.new_zeros(len(queries), classes).scatter_add_(1, labels, torch.ones_like(nearest.values))
    sums = similarity.new_zeros(len(queries), classes).scatter_add_(1, labels, nearest.values + 1)
    # a sum of k similarities, each in [0, 2], never outweighs a vote
    # and sums that differ by rounding alone are equal, so that the first class wins
    return (votes + sums.round(decimals=9) / (2 * k + 1)).argmax(1)


def permuted(labels: Tensor, seed: int) -> Tensor:
    """``labels`` in an order drawn from ``seed``."""
    return labels[torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))]


def tenths(labels: Tensor) -> Tensor:
    """(N,) which of ten groups each image is of, so that a tenth can be left out: two neighbours in the order of their
    class, one that fits and one that is held out, share a group, and each class has as many in each.

    >>> tenths(torch.tensor([0, 0, 1, 0, 1]))
    tensor([0, 0, 0, 1, 0])
    """
    return _rank(labels) // 2 % JACKKNIFE_GROUPS


def separability_profile(
    tokens: Tensor, labels: Tensor, degraded: Tensor | None = None, left_out: Tensor | None = None
) -> SeparabilityValues:
    """Everything about ``tokens`` (N, D) of one layer. With ``degraded`` tokens of the same images: how far apart those
    lie, and how they are told by the subspaces and the neighbours of the clean ones. Where tokens were dropped, the
    clean ones are those of whole images. Images that are ``left_out`` (N,) are so from halves, permuted labels and
    subspaces' dimension that were chosen with them, so that they alone make a difference.

    Raises:
        SeparabilityError: as :func:`class_subspaces`.
    """
    _, index = torch.unique(labels, return_inverse=True)
    fitting, held_out = halves(index)
    random_labels = [permuted(index[fitting], seed) for seed in range(PERMUTATIONS)]
    smallest = int(torch.bincount(index[fitting]).min())
    subspaces = partial(class_subspaces, dimension=subspace_dimension(tokens.shape[1], smallest))
    if left_out is not None:
        random_labels = [each[~left_out[fitting]] for each in random_labels]
        fitting, held_out = fitting[~left_out[fitting]], held_out[~left_out[held_out]]
    clean = subspaces(tokens[fitting], index[fitting])
    seen = tokens if degraded is None else degraded
    fit, fit_labels = seen[fitting], index[fitting]
    own = clean if degraded is None else subspaces(fit, fit_labels)
    value = _apart(own)
    drawn = [_apart(subspaces(fit, each)) for each in random_labels]
    of_chance = [each for each in drawn if each is not None]
    chance = float(np.mean(of_chance)) if len(of_chance) == PERMUTATIONS else None
    truth = index[held_out]
    subspace_hits = (nearest_subspace(clean, seen[held_out]) == truth).cpu().numpy()
    knn_hits = (nearest_neighbours(tokens[fitting], index[fitting], seen[held_out]) == truth).cpu().numpy()
    return SeparabilityValues(
        separability=value,
        separability_permuted=chance,
        separability_excess=value - chance if value is not None and chance is not None else None,
        separability_within=_apart(subspaces(fit, fit_labels, within=True)),
        subspace_accuracy=float(subspace_hits.mean()) if clean.spanned else None,
        fisher_ratio=fisher_ratio(fit, fit_labels),
        knn_accuracy=float(knn_hits.mean()),
        dimension=own.dimension,
        subspace_hits=subspace_hits,
        knn_hits=knn_hits,
    )


def _apart(subspaces: Subspaces) -> float | None:
    return separability(subspaces) if subspaces.spanned else None


def _class_means(values: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    sums = values.new_zeros(len(counts), values.shape[1]).index_add_(0, index, values)
    return sums / counts[:, None]
