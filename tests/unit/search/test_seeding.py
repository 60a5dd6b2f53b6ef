"""Which plans are measured without asking a sampler."""

from __future__ import annotations

import itertools

from qpruner_core.search.knapsack import front
from qpruner_core.search.seeding import nearest_untried, order_seeds


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


def test_points_over_the_budget_follow_only_where_those_below_are_too_few(make_space):
    space = make_space(4)
    codes = [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 0, 0), (2, 2, 0, 0), (2, 2, 2, 0)]
    budget = space.code_bytes((1, 0, 0, 0))
    assert order_seeds(space, codes, budget, 2) == [codes[1], codes[0]]
    assert order_seeds(space, codes, budget, 4) == [codes[1], codes[0], codes[2], codes[3]]
    assert order_seeds(space, codes, budget, 1) == [codes[1]]
    assert order_seeds(space, codes, budget, 0) == []
    assert order_seeds(space, [], budget, 3) == []


def test_a_neighbour_is_as_near_as_possible_then_in_the_budget_then_near_the_front(make_space):
    space = make_space(3)
    start = (1, 1, 1)
    everything = 10**9
    assert nearest_untried(space, start, set(), [], everything) == start
    near = nearest_untried(space, start, {start}, [(1, 1, 2)], everything)
    assert near == (1, 1, 2)
    tight = nearest_untried(space, start, {start}, [(1, 0, 2)], space.code_bytes((1, 1, 0)))
    assert tight == (1, 0, 1)


def test_neighbours_exhaust_the_whole_space_without_a_repetition(make_space):
    space = make_space(4)
    tried: set[tuple[int, ...]] = set()
    while (code := nearest_untried(space, (1, 0, 2, 1), tried, [], 0)) is not None:
        assert code not in tried
        tried.add(code)
    assert tried == set(itertools.product(range(3), repeat=4))
