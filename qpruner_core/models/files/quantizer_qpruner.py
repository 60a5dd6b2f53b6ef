"""Opens checkpoints whose Linears differ in precision: packed 4-bit, packed 8-bit and 16-bit side
by side.

This file travels with the checkpoint. It needs torch and transformers, and bitsandbytes where a
Linear has 4 bits. What is stored of a Linear ``X``:

    nf4, fp4   X.weight   uint8   (weights / 2, 1)   two levels per byte
               X.absmax   uint8   (blocks,)          scales of blocks of 64 weights, quantised too
               X.nested   float32 (blocks/256 + 1,)  scales of 256 such scales, then their offset
    int8       X.weight   int8    (out, in)
               X.SCB      float32 (out,)             largest absolute value of every row
    bf16       X.weight   bfloat16 (out, in), of a Conv1D (in, out)

A Conv1D below 16 bit is stored as the Linear that computes the same, and opens as one. The two
code tables of the 4-bit formats are constants of bitsandbytes and are not stored.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import ceil
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "qpruner"
"""``quant_method`` in ``config.json``."""
FORMAT_VERSION = 1
"""What this file can read."""
BLOCK_SIZE = 64
NESTED_BLOCK_SIZE = 256


def frozen(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    """Return an empty parameter without gradient: the place of a stored tensor."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


class Int8Linear(nn.Linear):
    """A Linear that keeps int8 rows and their scales, and restores the weight for every product.

    Weight = ``int8 * (SCB / 127)`` in float32. Activations stay as they are, unlike in LLM.int8().
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.weight = frozen((out_features, in_features), torch.int8)
        self.SCB = frozen((out_features,), torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + bias`` in the dtype of ``x``; x (..., in), result (..., out)."""
        weight = self.weight.float() * (self.SCB.float() / 127).view(-1, 1)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, weight.to(x.dtype), bias)


def sizes(linear: Any) -> tuple[int, int]:
    """Return outputs and inputs of a Linear or Conv1D."""
    rows, columns = linear.weight.shape
    return (columns, rows) if isinstance(linear, Conv1D) else (rows, columns)


def four_bit_place(linear: Any, kind: str, dtype: torch.dtype) -> Any:
    """Return an empty bitsandbytes Linear4bit with a place for every stored tensor."""
    (rows, columns), has_bias = sizes(linear), linear.bias is not None
    bnb: Any = import_module("bitsandbytes")
    place = bnb.nn.Linear4bit(columns, rows, has_bias, compute_dtype=dtype, quant_type=kind)
    blocks = ceil(rows * columns / BLOCK_SIZE)
    place.weight = frozen(((rows * columns + 1) // 2, 1), torch.uint8)
    place.absmax = frozen((blocks,), torch.uint8)
    place.nested = frozen((ceil(blocks / NESTED_BLOCK_SIZE) + 1,), torch.float32)
    place.qpruner_kind = kind
    # This fast path rewrites the weight in place on CPUs that have it, and refuses many widths.
    place.support_avx512bf16_for_cpu = False
    return place


@cache
def code_table(kind: str, device: torch.device) -> torch.Tensor:
    """Return the levels of a 4-bit format or of its 8-bit scales (``nested``), one per device."""
    tables: Any = import_module("bitsandbytes.functional")
    if kind == "nested":
        table: torch.Tensor = tables.create_dynamic_map().to(device)
    else:
        table = tables.get_4bit_type(kind, device=device)
    return table


def finish_four_bit_(module: Any, dtype: torch.dtype) -> None:
    """Turn the loaded tensors of a Linear4bit into what bitsandbytes computes with, in place."""
    bnb: Any = import_module("bitsandbytes")
    quant_state = bnb.functional.QuantState
    weight, nested = module.weight.data, module.nested.data
    state = quant_state(
        absmax=module.absmax.data,
        shape=torch.Size((module.out_features, module.in_features)),
        dtype=dtype,
        blocksize=BLOCK_SIZE,
        code=code_table(module.qpruner_kind, weight.device),
        quant_type=module.qpruner_kind,
        offset=nested[-1].clone(),
        state2=quant_state(
            absmax=nested[:-1].clone(),
            blocksize=NESTED_BLOCK_SIZE,
            code=code_table("nested", weight.device),
            dtype=torch.float32,
        ),
    )
    del module.absmax, module.nested
    module.quant_state = state
    module.weight = bnb.nn.Params4bit(
        weight,
        requires_grad=False,
        quant_state=state,
        blocksize=BLOCK_SIZE,
        quant_type=module.qpruner_kind,
        module=module,
        bnb_quantized=True,
    )


class QPrunerConfig(QuantizationConfigMixin):
    """``quantization_config``: Linear name -> ``nf4``, ``fp4``, ``int8`` or ``bf16``."""

    def __init__(
        self, precisions: dict[str, str], format_version: int = FORMAT_VERSION, **_: Any
    ) -> None:
        self.quant_method: Any = METHOD
        self.precisions = precisions
        self.format_version = format_version


class QPrunerQuantizer(HfQuantizer):
    """Builds the packed modules before the weights are read and completes them afterwards."""

    quantization_config: QPrunerConfig
    requires_calibration = True  # an export is read, never made, through this class

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Refuse what cannot be read, before any weight is touched.

        Raises:
            ImportError: A Linear has 4 bits and bitsandbytes is missing.
            ValueError: The folder was written in a newer format.
        """
        config = self.quantization_config
        if config.format_version > FORMAT_VERSION:
            raise ValueError(
                f"The checkpoint is of format {config.format_version}, its reader knows "
                f"{FORMAT_VERSION}. Download quantizer_qpruner.py of the same checkpoint again."
            )
        has_four_bit = not {"nf4", "fp4"}.isdisjoint(config.precisions.values())
        if has_four_bit and find_spec("bitsandbytes") is None:
            raise ImportError(
                "The checkpoint holds 4-bit weights, which need bitsandbytes: "
                "pip install bitsandbytes"
            )

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Remember in which dtype the model computes."""
        self.compute_dtype = dtype
        return dtype

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        for name, precision in self.quantization_config.precisions.items():
            parent_name, _dot, leaf = name.rpartition(".")
            parent = model.get_submodule(parent_name)
            linear = getattr(parent, leaf)
            if precision in ("nf4", "fp4"):
                setattr(parent, leaf, four_bit_place(linear, precision, self.compute_dtype))
            elif precision == "int8":
                rows, columns = sizes(linear)
                setattr(parent, leaf, Int8Linear(columns, rows, linear.bias is not None))

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for module in model.modules():
            if hasattr(module, "qpruner_kind"):
                finish_four_bit_(module, self.compute_dtype)
        # PEFT picks its wrapper for 4-bit modules by this flag.
        model.is_loaded_in_4bit = True
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Saving again would need the layout above: copy the folder instead."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Adapters train on the frozen packed weights."""
        return True


# Two exports opened in one process bring this file twice: the later one takes the name over.
AUTO_QUANTIZATION_CONFIG_MAPPING.pop(METHOD, None)
AUTO_QUANTIZER_MAPPING.pop(METHOD, None)
register_quantization_config(METHOD)(QPrunerConfig)
register_quantizer(METHOD)(QPrunerQuantizer)
