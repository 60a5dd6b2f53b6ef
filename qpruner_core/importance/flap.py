"""Fluctuation: how far a unit's contribution moves about its mean, which a bias can stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qpruner_core.importance.criterion import OutputCriterion

if TYPE_CHECKING:
    from qpruner_core.models.inputs import InputStats


class FlapCriterion(OutputCriterion):
    """The fluctuation of a unit's inputs, weighted by the columns that read them (WIFV).

        I(u) = sum over inputs j of u of  sum over tokens of (x_j - mean x_j)^2 * ||W_:j||_2^2

    W the output projection (`o_proj`, `down_proj`). It is the squared error that is left when the
    unit leaves and its mean goes into a bias, inputs taken as independent: the criterion that fits
    the compensation by biases. Needs one forward pass and no gradient.

    Reference: An et al., FLAP, arXiv:2312.11983, "Weighted Input Feature Variance" (WIFV). What we
    do differently: the sum over tokens is not divided by their number, which changes nothing
    between units that see the same tokens and makes experts comparable; columns are summed over a
    KV head with its query heads as they are, where the authors' code squares those of attention
    first. Scores are not standardised per layer here: that is the scope ``"standardised"`` of the
    selection.
    """

    def of_weights(self, columns: torch.Tensor) -> torch.Tensor:
        """Return the squared norm of every column."""
        return columns.square().sum(dim=1)

    def of_inputs(self, stats: InputStats) -> torch.Tensor:
        """Return the summed squared deviation of every input from its mean."""
        return stats.deviations
