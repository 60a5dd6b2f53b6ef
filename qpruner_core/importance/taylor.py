"""First-order Taylor importance: how much the loss would move if a unit were set to zero."""

from __future__ import annotations

import torch

from qpruner_core.importance.criterion import TaylorLike


class TaylorCriterion(TaylorLike):
    """f(w g) = w g: the change of the loss to first order.

    Setting a weight w to zero changes the loss L by -w dL/dw to first order, so that

        "element":  I(u) = mean over b of sum over w in u of |w g_b|
        "vector":   I(u) = |sum over w in u of w g|,    g the gradient over all text; nats

    Reference: Ma et al., LLM-Pruner, arXiv:2305.11627, eq. 3 (vector-wise) and eq. 4
    (element-wise), both without their second-order terms. What we do differently: there g is the
    gradient of one batch of 10 sequences and weight vectors of a group are scored apart, then
    summed, multiplied or maximised over; here b runs over sequences of all calibration text, and a
    unit's weights count as one vector, for they leave together.
    """

    def change(self, products: torch.Tensor) -> torch.Tensor:
        """Return the products w g themselves."""
        return products
