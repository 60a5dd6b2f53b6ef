"""Experts of a loaded model: taken apart after loading, and asked who of them saw a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import WeightRenaming

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.models.files.modeling_qpruner import split_fused_


def split_experts_(model: Any, layout: ModelLayout) -> None:
    """Turn the fused experts of a stock model into one gated MLP of Linears each, in place.

    A model without fused experts stays as it is. Beside the model, one fused tensor of one layer
    is held twice at most. ``save_pretrained`` goes on writing the names of the stock class.

    Args:
        model: A causal language model of transformers, as `from_pretrained` gives it.
        layout: Its layout.
    """
    if not split_fused_(model):
        return
    family = ARCHITECTURES.target(layout.model_type)
    model._weight_conversions = [
        WeightRenaming(pattern, published).reverse_transform()
        for pattern, published in getattr(family, "disk_names", ())
    ]


@torch.no_grad()
def expert_tokens(model: Any, layout: ModelLayout, ids: torch.Tensor) -> dict[str, int]:
    """Return how many tokens every expert was given: group of its channels -> tokens.

    Args:
        model: A decoder whose experts are `Experts`; it runs once over the text, without its
            head.
        layout: Its layout.
        ids: Token ids (sequences, tokens), int64; they go through the model one by one.
    """
    counts = {group.name: 0 for group in layout.groups if group.kind == "expert_channels"}

    def count(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            counts[name] += given[0].shape[0]

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(count(name)) for name in counts]
    try:
        if counts:
            for sequence in ids:
                model.get_decoder()(input_ids=sequence[None].to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def unreached_experts(model: Any, layout: ModelLayout, ids: torch.Tensor) -> tuple[str, ...]:
    """Return the experts that no token of a text reaches, as the groups of their channels.

    Arguments are those of `expert_tokens`; models without experts are not run.
    """
    counts = expert_tokens(model, layout, ids)
    return tuple(name for name, tokens in counts.items() if not tokens)


def unreached_sentence(unreached: Sequence[str], layout: ModelLayout, n_tokens: int) -> str:
    """Return what a person has to know of experts that the calibration text never activated."""
    n_experts = sum(group.kind == "expert_channels" for group in layout.groups)
    return (
        f"{len(unreached)} of {n_experts} experts saw none of the {n_tokens} calibration tokens, "
        f"{unreached[0]!r} first: criteria that need activations or gradients score them zero, "
        "so that they leave first, and only criteria of weights alone tell them apart. Give more "
        "calibration tokens, or text closer to what the model is for."
    )
