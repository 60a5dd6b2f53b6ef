"""LoftQ: the adapter starts at what quantising took from the weight."""

from __future__ import annotations

import torch

from qpruner_core.recovery.initialization import Factors, Quantize, Start
from qpruner_core.recovery.low_rank import factors_of, product


class LoftQInitialization:
    """Quantises and fits the adapter in turn, each for what the other leaves.

    For t = 1 ... ``iterations``, beginning with an adapter of zero:

        Q_t      = q(W - s B_{t-1} A_{t-1})
        s B_t A_t = the largest singular directions of W - Q_t

    Reference: Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
    arXiv:2310.08659, algorithm 1. Ours differs in three ways. q is the precision that the plan
    gives the layer, whichever it is. The factors are divided by the scaling s = alpha / rank that
    LoRA multiplies them with. And as the error ||W - Q_t - s B_t A_t|| of the alternation may grow
    again, the best turn is returned instead of the last: with it, what quantising Q_t was told to
    leave out, s B_{t-1} A_{t-1}, as the shift.
    """

    def __init__(self, iterations: int = 1) -> None:
        """Take the turns; 0 fits nothing, and with 1 the packed weight stays the plan's own."""
        self._iterations = iterations

    @torch.no_grad()
    def start(
        self,
        weight: torch.Tensor,
        quantize: Quantize,
        rank: int,
        scaling: float,
        generator: torch.Generator,
    ) -> Start:
        """Return the adapter and shift of the best turn (see `Initialization.start`).

        A weight that its precision holds exactly has nothing to fit.
        """
        dense = weight.float()
        best, lowest = Start(adapter=None), float("inf")
        shift: Factors | None = None
        for _ in range(self._iterations):
            told = dense if shift is None else dense - product(shift, scaling)
            left = dense - quantize(told).float()
            adapter = factors_of(left, rank, scaling, generator)
            if adapter is None:
                break
            error = float(torch.linalg.matrix_norm(left - product(adapter, scaling)))
            if error < lowest:
                best, lowest = Start(adapter=adapter, shift=shift), error
            shift = adapter
        return best
