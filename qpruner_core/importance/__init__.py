"""Score: what every unit and every layer is worth, one file per criterion.

A criterion answers for one coupled group at a time and sees only matrices `(n_units,
weights_per_unit)`. A layer signal watches one forward pass over calibration text and answers for
all layers at the end. Whatever runs here leaves the model as it was: weights, gradients cleared,
`requires_grad` and training flags restored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from qpruner_core.importance.scoring import Scores, layer_signal, score, table

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from qpruner_core.models.coupled import CoupledGroup

__all__ = ["LayerSignal", "Scores", "UnitCriterion", "layer_signal", "score", "table"]


class UnitCriterion(Protocol):
    """Scores the units of a coupled group by what they own."""

    def score(self, group: CoupledGroup) -> torch.Tensor:
        """Return the importance of every unit, shape (n_units,), float32, finite, >= 0.

        Gradients of the group are there when the entry's fact ``needs`` is ``gradients``.
        """
        ...


class LayerSignal(Protocol):
    """Watches a forward pass over sequences of one length and gives one number per layer.

    Calls come in this order: `begin` once; for every micro-batch `see_layer` for each layer in
    forward order, then `see_output`; `values` once. An object may begin again afterwards.
    """

    def begin(self, n_layers: int, n_sequences: int, length: int) -> None:
        """Forget what was seen and expect that many sequences of ``length`` tokens."""
        ...

    def see_layer(self, layer: int, first: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """Take the hidden states that enter and leave a layer, both (B, T, H).

        ``first`` is the index of the first sequence of the micro-batch. Tensors are free to be
        kept or dropped, not to be changed.
        """
        ...

    def see_output(
        self, first: int, hidden: torch.Tensor, logits_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Take the hidden states (B, T, H) after the last layer, and what maps (..., H) to logits
        (..., V).
        """
        ...

    def values(self) -> NDArray[np.float32]:
        """Return the signal of every layer, shape (n_layers,), float32, finite, >= 0."""
        ...
