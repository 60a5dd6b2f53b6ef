"""Tiny models of every family that keeps a tensor of another shape, their layouts and texts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.data.training import IGNORED, TrainingSet
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.models.experts import split_experts_

_SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
_PLAIN = {k: v for k, v in _SIZES.items() if k not in ("num_key_value_heads", "head_dim")}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "mistral": {**_SIZES, "sliding_window": 6},
    "qwen2": _SIZES,
    "qwen3": _SIZES,
    "olmo2": _SIZES,
    "smollm3": _SIZES,
    "granite": _SIZES,
    "gemma2": {**_SIZES, "sliding_window": 6, "query_pre_attn_scalar": 16},
    "gemma3_text": {
        **_SIZES,
        "sliding_window": 6,
        "layer_types": None,
        "query_pre_attn_scalar": 16,
    },
    "phi3": {k: v for k, v in _SIZES.items() if k != "head_dim"},
    "gpt_neox": _PLAIN,
    "opt": {**_PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 16, "dropout": 0.1},
    "gpt2": {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "mixtral": {**_SIZES, "num_local_experts": 2, "experts_implementation": "eager"},
    "qwen3_moe": {
        **_SIZES,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "experts_implementation": "eager",
    },
}


def build(
    family: str, dtype: torch.dtype = torch.float64, **changes: Any
) -> tuple[Any, ModelLayout]:
    """Return a random model with its experts taken apart, in eval mode, and its layout."""
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    layout = ARCHITECTURES.target(family).layout(config.to_dict())
    split_experts_(model, layout)
    return model, layout


def texts(n: int = 8, length: int = 12) -> TrainingSet:
    """Return rows that count upwards: something to learn."""
    return TrainingSet.of_text((torch.arange(n)[:, None] * 5 + torch.arange(length)) % 100 + 4)


def examples(n: int = 6, length: int = 12) -> TrainingSet:
    """Return rows of two examples each, their first tokens read and not learned, with ever fewer
    to learn.
    """
    ids = texts(n, length).ids
    positions = torch.cat([torch.arange(5), torch.arange(length - 5)]).expand(n, length)
    labels = ids.masked_fill(positions < 2, IGNORED)
    for row in range(n):
        labels[row, length - row :] = IGNORED
    return TrainingSet(ids=ids, labels=labels, positions=positions)
