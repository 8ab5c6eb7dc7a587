"""What computes: the processor or GPU, and the libraries whose versions decide how numbers round."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = (
    "vendor_id",
    "cpu family",
    "model",
    "stepping",
    "flags",
    "CPU implementer",
    "CPU variant",
    "CPU part",
    "Features",
)
"""What Linux says of a processor that libraries choose their kernels by: machines that are rented share names."""


@cache
def machine(device: str) -> str:
    """Name of the GPU that ``device`` (``cuda:1``) is with its libraries, else of the processor with a hash of
    :data:`MODEL`.
    """
    if device.startswith("cuda"):
        import torch

        cudnn: Any = torch.backends.cudnn
        return f"{torch.cuda.get_device_name(device)}, cuDNN {cudnn.version()}"
    return processor(Path("/proc/cpuinfo"))


def processor(info: Path) -> str:
    """The processor that the file ``info`` (/proc/cpuinfo) describes; where there is none, what Python knows."""
    if not info.exists():
        return platform.processor() or platform.machine()
    first = info.read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    known = {name.strip(): value.strip() for name, _, value in pairs}
    name = known.get("model name", platform.machine())
    model = "\n".join(known.get(field, "") for field in MODEL)
    return f"{name} [{hashlib.sha256(model.encode()).hexdigest()[:8]}]"


@cache
def version_of(distribution: str) -> str:
    """The installed version, looked up on the disk once."""
    return version(distribution)


@cache
def libraries() -> str:
    """Name and version of each library, torch aside, that a prediction depends on.

    >>> libraries().split()[0]
    'kornia'
    """
    return " ".join(f"{name} {version_of(name)}" for name in ("kornia", "numpy", "pillow", "timm", "torchvision"))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
