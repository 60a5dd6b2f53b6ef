"""`config.json` of a pruned model: written from its layout, so that it cannot disagree with the
weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch

from qpruner_core.domain.layout import WIDTHS_KEY, ModelLayout, opens_plainly

CLASS_NAMES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""``model_type`` -> class in transformers; ``QPruner`` + this in `files/modeling_qpruner.py`."""
_STORAGE = {"F16": torch.float16, "BF16": torch.bfloat16}


def group_widths(layout: ModelLayout) -> dict[str, int]:
    """Return group name -> units, as ``qpruner_widths`` keeps them."""
    return {group.name: group.n_units for group in layout.groups}


def layer_widths(layout: ModelLayout) -> dict[str, list[int]]:
    """Return config key -> its value in every layer of the pruned model."""
    queries_per_kv = layout.n_heads // layout.n_kv_heads
    kv_heads = [group.n_units for group in layout.groups if group.kind == "kv_heads"]
    channels = [group.n_units for group in layout.groups if group.kind == "mlp_channels"]
    return {
        "num_attention_heads": [heads * queries_per_kv for heads in kv_heads],
        "num_key_value_heads": kv_heads,
        "intermediate_size": channels,
    }


def storage_dtype(card_dtype: str, tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """Return the 16-bit dtype of what no precision plan names: the model's own.

    A model of 32 bit gets float16 if that holds all its values, else bfloat16.

    Args:
        card_dtype: Dtype of the original files as safetensors names it, such as ``F16``.
        tensors: Embeddings, norms and so on; any float dtype.
    """
    if card_dtype in _STORAGE:
        return _STORAGE[card_dtype]
    exact = all(bool((t == t.to(torch.float16).to(t.dtype)).all()) for t in tensors)
    return torch.float16 if exact else torch.bfloat16


def config_values(
    model: Any, dense: ModelLayout, pruned: ModelLayout, dtype: torch.dtype
) -> dict[str, Any]:
    """Return what goes into ``config.json``, without ``auto_map`` and ``quantization_config``.

    Widths that the plain class opens stand under the config's own keys; all others stay dense
    there, as stock configs check them before any layer is resized, and ``qpruner_widths`` lists
    them.
    """
    values: dict[str, Any] = json.loads(model.config.to_json_string())
    for key in ("quantization_config", "auto_map", WIDTHS_KEY, "torch_dtype", "_name_or_path"):
        values.pop(key, None)
    plain = opens_plainly(pruned)
    widths = layer_widths(pruned if plain else dense)
    values |= {key: per_layer[0] for key, per_layer in widths.items()}
    if not plain:
        # The dense model may itself be one whose layers differ: its stated heads open plainly.
        values |= {"num_attention_heads": dense.n_heads, "num_key_value_heads": dense.n_kv_heads}
        values[WIDTHS_KEY] = group_widths(pruned)
    return values | {
        "architectures": [CLASS_NAMES[pruned.model_type]],
        "model_type": pruned.model_type,
        "head_dim": pruned.head_dim,
        "num_hidden_layers": pruned.n_layers,
        "dtype": str(dtype).removeprefix("torch."),
    }


def auto_map(model_type: str, module: str) -> dict[str, str]:
    """Return the config entry that names the class which stock transformers takes from a file of
    the folder.
    """
    return {"AutoModelForCausalLM": f"{module}.QPruner{CLASS_NAMES[model_type]}"}
