"""Gemma 2 and the text models of Gemma 3: four norms per layer, sliding and full attention mixed.

Units lie where Llama has them. The norms behind attention and MLP run over the residual stream, so
a unit that leaves is a unit whose output is zero. Gemma 2 caps the logits of attention and of the
head; Gemma 3 has a norm over every query and key head and turns sliding layers with a rotary base
of their own. Attention is scaled by a number of the config, so it does not change with the heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qpruner_core.models.architectures.decoder import Decoder, Shape, positive


class Gemma(Decoder):
    """gemma2 and gemma3_text."""

    def mlp_bias(self, shape: Shape) -> bool:
        """Never; the config has a key for attention alone."""
        del shape
        return False

    def layer_others(self, shape: Shape, layer: int) -> int:
        """Gemma 3 has a norm over every query and key head beside the four of all."""
        head_norms = 2 * shape.head_dim if shape.model_type == "gemma3_text" else 0
        return super().layer_others(shape, layer) + head_norms

    def derived_lists(self, config: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Every second layer of Gemma 2 attends fully, every sixth of Gemma 3."""
        every = 2 if config["model_type"] == "gemma2" else config.get("sliding_window_pattern", 6)
        n_layers = positive(config, "num_hidden_layers")
        kinds = ("full_attention", "sliding_attention")
        return {"layer_types": [kinds[(i + 1) % every > 0] for i in range(n_layers)]}


_DEFAULTS = {"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True}
FAMILY = Gemma(
    classes={"gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"},
    defaults={"gemma2": _DEFAULTS, "gemma3_text": _DEFAULTS},
    heads_divide_hidden=frozenset({"gemma2", "gemma3_text"}),
    norms_per_layer=4,
)
