"""Layers whose precision is given by hand: the search moves the others, and counts them too."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.domain.spec import ModelSpec, RunSpec, SearchSpec
from qpruner_core.errors import BadInputError, UnknownNameError
from qpruner_core.search.presets import LLM_PRUNER, RANDOM, baselines, qpruner_3
from qpruner_core.search.rows import StoredSpace, plan_to_text
from qpruner_core.search.space import SearchSpace

FIXED = {"0": "bf16", "3": "bf16"}


@pytest.fixture
def space(make_space):
    layout = make_space(4).layout
    return SearchSpace(layout, ("nf4", "int8"), "layer", fixed=FIXED)


def by_layer(space, *names):
    return PrecisionPlan.by_layer(space.layout, names)


def test_fixed_layers_are_no_units_and_their_bytes_count(space):
    assert list(space.units) == ["layer.1", "layer.2"]
    assert space.size == 4
    for code in ((0, 0), (1, 0), (0, 1), (1, 1)):
        plan = space.decode(code)
        chosen = [("nf4", "int8")[choice] for choice in code]
        assert plan == by_layer(space, "bf16", *chosen, "bf16")
        assert space.code(plan) == code
        assert plan in space
        assert space.code_bytes(code) == plan_bytes(space.layout, plan, precision_formats())


def test_a_plan_that_moves_a_fixed_layer_is_not_in_the_space(space):
    moved = by_layer(space, "nf4", "nf4", "nf4", "bf16")
    assert moved not in space
    with pytest.raises(BadInputError, match="holds at bf16"):
        space.code(moved)


def test_a_stored_plan_is_read_with_its_fixed_layers(space):
    stored = StoredSpace.read(StoredSpace.of(space).text)
    plan = space.decode((1, 0))
    assert stored.plan(plan_to_text(space, plan)) == plan


def test_a_space_without_fixed_layers_is_stored_and_named_as_before(make_space):
    plain = make_space(4)
    assert set(json.loads(StoredSpace.of(plain).text)) == {"linears", "unit_of"}
    assert "fixed" not in plain.fingerprint["units"]


def test_what_is_fixed_makes_another_space(space, make_space):
    other = SearchSpace(space.layout, ("nf4", "int8"), "layer", fixed={"0": "int8", "3": "bf16"})
    assert len({each.fingerprint["units"] for each in (space, other, make_space(4))}) == 3


@pytest.mark.parametrize("fixed", [{"4": "bf16"}, dict.fromkeys("0123", "bf16")])
def test_fixed_layers_must_be_there_and_leave_some_to_the_search(make_space, fixed):
    with pytest.raises(BadInputError, match="leave at least one"):
        SearchSpace(make_space(4).layout, ("nf4",), "layer", fixed=fixed)


def test_a_fixed_precision_must_be_known(make_space):
    with pytest.raises(UnknownNameError, match="bf61"):
        SearchSpace(make_space(4).layout, ("nf4",), "layer", fixed={"0": "bf61"})


def test_named_plans_hold_what_is_fixed_and_the_budget(space):
    budget = space.code_bytes((1, 0))
    plans = baselines(space, space.layout, [9.0, 2.0, 1.0, 9.0], budget)
    assert plans.pop(LLM_PRUNER) == PrecisionPlan.uniform(space.layout, "bf16")
    assert all(plan in space for plan in plans.values())
    assert plans["QPruner-1"] == space.decode((0, 0))
    assert plans["QPruner-2"] == space.decode((1, 0))
    assert space.bytes(plans[RANDOM]) <= budget


def measured(number, plan, loss):
    metrics = Metrics(loss=loss, accuracy=0.0, weight_bytes=10, device="cpu")
    return Trial(number=number, name="", plan=plan, metrics=metrics)


def test_the_refined_plan_is_among_those_that_hold_what_is_fixed(space):
    held, moved = space.decode((0, 1)), by_layer(space, "nf4", "nf4", "nf4", "nf4")
    trials = [measured(0, held, 2.0), measured(1, moved, 1.0)]
    assert qpruner_3(trials, space.layout, 10, "loss", space.fixed).number == 0
    assert qpruner_3(trials, space.layout, 10, "loss").number == 1


def test_only_a_search_with_fixed_layers_has_another_study():
    record = RunRecord(run_id="run", created_at="", spec=RunSpec(model=ModelSpec(source="demo")))
    fixed = replace(record, spec=replace(record.spec, search=SearchSpec(fixed=FIXED)))
    assert fixed.study_name != record.study_name
    assert "fixed" not in RunRecord._asked_search(SearchSpec())


@pytest.mark.parametrize(
    ("fixed", "other"),
    [({"x": "bf16"}, {}), (FIXED, {"cost": "latency"}), (FIXED, {"cost": "training_memory"})],
)
def test_a_search_that_cannot_hold_layers_fixed_is_refused(fixed, other):
    with pytest.raises(BadInputError, match="precision by hand"):
        SearchSpec(fixed=fixed, **other)
