"""A 16-bit weight is widened to compute, and nothing wider is kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from qpruner_core.quantization.bf16 import PRECISION

X = torch.linspace(-1.0, 1.0, 3 * 5 * 8).reshape(3, 5, 8)


def dense(kind: str) -> nn.Linear | Conv1D:
    torch.manual_seed(0)
    return nn.Linear(8, 6) if kind == "linear" else Conv1D(6, 8)


def kept_bytes(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the output, and the bytes of the floating tensors kept besides input and weight."""
    kept: dict[int, int] = {}
    known = {x.data_ptr(), module.weight.data_ptr()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(x)
    return out, sum(kept.values())


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_the_backward_pass_keeps_no_wider_copy_of_the_weight(kind: str) -> None:
    packed = PRECISION.pack(dense(kind), torch.float32)
    _, n_bytes = kept_bytes(packed, X.clone().requires_grad_())
    assert n_bytes == 0


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_output_and_gradient_are_those_of_the_rounded_weight(kind: str) -> None:
    source = dense(kind)
    packed = PRECISION.pack(source, torch.float32)
    weight = PRECISION.fake_quantize(source.weight)
    x, reference = X.clone().requires_grad_(), X.clone().requires_grad_()
    if kind == "linear":
        expected = functional.linear(reference, weight, source.bias)
    else:
        expected = (reference.reshape(-1, 8) @ weight + source.bias).view(3, 5, 6)
    found = packed(x)
    pull = torch.cos(torch.arange(found.numel()).float()).view_as(found)
    found.backward(pull)
    expected.backward(pull)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(x.grad, reference.grad)
    assert packed.weight.grad is None
