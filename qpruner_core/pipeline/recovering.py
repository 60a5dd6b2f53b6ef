"""One plan recovered: packed as it was planned, trained with an adapter, measured before and
after.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import OnProgress
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.evaluation import Suite
from qpruner_core.models.loader import LoadedModel
from qpruner_core.pipeline.fingerprint import Fingerprints
from qpruner_core.pipeline.materials import Materials
from qpruner_core.pipeline.out_of_memory import OUT_OF_MEMORY_IN_TRAINING, out_of_memory_as
from qpruner_core.pipeline.remembering import Remembered
from qpruner_core.pipeline.starting import (
    Shifts,
    shifts_of,
    starts_of,
    take_,
    with_scalings,
)
from qpruner_core.quantization.packing import pack_, packed_bytes
from qpruner_core.recovery.checkpoints import remove_checkpoint
from qpruner_core.recovery.lora import Recovered, recover
from qpruner_core.recovery.shifts import save_shift
from qpruner_core.store.kept import kept_folder
from qpruner_core.store.records import RunStore

OF_THE_LINE = "adapter"
"""Name of the adapter that the record of a run holds; all others lie beside the line."""
HELD = "held_16_bit"
"""Name of the buffer with a weight that is held at 16 bit besides."""


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
    script's 8-bit layers do; all bytes of the outcome count it."""


