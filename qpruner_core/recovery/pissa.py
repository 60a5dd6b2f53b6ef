"""PiSSA: the adapter starts at the principal directions of the weight, the rest is quantised."""

from __future__ import annotations

import torch

from qpruner_core.recovery.initialization import Quantize, Start
from qpruner_core.recovery.low_rank import factors_of


class PissaInitialization:
    """Gives the largest singular directions to the adapter and takes them from the weight.

    What is left is smaller, so that quantising it loses less, and the directions that matter most
    are trained, at full precision.

    Reference: Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation of
    Large Language Models", arXiv:2404.02948; quantising the residual is its QPiSSA. Ours quantises
    it at the layer's own precision, and respects the scaling of LoRA.
    """

    @torch.no_grad()
    def start(
        self,
        weight: torch.Tensor,
        quantize: Quantize,
        rank: int,
        scaling: float,
        generator: torch.Generator,
    ) -> Start:
        """Return the principal directions, as adapter and as shift (see `Initialization.start`).

        Where the precision holds the weight itself exactly, it may not hold the residual, which
        then adds an error of its rounding.
        """
        del quantize
        principal = factors_of(weight, rank, scaling, generator)
        return Start(adapter=principal, shift=principal)
