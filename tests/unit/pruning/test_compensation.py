"""Biases in place of what leaves, in float64, against references of a few lines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from qpruner_core.domain.layout import opens_plainly
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.models.architectures import llama
from qpruner_core.models.inputs import input_statistics, output_projections
from qpruner_core.models.trunk import first_inputs, run_layers
from qpruner_core.pruning.compensation import (
    bias_remarks,
    bias_values,
    compensated,
    removed_inputs,
    round_biases_,
    settled_statistics,
    with_biases,
)
from qpruner_core.pruning.surgery import prune_

O_PROJ, DOWN_PROJ = "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"
BOTH = PruningPlan(
    kept={
        "model.layers.0.self_attn": (1,),
        "model.layers.0.mlp": tuple(range(0, 128, 2)),
        "model.layers.1.self_attn": (0,),
        "model.layers.1.mlp": tuple(range(40)),
    }
)
EVEN = PruningPlan(
    kept={f"model.layers.{i}.mlp": tuple(range(i, 64 + i)) for i in (0, 1)}, shape="uniform"
)


@pytest.fixture
def model(tiny_model: Any) -> Any:
    return tiny_model.double()


@pytest.fixture
def ids() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(4, 128, (24, 16))


def outputs_of(model: Any, name: str, ids: torch.Tensor) -> torch.Tensor:
    """What a Linear gives over a text, (tokens, out)."""
    seen = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.detach())
    )
    with torch.no_grad():
        model(ids)
    handle.remove()
    return torch.cat([output.flatten(0, 1) for output in seen])


def all_statistics(model: Any, layout: Any, ids: torch.Tensor) -> Any:
    return input_statistics(model, layout, ids, output_projections(layout).values())


@pytest.mark.parametrize(
    ("group", "units", "name"),
    [
        ("model.layers.1.self_attn", (1,), O_PROJ),
        ("model.layers.1.mlp", tuple(range(0, 128, 3)), DOWN_PROJ),
    ],
)
def test_the_mean_output_of_a_compensated_projection_is_that_of_the_dense_one(
    model, tiny_layout, ids, group, units, name
):
    plan = with_biases(tiny_layout, PruningPlan(kept={group: units}))
    assert plan.biases == (name,)
    before = outputs_of(model, name, ids).mean(dim=0)
    values = bias_values(model, tiny_layout, plan, all_statistics(model, tiny_layout, ids))
    assert values[name].dtype == torch.float32
    prune_(model, tiny_layout, plan, values)
    after = outputs_of(model, name, ids).mean(dim=0)
    without = after - values[name]
    # The values travel in float32, so seven digits are what can be asked of them.
    assert torch.allclose(after, before, atol=1e-6)
    assert not torch.allclose(without, before, atol=1e-3)


def test_values_are_the_columns_that_leave_times_the_mean_of_their_inputs(model, tiny_layout, ids):
    stats = all_statistics(model, tiny_layout, ids)
    found = bias_values(model, tiny_layout, BOTH, stats)
    removed = {O_PROJ: list(range(32, 64)), DOWN_PROJ: list(range(40, 128))}
    for name, leaves in removed.items():
        weight = model.get_submodule(name).weight
        expected = sum(weight[:, i] * stats[name].mean[i] for i in leaves)
        assert torch.allclose(found[name].double(), expected, atol=1e-6)


def test_what_loses_nothing_gains_nothing(model, tiny_layout, ids):
    stats = all_statistics(model, tiny_layout, ids)
    whole = PruningPlan(kept={"model.layers.0.mlp": tuple(range(128))})
    assert bias_values(model, tiny_layout, whole, stats) == {}
    assert with_biases(tiny_layout, whole).biases == ()
    assert with_biases(tiny_layout, PruningPlan(kept={}, dropped_layers=(0,))).biases == ()


def test_with_settled_means_every_projection_of_the_pruned_model_keeps_its_mean(
    model, tiny_layout, ids
):
    """The mean that a bias stands for is that of the model in which it stands."""
    plan = with_biases(tiny_layout, BOTH)
    stats = settled_statistics(model, tiny_layout, plan, ids)
    values = bias_values(model, tiny_layout, plan, stats)
    for done in plan.biases:
        # The same model in which this projection alone is whole, all before it pruned for good.
        earlier = plan.biases[: plan.biases.index(done)]
        upto = {name.rpartition(".")[0] for name in (*earlier, done)}
        kept = {group: units for group, units in plan.kept.items() if group in upto}
        whole, cut = clone(model), clone(model)
        rest = {g: u for g, u in kept.items() if g != done.rpartition(".")[0]}
        prune_(whole, tiny_layout, replace(plan, kept=rest, biases=earlier), values)
        prune_(cut, tiny_layout, replace(plan, kept=kept, biases=(*earlier, done)), values)
        before = outputs_of(whole, done, ids).mean(dim=0)
        assert torch.allclose(outputs_of(cut, done, ids).mean(dim=0), before, atol=1e-5)


def clone(model: Any) -> Any:
    copied = type(model)(model.config).double().eval()
    copied.load_state_dict(model.state_dict())
    return copied


def test_settled_statistics_leave_the_model_as_it_was_and_pass_dropped_layers_by(
    model, tiny_layout, ids
):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = replace(BOTH, dropped_layers=(0,))
    told: list[int] = []
    stats = settled_statistics(model, tiny_layout, plan, ids, told.append)
    assert told == [0, 1]
    assert set(stats) == {O_PROJ, DOWN_PROJ}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    # What enters layer 1 is then the embedding itself.
    inputs = first_inputs(model, tiny_layout, ids)
    seen = []
    handle = model.get_submodule(O_PROJ).register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].detach())
    )
    run_layers(model, tiny_layout, inputs, 1, 2)
    handle.remove()
    assert torch.allclose(stats[O_PROJ].mean, seen[0].flatten(0, 1).mean(dim=0), atol=1e-12)


def test_a_projection_that_stores_its_weight_inputs_first_gets_the_same_bias(
    model, tiny_layout, ids
):
    stats = all_statistics(model, tiny_layout, ids)
    expected = bias_values(model, tiny_layout, BOTH, stats)[DOWN_PROJ]
    linears = tuple(
        replace(linear, transposed=linear.name == DOWN_PROJ) for linear in tiny_layout.linears
    )
    turned = replace(
        tiny_layout,
        linears=linears,
        groups=tuple(
            replace(
                group,
                slices=tuple(
                    replace(part, axis=0) if part.tensor == f"{DOWN_PROJ}.weight" else part
                    for part in group.slices
                ),
            )
            for group in tiny_layout.groups
        ),
    )
    module = model.get_submodule(DOWN_PROJ)
    module.weight = nn.Parameter(module.weight.detach().T.contiguous())
    assert torch.equal(bias_values(model, turned, BOTH, stats)[DOWN_PROJ], expected)


def test_removed_inputs_are_those_of_the_units_that_leave(tiny_layout):
    found = removed_inputs(tiny_layout, BOTH)
    assert list(found) == list(compensated(tiny_layout, BOTH))
    assert found[O_PROJ].tolist() == list(range(32, 64))
    assert found["model.layers.0.mlp.down_proj"].tolist() == list(range(1, 128, 2))


def test_uniform_widths_stay_stock_as_every_linear_of_the_block_gets_a_bias(
    model, tiny_layout, ids
):
    plan = with_biases(tiny_layout, EVEN)
    roles = ("gate_proj", "up_proj", "down_proj")
    assert plan.biases == tuple(f"model.layers.{i}.mlp.{r}" for i in (0, 1) for r in roles)
    assert opens_plainly(tiny_layout.pruned(plan))
    assert bias_remarks(tiny_layout, plan) == ()
    values = bias_values(model, tiny_layout, plan, all_statistics(model, tiny_layout, ids))
    assert set(values) == {name for name in plan.biases if name.endswith("down_proj")}
    prune_(model, tiny_layout, plan, values)
    assert not model.get_submodule("model.layers.0.mlp.up_proj").bias.any()
    assert model.config.mlp_bias is True


def test_where_the_stock_config_knows_no_such_bias_a_sentence_says_so(tiny_layout):
    other = replace(tiny_layout, model_type="mistral", plain_biases=False)
    plan = with_biases(other, EVEN)
    assert all(name.endswith("down_proj") for name in plan.biases)
    (said,) = bias_remarks(other, plan)
    assert "mistral" in said
    assert "remote" in said
    uneven = with_biases(other, BOTH)
    assert bias_remarks(other, uneven) == ()


def test_biases_are_rounded_to_what_the_files_can_hold(model, tiny_layout, ids):
    plan = replace(with_biases(tiny_layout, BOTH), dropped_layers=(0,))
    plan = with_biases(tiny_layout, plan)
    stats = settled_statistics(model, tiny_layout, plan, ids)
    prune_(model, tiny_layout, plan, bias_values(model, tiny_layout, plan, stats))
    round_biases_(model, tiny_layout, plan, "F32")
    bias = model.get_submodule("model.layers.0.mlp.down_proj").bias
    assert bias.any()
    assert torch.equal(bias, bias.to(torch.bfloat16).double())
    assert torch.equal(bias, bias.to(torch.float16).double())


def test_biases_of_a_whole_block_belong_to_its_units(tiny_model, tiny_layout):
    kept = {f"model.layers.{i}.mlp": tuple(range(64)) for i in range(2)}
    plan = with_biases(tiny_layout, PruningPlan(kept=kept, shape="uniform"))
    pruned = prune_(tiny_model, tiny_layout, plan)
    described = llama.layout(tiny_model.config.to_dict())
    assert described.linears == pruned.linears
    assert described.groups == pruned.groups
    again = PruningPlan(kept={"model.layers.0.mlp": tuple(range(32))})
    prune_(tiny_model, pruned, again)
    assert tiny_model.get_submodule("model.layers.0.mlp.up_proj").bias.shape == (32,)
