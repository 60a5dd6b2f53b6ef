"""OLMo 2: norms behind the blocks, and norms over the outputs of all heads together.

``q_norm`` and ``k_norm`` divide by the root mean square over every head, so a head that leaves
would change the queries and keys of those that stay. Heads are therefore no units here; MLP
channels and whole layers are (docs/decisions/0009-olmo2-keeps-its-heads.md).
"""

from __future__ import annotations

from qpruner_core.models.architectures.decoder import Block, Decoder, Shape


class Olmo2(Decoder):
    """olmo2."""

    def attention(self, shape: Shape, layer: int) -> Block:
        """Return the four projections of a layer, none of which loses anything."""
        _, linears = super().attention(shape, layer)
        return (), linears

    def mlp_bias(self, shape: Shape) -> bool:
        """Never; the config has a key for attention alone."""
        del shape
        return False

    def layer_others(self, shape: Shape, layer: int) -> int:
        """Norms over all query heads and all key heads beside the two of the stream."""
        head_norms = (shape.heads + shape.kv_heads) * shape.head_dim
        return super().layer_others(shape, layer) + head_norms


FAMILY = Olmo2(classes={"olmo2": "Olmo2ForCausalLM"}, plain_kinds=("mlp_channels",))
