"""Where a search moves: the units that share a precision, and what each of them may get.

What a unit may get is an *option*: a precision and, in a joint search, a pruning level. A plan of
the space is also a *code*: one integer per parameter of the search, and options ascend in bytes.
Integers, not categories, so that a Gaussian process sees that int8 lies between nf4 and bf16.

Parameters are the units in forward order, whose integers index the options. In a joint search with
one ratio for the model, the level comes first as a parameter of its own and the units' integers
index the precisions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import ceil, prod

from qpruner_core.catalog import PRECISIONS, precision_formats
from qpruner_core.domain.footprint import BYTES_16_BIT, dense_bytes, format_bytes, plan_bytes
from qpruner_core.domain.layout import LinearLayout, ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.spec import TIES
from qpruner_core.errors import BadInputError, InfeasibleBudgetError
from qpruner_core.search.space_layers import (
    bytes_beside,
    check_levels,
    fixed_precisions,
    shape_text,
    shared_roles,
)

Code = tuple[int, ...]
"""One index per parameter of the space, in the order of `SearchSpace.parameters`."""
Option = tuple[int, str]
"""Pruning level and precision of a unit."""
LEVEL = "pruning"
"""Name of the parameter that chooses one level for the whole model."""

_FUSED = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
}


_NUMBERED = re.compile(r"\.(\w+\.\d+)(?=\.)")
"""What has a number in a Linear's name: its layer, then the expert it belongs to."""


def unit_name(linear: LinearLayout, tie: str, shared: Collection[str] = ()) -> str:
    """Return the unit that a Linear belongs to: ``layer.3``, ``layer.3.mlp``, ``layer.3.qkv`` and
    so on; ``layer.3.experts.7.gate_up`` where it is one of many alike.

    Linears of a role that nobody names here, such as a fused projection, are tied to no other.

    Args:
        linear: A Linear of the decoder layers.
        tie: As in `SearchSpec.tie`.
        shared: Roles that both blocks of a layer have; their units name the block too.
    """
    layer = f"layer.{linear.layer}"
    if tie == "layer":
        return layer
    if tie == "block":
        return f"{layer}.{linear.block}"
    part = _FUSED.get(linear.role, linear.role) if tie == "fused" else linear.role
    block = [linear.block] if linear.role in shared else []
    return ".".join([layer, *_NUMBERED.findall(linear.name)[1:], *block, part])


