"""The memory estimates against what torch really keeps."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from qpruner_core.catalog import ARCHITECTURES, precision_formats
from qpruner_core.domain.device_memory import (
    TrainingLoad,
    inference_bytes_estimate,
    training_bytes_estimate,
)
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.models.architectures import llama

# PEFT 0.21 still asks transformers 5 by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SHAPES = {
    "wide MLP": {"intermediate_size": 256},
    "narrow MLP": {"intermediate_size": 48, "head_dim": 8},
    "deep": {"num_hidden_layers": 6},
    "large vocabulary": {"vocab_size": 2048},
}


def build(dtype, **changes):
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**{**sizes, **heads, **changes})
    model = LlamaForCausalLM(config).to(dtype)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora), llama.layout(config.to_dict())


def kept_bytes(model, ids):
    """Bytes of distinct storages that the graph keeps, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(ids, labels=ids, use_cache=False).loss
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_estimated_activations_are_near_what_the_graph_keeps(shape, dtype):
    model, layout = build(dtype, **SHAPES[shape])
    ids = torch.randint(0, 128, (4, 32))
    load = TrainingLoad(rank=4, batch_size=4, sequence_length=32, compute_bytes=dtype.itemsize)
    plan = PrecisionPlan.uniform(layout, "bf16")
    estimate = training_bytes_estimate(layout, plan, precision_formats(), load)
    log_probabilities = 4 * ids.numel() * layout.vocab_size
    assert estimate.logits >= log_probabilities
    expected = estimate.activations + log_probabilities
    assert kept_bytes(model, ids) / expected == pytest.approx(1.0, abs=0.07)


SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
OTHERS = {
    "phi3": {**SIZES, "num_key_value_heads": 2},
    "gpt_neox": SIZES,
    "opt": {**SIZES, "ffn_dim": 256, "dropout": 0.0},
    "gpt2": {
        "vocab_size": 128,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        **dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0),
    },
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", OTHERS)
def test_estimates_hold_for_fused_and_ungated_families(family, dtype):
    config = AutoConfig.for_model(family, **OTHERS[family])
    layout = ARCHITECTURES.target(family).layout(config.to_dict())
    roles = sorted({linear.role for linear in layout.linears})
    lora = LoraConfig(r=4, target_modules=roles, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_config(config, dtype=dtype), lora)
    ids = torch.randint(1, 128, (4, 32))
    load = TrainingLoad(rank=4, batch_size=4, sequence_length=32, compute_bytes=dtype.itemsize)
    plan = PrecisionPlan.uniform(layout, "bf16")
    estimate = training_bytes_estimate(layout, plan, precision_formats(), load)
    expected = estimate.activations + 4 * ids.numel() * layout.vocab_size
    assert kept_bytes(model, ids) / expected == pytest.approx(1.0, abs=0.13)


def test_adapter_bytes_count_every_trained_parameter():
    model, layout = build(torch.float32)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    plan = PrecisionPlan.uniform(layout, "nf4")
    load = TrainingLoad(rank=4)
    found = training_bytes_estimate(layout, plan, precision_formats(), load)
    assert found.adapter == 16 * trained
    assert found.weights == plan_bytes(layout, plan, precision_formats())
    assert found.total > found.weights + found.adapter + found.activations + found.logits


def test_longer_prompts_and_wider_formats_take_more(tiny_layout):
    formats = precision_formats()
    sizes = [
        inference_bytes_estimate(tiny_layout, PrecisionPlan.uniform(tiny_layout, name), formats, n)
        for name in ("nf4", "int8", "bf16")
        for n in (16, 4096)
    ]
    assert sizes[0] < sizes[2] < sizes[4] < sizes[5]
    assert sizes[0] > plan_bytes(tiny_layout, PrecisionPlan.uniform(tiny_layout, "nf4"), formats)
