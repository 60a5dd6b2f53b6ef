"""Weights as (outputs, inputs), whatever way round a module stores them.

The Conv1D of `transformers` keeps its weight (in, out) and computes ``addmm(bias, x, weight)``.
Quantised it becomes a Linear that holds (out, in), rows and blocks running along the inputs as in
every other family; at bf16 it stays a Conv1D, as stock checkpoints store it. A product's last bit
depends on the memory order of its operands, so the dense candidate of a quantised Conv1D is the
(out, in) matrix *seen* transposed: ``addmm`` then gets the very operands that the Linear gives it,
and a trial on dense weights equals the packed module and the reopened export bit for bit.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qpruner_core.catalog import PRECISIONS


def is_dense(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Whether a module is a Linear or Conv1D."""
    return isinstance(module, nn.Linear | Conv1D)


def outputs_first(module: nn.Linear | Conv1D) -> torch.Tensor:
    """Return the weight as ``(out_features, in_features)``, a view without history."""
    weight = module.weight.detach()
    return weight.t() if isinstance(module, Conv1D) else weight


def as_linear(module: nn.Linear | Conv1D) -> nn.Linear:
    """Return a Linear as it is; for a Conv1D one of the same weight and bias, weight copied."""
    if not isinstance(module, Conv1D):
        return module
    weight = outputs_first(module).contiguous()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = module.bias
    return linear.train(module.training)


def candidate(module: nn.Linear | Conv1D, precision: str) -> torch.Tensor:
    """Return what stands behind the module's weight at a precision: quantised and dequantised.

    Shape and dtype are those of the stored weight, the memory order that of the packed module.

    Raises:
        IncompatibleShapeError: The format cannot carry that width.
    """
    dense = PRECISIONS.target(precision).fake_quantize(outputs_first(module))
    return dense.t() if isinstance(module, Conv1D) else dense
