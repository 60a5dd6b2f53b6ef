"""Weight magnitude: what a unit owns, whatever the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from qpruner_core.models.coupled import CoupledGroup


class MagnitudeCriterion:
    """The p-norm over every weight that would leave with a unit; needs no calibration data.

    Reference: Li et al., "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, there with p
        = 1 and the
    filter's own weights alone; here all weights of the coupled group count.
    """

    def __init__(self, p: float = 2.0) -> None:
        self._p = p

    @torch.no_grad()
    def score(self, group: CoupledGroup) -> torch.Tensor:
        """Return the norm of each unit, shape ``(group.n_units,)``, float32."""
        total = torch.zeros(group.n_units, device=group.device)
        for weight in group.weights:  # (n_units, weights_per_unit)
            total += weight.float().abs().pow(self._p).sum(dim=1)
        return total.pow(1.0 / self._p)
