"""What the logits say of each image, and the rates over images."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

TOP_K = 5


@dataclass(frozen=True)
class Outcomes:
    """Per image of one block, all (B,): the output predicted, whether the target is first or among the top five,
    negative log-likelihood of the target in nats, probability of the prediction, the distance between the two largest
    logits, and whether all logits are finite.
    """

    prediction: Tensor
    hit: Tensor
    top5: Tensor
    nll: Tensor
    confidence: Tensor
    margin: Tensor
    finite: Tensor

    def cpu(self) -> Outcomes:
        """The same on the host."""
        return Outcomes(*(getattr(self, field.name).cpu() for field in fields(self)))


def outcomes(logits: Tensor, targets: Tensor, among: Tensor | None = None) -> Outcomes:
    """Outcomes of ``logits`` (B, classes) for ``targets`` (B,); of equal logits the first counts as larger. Where
    ``among`` (classes,) is given, only the outputs for which it is True are chosen from.

    >>> outcomes(torch.tensor([[0.0, 2.0]]), torch.tensor([1])).hit
    tensor([True])
    """
    finite = torch.isfinite(logits).all(1)
    logits = logits.double()
    if among is not None:
        logits = logits.masked_fill(~among, -torch.inf)
    log_probability = logits.log_softmax(1)
    best = logits.max(1)
    target_logit = logits.gather(1, targets[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > target_logit) | ((logits == target_logit) & (classes < targets[:, None]))
    rank = ahead.sum(1)
    prediction = (logits == best.values[:, None]).int().argmax(1)
    top2 = logits.topk(2, dim=1).values
    return Outcomes(
        prediction=prediction,
        hit=rank == 0,
        top5=rank < TOP_K,
        nll=-log_probability.gather(1, targets[:, None])[:, 0],
        confidence=log_probability.max(1).values.exp(),
        margin=top2[:, 0] - top2[:, 1],
        finite=finite,
    )


def accuracy_sums(block: Outcomes, clean_prediction: Tensor, near_tie: float = 1e-4) -> dict[str, float]:
    """Sums of one block on the host; ``flips`` counts predictions that differ from ``clean_prediction`` (B,),
    ``near_ties`` those whose margin is under ``near_tie``, which rounding on another machine may turn.
    """
    return {
        "images": float(len(block.hit)),
        "hits": float(block.hit.sum()),
        "top5": float(block.top5.sum()),
        "nll": float(block.nll.numpy().sum()),
        "flips": float((block.prediction != clean_prediction).sum()),
        "near_ties": float((block.margin < near_tie).sum()),
    }
