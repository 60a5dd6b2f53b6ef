"""What plans lose on text that no side of a comparison has seen."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.evaluation.perplexity import text_sums
from qpruner_core.pipeline.materials import Materials
from qpruner_core.search.noise import PairedDifference, paired_error


class PlanLosses:
    """Losses of plans on the held-out text; a plan is measured once.

    Args:
        materials: The pruned model.
        precisions: What plans may name, besides bf16.
        heldout: Token ids, ``(n_sequences, length)``.
    """

    def __init__(
        self, materials: Materials, precisions: tuple[str, ...], heldout: torch.Tensor
    ) -> None:
        self._materials, self._precisions, self._heldout = materials, precisions, heldout
        self._known: dict[str, NDArray[np.float64]] = {}

    def __call__(self, plan: PrecisionPlan) -> float:
        """Return the loss of a plan; nats per predicted token."""
        return float(self._sequences(plan).mean())

    def dense(self) -> float:
        """Return the loss of the pruned model at 16 bit."""
        return self(PrecisionPlan.uniform(self._materials.layout(), "bf16"))

    def apart(self, plan: PrecisionPlan, other: PrecisionPlan) -> PairedDifference:
        """Return how much more a plan loses than another, sequence by sequence."""
        return paired_error(self._sequences(plan).tolist(), self._sequences(other).tolist())

    def _sequences(self, plan: PrecisionPlan) -> NDArray[np.float64]:
        if plan.key not in self._known:
            bank, ids = self._materials.bank((*self._precisions, "bf16")), self._heldout
            bank.apply(plan)
            sums = text_sums(bank.model, ids)
            bank.restore()
            self._known[plan.key] = np.array(sums, dtype=np.float64) / (ids.shape[1] - 1)
        return self._known[plan.key]
