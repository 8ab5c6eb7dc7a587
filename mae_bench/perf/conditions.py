"""Under which conditions a run measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from mae_bench.perf.timing import Clock, gpu_seconds, processor_seconds


@dataclass(frozen=True)
class Conditions:
    """The device, how many ``rounds`` are counted, and whether everything is to be ``quick``: small, and no more than a
    sign of life.
    """

    device: torch.device
    rounds: int = 5
    quick: bool = False

    @cached_property
    def clock(self) -> Clock:
        return gpu_seconds if self.device.type == "cuda" else processor_seconds

    def either(self, full: int, quick: int) -> int:
        return quick if self.quick else full


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch has one thread, and float32 is float32 on a GPU, as it is where cells are evaluated."""
    threads, matmul, cudnn = (
        torch.get_num_threads(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
