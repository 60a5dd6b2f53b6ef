"""BF16: the weight rounded to 16-bit brain float; exact for models that ship in it."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional

from qpruner_core.quantization.packed_linear import PackedLinear, copy_bias_, tensor_bytes


class Bf16Linear(PackedLinear):
    """A Linear whose weight lies in bfloat16, whatever dtype is computed in."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        compute_dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        """Make it empty: fill ``weight`` and ``bias``, or load a state dict."""
        super().__init__((in_features, out_features), bias, torch.bfloat16, compute_dtype, device)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return ``(..., out)`` in the input's dtype, computed in ``compute_dtype``."""
        x, weight = input.to(self.compute_dtype), self.weight.to(self.compute_dtype)
        return functional.linear(x, weight, self.compute_bias()).to(input.dtype)


class Bf16:
    """Rounding to the nearest bfloat16."""

    def fake_quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weight in the weight's dtype (see `Precision.fake_quantize`)."""
        return weight.detach().to(torch.bfloat16, copy=True).to(weight.dtype)

    def pack(self, linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
        """Return a `Bf16Linear` (see `Precision.pack`)."""
        module = Bf16Linear(
            linear.in_features, linear.out_features, False, compute_dtype, device="meta"
        )
        rounded = linear.weight.detach().to(torch.bfloat16, copy=True)
        module.weight = nn.Parameter(rounded, requires_grad=False)
        copy_bias_(module, linear, compute_dtype)
        return module.train(linear.training)

    def packed_bytes(self, module: nn.Module) -> int:
        """Return the bytes of the bfloat16 weight."""
        return tensor_bytes(cast("Bf16Linear", module).weight)


PRECISION = Bf16()
