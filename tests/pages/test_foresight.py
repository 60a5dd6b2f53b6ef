"""What is foreseen lies on the axes of what is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app import foresight
from qpruner_core.catalog import precision_formats
from qpruner_core.domain.device_memory import training_bytes_estimate
from qpruner_core.search.costs import training_load


@pytest.fixture
def asked(run_at):
    record = run_at("quantize")

    def spec(**changes):
        return record, replace(record.spec.search, **changes)

    return spec


def test_a_predicted_plan_trains_in_the_memory_that_a_trial_of_it_states(asked):
    record, spec = asked(cost="training_memory")
    found = foresight.predicted_by_cost(record, spec)
    load = training_load(record.spec.recovery, 4)
    for index in (0, len(found.front) // 2, len(found.front) - 1):
        plan = found.front[index].plan
        stated = training_bytes_estimate(record.layout, plan, precision_formats(), load)
        assert found.costs[index] == stated.total


def test_a_predicted_plan_takes_the_time_of_its_linears_and_of_all_beside_them(asked):
    record, spec = asked(cost="latency")
    record = replace(record, quantize=replace(record.quantize, seconds_beside=0.25))
    found = foresight.predicted_by_cost(record, spec)
    seconds = {(c.unit, c.precision): c.seconds for c in record.quantize.sensitivities}
    chosen = found.front.space.choices(found.front[0].plan)
    assert found.costs[0] == pytest.approx(0.25 + sum(seconds[pair] for pair in chosen.items()))


def test_by_bytes_nothing_else_is_predicted(asked):
    record, spec = asked()
    assert foresight.predicted(record, spec) is not None
    assert foresight.predicted_by_cost(record, spec) is None


def test_another_layer_signal_is_measured_first_and_changes_no_prediction(asked):
    record, spec = asked(information="block_influence")
    assert not foresight.fits(record.quantize, spec)
    assert len(foresight.predicted(record, spec)) == len(foresight.predicted(record))


def test_units_of_other_ties_are_neither_measured_nor_predicted(asked):
    record, spec = asked(tie="linear")
    assert not foresight.fits(record.quantize, spec)
    assert foresight.predicted(record, spec) is None
