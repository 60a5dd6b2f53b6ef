from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import sample_home

from app import charts_front, front_traces, plans, points, tables_plan, widgets_filters, wording
from app.clouds import Cloud
from app.widgets_compare_plans import nearest_to_front
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.spec import ModelSpec, PruningSpec


def test_without_measurements_it_says_what_to_do(open_page, run_at):
    at = open_page("results", run_at("quantize"))
    assert "Start a search" in at.info[0].value


def test_the_chosen_plan_is_plan_a_and_both_layer_maps_are_drawn(open_page, run_at):
    record = run_at("search")
    at = open_page("results", record)
    assert at.selectbox(key="results/a").value == f"{record.run_id}:{record.search.chosen}"
    keys = {chart.key for chart in at.get("plotly_chart")}
    assert {"results/front", "results/map/A", "results/map/B"} <= keys


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
    found = Cloud(points.of_run(run_at("search")))
    bad, sizes = found.badness(objective), found.weight_bytes
    for index in found.front(objective):
        better = (sizes <= sizes[index]) & (bad < bad[index]) & found.has_plan
        assert not better.any()


def test_every_point_that_can_be_clicked_carries_its_key(run_at):
    record = run_at("search")
    found = Cloud(points.of_run(record))
    figure = charts_front.front(found, charts_front.FrontView(objective="loss"))
    keys = {
        front_traces.key_of(data, found.run_ids)
        for trace in figure.data
        if trace.customdata is not None
        for data in trace.customdata
    }
    assert keys - {None} == {point.key for point in found if point.plan is not None}


def test_a_plan_survives_the_editor_and_an_edit_changes_one_unit(run_at):
    record = run_at("search")
    space = plans.space_of(record)
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


def test_a_failed_measurement_says_why_and_can_be_tried_again(open_page, run_at, jobs):
    record = run_at("search")
    job = jobs.add(record.run_id, "failed", (), kind="measure", error="The loss is not finite.")
    at = open_page("results", record)
    assert at.error[0].value == "Measure a plan: The loss is not finite."
    at.button(key=f"resume/{job.job_id}").click().run()
    assert ("resume", job.job_id) in jobs.asked


def test_an_old_failure_is_not_shown_once_something_newer_was_asked(open_page, run_at, jobs):
    record = run_at("search")
    jobs.add(record.run_id, "failed", (), kind="measure", error="The loss is not finite.")
    jobs.add(record.run_id, "done", (), kind="measure")
    assert not open_page("results", record).error


@pytest.mark.parametrize("kind", ["measure", "generate"])
def test_a_job_beside_the_line_does_not_show_the_progress_of_a_step(
    open_page, run_at, jobs, said, kind
):
    record = run_at("search")
    told = Progress(step="search", done=29, total=29, message="trial 23")
    jobs.add(record.run_id, "running", (), kind=kind, progress=told, device="cpu")
    at = open_page("results", record)
    assert f"**{wording.JOB_TITLES[kind]}** on cpu" in said(at)
    assert not at.get("progress")


def test_an_unfinished_search_shows_what_it_has_measured(open_page, run_at, store):
    record, finished = run_at("evaluate"), run_at("search", name="source")
    known = finished.search.baselines[:3]
    store.write_value(record.run_id, record.baselines_name, known)
    at = open_page("results", record)
    assert at.selectbox(key="results/a").value == f"{record.run_id}:{known[0].number}"
    assert "results/measure" not in [button.key for button in at.button]


def test_the_data_behind_the_numbers_is_named(open_page, run_at, said):
    assert "demo text, up to 12,288 tokens; demo tasks, 40 items each" in said(
        open_page("results", run_at("search"))
    )


def test_a_real_model_on_demo_text_is_warned_about(open_page, run_at, store, said):
    record = run_at("search")
    store.write(replace(record, spec=replace(record.spec, model=ModelSpec(source="some/model"))))
    assert wording.DEMO_TEXT in said(open_page("results", record))


def test_runs_on_different_data_say_that_they_do_not_compare(open_page, run_at, store, said):
    first, second = run_at("search"), run_at("search", name="Other")
    data = replace(second.spec.data, heldout="wikitext2")
    store.write(replace(second, spec=replace(second.spec, data=data)))
    at = open_page("results", first, **{"with": second.run_id})
    assert "their numbers do not compare" in said(at)


def test_the_zoom_can_be_taken_off(open_page, run_at, said):
    at = open_page("results", run_at("search"))
    assert "at the edge as a triangle" in said(at)
    next(each for each in at.toggle if each.label == "Zoom to the front").set_value(False).run()
    assert "at the edge as a triangle" not in said(at)


def test_up_to_four_plans_of_the_address_are_compared_after_a_reload(open_page, run_at, said):
    record = run_at("search")
    keys = [f"{record.run_id}:{number}" for number in (3, 5, 7, -2, 9)]
    at = open_page("results", record, trial=keys[0], other=",".join(keys[1:]))
    assert at.selectbox(key="results/a").value == keys[0]
    assert at.multiselect(key="results/b").value == keys[1:4]
    maps = [c.key for c in at.get("plotly_chart") if c.key.startswith("results/map/")]
    assert maps == [f"results/map/{letter}" for letter in "ABCD"]
    assert "Linears differ from plan A" in said(at)
    (differences,) = [d.value for d in at.dataframe if "Told apart" in d.value]
    assert len(differences) == 6


