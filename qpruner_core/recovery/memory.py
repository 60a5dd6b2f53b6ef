"""What training takes: estimated from the layout beforehand, measured while it runs."""

from __future__ import annotations

import psutil
import torch

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.device_memory import TrainingLoad, training_bytes_estimate
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.spec import RecoverySpec


def estimated_bytes(
    layout: ModelLayout, plan: PrecisionPlan, spec: RecoverySpec, compute_dtype: torch.dtype
) -> int:
    """Return the estimated bytes of training, frozen weights included.

    Packed weights + adapters with gradients and Adam's moments + activations kept for the backward
    pass + the largest weight while it is dequantised; the formula stands in
    `domain.device_memory.training_bytes_estimate`.
    """
    load = TrainingLoad(
        rank=spec.rank,
        batch_size=spec.batch_size,
        sequence_length=spec.sequence_length,
        compute_bytes=compute_dtype.itemsize,
    )
    return training_bytes_estimate(layout, plan, precision_formats(), load).total


class PeakMemory:
    """Largest memory since it was made.

    On CUDA the peak of the allocator, frozen weights included. On the CPU the growth of resident
    memory at the moments of `sample`: the weights were there before and do not count, and memory
    that the process had freed but not given back hides as much growth.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._start = self._resident()
        self._highest = self._start
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def sample(self) -> None:
        """Look at resident memory; call it where it is largest, after a forward pass."""
        if self._device.type != "cuda":
            self._highest = max(self._highest, self._resident())

    @property
    def peak_bytes(self) -> int:
        """Bytes of the peak so far, >= 0."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return self._highest - self._start

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)
