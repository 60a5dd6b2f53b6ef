"""What training takes: estimated from the layout beforehand, measured while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class _Load(NamedTuple):
    """What the memory of a pass depends on, model and settings being the same; each raises it."""

    tokens: int
    n_learned: int
    has_states: bool
    """Whether the optimiser keeps its state already."""
    has_gradients: bool
    """Whether gradients of other parts of the batch wait."""


@dataclass(slots=True, eq=False)
class PeakMemory:
    """Largest memory of training, frozen weights included.

    On CUDA the peak of the allocator. On the CPU the largest bytes of all tensors that are alive
    at a time in a forward and backward pass, temporary ones such as dequantised weights and
    gradients of logits among them: weights, optimiser state, gradients, and whatever an operation
    returned until it is let go of. The process's resident memory would say less: an allocator
    that still has freed memory at hand hides any growth.
    """

    model: nn.Module
    """With its adapters."""
    highest: int = 0
    """The largest so far; bytes. A training that goes on begins at what it had reached."""
    optimizer: torch.optim.Optimizer | None = None
    """Whose state is counted."""
    _known: list[_Load] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self._on_card:
            torch.cuda.reset_peak_memory_stats(self._device)

    @contextmanager
    def watching(self, n_tokens: int, n_learned: int) -> Iterator[None]:
        """Watch one forward and backward pass.

        On the CPU a pass is left alone where one that took no less has been watched: it would say
        nothing new, and watching takes time for every operation.

        Args:
            n_tokens: Of the pass.
            n_learned: Tokens of it that get logits.
        """
        load = self._load(n_tokens, n_learned)
        if self._on_card or any(_is_within(load, known) for known in self._known):
            yield
            return
        with _Alive(self._there()) as alive:
            yield
        self._known.append(load)
        self.highest = max(self.highest, alive.highest)

    @property
    def peak_bytes(self) -> int:
        """Bytes of the peak so far, >= 0."""
        if not self._on_card:
            return self.highest
        return max(self.highest, int(torch.cuda.max_memory_allocated(self._device)))

    def _load(self, n_tokens: int, n_learned: int) -> _Load:
        return _Load(
            n_tokens,
            n_learned,
            has_states=next(self._states(), None) is not None,
            has_gradients=next(self._gradients(), None) is not None,
        )

    def _there(self) -> Iterator[torch.Tensor]:
        """Yield what lies in memory before a pass."""
        yield from (parameter.data for parameter in self.model.parameters())
        yield from self.model.buffers()
        yield from _scales(self.model)
        yield from self._states()
        yield from self._gradients()

    def _states(self) -> Iterator[torch.Tensor]:
        if self.optimizer is not None:
            for state in self.optimizer.state.values():
                yield from (value for value in state.values() if torch.is_tensor(value))

    def _gradients(self) -> Iterator[torch.Tensor]:
        return (p.grad for p in self.model.parameters() if p.grad is not None)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def _on_card(self) -> bool:
        return self._device.type == "cuda"


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that were there and those that operations return, while they live."""

    def __init__(self, there: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, int] = {}
        self._refs: dict[int, ref[torch.UntypedStorage]] = {}
        self._now = self.highest = 0
        for tensor in there:
            self._note(tensor)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and note what it returns."""
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf)
        return found

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata  # views share one
        if place in self._sizes:
            return

        def gone(_: object) -> None:
            self._now -= self._sizes.pop(place, 0)
            self._refs.pop(place, None)

        self._sizes[place] = storage.nbytes()
        self._refs[place] = ref(storage, gone)
        self._now += storage.nbytes()
        self.highest = max(self.highest, self._now)


def _is_within(load: _Load, known: _Load) -> bool:
    return all(asked <= found for asked, found in zip(load, known, strict=True))


def _scales(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the scales of packed 4-bit weights, which are neither parameters nor buffers."""
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            yield state.absmax
            state = state.state2
