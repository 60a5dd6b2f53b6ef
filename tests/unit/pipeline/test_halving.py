"""Which plans are stopped on a part of the text, and which are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import Trial
from qpruner_core.pipeline.halving import (
    FEWEST,
    TAIL,
    Rival,
    critical,
    dominated,
    rung_ends,
)
from qpruner_core.pipeline.stopping import out_of_patience, unmoved

BASE = np.random.default_rng(0).normal(3.0, 1.0, size=64)


def losses(shift, spread=0.05, seed=1):
    return tuple(BASE + np.random.default_rng(seed).normal(shift, spread, size=len(BASE)))


def rival(shift=0.0, cost=100.0, name="trial 3"):
    return Rival(name=name, cost=cost, losses=losses(shift, seed=2))


def test_every_rung_reads_twice_as_much_and_the_last_reads_all():
    assert rung_ends(96, 1) == (96,)
    assert rung_ends(96, 3) == (24, 48, 96)
    assert rung_ends(100, 4) == (13, 25, 50, 100)
    assert rung_ends(20, 6) == (10, 20)
    assert rung_ends(FEWEST, 6) == (FEWEST,)
    assert rung_ends(1, 6) == (1,)


@pytest.mark.parametrize("n", [8, 24, 1000])
def test_few_sequences_need_a_larger_difference(n):
    assert critical(n) == pytest.approx(stats.t.isf(TAIL, n - 1))
    assert critical(n) > 3.0


def test_a_clearly_worse_plan_is_stopped_and_the_reason_says_by_what():
    verdict = dominated(losses(0.2)[:16], 100.0, [rival()], 64)
    difference = np.array(losses(0.2)[:16]) - np.array(rival().losses[:16])
    assert verdict.difference.mean == pytest.approx(float(difference.mean()))
    assert verdict.difference.error == pytest.approx(float(difference.std(ddof=1)) / 4)
    words = verdict.words
    assert "16 of 64 sequences by trial 3" in words
    assert f"{verdict.difference.mean:.4f} nats" in words
    assert f"standard error {verdict.difference.error:.4f}" in words


def test_a_dearer_rival_stops_nobody():
    assert dominated(losses(0.2)[:16], 99.0, [rival(cost=100.0)], 64) is None


def test_a_better_plan_and_one_within_noise_go_on():
    assert dominated(losses(-0.2)[:16], 100.0, [rival()], 64) is None
    assert dominated(losses(0.01)[:16], 100.0, [rival()], 64) is None
    assert dominated(rival().losses[:16], 100.0, [rival()], 64) is None


def test_rivals_that_have_not_answered_the_text_are_not_compared():
    unknown = Rival(name="old", cost=1.0, losses=())
    assert dominated(losses(0.2)[:16], 100.0, [unknown], 64) is None


def test_of_several_rivals_the_one_that_is_best_gives_the_reason():
    rivals = [rival(0.05, name="near"), rival(-0.3, name="far"), rival(0.0, name="mid")]
    assert dominated(losses(0.2)[:16], 100.0, rivals, 64).rival.name == "far"


def test_a_plan_that_is_no_worse_is_stopped_about_as_rarely_as_the_tail_says():
    rng = np.random.default_rng(5)
    n_stopped = 0
    for _ in range(4000):
        base = rng.normal(3.0, 1.0, size=12)
        equal = Rival(name="equal", cost=1.0, losses=tuple(base + rng.normal(0, 0.1, 12)))
        mine = tuple(base + rng.normal(0, 0.1, 12))
        n_stopped += dominated(mine, 1.0, [equal], 12) is not None
    assert n_stopped <= 4000 * TAIL + 3 * (4000 * TAIL) ** 0.5


def trial(number, size=None, loss=None, state="complete"):
    metrics = None
    if size is not None:
        metrics = Metrics(loss=loss, accuracy=0.5, weight_bytes=size, device="cpu")
    plan = PrecisionPlan(precisions={"a": str(number)})
    return Trial(number=number, name="", plan=plan, metrics=metrics, state=state)


def test_trials_that_leave_the_front_where_it_is_are_counted():
    baselines = [trial(-1, 100, 2.0), trial(-2, 50, 3.0)]
    assert unmoved(baselines, [], "loss", "weight_bytes") == 0
    behind = [trial(0, 110, 2.1), trial(1, state="stopped"), trial(2, state="failed")]
    assert unmoved(baselines, behind, "loss", "weight_bytes") == 3
    moved = [*behind, trial(3, 70, 2.5), trial(4, state="running"), trial(5, 80, 2.6)]
    assert unmoved(baselines, moved, "loss", "weight_bytes") == 1


def test_a_trial_that_takes_a_place_off_the_front_has_moved_it():
    baselines = [trial(-1, 100, 2.0), trial(-2, 50, 3.0)]
    assert unmoved(baselines, [trial(0, 40, 1.0)], "loss", "weight_bytes") == 0


def test_patience_ends_a_search_that_has_trials_left_and_says_after_how_many():
    assert out_of_patience(12, 31, 12, 60) == (
        "stopped after 31 of 60 trials: the measured front has not moved for 12 trials"
    )
    assert out_of_patience(11, 31, 12, 60) == ""
    assert out_of_patience(40, 60, 12, 60) == ""
    assert out_of_patience(40, 40, 0, 60) == ""
