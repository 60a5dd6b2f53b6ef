"""GPT-NeoX and Pythia: LayerNorms with biases, one fused projection for queries, keys and values.

The rows of ``query_key_value`` are interleaved by head: head i owns ``3 * head_dim`` consecutive
rows, its query, its key and its value. Every head has keys of its own. Attention and MLP may run
side by side (``use_parallel_residual``), which changes nothing about what a unit owns, and the
module reads its number of heads off the shape of its projection, so that it need not be told.
"""

from __future__ import annotations

from qpruner_core.domain.layout import GroupLayout, ModelLayout
from qpruner_core.models.architectures import Told
from qpruner_core.models.architectures.decoder import KEYS, Block, Decoder, Part, Shape


class GptNeoX(Decoder):
    """gpt_neox."""

    def attention(self, shape: Shape, layer: int) -> Block:
        """Return the heads of a layer with the fused projection and the one out of attention."""
        name = f"{self.prefix}.{layer}.{self.attention_name}"
        units = shape.units(name, shape.heads)
        rows, bias = 3 * shape.head_dim, bool(shape.config.get("attention_bias", True))
        fused, out = (units * rows, shape.hidden), (shape.hidden, units * shape.head_dim)
        linears = (
            self.linear(shape, name, "query_key_value", fused, bias, layer),
            self.linear(shape, name, "dense", out, bias, layer),
        )
        parts = (
            Part(role="query_key_value", unit_size=rows),
            Part(role="dense", unit_size=shape.head_dim, is_input=True),
        )
        return (self.group(name, layer, "kv_heads", units, parts, linears),), linears

    def mlp(self, shape: Shape, layer: int) -> Block:
        """Return the channels of a layer's MLP, which has no gate and always has biases."""
        name = f"{self.prefix}.{layer}.{self.mlp_name}"
        units = shape.units(name, shape.mlp)
        up, down = "dense_h_to_4h", "dense_4h_to_h"
        linears = (
            self.linear(shape, name, up, (units, shape.hidden), True, layer),
            self.linear(shape, name, down, (shape.hidden, units), True, layer),
        )
        parts = (Part(role=up, unit_size=1), Part(role=down, unit_size=1, is_input=True))
        return (self.group(name, layer, "mlp_channels", units, parts, linears),), linears

    def told(self, pruned: ModelLayout, group: GroupLayout) -> Told:
        """Nothing: both blocks go by the shapes of their Linears."""
        del pruned, group
        return {}

    def disk_name(self, name: str) -> str:
        """Checkpoints call the output head ``embed_out``."""
        return "embed_out.weight" if name == "lm_head.weight" else name

    def layer_others(self, shape: Shape, layer: int) -> int:
        """Every norm has a weight and a bias."""
        return 2 * super().layer_others(shape, layer)

    def outside(self, shape: Shape) -> int:
        """The last norm has a bias too."""
        return super().outside(shape) + shape.hidden


FAMILY = GptNeoX(
    classes={"gpt_neox": "GPTNeoXForCausalLM"},
    prefix="gpt_neox.layers",
    attention_name="attention",
    # Heads share their keys with no other head, and their size is always hidden / heads.
    keys={**KEYS, "kv_heads": "num_attention_heads", "head_dim": ""},
    plain_kinds=("mlp_channels",),
)
