"""A model as its config describes it: which tensors a unit owns and which Linears carry a
precision.

A layout is computed from `config.json` alone, without torch. The same layout drives the byte
estimates of the browser side, the unit views that criteria score and the slicing of tensors in
surgery, so the three cannot disagree about what a unit is.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from qpruner_core.domain.plan import PruningPlan

STRICT = {"extra": "forbid"}
"""Read by the JSON codec: a value with unknown keys is refused."""
WIDTHS_KEY = "qpruner_widths"
"""Config key of models whose layers a stock config cannot describe: group name -> units."""
BIASES_KEY = "qpruner_biases"
"""Config key of models with biases that their stock class does not build: names of Linears."""

KINDS: Mapping[str, str] = {
    "kv_heads": "KV heads",
    "mlp_channels": "MLP channels",
    "expert_channels": "expert channels",
    "experts": "experts",
}
"""Kind of unit -> words for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSlice:
    """Where the units of a group lie in one tensor: unit u owns ``unit_size`` consecutive entries
    of an axis, from ``offset + u * unit_size``.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    tensor: str
    """Full name of the parameter, as in ``named_parameters()``."""
    axis: int
    """Axis of the tensor that loses entries, 0 or 1."""
    unit_size: int
    """Consecutive entries per unit along the axis; >= 1."""
    offset: int = 0
    """First entry of unit 0 along the axis, for tensors that hold several projections; >= 0."""
    is_input: bool = False
    """Whether the entries are inputs of a Linear: where the units enter the residual stream. A
    unit is silent when these are zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLayout:
    """A coupled group: the weights of one block that must leave together, unit by unit."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    name: str
    """Module that owns the group, such as ``model.layers.0.mlp``; unique in the model."""
    layer: int
    """Index of the decoder layer, from 0."""
    kind: str
    """A key of `KINDS`: ``"kv_heads"`` (a KV head with its query heads), ``"mlp_channels"``,
    ``"expert_channels"`` (channels of one expert) or ``"experts"`` (whole experts with their rows
    of the router)."""
    n_units: int
    """Units present; >= 1."""
    unit_parameters: int
    """Parameters that leave with one unit; >= 1. For experts of unequal width, the mean rounded
    down."""
    slices: tuple[UnitSlice, ...]
    """Where the units lie."""
    members: tuple[str, ...] = ()
    """For units that are whole modules, the module of every unit: it owns all tensors below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayout:
    """One Linear inside a decoder layer: the smallest thing that carries a precision of its
    own.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    name: str
    """Module name, such as ``model.layers.0.self_attn.q_proj``; its weight is ``name +
    ".weight"``.
    """
    layer: int
    """Index of the decoder layer, from 0."""
    role: str
    """Last part of the name: ``q_proj``, ``down_proj`` and so on."""
    block: str
    """``"attention"`` or ``"mlp"``; experts count as MLP."""
    out_features: int
    """Outputs: rows of the weight unless transposed."""
    in_features: int
    """Inputs: columns of the weight unless transposed."""
    has_bias: bool = False
    """Whether a bias of ``out_features`` entries stands beside the weight."""
    transposed: bool = False
    """Whether the weight is stored (in, out), as the Conv1D of `transformers` does."""

    @property
    def parameters(self) -> int:
        """Entries of weight and bias."""
        return self.out_features * (self.in_features + int(self.has_bias))

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Shape of the weight as it is stored."""
        shape = (self.out_features, self.in_features)
        return shape[::-1] if self.transposed else shape


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLayout:
    """All units and Linears of a model, with what is left at 16 bit."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    model_type: str
    """Exact ``config.model_type``."""
    n_layers: int
    """Decoder layers."""
    hidden_size: int
    """Width of the residual stream."""
    n_heads: int
    """Query heads per layer as the config states them, before any pruning."""
    n_kv_heads: int
    """KV heads per layer as the config states them, before any pruning."""
    head_dim: int
    """Entries per head."""
    vocab_size: int
    """Rows of the embedding."""
    layer_prefix: str
    """Name of the list of decoder layers, such as ``model.layers``."""
    groups: tuple[GroupLayout, ...]
    """Coupled groups, by layer, attention before MLP."""
    linears: tuple[LinearLayout, ...]
    """Linears of the decoder layers in forward order."""
    other_parameters: int
    """Parameters outside these Linears: embeddings (tied ones once), norms, routers, output
    head."""
    layer_others: tuple[int, ...] = ()
    """The part of ``other_parameters`` that lies in each decoder layer: norms and routers."""
    plain_kinds: tuple[str, ...] = ("kv_heads", "mlp_channels")
    """Kinds of unit whose number the family's stock config can state when all layers share it."""
    heads_divide_hidden: bool = False
    """Whether the stock config refuses numbers of query heads that do not divide the hidden
    size."""
    plain_biases: bool = False
    """Whether the stock config can ask for biases in all Linears of a block."""
    added_biases: tuple[str, ...] = ()
    """Linears with a bias that the dense model does not have."""
    experts_per_token: int = 0
    """Experts every token goes through, which is the fewest that may stay in a layer; 0 where
    there are none."""

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, tied ones counted once."""
        return self.other_parameters + sum(linear.parameters for linear in self.linears)

    @property
    def layer_parameters(self) -> tuple[int, ...]:
        """Parameters of every decoder layer, Linears and others."""
        totals = list(self.layer_others or (0,) * self.n_layers)
        for linear in self.linears:
            totals[linear.layer] += linear.parameters
        return tuple(totals)

    def group(self, name: str) -> GroupLayout:
        """Return the group of that name."""
        return next(group for group in self.groups if group.name == name)

    def kv_cache_bytes(self, n_tokens: int, bytes_per_value: int = 2) -> int:
        """Return the bytes of keys and values for that many tokens of one sequence.

        Layers whose KV heads were pruned cache fewer of them.
        """
        pruned = [group.n_units for group in self.groups if group.kind == "kv_heads"]
        heads = sum(pruned) + (self.n_layers - len(pruned)) * self.n_kv_heads
        return 2 * heads * self.head_dim * n_tokens * bytes_per_value

    def pruned(self, plan: PruningPlan) -> ModelLayout:
        """Return the layout of the model that is left when a plan has been carried out.

        Layers and experts that stay are numbered anew, without gaps.
        """
        new_name = Renaming(self, plan)
        bare = {linear.name for linear in self.linears if not linear.has_bias} & set(plan.biases)
        gone: dict[tuple[str, int], int] = {}
        groups = []
        for group in self.groups:
            kept = plan.kept.get(group.name, range(group.n_units))
            if new_name(group.name) is not None:
                groups.append(_with_biases(_with_units(group, tuple(kept)), bare))
            for part in group.slices:
                key = (part.tensor, part.axis)
                gone[key] = gone.get(key, 0) + (group.n_units - len(kept)) * part.unit_size
        linears = {
            linear.name: _narrowed(linear, gone, has_bias=linear.name in plan.biases)
            for linear in self.linears
            if new_name(linear.name) is not None
        }
        inside = _parameters_below(linears)
        others = _layer_others(self, gone)
        stay = [i for i in range(self.n_layers) if i not in plan.dropped_layers]
        number = {old: new for new, old in enumerate(stay)}
        in_layers = sum(self.layer_others)
        added = bare | set(self.added_biases)
        return replace(
            self,
            n_layers=len(stay),
            groups=tuple(
                _moved(_recount(g, linears, inside, self), number, new_name) for g in groups
            ),
            linears=tuple(
                replace(linear, name=str(new_name(name)), layer=number[linear.layer])
                for name, linear in linears.items()
            ),
            other_parameters=self.other_parameters - in_layers + sum(others[i] for i in stay),
            layer_others=tuple(others[i] for i in stay) if self.layer_others else (),
            added_biases=tuple(str(new_name(name)) for name in linears if name in added),
        )


class Renaming:
    """What every module or tensor of a model is called once a plan has been carried out."""

    def __init__(self, layout: ModelLayout, plan: PruningPlan) -> None:
        self._new: dict[str, str | None] = {}
        for group in layout.groups:
            if group.members and group.name in plan.kept:
                stay = [group.members[unit] for unit in plan.kept[group.name]]
                self._new |= dict.fromkeys(group.members)
                self._new |= dict(zip(stay, group.members, strict=False))
        if plan.dropped_layers:
            layers = [f"{layout.layer_prefix}.{i}" for i in range(layout.n_layers)]
            stay = [x for i, x in enumerate(layers) if i not in plan.dropped_layers]
            self._new |= dict.fromkeys(layers)
            self._new |= dict(zip(stay, layers, strict=False))

    def __call__(self, name: str) -> str | None:
        """Return the new name of a module or tensor; None when it leaves."""
        end = len(name) if self._new else -1
        while end > 0:
            if name[:end] in self._new:
                moved = self._new[name[:end]]
                if moved is None:
                    return None
                name, end = moved + name[end:], len(moved)
            end = name.rfind(".", 0, end)
        return name


def heads_open_plainly(layout: ModelLayout, n_kv_heads: int) -> bool:
    """Whether the stock config of the model accepts that many KV heads with their query heads."""
    n_heads = n_kv_heads * (layout.n_heads // layout.n_kv_heads)
    return n_kv_heads == layout.n_kv_heads or (
        "kv_heads" in layout.plain_kinds
        and not (layout.heads_divide_hidden and layout.hidden_size % n_heads)
    )


def opens_plainly(layout: ModelLayout) -> bool:
    """Whether the stock class opens the model: one width per kind, and heads and biases that its
    config can state.

    Every other model keeps its dense config and lists its units under ``WIDTHS_KEY``.
    """
    units: dict[str, set[int]] = {}
    for group in layout.groups:
        units.setdefault(group.kind, set()).add(group.n_units)
    return (
        all(len(found) == 1 for found in units.values())
        and all(heads_open_plainly(layout, n) for n in units.get("kv_heads", ()))
        and set(units) - {"kv_heads"} <= set(layout.plain_kinds)
        and (not layout.added_biases or (layout.plain_biases and _biases_are_even(layout)))
    )


def _biases_are_even(layout: ModelLayout) -> bool:
    """Whether the Linears of each block agree on having biases, in all layers."""
    found: dict[str, set[bool]] = {}
    for linear in layout.linears:
        found.setdefault(linear.block, set()).add(linear.has_bias)
    return all(len(answers) == 1 for answers in found.values())


def _narrowed(
    linear: LinearLayout, gone: Mapping[tuple[str, int], int], *, has_bias: bool
) -> LinearLayout:
    """Return a Linear without the entries that leave it."""
    weight = f"{linear.name}.weight"
    out_axis, in_axis = (1, 0) if linear.transposed else (0, 1)
    return replace(
        linear,
        out_features=linear.out_features - gone.get((weight, out_axis), 0),
        in_features=linear.in_features - gone.get((weight, in_axis), 0),
        has_bias=linear.has_bias or has_bias,
    )


def _with_units(group: GroupLayout, kept: tuple[int, ...]) -> GroupLayout:
    """Return the group with those units; projections that share a tensor move together."""
    gone = group.n_units - len(kept)

    def offset(part: UnitSlice) -> int:
        before = (
            other.unit_size * gone
            for other in group.slices
            if (other.tensor, other.axis) == (part.tensor, part.axis)
            and other.offset < part.offset
        )
        return part.offset - sum(before)

    slices = tuple(replace(part, offset=offset(part)) for part in group.slices)
    members = tuple(group.members[unit] for unit in kept) if group.members else ()
    return replace(group, n_units=len(kept), slices=slices, members=members)


def _parameters_below(linears: Mapping[str, LinearLayout]) -> dict[str, int]:
    """Return module -> parameters of the Linears right below it."""
    found: dict[str, int] = {}
    for name, linear in linears.items():
        module = name.rpartition(".")[0]
        found[module] = found.get(module, 0) + linear.parameters
    return found


def _with_biases(group: GroupLayout, bare: Set[str]) -> GroupLayout:
    """Return the group whose units also own entries of the biases that some Linears gain."""
    if bare.isdisjoint(part.tensor.rpartition(".")[0] for part in group.slices):
        return group
    slices: list[UnitSlice] = []
    for part in group.slices:
        slices.append(part)
        module, _, leaf = part.tensor.rpartition(".")
        if module in bare and leaf == "weight" and not part.is_input:
            slices.append(replace(part, tensor=f"{module}.bias", axis=0))
    return replace(group, slices=tuple(slices))


def _recount(
    group: GroupLayout,
    linears: Mapping[str, LinearLayout],
    inside: Mapping[str, int],
    layout: ModelLayout,
) -> GroupLayout:
    """Recount what one unit owns, as the other axis may have lost entries too."""
    total = 0
    for part in group.slices:
        module, _, leaf = part.tensor.rpartition(".")
        linear = linears.get(module)
        across = 1
        if leaf == "weight":
            across = layout.hidden_size if linear is None else linear.weight_shape[1 - part.axis]
        total += part.unit_size * across
    if group.members:
        total += sum(inside.get(member, 0) for member in group.members) // group.n_units
    return replace(group, unit_parameters=total)


def _moved(group: GroupLayout, number: Mapping[int, int], new_name: Renaming) -> GroupLayout:
    """Return a group under its new names."""
    return replace(
        group,
        name=str(new_name(group.name)),
        layer=number[group.layer],
        slices=tuple(replace(part, tensor=str(new_name(part.tensor))) for part in group.slices),
        members=tuple(str(new_name(member)) for member in group.members),
    )


def _layer_others(layout: ModelLayout, gone: Mapping[tuple[str, int], int]) -> list[int]:
    """Return the parameters outside Linears of every layer, without what leaves with units."""
    others = list(layout.layer_others or (0,) * layout.n_layers)
    known = {linear.name for linear in layout.linears}
    for group in layout.groups:
        for part in group.slices:
            module, _, leaf = part.tensor.rpartition(".")
            if module not in known:
                across = layout.hidden_size if leaf == "weight" else 1
                others[group.layer] -= gone.get((part.tensor, part.axis), 0) * across
    return others
