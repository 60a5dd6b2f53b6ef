"""The bank: every plan computes what the packed model computes, at the cost of pointing at
weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from qpruner_core import catalog
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.errors import BadInputError, IncompatibleShapeError, UnknownNameError
from qpruner_core.models.device import Device
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.packed_sizes import PackedSizes
from qpruner_core.quantization.packing import pack_, packed_bytes

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

    from qpruner_core.domain.layout import ModelLayout

PRECISIONS = ("nf4", "fp4", "int8", "bf16")
FORMATS = catalog.precision_formats()
CPU = Device(kind="cpu", index=0, name="cpu", compute_dtype=torch.float32)


def random_plan(layout: ModelLayout, seed: int) -> PrecisionPlan:
    """Return a plan with a precision drawn for every Linear."""
    drawn = torch.randint(
        len(PRECISIONS), (len(layout.linears),), generator=torch.Generator().manual_seed(seed)
    )
    names = (PRECISIONS[int(index)] for index in drawn)
    return PrecisionPlan(
        precisions={linear.name: name for linear, name in zip(layout.linears, names, strict=True)}
    )


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


@pytest.fixture
def bank(tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout) -> Bank:
    return Bank(tiny_model, tiny_layout, PRECISIONS, CPU)


@pytest.mark.parametrize("seed", range(3))
def test_a_trial_equals_the_packed_model_bit_for_bit(
    bank: Bank, tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout, seed: int
) -> None:
    plan = random_plan(tiny_layout, seed)
    bank.apply(plan)
    trial = logits(tiny_model)
    bank.restore()
    pack_(tiny_model, tiny_layout, plan, torch.float32)
    assert torch.equal(logits(tiny_model), trial)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(2))
def test_the_bytes_of_a_plan_are_those_of_the_packed_model(
    tiny_model: LlamaForCausalLM,
    tiny_layout: ModelLayout,
    packed: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    plan = random_plan(tiny_layout, seed)
    bank = Bank(tiny_model.to(dtype), tiny_layout, PRECISIONS, CPU, packed=packed)
    counted = bank.packed_bytes(plan)
    bank.apply(random_plan(tiny_layout, seed + 1))
    assert bank.packed_bytes(plan) == counted  # whatever is shown
    bank.restore()
    pack_(tiny_model, tiny_layout, plan, torch.float32)
    assert counted == packed_bytes(tiny_model) == plan_bytes(tiny_layout, plan, FORMATS)


def test_biases_and_a_head_of_its_own_count_at_16_bit() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from qpruner_core.models.architectures import llama

    config = Qwen2Config(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config).eval()
    layout = llama.layout(config.to_dict())
    plan = random_plan(layout, 0)
    counted = Bank(model, layout, PRECISIONS, CPU).packed_bytes(plan)
    pack_(model, layout, plan, torch.float32)
    assert counted == packed_bytes(model)


def test_only_one_linear_of_a_shape_is_packed_to_count_it(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, packed = PackedSizes(torch.float32), []
    rule, pack = catalog.PRECISIONS.target("int8"), catalog.PRECISIONS.target("int8").pack
    monkeypatch.setattr(
        rule, "pack", lambda linear, dtype: packed.append(linear) or pack(linear, dtype)
    )
    for linear in tiny_layout.linears:
        module = tiny_model.get_submodule(linear.name)
        formula = FORMATS["int8"].weight_bytes(linear.out_features, linear.in_features)
        assert sizes.count(module, "int8") == formula
    shapes = {(linear.out_features, linear.in_features) for linear in tiny_layout.linears}
    assert len(packed) == len(shapes) < len(tiny_layout.linears)


def test_the_bytes_of_a_strange_plan_are_not_guessed(bank: Bank, tiny_layout: ModelLayout) -> None:
    plan = PrecisionPlan.uniform(tiny_layout, "int3")
    with pytest.raises(BadInputError, match="int3"):
        bank.packed_bytes(plan)


@pytest.mark.parametrize("on_host", [False, True])
def test_packed_candidates_equal_dense_ones_bit_for_bit(
    bank: Bank, tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout, on_host: bool
) -> None:
    plans = [random_plan(tiny_layout, seed) for seed in range(3)]
    dense = []
    for plan in plans:
        bank.apply(plan)
        dense.append(logits(tiny_model))
    bank.restore()
    original = logits(tiny_model)
    packed = Bank(tiny_model, tiny_layout, PRECISIONS, CPU, packed=True, on_host=on_host)
    for plan, expected in zip(plans, dense, strict=True):
        packed.apply(plan)
        assert torch.equal(logits(tiny_model), expected)
    packed.restore()
    assert torch.equal(logits(tiny_model), original)


def test_restore_gives_back_the_very_weights(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout
) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    places = {name: value.data_ptr() for name, value in tiny_model.named_parameters()}
    bank = Bank(tiny_model, tiny_layout, PRECISIONS, CPU)
    bank.apply(random_plan(tiny_layout, 1))
    bank.restore()
    after = tiny_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name: value.data_ptr() for name, value in tiny_model.named_parameters()} == places


def test_one_linear_changes_alone(
    bank: Bank, tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout
) -> None:
    name = tiny_layout.linears[3].name
    before = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    bank.set(name, "nf4")
    changed = [k for k, v in tiny_model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == [f"{name}.weight"]
    bank.set(name, None)
    assert torch.equal(tiny_model.state_dict()[f"{name}.weight"], before[f"{name}.weight"])


def test_the_order_of_trials_does_not_matter(
    bank: Bank, tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout
) -> None:
    first, second = random_plan(tiny_layout, 4), random_plan(tiny_layout, 5)
    bank.apply(first)
    expected = logits(tiny_model)
    bank.apply(second)
    assert not torch.equal(logits(tiny_model), expected)
    bank.apply(first)
    assert torch.equal(logits(tiny_model), expected)


def test_a_plan_for_another_model_is_refused_and_changes_nothing(
    bank: Bank, tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout
) -> None:
    before = logits(tiny_model)
    whole = dict(PrecisionPlan.uniform(tiny_layout, "nf4").precisions)
    first = next(iter(whole))
    without = {name: precision for name, precision in whole.items() if name != first}
    with pytest.raises(BadInputError, match="leaves out 1"):
        bank.apply(PrecisionPlan(precisions=without))
    with pytest.raises(BadInputError, match=r"model\.layers\.9"):
        bank.apply(PrecisionPlan(precisions={**whole, "model.layers.9.mlp.up_proj": "nf4"}))
    with pytest.raises(BadInputError, match="int3"):
        bank.apply(PrecisionPlan(precisions={**whole, first: "int3"}))
    with pytest.raises(BadInputError, match="int3"):
        bank.set(first, "int3")
    assert torch.equal(logits(tiny_model), before)


def test_unknown_precisions_are_answered_with_the_nearest(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout
) -> None:
    with pytest.raises(UnknownNameError, match="nf4"):
        Bank(tiny_model, tiny_layout, ("nf44",), CPU)


def test_widths_a_precision_cannot_carry_are_all_named_before_anything_is_quantised(
    tiny_config: LlamaConfig,
) -> None:
    from transformers import LlamaForCausalLM

    from qpruner_core.models.architectures import llama

    tiny_config.intermediate_size = 96
    model = LlamaForCausalLM(tiny_config).eval()
    layout = llama.layout(tiny_config.to_dict())
    with pytest.raises(IncompatibleShapeError) as refused:
        Bank(model, layout, ("int8", "nf4"), CPU)
    for layer in range(2):
        assert f"model.layers.{layer}.mlp.down_proj" in str(refused.value)
    assert "up_proj" not in str(refused.value)
    assert "leave nf4 out of the precisions" in str(refused.value)
    Bank(model, layout, ("int8", "bf16"), CPU).apply(PrecisionPlan.uniform(layout, "int8"))


def test_a_weight_that_ships_in_bf16_is_not_copied(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout
) -> None:
    tiny_model.to(torch.bfloat16).to(torch.float32)
    places = {name: value.data_ptr() for name, value in tiny_model.named_parameters()}
    Bank(tiny_model, tiny_layout, ("bf16",), CPU).apply(PrecisionPlan.uniform(tiny_layout, "bf16"))
    assert {name: value.data_ptr() for name, value in tiny_model.named_parameters()} == places
