"""What was taken from the weights for an adapter, on disk beside it: the adapter belongs to the
packed weights of what was left.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file

from qpruner_core.errors import NotReadyError
from qpruner_core.models.tensor_file import write_tensors
from qpruner_core.recovery.adapter import full_disk_as_sentence
from qpruner_core.recovery.initialization import Factors

SHIFT = "shift.safetensors"
"""Name of the file in the adapter's folder."""
_A, _B = ".lora_A", ".lora_B"


def save_shift(shifts: Mapping[str, Factors], folder: Path) -> str:
    """Write the factors that were taken and return the file's path; empty where there are none.

    Args:
        shifts: Linear name -> factors, on the host.
        folder: The adapter's folder, which is there.

    Raises:
        StorageFullError: The disk does not hold them.
    """
    path = folder / SHIFT
    if not shifts:
        path.unlink(missing_ok=True)
        return ""
    tensors = {name + _A: factors.a.contiguous() for name, factors in shifts.items()}
    tensors |= {name + _B: factors.b.contiguous() for name, factors in shifts.items()}
    partial = folder / f".{SHIFT}.partial.safetensors"
    try:
        with full_disk_as_sentence("shift of the weights", folder):
            write_tensors(tensors, partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return str(path)


def read_shift(path: Path) -> dict[str, Factors]:
    """Return Linear name -> the factors that were taken from its weight.

    Raises:
        NotReadyError: The file is gone.
    """
    if not path.is_file():
        raise NotReadyError(
            f"The adapter was trained on shifted weights, but {path}, which says how, is gone. "
            f"Run the recovery again, or export without the adapter."
        )
    tensors = load_file(path)
    names = [key.removesuffix(_A) for key in tensors if key.endswith(_A)]
    return {name: Factors(a=tensors[name + _A], b=tensors[name + _B]) for name in names}
