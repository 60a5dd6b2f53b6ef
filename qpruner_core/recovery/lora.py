"""LoRA on pruned models whose layers lie at different precisions.

Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
Linears of the decoder layers get an adapter ``alpha / rank * B A``. By default B = 0 at first, so
that training starts at the compressed model itself; other starts come from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import median

from torch import nn

from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.adapters import adapter_ranks
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import OnProgress, never, silent
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.recovery.adapter import save_adapter
from qpruner_core.recovery.batches import check_training_set
from qpruner_core.recovery.checkpoints import Checkpoints
from qpruner_core.recovery.initialization import Start
from qpruner_core.recovery.memory import estimated_bytes
from qpruner_core.recovery.optimizers import check_optimizer
from qpruner_core.recovery.randomness import seeded
from qpruner_core.recovery.training import Steering, Trainer
from qpruner_core.recovery.wrapping import add_adapters_

Evaluate = Callable[[nn.Module, int], Metrics]
"""Measures a model that carries so many bytes of adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """A model with its trained adapter, and what training took."""

    model: nn.Module
    """The PEFT model around the packed one, in eval mode; the model itself when skipped."""
    before: Metrics
    after: Metrics
    losses: tuple[float, ...]
    """Training loss per step; nats per token; shorter than asked for when it was stopped."""
    adapter: str
    """Folder with the adapter; empty when recovery was skipped."""
    trainable_parameters: int
    estimated_memory_bytes: int
    """Training memory estimated beforehand, frozen weights included."""
    peak_memory_bytes: int | None
    """Measured, see `PeakMemory`; None when recovery was skipped."""
    tokens_per_second: float | None
    """Median over the steps; None when there were none."""
    remarks: tuple[str, ...] = ()
    """What the training set has to say to the person."""


def recover(  # noqa: PLR0913 - one call of the line, every argument is another room's result
    model: nn.Module,
    layout: ModelLayout,
    plan: PrecisionPlan,
    spec: RecoverySpec,
    training: TrainingSet,
    *,
    evaluate: Evaluate,
    folder: Path,
    starts: Mapping[str, Start] | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    before: Metrics | None = None,
    on_progress: OnProgress = silent,
    should_stop: Callable[[], bool] | None = None,
) -> Recovered:
    """Train an adapter on the packed model and save it.

    Called again with the same arguments after it was stopped or killed, it goes on from its
    checkpoint, and ends with the very adapter and losses of a training that never was.

    Args:
        model: Pruned decoder, packed by the plan; its Linears are wrapped in place, its weights
            never change.
        layout: Layout of the pruned model.
        plan: Precision of every Linear.
        spec: How to train; 0 steps skips recovery.
        training: Rows and what of them is learned.
        evaluate: Called before and after with the model and the bytes of its adapter file.
        folder: Where the adapter goes.
        starts: Linear name -> where its adapter starts; of all others B = 0.
        checkpoint: Folder where a training leaves where it stands, at its end too: whoever keeps
            what it made removes it then (`remove_checkpoint`), and until then a call trains
            nothing again. None, or 0 ``checkpoint_steps``: nowhere.
        identity: What the weights depend on, as text: a checkpoint of other weights, of another
            spec, plan or training text is not taken up.
        before: What ``evaluate`` says without training, where that is known.
        on_progress: Told after every step.
        should_stop: Asked before every step; when it says yes, adapter and checkpoint as they are
            then are saved.

    Raises:
        NonFiniteLossError: A loss is not a number; the message names the step.
        DataTooShortError: There is nothing to train on.
        BadInputError: A role, a layer or an optimiser is asked for that cannot be.
        StorageFullError: The disk does not hold the adapter or a checkpoint.
    """
    dtype = next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    device = next(model.parameters()).device
    check_optimizer(spec.optimizer, device.type)
    adapter_ranks(spec, layout)
    if spec.steps:
        check_training_set(training, spec)
    estimate = estimated_bytes(layout, plan, spec, dtype)
    if spec.steps == 0:
        return _skipped(model, before or evaluate(model, 0), estimate)
    kept = None
    if checkpoint is not None:
        text = _identity(identity, plan, spec, training)
        kept = Checkpoints(folder=checkpoint, identity=text)
    before = before or evaluate(model, 0)
    with seeded(device, spec.seed):
        wrapped = add_adapters_(model, layout, spec, starts)
        steering = Steering(
            on_progress=on_progress, should_stop=should_stop or never, checkpoints=kept
        )
        standing = Trainer(model, layout, spec).run(training, steering)
    adapter_bytes = save_adapter(wrapped, folder)
    after = evaluate(wrapped, adapter_bytes)
    return Recovered(
        model=wrapped,
        before=before,
        after=after,
        losses=standing.losses,
        adapter=str(folder),
        trainable_parameters=sum(p.numel() for p in wrapped.parameters() if p.requires_grad),
        estimated_memory_bytes=estimate,
        peak_memory_bytes=standing.peak_bytes,
        tokens_per_second=median(standing.speeds) if standing.speeds else None,
        remarks=training.remarks,
    )


def _skipped(model: nn.Module, measured: Metrics, estimate: int) -> Recovered:
    return Recovered(
        model=model,
        before=measured,
        after=measured,
        losses=(),
        adapter="",
        trainable_parameters=0,
        estimated_memory_bytes=estimate,
        peak_memory_bytes=None,
        tokens_per_second=None,
    )


def _identity(
    identity: str, plan: PrecisionPlan, spec: RecoverySpec, training: TrainingSet
) -> str:
    """Return all that a training depends on, as text."""
    # The text itself counts, wherever it lies: a copy of a run has its own of an uploaded file.
    asked = replace(spec, training="")
    digest = sha256(f"{identity}\n{plan.key}\n{asked!r}".encode())
    for tensor in (training.ids, training.labels, training.positions):
        if tensor is not None:
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
