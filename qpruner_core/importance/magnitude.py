"""Weight magnitude: what a unit owns, whatever the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qpruner_core.importance.criterion import Criterion

if TYPE_CHECKING:
    from qpruner_core.models.coupled import CoupledGroup


class MagnitudeCriterion(Criterion):
    """The p-norm over every weight that would leave with a unit; needs no calibration data.

        I(u) = (sum over w in u of |w|^p)^(1/p),    p = 1: L1, p = 2: L2

    Reference: Li et al., "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, there with
    p = 1 and the filter's own weights alone. What we do differently: all weights of the coupled
    group count, biases included, and for a whole expert all its tensors and its rows of the
    router.
    """

    def __init__(self, p: float = 2.0) -> None:
        self._p = p

    @torch.no_grad()
    def score(self, group: CoupledGroup) -> torch.Tensor:
        """Return the norm of each unit, shape ``(group.n_units,)``, float32."""
        total = torch.zeros(group.n_units, device=group.device)
        for piece in group.pieces():
            total[piece.units] += piece.weights.float().abs().pow(self._p).sum(dim=(1, 2))
        return total.pow(1.0 / self._p)
