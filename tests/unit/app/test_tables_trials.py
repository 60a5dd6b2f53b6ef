"""How far a search has come."""

from __future__ import annotations

import pytest

from app import tables_trials
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import FIRST_BY_HAND, Trial

PLAN = PrecisionPlan(precisions={"a": "nf4"})


def trial(number: int, state: str = "complete", seconds: float = 2.0, **facts: object) -> Trial:
    metrics = Metrics(loss=1.0, accuracy=0.5, weight_bytes=9, device="cpu", seconds=seconds)
    measured = metrics if state == "complete" else None
    return Trial(number=number, name="", plan=PLAN, metrics=measured, state=state, **facts)


@pytest.fixture
def trials() -> list[Trial]:
    ended = [trial(-1), trial(0), trial(1, seconds=4.0), trial(2, "failed"), trial(3, "stopped")]
    return [*ended, trial(4, "running", worker="atlas/cpu"), trial(FIRST_BY_HAND)]


def test_failed_and_stopped_trials_count_as_done_and_plans_by_hand_do_not(trials):
    now = tables_trials.standing(trials, 10)
    assert (now.n_ended, now.n_left, now.n_baselines) == (4, 6, 1)
    assert [t.number for t in now.running] == [4]


def test_the_time_left_is_shared_by_the_workers(trials):
    now = tables_trials.standing(trials, 10)
    assert tables_trials.seconds_left(now, 1) == pytest.approx(6 * 3.0)
    assert tables_trials.seconds_left(now, 3) == pytest.approx(2 * 3.0)


def test_what_workers_report_goes_before_what_a_measurement_alone_took(trials):
    now = tables_trials.standing(trials, 10)
    assert tables_trials.seconds_left(now, 3, pace=5.0) == pytest.approx(6 * 5.0)


def test_without_a_measurement_there_is_no_time_left_to_tell():
    assert tables_trials.seconds_left(tables_trials.standing([], 10), 2) == 0.0


def test_what_was_measured_is_said_in_a_sentence(trials):
    now = tables_trials.standing(trials, 10)
    said = "2 trials and 1 baseline measured, 1 failed, 1 stopped early."
    assert tables_trials.count_words(now) == said


def test_equal_reasons_are_told_once_the_most_frequent_first():
    ended = [trial(i, "failed", reason="NaN." if i else "Memory.") for i in range(10)]
    many, one = tables_trials.reasons(ended)
    assert many == "trials 1, 2, 3, 4, 5, 6 and more: NaN."
    assert one == "trial 0: Memory."
