"""What the logits say of each image, and the rates over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TOP_K = 5


@dataclass(frozen=True)
class Outcomes:
    """Per image of one block, all (B,): the output predicted, whether the target is first or among the top five,
    negative log-likelihood of the target in nats, probability of the prediction, and the distance between
    the two largest logits.
    """

    prediction: np.ndarray
    hit: np.ndarray
    top5: np.ndarray
    nll: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray


def outcomes(logits: Tensor, targets: Tensor) -> Outcomes:
    """Outcomes of ``logits`` (B, classes) for ``targets`` (B,); of equal logits the first counts as larger.

    >>> outcomes(torch.tensor([[0.0, 2.0]]), torch.tensor([1])).hit
    array([ True])
    """
    logits = logits.double()
    log_probability = logits.log_softmax(1)
    best = logits.max(1)
    target_logit = logits.gather(1, targets[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > target_logit) | ((logits == target_logit) & (classes < targets[:, None]))
    rank = ahead.sum(1)
    prediction = (logits == best.values[:, None]).int().argmax(1)
    top2 = logits.topk(2, dim=1).values
    return Outcomes(
        prediction=prediction.cpu().numpy(),
        hit=(rank == 0).cpu().numpy(),
        top5=(rank < TOP_K).cpu().numpy(),
        nll=-log_probability.gather(1, targets[:, None])[:, 0].cpu().numpy(),
        confidence=log_probability.max(1).values.exp().cpu().numpy(),
        margin=(top2[:, 0] - top2[:, 1]).cpu().numpy(),
    )


def accuracy_sums(block: Outcomes, clean_prediction: np.ndarray, near_tie: float = 1e-4) -> dict[str, float]:
    """Sums of one block; ``flips`` counts predictions that differ from ``clean_prediction`` (B,), ``near_ties``
    those whose margin is under ``near_tie``, which rounding on another machine may turn.
    """
    return {
        "images": float(len(block.hit)),
        "hits": float(block.hit.sum()),
        "top5": float(block.top5.sum()),
        "nll": float(block.nll.sum()),
        "flips": float((block.prediction != clean_prediction).sum()),
        "near_ties": float((block.margin < near_tie).sum()),
    }
