"""The study: slots, resuming, several workers, budgets, and never a plan twice."""

from __future__ import annotations

import threading

import optuna
import pytest

from qpruner_core.domain.footprint import dense_bytes
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.errors import BadInputError, InfeasibleBudgetError, UnknownNameError
from qpruner_core.search import rows
from qpruner_core.search.asking import Known
from qpruner_core.search.knapsack import front
from qpruner_core.search.reading import TrialReader
from qpruner_core.search.study import Study


@pytest.fixture
def storage(tmp_path):
    return str(tmp_path / "study.db")


@pytest.fixture
def budget(make_space):
    """What int8 everywhere takes: a good part of the plans lies over it."""
    space = make_space()
    return space.code_bytes((1,) * len(space.units))


def _spec(**changes):
    return SearchSpec(**{"strategy": "random", "n_trials": 8, **changes})


N_ENOUGH = 99
"""Trials that no study here comes to."""


def _claim(study, owner="me"):
    return study.claim(owner, N_ENOUGH)


def _run(study, space, measure, n_more):
    """Measure so many trials and return the keys of their plans in the order of measuring."""
    keys = []
    for _ in range(n_more):
        proposal = _claim(study)
        if proposal.exhausted:
            break
        study.record(proposal.number, measure(space, proposal.plan))
        keys.append(proposal.plan.key)
    return keys


@pytest.mark.parametrize("strategy", ["gp_seeded", "gp", "tpe", "nsga2", "random"])
def test_every_strategy_measures_new_plans_and_the_same_seed_gives_the_same_trials(
    make_space, measure, sensitivities, budget, tmp_path, strategy
):
    space = make_space()
    known = Known(sensitivities=sensitivities(space))
    options = {"population_size": 4} if strategy == "nsga2" else {"n_startup": 5}
    spec = _spec(strategy=strategy, n_trials=9, options={} if strategy == "random" else options)

    def run(name):
        with Study.open(str(tmp_path / name), "s", space, spec, budget, known) as study:
            return _run(study, space, measure, 9)

    first = run("a.db")
    assert first == run("b.db")
    assert len(set(first)) == 9


def test_resuming_in_the_middle_gives_the_trials_of_an_uninterrupted_study(
    make_space, measure, budget, tmp_path
):
    space, spec = make_space(), _spec(strategy="nsga2", options={"population_size": 3})
    with Study.open(str(tmp_path / "whole.db"), "s", space, spec, budget) as study:
        whole = _run(study, space, measure, 8)
    pieces = []
    for _ in range(8):
        with Study.open(str(tmp_path / "pieces.db"), "s", space, spec, budget) as study:
            pieces += _run(study, space, measure, 1)
    assert pieces == whole


def test_a_trial_left_running_by_a_worker_that_starts_again_is_its_next_one(
    make_space, measure, budget, storage
):
    space = make_space()
    abandoned = Study.open(storage, "s", space, _spec(), budget)
    _run(abandoned, space, measure, 1)
    lost = _claim(abandoned)
    abandoned.close()

    with Study.open(storage, "s", space, _spec(), budget) as study:
        again = _claim(study)
        assert again == lost
        study.record(again.number, measure(space, again.plan))
        assert [trial.state for trial in study.trials()] == ["complete", "complete"]
        assert _claim(study).number == 2


def test_a_measurement_written_just_before_the_worker_died_is_not_lost(
    make_space, measure, budget, storage
):
    space = make_space()
    study = Study.open(storage, "s", space, _spec(), budget)
    proposal = _claim(study)
    metrics = measure(space, proposal.plan)
    raw = optuna.load_study(study_name="s", storage=study._storage)
    handle = optuna.trial.Trial(raw, raw.trials[proposal.number]._trial_id)
    handle.set_user_attr(rows.METRICS, rows.metrics_to_text(metrics))  # and then the power fails
    study.close()

    with Study.open(storage, "s", space, _spec(), budget) as reopened:
        assert _claim(reopened).number == 1
        trial, _ = reopened.trials()
        assert (trial.state, trial.metrics) == ("complete", metrics)


