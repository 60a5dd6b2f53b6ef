"""Frozen decisions, not carried out: which units stay, and which precision each Linear gets."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from qpruner_core.errors import BadInputError

if TYPE_CHECKING:
    from qpruner_core.domain.layout import ModelLayout

STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningPlan:
    """Which units of every coupled group stay; a group that is not named keeps all."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    kept: Mapping[str, tuple[int, ...]]
    """Group name -> indices of the units that stay, ascending, at least one."""
    shape: str = "per-layer"
    """``"per-layer"`` (every layer its own widths) or ``"uniform"`` (one width per kind for the
    model).
    """
    dropped_layers: tuple[int, ...] = ()
    """Decoder layers that leave whole, ascending; all indices and names in a plan are those of the
    model before it is pruned.
    """
    biases: tuple[str, ...] = ()
    """Linears whose bias takes the mean contribution of the units removed from their inputs; it is
    made where there is none. See `PruningSpec.compensation`.
    """

    def __post_init__(self) -> None:
        gone = self.dropped_layers
        if any(map(operator.ge, gone, islice(gone, 1, None))) or (gone and gone[0] < 0):
            raise ValueError("dropped layers must be ascending indices >= 0")
        for name, units in self.kept.items():
            if not units:
                raise BadInputError(
                    f"The pruning plan leaves no unit in {name!r}; every group needs at least "
                    f"one. Lower the ratio or protect the layer."
                )
            # Kept in C: a slider makes a plan of 300,000 channels at every move.
            if units[0] < 0 or any(map(operator.ge, units, islice(units, 1, None))):
                raise ValueError(f"kept units of {name!r} must be ascending indices >= 0")

    @property
    def is_identity(self) -> bool:
        """Whether nothing is removed and nothing added."""
        return not (self.kept or self.dropped_layers or self.biases)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPlan:
    """One precision for every Linear of the decoder layers."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    precisions: Mapping[str, str]
    """Linear name -> precision name, in forward order."""
    levels: tuple[int, ...] = ()
    """Of a joint search: per layer the index of its pruning ratio among the levels of the run (see
    `joint.Level`); empty where every layer is as the run was pruned.
    """

    @classmethod
    def uniform(cls, layout: ModelLayout, precision: str) -> PrecisionPlan:
        """Return the plan that gives every Linear the same precision."""
        return cls(precisions={linear.name: precision for linear in layout.linears})

    @classmethod
    def by_layer(cls, layout: ModelLayout, precisions: Iterable[str]) -> PrecisionPlan:
        """Return the plan that gives all Linears of layer i the i-th precision."""
        chosen = list(precisions)
        if len(chosen) != layout.n_layers:
            raise ValueError(f"need {layout.n_layers} precisions, got {len(chosen)}")
        return cls(precisions={linear.name: chosen[linear.layer] for linear in layout.linears})

    @property
    def key(self) -> str:
        """A short text that is equal exactly for equal plans; used to never measure a plan
        twice.
        """
        precisions = ",".join(self.precisions[name] for name in sorted(self.precisions))
        return f"{precisions}|{','.join(map(str, self.levels))}" if self.levels else precisions
