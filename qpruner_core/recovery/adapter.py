"""The adapter on disk: PEFT's own two files, written whole."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict
from safetensors.torch import save_file

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ADAPTER = "default"
"""PEFT's name of the one adapter a model carries here."""


def save_adapter(model: Any, folder: Path) -> int:
    """Write the adapter of a PEFT model into a folder and return the bytes of its weights.

    Each file is written under another name first, so that a reader never sees half of one. The
    folder opens with ``PeftModel.from_pretrained(model, folder)``.
    """
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        _write(model, partial)
        folder.mkdir(exist_ok=True)
        for name in (WEIGHTS, CONFIG):
            os.replace(partial / name, folder / name)
    finally:
        shutil.rmtree(partial)
    return (folder / WEIGHTS).stat().st_size


def _write(model: Any, folder: Path) -> None:
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors makes its files private: give them the permissions of the folder instead.
    (folder / WEIGHTS).chmod(folder.stat().st_mode & 0o666)
    # Loaded for inference, and without the path that the base model had on this machine.
    config = model.peft_config[ADAPTER]
    base, inference = config.base_model_name_or_path, config.inference_mode
    config.base_model_name_or_path, config.inference_mode = None, True
    config.save_pretrained(str(folder))
    config.base_model_name_or_path, config.inference_mode = base, inference
