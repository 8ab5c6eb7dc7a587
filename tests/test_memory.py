"""Which errors say that memory ran out, and what becomes of them."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from mae_bench.memory import OutOfMemoryError, named, ran_out


def raised(act: object) -> BaseException:
    assert callable(act)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - which one is what is asked
        act()
    return caught.value


TOO_MUCH = {
    "torch": lambda: torch.empty(2**60, dtype=torch.uint8),
    "numpy": lambda: np.empty(2**60, dtype=np.uint8),
    "python": lambda: bytes(2**60),
}


@pytest.mark.parametrize("who", TOO_MUCH)
def test_more_than_any_host_has_is_told_from_other_errors(who: str) -> None:
    assert ran_out(raised(TOO_MUCH[who]))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_so_are_what_a_card_a_library_and_the_system_say(error: Exception) -> None:
    assert ran_out(error)
    with pytest.raises(OutOfMemoryError, match=r"no memory is left .*--mae-batch-size") as caught, named():
        raise error
    assert str(error) in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("DefaultCPUAllocator"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_other_errors_are_what_they_were(error: BaseException) -> None:
    assert not ran_out(error)
    with pytest.raises(type(error)) as caught, named():
        raise error
    assert caught.value is error


def test_a_function_may_be_decorated_and_gives_what_it_gave() -> None:
    @named()
    def half(number: int) -> int:
        if number % 2:
            raise MemoryError("odd")
        return number // 2

    assert half(4) == 2
    with pytest.raises(OutOfMemoryError, match="MemoryError: odd"):
        half(3)
    assert half(8) == 4
