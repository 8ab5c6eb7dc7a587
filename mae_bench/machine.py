"""What computes: the processor or GPU, and the libraries whose versions decide how numbers round."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path


@cache
def machine(device: str) -> str:
    """Name of the GPU that ``device`` (``cuda:1``) is, else of the processor."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return _processor()


@cache
def libraries() -> str:
    """Name and version of each library, torch aside, that a prediction depends on.

    >>> libraries().split()[0]
    'kornia'
    """
    return " ".join(f"{name} {version(name)}" for name in ("kornia", "numpy", "pillow", "timm", "torchvision"))


def _processor() -> str:
    """Model name of the CPU; Linux tells it in /proc/cpuinfo alone."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
