"""What training takes: estimated from the layout beforehand, measured while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.device_memory import TrainingLoad, training_bytes_estimate
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovery import RecoverySpec


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
    """Largest memory of training, frozen weights included.

    On CUDA the peak of the allocator. On the CPU the bytes of all tensors that are held at the end
    of a forward pass: weights, optimiser state, and what autograd keeps for the backward pass. The
    process's resident memory would say less: an allocator that still has freed memory at hand
    hides any growth.
    """

    def __init__(self, model: nn.Module) -> None:
        self._device = next(model.parameters()).device
        self._weights = _storages((*model.parameters(), *model.buffers(), *_scales(model)))
        self._highest = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    @contextmanager
    def forward(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Watch one forward pass that builds a graph."""
        if self._device.type == "cuda":
            yield
            return
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.update(_storages((tensor,)))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        state = (v for each in optimizer.state.values() for v in each.values())
        held = self._weights | kept | _storages(v for v in state if torch.is_tensor(v))
        self._highest = max(self._highest, sum(held.values()))

    @property
    def peak_bytes(self) -> int:
        """Bytes of the peak so far, >= 0."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return self._highest


def _scales(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the scales of packed 4-bit weights, which are neither parameters nor buffers."""
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            yield state.absmax
            state = state.state2


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Return where each tensor's storage begins -> its bytes; views share one."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
