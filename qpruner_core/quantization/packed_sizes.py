"""Bytes of packed weights, counted on modules that are really packed.

Every format of the catalogue takes as many bytes as the shape of the weight implies, whatever its
values, so that one packed module per shape and precision stands for all others.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qpruner_core.catalog import PRECISIONS
from qpruner_core.quantization.orientation import outputs_first


class PackedSizes:
    """Packs the first Linear of every shape and precision that is asked for, and remembers."""

    def __init__(self, compute_dtype: torch.dtype) -> None:
        self._compute_dtype = compute_dtype
        self._counted: dict[tuple[torch.Size, str], int] = {}

    def count(self, linear: nn.Linear | Conv1D, precision: str) -> int:
        """Return the bytes of a Linear's weight at a precision, with scales and tables; the bias
        is not counted.
        """
        key = (outputs_first(linear).shape, precision)
        if key not in self._counted:
            rule = PRECISIONS.target(precision)
            self._counted[key] = rule.packed_bytes(rule.pack(linear, self._compute_dtype))
        return self._counted[key]
