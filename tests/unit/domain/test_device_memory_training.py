"""The training estimate against what training was measured to take on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qpruner_core.catalog import precision_formats, state_bytes_of
from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.device_memory import TrainingBytes, TrainingLoad, training_bytes_estimate
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.models.architectures import llama
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.packing import pack_
from qpruner_core.recovery.memory import PeakMemory
from qpruner_core.recovery.training import Steering, Trainer
from qpruner_core.recovery.wrapping import add_adapters_

SPEC = RecoverySpec(steps=2, batch_size=4, sequence_length=64, rank=2)
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro-batches": {"micro_batch_size": 1},
    "checkpointing": {"gradient_checkpointing": True},
    "checkpointing in micro-batches": {"gradient_checkpointing": True, "micro_batch_size": 2},
    "8 bit": {"optimizer": "adamw_8bit", "rank": 64, "sequence_length": 16},
    "8 bit in small tensors": {"optimizer": "adamw_8bit", "sequence_length": 16, "rank": 16},
    "ranks per layer": {"layer_ranks": {"1": 8, "3": 1}},
    "some layers": {"layer_ranks": {"0": 0, "1": 0}},
    "some layers, checkpointing": {
        "layer_ranks": {"0": 0, "1": 0},
        "gradient_checkpointing": True,
    },
    "two roles": {"targets": ("v_proj", "up_proj")},
    "dropout": {"dropout": 0.1},
    "dropout, checkpointing": {"dropout": 0.1, "gradient_checkpointing": True},
}
MODELS = {"even": (4 * (256,), "bf16"), "uneven": ((64, 320, 128, 192), "nf4")}


def build(widths: tuple[int, ...], precision: str) -> tuple[Any, ModelLayout, PrecisionPlan]:
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model, dense = LlamaForCausalLM(config).eval(), llama.layout(config.to_dict())
    kept = {f"model.layers.{i}.mlp": tuple(range(n)) for i, n in enumerate(widths)}
    layout = prune_(model, dense, PruningPlan(kept=kept))
    plan = PrecisionPlan.uniform(layout, precision)
    pack_(model, layout, plan, torch.float32)
    return model, layout, plan


def estimated(layout: ModelLayout, plan: PrecisionPlan, spec: RecoverySpec) -> TrainingBytes:
    load = TrainingLoad.of(spec, 4, state_bytes_of(spec.optimizer))
    return training_bytes_estimate(layout, plan, precision_formats(), load)


def measured(model: Any, layout: ModelLayout, spec: RecoverySpec) -> tuple[int, int]:
    """Peak of training, and of it what lies in memory before a pass."""
    add_adapters_(model, layout, spec)
    trainer = Trainer(model, layout, spec)
    ids = torch.randint(0, 512, (4, spec.sequence_length))
    standing = trainer.run(TrainingSet.of_text(ids), Steering())
    memory = PeakMemory(model, optimizer=trainer._learning.optimizer)
    with memory.watching(1, 1):
        pass
    return standing.peak_bytes, memory.peak_bytes


@pytest.mark.parametrize("shape", MODELS)
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_pass_adds_is_near_what_was_measured(change: str, shape: str) -> None:
    model, layout, plan = build(*MODELS[shape])
    spec = replace(SPEC, **CHANGES[change])
    peak, rest = measured(model, layout, spec)
    need = estimated(layout, plan, spec)
    assert peak - rest == pytest.approx(need.activations + need.logits + need.workspace, rel=0.1)


@pytest.mark.parametrize("change", CHANGES)
def test_adapters_gradients_and_optimiser_state_are_counted(change: str) -> None:
    model, layout, plan = build(*MODELS["uneven"])
    frozen = PeakMemory(model)
    with frozen.watching(1, 1):
        pass
    spec = replace(SPEC, **CHANGES[change])
    _, rest = measured(model, layout, spec)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    need = estimated(layout, plan, spec)
    # Gradients have been let go of by then.
    assert rest - frozen.peak_bytes + 4 * trained == pytest.approx(need.adapter, rel=0.1)
