"""One plan recovered: packed as it was planned, trained with an adapter, measured before and
after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import OnProgress
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.evaluation import Suite
from qpruner_core.pipeline.materials import Materials
from qpruner_core.quantization.packing import pack_, packed_bytes
from qpruner_core.recovery.lora import recover
from qpruner_core.store.kept import kept_folder
from qpruner_core.store.records import RunStore

OF_THE_LINE = "adapter"
"""Name of the adapter that the record of a run holds; all others lie beside the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which plan is recovered, and how."""

    plan: PrecisionPlan
    """Precision of every Linear of the pruned model."""
    spec: RecoverySpec
    """How to train."""
    name: str = OF_THE_LINE
    """Where adapter and checkpoint lie; whoever asks for the same name again goes on from the
    checkpoint, or replaces the adapter."""
    before: Metrics | None = None
    """What the plan measures on the same suite without training; None: it is measured."""
    hold_16_bit: tuple[str, ...] = ()
    """Precisions whose Linears hold their 16-bit weight besides the packed one, as the public
    script's 8-bit layers do; memory that is measured counts it."""


def recover_plan(
    store: RunStore,
    record: RunRecord,
    materials: Materials,
    asked: Asked,
    suite: Suite,
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
) -> RecoveryOutcome:
    """Pack a plan, train an adapter on it and measure both.

    Args:
        store: Where adapter and checkpoint go.
        record: A run that has been pruned.
        materials: Of the run; its pruned model is handed over.
        asked: The plan and how it is trained.
        suite: What before and after are measured on.
        on_progress: Told after every step.
        should_stop: Asked before every step; what was learned until then is kept.

    Raises:
        NonFiniteLossError: A loss is not a number; the message names the step.
        DataTooShortError: There is nothing to train on.
        NotReadyError: The run has not been pruned.
    """
    layout = materials.layout(asked.plan.levels)
    training = materials.training(asked.spec)
    taken = materials.take_pruned(asked.plan.levels)
    pack_(taken.model, layout, asked.plan, taken.device.compute_dtype)
    size = packed_bytes(taken.model)

    def evaluate(model: nn.Module, adapter_bytes: int = 0) -> Metrics:
        return suite.evaluate(
            model, weight_bytes=size + adapter_bytes, device_name=taken.device.name
        )

    if asked.name == OF_THE_LINE:
        folder = store.artifact_folder(record.run_id, OF_THE_LINE)
    else:
        folder = kept_folder(store, record.run_id, asked.name)
    recovered = recover(
        taken.model,
        layout,
        asked.plan,
        asked.spec,
        training,
        evaluate=evaluate,
        folder=folder,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    outcome = RecoveryOutcome(
        spec=asked.spec,
        before=recovered.before,
        after=recovered.after,
        losses=recovered.losses,
        adapter=recovered.adapter,
        trainable_parameters=recovered.trainable_parameters,
        estimated_memory_bytes=recovered.estimated_memory_bytes,
        peak_memory_bytes=recovered.peak_memory_bytes,
    )
    return replace(outcome, remarks=_remarks(outcome))


def _remarks(outcome: RecoveryOutcome) -> tuple[str, ...]:
    """Return what the person should know of a training, one sentence each."""
    if outcome.is_complete:
        return ()
    return (
        f"Training was stopped after {len(outcome.losses)} of {outcome.spec.steps} steps; train "
        f"on to go on from there.",
    )
