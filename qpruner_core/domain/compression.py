"""What came of a model that was pruned and written layer by layer, without being loaded whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.spec import RunSpec

STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionOutcome:
    """The folder that was written and how it was decided; nothing of it was evaluated."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    spec: RunSpec
    """What was asked for."""
    path: str
    """Folder; absolute."""
    pruning: PruningPlan
    layout: ModelLayout
    """Layout of the pruned model."""
    plan: PrecisionPlan
    """Precision of every Linear: asked for, or *predicted* to be the best under the budget."""
    parameters_before: int
    parameters_after: int
    planned_bytes: int
    """Bytes implied by the plan's formats."""
    size_bytes: int
    """Bytes of all weight files on disk."""
    largest_layer_bytes: int
    """Bytes of the largest decoder layer at 16 bit, before pruning."""
    peak_memory_bytes: int | None
    """Most memory that the process held while this was made, with libraries and whatever else it
    held before; resident bytes on the host. None where the system counts from its start alone."""
    device: str
    """Where calibration text went through the layers."""
    n_tokens: int
    """Calibration tokens seen; 0 where neither criterion nor budget looked at any."""
    files: Mapping[str, str]
    """Path inside the folder -> SHA-256."""
    seconds: Mapping[str, float]
    """Wall time by pass: ``score``, ``compensate``, ``quantize`` and ``export``; seconds."""
    warnings: tuple[str, ...] = ()
    """Sentences for the person."""
