"""Forward passes that are recorded once and played back, so that a GPU does not wait for the host to launch kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mae_bench.memory import ran_out
from mae_bench.models import ModelError
from mae_bench.models.taps import Features

Forward = Callable[[Tensor, bool, bool], tuple[Tensor, Features]]
"""Logits and features of images (B, C, H, W), with patch tokens and with attention maps where they are asked for."""
WARM_UP = 3
"""Passes before the one that is recorded, in which libraries choose their kernels and take their memory."""


@dataclass(frozen=True)
class _Recording:
    """``play`` makes ``logits`` and ``features`` those of what is in ``images``, in the same memory every time."""

    images: Tensor
    logits: Tensor
    features: Features
    play: Callable[[], None]


class Recorded:
    """``forward``, recorded for each shape of images at its second pass, since the last batch of a pass is often of a
    shape that comes once. ``record`` calls a function and gives what it returned, and what does the same again.
    """

    def __init__(self, forward: Forward, record: Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]) -> None:
        self._forward = forward
        self._record = record
        self._recordings: dict[tuple[Any, ...], _Recording | None] = {}

    def __call__(self, images: Tensor, patches: bool, maps: bool) -> tuple[Tensor, Features]:
        """As ``forward``; what is given is a copy, which the next pass leaves alone."""
        key = (images.shape, images.dtype, patches, maps)
        if key not in self._recordings:
            self._recordings[key] = None
            return self._forward(images, patches, maps)
        recording = self._recordings[key]
        if recording is None:
            own = images.clone()
            (logits, features), play = self._record(lambda: self._forward(own, patches, maps))
            recording = self._recordings[key] = _Recording(own, logits, features, play)
        recording.images.copy_(images)
        recording.play()
        return recording.logits.clone(), recording.features.clone()

    def clear(self) -> None:
        """Let go of the recordings, and of the memory that they hold."""
        self._recordings.clear()


def on_gpu(device: torch.device, call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Record what ``call`` does on the GPU ``device`` as a CUDA graph.

    Raises:
        ModelError: it waits for the GPU, or does something else that a graph cannot hold.
    """
    try:
        with torch.cuda.device(device):
            aside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            work = torch.cuda.current_stream()
            aside.wait_stream(work)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    call()
            work.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                returned = call()
    except RuntimeError as error:
        if ran_out(error):
            raise
        raise ModelError(
            f"the forward pass cannot be recorded ({str(error).partition(chr(10))[0]}): leave out --mae-cuda-graphs"
        ) from error
    return returned, graph.replay
