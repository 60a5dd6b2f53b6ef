# noqa: A005 - the file carries the public name of its criterion; imports here are absolute
"""Random scores: the control that any criterion has to beat."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from qpruner_core.importance.criterion import Criterion

if TYPE_CHECKING:
    from qpruner_core.models.coupled import CoupledGroup


class RandomCriterion(Criterion):
    """Uniform scores in [0, 1), the same for a group of that name and size under one seed.

    Each group draws from its own generator, so that its scores depend neither on the device nor on
    which other groups were scored before.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed

    def score(self, group: CoupledGroup) -> torch.Tensor:
        """Return a random number per unit, shape ``(group.n_units,)``, float32."""
        digest = hashlib.sha256(f"{self._seed}/{group.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        return torch.rand(group.n_units, generator=generator).to(group.device)
