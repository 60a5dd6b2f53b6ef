"""Coupled groups of a live model: every weight that leaves with a unit, seen units first.

Criteria see matrices `(n_units, weights_per_unit)` and never ask what kind of block they score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
class Piece:
    """What some units of a group own of one tensor."""

    units: slice
    """Units that own the rows: all of the group, or the one expert whose tensor it is."""
    weights: torch.Tensor
    """A view ``(units, entries, across)`` in the model's dtype, without history: the entries that
    each unit owns along an axis of the tensor, and what lies across it."""
    gradients: torch.Tensor
    """A view shaped like the weights; zeros where no backward pass reached the tensor."""


@dataclass(frozen=True, slots=True, eq=False)
class CoupledGroup:
    """One coupled group of a model in memory. Matrices are made when asked for and hold no memory
    afterwards.
    """

    layout: GroupLayout
    """Which entries of which tensors the units own."""
    views: tuple[nn.Parameter, ...]
    """The parameters themselves, one per slice of the layout."""
    members: tuple[Mapping[str, nn.Parameter], ...] = ()
    """For units that are whole modules: full name -> parameter of every unit's module."""

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
        """A key of `layout.KINDS`."""
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
    def parameters(self) -> list[nn.Parameter]:
        """Every tensor that units own a part of, once."""
        owned = [parameter for member in self.members for parameter in member.values()]
        return list({id(parameter): parameter for parameter in (*self.views, *owned)}.values())

    def pieces(self) -> Iterator[Piece]:
        """Yield everything that leaves with units, tensor by tensor; a fused tensor comes once
        for each projection in it.
        """
        everyone = slice(0, self.n_units)
        for parameter, part in zip(self.views, self.layout.slices, strict=True):
            yield Piece(
                units=everyone,
                weights=_unit_view(parameter.detach(), part, self.n_units),
                gradients=_unit_view(_gradient(parameter), part, self.n_units),
            )
        for unit, member in enumerate(self.members):
            for parameter in member.values():
                yield Piece(
                    units=slice(unit, unit + 1),
                    weights=parameter.detach().reshape(1, -1, 1),
                    gradients=_gradient(parameter).reshape(1, -1, 1),
                )


def coupled_groups(model: nn.Module, layout: ModelLayout) -> list[CoupledGroup]:
    """Return the coupled groups of a model in the order of its layout: by layer, attention before
    MLP.
    """
    return [coupled_group(model, group) for group in layout.groups]


def coupled_group(model: nn.Module, group: GroupLayout) -> CoupledGroup:
    """Return one coupled group of a model."""
    return CoupledGroup(
        layout=group,
        views=tuple(model.get_parameter(part.tensor) for part in group.slices),
        members=tuple(
            {f"{name}.{leaf}": p for leaf, p in model.get_submodule(name).named_parameters()}
            for name in group.members
        ),
    )


def _unit_view(tensor: torch.Tensor, part: UnitSlice, n_units: int) -> torch.Tensor:
    """Return the entries of a slice as a view ``(n_units, unit_size, across)``; it copies
    nothing, as moving columns to the front costs more than what is computed of them.
    """
    owned = tensor.narrow(part.axis, part.offset, n_units * part.unit_size)
    return owned.movedim(part.axis, 0).view(n_units, part.unit_size, -1)


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    """Return the gradient of a parameter; zeros that take no memory where there is none."""
    if parameter.grad is not None:
        return parameter.grad
    return torch.zeros((), dtype=parameter.dtype, device=parameter.device).expand_as(parameter)
