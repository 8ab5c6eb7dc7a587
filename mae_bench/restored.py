"""What an evaluation changes for its time, put back when it ends, however it ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def module_left_as_it_was(module: nn.Module | None) -> Iterator[None]:
    """Every tensor of ``module`` where it was and laid out as it was, with its gradient, and every part in its mode."""
    if module is None:
        yield
        return
    modes = {part: part.training for part in module.modules()}
    parameters: dict[nn.Parameter, Tensor] = {one: one.data for one in module.parameters()}
    gradients = [(one, one.grad, one.grad.data) for one in parameters if one.grad is not None]
    buffers = [(part, name, one) for part in module.modules() for name, one in part.named_buffers(recurse=False)]
    try:
        yield
    finally:
        for parameter, values in parameters.items():
            parameter.grad = None  # which has to be of the type that the values have
            parameter.data = values
        for parameter, gradient, values in gradients:
            gradient.data = values
            parameter.grad = gradient
        for part, name, one in buffers:
            setattr(part, name, one)
        for part, training in modes.items():
            part.training = training


@contextmanager
def process_left_as_it_was() -> Iterator[None]:
    """torch with its threads and its rounding, and the interpreter with the error that a debugger would look at."""
    import torch

    threads = torch.get_num_threads()
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    last = {
        name: getattr(sys, name)
        for name in ("last_type", "last_value", "last_traceback", "last_exc")
        if hasattr(sys, name)
    }
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
        for name, value in last.items():
            setattr(sys, name, value)
