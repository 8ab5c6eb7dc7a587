"""What computes: the processor or GPU, and the libraries whose versions decide how numbers round."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
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
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Where Linux says who is given pages of 2 MB."""
KEPT = {-1: 2**31 - 1, -3: 2**30}
"""Of glibc's mallopt: free memory in bytes beyond which it is given back (M_TRIM_THRESHOLD), and the size from which
what is asked for is given back in any case (M_MMAP_THRESHOLD).
"""
KEPT_BY = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Variables of the environment by which users decide these."""


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


def ask_for_large_pages() -> None:
    """Have PyTorch ask Linux for large pages where it takes memory for a tensor of 2 MB or more. What is larger than 32
    MB, such as 64 images of 224 pixels, is new memory each time, and the kernel clears it page by page: at that size a
    copy in large pages takes a third of the time, and the forward pass of a ViT-Ti/16 0.9 of it.

    PyTorch looks once, when a process makes its first tensor: what is said later is not heeded. An environment that
    says otherwise (``THP_MEM_ALLOC_ENABLE``) is left alone, and so is a kernel that would have to be asked in vain.
    """
    try:
        offered = "[never]" not in LARGE_PAGES.read_text()
    except OSError:
        return
    if offered:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for what is asked for next. Else it gives 64 MB or more that lie free at the end of
    its heap back to the kernel, such as the patch tokens of a batch once they are compared, and takes them for the next
    batch anew, page by page: up to 0.3 of the time of a ViT-Ti/16's forward pass at 224 px, and none of it where
    something else happens to lie behind them.

    An environment that says otherwise (:data:`KEPT_BY`) is left alone, and so is another C library.
    """
    if sys.platform != "linux" or any(name in os.environ for name in KEPT_BY):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for what, size in KEPT.items():
            mallopt(what, size)
