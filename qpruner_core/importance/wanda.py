"""Activation-aware magnitude: a weight counts by what it is multiplied with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qpruner_core.importance.criterion import OutputCriterion

if TYPE_CHECKING:
    from qpruner_core.models.inputs import InputStats


class WandaCriterion(OutputCriterion):
    """|W_ij| ||x_j|| summed over the columns of the output projection that leave with a unit.

        I(u) = sum over inputs j of u of ||x_j||_2 * sum over i of |W_ij|

    with ||x_j||_2 the Euclidean norm of input j over all calibration tokens. Needs one forward
    pass and no gradient.

    Reference: Sun et al., Wanda, arXiv:2306.11695, eq. 1, which scores single weights. The
    structured form is "Wanda-sp" of An et al., FLAP, arXiv:2312.11983: the output projections
    (`o_proj`, `down_proj`) alone are scored, for all units of a block share the inputs of their
    other weights, which would add little but magnitude. What we do differently: a KV head leaves
    with all its query heads, so their columns are summed.
    """

    def of_weights(self, columns: torch.Tensor) -> torch.Tensor:
        """Return the sum of magnitudes of every column."""
        return columns.abs().sum(dim=1)

    def of_inputs(self, stats: InputStats) -> torch.Tensor:
        """Return the norm of every input over all tokens."""
        return stats.norm
