from __future__ import annotations

from dataclasses import replace

import pytest

from app import foresight, wording
from qpruner_core.domain.footprint import dense_bytes
from qpruner_core.errors import BadInputError
from qpruner_core.search.knapsack import best_under


def value(at, label):
    return next(metric.value for metric in at.metric if metric.label == label)


def field(found, label):
    return next(each for each in found if each.label == label)


def budget_field(at):
    return field(at.slider, "Memory budget, % of the dense model")


def test_before_the_sensitivities_it_says_when_the_predicted_front_appears(
    open_page, run_at, said
):
    at = open_page("search", run_at("prune"))
    assert "predicted front appears" in said(at)
    assert not at.metric


def test_while_sensitivities_are_measured_the_empty_half_says_what_will_come(
    open_page, run_at, jobs, said
):
    record = run_at("prune")
    jobs.running(record.run_id, "quantize", 2, 24)
    assert "Measured plans then join it" in said(open_page("search", record))


def test_starting_asks_for_the_missing_steps_with_the_chosen_precisions(open_page, run_at, jobs):
    record = run_at("prune")
    at = open_page("search", record)
    at.pills[0].set_value(["nf4", "fp4", "int8"]).run()
    at.button(key="start/search").click().run()
    (_, (_, steps, spec)) = jobs.asked[0]
    assert steps == ("quantize", "evaluate", "search")
    assert spec.search.precisions == ("nf4", "fp4", "int8")


def test_the_budget_slider_moves_the_predicted_best_at_once(open_page, run_at):
    record = run_at("quantize")
    at = open_page("search", record)
    predicted = foresight.predicted(record)
    for percent in (32.0, 60.0):
        budget_field(at).set_value(percent).run()
        budget = int(percent / 100 * dense_bytes(record.load.layout))
        assert value(at, "Weights") == wording.size(best_under(predicted, budget).weight_bytes)


def ask_trials(at, n_trials):
    field(at.number_input, "Trials").set_value(n_trials).run()


def test_more_trials_go_on_in_the_same_run_with_the_measured_ones(open_page, run_at, jobs, said):
    record = run_at("search")
    at = open_page("search", record)
    ask_trials(at, 40)
    assert "goes on with the trials" in said(at)
    at.button(key="start/search").click().run()
    (_, (run_id, steps, spec)) = jobs.asked[0]
    assert (run_id, steps, spec.search.n_trials) == (record.run_id, ("search",), 40)
    assert replace(record, spec=spec).study_name == record.study_name


@pytest.mark.parametrize("changed", ["seed", "budget"])
def test_any_other_change_works_in_a_copy(open_page, run_at, jobs, changed):
    record = run_at("search")
    at = open_page("search", record)
    ask_trials(at, 40)
    if changed == "seed":
        field(at.number_input, "Seed").set_value(7).run()
    else:
        budget_field(at).set_value(60.0).run()
    at.button(key="start/search").click().run()
    assert jobs.asked[0][1][0] != record.run_id


def test_fewer_trials_than_measured_work_in_a_copy(open_page, run_at, jobs):
    record = run_at("search")
    at = open_page("search", record)
    ask_trials(at, 3)
    at.button(key="start/search").click().run()
    assert jobs.asked[0][1][0] != record.run_id


def test_another_tie_measures_sensitivities_anew(open_page, run_at, jobs):
    record = run_at("quantize")
    at = open_page("search", record)
    field(at.selectbox, "Share one precision").select("block").run()
    at.button(key="start/search").click().run()
    assert jobs.asked[0][1][1][0] == "quantize"


def test_no_precision_is_answered_with_a_sentence(open_page, run_at):
    at = open_page("search", run_at("quantize"))
    at.pills[0].set_value([]).run()
    assert "No precision is chosen" in at.error[0].value


def test_live_trials_are_counted_while_the_search_runs(open_page, run_at, jobs, store, said):
    record = run_at("evaluate")
    finished = run_at("search", name="source")
    store.write_value(record.run_id, record.baselines_name, finished.search.baselines[:3])
    jobs.running(record.run_id, "search", 3, 29)
    at = open_page("search", record)
    assert "0 trials and 3 baselines measured" in said(at)


def test_done_it_shows_the_best_measured_plan_and_opens_it_in_results(open_page, run_at, said):
    record = run_at("search")
    at = open_page("search", record)
    assert "Best plan under the budget" in said(at)
    assert "**Measured: " in said(at)
    next(each for each in at.button if each.label == "Open in Results").click().run()
    assert at.title[0].value == "Results"


def test_a_stopped_search_can_be_resumed(open_page, run_at, jobs, said):
    record = run_at("prune")
    job = jobs.add(record.run_id, "cancelled", ("quantize", "evaluate", "search"))
    at = open_page("search", record)
    assert "stopped before it finished" in said(at)
    at.button(key=f"resume/{job.job_id}").click().run()
    assert ("resume", job.job_id) in jobs.asked


def test_a_paused_search_says_so(open_page, run_at, jobs, said):
    record = run_at("quantize")
    jobs.add(record.run_id, "cancelled", ("search",))
    at = open_page("search", record)
    assert "The search is paused; what it has measured is kept" in said(at)
    assert "stopped before it finished" not in said(at)


def stopped_search(run_at, jobs, store, status="cancelled"):
    """Return a run whose search ended after three baselines, and its job."""
    record, finished = run_at("evaluate"), run_at("search", name="source")
    store.write_value(record.run_id, record.baselines_name, finished.search.baselines[:3])
    return record, jobs.add(record.run_id, status, ("search",), error="It was killed.")


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_a_stopped_search_can_be_finished_with_what_is_measured(
    open_page, run_at, jobs, store, status
):
    record, job = stopped_search(run_at, jobs, store, status)
    at = open_page("search", record)
    at.button(key=f"finish/{job.job_id}").click().run()
    assert jobs.asked == [("finish", record.run_id)]
    assert at.get("progress")[0].proto.text == "Finish the search · waits for a worker"


def test_a_search_stopped_before_anything_was_measured_cannot_be_finished(open_page, run_at, jobs):
    record = run_at("evaluate")
    jobs.add(record.run_id, "cancelled", ("search",))
    at = open_page("search", record)
    assert "Finish with what is measured" not in [button.label for button in at.button]
    assert "Resume" in [button.label for button in at.button]


def test_a_finish_that_failed_says_why_and_the_search_can_still_be_resumed(
    open_page, run_at, jobs, store
):
    record, job = stopped_search(run_at, jobs, store)
    jobs.add(record.run_id, "failed", ("search",), kind="finish", error="Nothing fits.")
    at = open_page("search", record)
    assert at.error[0].value == "Finish the search: Nothing fits."
    at.button(key=f"resume/{job.job_id}").click().run()
    assert ("resume", job.job_id) in jobs.asked


def test_a_refused_request_is_a_sentence(open_page, run_at, jobs, store, monkeypatch):
    record, job = stopped_search(run_at, jobs, store)

    def refuse(run_id):
        raise BadInputError("A newer job of this run exists.")

    monkeypatch.setattr(jobs, "resume_search", refuse)
    at = open_page("search", record)
    at.button(key=f"resume/{job.job_id}").click().run()
    assert "A newer job of this run exists." in [error.value for error in at.error]
