"""What training takes: estimated from the layout beforehand, measured while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import ref

import torch
from torch import nn

from qpruner_core.catalog import precision_formats, state_bytes_of
from qpruner_core.domain.device_memory import TrainingLoad, training_bytes_estimate
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovery import RecoverySpec


def estimated_bytes(
    layout: ModelLayout, plan: PrecisionPlan, spec: RecoverySpec, compute_dtype: torch.dtype
) -> int:
    """Return the estimated bytes of training, frozen weights included.

    The formula stands in `domain.device_memory.training_bytes_estimate`.
    """
    load = TrainingLoad.of(spec, compute_dtype.itemsize, state_bytes_of(spec.optimizer))
    return training_bytes_estimate(layout, plan, precision_formats(), load).total


class _Kept(NamedTuple):
    """A tensor that autograd keeps until its gradient has been passed on."""

    place: int
    """Where its storage begins; views share one."""
    size: int
    """Of the storage; bytes."""
    tensor: ref[torch.Tensor]
    """Dead when autograd has let go of it."""


@dataclass(slots=True, eq=False)
class PeakMemory:
    """Largest memory of training, frozen weights included.

    On CUDA the peak of the allocator. On the CPU the bytes of all tensors that are held at the end
    of a forward pass, or of computing a piece of the model again: weights, optimiser state,
    gradients that are there by then, and what autograd keeps for the backward pass. The process's
    resident memory would say less: an allocator that still has freed memory at hand hides any
    growth.
    """

    model: nn.Module
    """With its adapters."""
    highest: int = 0
    """The largest so far; bytes. A training that goes on begins at what it had reached."""
    optimizer: torch.optim.Optimizer | None = None
    """Whose state is counted."""
    _weights: Mapping[int, int] = field(init=False)
    _kept: list[_Kept] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        model = self.model
        self._weights = _storages((*model.parameters(), *model.buffers(), *_scales(model)))
        if self._on_card:
            torch.cuda.reset_peak_memory_stats(self._device)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watch one forward pass that builds a graph."""
        if self._on_card:
            yield
            return
        with _watched() as self._kept:
            yield
        self._count(self._kept)

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Watch a piece being computed again beside what is still kept by then."""
        if self._on_card:
            yield
            return
        with _watched() as again:
            yield
        self._count((*self._kept, *again))

    @property
    def peak_bytes(self) -> int:
        """Bytes of the peak so far, >= 0."""
        if not self._on_card:
            return self.highest
        return max(self.highest, int(torch.cuda.max_memory_allocated(self._device)))

    def _count(self, kept: Iterable[_Kept]) -> None:
        gradients = (p.grad for p in self.model.parameters() if p.grad is not None)
        held = {**self._weights, **_storages((*self._states(), *gradients))}
        held |= {each.place: each.size for each in kept if each.tensor() is not None}
        self.highest = max(self.highest, sum(held.values()))

    def _states(self) -> Iterator[torch.Tensor]:
        if self.optimizer is not None:
            for state in self.optimizer.state.values():
                yield from (value for value in state.values() if torch.is_tensor(value))

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def _on_card(self) -> bool:
        return self._device.type == "cuda"


@contextmanager
def _watched() -> Iterator[list[_Kept]]:
    """Note every tensor that autograd keeps in a block."""
    kept: list[_Kept] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        ((place, size),) = _storages((tensor,)).items()
        kept.append(_Kept(place, size, ref(tensor)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


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
