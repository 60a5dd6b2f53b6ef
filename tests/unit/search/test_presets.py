"""The paper's variants and the plans they are held against."""

from __future__ import annotations

import pytest

from qpruner_core.domain.footprint import dense_bytes
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import Trial
from qpruner_core.errors import InfeasibleBudgetError
from qpruner_core.search.presets import baselines, by_mutual_information, qpruner_3, random_plan


def _layers(layout, plan):
    return [
        {plan.precisions[li.name] for li in layout.linears if li.layer == layer}
        for layer in range(layout.n_layers)
    ]


def _budget(space, n_int8):
    names = ["int8"] * n_int8 + ["nf4"] * (space.layout.n_layers - n_int8)
    return space.bytes(PrecisionPlan.by_layer(space.layout, names))


def test_the_presets_carry_the_papers_names_whatever_the_search_may_choose(make_space):
    space = make_space(4, precisions=("nf4",), tie="linear")
    plans = baselines(space, space.layout, [0.0] * 4, dense_bytes(space.layout))
    assert list(plans) == [
        "LLM-Pruner (16 bit)",
        "uniform int8",
        "QPruner-1",
        "QPruner-2",
        "random",
    ]
    assert plans["LLM-Pruner (16 bit)"] == PrecisionPlan.uniform(space.layout, "bf16")
    assert plans["uniform int8"] == PrecisionPlan.uniform(space.layout, "int8")
    assert plans["QPruner-1"] == PrecisionPlan.uniform(space.layout, "nf4")


def test_qpruner_2_gives_int8_to_the_most_informative_layers_within_the_budget(make_space):
    space = make_space(3)
    budget = _budget(space, 2)  # layers 0 and 1 are the widest, so any two fit
    plan = by_mutual_information(space.layout, [0.1, 0.9, 0.5], budget)
    assert _layers(space.layout, plan) == [{"nf4"}, {"int8"}, {"int8"}]
    assert space.bytes(plan) <= budget


def test_qpruner_2_passes_over_a_layer_that_does_not_fit_for_one_that_does(make_space):
    space = make_space(3)
    narrow = PrecisionPlan.by_layer(space.layout, ["nf4", "nf4", "int8"])
    plan = by_mutual_information(space.layout, [0.9, 0.5, 0.1], space.bytes(narrow))
    assert plan == narrow


def test_qpruner_2_is_left_out_where_nf4_everywhere_is_too_much(make_space):
    space = make_space(3)
    assert by_mutual_information(space.layout, [0.0] * 3, space.smallest_bytes - 1) is None
    with pytest.raises(InfeasibleBudgetError):
        baselines(space, space.layout, [0.0] * 3, space.smallest_bytes - 1)


def test_random_plans_keep_the_budget_and_follow_the_seed(make_space):
    space = make_space(6, tie="block")
    budget = (space.smallest_bytes + space.code_bytes((1,) * 12)) // 2
    plans = [random_plan(space, budget, seed) for seed in range(20)]
    assert all(space.bytes(plan) <= budget for plan in plans)
    assert plans[3] == random_plan(space, budget, 3)
    assert len({plan.key for plan in plans}) > 10
    assert random_plan(space, space.smallest_bytes, 0) == space.decode((0,) * 12)


def test_qpruner_3_is_the_best_measured_plan_of_whole_layers_in_nf4_and_int8(make_space):
    space = make_space(3)
    codes = [(0, 0, 0), (0, 1, 0), (1, 1, 0), (2, 0, 0)]
    trials = [
        Trial(
            number=number,
            name="",
            plan=space.decode(code),
            metrics=Metrics(
                loss=3.0 - number,
                accuracy=0.5,
                weight_bytes=space.code_bytes(code),
                device="cpu",
            ),
        )
        for number, code in enumerate(codes)
    ]
    all_bytes = dense_bytes(space.layout)
    assert qpruner_3(trials, space.layout, all_bytes, "loss") == trials[2]
    assert qpruner_3(trials, space.layout, space.code_bytes((1, 1, 0)) - 1, "loss") == trials[1]
    assert qpruner_3(trials[3:], space.layout, all_bytes, "loss") is None
