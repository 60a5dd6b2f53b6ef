"""Decoders whose layers differ in width: the plain classes, resized to the widths that the config
keeps.

This file travels with the checkpoint and is named in ``auto_map`` of its ``config.json``. It needs
transformers alone.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)


def resized(linear: nn.Linear, out_features: int, in_features: int) -> nn.Linear:
    """Return a Linear of that shape with the dtype, device and kind of bias of another; its
    weights are empty.
    """
    if (linear.out_features, linear.in_features) == (out_features, in_features):
        return linear
    weight = linear.weight
    return nn.Linear(
        in_features,
        out_features,
        linear.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )


def resize_attention_(attention: Any, n_heads: int, n_kv_heads: int) -> None:
    """Give an attention block its own number of query and KV heads, in place; the size of a head
    stays.
    """
    rows = {"q_proj": n_heads, "k_proj": n_kv_heads, "v_proj": n_kv_heads}
    for name, heads in rows.items():
        linear = getattr(attention, name)
        setattr(attention, name, resized(linear, heads * attention.head_dim, linear.in_features))
    out = attention.o_proj
    attention.o_proj = resized(out, out.out_features, n_heads * attention.head_dim)
    attention.num_key_value_groups = n_heads // n_kv_heads
    # The block reads its counts from the config, which all layers share: it gets a copy of its
    # own.
    attention.config = copy.copy(attention.config)
    attention.config.num_attention_heads = n_heads
    attention.config.num_key_value_heads = n_kv_heads


def resize_mlp_(mlp: Any, width: int) -> None:
    """Give a gated MLP its own number of channels, in place."""
    for name in ("gate_proj", "up_proj"):
        linear = getattr(mlp, name)
        setattr(mlp, name, resized(linear, width, linear.in_features))
    mlp.down_proj = resized(mlp.down_proj, mlp.down_proj.out_features, width)
    mlp.intermediate_size = width


class LayerWidths:
    """Mixin before a decoder class: resizes every layer to ``config.qpruner_widths`` once it is
    built.

    ``qpruner_widths`` maps ``model.layers.<i>.self_attn`` to the KV heads of that layer, each with
    its share of query heads, and ``model.layers.<i>.mlp`` to its channels. A block that is not
    named stays as it is.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        queries_per_kv = config.num_attention_heads // config.num_key_value_heads
        for name, units in (getattr(config, "qpruner_widths", None) or {}).items():
            block = self.get_submodule(name)  # type: ignore[attr-defined]
            if name.endswith(".self_attn"):
                resize_attention_(block, units * queries_per_kv, units)
            else:
                resize_mlp_(block, units)


class QPrunerLlamaForCausalLM(LayerWidths, LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """Llama with a width of its own in every layer."""


class QPrunerMistralForCausalLM(LayerWidths, MistralForCausalLM):  # type: ignore[no-untyped-call]
    """Mistral with a width of its own in every layer."""


class QPrunerQwen2ForCausalLM(LayerWidths, Qwen2ForCausalLM):  # type: ignore[no-untyped-call]
    """Qwen2 with a width of its own in every layer."""


class QPrunerQwen3ForCausalLM(LayerWidths, Qwen3ForCausalLM):  # type: ignore[no-untyped-call]
    """Qwen3 with a width of its own in every layer."""
