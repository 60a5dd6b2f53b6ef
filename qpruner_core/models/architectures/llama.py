"""Llama and its near kin: pre-norm decoders with grouped-query attention and a gated MLP.

The families differ in where biases stand and in a few norms; everything a unit owns lies in the
same places. A KV head leaves with all its query heads, so that `num_key_value_groups` holds in
every layer. Biases of the output projections and norms over `head_dim` belong to no unit and stay
whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qpruner_core.models.architectures.decoder import Decoder, Shape, positive


class LlamaLike(Decoder):
    """llama, mistral, qwen2 and qwen3."""

    def qkv_bias(self, shape: Shape) -> bool:
        """Qwen2 always has them; Mistral ignores the key even where a config carries it."""
        return shape.model_type == "qwen2" or self.o_bias(shape)

    def o_bias(self, shape: Shape) -> bool:
        """Llama and Qwen3 ask for them by a key that the others ignore."""
        asked = bool(shape.config.get("attention_bias", False))
        return shape.model_type in ("llama", "qwen3") and asked

    def mlp_bias(self, shape: Shape) -> bool:
        """Only Llama can have them."""
        return shape.model_type == "llama" and bool(shape.config.get("mlp_bias", False))

    def layer_others(self, shape: Shape, layer: int) -> int:
        """Qwen3 has a norm over every query and key head beside the two of all."""
        head_norms = 2 * shape.head_dim if shape.model_type == "qwen3" else 0
        return super().layer_others(shape, layer) + head_norms

    def derived_lists(self, config: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Qwen's later layers slide where a config asks for it; Mistral's config lists none."""
        family = config["model_type"]
        if family not in ("qwen2", "qwen3"):
            return {}
        first = config.get("max_window_layers", 28)
        slides = bool(config.get("use_sliding_window"))
        slides &= config.get("sliding_window", 4096) is not None
        kinds = ("full_attention", "sliding_attention")
        n_layers = positive(config, "num_hidden_layers")
        return {"layer_types": [kinds[slides and i >= first] for i in range(n_layers)]}


FAMILY = LlamaLike(
    classes={
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
    },
    defaults={
        "mistral": {"num_key_value_heads": 8},
        "qwen2": {"num_key_value_heads": 32},
        "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    },
    heads_divide_hidden=frozenset({"llama"}),
    plain_biases=frozenset({"llama"}),
)
layout = FAMILY.layout
