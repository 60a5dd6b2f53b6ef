"""Conv1D modules in the bank: dense and packed candidates agree, sensitivities add up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_bank import random_plan
from test_sensitivity import CPU, by_layer, naive_loss
from transformers import GPT2Config, GPT2LMHeadModel

from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.models.architectures import gpt2
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.orientation import as_linear, candidate
from qpruner_core.quantization.sensitivity import measure

IDS = torch.arange(48).reshape(3, 16)


@pytest.fixture
def model() -> Any:
    config = GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=2, n_positions=32)
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


@pytest.fixture
def layout(model: Any) -> ModelLayout:
    return gpt2.FAMILY.layout(model.config.to_dict())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("seed", range(3))
def test_dense_and_packed_candidates_agree_bit_for_bit(
    model: Any, layout: ModelLayout, seed: int
) -> None:
    plan, before = random_plan(layout, seed), logits(model)
    found = {}
    for packed in (False, True):
        bank = Bank(model, layout, PRECISIONS.names(), CPU, packed=packed)
        bank.apply(plan)
        found[packed] = logits(model), bank.packed_bytes(plan)
        bank.restore()
        assert torch.equal(logits(model), before)
    assert torch.equal(found[True][0], found[False][0])
    assert found[True][1] == found[False][1]
    assert not torch.equal(found[True][0], before)


def test_sensitivities_equal_whole_forward_passes(model: Any, layout: ModelLayout) -> None:
    bank, units = Bank(model, layout, ("nf4", "int8"), CPU), by_layer(layout)
    found = measure(bank, units, IDS)
    reference = naive_loss(model, IDS)
    assert found.loss_16_bit == pytest.approx(reference, abs=1e-6)
    for cell in found.cells:
        for name in units[cell.unit]:
            bank.set(name, cell.precision)
        expected = naive_loss(model, IDS) - reference
        bank.restore()
        assert cell.loss_increase == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("name", PRECISIONS.names())
def test_rows_and_blocks_run_along_the_inputs(model: Any, name: str) -> None:
    conv = model.transformer.h[0].mlp.c_fc
    linear = as_linear(conv)
    assert linear.weight.shape == (256, 64)
    assert linear.weight.data_ptr() != conv.weight.data_ptr()
    assert as_linear(linear) is linear
    expected = PRECISIONS.target(name).fake_quantize(linear.weight)
    assert torch.equal(candidate(conv, name), expected.t())
    assert torch.equal(candidate(linear, name), expected)
