"""What our own packed Linears share: a frozen weight in a storage dtype, computed in another."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class PackedLinear(nn.Linear):
    """A Linear made empty, without touching the random state; subclasses say what it computes.

    Being an ``nn.Linear`` lets PEFT wrap it and lets models ask for its sizes. Weight and bias
    take no gradient, the input does.
    """

    def __init__(
        self,
        sizes: tuple[int, int],
        bias: bool,
        storage_dtype: torch.dtype,
        compute_dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        """Make it empty; sizes: ``(in_features, out_features)``."""
        super().__init__(*sizes, bias, device="meta")
        self.compute_dtype = compute_dtype
        weight = torch.empty(sizes[1], sizes[0], dtype=storage_dtype, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias:
            empty = torch.empty(sizes[1], dtype=compute_dtype, device=device)
            self.bias = nn.Parameter(empty, requires_grad=False)

    def compute_bias(self) -> torch.Tensor | None:
        """Return the bias in the compute dtype."""
        bias: torch.Tensor | None = self.bias
        return None if bias is None else bias.to(self.compute_dtype)


def copy_bias_(
    module: nn.Linear | Conv1D, linear: nn.Linear | Conv1D, compute_dtype: torch.dtype
) -> None:
    """Give a packed module a frozen copy of the bias of another, where it has one."""
    if linear.bias is not None:
        bias = linear.bias.detach().to(compute_dtype, copy=True)
        module.bias = nn.Parameter(bias, requires_grad=False)


def tensor_bytes(*tensors: torch.Tensor) -> int:
    """Return the bytes of tensors as they lie in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
