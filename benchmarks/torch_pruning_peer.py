"""torch-pruning, driven as its own example for language models drives it.

Heads, MLP channels and the residual width leave together, all by the group norm (p = 2, mean over
a group), per layer, widths rounded to multiples of 4, and the head stays whole. The example's
ratio counts channels along each axis, so parameters fall faster than it says; here it is searched
until as many parameters leave as with the other methods.

As a script: `torch_pruning_peer.py N` gives it the first N layers of the grouped-query demo.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

SEARCH_STEPS = 6


def ratio_for(model: Any, ids: torch.Tensor, target: int) -> float:
    """Return the example's ratio at which about that many parameters leave the decoder layers.

    Args:
        model: A Llama with as many KV heads as query heads; left as it is.
        ids: Example tokens, (1, length).
        target: Parameters that are to leave; the nearest of the ratios tried is taken.
    """
    before = layer_parameters(model)
    low, high, best = 0.0, 0.9, (float("inf"), 0.0)
    for _ in range(SEARCH_STEPS):
        ratio = (low + high) / 2
        tried = copy.deepcopy(model)
        step_(tried, ids, ratio)
        gone = before - layer_parameters(tried)
        best = min(best, (abs(gone - target), ratio))
        low, high = (ratio, high) if gone < target else (low, ratio)
    return best[1]


def step_(model: Any, ids: torch.Tensor, ratio: float) -> None:
    """Prune once at the example's ratio, in place, then tell the model its new numbers."""
    model.config.use_cache = False  # a cache among the outputs cannot be traced
    heads = {}
    for layer in model.model.layers:
        attention = layer.self_attn
        heads[attention.q_proj] = model.config.num_attention_heads
        heads[attention.k_proj] = model.config.num_key_value_heads
        heads[attention.v_proj] = model.config.num_key_value_heads
    pruner = tp.pruner.MetaPruner(
        model,
        example_inputs=ids,
        importance=tp.importance.GroupNormImportance(p=2, group_reduction="mean")
        if hasattr(tp.importance, "GroupNormImportance")
        else tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        global_pruning=False,
        pruning_ratio=ratio,
        ignored_layers=[model.lm_head],
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=ratio,
        round_to=4,
    )
    for group in pruner.step(interactive=True):
        group.prune()
    _tell_(model)


def _tell_(model: Any) -> None:
    config = model.config
    config.hidden_size = model.lm_head.in_features
    for layer in model.model.layers:
        attention = layer.self_attn
        n_heads = attention.q_proj.out_features // attention.head_dim
        attention.num_key_value_groups = 1
        config.num_attention_heads = config.num_key_value_heads = n_heads
        config.intermediate_size = layer.mlp.gate_proj.out_features


def layer_parameters(model: Any) -> int:
    """Return the parameters of the decoder layers."""
    layers: nn.Module = model.model.layers
    return sum(parameter.numel() for parameter in layers.parameters())


def main(n_layers: int) -> None:
    """Prune the first layers of the grouped-query demo by 20 %."""
    from qpruner_core.domain.spec import ModelSpec  # noqa: PLC0415 - only this use needs ours
    from qpruner_core.models.device import pick_device  # noqa: PLC0415
    from qpruner_core.models.loader import load  # noqa: PLC0415

    model: Any = load(ModelSpec(source="demo"), pick_device("cpu")).model
    del model.model.layers[n_layers:]
    model.config.num_hidden_layers = n_layers
    step_(model, torch.arange(8).view(1, -1), 0.2)
    model(torch.arange(8).view(1, -1))


if __name__ == "__main__":
    main(int(sys.argv[1]))
