"""Losses sequence by sequence are found for the plans that are compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sample_home
import streamlit as st

from app import points, sequences
from app.clouds import Cloud
from qpruner_core.store.measured import Kept, value_name


@pytest.fixture
def keep(store):
    """Keep losses of a trial as a worker does, with noise that all plans share."""

    def kept(record, trial, key="0123", shift=0.0):
        noise = np.random.default_rng(0).normal(0.0, 0.3, 64)
        losses = tuple(float(x) for x in trial.metrics.loss + noise - noise.mean())
        value = Kept(
            key=trial.plan.key,
            study="some",
            metrics=replace(trial.metrics, loss=trial.metrics.loss + shift),
            sequence_losses=losses,
        )
        store.write_value(record.run_id, value_name(key, trial.plan), value)
        return losses

    return kept


def test_those_of_the_measurement_are_read_and_no_others(run_at, keep):
    record = run_at("search")
    trial, other = record.search.trials[:2]
    baseline = record.search.baselines[0]
    keep(record, trial, key="aaaa", shift=0.5)  # of another text
    assert sequences.of_plan(record.run_id, trial.plan, trial.metrics) == ()
    st.cache_resource.clear()
    losses = keep(record, trial)
    assert sequences.of_plan(record.run_id, trial.plan, trial.metrics) == losses
    assert sequences.of_plan(record.run_id, other.plan, other.metrics) == ()
    wanted = keep(record, baseline)
    assert sequences.of_plan(record.run_id, baseline.plan, baseline.metrics) == wanted


def test_the_table_of_two_plans_pairs_their_losses(open_page, run_at, keep):
    record = run_at("search")
    for trial in record.search.trials:
        keep(record, trial)
    keys = [f"{record.run_id}:{number}" for number in (3, 5)]
    at = open_page("results", record, trial=keys[0], other=keys[1])
    (table,) = [d.value for d in at.dataframe if "Told apart" in d.value]
    assert "± 0.0000" in table.loc[0, "Loss, nats"]
    assert "by loss" in table.loc[0, "Told apart"]


def test_plans_of_another_text_are_not_paired(run_at, store, keep):
    first, second = run_at("search"), run_at("search", name="Other")
    data = replace(second.spec.data, heldout="wikitext2")
    second = replace(second, spec=replace(second.spec, data=data))
    store.write(second)
    for record in (first, second):
        keep(record, record.search.trials[0])
    found = {
        letter: points.of_trials(record, record.search.trials[:1])[0]
        for letter, record in (("A", first), ("B", second))
    }
    assert list(sequences.of_points(found)) == ["A"]
    assert sequences.of_points({}) == {}


def test_the_sentence_on_pruning_tells_the_paired_error(store, keep):
    record = sample_home.joint_run(store, "per-layer")
    clouds = {record.run_id: Cloud(points.of_trials(record, record.search.trials))}
    without = sequences.joint_words([record], clouds, "loss")
    assert "no standard error of these differences is known" in without
    st.cache_resource.clear()
    for trial in record.search.trials:
        keep(record, trial)
    told = sequences.joint_words([record], clouds, "loss")
    assert "(standard error 0.000)" in told
    assert "no standard error" not in told
    assert "points of accuracy" in sequences.joint_words([record], clouds, "accuracy")


def test_every_compared_plan_is_tested_against_plan_a(open_page, run_at, said):
    record = run_at("search")
    keys = [f"{record.run_id}:{number}" for number in (3, 5, -2)]
    at = open_page("results", record, trial=keys[0], other=",".join(keys[1:]))
    assert "**B against A**: B answers" in said(at)
    assert "called different" in said(at)
    assert "**C against A**" in said(at)


def test_answers_to_other_items_are_not_compared(open_page, run_at, store, said):
    first, second = run_at("search"), run_at("search", name="Other")
    data = replace(second.spec.data, items_per_task=7)
    store.write(replace(second, spec=replace(second.spec, data=data)))
    keys = [f"{first.run_id}:3", f"{second.run_id}:5"]
    at = open_page("results", first, trial=keys[0], other=keys[1], **{"with": second.run_id})
    assert "scores other items than that of A" in said(at)


def test_the_items_themselves_say_whether_they_are_the_same(run_at, store):
    def point(items, **more):
        record = run_at("search", name=items or "older")
        trial = record.search.trials[0]
        tasks = {name: replace(each, items=items) for name, each in trial.metrics.tasks.items()}
        trial = replace(trial, metrics=replace(trial.metrics, tasks=tasks))
        store.write(replace(record, spec=replace(record.spec, **more)))
        return points.of_trials(record, (trial,))[0]

    data = replace(run_at("search").spec.data, tasks="elsewhere")
    found = {"A": point("0a"), "B": point("0a", data=data), "C": point("0b"), "D": point("")}
    # B's folder is another, its items are not; C's folder is the same, its items are not.
    assert sequences.same_items(found) == {"A", "B"}
    assert sequences.same_items({"D": found["D"], "E": point("")}) == {"D", "E"}