def test_a_compared_plan_that_becomes_a_changes_places(open_page, run_at):
    record = run_at("search")
    first, second = f"{record.run_id}:3", f"{record.run_id}:5"
    at = open_page("results", record, trial=first, other=second)
    at.selectbox(key="results/a").set_value(second).run()
    assert at.selectbox(key="results/a").value == second
    assert at.multiselect(key="results/b").value == [first]


def test_of_a_selection_those_nearest_to_its_front_are_compared(run_at):
    found = Cloud(points.of_run(run_at("search")))
    keys = [p.key for p in found if p.plan is not None]
    best = nearest_to_front(found, keys, "loss", "weight_bytes")
    front = {found[i].key for i in found.front("loss")}
    assert len(best) == 4
    assert set(best) <= front
    sizes = [found.find(key).metrics.weight_bytes for key in best]
    assert sizes == sorted(sizes)
    assert nearest_to_front(found, keys[:2], "loss", "weight_bytes") != []


def test_a_filter_leaves_points_out_and_says_how_many(open_page, run_at, store, said):
    record = sample_home.with_latency(store, run_at("search"))
    at = open_page("results", record)
    assert "lie outside the filters" not in said(at)
    latency = Cloud(points.of_run(record)).latency
    slider = at.select_slider(key="results/filter/Per generated token")
    middle = np.linspace(np.nanmin(latency), np.nanmax(latency), widgets_filters.N_STEPS + 1)[20]
    slider.set_value((slider.value[0], float(middle))).run()
    assert not at.exception
    assert "lie outside the filters" in said(at)


def test_without_latency_the_filter_says_so(open_page, run_at, said):
    assert "No latency was measured" in said(open_page("results", run_at("search")))


def test_a_run_can_be_left_out_of_the_picture(open_page, run_at, said):
    first, second = run_at("search"), run_at("search", name="Other", seed=4)
    at = open_page("results", first, **{"with": second.run_id})
    shown = next(each for each in at.pills if each.label == "Shown runs")
    shown.set_value([first.run_id]).run()
    assert "lie outside the filters" in said(at)


def test_the_area_over_trials_names_its_corner(open_page, run_at, said):
    at = open_page("results", run_at("search"))
    assert "results/hypervolume" in {chart.key for chart in at.get("plotly_chart")}
    assert "the dearest baseline" in said(at)


def test_failed_and_stopped_trials_are_listed_with_reasons_and_remarks_are_shown(
    open_page, run_at, store, said
):
    record = sample_home.with_ended(store, run_at("search"))
    at = open_page("results", record)
    (table,) = [d.value for d in at.dataframe if "Reason" in d.value]
    assert list(table["Ended"]) == ["failed", "stopped early, dominated"]
    assert list(table["Reason"]) == ["The loss is not finite.", "Trial 3 is better and smaller."]
    assert record.search.remarks[0] in said(at)


@pytest.mark.parametrize("joint", ["per-layer", "global"])
def test_plans_of_a_joint_search_show_their_pruning_ratios(open_page, store, joint):
    at = open_page("results", sample_home.joint_run(store, joint))
    (chart,) = [c for c in at.get("plotly_chart") if c.key == "results/map/A"]
    assert "pruned by 40 %" in chart.proto.spec or "pruned by 0 %" in chart.proto.spec


def test_an_edited_ratio_changes_the_prediction_and_goes_to_the_queue(open_page, store, jobs):
    record = sample_home.joint_run(store, "global")
    at = open_page("results", record)
    before = {metric.label: metric.value for metric in at.metric}
    key = f"results/editor/{record.run_id}:{record.search.chosen}/ratio"
    level = next(i for i in range(3) if i != at.selectbox(key=key).value)
    at.selectbox(key=key).set_value(level).run()
    after = {metric.label: metric.value for metric in at.metric}
    assert all(after[label] != before[label] for label in ("Weights", "Loss per token"))
    at.button(key="results/measure").click().run()
    (asked,) = [what for kind, what in jobs.asked if kind == "measure"]
    assert asked[0] == record.run_id
    assert set(asked[1].levels or (0,)) == {level}


def test_a_plan_edited_to_other_levels_has_them(store):
    record = sample_home.joint_run(store, "per-layer")
    space, plan = plans.space_of(record), record.search.trials[0].plan
    table = tables_plan.to_table(space, plan)
    levels = [1] * space.layout.n_layers
    changed = tables_plan.to_plan(space, table, levels)
    assert changed.precisions == plan.precisions
    assert changed.levels == tuple(levels)
    assert plans.layer_ratios(record, changed) == (0.0,) * space.layout.n_layers


def test_a_study_that_is_not_there_is_said_and_the_caveat_stands_beside_the_button(
    open_page, run_at, said
):
    at = open_page("results", run_at("search"))
    assert "can also delete them" in said(at)
    button = next(b for b in at.button if b.label == "Open the study in optuna-dashboard")
    button.click().run()
    assert "No search has begun" in at.error[0].value


@pytest.mark.parametrize("how", ["joint", "two runs", "one run"])
def test_one_sentence_says_what_the_data_say_on_pruning_against_bits(
    open_page, run_at, store, said, how
):
    if how == "joint":
        at = open_page("results", sample_home.joint_run(store, "per-layer"))
    elif how == "two runs":
        other = run_at("search", name="Other", pruning=PruningSpec(ratio=0.4))
        at = open_page("results", run_at("search"), **{"with": other.run_id})
    else:
        at = open_page("results", run_at("search"))
    lines = [line for line in said(at).splitlines() if line.startswith(":material/balance:")]
    assert len(lines) == (how != "one run")
