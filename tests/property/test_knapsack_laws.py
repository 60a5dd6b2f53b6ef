"""The knapsack front against every plan there is, and the laws of fronts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpruner_core.domain.record import SensitivityCell
from qpruner_core.models.architectures import llama
from qpruner_core.search.knapsack import best_under, front, unit_costs
from qpruner_core.search.pareto import hypervolume, non_dominated
from qpruner_core.search.space import SearchSpace

LAYOUT = llama.layout(
    {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 192,
        "vocab_size": 64,
        "tie_word_embeddings": True,
    }
)
"""One layer: seven Linears, so that a space tied by nothing has seven units."""

points = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=30)


@st.composite
def spaces(draw: st.DrawFn) -> tuple[SearchSpace, list[SensitivityCell]]:
    """Up to 7 units x 3 precisions with widths and sensitivities of any kind, noise included."""
    n_units = draw(st.integers(1, 7))
    linears = tuple(
        replace(linear, out_features=64 * draw(st.integers(1, 6)))
        for linear in LAYOUT.linears[:n_units]
    )
    precisions = draw(st.permutations(["nf4", "fp4", "int8", "bf16"]))[: draw(st.integers(1, 3))]
    space = SearchSpace(replace(LAYOUT, linears=linears), precisions, "linear")
    value = st.one_of(st.sampled_from([0.0, 0.25, 1.0]), st.floats(-0.1, 2.0))
    cells = [
        SensitivityCell(unit=unit, precision=precision, loss_increase=draw(value))
        for unit in space.units
        for precision in space.precisions
    ]
    return space, cells


@given(spaces())
def test_the_front_is_as_good_as_every_plan_under_every_budget(given_space):
    space, cells = given_space
    costs = unit_costs(space, cells)
    found = front(space, cells)
    for code in itertools.product(range(len(space.precisions)), repeat=len(space.units)):
        loss = sum(costs[unit, choice] for unit, choice in enumerate(code))
        assert best_under(found, space.code_bytes(code)).loss_increase <= loss + 1e-9


@given(spaces())
def test_no_point_of_the_front_dominates_another_and_each_plan_keeps_its_word(given_space):
    space, cells = given_space
    costs = unit_costs(space, cells)
    found = front(space, cells)
    assert np.all(np.diff(found.weight_bytes) > 0)
    assert np.all(np.diff(found.loss_increase) < 0)
    for point in found:
        code = space.code(point.plan)
        assert space.code_bytes(code) == point.weight_bytes
        loss = sum(costs[unit, choice] for unit, choice in enumerate(code))
        assert point.loss_increase == pytest.approx(loss, abs=1e-9)


@given(points)
def test_non_dominated_points_are_dominated_by_nothing_and_dominate_the_rest(given_points):
    front_ = [given_points[i] for i in non_dominated(given_points)]

    def dominates(a, b):
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    assert not any(dominates(a, b) for a in given_points for b in front_)
    assert all(p in front_ or any(dominates(a, p) for a in front_) for p in given_points)
    assert front_ == sorted(set(front_))


@given(points)
def test_the_hypervolume_counts_the_cells_that_are_dominated(given_points):
    cells = sum(
        any(x <= column and y <= row for x, y in given_points)
        for column in range(15)
        for row in range(15)
    )
    assert hypervolume(given_points, (15, 15)) == cells
