"""INT8: weights as 8-bit integers with one scale per output row; activations stay as they are.

The storage is that of bitsandbytes (int8 ``weight``, float32 ``SCB`` = largest magnitude of each
row), the arithmetic is not: ``Linear8bitLt`` also rounds activations when evaluating, which
costs a whole model 1.4 % of its logits and differs between training and evaluation. Here the
weight is dequantised as

    w[i, j] = q[i, j] * (SCB[i] / 127),   q = round(w * (127 / SCB)) in [-127, 127], all in
    float32,

and multiplied densely. Any width is possible.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from qpruner_core.quantization.orientation import as_linear
from qpruner_core.quantization.packed_linear import PackedLinear, copy_bias_, tensor_bytes

LEVELS = 127


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the integers ``(out, in)`` int8 and the row scales ``SCB`` ``(out,)`` float32."""
    wide = weight.detach().to(torch.float32).contiguous()
    scb = wide.abs().amax(dim=1)
    factor = torch.where(scb > 0, LEVELS / scb, torch.zeros_like(scb))  # rows of zeros stay zero
    levels = torch.round(wide * factor[:, None]).clamp_(-LEVELS, LEVELS)
    return levels.to(torch.int8), scb


def dequantize_rows(
    levels: torch.Tensor, scb: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return the dense weight ``(out, in)`` in that dtype, computed in float32."""
    return (levels.to(torch.float32) * (scb / LEVELS)[:, None]).to(dtype)


class _DequantizedLinear(torch.autograd.Function):
    """``x W^T + b`` that keeps integers, not the dense weight, for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        levels: torch.Tensor,
        scb: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the product; x: ``(..., in)``."""
        ctx.save_for_backward(levels, scb)
        return functional.linear(x, dequantize_rows(levels, scb, x.dtype), bias)

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, None, None, torch.Tensor | None]:
        """Return the gradients for x and, when it is trained, the bias."""
        levels, scb = ctx.saved_tensors
        for_x = (
            grad @ dequantize_rows(levels, scb, grad.dtype) if ctx.needs_input_grad[0] else None
        )
        for_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[3] else None
        return for_x, None, None, for_bias


class Int8Linear(PackedLinear):
    """A Linear whose weight lies as int8 with a float32 scale per row, ``SCB``."""

    SCB: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        compute_dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        """Make it empty: fill ``weight``, ``SCB`` and ``bias``, or load a state dict."""
        super().__init__((in_features, out_features), bias, torch.int8, compute_dtype, device)
        scales = torch.empty(out_features, dtype=torch.float32, device=device)
        self.register_buffer("SCB", scales)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return ``(..., out)`` in the input's dtype, computed in ``compute_dtype``."""
        x, bias = input.to(self.compute_dtype), self.compute_bias()
        product = cast("Callable[..., torch.Tensor]", _DequantizedLinear.apply)
        return product(x, self.weight, self.SCB, bias).to(input.dtype)

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> Int8Linear:
        """Move to another device; the scales stay in float32 when the model's dtype changes."""
        scales = self.SCB
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.SCB
        if moved.dtype != scales.dtype:
            self.SCB = scales.to(moved.device)
        return self


class Int8:
    """Row-wise absolute maximum, weights only."""

    def fake_quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the dequantised weight in the weight's dtype (see `Precision.fake_quantize`)."""
        return dequantize_rows(*quantize_rows(weight), weight.dtype)

    def pack(self, linear: nn.Linear | Conv1D, compute_dtype: torch.dtype) -> nn.Module:
        """Return an `Int8Linear` (see `Precision.pack`)."""
        linear = as_linear(linear)
        module = Int8Linear(
            linear.in_features, linear.out_features, False, compute_dtype, device="meta"
        )
        levels, module.SCB = quantize_rows(linear.weight)
        module.weight = nn.Parameter(levels, requires_grad=False)
        copy_bias_(module, linear, compute_dtype)
        return module.train(linear.training)

    def packed_bytes(self, module: nn.Module) -> int:
        """Return the bytes of integers and row scales."""
        packed = cast("Int8Linear", module)
        return tensor_bytes(packed.weight, packed.SCB)


PRECISION = Int8()
