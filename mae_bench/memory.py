"""Memory that runs out, on the device or on the host."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mae_bench.errors import BenchError

HOST = ("DefaultCPUAllocator", "bad_alloc", "could not create a primitive")
"""What torch, C++ and oneDNN say in a RuntimeError where the host has no memory left."""


class OutOfMemoryError(BenchError):
    """Work for which there is not enough memory."""


def ran_out(error: BaseException) -> bool:
    """Whether ``error`` says that the device, or the host, has no memory left.

    >>> ran_out(MemoryError()), ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    (True, False)
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in HOST)


@contextmanager
def named() -> Iterator[None]:
    """Inside, or in a function that is decorated with it, memory that runs out is an error with a remedy.

    Raises:
        OutOfMemoryError: it did.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemoryError(
            f"no memory is left ({type(error).__name__}: {error}); give the run more, or less to do at once: a smaller "
            "--mae-batch-size, fewer workers, or fewer images with --mae-limit"
        ) from error
