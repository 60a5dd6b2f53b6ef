"""The predicted front: bounds, clamping, speed."""

from __future__ import annotations

import time

import numpy as np
import pytest

from qpruner_core.domain.record import SensitivityCell
from qpruner_core.errors import BadInputError, InfeasibleBudgetError, NotReadyError
from qpruner_core.search.knapsack import best_under, front, predict, unit_costs


def _cells(space, values):
    return [
        SensitivityCell(unit=unit, precision=precision, loss_increase=float(value))
        for unit, row in zip(space.units, values, strict=True)
        for precision, value in zip(space.precisions, row, strict=True)
    ]


def test_points_say_the_bytes_and_the_prediction_of_their_plans(make_space, sensitivities):
    space = make_space(5)
    cells = sensitivities(space)
    for point in front(space, cells):
        assert point.weight_bytes == space.bytes(point.plan)
        assert point.loss_increase == pytest.approx(predict(space, cells, point.plan), abs=1e-12)


def test_the_front_rises_in_bytes_and_falls_in_loss_from_smallest_to_best(
    make_space, sensitivities
):
    space = make_space(6)
    found = front(space, sensitivities(space))
    assert np.all(np.diff(found.weight_bytes) > 0)
    assert np.all(np.diff(found.loss_increase) < 0)
    assert found[0].weight_bytes == space.smallest_bytes
    assert found[-1].loss_increase == 0.0
    assert found.slack_bytes == 0


def test_noise_is_clamped_so_that_more_bytes_never_predict_more_loss(make_space):
    space = make_space(2, precisions=("nf4", "fp4", "int8", "bf16"))
    cells = _cells(space, [[-0.01, 0.30, 0.02, 0.001], [0.2, 0.3, -0.1, -0.2]])
    by_name = dict(zip(space.precisions, unit_costs(space, cells).T, strict=True))
    np.testing.assert_allclose(by_name["bf16"], [0.001, 0.0])
    np.testing.assert_allclose(by_name["int8"], [0.02, 0.0])
    np.testing.assert_allclose(by_name["nf4"], [0.02, 0.2])
    np.testing.assert_allclose(by_name["fp4"], [0.30, 0.3])


def test_a_missing_sensitivity_is_named(make_space, sensitivities):
    space = make_space(3)
    with pytest.raises(NotReadyError, match=r"layer\.2 at bf16"):
        front(space, sensitivities(space)[:-1])


def test_a_plan_outside_the_space_is_not_predicted(make_space, sensitivities):
    space = make_space(2, precisions=("nf4", "int8"))
    other = make_space(2, precisions=("bf16",)).decode((0, 0))
    with pytest.raises(BadInputError, match="bf16"):
        predict(space, sensitivities(space), other)


def test_best_under_takes_the_budget_to_the_byte_and_refuses_less_than_the_smallest(
    make_space, sensitivities
):
    space = make_space(4)
    found = front(space, sensitivities(space))
    third = found[2]
    assert best_under(found, third.weight_bytes) == third
    assert best_under(found, third.weight_bytes - 1) == found[1]
    assert best_under(found, 10**12) == found[-1]
    with pytest.raises(InfeasibleBudgetError, match="smallest"):
        best_under(found, found[0].weight_bytes - 1)


def test_thinning_keeps_both_ends_and_slices_are_points(make_space, sensitivities):
    found = front(make_space(6), sensitivities(make_space(6)))
    few = found.thinned(5)
    assert len(few) <= 5 < len(found)
    assert (few[0], few[-1]) == (found[0], found[-1])
    assert found[:2] == [found[0], found[1]]
    assert found.thinned(10**6) == list(found)


def test_beyond_the_cap_the_front_stays_within_its_stated_slack(make_space):
    space = make_space(6, tie="block")
    rng = np.random.default_rng(3)
    cells = _cells(space, np.sort(rng.random((12, 3)), axis=1)[:, ::-1] * [1.0, 1.0, 0.0])
    exact, coarse = front(space, cells), front(space, cells, max_states=40)
    assert exact.slack_bytes == 0 < coarse.slack_bytes
    assert len(coarse) <= 41 < len(exact)
    assert coarse[0].weight_bytes == space.smallest_bytes
    for budget in exact.weight_bytes + coarse.slack_bytes:
        allowed = best_under(exact, int(budget) - coarse.slack_bytes).loss_increase
        assert best_under(coarse, int(budget)).loss_increase <= allowed + 1e-12


def test_all_budgets_of_224_units_are_solved_at_once_and_fast(make_space, sensitivities):
    space = make_space(32, tie="linear")
    cells = sensitivities(space)
    start = time.perf_counter()
    found = front(space, cells)
    assert time.perf_counter() - start < 2.0
    assert len(space.units) == 224 < len(found)


def test_a_front_of_32_layers_takes_less_than_a_tenth_of_a_second(make_space, sensitivities):
    space = make_space(32)
    cells = sensitivities(space)
    start = time.perf_counter()
    found = front(space, cells)
    assert time.perf_counter() - start < 0.1
    assert len(found) > 32
