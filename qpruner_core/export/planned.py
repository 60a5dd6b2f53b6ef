"""What the weight files of a checkpoint will hold, known before a single weight is at hand.

For the same model and plan these are the names, shapes and dtypes, in the same order, that
`weights.stored_tensors` finds on the packed model; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch

from qpruner_core.domain.layout import LinearLayout, ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.export.weights import FOUR_BIT, kept_tensors
from qpruner_core.models.files.quantizer_qpruner import BLOCK_SIZE, NESTED_BLOCK_SIZE
from qpruner_core.models.sharded_writer import Planned


def planned_tensors(
    model: Any, layout: ModelLayout, plan: PrecisionPlan, dtype: torch.dtype
) -> dict[str, Planned]:
    """Return name in memory -> what will be stored, for a pruned model that may be on meta.

    Args:
        model: The pruned model, its Linears dense.
        layout: Its layout.
        plan: Precision of every Linear of the decoder layers.
        dtype: 16-bit dtype of everything the plan does not name.
    """
    packed: dict[str, Planned] = {}
    for linear in layout.linears:
        for leaf, item in _planned_weight(linear, plan.precisions[linear.name]):
            packed[f"{linear.name}.{leaf}"] = item
    ordered = {
        f"{name}.{leaf}": packed[f"{name}.{leaf}"]
        for name in plan.precisions
        for leaf in ("weight", "absmax", "nested", "SCB")
        if f"{name}.{leaf}" in packed
    }
    rest = {
        name: Planned(tuple(tensor.shape), dtype)
        for name, tensor in kept_tensors(model)
        if name not in packed
    }
    return rest | ordered


def _planned_weight(linear: LinearLayout, precision: str) -> Iterator[tuple[str, Planned]]:
    """Yield leaf name and what is stored under it, as `weights.packed_weight` gives them."""
    shape = (linear.out_features, linear.in_features)
    if precision in FOUR_BIT:
        n_weights = linear.out_features * linear.in_features
        blocks = ceil(n_weights / BLOCK_SIZE)
        yield "weight", Planned(((n_weights + 1) // 2, 1), torch.uint8)
        yield "absmax", Planned((blocks,), torch.uint8)
        yield "nested", Planned((ceil(blocks / NESTED_BLOCK_SIZE) + 1,), torch.float32)
    elif precision == "int8":
        yield "weight", Planned(shape, torch.int8)
        yield "SCB", Planned(shape[:1], torch.float32)
    elif precision == "bf16":
        yield "weight", Planned(linear.weight_shape, torch.bfloat16)
    else:
        raise ValueError(f"no rule says how {precision} is stored")
