"""Which common cards hold a model, to run it and to fine-tune it: estimated from its layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qpruner_core.domain.device_memory import (
    TrainingLoad,
    inference_bytes_estimate,
    training_bytes_estimate,
)
from qpruner_core.domain.footprint import PrecisionFormat
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan

_GIB = 2**30
USABLE_SHARE = 0.92
"""Share of a card's memory left beside driver, CUDA context and allocator slack; an assumption, in
(0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A card and its memory."""

    name: str
    """As its maker calls it, without the maker."""
    memory_bytes: int
    """Memory on the card; bytes."""


# Memory as NVIDIA's product pages and data sheets state it for each card.
GPUS = tuple(
    Gpu(name=name, memory_bytes=size * _GIB)
    for name, size in (
        ("RTX 4060", 8),
        ("RTX 3060", 12),
        ("T4", 16),
        ("RTX 4060 Ti 16GB", 16),
        ("RTX 4090", 24),
        ("L4", 24),
        ("RTX 5090", 32),
        ("A100 40GB", 40),
        ("L40S", 48),
        ("H100 80GB", 80),
        ("H200", 141),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether one card holds one model with every Linear at one precision; all bytes estimated."""

    gpu: Gpu
    precision: str
    """Catalogue name."""
    inference_bytes: int
    """Needed to run the model on a prompt of 2048 tokens."""
    training_bytes: int
    """Needed to fine-tune it with LoRA."""

    @property
    def runs(self) -> bool:
        """Whether the card holds what running needs."""
        return self.inference_bytes <= self.gpu.memory_bytes * USABLE_SHARE

    @property
    def trains(self) -> bool:
        """Whether the card holds what LoRA fine-tuning needs."""
        return self.training_bytes <= self.gpu.memory_bytes * USABLE_SHARE


def gpu_fits(
    layout: ModelLayout,
    formats: Mapping[str, PrecisionFormat],
    load: TrainingLoad | None = None,
    gpus: tuple[Gpu, ...] = GPUS,
) -> tuple[Fit, ...]:
    """Return one `Fit` per card and precision, cards by memory, precisions in the order of
    ``formats``.
    """
    needed = {}
    for precision in formats:
        plan = PrecisionPlan.uniform(layout, precision)
        training = training_bytes_estimate(layout, plan, formats, load or TrainingLoad())
        needed[precision] = (inference_bytes_estimate(layout, plan, formats), training.total)
    return tuple(
        Fit(gpu=gpu, precision=name, inference_bytes=runs, training_bytes=trains)
        for gpu in gpus
        for name, (runs, trains) in needed.items()
    )
