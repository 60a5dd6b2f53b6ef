"""Evaluation within a search: rungs, patience, costs, failures, and no plan measured twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.device_memory import TrainingLoad, training_bytes_estimate
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import MEASURED, STEPS
from qpruner_core.errors import BadInputError, InfeasibleBudgetError, NotReadyError
from qpruner_core.evaluation import Suite
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line
from qpruner_core.pipeline.measuring import Measuring
from qpruner_core.pipeline.out_of_memory import OUT_OF_MEMORY, is_out_of_memory
from qpruner_core.search.costs import cost_of
from qpruner_core.store.measured import sequence_losses

UPTO_SEARCH = STEPS[: STEPS.index("evaluate")]
"""The full evaluation in between is not needed."""


def searching(spec, **changes):
    return replace(spec, search=replace(spec.search, **changes))


@pytest.fixture
def text_reads(monkeypatch):
    """How many sequences the suite has read, call by call."""
    reads = []
    whole, part = Suite.measure, Suite.sequence_losses

    def measure(self, model, asked):
        reads.append(self.n_sequences - len(asked.losses))
        return whole(self, model, asked)

    def losses(self, model, first=0, last=None):
        found = part(self, model, first, last)
        reads.append(len(found))
        return found

    monkeypatch.setattr(Suite, "measure", measure)
    monkeypatch.setattr(Suite, "sequence_losses", losses)
    return reads


@pytest.fixture
def ready(start, go, deep_spec):
    """A run that stands before its search."""
    line = start(deep_spec)
    go(line, deep_spec, *UPTO_SEARCH)
    return line


# never twice --------------------------------------------------------------------------------


def test_another_seed_takes_over_what_was_measured_and_says_so(ready, go, deep_spec, text_reads):
    first = go(ready, searching(deep_spec, n_trials=8), "search").search
    assert first.remarks == tuple(r for r in first.remarks if "taken over" not in r)
    n_read = len(text_reads)
    second = go(ready, searching(deep_spec, n_trials=8, seed=1), "search").search
    known = {t.plan.key: t.metrics for t in (*first.trials, *first.baselines) if t.metrics}
    reused = [t for t in second.trials if t.plan.key in known]
    fresh = [t for t in (*second.trials, *second.baselines) if t.plan.key not in known]
    assert reused
    assert len(text_reads) - n_read == len({t.plan.key for t in fresh})
    for trial in reused:
        assert trial.metrics.measured_in == first.study_name
        assert replace(trial.metrics, measured_in="") == known[trial.plan.key]
    assert all(not trial.metrics.measured_in for trial in fresh)
    assert any(f"{len(reused)} of 8 trials" in remark for remark in second.remarks)


def test_a_copy_of_the_run_measures_nothing_again(ready, go, deep_spec, store, text_reads):
    spec = searching(deep_spec, n_trials=4)
    first = go(ready, spec, "search").search
    copy = store.fork(ready.record().run_id, "search")
    n_read = len(text_reads)
    again = go(Line(store, copy.run_id, pick_device("cpu")), spec, "search").search
    assert len(text_reads) == n_read
    assert [t.plan for t in again.trials] == [t.plan for t in first.trials]
    assert [t.metrics.loss for t in again.trials] == [t.metrics.loss for t in first.trials]
    assert all(t.metrics.measured_in == first.study_name for t in again.trials)


def test_a_baseline_is_known_when_it_is_asked_for_by_hand(ready, go, deep_spec, text_reads):
    found = go(ready, deep_spec, "search").search
    n_read = len(text_reads)
    plan = PrecisionPlan.uniform(ready.record().prune.layout, "int8")
    assert ready.measure(plan).metrics in [trial.metrics for trial in found.baselines]
    assert len(text_reads) == n_read


def test_other_text_or_another_cut_is_measured_anew(ready, go, deep_spec, text_reads):
    go(ready, deep_spec, "search")
    heldout = Path(deep_spec.data.heldout)
    heldout.write_text(heldout.read_text()[::-1][1:])
    n_read = len(text_reads)
    go(ready, searching(deep_spec, seed=3), "search")
    assert len(text_reads) > n_read


# rungs --------------------------------------------------------------------------------------


@pytest.fixture
def clear(monkeypatch):
    """Losses that say clearly which plan is worse: the more int8, the worse, at any size."""
    part = Suite.sequence_losses

    def losses(self, model, first=0, last=None):
        found = part(self, model, first, last)
        return tuple(x + self.worse + 0.001 * (i % 3) for i, x in enumerate(found))

    monkeypatch.setattr(Suite, "sequence_losses", losses)
    monkeypatch.setattr(Suite, "worse", 0.0, raising=False)


def test_dominated_plans_are_stopped_on_part_of_the_text_and_keep_the_reason(
    ready, go, deep_spec, text_reads, monkeypatch, clear
):
    spec = searching(deep_spec, rungs=2, n_trials=4)
    answer = Measuring.answer

    def worse_than_baselines(self, plan, rivals=()):
        monkeypatch.setattr(Suite, "worse", 1.0 if rivals else 0.0)
        return answer(self, plan, rivals)

    monkeypatch.setattr(Measuring, "answer", worse_than_baselines)
    found = go(ready, spec, "search").search
    stopped = [trial for trial in found.trials if trial.state == "stopped"]
    assert stopped
    n_text = ready._materials.suite().n_sequences
    for trial in stopped:
        assert trial.metrics is None
        assert f"of {n_text} sequences by" in trial.reason
        assert "standard error" in trial.reason
    assert len({trial.plan.key for trial in found.trials}) == 4
    assert all(trial.state == "complete" for trial in found.baselines)
    assert min(text_reads) >= n_text // 2


def test_plans_within_noise_are_measured_in_full_and_no_sequence_is_read_twice(
    ready, go, deep_spec, text_reads
):
    plain = go(ready, searching(deep_spec, n_trials=3), "search").search
    spec = searching(deep_spec, rungs=2, n_trials=3)
    copy = replace(spec, data=replace(spec.data, items_per_task=2))
    line = Line(ready._store, ready._store.create(copy).run_id, pick_device("cpu"))
    text_reads.clear()
    found = go(line, copy, *STEPS[:4], "search").search
    n_text = line._materials.suite().n_sequences
    done = [trial for trial in (*found.trials, *found.baselines) if trial.metrics]
    assert n_text * len({t.plan.key for t in done}) <= sum(text_reads)
    same = {t.plan.key: t.metrics.loss for t in plain.trials}
    assert {k for k in same} == {t.plan.key for t in found.trials}
    for trial in found.trials:
        if trial.metrics:
            assert trial.metrics.loss == pytest.approx(same[trial.plan.key], abs=1e-6)


def test_rungs_with_accuracy_are_refused_with_a_sentence(deep_spec):
    with pytest.raises(BadInputError, match="rungs compare losses"):
        searching(deep_spec, rungs=2, objective="accuracy")


def test_a_search_for_accuracy_without_tasks_is_refused_before_anything_is_computed(
    start, deep_spec
):
    spec = searching(deep_spec, objective="accuracy")
    spec = replace(spec, data=replace(spec.data, tasks="none"))
    with pytest.raises(BadInputError, match="without tasks"):
        start(spec).begin(spec, STEPS)


# patience -----------------------------------------------------------------------------------


def test_a_search_ends_when_its_front_stands_still_and_says_so(ready, go, deep_spec):
    told = []
    ready.on_progress = told.append
    spec = searching(deep_spec, n_trials=15, patience=3)
    found = go(ready, spec, "search").search
    assert len(found.trials) < 15
    words = f"stopped after {len(found.trials)} of 15 trials"
    assert any(words in remark for remark in found.remarks)
    assert any(words in progress.message for progress in told)


# costs --------------------------------------------------------------------------------------


def test_a_search_by_training_memory_says_what_every_plan_would_train_in(ready, go, deep_spec):
    found = go(ready, searching(deep_spec, cost="training_memory"), "search").search
    recovery, layout = deep_spec.recovery, ready.record().prune.layout
    load = TrainingLoad(
        rank=recovery.rank,
        batch_size=recovery.batch_size,
        sequence_length=recovery.sequence_length,
        compute_bytes=4,
    )
    for trial in (*found.trials, *found.baselines):
        estimate = training_bytes_estimate(layout, trial.plan, precision_formats(), load)
        assert trial.metrics.training_bytes == estimate.total
    assert any("estimated" in remark for remark in found.remarks)
    name = ready.record().study_name
    other = replace(
        ready.record(),
        spec=replace(ready.record().spec, recovery=replace(recovery, rank=recovery.rank + 1)),
    )
    assert other.study_name != name


def test_a_search_by_latency_times_every_plan_and_predicts_from_units(start, go, deep_spec):
    spec = searching(deep_spec, cost="latency", n_trials=2)
    line = start(spec)
    record = go(line, spec, *UPTO_SEARCH, "search")
    assert all(cell.seconds > 0.0 for cell in record.quantize.sensitivities)
    assert record.quantize.seconds_beside >= 0.0
    found = record.search
    by_number = {t.number: t for t in (*found.trials, *found.baselines)}
    costs = [cost_of(by_number[n].metrics, "latency") for n in found.front]
    assert costs == sorted(costs)
    losses = [by_number[n].metrics.loss for n in found.front]
    assert losses == sorted(losses, reverse=True)


def test_a_run_that_was_not_timed_is_not_searched_by_latency(ready, go, deep_spec):
    with pytest.raises(NotReadyError, match="quantising step again"):
        go(ready, searching(deep_spec, cost="latency"), "search")


@pytest.mark.parametrize("cost", ["weight_bytes", "training_memory", "latency"])
def test_a_budget_no_plan_reaches_names_the_least_whatever_the_cost(start, deep_spec, cost):
    spec = searching(deep_spec, cost=cost, memory_budget="0.01")
    line = start(spec)
    with pytest.raises(InfeasibleBudgetError, match=r"Give at least \d+ B"):
        line.begin(spec, STEPS)


# failures -----------------------------------------------------------------------------------


def test_plans_that_run_out_of_memory_are_failed_trials_and_the_search_goes_on(
    ready, go, deep_spec, monkeypatch
):
    errors = [
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"),
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
    ]
    measure = Suite.measure

    def fails(self, model, asked):
        if errors:
            raise errors.pop()
        return measure(self, model, asked)

    monkeypatch.setattr(Suite, "measure", fails)
    found = go(ready, deep_spec, "search").search
    failed = [t for t in (*found.trials, *found.baselines) if t.state == "failed"]
    assert [trial.reason for trial in failed] == [OUT_OF_MEMORY] * 3
    assert found.chosen is not None


def test_other_errors_are_bugs_and_come_through():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_where_every_plan_fails_the_first_reason_is_told(ready, go, deep_spec, monkeypatch):
    def fails(self, model, asked):
        raise MemoryError

    monkeypatch.setattr(Suite, "measure", fails)
    with pytest.raises(
        NotReadyError, match=r"None of the .* could be measured\. .* out of memory"
    ):
        go(ready, deep_spec, "search")


def edit_weights(spec):
    file = Path(spec.model.source) / "model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(file).items()}
    next(iter(tensors.values()))[0] += 1.0
    save_file(tensors, file, metadata={"format": "pt"})


def test_weights_edited_in_place_are_refused_and_never_mixed(ready, go, deep_spec):
    go(ready, deep_spec, "search")
    edit_weights(deep_spec)
    with pytest.raises(BadInputError, match="weights"):
        go(ready, searching(deep_spec, n_trials=3), "search")


def test_evaluation_text_edited_in_place_is_refused_and_never_mixed(ready, go, deep_spec):
    go(ready, deep_spec, "search")
    text = Path(deep_spec.data.heldout)
    text.write_text(text.read_text(encoding="utf-8") + " more", encoding="utf-8")
    with pytest.raises(BadInputError, match=r"evaluation text.*start a new run"):
        go(ready, searching(deep_spec, n_trials=3), "search")


def test_sensitivities_of_other_weights_are_refused_until_they_are_measured_again(
    ready, go, deep_spec
):
    stale = ready.record().quantize
    edit_weights(deep_spec)
    with pytest.raises(BadInputError, match=f"{stale.weights}.*Run the quantising step again"):
        go(ready, deep_spec, "search")
    measured = go(ready, deep_spec, "quantize").quantize
    assert measured.weights != stale.weights
    assert measured.loss_16_bit != stale.loss_16_bit
    assert go(ready, deep_spec, "search").search.trials


def test_a_layer_signal_that_was_not_measured_is_asked_for(ready, go, deep_spec):
    with pytest.raises(BadInputError, match=r"mutual_information, .*block_influence"):
        go(ready, searching(deep_spec, information="block_influence"), "search")


def test_what_is_measured_lies_in_the_run_and_goes_with_it(ready, go, deep_spec, store):
    found = go(ready, deep_spec, "search").search
    run_id = ready.record().run_id
    files = list((store.folder(run_id) / "values").glob(f"{MEASURED}*"))
    measured = (*found.trials, *found.baselines)
    assert len(files) == len({t.plan.key for t in measured})
    for trial in measured:
        losses = sequence_losses(store, run_id, trial.plan, trial.metrics)
        assert sum(losses) / len(losses) == pytest.approx(trial.metrics.loss, rel=1e-5)
    store.delete(run_id)
    assert not files[0].exists()
