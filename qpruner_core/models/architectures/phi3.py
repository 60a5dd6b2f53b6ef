"""Phi-3 and Phi-4-mini: Llama's blocks with fused projections.

``qkv_proj`` holds the rows of all queries, then all keys, then all values; ``gate_up_proj`` all
gates, then all ups. A unit therefore owns entries at several offsets of one tensor. Attention
reads its number of query heads from its config, which `Decoder.told` covers.
"""

from __future__ import annotations

from qpruner_core.models.architectures.decoder import Block, Decoder, Part, Shape


class Phi3(Decoder):
    """phi3."""

    def attention(self, shape: Shape, layer: int) -> Block:
        """Return the KV heads of a layer, each with its parts of the fused projection."""
        name = f"{self.prefix}.{layer}.{self.attention_name}"
        units = shape.units(name, shape.kv_heads)
        queries, size = shape.query_rows, shape.head_dim
        rows, width = units * (queries + 2 * size), units * queries
        linears = (
            self.linear(shape, name, "qkv_proj", (rows, shape.hidden), False, layer),
            self.linear(shape, name, "o_proj", (shape.hidden, width), False, layer),
        )
        parts = (
            Part(role="qkv_proj", unit_size=queries),
            Part(role="qkv_proj", unit_size=size, offset=width),
            Part(role="qkv_proj", unit_size=size, offset=width + units * size),
            Part(role="o_proj", unit_size=queries, is_input=True),
        )
        return (self.group(name, layer, "kv_heads", units, parts, linears),), linears

    def mlp(self, shape: Shape, layer: int) -> Block:
        """Return the channels of a layer, each with its gate and its up row."""
        name = f"{self.prefix}.{layer}.{self.mlp_name}"
        units = shape.units(name, shape.mlp)
        linears = (
            self.linear(shape, name, "gate_up_proj", (2 * units, shape.hidden), False, layer),
            self.linear(shape, name, "down_proj", (shape.hidden, units), False, layer),
        )
        parts = (
            Part(role="gate_up_proj", unit_size=1),
            Part(role="gate_up_proj", unit_size=1, offset=units),
            Part(role="down_proj", unit_size=1, is_input=True),
        )
        return (self.group(name, layer, "mlp_channels", units, parts, linears),), linears

    def plain_kinds_of(self, shape: Shape) -> tuple[str, ...]:
        """Long rotary factors bind heads: the stock config counts them by hidden size / heads."""
        rope = shape.config.get("rope_parameters") or shape.config.get("rope_scaling") or {}
        is_long = any(rope.get(key) for key in ("short_factor", "long_factor"))
        return ("mlp_channels",) if is_long else self.plain_kinds


FAMILY = Phi3(classes={"phi3": "Phi3ForCausalLM"})
