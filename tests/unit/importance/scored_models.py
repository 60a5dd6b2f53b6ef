"""Tiny random models in float64 whose tensors lie in every way that units can own them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import GroupLayout, ModelLayout
from qpruner_core.models.experts import split_experts_

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"attention_bias": True},
    "phi3": SIZES,  # fused
    "gpt2": {  # fused, inputs first
        "vocab_size": 40,
        "n_embd": 16,
        "n_inner": 12,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 32,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "mixtral": SIZES | {"num_local_experts": 8, "num_experts_per_tok": 2},
}
IDS = torch.randint(1, 40, (6, 9), generator=torch.Generator().manual_seed(0))


def build(name: str) -> tuple[Any, ModelLayout]:
    """Return a model in float64 and eval mode, the same every time, and its layout."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **CONFIGS[name])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    layout = ARCHITECTURES.target(name).layout(config.to_dict())
    split_experts_(model, layout)
    return model, layout


def owned(group: GroupLayout, unit: int, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return all entries of the tensors that leave with a unit, flat."""
    parts = [
        tensors[part.tensor].narrow(part.axis, part.offset + unit * part.unit_size, part.unit_size)
        for part in group.slices
    ]
    if group.members:
        below = group.members[unit] + "."
        parts += [tensor for name, tensor in tensors.items() if name.startswith(below)]
    return torch.cat([part.flatten() for part in parts])


def sequence_gradients(model: Any, ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Return the gradients of each sequence's mean loss, zeros where none arrives."""
    found = []
    for sequence in ids:
        model.zero_grad()
        model(sequence[None], labels=sequence[None], use_cache=False).loss.backward()
        found.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in model.named_parameters()
            }
        )
    model.zero_grad()
    return found


def inputs_of(model: Any, names: list[str], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what enters Linears while the model reads the sequences, (tokens, in)."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for name in names
    ]
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items() if rows}
