"""The trials of a record are stored small, come back equal, and older records are read too."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import RunRecord, SearchOutcome, Trial
from qpruner_core.domain.spec import ModelSpec, RunSpec, SearchSpec
from qpruner_core.errors import BadInputError
from qpruner_core.store.codec import from_json, to_json, to_plain

METRICS = Metrics(
    loss=1.25,
    accuracy=0.5,
    weight_bytes=1000,
    device="cpu",
    tasks={
        "kept": TaskResult(
            n_items=3, accuracy=0.3, accuracy_normalized=0.6, correct=(True, False, True)
        ),
        "lost": TaskResult(n_items=3, accuracy=0.3, accuracy_normalized=0.6),
    },
)
PLANS = (
    PrecisionPlan(precisions={"b": "nf4", "a": "int8"}),
    PrecisionPlan(precisions={"b": "bf16", "a": "bf16"}, levels=(0, 1)),
    PrecisionPlan(precisions={"other": "nf4"}),
)
TRIALS = (
    Trial(number=0, name="", plan=PLANS[0], metrics=METRICS, worker="here/cpu"),
    Trial(number=1, name="", plan=PLANS[1], metrics=None, state="failed", reason='out of "mem"'),
    Trial(number=2, name="by hand 1", plan=PLANS[2], metrics=replace(METRICS, tasks={})),
)
RECORD = RunRecord(
    run_id="20261124-101500-demo-3f2a",
    created_at="2026-11-24T10:15:00.000+00:00",
    spec=RunSpec(model=ModelSpec(source="demo"), name='"packed_trials": '),
    search=SearchOutcome(
        spec=SearchSpec(),
        budget_bytes=1000,
        study_name="s",
        baselines=(replace(TRIALS[0], number=-1, name="QPruner-1"),),
        trials=TRIALS,
        front=(0,),
        chosen=0,
    ),
)


def order(plan: PrecisionPlan) -> list[str]:
    return list(plan.precisions)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("record", [RECORD, replace(RECORD, search=None)])
def test_a_record_comes_back_equal_from_text_and_from_bytes(record, indent):
    text = to_json(record, indent=indent)
    assert from_json(RunRecord, text) == from_json(RunRecord, text.encode()) == record


def test_linears_keep_their_order():
    back = from_json(RunRecord, to_json(RECORD))
    assert [order(trial.plan) for trial in back.search.trials] == [order(p) for p in PLANS]


def test_a_record_that_wrote_its_trials_out_is_read():
    plain = to_plain(replace(RECORD, search=replace(RECORD.search, trials=())))
    plain["search"]["trials"] = [to_plain(trial) for trial in TRIALS]
    assert from_json(RunRecord, json.dumps(plain)) == RECORD


def test_many_trials_of_many_linears_take_little():
    plan = PrecisionPlan(precisions={f"model.layers.{i}.mlp.up_proj": "nf4" for i in range(200)})
    trials = tuple(Trial(number=i, name="", plan=plan, metrics=METRICS) for i in range(100))
    record = replace(RECORD, search=replace(RECORD.search, trials=trials))
    assert from_json(RunRecord, to_json(record)) == record
    written_out = sum(len(to_json(trial)) for trial in trials)
    assert len(to_json(record)) < written_out / 8


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda packed: packed.pop("linears"), "linears"),
        (lambda packed: packed["trials"][0]["plan"].update(precisions=[0, "a"]), "shorter"),
        (lambda packed: packed["trials"][0]["plan"].update(precisions=[9, "aa"]), "range"),
        (lambda packed: packed["trials"][0]["plan"].update(precisions="ab"), "indices"),
        (lambda packed: packed["trials"][0].pop("metrics"), "metrics"),
        (lambda packed: packed["trials"][0].update(colour="red"), "colour"),
        (lambda packed: packed["trials"][0]["metrics"].update(loss="much"), "loss"),
    ],
)
def test_trials_that_do_not_fit_are_refused_in_a_sentence(change, named):
    plain = to_plain(RECORD)
    change(plain["search"]["packed_trials"])
    with pytest.raises(BadInputError, match=named):
        from_json(RunRecord, json.dumps(plain))


@pytest.mark.parametrize(
    "text", ['{"packed_trials": 1}', '{"search": null, "packed_trials": ', "["]
)
def test_text_that_only_looks_packed_is_refused_in_a_sentence(text):
    with pytest.raises(BadInputError, match="holds no RunRecord"):
        from_json(RunRecord, text)
