"""Laws of surgery, in float64, for every architecture of the catalogue."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.errors import BadInputError, IncompatibleShapeError
from qpruner_core.pruning.selection import select
from qpruner_core.pruning.surgery import prune_

UNEVEN = PruningPlan(
    kept={
        "model.layers.0.self_attn": (1, 2, 3),
        "model.layers.1.self_attn": (2,),
        "model.layers.0.mlp": tuple(range(1, 64, 3)),
        "model.layers.1.mlp": tuple(range(40)),
    }
)
EVEN = PruningPlan(
    kept={
        "model.layers.0.self_attn": (0, 3),
        "model.layers.1.self_attn": (1, 2),
        "model.layers.0.mlp": tuple(range(0, 64, 2)),
        "model.layers.1.mlp": tuple(range(32)),
    },
    shape="uniform",
)
PLANS = pytest.mark.parametrize("plan", [UNEVEN, EVEN], ids=["uneven", "even"])
IDS = torch.tensor([[3, 14, 15, 9, 2, 6, 5, 35], [8, 9, 7, 9, 3, 2, 3, 8]])


@pytest.fixture(params=ARCHITECTURES.names())
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> Any:
    extra = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    config = AutoConfig.for_model(
        family,
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
        **extra,
    )
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return built


@pytest.fixture
def layout(family: str, model: Any) -> ModelLayout:
    return ARCHITECTURES.target(family).layout(model.config.to_dict())


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def zero_removed_(model: Any, layout: ModelLayout, plan: PruningPlan) -> None:
    """Silence the removed units where they enter the residual stream: the columns of the output
    projections."""
    for name, kept in plan.kept.items():
        group = layout.group(name)
        (output,) = (part for part in group.slices if part.axis == 1)
        gone = np.setdiff1d(np.arange(group.n_units), kept)
        with torch.no_grad():
            weight = model.get_parameter(output.tensor)
            weight.view(weight.shape[0], group.n_units, output.unit_size)[:, gone] = 0.0


def test_ratio_zero_changes_nothing(model, layout):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    kept = prune_(model, layout, select(layout, None, PruningSpec(ratio=0.0)).plan)
    assert kept == layout
    assert model.config.to_dict() == config
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@PLANS
def test_removing_units_is_zeroing_them(model, layout, plan):
    zeroed = copy.deepcopy(model)
    zero_removed_(zeroed, layout, plan)
    expected = logits(zeroed)
    assert (expected - logits(model)).abs().max() > 1e-3
    prune_(model, layout, plan)
    torch.testing.assert_close(logits(model), expected, rtol=0.0, atol=1e-10)


@PLANS
def test_parameters_are_counted_as_planned_and_every_linear_knows_its_shape(model, layout, plan):
    pruned = prune_(model, layout, plan)
    assert pruned == layout.pruned(plan)
    assert sum(parameter.numel() for parameter in model.parameters()) == pruned.parameters
    for linear in pruned.linears:
        module = model.get_submodule(linear.name)
        assert module.weight.shape == (linear.out_features, linear.in_features)
        assert (module.out_features, module.in_features) == module.weight.shape
        assert module.weight.is_contiguous()


@PLANS
def test_generation_with_the_cache_agrees_with_the_full_forward(model, layout, plan):
    prune_(model, layout, plan)
    ids = IDS[:1]
    for _ in range(6):
        ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], dim=1)
    for cache in ("dynamic", "static"):
        out = model.generate(
            IDS[:1],
            attention_mask=torch.ones_like(IDS[:1]),
            max_new_tokens=6,
            do_sample=False,
            cache_implementation=None if cache == "dynamic" else cache,
            disable_compile=True,
        )
        assert torch.equal(out, ids)


@PLANS
def test_the_config_describes_the_pruned_model(family, model, layout, plan):
    pruned = prune_(model, layout, plan)
    described = ARCHITECTURES.target(family).layout(model.config.to_dict())
    assert described.groups == pruned.groups
    assert described.linears == pruned.linears
    assert hasattr(model.config, "qpruner_widths") == (plan is UNEVEN)


def test_even_widths_open_with_the_plain_class(model, layout, tmp_path):
    prune_(model, layout, EVEN)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert torch.equal(logits(again), logits(model))


def test_heads_that_the_stock_config_refuses_are_listed_instead(family, model, layout):
    three = PruningPlan(kept={f"model.layers.{i}.self_attn": (0, 1, 2) for i in range(2)})
    prune_(model, layout, three)
    # Six query heads do not divide a hidden size of 32, which a stock Llama config refuses.
    assert hasattr(model.config, "qpruner_widths") == (family == "llama")


@PLANS
def test_pruning_twice_is_pruning_once(model, layout, plan):
    first = PruningPlan(kept={"model.layers.1.mlp": tuple(range(60))})
    once = copy.deepcopy(model)
    pruned = prune_(model, prune_(model, layout, first), plan)
    assert pruned == prune_(once, layout, plan)
    assert torch.equal(logits(model), logits(once))
    assert model.config.to_dict() == once.config.to_dict()


def test_a_pruned_model_still_trains_where_it_did_before(model, layout):
    model.requires_grad_(requires_grad=False)
    model.get_parameter("model.layers.0.mlp.up_proj.weight").requires_grad_()
    prune_(model, layout, UNEVEN)
    model(input_ids=IDS, labels=IDS).loss.backward()
    trained = [name for name, p in model.named_parameters() if p.grad is not None]
    assert trained == ["model.layers.0.mlp.up_proj.weight"]


def test_a_plan_for_another_model_is_refused_before_anything_changes(model, layout):
    before = logits(model)
    for wrong in ({"model.layers.7.mlp": (0,)}, {"model.layers.0.self_attn": (0, 4)}):
        plan = PruningPlan(kept={**wrong, "model.layers.1.mlp": (0, 1)})
        with pytest.raises(BadInputError, match="another model"):
            prune_(model, layout, plan)
    assert torch.equal(logits(model), before)


def test_a_model_that_is_not_its_layout_is_refused_before_anything_changes(model, layout):
    model.model.layers[1].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(IncompatibleShapeError, match="up_proj"):
        prune_(model, layout, UNEVEN)
    assert model.model.layers[0].mlp.up_proj.weight.shape == (64, 32)


def test_dropped_layers_leave_whole_and_the_others_move_up(family, model, layout):
    thin = {"model.layers.1.mlp": tuple(range(40)), "model.layers.1.self_attn": (1, 3)}
    both = PruningPlan(kept=thin, dropped_layers=(0,))
    expected = copy.deepcopy(model)
    expected.model.layers[0].forward = lambda hidden_states, **_: hidden_states
    zero_removed_(expected, layout, PruningPlan(kept=thin))
    pruned = prune_(model, layout, both)
    torch.testing.assert_close(logits(model), logits(expected), rtol=0.0, atol=1e-10)
    assert (pruned.n_layers, model.config.num_hidden_layers) == (1, 1)
    assert {group.name for group in pruned.groups} == {
        "model.layers.0.self_attn",
        "model.layers.0.mlp",
    }
    assert sum(parameter.numel() for parameter in model.parameters()) == pruned.parameters
    assert ARCHITECTURES.target(family).layout(model.config.to_dict()).groups == pruned.groups


def test_an_added_bias_shifts_the_output_of_its_projection(model, layout):
    name = "model.layers.0.mlp.down_proj"
    shift = torch.linspace(-1.0, 1.0, layout.hidden_size, dtype=torch.float64)
    seen = {}
    model.get_submodule(name).register_forward_hook(lambda *given: seen.update(now=given[2]))
    logits(model)
    before = seen["now"]
    pruned = prune_(model, layout, PruningPlan(kept={}, biases=(name,)), {name: shift})
    logits(model)
    torch.testing.assert_close(seen["now"] - before, shift.expand_as(before))
    assert sum(parameter.numel() for parameter in model.parameters()) == pruned.parameters
