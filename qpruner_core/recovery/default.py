"""LoRA's own beginning: A at random, B = 0, so that training starts at the compressed model."""

from __future__ import annotations

import torch

from qpruner_core.recovery.initialization import Quantize, Start


class DefaultInitialization:
    """Leaves adapter and weight as they are.

    Reference: Hu et al., "LoRA", arXiv:2106.09685, section 4.1.
    """

    def start(
        self,
        weight: torch.Tensor,
        quantize: Quantize,
        rank: int,
        scaling: float,
        generator: torch.Generator,
    ) -> Start:
        """Return nothing to start from (see `Initialization.start`)."""
        del weight, quantize, rank, scaling, generator
        return Start(adapter=None)
