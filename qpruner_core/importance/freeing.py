"""Gradients shown group by group as they appear, and freed at once.

Autograd works from the last layer to the first. When the last tensor of a group has its gradient,
the group is shown; when all groups that own a part of a tensor were shown, its gradient is freed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from qpruner_core.models.coupled import CoupledGroup


class Freeing:
    """Shows every group its gradients once per backward pass and frees them.

    A group of which some tensors get no gradient, such as an expert that no token reached, is
    shown when its layer is left (`finish`) or at the end (`finish_all`).
    """

    def __init__(
        self, groups: Sequence[CoupledGroup], see: Callable[[CoupledGroup], None]
    ) -> None:
        self._groups = {group.name: group for group in groups}
        self._see = see
        self._tensors = {group.name: group.parameters for group in groups}
        self._owners: dict[int, list[str]] = {}
        for name, parameters in self._tensors.items():
            for parameter in parameters:
                self._owners.setdefault(id(parameter), []).append(name)
        self._begin()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every tensor that some group owns a part of, once."""
        all_of = {id(p): p for parameters in self._tensors.values() for p in parameters}
        return list(all_of.values())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, gradients are shown and freed; the parameters must require them."""
        handles = [
            cast("Any", parameter).register_post_accumulate_grad_hook(self._arrived)
            for parameter in self.parameters
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finish(self, layer: int) -> None:
        """Show the groups of a layer that wait for gradients which do not come."""
        for name in [name for name in self._missing if self._groups[name].layer == layer]:
            self._show(name)

    def finish_all(self) -> None:
        """Show the groups of all layers that still wait, and expect the next backward pass."""
        for name in list(self._missing):
            self._show(name)
        self._begin()

    def _begin(self) -> None:
        self._missing = {name: {id(p) for p in ps} for name, ps in self._tensors.items()}
        self._unseen = {key: len(names) for key, names in self._owners.items()}

    def _arrived(self, parameter: Tensor) -> None:
        for name in self._owners[id(parameter)]:
            self._missing[name].discard(id(parameter))
            if not self._missing[name]:
                self._show(name)

    def _show(self, name: str) -> None:
        del self._missing[name]
        self._see(self._groups[name])
        for parameter in self._tensors[name]:
            self._unseen[id(parameter)] -= 1
            if not self._unseen[id(parameter)]:
                parameter.grad = None