@out_of_memory_as(OUT_OF_MEMORY_IN_TRAINING)
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

    Training that was killed, or stopped before its last step, goes on from its last checkpoint
    where all that it depends on is still the same. The checkpoint stays until the caller, who has
    written the outcome into a record, calls `end_training`.

    Args:
        store: Where adapter and checkpoint go.
        record: A run that has been pruned.
        materials: Of the run; its pruned model is handed over.
        asked: The plan and how it is trained.
        suite: What before and after are measured on.
        on_progress: Told after every step.
        should_stop: Asked before every step; what was learned until then is kept. Asked, too,
            while it is found where the adapters start.

    Raises:
        NonFiniteLossError: A loss is not a number; the message names the step.
        DataTooShortError: There is nothing to train on.
        NotReadyError: The run has not been pruned.
        StoppedError: It was asked to stop before its training began.
        DeviceMemoryError: Memory ran out; a checkpoint that was there stays.
    """
    plan, spec = asked.plan, asked.spec
    layout = materials.layout(plan.levels)
    training = materials.training(spec)
    dense = materials.pruned(plan.levels)
    starts = starts_of(dense.model, layout, plan, spec, on_progress, should_stop)
    shifts = with_scalings(shifts_of(starts), layout, spec)
    if asked.before is None and shifts:
        asked = replace(asked, before=_unshifted(materials, asked, suite))
    packed = packed_plan(materials, asked, shifts)
    folder, checkpoint = _folders(store, record.run_id, asked.name)

    def evaluate(model: nn.Module, adapter_bytes: int = 0) -> Metrics:
        size = packed.size_bytes + adapter_bytes
        name = packed.loaded.device.name
        return suite.evaluate(model, weight_bytes=size, device_name=name)

    recovered = recover(
        packed.loaded.model,
        layout,
        plan,
        spec,
        training,
        evaluate=evaluate,
        folder=folder,
        starts=starts,
        checkpoint=checkpoint,
        identity=_identity(store, record, materials, asked),
        before=_with_bytes(asked.before, packed.size_bytes),
        on_progress=on_progress,
        should_stop=should_stop,
    )
    shift = save_shift(shifts_of(starts), folder) if recovered.adapter else ""
    return _outcome(asked, recovered, packed.held_bytes, shift)


def end_training(
    store: RunStore, run_id: str, outcome: RecoveryOutcome, name: str = OF_THE_LINE
) -> None:
    """Remove the checkpoint of a training that is complete; its outcome is in a record by now.

    Args:
        store: As for `recover_plan`.
        run_id: The run.
        outcome: Of the training; of one that was stopped the checkpoint stays.
        name: As in `Asked`.
    """
    if outcome.is_complete:
        remove_checkpoint(_checkpoint(store, run_id, name))


def known_before(
    store: RunStore, record: RunRecord, materials: Materials, plan: PrecisionPlan
) -> Metrics | None:
    """Return what the search measured of a plan, if it is what the plan would measure today on the
    suite of the trials, untrained; None where it may not be.
    """
    if record.spec.search.recover_steps:
        return None
    arithmetic = f"{materials.device.name}, as usual"
    key = Fingerprints(store, record.run_id).measured(record, arithmetic)
    known = Remembered(store, record.run_id, key).read(plan)
    return known.metrics if known is not None else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """A model packed by a plan."""

    loaded: LoadedModel
    size_bytes: int
    """Of its weights, held ones included."""
    held_bytes: int
    """Of weights held at 16 bit besides."""


def packed_plan(materials: Materials, asked: Asked, shifts: Shifts) -> Packed:
    """Take the pruned model over and pack it, less what the adapters begin with.

    Args:
        materials: Of a run that has been pruned.
        asked: The plan, and what is held at 16 bit besides; how it is trained has no say.
        shifts: Linear name -> what is taken from its weight before it is packed.
    """
    layout = materials.layout(asked.plan.levels)
    loaded = materials.take_pruned(asked.plan.levels)
    held: dict[str, torch.Tensor] = {}

    def prepare(name: str, dense: nn.Linear | Conv1D) -> None:
        if asked.plan.precisions[name] in asked.hold_16_bit:
            half = loaded.device.compute_dtype.itemsize == 2
            dtype = loaded.device.compute_dtype if half else torch.bfloat16
            held[name] = dense.weight.detach().to(dtype)
        if name in shifts:
            take_(dense, *shifts[name])

    pack_(loaded.model, layout, asked.plan, loaded.device.compute_dtype, prepare)
    for name, weight in held.items():
        module = loaded.model.get_submodule(name)
        module.register_buffer(HELD, weight, persistent=False)
    held_bytes = sum(weight.nbytes for weight in held.values())
    size = packed_bytes(loaded.model) + held_bytes
    return Packed(loaded=loaded, size_bytes=size, held_bytes=held_bytes)


def _unshifted(materials: Materials, asked: Asked, suite: Suite) -> Metrics:
    """Measure the plan as the search would, on weights from which nothing is taken.

    The pruned model is packed for it and built again for the training: two of them at a time
    would need the memory of both.
    """
    packed = packed_plan(materials, asked, {})
    device = packed.loaded.device.name
    return suite.evaluate(packed.loaded.model, weight_bytes=packed.size_bytes, device_name=device)


def _folders(store: RunStore, run_id: str, name: str) -> tuple[Path, Path]:
    """Return where an adapter goes, and where its training keeps checkpoints."""
    checkpoint = _checkpoint(store, run_id, name)
    if name == OF_THE_LINE:
        return store.artifact_folder(run_id, name), checkpoint
    return kept_folder(store, run_id, name), checkpoint


def _checkpoint(store: RunStore, run_id: str, name: str) -> Path:
    return kept_folder(store, run_id, f"{name}-checkpoint")


def _identity(store: RunStore, record: RunRecord, materials: Materials, asked: Asked) -> str:
    """Return what the weights of a plan, and what is held beside them, depend on besides it, as
    text.
    """
    plan = asked.plan
    parts = {
        "weights": Fingerprints(store, record.run_id).weights(record),
        "cut": asdict(materials.pruning(plan.levels)),
        "biases": record.prune.biases if record.prune is not None and not plan.levels else "",
    }
    if asked.hold_16_bit:
        # A checkpoint knows the peak of its training, held weights included.
        parts["held"] = list(asked.hold_16_bit)
    return json.dumps(parts, sort_keys=True, default=list)


def _with_bytes(before: Metrics | None, weight_bytes: int) -> Metrics | None:
    return None if before is None else replace(before, weight_bytes=weight_bytes)


def _outcome(asked: Asked, recovered: Recovered, held_bytes: int, shift: str) -> RecoveryOutcome:
    return RecoveryOutcome(
        spec=asked.spec,
        before=recovered.before,
        after=recovered.after,
        losses=recovered.losses,
        adapter=recovered.adapter,
        trainable_parameters=recovered.trainable_parameters,
        estimated_memory_bytes=recovered.estimated_memory_bytes + held_bytes,
        peak_memory_bytes=recovered.peak_memory_bytes,
        shift=shift,
        tokens_per_second=recovered.tokens_per_second,
        remarks=(*_stopped(asked.spec, len(recovered.losses)), *recovered.remarks),
    )


def _stopped(spec: RecoverySpec, n_steps: int) -> tuple[str, ...]:
    """Return that a training has not ended, as a sentence; none where it has."""
    if n_steps >= spec.steps:
        return ()
    words = f"Training was stopped after {n_steps} of {spec.steps} steps"
    if spec.checkpoint_steps:
        return (f"{words}; train on to go on from there.",)
    return (f"{words}; without checkpoints it begins anew when it is started again.",)
