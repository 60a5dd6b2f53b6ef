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
    worker = smallest(workers)
    if worker is None:
        return None
    needed = layout.parameters * (CPU_BYTES if worker.device == "cpu" else CARD_BYTES)
    if holds(worker, needed):
        return None
    return Shortage(
        device=worker.device, needed_bytes=needed, memory_bytes=worker.memory_bytes or 0
    )


def smallest(workers: Sequence[WorkerInfo]) -> WorkerInfo | None:
    """Return the worker with the least memory; None when none says what it has."""
    told = [each for each in workers if each.memory_bytes is not None]
    return min(told, key=lambda each: each.memory_bytes or 0, default=None)


def holds(worker: WorkerInfo, needed_bytes: int) -> bool:
    """Whether so many bytes fit what a worker's device leaves beside driver and allocator."""
    return needed_bytes <= (worker.memory_bytes or 0) * USABLE_SHARE


def largest_layer_bytes(layout: ModelLayout) -> int:
    """Return the bytes of the largest decoder layer at 16 bit, as the outcome of a compression
    states them.
    """
    return CARD_BYTES * max(layout.layer_parameters)
