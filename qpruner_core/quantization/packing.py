"""A whole model packed by a plan, and the bytes it really holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn
from transformers.pytorch_utils import Conv1D

from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.footprint import BYTES_16_BIT
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.quantization.bf16 import Bf16Conv1D, Bf16Linear
from qpruner_core.quantization.four_bit import quant_state
from qpruner_core.quantization.int8 import Int8Linear
from qpruner_core.quantization.orientation import is_dense
from qpruner_core.quantization.shapes import check_plan


def precision_of(module: nn.Module) -> str | None:
    """Return the catalogue name of a packed module's precision, None for any other module."""
    if isinstance(module, Linear4bit):
        return str(quant_state(module).quant_type)
    if isinstance(module, Int8Linear):
        return "int8"
    return "bf16" if isinstance(module, Bf16Linear | Bf16Conv1D) else None


Prepare = Callable[[str, nn.Linear | Conv1D], None]
"""Changes a dense module of a name in place."""


def pack_(
    model: nn.Module,
    layout: ModelLayout,
    plan: PrecisionPlan,
    compute_dtype: torch.dtype,
    prepare: Prepare = lambda name, dense: None,
) -> None:
    """Replace every Linear of the decoder layers by its packed module, in place, one at a time.

    Args:
        model: The model as pruned, its Linears or Conv1D modules dense.
        layout: Its layout.
        plan: One precision for every Linear.
        compute_dtype: Dtype of the products.
        prepare: Told of every dense module just before it is packed.

    Raises:
        BadInputError: The plan is not for this layout.
        IncompatibleShapeError: A precision cannot carry a width; nothing has been changed then.
    """
    check_plan(layout, plan)
    for name, precision in plan.precisions.items():
        linear = model.get_submodule(name)
        if not is_dense(linear) or precision_of(linear) is not None:
            raise TypeError(
                f"{name!r} is a {type(linear).__name__}; a dense Linear or Conv1D is needed"
            )
        prepare(name, linear)
        model.set_submodule(name, PRECISIONS.target(precision).pack(linear, compute_dtype))


def packed_bytes(model: nn.Module) -> int:
    """Return the bytes of a model: packed weights as they lie in memory, the rest at 16 bit.

    Embeddings, norms, biases, an output head and adapters count two bytes per parameter, which
    is how they are stored in a checkpoint, even where a CPU computes with them in float32; tied
    ones count once. For a packed model this equals ``footprint.plan_bytes`` of its layout and
    plan.
    """
    total = 0
    packed: set[int] = set()
    for module in model.modules():
        precision = precision_of(module)
        if precision is not None:
            total += PRECISIONS.target(precision).packed_bytes(module)
            packed.add(id(module.weight))
    return total + BYTES_16_BIT * sum(
        parameter.numel() for parameter in model.parameters() if id(parameter) not in packed
    )
