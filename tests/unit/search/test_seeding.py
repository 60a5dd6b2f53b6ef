"""Which plans are measured without asking a sampler."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qpruner_core.search.knapsack import front
from qpruner_core.search.seeding import nearest_untried, order_seeds, within_budget


def _codes(space, points):
    return [space.code(point.plan) for point in points]


def test_seeds_start_at_the_budget_and_reach_down_to_the_smallest(make_space, sensitivities):
    space = make_space(6)
    codes = _codes(space, front(space, sensitivities(space)))
    budget = space.code_bytes(codes[len(codes) // 2]) + 1
    seeds = order_seeds(space, codes, budget, 6)
    sizes = [space.code_bytes(code) for code in seeds]
    assert len(seeds) == len(set(seeds)) == 6
    assert sizes == sorted(sizes, reverse=True)
    assert seeds[0] == codes[len(codes) // 2]
    assert seeds[-1] == codes[0]
    assert sizes[0] - sizes[1] < sizes[-2] - sizes[-1]


def test_points_over_the_budget_are_left_out(make_space):
    space = make_space(4)
    codes = [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 0, 0), (2, 2, 0, 0), (2, 2, 2, 0)]
    budget = space.code_bytes((1, 0, 0, 0))
    assert order_seeds(space, codes, budget, 2) == [codes[1], codes[0]]
    assert order_seeds(space, codes, budget, 4) == [codes[1], codes[0]]
    assert order_seeds(space, codes, budget, 1) == [codes[1]]
    assert order_seeds(space, codes, budget, 0) == []
    assert order_seeds(space, [], budget, 3) == []


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
