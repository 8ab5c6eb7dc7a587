"""What an evaluation changes is put back, however it ends."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from mae_bench.restored import module_left_as_it_was, process_left_as_it_was


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(), nn.ReLU()))


@pytest.mark.parametrize("fails", [False, True])
def test_a_module_is_left_as_it_was(fails: bool) -> None:
    module = network().train()
    module[2].eval()  # as one that is frozen in part
    weight, parameters = module[0].weight, dict(module.named_parameters())
    weight.grad = gradient = torch.ones_like(weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    tensors = {name: (value.data_ptr(), value.stride()) for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    try:
        with module_left_as_it_was(module):
            module.eval().to(torch.float64).to(memory_format=torch.channels_last)
            if fails:
                raise RuntimeError("the network broke down")
    except RuntimeError:
        assert fails
    assert [part.training for part in module.modules()] == modes
    assert {name: (value.data_ptr(), value.stride()) for name, value in module.state_dict().items()} == tensors
    assert dict(module.named_parameters()) == parameters
    assert weight.dtype == torch.float32
    assert weight.grad is gradient
    assert gradient.dtype == torch.float32
    assert module[0].bias.grad is None
    assert optimizer.param_groups[0]["params"][0] is weight


@pytest.mark.parametrize("fails", [False, True])
def test_a_process_is_left_as_it_was(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ValueError("of an earlier line")
    monkeypatch.setattr(sys, "last_value", before, raising=False)
    state = (torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    try:
        with process_left_as_it_was():
            torch.set_num_threads(state[0] + 1)
            torch.backends.cudnn.allow_tf32 = not state[1]
            torch.backends.cuda.matmul.allow_tf32 = not state[2]
            del sys.last_value
            if fails:
                raise RuntimeError("the network broke down")
    except RuntimeError:
        assert fails
    assert (
        torch.get_num_threads(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    ) == state
    assert sys.last_value is before
