"""Quantise: a Linear at a precision, a bank of all candidates, packed models and their bytes.

The rule of this room: every precision has one *reference arithmetic*, quantise and dequantise
into a dense weight. Bank, packed module and reloaded export all compute with that same dense
weight, so a loss measured in a trial is the loss of what is exported.

What is quantised is the weight as the model in memory holds it (bf16, fp16 or fp32), widened to
float32 first, which is exact. A checkpoint in fp16 or bf16 that was loaded for float32 compute
therefore quantises to the same integers and scales wherever it is done.

Importing this package loads no torch; its modules do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D


class Precision(Protocol):
    """A format for the weight of one Linear: what an entry of ``PRECISIONS`` names."""

    def fake_quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight after quantising and dequantising it: the reference arithmetic.

        Args:
            weight: ``(out_features, in_features)``, a floating dtype, finite.

        Returns:
            A new tensor of the same shape, dtype and device. It lies in memory by rows, but for
            bf16, which keeps the order it finds; see `orientation`.

        Raises:
            IncompatibleShapeError: The format cannot carry that width.
        """
        ...

    def pack(self, linear: nn.Linear | Conv1D, compute_dtype: torch.dtype) -> nn.Module:
        """Return a packed module that stands in for a Linear or Conv1D, which is left as it is.

        In float32 on the CPU its forward equals ``F.linear(x, fake_quantize(weight), bias)`` bit
        for bit, and that of a Conv1D whose weight is its `orientation.candidate`. The packed
        weight and the bias take no gradient, the input does.

        Raises:
            IncompatibleShapeError: The format cannot carry that width.
        """
        ...

    def packed_bytes(self, module: nn.Module) -> int:
        """Return the bytes of a packed weight with its scales and tables, without bias."""
        ...
