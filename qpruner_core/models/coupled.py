"""Coupled groups of a live model: every weight that leaves with a unit, seen units first.

Criteria see matrices `(n_units, weights_per_unit)` and never ask what kind of block they score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from qpruner_core.domain.layout import GroupLayout, ModelLayout, UnitSlice


def units_first(tensor: torch.Tensor, part: UnitSlice, n_units: int) -> torch.Tensor:
    """Return the entries of a slice as ``(n_units, weights_per_unit)``.

    A view where the axis is the first of a contiguous tensor, else a copy.
    """
    owned = tensor.narrow(part.axis, part.offset, n_units * part.unit_size)
    return owned.movedim(part.axis, 0).reshape(n_units, -1)


@dataclass(frozen=True, slots=True, eq=False)
class CoupledGroup:
    """One coupled group of a model in memory. Matrices are made when asked for and hold no memory
    afterwards.
    """

    layout: GroupLayout
    """Which entries of which tensors the units own."""
    views: tuple[nn.Parameter, ...]
    """The parameters themselves, one per slice of the layout."""

    @property
    def name(self) -> str:
        """Name of the module that owns the group."""
        return self.layout.name

    @property
    def layer(self) -> int:
        """Index of the decoder layer."""
        return self.layout.layer

    @property
    def kind(self) -> str:
        """``"kv_heads"`` or ``"mlp_channels"``."""
        return self.layout.kind

    @property
    def n_units(self) -> int:
        """Units present."""
        return self.layout.n_units

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.views[0].device

    @property
    def weights(self) -> list[torch.Tensor]:
        """Weights per slice, each ``(n_units, weights_per_unit)`` in the model's dtype, without
        history.
        """
        return self._units_first([parameter.detach() for parameter in self.views])

    @property
    def gradients(self) -> list[torch.Tensor]:
        """Gradients per slice, shaped like `weights`.

        Raises:
            RuntimeError: No backward pass has reached one of the parameters.
        """
        gradients = [parameter.grad for parameter in self.views if parameter.grad is not None]
        if len(gradients) < len(self.views):
            raise RuntimeError(
                f"{self.name} has parameters without a gradient: run backward first"
            )
        return self._units_first(gradients)

    def _units_first(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [
            units_first(tensor, part, self.n_units)
            for tensor, part in zip(tensors, self.layout.slices, strict=True)
        ]


def coupled_groups(model: nn.Module, layout: ModelLayout) -> list[CoupledGroup]:
    """Return the coupled groups of a model in the order of its layout: by layer, attention before
    MLP.
    """
    return [
        CoupledGroup(group, tuple(model.get_parameter(part.tensor) for part in group.slices))
        for group in layout.groups
    ]
