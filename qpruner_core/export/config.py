"""`config.json` of a pruned model: written from its layout, so that it cannot disagree with the
weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.models.files.modeling_qpruner import PREFIX
from qpruner_core.models.telling import OWN_KEYS, config_entries

_STORAGE = {"F16": torch.float16, "BF16": torch.bfloat16}


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


def config_values(model: Any, pruned: ModelLayout, dtype: torch.dtype) -> dict[str, Any]:
    """Return what goes into ``config.json``, without ``auto_map`` and ``quantization_config``.

    Widths that the plain class opens stand under the config's own keys; all others stay dense
    there, as stock configs check them before any layer is resized, and our own keys list what
    differs (`models.telling`).

    Args:
        model: The pruned model, whose config surgery has told.
        pruned: Its layout.
        dtype: Dtype of what no precision plan names.
    """
    values: dict[str, Any] = json.loads(model.config.to_json_string())
    dropped = ("quantization_config", "auto_map", "torch_dtype", "_name_or_path", *OWN_KEYS)
    for key in dropped:
        values.pop(key, None)
    architecture = ARCHITECTURES.target(pruned.model_type)
    return (
        values
        | config_entries(pruned)
        | {
            "architectures": [architecture.class_name(pruned.model_type)],
            "model_type": pruned.model_type,
            "dtype": str(dtype).removeprefix("torch."),
        }
    )


def auto_map(model_type: str, module: str) -> dict[str, str]:
    """Return the config entry that names the class which stock transformers takes from a file of
    the folder.
    """
    name = ARCHITECTURES.target(model_type).class_name(model_type)
    return {"AutoModelForCausalLM": f"{module}.{PREFIX}{name}"}
