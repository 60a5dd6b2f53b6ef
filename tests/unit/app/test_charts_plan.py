"""The layer map shows every Linear, where roles repeat too."""

from __future__ import annotations

from app import charts_plan, tables_plan
from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.plan import PrecisionPlan

GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96}
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def test_roles_that_attention_and_mlp_share_have_a_row_each():
    layout = ARCHITECTURES.target("gpt2").layout(GPT2)
    figure = charts_plan.layer_map(layout, PrecisionPlan.uniform(layout, "int8"))
    assert list(figure.layout.yaxis.ticktext) == [
        "c_attn",
        "attention c_proj",
        "c_fc",
        "mlp c_proj",
    ]
    assert sum(len(trace.x) for trace in figure.data) == len(layout.linears)


def test_experts_share_a_cell_that_says_what_each_has():
    layout = ARCHITECTURES.target("mixtral").layout(MIXTRAL)
    precisions = dict(PrecisionPlan.uniform(layout, "nf4").precisions)
    precisions["model.layers.1.mlp.experts.2.up_proj"] = "bf16"
    figure = charts_plan.layer_map(layout, PrecisionPlan(precisions=precisions))
    (trace,) = figure.data
    (words,) = [text for text in trace.hovertext if "layer 1, up_proj" in text]
    assert "NF4 in 3, BF16 in 1" in words
    assert "4 experts" in words
    assert len(trace.x) == 2 * 7


def test_linears_that_two_plans_treat_differently_are_ringed():
    layout = ARCHITECTURES.target("gpt2").layout(GPT2)
    one = PrecisionPlan.by_layer(layout, ["nf4", "int8"])
    other = PrecisionPlan.by_layer(layout, ["nf4", "nf4"])
    marked = tables_plan.differing(layout, [one, other])
    assert marked == {linear.name for linear in layout.linears if linear.layer == 1}
    (rings,) = [t for t in charts_plan.layer_map(layout, one, marked).data if t.name == "differs"]
    assert set(rings.x) == {1}
    assert len(rings.x) == len(marked)


def test_alike_plans_have_no_rings_and_other_pruning_levels_do():
    layout = ARCHITECTURES.target("gpt2").layout(GPT2)
    plan = PrecisionPlan.uniform(layout, "nf4")
    assert not tables_plan.differing(layout, [plan, plan])
    pruned_more = PrecisionPlan(precisions=plan.precisions, levels=(0, 1))
    marked = tables_plan.differing(layout, [plan, pruned_more])
    assert marked == {linear.name for linear in layout.linears if linear.layer == 1}
