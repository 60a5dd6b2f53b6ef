"""How tensors are written to a safetensors file, for whatever room saves some."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors into a new file that whoever may read its folder can read.

    Args:
        tensors: Name -> contiguous tensor on the host; none shares memory with another.
        path: The file, ending in ``.safetensors``.

    Raises:
        OSError: What the system answered, such as a full disk (``errno.ENOSPC``).
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        # safetensors hides the error of the system in its text.
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error
    # safetensors makes its files private: give them the permissions of the folder instead.
    path.chmod(path.parent.stat().st_mode & 0o666)
