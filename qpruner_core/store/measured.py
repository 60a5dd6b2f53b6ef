"""What was measured of one plan, as it is kept among the values of a run.

The name of such a value tells what its numbers depend on and which plan they are of, so that a
reader who knows neither weights nor texts finds all that was measured of a plan.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import MEASURED
from qpruner_core.store.records import RunStore

STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What was measured of one plan."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    key: str
    """`PrecisionPlan.key` of the plan."""
    study: str
    """Name of the study it was measured for."""
    metrics: Metrics | None
    """None where the plan was stopped on a part of the text."""
    sequence_losses: tuple[float, ...]
    """Loss of every sequence that was read; nats per token."""


def value_name(key: str, plan: PrecisionPlan) -> str:
    """Return the name under which a plan's numbers are kept.

    Args:
        key: What they depend on besides the plan; ``*`` for anything.
        plan: The plan.
    """
    digest = hashlib.sha256(plan.key.encode()).hexdigest()[:16]
    return f"{MEASURED}{key}-{digest}"


def sequence_losses(
    store: RunStore, run_id: str, plan: PrecisionPlan, metrics: Metrics
) -> tuple[float, ...]:
    """Return the loss of every evaluation sequence behind a plan's metrics; nats per token, empty
    where they were not kept. It reads a file: for plans that are compared, not for all of them.
    """
    for name in store.value_names(run_id, value_name("*", plan)):
        kept = store.read_value(run_id, name, Kept)
        if kept is None or kept.key != plan.key or kept.metrics is None:
            continue
        if kept.metrics.loss == metrics.loss:  # not of another text or cut
            return kept.sequence_losses
    return ()
