"""4-bit weights as bitsandbytes stores them: blocks of 64 levels, their scales quantised once
more.

Bytes of a module: half a byte per weight, one byte per block of 64 (its scale, an 8-bit code),
four bytes per 256 blocks (the scale of those scales), and 1,092 bytes of tables: 16 levels and
256 scale levels in float32, and the mean of the scales. In a safetensors file the mean travels
inside a JSON text together with shape and dtype (``weight.quant_state.bitsandbytes__nf4``):
about 165 bytes per module instead of the 4, and a header line of about 100 bytes for each of the
six tensors.

Two traps of bitsandbytes 0.50 on CPUs are closed here:

- Widths that blocks of 64 do not divide are refused. The vectorised dequantisation restarts its
  blocks at every row, so that multiples of 16 which are not multiples of 64 come back *wrong
  without a warning*, and odd widths need a compiler at run time.
- With AVX512_BF16 an evaluating forward repacks the weight in place, which loses gradients and
  spoils ``state_dict()``; every module made here has that switched off.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import nn
from transformers.pytorch_utils import Conv1D

from qpruner_core.errors import IncompatibleShapeError
from qpruner_core.quantization.orientation import as_linear
from qpruner_core.quantization.packed_linear import copy_bias_, tensor_bytes

BLOCK_SIZE = 64


def quant_state(module: nn.Module) -> Any:
    """Return the scales and tables of a ``Linear4bit``, also after it moved between devices."""
    weight = cast("Any", module).weight  # a move may leave the state with the module alone
    return getattr(weight, "quant_state", None) or cast("Any", module).quant_state


class FourBit:
    """A 4-bit precision with blocks of 64 and double quantisation; in_features in multiples of 64.

    Reference: Dettmers et al., "QLoRA", arXiv:2305.14314, section 3.
    """

    def __init__(self, quant_type: str) -> None:
        self.quant_type = quant_type

    def fake_quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the dequantised weight in the weight's dtype (see `Precision.fake_quantize`)."""
        packed, state = self._quantize(weight)
        return bnb.dequantize_4bit(packed, state).to(weight.dtype)

    def pack(self, linear: nn.Linear | Conv1D, compute_dtype: torch.dtype) -> nn.Module:
        """Return a bitsandbytes ``Linear4bit`` (see `Precision.pack`)."""
        linear = as_linear(linear)
        packed, state = self._quantize(linear.weight)
        module: Any = Linear4bit(  # type: ignore[no-untyped-call]
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=compute_dtype,
            quant_type=self.quant_type,
            device="meta",
        )
        module.weight = Params4bit(
            packed,
            requires_grad=False,
            quant_state=state,
            blocksize=BLOCK_SIZE,
            quant_type=self.quant_type,
            bnb_quantized=True,
        )
        module.quant_state = state
        module.support_avx512bf16_for_cpu = False
        copy_bias_(module, linear, compute_dtype)
        return cast("nn.Module", module.train(linear.training))

    def packed_bytes(self, module: nn.Module) -> int:
        """Return the bytes of packed weight, scales, scales of scales, tables and offset."""
        state = quant_state(module)
        scales = (state.absmax, state.state2.absmax, state.offset)
        return tensor_bytes(cast("Any", module).weight, *scales, state.code, state.state2.code)

    def _quantize(self, weight: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return packed levels ``(n / 2, 1)`` uint8 and their scales, from the float32 weight."""
        out_features, in_features = weight.shape
        if in_features % BLOCK_SIZE:
            raise IncompatibleShapeError(
                f"A weight of {out_features} x {in_features} was to be quantised to "
                f"{self.quant_type}, whose blocks of {BLOCK_SIZE} do not divide {in_features} "
                f"input columns ({in_features % BLOCK_SIZE} left over). Prune in multiples "
                f"of {BLOCK_SIZE}, or choose int8 or bf16 for this layer."
            )
        wide = weight.detach().to(torch.float32).contiguous()
        packed, state = bnb.quantize_4bit(
            wide, blocksize=BLOCK_SIZE, compress_statistics=True, quant_type=self.quant_type
        )
        return packed, state
