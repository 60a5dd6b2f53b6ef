"""SmolLM3: Llama with layers that know no positions, and sliding windows where a config asks for
them.

Which layers turn queries and keys (``no_rope_layers``: 1 turns, 0 does not) and which slide is
listed layer by layer, so both lists lose what leaves with a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qpruner_core.models.architectures.decoder import Decoder, positive


class SmolLM3(Decoder):
    """smollm3."""

    def derived_lists(self, config: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Every fourth layer knows no positions, and slides if any does."""
        n_layers = positive(config, "num_hidden_layers")
        every = config.get("no_rope_layer_interval", 4)
        turns = config.get("no_rope_layers") or [int((i + 1) % every > 0) for i in range(n_layers)]
        slides = (
            bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
        )
        kinds = ["sliding_attention" if slides and not x else "full_attention" for x in turns]
        return {"no_rope_layers": turns, "layer_types": kinds[:n_layers]}


FAMILY = SmolLM3(
    classes={"smollm3": "SmolLM3ForCausalLM"},
    defaults={"smollm3": {"num_key_value_heads": 4, "tie_word_embeddings": True}},
    plain_biases=frozenset({"smollm3"}),
)
