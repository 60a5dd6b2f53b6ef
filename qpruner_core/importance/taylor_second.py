"""Second-order Taylor importance with the Fisher information in the place of the Hessian."""

from __future__ import annotations

import torch

from qpruner_core.importance.criterion import TaylorLike


class TaylorSecondCriterion(TaylorLike):
    """f(w g) = 1/2 (w g)^2: the change of the loss to second order where its gradient vanishes.

    Setting the weights w of a unit to zero changes the loss L by 1/2 w^T H w beside the first
    order. H is taken as the Fisher information, the mean over sequences s of g_s g_s^T, so that

        "element":  I(u) = mean over s of sum over w in u of 1/2 (w g_s)^2       (its diagonal)
        "vector":   I(u) = mean over s of 1/2 (sum over w in u of w g_s)^2       (all of it)

    in nats. Gradients must be those of single sequences; a micro-batch is one.

    Reference: Ma et al., LLM-Pruner, arXiv:2305.11627, the second-order terms of eq. 3 and eq. 5.
    What we do differently: there only the diagonal is used. Vector-wise, the whole Fisher block of
    a unit costs nothing more, as its quadratic form is the square of one sum per sequence.
    """

    def change(self, products: torch.Tensor) -> torch.Tensor:
        """Return half the squared products."""
        return products.square() / 2
