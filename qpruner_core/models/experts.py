"""Experts of a loaded model: taken apart after loading, and what is said of those that no token
reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def unreached_sentence(unreached: Sequence[str], layout: ModelLayout, n_tokens: int) -> str:
    """Return what a person has to know of experts that the calibration text never activated."""
    n_experts = sum(group.kind == "expert_channels" for group in layout.groups)
    return (
        f"{len(unreached)} of {n_experts} experts saw none of the {n_tokens} calibration tokens, "
        f"{unreached[0]!r} first: criteria that need activations or gradients score them zero, "
        "so that they leave first, and only criteria of weights alone tell them apart. Give more "
        "calibration tokens, or text closer to what the model is for."
    )
