"""Packed models hold the bytes the plan states, and train only what is added to them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from test_bank import logits, random_plan
from torch import nn

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.errors import BadInputError, IncompatibleShapeError
from qpruner_core.quantization.packing import pack_, packed_bytes, precision_of
from qpruner_core.quantization.shapes import check_plan

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from qpruner_core.domain.layout import ModelLayout


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("tied", [False, True])
def test_the_bytes_held_are_the_bytes_planned(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout, seed: int, tied: bool
) -> None:
    layout = tiny_layout
    if tied:
        from transformers import LlamaForCausalLM

        from qpruner_core.models.architectures import llama

        config = copy.deepcopy(tiny_model.config)
        config.tie_word_embeddings = True
        tiny_model = LlamaForCausalLM(config).eval()
        layout = llama.layout(config.to_dict())
    plan = random_plan(layout, seed)
    assert packed_bytes(tiny_model) == 2 * layout.parameters
    pack_(tiny_model, layout, plan, torch.float32)
    assert packed_bytes(tiny_model) == plan_bytes(layout, plan, precision_formats())


def test_every_linear_carries_the_precision_of_the_plan(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout
) -> None:
    plan = random_plan(tiny_layout, 3)
    pack_(tiny_model, tiny_layout, plan, torch.float32)
    found = {
        name: precision
        for name, module in tiny_model.named_modules()
        if (precision := precision_of(module)) is not None
    }
    assert found == dict(plan.precisions)
    assert precision_of(nn.Linear(2, 2)) is None


def test_a_packed_copy_computes_the_same(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout
) -> None:
    pack_(tiny_model, tiny_layout, random_plan(tiny_layout, 1), torch.float32)
    twin = copy.deepcopy(tiny_model)
    assert torch.equal(logits(twin), logits(tiny_model))
    assert packed_bytes(twin) == packed_bytes(tiny_model)


def test_a_change_of_dtype_leaves_integers_and_scales_alone(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout
) -> None:
    plan = PrecisionPlan.uniform(tiny_layout, "int8")
    pack_(tiny_model, tiny_layout, plan, torch.float32)
    before = logits(tiny_model)
    scales = tiny_model.model.layers[0].mlp.up_proj.SCB.clone()
    tiny_model.to(torch.bfloat16)
    after = tiny_model.model.layers[0].mlp.up_proj
    assert after.weight.dtype == torch.int8
    assert after.SCB.dtype == torch.float32
    assert torch.equal(after.SCB, scales)
    assert logits(tiny_model).float().sub(before).abs().max() < 0.5


def test_a_plan_that_does_not_fit_is_refused_before_anything_is_packed(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout
) -> None:
    whole = dict(PrecisionPlan.uniform(tiny_layout, "nf4").precisions)
    name, _ = whole.popitem()
    with pytest.raises(BadInputError, match="leaves out 1"):
        pack_(tiny_model, tiny_layout, PrecisionPlan(precisions=whole), torch.float32)
    with pytest.raises(BadInputError, match=r"names 1 that it does not have \(x\)"):
        check_plan(tiny_layout, PrecisionPlan(precisions={**whole, name: "nf4", "x": "nf4"}))
    assert all(precision_of(module) is None for module in tiny_model.modules())


def test_only_the_linears_that_get_blocks_must_have_their_width(tiny_layout: ModelLayout) -> None:
    from dataclasses import replace

    narrow = tuple(
        replace(linear, in_features=96) if linear.role == "down_proj" else linear
        for linear in tiny_layout.linears
    )
    layout = replace(tiny_layout, linears=narrow)
    with pytest.raises(IncompatibleShapeError, match="32 left over"):
        check_plan(layout, PrecisionPlan.uniform(layout, "nf4"))
    mixed = {li.name: "int8" if li.role == "down_proj" else "nf4" for li in layout.linears}
    check_plan(layout, PrecisionPlan(precisions=mixed))
    assert mixed


def test_packing_twice_is_a_bug_and_says_so(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout
) -> None:
    plan = PrecisionPlan.uniform(tiny_layout, "int8")
    pack_(tiny_model, tiny_layout, plan, torch.float32)
    with pytest.raises(TypeError, match="dense Linear"):
        pack_(tiny_model, tiny_layout, plan, torch.float32)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_trains_on_a_packed_model_and_leaves_its_weights_alone(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout
) -> None:
    from peft import LoraConfig, get_peft_model

    pack_(tiny_model, tiny_layout, random_plan(tiny_layout, 2), torch.float32)
    before = logits(tiny_model)
    held = packed_bytes(tiny_model)
    tiny_model.is_loaded_in_4bit = tiny_model.is_loaded_in_8bit = True
    config = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "up_proj", "down_proj"])
    adapted = get_peft_model(tiny_model, config)
    assert torch.equal(logits(adapted), before), "an adapter starts as zero"
    adapted.train()
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    ids = torch.randint(0, 128, (4, 16))
    losses = []
    for _ in range(3):
        loss = adapted(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    gradients = [p.grad for n, p in adapted.named_parameters() if "lora_" in n]
    assert all(grad is not None for grad in gradients)
    added = sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    assert packed_bytes(adapted) == held + 2 * added
