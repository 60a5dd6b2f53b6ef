"""OPT: learned positions, LayerNorms with biases, an MLP of two Linears that belong to the layer
itself.

The number of heads is told to the attention module alone, where transformers keeps it; its config
takes head size for hidden size / heads, so that only MLP widths can be stated there. The
embedding may be narrower than the residual stream (``word_embed_proj_dim``), as in OPT-350m, whose
norms also stand behind the blocks instead of before them.
"""

from __future__ import annotations

from qpruner_core.domain.layout import GroupLayout, ModelLayout
from qpruner_core.models.architectures import Told
from qpruner_core.models.architectures.decoder import KEYS, Block, Decoder, Part, Shape, positive

POSITION_OFFSET = 2
"""Rows of the table of positions before position 0."""


class Opt(Decoder):
    """opt."""

    def attention(self, shape: Shape, layer: int) -> Block:
        """Return the heads of a layer with its four projections."""
        name = f"{self.prefix}.{layer}.{self.attention_name}"
        units = shape.units(name, shape.heads)
        width, bias = units * shape.head_dim, _has_biases(shape)
        inner, outer = (width, shape.hidden), (shape.hidden, width)
        linears = (
            *(
                self.linear(shape, name, role, inner, bias, layer)
                for role in ("q_proj", "k_proj", "v_proj")
            ),
            self.linear(shape, name, "out_proj", outer, bias, layer),
        )
        parts = [
            Part(role=linear.role, unit_size=shape.head_dim, is_input=linear.role == "out_proj")
            for linear in linears
        ]
        return (self.group(name, layer, "kv_heads", units, parts, linears),), linears

    def mlp(self, shape: Shape, layer: int) -> Block:
        """Return the channels between ``fc1`` and ``fc2``; the layer is the module that owns
        them.
        """
        name = f"{self.prefix}.{layer}"
        units, bias = shape.units(name, shape.mlp), _has_biases(shape)
        linears = (
            self.linear(shape, name, "fc1", (units, shape.hidden), bias, layer),
            self.linear(shape, name, "fc2", (shape.hidden, units), bias, layer),
        )
        parts = (Part(role="fc1", unit_size=1), Part(role="fc2", unit_size=1, is_input=True))
        return (self.group(name, layer, "mlp_channels", units, parts, linears),), linears

    def told(self, pruned: ModelLayout, group: GroupLayout) -> Told:
        """Tell attention its number of heads and the width that they make."""
        if group.kind != "kv_heads":
            return {}
        heads = group.n_units
        return {"attributes": {"num_heads": heads, "embed_dim": heads * pruned.head_dim}}

    def layer_others(self, shape: Shape, layer: int) -> int:
        """Norms have a weight and a bias, or neither."""
        return super().layer_others(shape, layer) * _per_norm(shape)

    def outside(self, shape: Shape) -> int:
        """Return tokens, positions, the projections between widths, last norm and untied head."""
        config = shape.config
        width = shape.hidden
        if config.get("word_embed_proj_dim") is not None:
            width = positive(config, "word_embed_proj_dim")
        tokens = shape.vocab * width * (1 if shape.tied else 2)
        rows = positive(config, self.positions) + POSITION_OFFSET
        between = 2 * width * shape.hidden if width != shape.hidden else 0
        norm_before = bool(config.get("do_layer_norm_before", True))
        has_norm = norm_before and not config.get("_remove_final_layer_norm", False)
        norm = _per_norm(shape) * shape.hidden if has_norm else 0
        return tokens + rows * shape.hidden + between + norm


def _has_biases(shape: Shape) -> bool:
    return bool(shape.config.get("enable_bias", True))


def _per_norm(shape: Shape) -> int:
    """Vectors of a norm: weight and bias, or none."""
    return 2 if shape.config.get("layer_norm_elementwise_affine", True) else 0


FAMILY = Opt(
    classes={"opt": "OPTForCausalLM"},
    prefix="model.decoder.layers",
    keys={**KEYS, "mlp": "ffn_dim", "kv_heads": "num_attention_heads", "head_dim": ""},
    defaults={"opt": {"tie_word_embeddings": True, "max_position_embeddings": 2048}},
    plain_kinds=("mlp_channels",),
)
