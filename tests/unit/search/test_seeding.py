"""Which plans are measured without asking a sampler."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qpruner_core.domain.plan import PruningPlan
from qpruner_core.models.architectures import llama
from qpruner_core.search.knapsack import front
from qpruner_core.search.pareto import hypervolume
from qpruner_core.search.seeding import nearest_untried, order_points, within_budget
from qpruner_core.search.space import SearchSpace


def test_points_start_below_the_budget_and_with_the_smallest(make_space, sensitivities):
    found = front(make_space(6), sensitivities(make_space(6)))
    budget = int(found.weight_bytes[len(found) // 2]) + 1
    points = order_points(found, budget, 6)
    assert len(points) == len(set(points)) == 6
    assert points[0] == found.code(len(found) // 2)
    assert points[1] == found.code(0)
    assert points == order_points(found, budget, 20)[:6]


def test_every_further_point_is_the_one_that_adds_most_to_the_predicted_area(
    make_space, sensitivities
):
    space = make_space(5)
    found = front(space, sensitivities(space))
    pairs = {p.plan.key: (float(p.weight_bytes), p.loss_increase) for p in found}
    reference = (float(found.weight_bytes[-1]), float(found.loss_increase[0]))
    order = [space.decode(code).key for code in order_points(found, space.largest_bytes, 7)]

    def area(keys):
        return hypervolume([pairs[key] for key in keys], reference)

    for n in range(2, 7):
        best = max(area([*order[:n], key]) for key in pairs)
        assert area(order[: n + 1]) == pytest.approx(best)


def test_points_over_the_budget_are_left_out(make_space, sensitivities):
    space = make_space(4)
    found = front(space, sensitivities(space))
    budget = int(found.weight_bytes[2])
    sizes = {space.code_bytes(code) for code in order_points(found, budget, 100)}
    assert sizes == set(found.weight_bytes[:3].tolist())
    assert len(order_points(found, budget, 1)) == 1
    assert order_points(found, budget, 0) == []
    assert order_points(found, space.smallest_bytes - 1, 3) == []


def test_a_neighbour_is_as_near_as_possible_in_the_budget_and_near_the_front(make_space):
    space = make_space(3)
    start = (1, 1, 1)
    everything = 10**9
    assert nearest_untried(space, start, set(), [], everything) == start
    near = nearest_untried(space, start, {start}, [(1, 1, 2)], everything)
    assert near == (1, 1, 2)
    tight = nearest_untried(
        space, (1, 0, 0), {(1, 0, 0)}, [(1, 1, 1)], space.code_bytes((1, 1, 0))
    )
    assert tight in {(1, 1, 0), (1, 0, 1)}
    assert space.code_bytes(tight) <= space.code_bytes((1, 1, 0))


def test_neighbours_exhaust_the_whole_space_without_a_repetition(make_space):
    space = make_space(4)
    tried: set[tuple[int, ...]] = set()
    while (code := nearest_untried(space, (1, 0, 2, 1), tried, [], 10**9)) is not None:
        assert code not in tried
        tried.add(code)
    assert tried == set(itertools.product(range(3), repeat=4))


def test_all_plans_within_a_budget_are_reached_and_no_other(make_space):
    space = make_space(4)
    budget = space.code_bytes((1, 0, 2, 1))
    tried: set[tuple[int, ...]] = set()
    while (code := nearest_untried(space, (0, 0, 0, 0), tried, [], budget)) is not None:
        tried.add(code)
    every = itertools.product(range(3), repeat=4)
    assert tried == {code for code in every if space.code_bytes(code) <= budget}


def test_a_plan_over_the_budget_is_lowered_where_it_costs_least_per_byte(make_space):
    space = make_space(4, precisions=("nf4", "int8"))
    prior = np.array([[0.5, 0.0], [0.1, 0.0], [0.4, 0.0], [0.2, 0.0]])
    top = (1, 1, 1, 1)
    gone = [space.unit_bytes[unit][1] - space.unit_bytes[unit][0] for unit in range(4)]
    order = sorted(range(4), key=lambda unit: prior[unit, 0] / gone[unit])
    one_less = space.code_bytes(top) - gone[order[0]]
    lowered = within_budget(space, top, prior, one_less)
    assert [unit for unit in range(4) if lowered[unit] == 0] == [order[0]]
    assert within_budget(space, top, prior, space.largest_bytes) == top
    assert within_budget(space, top, prior, space.smallest_bytes) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="no plan"):
        within_budget(space, top, prior, space.smallest_bytes - 1)


def test_no_plan_is_out_of_reach_where_a_level_hardly_prunes_some_layer():
    layout = llama.layout(
        {
            "model_type": "llama",
            "num_hidden_layers": 3,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 512,
            "vocab_size": 128,
        }
    )
    groups = [group for group in layout.groups if group.kind == "mlp_channels"]
    # Little leaves layer 0, nearly everything the others: only for these does 8 bit at that level
    # take less than 4 bit at the other.
    kept = {g.name: tuple(range(480 if g.layer == 0 else 64)) for g in groups}
    level = layout.pruned(PruningPlan(kept=kept))
    space = SearchSpace(layout, ("nf4", "int8"), "layer", levels=[level], joint="per-layer")
    codes = set(itertools.product(range(4), repeat=3))
    assert any(sorted(row) != list(row) for row in space.unit_bytes)
    for budget in sorted({space.code_bytes(code) for code in codes}):
        inside = {code for code in codes if space.code_bytes(code) <= budget}
        tried: set[tuple[int, ...]] = set()
        while (code := nearest_untried(space, (0, 0, 0), tried, [], budget)) is not None:
            tried.add(code)
        assert tried == inside
