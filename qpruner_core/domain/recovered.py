"""What recovery brought back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.recovery import RecoverySpec

STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryOutcome:
    """Slot of *recover*: what training brought back."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    spec: RecoverySpec
    before: Metrics
    after: Metrics
    """With the adapter; ``weight_bytes`` counts the adapter too."""
    losses: tuple[float, ...]
    """Training loss per step; nats per token."""
    adapter: str
    """Artifact folder with the PEFT adapter (safetensors); empty when recovery was skipped."""
    trainable_parameters: int
    estimated_memory_bytes: int
    """Training memory estimated beforehand."""
    peak_memory_bytes: int | None
    """Measured: peak of the CUDA allocator, or bytes of all tensors held on CPU; None if
    unknown.
    """
    shift: str = ""
    """Artifact (safetensors): Linear name + ``.lora_A`` (rank, in) and ``.lora_B`` (out, rank);
    their product times the adapter's scaling was taken from the weight before it was quantised, so
    that the adapter belongs to *those* packed weights. Empty where they are the plan's own.
    """
    tokens_per_second: float | None = None
    """Training tokens read per second, median over the steps; None when skipped and in older
    records."""
    remarks: tuple[str, ...] = ()
    """Sentences for the person, such as that training was stopped and can go on."""

    @property
    def is_complete(self) -> bool:
        """Whether all steps that were asked for were taken."""
        return len(self.losses) >= self.spec.steps