def test_recording_twice_changes_nothing(make_space, measure, budget, storage):
    space = make_space()
    with Study.open(storage, "s", space, _spec(), budget) as study:
        proposal = _claim(study)
        metrics = measure(space, proposal.plan)
        study.record(proposal.number, metrics)
        study.record(proposal.number, measure(space, space.decode((0,) * 6)))
        study.fail(proposal.number, "too late")
        (trial,) = study.trials()
        assert (trial.state, trial.metrics, trial.reason) == ("complete", metrics, "")


def test_a_failure_keeps_its_reason_ends_its_trial_and_is_not_proposed_again(
    make_space, budget, storage
):
    space = make_space(1)
    with Study.open(storage, "s", space, _spec(), dense_bytes(space.layout)) as study:
        keys = []
        for number in range(3):
            proposal = _claim(study)
            assert proposal.number == number
            study.fail(proposal.number, f"loss of trial {number} is not finite")
            keys.append(proposal.plan.key)
        assert len(set(keys)) == 3
        assert [(t.state, t.metrics) for t in study.trials()] == [("failed", None)] * 3
        assert study.trials()[1].reason == "loss of trial 1 is not finite"


def test_two_workers_on_one_file_never_propose_the_same_plan(make_space, measure, budget, storage):
    space = make_space(2)
    first = Study.open(storage, "s", space, _spec(), budget)
    second = Study.open(storage, "s", space, _spec(), budget)
    keys = []
    for _ in range(4):
        one, two = _claim(first, "one"), _claim(second, "two")
        first.record(one.number, measure(space, one.plan))
        second.record(two.number, measure(space, two.plan))
        keys += [one.plan.key, two.plan.key]
    assert len(set(keys)) == 8
    assert first.trials() == second.trials()
    first.close()
    second.close()


def test_two_workers_at_the_very_same_time_share_trials_and_plans_out(
    make_space, measure, budget, storage
):
    space = make_space(2)
    start, found = threading.Barrier(2), []

    def work(owner):
        with Study.open(storage, "s", space, _spec(), budget) as study:
            start.wait()
            while not (proposal := study.claim(owner, 7)).exhausted:
                study.record(proposal.number, measure(space, proposal.plan))
                found.append(proposal)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(proposal.number for proposal in found) == list(range(7))
    assert len({proposal.plan.key for proposal in found}) == 7


@pytest.mark.parametrize("strategy", ["gp", "tpe", "nsga2", "random"])
def test_a_small_space_is_measured_to_the_last_plan_and_then_said_to_be_exhausted(
    make_space, measure, storage, strategy
):
    space = make_space(2)
    known = space.decode((2, 2))
    spec = _spec(strategy=strategy, n_trials=20)
    everything = dense_bytes(space.layout)
    measured = {known.key: measure(space, known)}
    with Study.open(storage, "s", space, spec, everything, Known(measured=measured)) as study:
        keys = _run(study, space, measure, 20)
        assert len(keys) == len(set(keys)) == space.size - 1
        assert known.key not in keys
        last = _claim(study)
        assert (last.exhausted, last.number) == (True, -1)
        assert len(study.trials()) == 8


def test_a_seeded_strategy_measures_the_predicted_front_from_the_budget_down_first(
    make_space, measure, sensitivities, budget, storage
):
    space = make_space()
    points = list(front(space, sensitivities(space)))
    below = [point for point in points if point.weight_bytes <= budget]
    known = below[-1].plan
    spec = _spec(strategy="gp_seeded", n_trials=9)
    with Study.open(
        storage,
        "s",
        space,
        spec,
        budget,
        Known(sensitivities=sensitivities(space), measured={known.key: measure(space, known)}),
    ) as study:
        keys = _run(study, space, measure, 6)
    on_front = [point.plan.key for point in below]
    assert keys[0] == on_front[0]  # the best under the budget is known, the smallest is next
    assert set(keys) <= set(on_front)


