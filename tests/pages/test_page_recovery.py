from __future__ import annotations

import sample_home

from app import wording


def value(at, label, place=0):
    return [metric.value for metric in at.metric if metric.label == label][place]


def field(at, label):
    return next(each for each in at.number_input if each.label == label)


def test_without_a_search_it_says_what_to_do(open_page, run_at):
    at = open_page("recovery", run_at("prune"))
    assert "Search first" in at.info[0].value


def test_the_estimated_memory_grows_with_the_batch(open_page, run_at):
    at = open_page("recovery", run_at("search"))
    small = value(at, "Training memory")
    field(at, "Batch, sequences").set_value(64).run()
    assert value(at, "Training memory") != small


def test_starting_asks_for_the_settings(open_page, run_at, jobs):
    record = run_at("search")
    at = open_page("recovery", record)
    field(at, "Steps").set_value(12).run()
    at.button(key="start/recover").click().run()
    (_, (_, steps, spec)) = jobs.asked[0]
    assert steps == ("recover",)
    assert (spec.recovery.steps, spec.recovery.trial) == (12, record.search.chosen)


def test_while_training_the_loss_is_drawn_live(open_page, run_at, jobs, store, said):
    record = run_at("search")
    jobs.running(record.run_id, "recover", 9, 60)
    sample_home.report(store, record.run_id, "recover", 9, 60)
    at = open_page("recovery", record)
    assert "Step 9 of 60" in said(at)
    assert at.get("plotly_chart")


def test_done_it_shows_before_and_after_and_the_measured_memory(open_page, run_at, said):
    record = run_at("recover")
    at = open_page("recovery", record)
    assert value(at, "Loss per token") == wording.nats(record.recover.after.loss)
    assert value(at, "Training memory", 1) == wording.size(record.recover.peak_memory_bytes)
    assert wording.size(record.recover.estimated_memory_bytes) in said(at)
