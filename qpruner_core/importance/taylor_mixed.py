"""Taylor importance to second order: gradient and Fisher information together."""

from __future__ import annotations

import torch

from qpruner_core.importance.criterion import TaylorLike


class TaylorMixedCriterion(TaylorLike):
    """f(w g) = w g - 1/2 (w g)^2: the change of the loss to second order, its sign turned.

    With H the Fisher information, the mean over sequences s of g_s g_s^T,

        "element":  I(u) = mean over s of sum over w in u of |w g_s - 1/2 (w g_s)^2|
        "vector":   I(u) = |mean over s of (w.g_s - 1/2 (w.g_s)^2)|,   w.g = sum over w in u of w g

    in nats. Vector-wise this is |w.g - 1/2 w^T H w| over all text, exactly.

    Reference: Ma et al., LLM-Pruner, arXiv:2305.11627, eq. 3 (vector-wise) and eq. 5
    (element-wise). What we do differently: as in `taylor` and `taylor_second`; element-wise, the
    magnitude is taken for every sequence rather than of the mean over them.
    """

    def change(self, products: torch.Tensor) -> torch.Tensor:
        """Return the products less half their squares."""
        return products - products.square() / 2