class SearchSpace:
    """Every plan that gives each unit one of the options.

    Args:
        layout: The model as it will be quantised, pruned or not; level 0.
        precisions: Catalogue names, in any order; at least one.
        tie: What shares one precision: ``"layer"``, ``"block"``, ``"fused"`` or ``"linear"``.
        reference_bytes: What a budget given as a fraction refers to, for error messages; the
            layout at 16 bit when None.
        levels: Of a joint search: the model at every further pruning level, from level 1 on.
        joint: As in `SearchSpec.joint`.
        fixed: As in `SearchSpec.fixed`; the Linears of these layers belong to no unit. Not with
            levels.

    Raises:
        UnknownNameError: A precision has no entry in the catalogue.
        BadInputError: No precision is given, the tie is unknown, levels do not go together, or no
            layer is left to choose for.
    """

    def __init__(
        self,
        layout: ModelLayout,
        precisions: Sequence[str],
        tie: str,
        reference_bytes: int | None = None,
        levels: Sequence[ModelLayout] = (),
        joint: str = "none",
        fixed: Mapping[str, str] | None = None,
    ) -> None:
        if tie not in TIES:
            raise BadInputError(
                f"The search was asked to tie Linears by {tie!r}, but knows {', '.join(TIES)}. "
                f"Choose one of these."
            )
        if not precisions:
            raise BadInputError("No precision is chosen for the search. Choose at least one.")
        formats = {name: precision_formats()[PRECISIONS.entry(name).name] for name in precisions}
        self.layout = layout
        self.levels = (layout, *levels) if joint != "none" else (layout,)
        """Layout of the model at every pruning level."""
        self.joint = joint
        self.tie = tie
        self.reference_bytes = reference_bytes or dense_bytes(layout)
        check_levels(self.levels)
        self.precisions: tuple[str, ...] = tuple(
            sorted(formats, key=lambda name: _uniform_bytes(layout, name))
        )
        """Precision names by ascending bytes of the whole model."""
        self.options: tuple[Option, ...] = tuple(
            sorted(
                ((level, name) for level in range(len(self.levels)) for name in self.precisions),
                key=lambda option: _uniform_bytes(self.levels[option[0]], option[1]),
            )
        )
        """What a unit may get, by ascending bytes of the whole model."""
        members: dict[str, list[int]] = {}
        shared = shared_roles(layout)
        self.fixed: dict[str, str] = fixed_precisions(layout, fixed or {})
        """Linear -> its precision, of the layers that the search does not choose for."""
        for index, linear in enumerate(layout.linears):
            if linear.name in self.fixed:
                continue
            members.setdefault(unit_name(linear, tie, shared), []).append(index)
        self.units: dict[str, tuple[str, ...]] = {
            unit: tuple(layout.linears[i].name for i in indices)
            for unit, indices in members.items()
        }
        """Unit name -> its Linears; both in forward order."""
        self.unit_layers: tuple[int, ...] = tuple(
            layout.linears[indices[0]].layer for indices in members.values()
        )
        """Layer of every unit."""
        beside = bytes_beside(self.levels, self.unit_layers)
        self.unit_bytes: tuple[tuple[int, ...], ...] = tuple(
            tuple(
                sum(formats[p].linear_bytes(self.levels[level].linears[i]) for i in indices)
                + beside[level][unit]
                for level, p in self.options
            )
            for unit, indices in enumerate(members.values())
        )
        """Bytes per unit (rows, forward order) and option (columns, in the order of `options`).
        What lies beside the Linears of a layer and differs from level to level counts with the
        layer's first unit.
        """
        known = precision_formats()
        self.fixed_bytes = layout.other_parameters * BYTES_16_BIT + sum(
            known[self.fixed[linear.name]].linear_bytes(linear)
            for linear in layout.linears
            if linear.name in self.fixed
        )
        """Bytes of what no plan changes: embeddings, norms, output head, fixed layers."""
        self.parameters: dict[str, int] = self._parameters()
        """Parameter -> how many values it has, 0 to that less one."""
        self._level_order = sorted(
            range(len(self.levels)), key=lambda i: dense_bytes(self.levels[i])
        )
        self._lowest = _lowest_alike(self)
        self._unit_of = {name: unit for unit, names in self.units.items() for name in names}
        self._index = {option: index for index, option in enumerate(self.options)}

    @property
    def size(self) -> int:
        """Number of different plans."""
        if self.joint == "per-layer":
            return prod(len(set(row)) for row in self._lowest)
        return prod(self.parameters.values())

    @property
    def smallest_bytes(self) -> int:
        """Bytes of the smallest plan of the space."""
        return self.code_bytes((0,) * len(self.parameters))

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest plan of the space."""
        return self.code_bytes(tuple(n - 1 for n in self.parameters.values()))

    @property
    def fingerprint(self) -> dict[str, str]:
        """What makes two spaces the same: units, precisions and the shapes of the model, as short
        texts.
        """
        shapes = "#".join(shape_text(layout) for layout in self.levels)
        model = f"{self.layout.model_type}|{self.layout.other_parameters}|{shapes}"
        joint = (
            f", {len(self.levels)} pruning levels, {self.joint}" if self.joint != "none" else ""
        )
        return {
            "units": f"{len(self.units)} units tied by {self.tie}{joint}{self._fixed_words}",
            "precisions": ", ".join(self.precisions),
            "model": hashlib.sha256(model.encode()).hexdigest()[:16],
        }

    def plan(self, choices: Mapping[str, str], levels: Sequence[int] = ()) -> PrecisionPlan:
        """Return the plan that gives every unit its chosen precision (any of the catalogue).

        Args:
            choices: Unit -> precision.
            levels: Level of every layer; none for level 0 everywhere.

        Raises:
            BadInputError: A unit is missing or unknown.
        """
        missing = [unit for unit in self.units if unit not in choices]
        unknown = [unit for unit in choices if unit not in self.units]
        if missing or unknown:
            raise BadInputError(
                f"The choices miss {', '.join(missing) or 'no unit'} and name "
                f"{', '.join(unknown) or 'no unit'} in excess. Give one precision for each of the "
                f"{len(self.units)} units from {next(iter(self.units))} on."
            )
        return PrecisionPlan(
            precisions={
                linear.name: self.fixed.get(linear.name) or choices[self._unit_of[linear.name]]
                for linear in self.layout.linears
            },
            levels=tuple(levels) if any(levels) else (),
        )

    def choices(self, plan: PrecisionPlan) -> dict[str, str]:
        """Return unit -> precision of a plan.

        Raises:
            BadInputError: The plan gives the Linears of one unit different precisions.
        """
        chosen = {}
        for unit, names in self.units.items():
            kinds = {plan.precisions[name] for name in names}
            if len(kinds) > 1:
                raise BadInputError(
                    f"The plan gives {unit} the precisions {', '.join(sorted(kinds))}, but ties "
                    f"{', '.join(names)}. Give them one precision, or tie less."
                )
            chosen[unit] = kinds.pop()
        return chosen

    def code(self, plan: PrecisionPlan) -> Code:
        """Return the plan as integers.

        Raises:
            BadInputError: The plan is not in the space.
        """
        chosen = self.choices(plan)
        moved = [name for name, kept in self.fixed.items() if plan.precisions[name] != kept]
        if moved:
            raise BadInputError(
                f"The plan gives {moved[0]} {plan.precisions[moved[0]]}, which this search holds "
                f"at {self.fixed[moved[0]]}. Change the plan."
            )
        foreign = sorted(set(chosen.values()) - set(self.precisions))
        if foreign:
            raise BadInputError(
                f"The plan uses {', '.join(foreign)}, but the search knows "
                f"{', '.join(self.precisions)}. Add it to the search or change the plan."
            )
        levels = self._levels_of(plan)
        if levels is None:
            raise BadInputError(
                f"The plan mixes or names pruning levels that this search does not have: it has "
                f"{len(self.levels)}, joint {self.joint!r}. Change the plan."
            )
        if self.joint == "global":
            order = {name: i for i, name in enumerate(self.precisions)}
            return (self._level_order.index(levels[0]), *(order[p] for p in chosen.values()))
        return self.canonical(
            tuple(
                self._index[levels[layer], name]
                for layer, name in zip(self.unit_layers, chosen.values(), strict=True)
            )
        )

    def canonical(self, code: Code) -> Code:
        """Return the code that stands for all codes of the same plan: a layer that is the same at
        several levels, as protected ones are, is said to have the lowest of them.
        """
        if self.joint != "per-layer":
            return code
        return tuple(row[option] for row, option in zip(self._lowest, code, strict=True))

    def option_indices(self, code: Code) -> tuple[int, ...]:
        """Return the index into `options` of every unit."""
        if self.joint != "global":
            return code
        level = self._level_order[code[0]]
        return tuple(self._index[level, self.precisions[choice]] for choice in code[1:])

    def code_of_options(self, indices: Sequence[int]) -> Code | None:
        """Return the code of one option per unit; None where no plan of the space has these."""
        if self.joint != "global":
            return self.canonical(tuple(indices))
        chosen = [self.options[index] for index in indices]
        if len({level for level, _ in chosen}) > 1:
            return None
        order = {name: i for i, name in enumerate(self.precisions)}
        return (self._level_order.index(chosen[0][0]), *(order[name] for _, name in chosen))

    def decode(self, code: Code) -> PrecisionPlan:
        """Return the plan that a code stands for."""
        indices = self.option_indices(self.canonical(code))
        chosen = [self.options[index] for index in indices]
        levels = [0] * self.layout.n_layers
        for layer, (level, _) in zip(self.unit_layers, chosen, strict=True):
            levels[layer] = level
        return self.plan({u: p for u, (_, p) in zip(self.units, chosen, strict=True)}, levels)

    def __contains__(self, plan: PrecisionPlan) -> bool:
        known = set(self.precisions)
        kinds = [{plan.precisions[name] for name in names} for names in self.units.values()]
        if any(plan.precisions[name] != kept for name, kept in self.fixed.items()):
            return False
        return self._levels_of(plan) is not None and all(
            len(kind) == 1 and kind <= known for kind in kinds
        )

    def plan_of_key(self, key: str) -> PrecisionPlan:
        """Return the plan whose `PrecisionPlan.key` this is."""
        names = sorted(linear.name for linear in self.layout.linears)
        precisions, _, levels = key.partition("|")
        by_name = dict(zip(names, precisions.split(","), strict=True))
        return PrecisionPlan(
            precisions={li.name: by_name[li.name] for li in self.layout.linears},
            levels=tuple(int(level) for level in levels.split(",")) if levels else (),
        )

    def bytes(self, plan: PrecisionPlan) -> int:
        """Return the bytes of the whole model under a plan, inside the space or not."""
        return plan_bytes(self.layout_of(plan), plan, precision_formats())

    def layout_of(self, plan: PrecisionPlan) -> ModelLayout:
        """Return the layout of the model whose layers have the plan's levels."""
        if not plan.levels:
            return self.layout
        chosen = [self.levels[level] for level in plan.levels]
        others = self.layout.other_parameters - sum(self.layout.layer_others)
        beside = tuple(lo.layer_others[i] for i, lo in enumerate(chosen) if lo.layer_others)
        return replace(
            self.layout,
            groups=tuple(g for i, lo in enumerate(chosen) for g in lo.groups if g.layer == i),
            linears=tuple(li for i, lo in enumerate(chosen) for li in lo.linears if li.layer == i),
            other_parameters=others + sum(beside),
            layer_others=beside,
        )

    def code_bytes(self, code: Code) -> int:
        """Return the bytes of the whole model under a code."""
        return self.fixed_bytes + sum(
            row[option]
            for row, option in zip(self.unit_bytes, self.option_indices(code), strict=True)
        )

    @property
    def _fixed_words(self) -> str:
        names = ",".join(f"{name}:{kept}" for name, kept in self.fixed.items())
        return f", fixed {hashlib.sha256(names.encode()).hexdigest()[:8]}" if names else ""

    def _parameters(self) -> dict[str, int]:
        if self.joint == "global":
            return {LEVEL: len(self.levels)} | dict.fromkeys(self.units, len(self.precisions))
        return dict.fromkeys(self.units, len(self.options))

    def _levels_of(self, plan: PrecisionPlan) -> tuple[int, ...] | None:
        """Return the level of every layer; None where the space does not have them."""
        levels = plan.levels or (0,) * self.layout.n_layers
        is_mixed = self.joint != "per-layer" and len(set(levels)) > 1
        return None if is_mixed or max(levels) >= len(self.levels) else levels

    def check_budget(self, budget_bytes: int, reference_bytes: int | None = None) -> None:
        """Refuse a memory budget that no plan of the space reaches.

        Args:
            budget_bytes: Bytes the whole model may take.
            reference_bytes: What a budget given as a fraction refers to; that of the space when
                None.

        Raises:
            InfeasibleBudgetError: The message names the smallest possible budget.
        """
        smallest = self.smallest_bytes
        if budget_bytes >= smallest:
            return
        fraction = ceil(smallest / (reference_bytes or self.reference_bytes) * 1e4) / 1e4
        raise InfeasibleBudgetError(
            f"The memory budget is {format_bytes(budget_bytes)}, but the smallest plan, "
            f"{self.precisions[0]} everywhere, needs {format_bytes(smallest)}. Give at least "
            f"{smallest} B (a fraction of {fraction:.4f}), prune more, or allow a smaller "
            f"precision."
        )


def _lowest_alike(space: SearchSpace) -> list[list[int]]:
    """Return per unit and option the index of the option of the lowest level at which the unit's
    layer is the same.
    """
    index = {option: i for i, option in enumerate(space.options)}
    widths = [
        [
            [(li.out_features, li.in_features) for li in level.linears if li.layer == layer]
            for layer in range(level.n_layers)
        ]
        for level in space.levels
    ]
    return [
        [
            index[next(i for i in range(level + 1) if widths[i][layer] == widths[level][layer]), p]
            for level, p in space.options
        ]
        for layer in space.unit_layers
    ]


def _uniform_bytes(layout: ModelLayout, precision: str) -> int:
    return plan_bytes(layout, PrecisionPlan.uniform(layout, precision), precision_formats())
