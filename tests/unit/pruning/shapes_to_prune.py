"""Layouts that the selection tests ask about, and what they read off the answers."""

from __future__ import annotations

import numpy as np

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout

LLAMA_7B: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}
STEP = 36864
"""Parameters of a KV head with its two query heads, and of 64 MLP channels, in `model`."""


def build(config: dict[str, object]) -> ModelLayout:
    return ARCHITECTURES.target(str(config["model_type"])).layout(config)


def model(**changes: object) -> ModelLayout:
    """Twelve layers, eight query heads on four KV heads, 512 channels: the shape of the demo.

    Every layer has 12 steps of `STEP` parameters and 384 of its norms.
    """
    config: dict[str, object] = {
        "model_type": "llama",
        "hidden_size": 192,
        "head_dim": 32,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 512,
        "vocab_size": 2048,
    }
    return build(config | changes)


def experts(**changes: object) -> ModelLayout:
    """Three layers of four experts of 32 channels, two of them for a token, on two KV heads."""
    config: dict[str, object] = {
        "model_type": "mixtral",
        "hidden_size": 16,
        "head_dim": 4,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 20,
    }
    return build(config | changes)


def rising(layout: ModelLayout) -> dict[str, np.ndarray]:
    """Scores per parameter that rise with the layer and, inside it, with the index."""
    return {
        g.name: ((g.layer + np.arange(g.n_units) / g.n_units) * g.unit_parameters).astype(
            np.float32
        )
        for g in layout.groups
    }


def widths(layout: ModelLayout, kind: str) -> list[int]:
    return [group.n_units for group in layout.groups if group.kind == kind]


def share_removed(before: ModelLayout, after: ModelLayout) -> float:
    return 1.0 - sum(after.layer_parameters) / sum(before.layer_parameters)
