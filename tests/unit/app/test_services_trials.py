"""What a study has come to is joined and laid out in arrays once, until there is more of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import streamlit as st

from app import services
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import RunRecord, SearchOutcome, Trial
from qpruner_core.domain.spec import ModelSpec, RunSpec, SearchSpec

PLAN = PrecisionPlan(precisions={"a": "nf4"})
METRICS = Metrics(loss=1.0, accuracy=0.5, weight_bytes=10, device="cpu")
BASELINE = Trial(number=-1, name="QPruner-1", plan=PLAN, metrics=METRICS)
TRIAL = Trial(number=0, name="", plan=PLAN, metrics=METRICS)


@pytest.fixture
def record(tmp_path, monkeypatch) -> RunRecord:
    monkeypatch.setenv("QPRUNER_HOME", str(tmp_path))
    st.cache_resource.clear()
    yield services.store().create(RunSpec(model=ModelSpec(source="demo"), name="one"))
    st.cache_resource.clear()


class Told:
    """A reader whose answer is set by hand."""

    trials: tuple[Trial, ...] = ()

    def read(self) -> tuple[Trial, ...]:
        return self.trials


@pytest.fixture
def told(monkeypatch) -> Told:
    reader = Told()
    monkeypatch.setattr(services, "_reader", lambda url, name: reader)
    return reader


def baselines(record: RunRecord, *known: Trial) -> None:
    services.store().write_value(record.run_id, record.baselines_name, known)


def test_live_trials_are_the_same_until_there_are_more_of_them_or_of_the_baselines(record, told):
    baselines(record, BASELINE)
    told.trials = (TRIAL,)
    first = services.trials(record)
    assert first == (BASELINE, TRIAL)
    assert services.trials(record) is first
    second = replace(BASELINE, number=-2)
    baselines(record, BASELINE, second)
    assert services.trials(record) == (BASELINE, second, TRIAL)
    told.trials = (TRIAL, replace(TRIAL, number=1))
    assert [trial.number for trial in services.trials(record)] == [-1, -2, 0, 1]


def test_the_measured_points_of_a_study_are_the_same_until_there_are_more(record, told):
    told.trials = (TRIAL, replace(TRIAL, number=1, metrics=None, state="running"))
    first = services.measured(record)
    assert [point.number for point in first] == [0]
    assert services.measured(record) is first
    told.trials = (TRIAL, replace(TRIAL, number=1))
    assert [point.number for point in services.measured(record)] == [0, 1]


def test_a_finished_search_is_told_by_its_record(record, told):
    found = SearchOutcome(
        spec=SearchSpec(),
        budget_bytes=1,
        study_name="s",
        baselines=(BASELINE,),
        trials=(TRIAL,),
        front=(0,),
        chosen=0,
    )
    done = replace(record, search=found)
    assert services.trials(done) == (BASELINE, TRIAL)
    assert services.trials(done) is services.trials(replace(done, seconds={"search": 1.0}))
