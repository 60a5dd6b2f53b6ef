"""GPT-2: learned positions, LayerNorms with biases, Conv1D modules whose weights are stored
(in, out).

``c_attn`` holds the queries of all heads, then all keys, then all values, side by side along its
outputs; head i owns ``head_dim`` of them in each third. The attention module splits them by
``split_size``, so it is told that beside its number of heads; the config takes head size for
hidden size / heads, so that only MLP widths can be stated there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qpruner_core.domain.layout import GroupLayout, LinearLayout, ModelLayout
from qpruner_core.errors import UnsupportedModelError
from qpruner_core.models.architectures import Told
from qpruner_core.models.architectures.decoder import Block, Decoder, Part, Shape, positive

KEYS = {
    "hidden": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
    "kv_heads": "n_head",
    "head_dim": "",
    "mlp": "n_inner",
    "vocab": "vocab_size",
}
"""As in `decoder.KEYS`: every head has keys of its own, and their size has no key."""


class Gpt2(Decoder):
    """gpt2."""

    def read(self, config: Mapping[str, Any]) -> Shape:
        """Read a config whose MLP is four times as wide as the stream where it does not say.

        Raises:
            UnsupportedModelError: A number does not fit, or the model attends to an encoder.
        """
        if config.get("add_cross_attention"):
            raise UnsupportedModelError(
                "The config asks for attention to an encoder (add_cross_attention), but only "
                "language models that stand alone can be pruned. Choose a decoder-only checkpoint."
            )
        if config.get("n_inner") is None:
            config = {**config, "n_inner": 4 * positive(config, "n_embd")}
        return super().read(config)

    def attention(self, shape: Shape, layer: int) -> Block:
        """Return the heads of a layer; each owns a part of every third of ``c_attn``."""
        name = f"{self.prefix}.{layer}.{self.attention_name}"
        units, size = shape.units(name, shape.heads), shape.head_dim
        width = units * size
        linears = (
            self._conv(shape, name, "c_attn", (3 * width, shape.hidden), layer),
            self._conv(shape, name, "c_proj", (shape.hidden, width), layer),
        )
        thirds = [Part(role="c_attn", unit_size=size, offset=i * width) for i in range(3)]
        parts = [*thirds, Part(role="c_proj", unit_size=size, is_input=True)]
        return (self.group(name, layer, "kv_heads", units, parts, linears),), linears

    def mlp(self, shape: Shape, layer: int) -> Block:
        """Return the channels between ``c_fc`` and ``c_proj``."""
        name = f"{self.prefix}.{layer}.{self.mlp_name}"
        units = shape.units(name, shape.mlp)
        linears = (
            self._conv(shape, name, "c_fc", (units, shape.hidden), layer),
            self._conv(shape, name, "c_proj", (shape.hidden, units), layer),
        )
        parts = (Part(role="c_fc", unit_size=1), Part(role="c_proj", unit_size=1, is_input=True))
        return (self.group(name, layer, "mlp_channels", units, parts, linears),), linears

    def told(self, pruned: ModelLayout, group: GroupLayout) -> Told:
        """Tell attention its number of heads and where the thirds of ``c_attn`` end."""
        if group.kind != "kv_heads":
            return {}
        width = group.n_units * pruned.head_dim
        told = {"num_heads": group.n_units, "split_size": width, "embed_dim": width}
        return {"attributes": told}

    def fewer_layers(self, config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
        """Return the entries that change; see `Architecture.fewer_layers`.

        Raises:
            UnsupportedModelError: Attention is scaled by the number of its layer, which would
                change for the layers behind the one that leaves.
        """
        scaled = bool(config.get("scale_attn_by_inverse_layer_idx"))
        if scaled and list(kept) != list(range(len(kept))):
            raise UnsupportedModelError(
                "The config scales attention by the number of its layer "
                "(scale_attn_by_inverse_layer_idx), so that only the last layers can leave "
                "without changing others. Drop the last ones, or remove heads and channels."
            )
        return super().fewer_layers(config, kept)

    def layer_others(self, shape: Shape, layer: int) -> int:
        """Every norm has a weight and a bias."""
        return 2 * super().layer_others(shape, layer)

    def outside(self, shape: Shape) -> int:
        """Return the shared parts, with a table of positions and the bias of the last norm."""
        rows = positive(shape.config, self.positions)
        return super().outside(shape) + (rows + 1) * shape.hidden

    def _conv(
        self, shape: Shape, block: str, role: str, size: tuple[int, int], layer: int
    ) -> LinearLayout:
        """Return a Conv1D of a block, which always has a bias; ``size`` is (outputs, inputs)."""
        return replace(self.linear(shape, block, role, size, True, layer), transposed=True)


FAMILY = Gpt2(
    classes={"gpt2": "GPT2LMHeadModel"},
    prefix="transformer.h",
    attention_name="attn",
    keys=KEYS,
    positions="n_positions",
    defaults={"gpt2": {"tie_word_embeddings": True, "n_positions": 1024}},
    plain_kinds=("mlp_channels",),
)
