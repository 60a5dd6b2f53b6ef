"""Llama and its near kin: pre-norm decoders with grouped-query attention and a gated MLP.

The families differ in where biases stand and in a few norms; everything a unit owns lies in the
same places. A KV head leaves with all its query heads, so that `num_key_value_groups` holds in
every layer. Biases of the output projections and norms over `head_dim` belong to no unit and stay
whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qpruner_core.domain.layout import (
    WIDTHS_KEY,
    GroupLayout,
    LinearLayout,
    ModelLayout,
    UnitSlice,
)
from qpruner_core.errors import UnsupportedModelError

PREFIX = "model.layers"

_INPUT_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_DEFAULTS: Mapping[str, Mapping[str, int | bool]] = {
    "mistral": {"num_key_value_heads": 8},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}
"""What `transformers` assumes when a config of the family does not state a key; Llama derives
both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """The numbers of a config that decide tensor shapes, defaults filled in."""

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    head_norms: bool
    widths: Mapping[str, int]

    @property
    def query_rows(self) -> int:
        """Rows of the query projection that one KV head takes with it."""
        return self.heads // self.kv_heads * self.head_dim

    def units(self, group: str, dense: int) -> int:
        """Units of a group: its own width where the config states one."""
        return self.widths.get(group, dense)


def layout(config: Mapping[str, Any]) -> ModelLayout:
    """Return the units and Linears of a llama, mistral, qwen2 or qwen3 model.

    Args:
        config: The content of `config.json`. Layers of unequal width are read from the key
            ``qpruner_widths`` (group name -> units), which our exported folders carry.

    Raises:
        UnsupportedModelError: A needed key is missing or a number does not fit.
    """
    shape = _read_shape(config)
    groups: list[GroupLayout] = []
    linears: list[LinearLayout] = []
    for layer in range(shape.layers):
        for group, members in (_attention(shape, layer), _mlp(shape, layer)):
            groups.append(group)
            linears.extend(members)
    return ModelLayout(
        model_type=shape.model_type,
        n_layers=shape.layers,
        hidden_size=shape.hidden,
        n_heads=shape.heads,
        n_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        layer_prefix=PREFIX,
        groups=tuple(groups),
        linears=tuple(linears),
        other_parameters=_other_parameters(shape),
    )


def _other_parameters(shape: _Shape) -> int:
    """Count embedding, output head unless tied, and every norm."""
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied else 2)
    norms_per_layer = 2 * shape.hidden + (2 * shape.head_dim if shape.head_norms else 0)
    return embeddings + shape.layers * norms_per_layer + shape.hidden


def _attention(shape: _Shape, layer: int) -> tuple[GroupLayout, tuple[LinearLayout, ...]]:
    name = f"{PREFIX}.{layer}.self_attn"
    units = shape.units(name, shape.kv_heads)
    rows = {"q_proj": shape.query_rows, "k_proj": shape.head_dim, "v_proj": shape.head_dim}
    linears = [
        _linear(name, layer, role, (units * rows[role], shape.hidden), shape.qkv_bias)
        for role in _INPUT_PROJECTIONS
    ]
    linears.append(
        _linear(name, layer, "o_proj", (shape.hidden, units * shape.query_rows), shape.o_bias)
    )
    slices = _slices(name, rows, ("o_proj", shape.query_rows), has_bias=shape.qkv_bias)
    return _group(name, layer, "kv_heads", units, slices, shape.hidden), tuple(linears)


def _mlp(shape: _Shape, layer: int) -> tuple[GroupLayout, tuple[LinearLayout, ...]]:
    name = f"{PREFIX}.{layer}.mlp"
    units = shape.units(name, shape.mlp)
    rows = {"gate_proj": 1, "up_proj": 1}
    linears = [_linear(name, layer, role, (units, shape.hidden), shape.mlp_bias) for role in rows]
    linears.append(_linear(name, layer, "down_proj", (shape.hidden, units), shape.mlp_bias))
    slices = _slices(name, rows, ("down_proj", 1), has_bias=shape.mlp_bias)
    return _group(name, layer, "mlp_channels", units, slices, shape.hidden), tuple(linears)


