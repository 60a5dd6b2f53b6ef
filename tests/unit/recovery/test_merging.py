"""Adapters read back, beside a model, taken from weights of either orientation, and compared."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import NotReadyError
from qpruner_core.export.verify import reference_logits
from qpruner_core.pipeline.starting import take_, with_scalings
from qpruner_core.recovery import low_rank
from qpruner_core.recovery.adapter import save_adapter
from qpruner_core.recovery.initialization import Factors
from qpruner_core.recovery.low_rank import factors_of, product
from qpruner_core.recovery.merging import beside, read_adapter, relative_error
from qpruner_core.recovery.shifts import read_shift, save_shift
from qpruner_core.recovery.wrapping import add_adapters_

IDS = torch.arange(2 * 12).reshape(2, 12)
SPEC = RecoverySpec(rank=4, alpha=6.0, layer_ranks={"1": 2})


def random_factors(out_features: int, in_features: int, rank: int = 3) -> Factors:
    generator = torch.Generator().manual_seed(1)
    return Factors(
        a=torch.randn(rank, in_features, generator=generator),
        b=torch.randn(out_features, rank, generator=generator),
    )


def test_an_adapter_that_is_read_back_computes_beside_the_model_what_peft_computes(
    tiny_model: Any, tiny_layout: ModelLayout, tmp_path: Path
) -> None:
    plain = copy.deepcopy(tiny_model)
    wrapped = add_adapters_(tiny_model, tiny_layout, SPEC)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    save_adapter(wrapped, tmp_path / "adapter")
    expected = reference_logits(wrapped.eval(), IDS)
    adapter = with_scalings(read_adapter(tmp_path / "adapter"), tiny_layout, SPEC)
    assert adapter.keys() == {linear.name for linear in tiny_layout.linears}
    alone = reference_logits(plain, IDS)
    with beside(plain, adapter):
        found = reference_logits(plain, IDS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert relative_error(alone, found) > 1e-3
    assert torch.equal(reference_logits(plain, IDS), alone), "it is gone after the block"


def test_taking_is_the_same_whatever_way_round_a_weight_is_stored() -> None:
    torch.manual_seed(0)
    factors = random_factors(24, 32)
    linear, conv = nn.Linear(32, 24), Conv1D(24, 32)
    conv.weight.data = linear.weight.detach().t().contiguous()
    before = linear.weight.detach().double()
    for module in (linear, conv):
        take_(module, factors, 0.5)
    assert torch.equal(conv.weight.t(), linear.weight)
    reference = before - 0.5 * factors.b.double() @ factors.a.double()
    torch.testing.assert_close(linear.weight.double(), reference, rtol=1e-5, atol=1e-6)
    assert not linear.weight.requires_grad


def test_weights_of_16_bit_are_not_rounded_again_by_what_is_taken() -> None:
    linear = nn.Linear(32, 24, dtype=torch.bfloat16)
    before = linear.weight.detach().float()
    factors = random_factors(24, 32)
    take_(linear, factors, 0.01)
    assert linear.weight.dtype == torch.float32
    assert torch.equal(linear.weight, before - product(factors, 0.01))


def test_a_shift_is_read_as_it_was_written_and_none_leaves_no_file(tmp_path: Path) -> None:
    shifts = {"model.layers.0.mlp.up_proj": random_factors(8, 16), "other": random_factors(4, 4)}
    path = save_shift(shifts, tmp_path)
    found = read_shift(Path(path))
    assert found.keys() == shifts.keys()
    assert all(torch.equal(found[k].a, shifts[k].a) for k in shifts)
    assert all(torch.equal(found[k].b, shifts[k].b) for k in shifts)
    assert save_shift({}, tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", [read_adapter, read_shift])
def test_what_is_gone_says_what_to_do(read: Any, tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="Run the recovery again"):
        read(tmp_path / "nothing")


def test_the_relative_error_is_that_of_norms_and_infinite_for_no_number() -> None:
    before = torch.tensor([3.0, 4.0])
    assert relative_error(before, torch.tensor([3.0, 4.5])) == pytest.approx(0.1)
    assert relative_error(before, torch.tensor([3.0, float("nan")])) == float("inf")


def test_large_matrices_are_projected_nearly_as_well_as_small_ones_are_solved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(96, 160, generator=generator)
    exact = product(factors_of(matrix, 6, 2.0, generator), 2.0)
    monkeypatch.setattr(low_rank, "EXACT_SIDE", 8)
    projected = product(factors_of(matrix, 6, 2.0, generator), 2.0)
    best = float((matrix - exact).norm())
    assert best <= float((matrix - projected).norm()) <= 1.01 * best
