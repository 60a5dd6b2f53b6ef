"""Whether a model fits a worker: what its weights take there, against the memory that it told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.inspection.fits import USABLE_SHARE
from qpruner_core.jobs import WorkerInfo

CPU_BYTES, CARD_BYTES = 4, 2
"""Bytes of one parameter while a worker computes: float32 on a CPU, 16 bit on a card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """A model that a worker cannot hold."""

    device: str
    """``cpu`` or the name of the card."""
    needed_bytes: int
    """Weights in the dtype that the worker computes in; estimated."""
    memory_bytes: int
    """What the device has."""


def shortage(layout: ModelLayout, workers: Sequence[WorkerInfo]) -> Shortage | None:
    """Return what the smallest worker lacks; None when all of them hold the model, or none says
    what it has.

    Any worker may take a job, so that the smallest decides.
    """
    told = [(each.memory_bytes, each) for each in workers if each.memory_bytes is not None]
    if not told:
        return None
    memory, worker = min(told, key=lambda pair: pair[0])
    needed = layout.parameters * (CPU_BYTES if worker.device == "cpu" else CARD_BYTES)
    if needed <= memory * USABLE_SHARE:
        return None
    return Shortage(device=worker.device, needed_bytes=needed, memory_bytes=memory)


def largest_layer_bytes(layout: ModelLayout) -> int:
    """Return the bytes of the largest decoder layer at 16 bit, as the outcome of a compression
    states them.
    """
    return CARD_BYTES * max(layout.layer_parameters)
