"""Memory that ran out, said in a sentence that names what helps."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from qpruner_core.errors import DeviceMemoryError

OUT_OF_MEMORY = (
    "The device ran out of memory while measuring this plan. Evaluate with shorter sequences or "
    "fewer items, or on a device with more memory."
)
OUT_OF_MEMORY_IN_TRAINING = (
    "The device ran out of memory while training or measuring this plan. Train with a smaller "
    "micro-batch, with gradient checkpointing, with an 8-bit optimiser or on shorter sequences, "
    "or on a device with more memory."
)
OUT_OF_MEMORY_BESIDE = (
    "The device ran out of memory while measuring this model. Ask for a smaller batch, a shorter "
    "window or context, or measure on a device with more memory."
)
_CPU_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory")
"""What torch says when the CPU's allocator gets none; it has no error of its own for that."""

P = ParamSpec("P")
R = TypeVar("R")


def out_of_memory_as(sentence: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator under which running out of memory raises `DeviceMemoryError`.

    Args:
        sentence: What the person reads.
    """

    def decorate(work: Callable[P, R]) -> Callable[P, R]:
        @wraps(work)
        def guarded(*given: P.args, **named: P.kwargs) -> R:
            try:
                return work(*given, **named)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler: the error holds on to the tensors of the frames it passed.
            free_memory()
            raise DeviceMemoryError(sentence)

        return guarded

    return decorate


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a card or on the CPU."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in _CPU_OUT_OF_MEMORY
    )


def free_memory() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
