"""First-order Taylor importance: how much the loss would move if a weight were set to zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from qpruner_core.models.coupled import CoupledGroup


class TaylorCriterion:
    """|w g| summed over every weight that would leave with a unit.

    Setting a weight w to zero changes the loss L by -w dL/dw to first order. A unit's importance
    is the sum of the magnitudes over the weights of all tensors of its coupled group:

        I(u) = sum over w in u of |w dL/dw|,    L = mean negative log-likelihood per token; nats

    Reference: Ma et al., LLM-Pruner, arXiv:2305.11627, eq. 4 without its second-order term
        ("Element, first
    order"). There scores of the tensors of a group may be multiplied or maximised over as well;
    here they are summed.
    """

    @torch.no_grad()
    def score(self, group: CoupledGroup) -> torch.Tensor:
        """Return the importance of each unit, shape ``(group.n_units,)``, float32; needs
        gradients.
        """
        total = torch.zeros(group.n_units, device=group.device)
        for weight, gradient in zip(group.weights, group.gradients, strict=True):
            total += (weight.float() * gradient.float()).abs().sum(dim=1)
        return total
