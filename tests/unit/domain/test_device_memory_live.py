"""The training estimate against the largest bytes of tensors alive at a time, temporary ones too:
what the allocator of a card would count.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qpruner_core.catalog import precision_formats, state_bytes_of
from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.device_memory import TrainingLoad, training_bytes_estimate
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import ModelSpec
from qpruner_core.models.architectures import llama
from qpruner_core.models.device import pick_device
from qpruner_core.models.loader import load
from qpruner_core.quantization.packing import pack_
from qpruner_core.recovery.memory import estimated_bytes
from qpruner_core.recovery.training import Steering, Trainer
from qpruner_core.recovery.wrapping import add_adapters_

SPEC = RecoverySpec(steps=2, batch_size=4, sequence_length=64, rank=8)
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro-batches": {"micro_batch_size": 1},
    "checkpointing": {"gradient_checkpointing": True},
    "low memory": {
        "micro_batch_size": 1,
        "gradient_checkpointing": True,
        "optimizer": "adamw_8bit",
    },
    "targets": {"targets": ("q_proj", "v_proj")},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("change", "precision"),
    [*((change, "nf4") for change in CHANGES), ("plain", "int8"), ("low memory", "bf16")],
)
def test_the_estimate_is_near_the_peak_of_all_tensors(
    change: str, precision: str, dtype: torch.dtype
) -> None:
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).eval().to(dtype)
    layout = llama.layout(config.to_dict())
    plan = PrecisionPlan.uniform(layout, precision)
    pack_(model, layout, plan, dtype)
    spec = replace(SPEC, **CHANGES[change])
    add_adapters_(model, layout, spec)
    trainer = Trainer(model, layout, spec)
    ids = torch.randint(0, 1024, (4, 64))
    standing = trainer.run(TrainingSet.of_text(ids), Steering())
    load = TrainingLoad.of(spec, dtype.itemsize, state_bytes_of(spec.optimizer))
    estimate = training_bytes_estimate(layout, plan, precision_formats(), load).total
    assert standing.peak_bytes == pytest.approx(estimate, rel=0.1)


@pytest.mark.parametrize("change", ["plain", "checkpointing", "micro-batches", "low memory"])
def test_the_estimate_is_near_what_the_demo_model_takes(change: str) -> None:
    """Its vocabulary is large against its layers."""
    loaded = load(ModelSpec(source="demo"), pick_device("cpu"))
    plan = PrecisionPlan.uniform(loaded.layout, "nf4")
    pack_(loaded.model, loaded.layout, plan, torch.float32)
    spec = replace(SPEC, sequence_length=128, **CHANGES[change])
    add_adapters_(loaded.model, loaded.layout, spec)
    ids = torch.randint(0, loaded.layout.vocab_size, (4, 128))
    trainer = Trainer(loaded.model, loaded.layout, spec)
    standing = trainer.run(TrainingSet.of_text(ids), Steering())
    estimate = estimated_bytes(loaded.layout, plan, spec, torch.float32)
    assert standing.peak_bytes == pytest.approx(estimate, rel=0.1)
