"""Named in ``auto_map`` of a mixed-precision checkpoint: the classes of `modeling_qpruner` once
the reader of packed weights is registered with transformers.
"""

from __future__ import annotations

from typing import Any

from .modeling_qpruner import model_class
from .quantizer_qpruner import METHOD

__all__ = ["METHOD", "model_class"]


def __getattr__(name: str) -> Any:
    """Make the class that ``auto_map`` names when it is asked for."""
    return model_class(name)
