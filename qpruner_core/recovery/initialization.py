"""Where an adapter starts, and what it leaves for the frozen weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

Quantize = Callable[[torch.Tensor], torch.Tensor]
"""Quantises a weight ``(out, in)`` and dequantises it again: the reference arithmetic of the
layer's own precision."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """A matrix of low rank, ``scaling * b @ a``, as an adapter computes it."""

    a: torch.Tensor
    """``(rank, in_features)``, float32."""
    b: torch.Tensor
    """``(out_features, rank)``, float32."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start:
    """Where the adapter of one Linear starts."""

    adapter: Factors | None
    """None: as LoRA does by itself."""
    shift: Factors | None = None
    """What is taken from the weight before it is quantised; None: nothing, so that the packed
    weight stays the plan's own."""


class Initialization(Protocol):
    """What an entry of ``INITIALIZATIONS`` makes when it is called with its options."""

    def start(
        self,
        weight: torch.Tensor,
        quantize: Quantize,
        rank: int,
        scaling: float,
        generator: torch.Generator,
    ) -> Start:
        """Return where the adapter of a Linear starts.

        Args:
            weight: The dense weight ``(out_features, in_features)``, a floating dtype; unchanged.
            quantize: The precision that the plan gives this Linear.
            rank: Of the adapter; >= 1, at most the smaller side of the weight is used.
            scaling: alpha / rank; > 0.
            generator: Seeded; on the CPU.
        """
        ...
