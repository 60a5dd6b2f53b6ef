"""A model as its config describes it: which tensors a unit owns and which Linears carry a
precision.

A layout is computed from `config.json` alone, without torch. The same layout drives the byte
estimates of the browser side, the unit views that criteria score and the slicing of tensors in
surgery, so the three cannot disagree about what a unit is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from qpruner_core.domain.plan import PruningPlan

STRICT = {"extra": "forbid"}
"""Read by the JSON codec: a value with unknown keys is refused."""
WIDTHS_KEY = "qpruner_widths"
"""Config key of models whose layers a stock config cannot describe: group name -> units."""

_HEADS_DIVIDE_HIDDEN = frozenset({"llama"})
"""Model types whose stock config refuses a number of query heads that does not divide the hidden
size, even with an explicit ``head_dim``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSlice:
    """Where the units of a group lie in one tensor: unit u owns ``unit_size`` consecutive entries
    of an axis.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    tensor: str
    """Full name of the parameter, as in the checkpoint and in ``named_parameters()``."""
    axis: int
    """Axis that loses entries: 0 for outputs (and biases), 1 for inputs."""
    unit_size: int
    """Consecutive entries per unit along the axis; >= 1."""
    offset: int = 0
    """First entry of unit 0 along the axis, for tensors that hold several projections; >= 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLayout:
    """A coupled group: the weights of one block that must leave together, unit by unit."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    name: str
    """Module that owns the group, such as ``model.layers.0.mlp``; unique in the model."""
    layer: int
    """Index of the decoder layer, from 0."""
    kind: str
    """``"kv_heads"`` (a KV head with its query heads) or ``"mlp_channels"``."""
    n_units: int
    """Units present; >= 1."""
    unit_parameters: int
    """Parameters that leave with one unit; >= 1."""
    slices: tuple[UnitSlice, ...]
    """Where the units lie."""


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
    """``"attention"`` or ``"mlp"``."""
    out_features: int
    """Rows of the weight."""
    in_features: int
    """Columns of the weight."""
    has_bias: bool = False
    """Whether a bias of ``out_features`` entries stands beside the weight."""

    @property
    def parameters(self) -> int:
        """Entries of weight and bias."""
        return self.out_features * (self.in_features + int(self.has_bias))


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
    """Parameters outside these Linears: embeddings (tied ones once), norms, output head."""

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, tied ones counted once."""
        return self.other_parameters + sum(linear.parameters for linear in self.linears)

    def group(self, name: str) -> GroupLayout:
        """Return the group of that name."""
        return next(group for group in self.groups if group.name == name)

    def kv_cache_bytes(self, n_tokens: int, bytes_per_value: int = 2) -> int:
        """Return the bytes of keys and values for that many tokens of one sequence.

        Layers whose KV heads were pruned cache fewer of them.
        """
        heads = sum(group.n_units for group in self.groups if group.kind == "kv_heads")
        return 2 * heads * self.head_dim * n_tokens * bytes_per_value

    def pruned(self, plan: PruningPlan) -> ModelLayout:
        """Return the layout of the model that is left when a plan has been carried out."""
        removed: dict[tuple[str, int], int] = {}
        groups = []
        for group in self.groups:
            kept = len(plan.kept.get(group.name, range(group.n_units)))
            groups.append(_with_units(group, kept))
            for part in group.slices:
                key = (part.tensor, part.axis)
                removed[key] = removed.get(key, 0) + (group.n_units - kept) * part.unit_size
        linears = tuple(
            replace(
                linear,
                out_features=linear.out_features - removed.get((f"{linear.name}.weight", 0), 0),
                in_features=linear.in_features - removed.get((f"{linear.name}.weight", 1), 0),
            )
            for linear in self.linears
        )
        sizes = {linear.name: linear for linear in linears}
        return replace(
            self,
            groups=tuple(_unit_parameters(group, sizes) for group in groups),
            linears=linears,
        )


def heads_open_plainly(layout: ModelLayout, n_kv_heads: int) -> bool:
    """Whether the stock config of the model accepts that many KV heads with their query heads."""
    n_heads = n_kv_heads * (layout.n_heads // layout.n_kv_heads)
    return layout.model_type not in _HEADS_DIVIDE_HIDDEN or layout.hidden_size % n_heads == 0


def opens_plainly(layout: ModelLayout) -> bool:
    """Whether the stock class opens the model: one width per kind, and heads its config accepts.

    Every other model keeps its dense config and lists its units under ``WIDTHS_KEY``.
    """
    heads, channels = (
        {group.n_units for group in layout.groups if group.kind == kind}
        for kind in ("kv_heads", "mlp_channels")
    )
    return len(heads) == len(channels) == 1 and heads_open_plainly(layout, min(heads))


def _with_units(group: GroupLayout, kept: int) -> GroupLayout:
    """Return the group with that many units; projections that share a tensor move together."""
    gone = group.n_units - kept

    def offset(part: UnitSlice) -> int:
        before = (
            other.unit_size * gone
            for other in group.slices
            if (other.tensor, other.axis) == (part.tensor, part.axis)
            and other.offset < part.offset
        )
        return part.offset - sum(before)

    slices = tuple(replace(part, offset=offset(part)) for part in group.slices)
    return replace(group, n_units=kept, slices=slices)


def _unit_parameters(group: GroupLayout, linears: dict[str, LinearLayout]) -> GroupLayout:
    """Recount what one unit owns, as the other axis may have lost entries too."""
    total = 0
    for part in group.slices:
        module, _, leaf = part.tensor.rpartition(".")
        linear = linears[module]
        across = 1 if leaf == "bias" else (linear.in_features, linear.out_features)[part.axis]
        total += part.unit_size * across
    return replace(group, unit_parameters=total)
