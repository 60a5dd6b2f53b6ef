"""Score: what every unit and every layer is worth, one file per criterion.

A unit criterion answers for one coupled group at a time and sees only pieces
`(units, entries, across)`, or the moments of what enters the units' output projection. A layer
signal watches one forward pass over calibration text and answers for all layers at the end.
Whatever runs here leaves the model as it was: weights, gradients cleared, `requires_grad` and
training flags restored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from qpruner_core.importance.scoring import Scores, layer_signal, score, table
from qpruner_core.importance.stability import MeasuredSignal, measured_signal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from qpruner_core.domain.layout import GroupLayout
    from qpruner_core.models.coupled import CoupledGroup
    from qpruner_core.models.inputs import InputStats

__all__ = [
    "LayerSignal",
    "MeasuredSignal",
    "Scores",
    "UnitCriterion",
    "layer_signal",
    "measured_signal",
    "score",
    "table",
]


class UnitCriterion(Protocol):
    """Scores the units of coupled groups by what they own and what they are given.

    Calls come in this order: `begin` once; then, as the entry's fact ``needs`` says,
    `see_gradients` many times or `see_inputs` once for every group; then `score` once for every
    group. An object may begin again afterwards. `criterion.Criterion` has empty defaults.
    """

    def begin(self, groups: Sequence[GroupLayout]) -> None:
        """Forget what was seen and expect these groups: a whole model's, or one layer's."""
        ...

    def see_gradients(self, group: CoupledGroup) -> None:
        """Take the gradients of a group for one micro-batch; they are freed afterwards.

        They are those of the mean loss of the micro-batch's sequences, nats per token, and are
        shown once per micro-batch; zeros where no token reached a tensor.
        """
        ...

    def see_inputs(self, group: GroupLayout, stats: Mapping[str, InputStats]) -> None:
        """Take the moments of what entered the output projections, over all calibration text.

        ``stats`` has every `inputs.output_projections` of the groups of the call to `begin`.
        """
        ...

    def score(self, group: CoupledGroup) -> torch.Tensor:
        """Return the importance of every unit, shape (n_units,), float32, finite, >= 0."""
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
