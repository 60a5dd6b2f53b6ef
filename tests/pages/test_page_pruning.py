from __future__ import annotations

from dataclasses import replace

from app import wording
from qpruner_core.domain.footprint import dense_bytes
from qpruner_core.pruning.selection import select


def value(at, label, place=0):
    return [metric.value for metric in at.metric if metric.label == label][place]


def test_the_slider_answers_from_the_layout_before_anything_is_scored(open_page, run_at):
    record = run_at("load")
    at = open_page("pruning", record)
    at.slider(key="prune/ratio").set_value(50).run()
    spec = replace(record.spec.pruning, ratio=0.5)
    expected = select(record.load.layout, None, spec).layout
    assert value(at, "At 16 bit") == wording.size(dense_bytes(expected))
    assert value(at, "Parameters") == wording.count(expected.parameters)


def test_ratio_zero_changes_nothing(open_page, run_at):
    record = run_at("load")
    at = open_page("pruning", record)
    at.slider(key="prune/ratio").set_value(0).run()
    assert value(at, "Parameters") == wording.count(record.load.layout.parameters)


def test_starting_asks_for_all_missing_steps(open_page, run_at, jobs):
    record = run_at("load")
    at = open_page("pruning", record)
    at.slider(key="prune/ratio").set_value(30).run()
    at.button(key="start/prune").click().run()
    (_, (run_id, steps, spec)) = jobs.asked[0]
    assert (run_id, steps) == (record.run_id, ("score", "prune"))
    assert spec.pruning.ratio == 0.3


def test_finished_results_are_kept_in_a_copy_unless_the_person_says_not(
    open_page, run_at, jobs, store
):
    record = run_at("search")
    at = open_page("pruning", record)
    at.button(key="start/prune").click().run()
    (_, (run_id, _, _)) = jobs.asked[0]
    assert run_id != record.run_id
    assert store.read(record.run_id).search is not None


def test_without_the_copy_it_says_what_is_replaced(open_page, run_at, jobs, said):
    record = run_at("search")
    at = open_page("pruning", record)
    at.toggle(key="copy/prune").set_value(False).run()
    assert "replaces the results of: Prune, Quantise, Evaluate, Search" in said(at)
    at.button(key="start/prune").click().run()
    assert jobs.asked[0][1][0] == record.run_id


def test_after_the_job_it_shows_measured_before_and_after_with_continuations(
    open_page, run_at, said
):
    record = run_at("prune")
    at = open_page("pruning", record)
    assert value(at, "Loss per token") == wording.nats(record.prune.after.loss)
    assert record.prune.samples[0][2] in said(at)
    assert "measured" in said(at)


def test_while_it_runs_the_button_is_off_and_progress_is_shown(open_page, run_at, jobs):
    record = run_at("score")
    jobs.running(record.run_id, "prune", 1, 3)
    at = open_page("pruning", record)
    assert at.button(key="start/prune").disabled
    assert "1 of 3" in at.get("progress")[0].proto.text


def test_a_failed_job_is_a_sentence_and_can_be_resumed(open_page, run_at, jobs):
    record = run_at("score")
    job = jobs.add(record.run_id, "failed", ("prune",), error="The ratio empties a layer.")
    at = open_page("pruning", record)
    assert at.error[0].value == "The ratio empties a layer."
    at.button(key=f"resume/{job.job_id}").click().run()
    assert ("resume", job.job_id) in jobs.asked


def test_the_full_evaluation_shows_every_task_and_both_speeds(open_page, run_at, said):
    record = run_at("evaluate")
    at = open_page("pruning", record)
    table = at.dataframe[0].value
    assert list(table["Task"]) == [*sorted(record.evaluate.tasks), "mean"]
    assert list(table["Items"]) == [40] * 7 + [280]
    first = record.evaluate.tasks[table.loc[0, "Task"]]
    assert table.loc[0, "Standard error"] == f"{100 * first.standard_error:.1f} points"
    assert (value(at, "Reading"), value(at, "Writing")) == ("8,200 tokens/s", "61 tokens/s")
    assert "evaluated in full" not in said(open_page("pruning", run_at("prune", name="before")))
