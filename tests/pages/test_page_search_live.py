"""The Search page while a search runs: how far it is, who measures, and the buttons that steer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sample_home

from app import services
from qpruner_core.errors import BadInputError
from qpruner_core.jobs import SearchWorker


@pytest.fixture
def running(run_at, jobs, store, monkeypatch):
    """A run whose search is under way: baselines, and trials in every state."""
    record, finished = run_at("evaluate"), run_at("search", name="source")
    store.write_value(record.run_id, record.baselines_name, finished.search.baselines[:3])
    found = finished.search.trials
    trials = (
        *found[:5],
        replace(found[5], state="failed", metrics=None, reason="The loss is not finite."),
        replace(found[6], state="stopped", metrics=None, reason="Dominated by trial 2."),
        replace(found[7], state="running", metrics=None, worker="atlas/cpu"),
    )
    known = (*finished.search.baselines[:3], *trials)
    monkeypatch.setattr(services, "live_trials", lambda record: known)
    job = jobs.running(record.run_id, "search", 9, 27)
    jobs.known[job.job_id] = replace(job, steps=("search",))
    return record


def button(at, label):
    return next(each for each in at.button if each.label == label)


def bars(at):
    return [bar.proto.text for bar in at.get("progress")]


def test_done_failed_stopped_and_time_left_are_told(open_page, running, said):
    at = open_page("search", running)
    (bar,) = [text for text in bars(at) if "of 24 trials" in text]
    assert bar == "**7 of 24 trials** · 1 failed · 1 stopped early · about 24 s left"
    assert "5 trials and 3 baselines measured, 1 failed, 1 stopped early." in said(at)
    assert "trial 5: The loss is not finite." in said(at)
    assert "trial 6: Dominated by trial 2." in said(at)


def test_every_worker_is_named_with_what_it_measures(open_page, running, jobs, said):
    jobs.searching = tuple(
        SearchWorker(worker=name, device="cpu", job_id="job", trial=trial, is_gone=gone)
        for name, trial, gone in (
            ("atlas/cpu", 7, False),
            ("atlas/cpu:1", None, False),
            ("rhea/cpu", 8, True),
        )
    )
    at = open_page("search", running)
    assert "atlas/cpu on cpu: measures trial 7" in said(at)
    assert "atlas/cpu:1 on cpu: between two trials" in said(at)
    assert "rhea/cpu on cpu: has ended" in said(at)
    assert any("about 12 s left" in text for text in bars(at))


def test_pause_stops_all_workers_and_resume_goes_on(open_page, running, jobs):
    at = open_page("search", running)
    button(at, "Pause").click().run()
    (job,) = jobs.list(running.run_id)
    assert job.status == "cancelled"
    button(at, "Resume").click().run()
    assert jobs.get(job.job_id).status == "queued"


def test_stop_finishes_with_what_is_measured(open_page, running, jobs):
    at = open_page("search", running)
    button(at, "Stop and finish").click().run()
    assert [what for what, _ in jobs.asked] == ["cancel", "finish"]


def test_a_refusal_to_pause_is_a_sentence(open_page, running, jobs, monkeypatch):
    def refuse(run_id):
        raise BadInputError("No search of this run waits or runs.")

    monkeypatch.setattr(jobs, "pause_search", refuse)
    at = open_page("search", running)
    button(at, "Pause").click().run()
    assert "No search of this run waits or runs." in [error.value for error in at.error]


def test_before_the_trials_there_is_one_button_that_stops(open_page, run_at, jobs):
    record = run_at("prune")
    jobs.running(record.run_id, "quantize", 2, 24)
    labels = [each.label for each in open_page("search", record).button]
    assert "Stop" in labels
    assert "Pause" not in labels


def test_the_search_is_spread_over_the_workers_that_are_asked_for(open_page, run_at, jobs, said):
    at = open_page("search", run_at("quantize"))
    next(field for field in at.number_input if field.label == "Workers").set_value(3).run()
    assert "No worker is running" in said(at)
    button(at, "Search").click().run()
    assert jobs.workers_asked == 3


def test_what_the_search_remarked_is_shown_with_the_reasons_of_failures(
    open_page, run_at, store, said
):
    record = run_at("search")
    failed = replace(
        record.search.trials[0], state="failed", metrics=None, reason="Out of memory."
    )
    remark = "The evaluation text is too short to tell 7 plans apart."
    trials = (failed, *record.search.trials[1:])
    record = sample_home.with_search(store, record, remarks=(remark,), trials=trials)
    at = open_page("search", record)
    assert remark in [warning.value for warning in at.warning]
    assert "trial 0: Out of memory." in said(at)
