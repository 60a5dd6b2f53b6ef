"""LoRA on a pruned model whose Linears are packed at different precisions.

Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. Every
Linear of the decoder layers gets an adapter ``alpha / rank * B A``, with B = 0 at first, so that
training starts at the compressed model itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import OnProgress, never, silent
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.recovery.adapter import save_adapter
from qpruner_core.recovery.memory import PeakMemory, estimated_bytes
from qpruner_core.recovery.training import Trainer

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


def recover(  # noqa: PLR0913 - one call of the line, every argument is another room's result
    model: nn.Module,
    layout: ModelLayout,
    plan: PrecisionPlan,
    spec: RecoverySpec,
    training: TrainingSet,
    *,
    evaluate: Evaluate,
    folder: Path,
    before: Metrics | None = None,
    on_progress: OnProgress = silent,
    should_stop: Callable[[], bool] | None = None,
) -> Recovered:
    """Train an adapter on the packed model and save it.

    Args:
        model: Pruned decoder, packed by the plan; its Linears are wrapped in place, its weights
            never change.
        layout: Layout of the pruned model.
        plan: Precision of every Linear.
        spec: How to train; 0 steps skips recovery.
        training: Rows and what of them is learned.
        evaluate: Called before and after with the model and the bytes of its adapter file.
        folder: Where the adapter goes.
        before: What ``evaluate`` says without training, where that is known.
        on_progress: Told after every step.
        should_stop: Asked before every step; when it says yes, the adapter as it is then is saved.

    Raises:
        NonFiniteLossError: A loss is not a number; the message names the step.
        DataTooShortError: There is nothing to train on.
    """
    dtype = next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    estimate = estimated_bytes(layout, plan, spec, dtype)
    before = before or evaluate(model, 0)
    if spec.steps == 0:
        return Recovered(
            model=model,
            before=before,
            after=before,
            losses=(),
            adapter="",
            trainable_parameters=0,
            estimated_memory_bytes=estimate,
            peak_memory_bytes=None,
        )
    with _seeded(model, spec.seed):
        wrapped = add_adapters_(model, layout, spec)
        memory = PeakMemory(wrapped)
        losses = Trainer(wrapped, spec, memory).run(training, on_progress, should_stop or never)
    peak = memory.peak_bytes
    adapter_bytes = save_adapter(wrapped, folder)
    return Recovered(
        model=wrapped,
        before=before,
        after=evaluate(wrapped, adapter_bytes),
        losses=losses,
        adapter=str(folder),
        trainable_parameters=sum(p.numel() for p in wrapped.parameters() if p.requires_grad),
        estimated_memory_bytes=estimate,
        peak_memory_bytes=peak,
    )


def add_adapters_(model: Any, layout: ModelLayout, spec: RecoverySpec) -> Any:
    """Wrap every Linear and Conv1D of the decoder layers with a LoRA adapter, in place, and freeze
    the rest.

    Returns:
        The PEFT model; its adapters are float32 whatever the model computes in.
    """
    for module in model.modules():
        # On CPUs with AVX512_BF16 an evaluating forward of a 4-bit module would repack its weight
        # in place and cut off the gradients of every later training step.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # Without this PEFT takes its generic wrapper for 4-bit modules.
    model.is_loaded_in_4bit = True
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # only ever divided by the rank
        lora_dropout=spec.dropout,
        target_modules=sorted({linear.role for linear in layout.linears}),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 by a name that it has since changed; it works.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # It settles module by module which way round a weight is stored, and says so every time.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        return get_peft_model(model, config)


@contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Give the block seeded random numbers of its own; those of the process go on unchanged."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
