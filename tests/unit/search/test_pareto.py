"""The measured front and the best under a budget."""

from __future__ import annotations

from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import Trial
from qpruner_core.search.pareto import best_measured, front_numbers, hypervolume


def _trial(number, weight_bytes, loss, accuracy=0.5):
    metrics = Metrics(loss=loss, accuracy=accuracy, weight_bytes=weight_bytes, device="cpu")
    return Trial(number=number, name="", plan=PrecisionPlan(precisions={}), metrics=metrics)


TRIALS = (
    _trial(-1, 400, 2.0, accuracy=0.7),
    _trial(0, 100, 3.0, accuracy=0.6),
    _trial(1, 200, 2.5, accuracy=0.6),
    _trial(2, 200, 2.6, accuracy=0.8),
    _trial(3, 300, 2.5, accuracy=0.9),
    Trial(number=4, name="", plan=PrecisionPlan(precisions={}), metrics=None, state="running"),
)


def test_the_front_holds_baselines_and_trials_by_bytes_and_leaves_out_the_unmeasured():
    assert front_numbers(TRIALS, "loss") == (0, 1, -1)


def test_accuracy_is_maximised():
    assert front_numbers(TRIALS, "accuracy") == (0, 2, 3)


def test_the_best_under_a_budget_is_the_smaller_of_equals():
    assert best_measured(TRIALS, "loss", 300).number == 1
    assert best_measured(TRIALS, "loss", 10**6).number == -1
    assert best_measured(TRIALS, "accuracy", 250).number == 2


def test_without_a_measured_plan_in_the_budget_there_is_no_best():
    assert best_measured(TRIALS, "loss", 99) is None


def test_points_outside_the_reference_add_no_hypervolume():
    assert hypervolume([(1.0, 1.0), (9.0, 0.0), (0.0, 9.0)], (3.0, 3.0)) == 4.0
