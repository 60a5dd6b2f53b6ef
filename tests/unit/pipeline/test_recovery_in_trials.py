"""Recovery inside trials: every plan is trained for a while, measured, and leaves no trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import STEPS
from qpruner_core.errors import BadInputError, NotReadyError, StoppedError
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line, starting
from qpruner_core.pipeline import trial_recovery as trained_trials
from qpruner_core.pipeline.materials import Materials
from qpruner_core.pipeline.out_of_memory import OUT_OF_MEMORY_IN_TRAINING

UPTO_SEARCH = STEPS[: STEPS.index("evaluate")]
"""The full evaluation in between is not needed."""


def searching(spec, **changes):
    return replace(spec, search=replace(spec.search, **changes))


def training(spec, **changes):
    return replace(spec, recovery=replace(spec.recovery, **changes))


def losses(search):
    """Return plan -> loss of everything that was measured."""
    return {t.plan.key: t.metrics.loss for t in (*search.trials, *search.baselines) if t.metrics}


@pytest.fixture
def spec(deep_spec):
    """A recovery that learns something in four steps of eight sequences."""
    return training(deep_spec, learning_rate=2e-2, batch_size=8, warm_up=0.0)


@pytest.fixture
def ready(start, go, spec):
    """A run that stands before its search."""
    line = start(spec)
    go(line, spec, *UPTO_SEARCH)
    return line


@pytest.fixture
def trainings(monkeypatch):
    """Spec, text and starts of every training in a trial."""
    seen, real = [], trained_trials.recovered

    def recovered(model, layout, asked, text, starts, should_stop):
        seen.append((asked, text, starts))
        return real(model, layout, asked, text, starts, should_stop)

    monkeypatch.setattr(trained_trials, "recovered", recovered)
    return seen


# what is measured ---------------------------------------------------------------------------


def test_every_plan_is_trained_and_weighs_what_it_weighs_untrained(ready, go, spec, trainings):
    plain = go(ready, searching(spec, n_trials=3), "search").search
    assert not trainings
    trained = go(ready, searching(spec, n_trials=3, recover_steps=4), "search").search
    measured = (*trained.trials, *trained.baselines)
    assert len(trainings) == len({t.plan.key for t in measured})
    assert {asked.steps for asked, _, _ in trainings} == {4}
    assert len({id(text) for _, text, _ in trainings}) == 1
    bytes_of = {t.plan.key: t.metrics.weight_bytes for t in (*plain.trials, *plain.baselines)}
    assert {t.plan.key: t.metrics.weight_bytes for t in measured} == bytes_of
    before, after = losses(plain), losses(trained)
    assert all(after[key] < before[key] - 0.01 for key in before)
    assert not any(t.metrics.measured_in for t in measured)
    assert any("trained for 4 steps before it was measured" in r for r in trained.remarks)
    assert not any("trained for" in remark for remark in plain.remarks)


def test_a_plan_measured_without_recovery_is_not_taken_for_one_with_it_nor_the_other_way_round(
    ready, go, spec, trainings
):
    go(ready, searching(spec, recover_steps=2), "search")
    n_trained, name = len(trainings), ready.record().study_name
    go(ready, searching(spec, recover_steps=2, n_trials=3), "search")
    assert ready.record().study_name == name
    assert len(trainings) <= n_trained + 1  # what it knew was only read
    go(ready, searching(spec), "search")
    other = training(searching(spec, recover_steps=2), learning_rate=1e-3)
    n_trained = len(trainings)
    found = go(ready, other, "search").search
    assert len(trainings) == n_trained + len(losses(found))


def test_training_text_edited_in_place_is_refused_and_never_mixed(ready, go, spec):
    go(ready, searching(spec, recover_steps=1), "search")
    text = Path(spec.data.training)
    text.write_text(text.read_text(encoding="utf-8") + " more", encoding="utf-8")
    with pytest.raises(BadInputError, match=r"training text.*start a new run"):
        go(ready, searching(spec, recover_steps=1, n_trials=3), "search")


def test_afterwards_the_models_of_the_bank_are_as_they_were(ready, go, spec):
    ids = ready._materials.corpus().heldout[:2]
    go(ready, searching(spec, n_trials=3), "search")
    bank = ready._materials.bank(("int8", "bf16"))
    modules = dict(bank.model.named_modules())
    frozen = {name: p.requires_grad for name, p in bank.model.named_parameters()}
    bank.restore()
    with torch.no_grad():
        expected = bank.model(ids).logits
    go(ready, searching(spec, n_trials=3, recover_steps=2), "search")
    assert ready._materials.bank(("int8", "bf16")) is bank
    assert dict(bank.model.named_modules()) == modules
    assert {n: p.requires_grad for n, p in bank.model.named_parameters()} == frozen
    bank.restore()
    with torch.no_grad():
        assert torch.equal(bank.model(ids).logits, expected)


def test_another_process_trains_a_plan_to_the_same_bits(ready, go, spec, store):
    spec = training(searching(spec, recover_steps=3, n_trials=3), dropout=0.1)
    first = go(ready, spec, "search").search
    line = Line(store, store.create(spec).run_id, pick_device("cpu"))
    go(line, spec, *UPTO_SEARCH)
    plans = [t.plan for t in (*first.trials, *first.baselines)]
    again = {plan.key: line._search().measure(plan).loss for plan in reversed(plans)}
    assert again == losses(first)


def test_workers_share_a_search_that_trains(ready, go, spec, store, trainings):
    spec = searching(spec, recover_steps=2, n_trials=4)
    alone = losses(go(ready, spec, "search").search)
    run_id = store.create(spec).run_id
    one, two = (Line(store, run_id, pick_device("cpu")) for _ in range(2))
    go(one, spec, *UPTO_SEARCH)
    one.begin(spec, ("search",))
    for index in range(one.search_begin()):
        one.search_baseline(index)
    n_baselines = len(trainings)
    while one.search_next("one") is not None and two.search_next("two") is not None:
        pass
    one.search_finish()
    found = one.record().search
    assert {trial.worker for trial in found.trials} == {"one", "two"}
    assert len(trainings) == n_baselines + len(found.trials)
    assert losses(found) == alone


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("joint", ["none", "per-layer"])
def test_packed_and_dense_banks_of_one_pruning_and_of_several_train(
    start, go, spec, trainings, monkeypatch, packed, joint
):
    real = Materials.search_bank

    def search_bank(self, precisions, levels, **_):
        return real(self, precisions, levels, packed=packed)

    monkeypatch.setattr(Materials, "search_bank", search_bank)
    ratios = () if joint == "none" else (0.1,)
    plain = searching(spec, joint=joint, ratios=ratios, tie="layer")
    before = losses(go(line := start(plain), plain, *UPTO_SEARCH, "search").search)
    found = go(line, searching(plain, recover_steps=1), "search").search
    assert {t.state for t in (*found.trials, *found.baselines)} == {"complete"}
    assert len(trainings) == len(losses(found))
    shared = losses(found).keys() & before.keys()
    assert shared
    assert all(losses(found)[key] != before[key] for key in shared)


# where adapters start -----------------------------------------------------------------------


def test_with_loftq_adapters_start_at_what_the_plan_lost_and_are_fitted_once(
    ready, go, spec, trainings, monkeypatch
):
    asked, real = [], trained_trials.start_of

    def start_of(weight, linear, precision, recovery):
        asked.append((linear.name, precision))
        return real(weight, linear, precision, recovery)

    monkeypatch.setattr(trained_trials, "start_of", start_of)
    spec = training(searching(spec, n_trials=4, recover_steps=1), initialization="loftq")
    go(ready, spec, "search")
    names = [linear.name for linear in ready.record().prune.layout.linears]
    assert sorted(asked) == sorted((n, p) for n in names for p in ("int8", "bf16"))
    plans = [set(starts) for _, _, starts in trainings]
    assert set() in plans  # bf16 everywhere loses nothing that an adapter could start at
    assert set(names) in plans
    bank = ready._materials.bank(("int8", "bf16"))
    full = next(starts for _, _, starts in trainings if len(starts) == len(names))
    for name, start in full.items():
        lost = bank.found_weight(name) - bank._slots[name]._candidates["int8"]
        fitted = spec.recovery.alpha / spec.recovery.rank * start.adapter.b @ start.adapter.a
        assert torch.linalg.norm(lost - fitted) < torch.linalg.norm(lost)


def test_an_initialisation_that_shifts_the_weights_is_refused_before_anything_is_computed(
    start, spec
):
    spec = training(searching(spec, recover_steps=2), initialization="pissa")
    with pytest.raises(BadInputError, match="pissa, which quantises other weights"):
        start(spec).begin(spec, STEPS)


# plans by hand ------------------------------------------------------------------------------


def test_a_plan_by_hand_is_trained_like_the_others_and_refused_after_another_recovery(
    ready, go, spec, trainings
):
    spec = searching(spec, recover_steps=2)
    found = go(ready, spec, "search").search
    layout, n_trained = ready.record().prune.layout, len(trainings)
    names = [linear.name for linear in layout.linears]
    mixed = {name: "int8" if i % 3 else "bf16" for i, name in enumerate(names)}
    assert ready.measure(PrecisionPlan(precisions=mixed)).metrics is not None
    assert len(trainings) == n_trained + 1
    go(ready, training(spec, learning_rate=1e-3), "recover")
    assert ready.record().search.chosen == found.chosen
    with pytest.raises(BadInputError, match="settings that the run's recovery no longer has"):
        ready.measure(PrecisionPlan(precisions={**mixed, names[0]: "int8", names[1]: "bf16"}))


# failures -----------------------------------------------------------------------------------


def test_a_loss_of_training_that_is_no_number_fails_the_trial_with_its_step(
    ready, go, spec, monkeypatch
):
    real = trained_trials.recovered

    def recovered(model, layout, asked, *given):
        return real(model, layout, replace(asked, learning_rate=rates.pop()), *given)

    monkeypatch.setattr(trained_trials, "recovered", recovered)
    rates = [2e-2] * 20 + [1e30]
    found = go(ready, searching(spec, recover_steps=3), "search").search
    (failed,) = [t for t in (*found.trials, *found.baselines) if t.state == "failed"]
    assert "of recovery step" in failed.reason
    assert "Lower the learning rate" in failed.reason
    rates = [1e30] * 20
    with pytest.raises(NotReadyError, match=r"None of the .* of recovery step"):
        go(ready, searching(spec, recover_steps=4), "search")


def test_training_that_runs_out_of_memory_fails_the_trial_and_says_what_helps(
    ready, go, spec, monkeypatch
):
    real, errors = trained_trials.recovered, [torch.cuda.OutOfMemoryError("CUDA out of memory.")]

    def recovered(*arguments):
        if errors:
            raise errors.pop()
        return real(*arguments)

    monkeypatch.setattr(trained_trials, "recovered", recovered)
    found = go(ready, searching(spec, recover_steps=1), "search").search
    failed = [t for t in (*found.trials, *found.baselines) if t.state == "failed"]
    assert [trial.reason for trial in failed] == [OUT_OF_MEMORY_IN_TRAINING]


# stopping -----------------------------------------------------------------------------------


def stop_in_training(line, at, monkeypatch):
    """Ask to stop after the second step of the training number ``at`` on; count all trainings."""
    begun, steps, real = [], [], trained_trials.recovered

    def recovered(*given):
        begun.append(given)
        steps.clear()
        return real(*given)

    def should_stop():
        steps.append(1)
        return len(begun) >= at and len(steps) > 2

    monkeypatch.setattr(trained_trials, "recovered", recovered)
    line.should_stop = should_stop
    return begun


def test_a_trial_stopped_in_its_training_stays_claimed_and_is_taken_up_again(
    ready, go, spec, store, monkeypatch
):
    spec = searching(spec, recover_steps=4, n_trials=3)
    expected = losses(go(ready, spec, "search").search)
    line = Line(store, store.create(spec).run_id, pick_device("cpu"))
    go(line, spec, *UPTO_SEARCH)
    line.begin(spec, ("search",))
    for index in range(line.search_begin()):
        line.search_baseline(index)
    begun = stop_in_training(line, 1, monkeypatch)
    with pytest.raises(StoppedError, match="after 2 of 4 steps"):
        line.search_next("one")
    (left,) = line._search()._open().trials()
    assert (left.state, left.worker, left.metrics) == ("running", "one", None)
    assert len(begun) == 1
    line.should_stop = lambda: False
    while line.search_next("one"):
        pass
    line.search_finish()
    found = line.record().search
    assert {trial.number for trial in found.trials} == {0, 1, 2}
    assert losses(found) == expected


def test_a_search_in_this_process_that_is_stopped_in_a_training_ends_with_what_it_has(
    ready, go, spec, monkeypatch
):
    begun = stop_in_training(ready, 3, monkeypatch)
    found = go(ready, searching(spec, recover_steps=4), "search").search
    assert len(begun) == 3
    assert len(losses(found)) == 2


def test_looking_for_where_adapters_start_is_stopped_between_two_linears(
    ready, go, spec, monkeypatch
):
    fitted, real = [], starting.start_of
    monkeypatch.setattr(starting, "start_of", lambda *given: fitted.append(1) or real(*given))
    go(ready, searching(spec, n_trials=1), "search")
    ready.should_stop = lambda: len(fitted) >= 2
    with pytest.raises(StoppedError, match="where its adapters start"):
        go(ready, training(searching(spec, n_trials=1), initialization="loftq"), "recover")
    assert len(fitted) == 2
    assert ready.record().recover is None


def test_text_is_read_once_for_all_trials(ready, go, spec, monkeypatch):
    reads, real = [], Materials.training

    def read(self, asked):
        reads.append(asked)
        return real(self, asked)

    monkeypatch.setattr(Materials, "training", read)
    go(ready, searching(spec, recover_steps=1, n_trials=3), "search")
    assert len(reads) == 1
