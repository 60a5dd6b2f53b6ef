"""Where a search moves: the units that share a precision, and the precisions they may get.

A plan of the space is also a *code*: one integer per unit, in forward order, that indexes
`precisions`, which ascend in bytes. Integers, not categories, so that a Gaussian process sees that
int8 lies between nf4 and bf16.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from math import ceil, prod

from qpruner_core.catalog import PRECISIONS, precision_formats
from qpruner_core.domain.footprint import BYTES_16_BIT, dense_bytes, format_bytes, plan_bytes
from qpruner_core.domain.layout import LinearLayout, ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.spec import TIES
from qpruner_core.errors import BadInputError, InfeasibleBudgetError

Code = tuple[int, ...]
"""One index into `SearchSpace.precisions` per unit, in forward order."""

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
    """Every plan that gives each unit one of the precisions.

    Args:
        layout: The model as it will be quantised, pruned or not.
        precisions: Catalogue names, in any order; at least one.
        tie: What shares one precision: ``"layer"``, ``"block"``, ``"fused"`` or ``"linear"``.
        reference_bytes: What a budget given as a fraction refers to, for error messages; the
            layout at 16 bit when None.

    Raises:
        UnknownNameError: A precision has no entry in the catalogue.
        BadInputError: No precision is given, or the tie is unknown.
    """

    def __init__(
        self,
        layout: ModelLayout,
        precisions: Sequence[str],
        tie: str,
        reference_bytes: int | None = None,
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
        self.tie = tie
        self.reference_bytes = reference_bytes or dense_bytes(layout)
        self.precisions: tuple[str, ...] = tuple(
            sorted(formats, key=lambda name: _uniform_bytes(layout, name))
        )
        """Precision names by ascending bytes of the whole model; a code indexes them."""
        members: dict[str, list[LinearLayout]] = {}
        shared = _shared_roles(layout)
        for linear in layout.linears:
            members.setdefault(unit_name(linear, tie, shared), []).append(linear)
        self.units: dict[str, tuple[str, ...]] = {
            unit: tuple(linear.name for linear in linears) for unit, linears in members.items()
        }
        """Unit name -> its Linears; both in forward order."""
        self.unit_bytes: tuple[tuple[int, ...], ...] = tuple(
            tuple(sum(formats[p].linear_bytes(li) for li in linears) for p in self.precisions)
            for linears in members.values()
        )
        """Bytes per unit (rows, forward order) and precision (columns, in the order of
        `precisions`).
        """
        self.fixed_bytes = layout.other_parameters * BYTES_16_BIT
        """Bytes of what no plan touches: embeddings, norms, output head."""
        self._unit_of = {name: unit for unit, names in self.units.items() for name in names}
        self._index = {name: index for index, name in enumerate(self.precisions)}

    @property
    def size(self) -> int:
        """Number of different plans."""
        return prod(len(self.precisions) for _ in self.units)

    @property
    def smallest_bytes(self) -> int:
        """Bytes of the smallest plan of the space."""
        return self.fixed_bytes + sum(min(row) for row in self.unit_bytes)

    @property
    def fingerprint(self) -> dict[str, str]:
        """What makes two spaces the same: units, precisions and the shapes of the model, as short
        texts.
        """
        shapes = ";".join(
            f"{li.name}:{li.out_features}x{li.in_features}{'b' if li.has_bias else ''}"
            for li in self.layout.linears
        )
        model = f"{self.layout.model_type}|{self.layout.other_parameters}|{shapes}"
        return {
            "units": f"{len(self.units)} units tied by {self.tie}",
            "precisions": ", ".join(self.precisions),
            "model": hashlib.sha256(model.encode()).hexdigest()[:16],
        }

    def plan(self, choices: Mapping[str, str]) -> PrecisionPlan:
        """Return the plan that gives every unit its chosen precision (any of the catalogue).

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
                linear.name: choices[self._unit_of[linear.name]] for linear in self.layout.linears
            }
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
        foreign = sorted(set(chosen.values()) - set(self.precisions))
        if foreign:
            raise BadInputError(
                f"The plan uses {', '.join(foreign)}, but the search knows "
                f"{', '.join(self.precisions)}. Add it to the search or change the plan."
            )
        return tuple(self._index[name] for name in chosen.values())

    def decode(self, code: Code) -> PrecisionPlan:
        """Return the plan that a code stands for."""
        return self.plan({u: self.precisions[c] for u, c in zip(self.units, code, strict=True)})

    def __contains__(self, plan: PrecisionPlan) -> bool:
        kinds = [{plan.precisions[name] for name in names} for names in self.units.values()]
        return all(len(kind) == 1 and kind <= self._index.keys() for kind in kinds)

    def plan_of_key(self, key: str) -> PrecisionPlan:
        """Return the plan whose `PrecisionPlan.key` this is."""
        names = sorted(linear.name for linear in self.layout.linears)
        by_name = dict(zip(names, key.split(","), strict=True))
        return PrecisionPlan(precisions={li.name: by_name[li.name] for li in self.layout.linears})

    def bytes(self, plan: PrecisionPlan) -> int:
        """Return the bytes of the whole model under a plan, inside the space or not."""
        return plan_bytes(self.layout, plan, precision_formats())

    def code_bytes(self, code: Code) -> int:
        """Return the bytes of the whole model under a code."""
        return self.fixed_bytes + sum(
            row[choice] for row, choice in zip(self.unit_bytes, code, strict=True)
        )

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


def _shared_roles(layout: ModelLayout) -> frozenset[str]:
    """Return the roles that stand in both blocks, as ``c_proj`` does in GPT-2."""
    by_block = {block: set[str]() for block in ("attention", "mlp")}
    for linear in layout.linears:
        by_block[linear.block].add(linear.role)
    return frozenset(by_block["attention"] & by_block["mlp"])


def _uniform_bytes(layout: ModelLayout, precision: str) -> int:
    return plan_bytes(layout, PrecisionPlan.uniform(layout, precision), precision_formats())