def _linear(
    module: str, layer: int, role: str, size: tuple[int, int], has_bias: bool
) -> LinearLayout:
    return LinearLayout(
        name=f"{module}.{role}",
        layer=layer,
        role=role,
        block="mlp" if module.endswith(".mlp") else "attention",
        out_features=size[0],
        in_features=size[1],
        has_bias=has_bias,
    )


def _slices(
    module: str, rows: Mapping[str, int], output: tuple[str, int], *, has_bias: bool
) -> tuple[UnitSlice, ...]:
    """Return the slices of a block: rows of its input projections, columns of its output
    projection.
    """
    slices: list[UnitSlice] = []
    for role, unit_size in rows.items():
        leaves = ("weight", "bias") if has_bias else ("weight",)
        slices.extend(
            UnitSlice(tensor=f"{module}.{role}.{leaf}", axis=0, unit_size=unit_size)
            for leaf in leaves
        )
    slices.append(UnitSlice(tensor=f"{module}.{output[0]}.weight", axis=1, unit_size=output[1]))
    return tuple(slices)


def _group(
    name: str, layer: int, kind: str, n_units: int, slices: tuple[UnitSlice, ...], hidden: int
) -> GroupLayout:
    across = (1 if part.tensor.endswith(".bias") else hidden for part in slices)
    return GroupLayout(
        name=name,
        layer=layer,
        kind=kind,
        n_units=n_units,
        unit_parameters=sum(
            part.unit_size * width for part, width in zip(slices, across, strict=True)
        ),
        slices=slices,
    )


def _read_shape(config: Mapping[str, Any]) -> _Shape:
    family = str(config.get("model_type"))
    numbers = {
        key: _positive(config, key)
        for key in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "vocab_size",
        )
    }
    heads, hidden = numbers["num_attention_heads"], numbers["hidden_size"]
    defaults = _DEFAULTS.get(family, {})
    filled = {
        **{key: value for key, value in defaults.items() if key not in config},
        **config,
    }
    kv_heads = (
        heads
        if filled.get("num_key_value_heads") is None
        else _positive(filled, "num_key_value_heads")
    )
    head_dim = hidden // heads if filled.get("head_dim") is None else _positive(filled, "head_dim")
    if heads % kv_heads:
        raise UnsupportedModelError(
            f"The config states {heads} query heads and {kv_heads} KV heads, which do not divide "
            "them. Every KV head must serve the same number of query heads; correct config.json."
        )
    return _Shape(
        model_type=family,
        hidden=hidden,
        layers=numbers["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=numbers["intermediate_size"],
        vocab=numbers["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or _states_bias(config, family, "attention_bias"),
        o_bias=_states_bias(config, family, "attention_bias"),
        mlp_bias=family == "llama" and bool(config.get("mlp_bias", False)),
        head_norms=family == "qwen3",
        widths=_read_widths(config, numbers["num_hidden_layers"]),
    )


def _states_bias(config: Mapping[str, Any], family: str, key: str) -> bool:
    """Mistral and Qwen2 ignore the key even where a config carries it."""
    return family in ("llama", "qwen3") and bool(config.get(key, False))


def _read_widths(config: Mapping[str, Any], n_layers: int) -> dict[str, int]:
    stated = config.get(WIDTHS_KEY) or {}
    if not isinstance(stated, Mapping):
        raise UnsupportedModelError(
            f"The config key {WIDTHS_KEY!r} holds a {type(stated).__name__}, but a table of group "
            "name -> units is needed. Export the model again."
        )
    known = {f"{PREFIX}.{i}.{block}" for i in range(n_layers) for block in ("self_attn", "mlp")}
    unknown = sorted(set(stated) - known)
    if unknown:
        raise UnsupportedModelError(
            f"The config key {WIDTHS_KEY!r} names {', '.join(map(repr, unknown))}, which a model "
            f"of {n_layers} layers does not have. Export the model again."
        )
    return {name: _positive(stated, name) for name in stated}


def _positive(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedModelError(
            f"The config states {key} as {value!r}, but a whole number of 1 or more is needed. "
            "Check that config.json belongs to this model and is complete."
        )
    return value
