"""What unit criteria share, by what they look at: weights, gradients, or inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from qpruner_core.domain.layout import GroupLayout
from qpruner_core.models.coupled import CoupledGroup, units_first

if TYPE_CHECKING:
    from qpruner_core.models.inputs import InputStats


class Criterion(ABC):
    """A criterion that looks at nothing but weights."""

    def begin(self, groups: Sequence[GroupLayout]) -> None:
        """Expect these groups; nothing is kept of them."""
        del groups

    def see_gradients(self, group: CoupledGroup) -> None:
        """Ignore gradients."""
        del group

    def see_inputs(self, group: GroupLayout, stats: Mapping[str, InputStats]) -> None:
        """Ignore inputs."""
        del group, stats

    @abstractmethod
    def score(self, group: CoupledGroup) -> torch.Tensor:
        """Return the importance of every unit, shape (n_units,), float32, finite, >= 0."""


class TaylorLike(Criterion):
    """A criterion of the products w g of weights and gradients, micro-batch by micro-batch.

    With f the criterion's own function of a product (`change`) and the mean over the micro-batches
    b of the text, the importance of a unit u is, by ``aggregation``,

        "element":  I(u) = mean over b of sum over w in u of |f(w g_b)|
        "vector":   I(u) = |mean over b of f(sum over w in u of w g_b)|

    g_b is the gradient of the mean loss of micro-batch b in nats per token. Per unit one number is
    kept between micro-batches, so a gradient can be freed as soon as it was seen. For a linear f
    the vector-wise importance is exact over all text; element-wise, magnitudes are taken per
    micro-batch, where summing gradients over all text first would need a second copy of the
    model's weights (`passes.SEQUENCES_PER_BACKWARD`, docs/decisions/0011).
    """

    def __init__(self, aggregation: str = "element") -> None:
        self._aggregation = aggregation

    @abstractmethod
    def change(self, products: torch.Tensor) -> torch.Tensor:
        """Return f of products w g, of any shape; may give back the same tensor."""

    def begin(self, groups: Sequence[GroupLayout]) -> None:
        """Forget what was seen."""
        self._sums: dict[str, torch.Tensor] = {}
        self._n_seen = dict.fromkeys((group.name for group in groups), 0)

    @torch.no_grad()
    def see_gradients(self, group: CoupledGroup) -> None:
        """Add what one micro-batch says of every unit."""
        if self._aggregation == "vector":
            seen = self.change(_per_unit(group, lambda products: products))
        else:
            seen = _per_unit(group, lambda products: self.change(products).abs_())
        known = self._sums.get(group.name)
        self._sums[group.name] = seen if known is None else known.add_(seen)
        self._n_seen[group.name] += 1

    def score(self, group: CoupledGroup) -> torch.Tensor:
        """Return the importance of every unit, shape (n_units,), float32."""
        return (self._sums[group.name] / self._n_seen[group.name]).abs().float()


class OutputCriterion(Criterion):
    """A criterion of what units write into the residual stream: of the columns W_:j of their
    output projection (`o_proj`, `down_proj`) and the moments of the inputs x_j there.

        I(u) = sum over inputs j of u of of_weights(W_:j) * of_inputs(x_j)

    A KV head has the inputs of all its query heads, an MLP channel one. A whole expert has those
    of all its channels; its rows of the router do not count. Sums over tokens, not means, are
    taken of the inputs: the experts of a block see different numbers of tokens, and one that few
    tokens reach gives little. One that none reaches is worth 0.
    """

    @abstractmethod
    def of_weights(self, columns: torch.Tensor) -> torch.Tensor:
        """Return one number per column, (columns,), of weights (columns, out)."""

    @abstractmethod
    def of_inputs(self, stats: InputStats) -> torch.Tensor:
        """Return one number per input of a projection, (in,)."""

    def begin(self, groups: Sequence[GroupLayout]) -> None:
        """Forget what was seen and note where units enter their output projections."""
        self._outputs = {
            group.name: (group, part) for group in groups for part in group.slices if part.is_input
        }
        self._inputs: dict[str, torch.Tensor] = {}

    def see_inputs(self, group: GroupLayout, stats: Mapping[str, InputStats]) -> None:
        """Keep a number for every input of the group's output projection, or of its experts'."""
        for name in group.members or (group.name,):
            _, part = self._outputs[name]
            self._inputs[name] = self.of_inputs(stats[part.tensor.rpartition(".")[0]])

    @torch.no_grad()
    def score(self, group: CoupledGroup) -> torch.Tensor:
        """Return the importance of every unit, shape (n_units,), float32."""
        if not group.members:
            layout, part = self._outputs[group.name]
            return self._channels(group.name, group.views[layout.slices.index(part)]).float()
        experts = [
            self._channels(name, owned[self._outputs[name][1].tensor]).sum()
            for name, owned in zip(group.layout.members, group.members, strict=True)
        ]
        return torch.stack(experts).float()

    def _channels(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the worth (n_units,) of a group by the weight of its output projection."""
        layout, part = self._outputs[name]
        n_columns = layout.n_units * part.unit_size
        columns = _wide(units_first(weight.detach(), replace(part, unit_size=1), n_columns))
        inputs = self._inputs[name].narrow(0, part.offset, n_columns)
        worth = self.of_weights(columns) * inputs
        return worth.view(layout.n_units, part.unit_size).sum(dim=1)


def _per_unit(group: CoupledGroup, term: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the sum of a function of all products w g of every unit, (n_units,).

    The function may overwrite the products, (units, entries, across).
    """
    total = _wide(torch.zeros(group.n_units, dtype=group.views[0].dtype, device=group.device))
    for piece in group.pieces():
        products = _wide(piece.weights) * _wide(piece.gradients)
        total[piece.units] += term(products).sum(dim=(1, 2))
    return total


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32, or in its own dtype where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