def test_baselines_outside_the_space_are_taken_without_complaint(
    make_space, measure, budget, storage
):
    space, wide = make_space(precisions=("nf4", "int8")), make_space()
    bf16 = PrecisionPlan.uniform(space.layout, "bf16")
    measured = {bf16.key: measure(wide, bf16)}
    with Study.open(storage, "s", space, _spec(), budget, Known(measured=measured)) as study:
        assert _claim(study).plan in space


@pytest.mark.parametrize("objective", ["loss", "accuracy"])
def test_optuna_sees_two_objectives_and_the_budget_as_a_constraint(
    make_space, measure, budget, storage, objective
):
    space = make_space()
    with Study.open(storage, "s", space, _spec(objective=objective), budget) as study:
        _run(study, space, measure, 6)
        trials = study.trials()
    stored = optuna.load_study(study_name="s", storage=f"sqlite:///{storage}")
    quality = {"loss": "MINIMIZE", "accuracy": "MAXIMIZE"}[objective]
    assert [direction.name for direction in stored.directions] == [quality, "MINIMIZE"]
    for raw, trial in zip(stored.trials, trials, strict=True):
        assert raw.values == [getattr(trial.metrics, objective), trial.metrics.weight_bytes]
        assert raw.constraints == {"memory": trial.metrics.weight_bytes - budget}
        assert space.decode(tuple(raw.params[unit] for unit in space.units)) == trial.plan


@pytest.mark.parametrize("changed", ["units", "precisions", "model", "budget", "objective"])
def test_a_stored_study_that_was_made_for_something_else_is_refused(
    make_space, budget, storage, changed
):
    Study.open(storage, "s", make_space(), _spec(), budget).close()
    space = {
        "units": make_space(tie="block"),
        "precisions": make_space(precisions=("nf4", "int8")),
        "model": make_space(7),
    }.get(changed, make_space())
    spec = _spec(objective="accuracy" if changed == "objective" else "loss")
    other = budget + 1 if changed == "budget" else budget
    with pytest.raises(BadInputError, match=f"{changed}.*asked.*start a new run"):
        Study.open(storage, "s", space, spec, other)


def test_trials_may_be_added_and_the_strategy_changed_in_a_stored_study(
    make_space, measure, budget, storage
):
    space = make_space()
    with Study.open(storage, "s", space, _spec(n_trials=3), budget) as study:
        _run(study, space, measure, 3)
    with Study.open(storage, "s", space, _spec(strategy="tpe", n_trials=5), budget) as study:
        _run(study, space, measure, 2)
        assert [trial.number for trial in study.trials()] == [0, 1, 2, 3, 4]


def test_bad_requests_are_refused_before_anything_is_stored(make_space, budget, tmp_path):
    space, storage = make_space(), str(tmp_path / "none.db")
    with pytest.raises(InfeasibleBudgetError):
        Study.open(storage, "s", space, _spec(), space.smallest_bytes - 1)
    with pytest.raises(UnknownNameError, match="tpe"):
        Study.open(storage, "s", space, _spec(strategy="tpa"), budget)
    with pytest.raises(BadInputError, match="n_startup"):
        Study.open(storage, "s", space, _spec(strategy="gp", options={"n_startup": 0}), budget)
    assert not (tmp_path / "none.db").exists()


def test_unknown_numbers_are_bugs_and_raise(make_space, measure, budget, storage):
    space = make_space()
    with (
        Study.open(storage, "s", space, _spec(), budget) as study,
        pytest.raises(ValueError, match="number 5"),
    ):
        study.record(5, measure(space, space.decode((0,) * 6)))


def test_two_studies_live_side_by_side_in_one_file(make_space, measure, budget, storage):
    space = make_space()
    for name in ("a", "b"):
        with Study.open(storage, name, space, _spec(), budget) as study:
            _run(study, space, measure, 2)
    assert len(TrialReader(storage, "a").read()) == len(TrialReader(storage, "b").read()) == 2
