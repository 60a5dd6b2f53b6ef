"""BF16: the weight rounded to 16-bit brain float; exact for models that ship in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from qpruner_core.quantization.packed_linear import PackedLinear, copy_bias_, tensor_bytes


class _WidenedProduct(torch.autograd.Function):
    """``x W`` or ``x W^T`` of a 16-bit weight, of which the backward pass keeps no wider copy.

    Autograd by itself would keep the weight as it was widened, on a CPU twice its bytes, so that
    training at 16 bit would be measured larger than it is.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, by_rows: bool
    ) -> torch.Tensor:
        """Return the product; x: ``(..., in)``, weight: ``(out, in)`` by rows, else ``(in,
        out)``.
        """
        ctx.save_for_backward(weight)
        ctx.by_rows = by_rows
        wide = weight.to(x.dtype)
        if by_rows:
            return functional.linear(x, wide, bias)
        return x @ wide if bias is None else torch.addmm(bias, x, wide)

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, None, torch.Tensor | None, None]:
        """Return the gradients for x and, when it is trained, the bias."""
        (weight,) = ctx.saved_tensors
        wide = weight.to(grad.dtype)
        for_x = grad @ (wide if ctx.by_rows else wide.T) if ctx.needs_input_grad[0] else None
        for_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return for_x, None, for_bias, None


_product = cast("Callable[..., torch.Tensor]", _WidenedProduct.apply)


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
        x = input.to(self.compute_dtype)
        return _product(x, self.weight, self.compute_bias(), True).to(input.dtype)


class Bf16Conv1D(Conv1D):
    """A Conv1D whose weight ``(in, out)`` lies in bfloat16; computes as the stock module does.

    Being a Conv1D lets PEFT wrap it. Weight and bias take no gradient, the input does.
    """

    def __init__(self, conv: Conv1D, compute_dtype: torch.dtype) -> None:
        """Round the weight of a Conv1D, which is left as it is."""
        nn.Module.__init__(self)  # the stock constructor draws random weights
        self.nx, self.nf = conv.weight.shape
        self.compute_dtype = compute_dtype
        weight = conv.weight.detach().to(torch.bfloat16, copy=True)
        self.weight = nn.Parameter(weight, requires_grad=False)
        copy_bias_(self, conv, compute_dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return ``(..., out)`` in the input's dtype, computed in ``compute_dtype``."""
        rows = input.to(self.compute_dtype).reshape(-1, self.nx)
        out = _product(rows, self.weight, self.bias.to(self.compute_dtype), False)
        return out.view(*input.shape[:-1], self.nf).to(input.dtype)


class Bf16:
    """Rounding to the nearest bfloat16."""

    def fake_quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weight in the weight's dtype and memory order (see
        `Precision.fake_quantize`).
        """
        return weight.detach().to(torch.bfloat16, copy=True).to(weight.dtype)

    def pack(self, linear: nn.Linear | Conv1D, compute_dtype: torch.dtype) -> nn.Module:
        """Return a `Bf16Linear` or `Bf16Conv1D` (see `Precision.pack`)."""
        if isinstance(linear, Conv1D):
            return Bf16Conv1D(linear, compute_dtype).train(linear.training)
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
