"""What the families share: building groups from projections, and telling widths back.

A family is a `Decoder` with other names, defaults or blocks. Blocks are lists of `Part`: which
entries of which Linear a unit owns; slices, parameters and shapes all follow from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qpruner_core.domain.layout import (
    BIASES_KEY,
    WIDTHS_KEY,
    GroupLayout,
    LinearLayout,
    ModelLayout,
    UnitSlice,
)
from qpruner_core.errors import UnsupportedModelError
from qpruner_core.models.architectures import Told
from qpruner_core.models.architectures.shape import KEYS, Shape, positive, read_shape

__all__ = ["KEYS", "LAYER_LISTS", "Block", "Decoder", "Part", "Shape", "positive"]

LAYER_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Config keys of lists with one entry per layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one unit owns of one Linear."""

    role: str
    """Name of the Linear inside its block."""
    unit_size: int
    """Consecutive outputs, or inputs, per unit."""
    offset: int = 0
    """First of them for unit 0, in Linears that hold several projections."""
    is_input: bool = False
    """Whether the unit owns inputs rather than outputs."""


Block = tuple[tuple[GroupLayout, ...], tuple[LinearLayout, ...]]
"""Groups and Linears of one block of one layer."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A pre-norm decoder with grouped-query attention and a gated MLP; the base of all families.

    A family overrides the fields and methods in which it differs.
    """

    classes: Mapping[str, str]
    """``model_type`` -> class in transformers."""
    prefix: str = "model.layers"
    attention_name: str = "self_attn"
    mlp_name: str = "mlp"
    keys: Mapping[str, str] = field(default_factory=lambda: KEYS)
    """What we call a number -> what the family's config calls it."""
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """``model_type`` -> what `transformers` assumes when a config does not state a key."""
    plain_kinds: tuple[str, ...] = ("kv_heads", "mlp_channels")
    """See `ModelLayout.plain_kinds`."""
    heads_divide_hidden: frozenset[str] = frozenset()
    """Model types of which `ModelLayout.heads_divide_hidden` holds."""
    plain_biases: frozenset[str] = frozenset()
    """Model types of which `ModelLayout.plain_biases` holds."""
    positions: str = "max_position_embeddings"
    """Config key of the longest sequence."""
    norms_per_layer: int = 2
    """Norms over the residual stream in every layer."""

    # What the line asks of a family -----------------------------------------------------------

    def class_name(self, model_type: str) -> str:
        """Return the name of the causal language model's class in transformers."""
        return self.classes[model_type]

    def layout(self, config: Mapping[str, Any]) -> ModelLayout:
        """Return the units and Linears that a config describes; see `Architecture.layout`."""
        shape = self.read(config)
        groups: list[GroupLayout] = []
        linears: list[LinearLayout] = []
        for layer in range(shape.layers):
            for owned, members in (self.attention(shape, layer), self.mlp(shape, layer)):
                groups.extend(owned)
                linears.extend(members)
        others = tuple(self.layer_others(shape, layer) for layer in range(shape.layers))
        self._check_names(shape, groups, linears)
        return ModelLayout(
            model_type=shape.model_type,
            n_layers=shape.layers,
            hidden_size=shape.hidden,
            n_heads=shape.heads,
            n_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            vocab_size=shape.vocab,
            layer_prefix=self.prefix,
            groups=tuple(groups),
            linears=tuple(linears),
            other_parameters=self.outside(shape) + sum(others),
            layer_others=others,
            plain_kinds=self.plain_kinds_of(shape),
            heads_divide_hidden=shape.model_type in self.heads_divide_hidden,
            plain_biases=shape.model_type in self.plain_biases,
            added_biases=tuple(x.name for x in linears if x.name in shape.biases),
        )

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the output head is the embedding itself."""
        return self.read(config).tied

    def max_positions(self, config: Mapping[str, Any]) -> int | None:
        """Return the longest sequence in tokens; None where neither config nor family says."""
        filled = {**self.defaults.get(str(config.get("model_type")), {}), **config}
        return None if filled.get(self.positions) is None else positive(filled, self.positions)

    def told(self, pruned: ModelLayout, group: GroupLayout) -> Told:
        """Return what the module of a group has to know of its number of units."""
        if group.kind != "kv_heads":
            return {"attributes": {"intermediate_size": group.n_units}}
        queries = pruned.n_heads // pruned.n_kv_heads
        heads = {"num_attention_heads": group.n_units * queries}
        kv_heads = {"num_key_value_heads": group.n_units}
        also = {"num_heads": group.n_units * queries, "num_key_value_groups": queries}
        return {"attributes": {**heads, **kv_heads, **also}, "config": {**heads, **kv_heads}}

    def stock_config(self, pruned: ModelLayout) -> dict[str, Any]:
        """Return the config entries by which the stock class builds a plain layout."""
        units = {group.kind: group.n_units for group in pruned.groups}
        values: dict[str, Any] = {}
        if "kv_heads" in units and "kv_heads" in self.plain_kinds:
            queries = pruned.n_heads // pruned.n_kv_heads
            values[self.keys["head_dim"]] = pruned.head_dim
            values[self.keys["heads"]] = units["kv_heads"] * queries
            values[self.keys["kv_heads"]] = units["kv_heads"]
        if "mlp_channels" in units:
            values[self.keys["mlp"]] = units["mlp_channels"]
        if pruned.plain_biases:
            has = {linear.block: linear.has_bias for linear in pruned.linears}
            values |= {"attention_bias": has["attention"], "mlp_bias": has["mlp"]}
        return values

    def fewer_layers(self, config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
        """Return the config entries that change when only these layers stay, in this order.

        Lists with one entry per layer, such as ``layer_types``, lose what leaves; a config that
        leaves such a list to its class states it from now on.
        """
        stated = {key: config[key] for key in LAYER_LISTS if config.get(key)}
        lists = {
            key: [value[layer] for layer in kept]
            for key, value in {**self.derived_lists(config), **stated}.items()
        }
        return {**lists, self.keys["layers"]: len(kept)}

    def told_model(self, pruned: ModelLayout) -> Told:
        """Return what the model as a whole has to know beyond its config."""
        del pruned
        return {}

    def disk_name(self, name: str) -> str:
        """Return what checkpoints of the stock class call a tensor."""
        return name

    def shape_on_disk(
        self, name: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[int, ...] | None:
        """Return the shape of a tensor in a checkpoint, as it is called in memory or on disk.

        Checkpoints of the bare decoder leave the first part of every name out, as the first ones
        of GPT-2 do; stock transformers opens them all the same.
        """
        base = self.prefix.partition(".")[0] + "."
        known = (name, self.disk_name(name))
        names = (*known, *(each.removeprefix(base) for each in known))
        return next((shapes[each] for each in names if each in shapes), None)

    # What a family overrides ------------------------------------------------------------------

    def plain_kinds_of(self, shape: Shape) -> tuple[str, ...]:
        """Return `ModelLayout.plain_kinds`, where it depends on more than the family."""
        del shape
        return self.plain_kinds

    def derived_lists(self, config: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return the lists with one entry per layer that `transformers` makes up where a config
        does not state them.
        """
        del config
        return {}

    def attention(self, shape: Shape, layer: int) -> Block:
        """Return the KV heads of a layer with its four projections."""
        name = f"{self.prefix}.{layer}.{self.attention_name}"
        units = shape.units(name, shape.kv_heads)
        rows = {"q_proj": shape.query_rows, "k_proj": shape.head_dim, "v_proj": shape.head_dim}
        linears = [
            self.linear(
                shape, name, role, (units * size, shape.hidden), self.qkv_bias(shape), layer
            )
            for role, size in rows.items()
        ]
        out = (shape.hidden, units * shape.query_rows)
        linears.append(self.linear(shape, name, "o_proj", out, self.o_bias(shape), layer))
        parts = [Part(role=role, unit_size=size) for role, size in rows.items()]
        parts.append(Part(role="o_proj", unit_size=shape.query_rows, is_input=True))
        return (self.group(name, layer, "kv_heads", units, parts, linears),), tuple(linears)

    def mlp(self, shape: Shape, layer: int) -> Block:
        """Return the channels of a layer's gated MLP with its three projections."""
        name = f"{self.prefix}.{layer}.{self.mlp_name}"
        units = shape.units(name, shape.mlp)
        bias = self.mlp_bias(shape)
        linears = [
            self.linear(shape, name, role, (units, shape.hidden), bias, layer)
            for role in ("gate_proj", "up_proj")
        ]
        linears.append(self.linear(shape, name, "down_proj", (shape.hidden, units), bias, layer))
        parts = [Part(role=role, unit_size=1) for role in ("gate_proj", "up_proj")]
        parts.append(Part(role="down_proj", unit_size=1, is_input=True))
        return (self.group(name, layer, "mlp_channels", units, parts, linears),), tuple(linears)

    def qkv_bias(self, shape: Shape) -> bool:
        """Whether the projections into attention have biases."""
        return bool(shape.config.get("attention_bias", False))

    def o_bias(self, shape: Shape) -> bool:
        """Whether the projection out of attention has a bias."""
        return bool(shape.config.get("attention_bias", False))

    def mlp_bias(self, shape: Shape) -> bool:
        """Whether the projections of the MLP have biases."""
        return bool(shape.config.get("mlp_bias", False))

    def layer_others(self, shape: Shape, layer: int) -> int:
        """Return the parameters of a layer outside its Linears."""
        del layer
        return self.norms_per_layer * shape.hidden

    def outside(self, shape: Shape) -> int:
        """Return the parameters outside the layers: embedding, last norm, head unless tied."""
        return shape.vocab * shape.hidden * (1 if shape.tied else 2) + shape.hidden

    # Tools for families -----------------------------------------------------------------------

    def linear(
        self, shape: Shape, block: str, role: str, size: tuple[int, int], bias: bool, layer: int
    ) -> LinearLayout:
        """Return a Linear of a block; ``size`` is (outputs, inputs)."""
        name = f"{block}.{role}"
        is_attention = block.rpartition(".")[2] == self.attention_name
        return LinearLayout(
            name=name,
            layer=layer,
            role=role,
            block="attention" if is_attention else "mlp",
            out_features=size[0],
            in_features=size[1],
            has_bias=bias or name in shape.biases,
        )

    def group(
        self,
        name: str,
        layer: int,
        kind: str,
        n_units: int,
        parts: Iterable[Part],
        linears: Iterable[LinearLayout],
    ) -> GroupLayout:
        """Return the coupled group whose units own those parts of Linears of its block."""
        known = {linear.role: linear for linear in linears}
        slices: list[UnitSlice] = []
        per_unit = 0
        for part in parts:
            linear = known[part.role]
            axis = int(part.is_input) if not linear.transposed else 1 - int(part.is_input)
            weight = UnitSlice(
                tensor=f"{linear.name}.weight",
                axis=axis,
                unit_size=part.unit_size,
                offset=part.offset,
                is_input=part.is_input,
            )
            slices.append(weight)
            per_unit += part.unit_size * linear.weight_shape[1 - axis]
            if linear.has_bias and not part.is_input:
                bias = f"{linear.name}.bias"
                slices.append(
                    UnitSlice(tensor=bias, axis=0, unit_size=part.unit_size, offset=part.offset)
                )
                per_unit += part.unit_size
        return GroupLayout(
            name=name,
            layer=layer,
            kind=kind,
            n_units=n_units,
            unit_parameters=per_unit,
            slices=tuple(slices),
        )

    def read(self, config: Mapping[str, Any]) -> Shape:
        """Read and check the numbers of a config; keys it leaves out get the family's default."""
        return read_shape(config, self.keys, self.defaults)

    def _check_names(
        self, shape: Shape, groups: Sequence[GroupLayout], linears: Sequence[LinearLayout]
    ) -> None:
        """Refuse widths and biases of modules that the model does not have."""
        for key, stated, known in (
            (WIDTHS_KEY, shape.widths, {group.name for group in groups}),
            (BIASES_KEY, shape.biases, {linear.name for linear in linears}),
        ):
            unknown = sorted(set(stated) - known)
            if unknown:
                raise UnsupportedModelError(
                    f"The config key {key!r} names {', '.join(map(repr, unknown))}, which a model "
                    f"of {shape.layers} layers does not have. Export the model again."
                )
