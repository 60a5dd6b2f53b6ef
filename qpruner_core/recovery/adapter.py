"""The adapter on disk: PEFT's own two files, written whole."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict

from qpruner_core.errors import StorageFullError
from qpruner_core.models.tensor_file import write_tensors

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ADAPTER = "default"
"""PEFT's name of the one adapter a model carries here."""


def save_adapter(model: Any, folder: Path) -> int:
    """Write the adapter of a PEFT model into a folder and return the bytes of its weights.

    Each file is written under another name first, so that a reader never sees half of one. The
    folder opens with ``PeftModel.from_pretrained(model, folder)``.

    Raises:
        StorageFullError: The disk does not hold it; an adapter that was there stays as it was.
    """
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    try:
        with full_disk_as_sentence("trained adapter", folder):
            partial.mkdir(parents=True)
            _write(model, partial)
            folder.mkdir(exist_ok=True)
        for name in (WEIGHTS, CONFIG):
            os.replace(partial / name, folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return (folder / WEIGHTS).stat().st_size


@contextmanager
def full_disk_as_sentence(what: str, folder: Path) -> Iterator[None]:
    """Say in a sentence that the disk does not hold what a block writes into a folder.

    Raises:
        StorageFullError: The disk is full, or the person's share of it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFullError(
            f"The {what} could not be saved in {folder}: the disk is full. Free some space "
            f"(deleting runs on the Jobs page helps), then recover again."
        ) from error


def _write(model: Any, folder: Path) -> None:
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_tensors(tensors, folder / WEIGHTS)
    # Loaded for inference, and without the path that the base model had on this machine.
    config = model.peft_config[ADAPTER]
    base, inference = config.base_model_name_or_path, config.inference_mode
    config.base_model_name_or_path, config.inference_mode = None, True
    config.save_pretrained(str(folder))
    config.base_model_name_or_path, config.inference_mode = base, inference
