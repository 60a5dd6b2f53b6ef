from __future__ import annotations

import pandas as pd
import pytest

from app import charts_front, points, services, tables_plan
from qpruner_core.domain.plan import PrecisionPlan


def test_without_measurements_it_says_what_to_do(open_page, run_at):
    at = open_page("results", run_at("quantize"))
    assert "Start a search" in at.info[0].value


def test_the_chosen_plan_is_plan_a_and_both_layer_maps_are_drawn(open_page, run_at):
    record = run_at("search")
    at = open_page("results", record)
    assert at.selectbox(key="results/a").value == f"{record.run_id}:{record.search.chosen}"
    assert len(at.get("plotly_chart")) == 3


def test_a_trial_in_the_address_is_plan_a_after_a_reload(open_page, run_at):
    record = run_at("search")
    at = open_page("results", record, trial=f"{record.run_id}:5")
    assert at.selectbox(key="results/a").value == f"{record.run_id}:5"


def test_a_trial_in_the_address_that_is_not_there_falls_back(open_page, run_at):
    record = run_at("search")
    at = open_page("results", record, trial=f"{record.run_id}:999")
    assert at.selectbox(key="results/a").value == f"{record.run_id}:{record.search.chosen}"


def test_another_run_joins_the_front(open_page, run_at):
    first, second = run_at("search"), run_at("search", name="Other", seed=4)
    at = open_page("results", first, **{"with": second.run_id})
    assert any(key.startswith(second.run_id) for key in at.selectbox(key="results/a").options) or (
        "Other" in "".join(at.selectbox(key="results/a").options)
    )


def test_baselines_carry_the_papers_names(run_at):
    names = {point.name for point in points.of_run(run_at("search"))}
    assert {"QPruner-1", "QPruner-2", "QPruner-3"} <= names


@pytest.mark.parametrize("objective", ["loss", "accuracy"])
def test_the_front_is_never_dominated(run_at, objective):
    found = points.of_run(run_at("search"))
    best = points.front_of(found, objective)
    sign = 1 if objective == "loss" else -1

    def bad(point):
        return sign * charts_front.value(point, objective)

    for point in best:
        assert not any(
            other.metrics.weight_bytes <= point.metrics.weight_bytes and bad(other) < bad(point)
            for other in found
            if other.plan is not None
        )


def test_every_point_that_can_be_clicked_carries_its_key(run_at):
    record = run_at("search")
    found = points.of_run(record)
    figure = charts_front.front(found, charts_front.FrontView(objective="loss"))
    keys = {
        key for trace in figure.data if trace.customdata is not None for key in trace.customdata
    }
    assert keys == {point.key for point in found}


def test_a_plan_survives_the_editor_and_an_edit_changes_one_unit(run_at):
    record = run_at("search")
    space = services.space(record.layout, record.quantize)
    plan = PrecisionPlan.uniform(record.layout, "int8")
    table = tables_plan.to_table(space, plan)
    assert tables_plan.to_plan(space, table) == plan
    edited = pd.DataFrame(table)
    edited.loc[3, tables_plan.WHOLE] = "nf4"
    changed = tables_plan.to_plan(space, edited)
    assert {n for n in plan.precisions if plan.precisions[n] != changed.precisions[n]} == set(
        space.units["layer.3"]
    )


def test_a_measured_plan_is_not_measured_again(open_page, run_at, said):
    at = open_page("results", run_at("search"))
    assert at.button(key="results/measure").disabled
    assert "has been measured already" in said(at)
