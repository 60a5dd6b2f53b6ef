"""What the Search page asks and foresees: signals, budget, costs, joint pruning."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import sample_home

from app import foresight
from qpruner_core.domain.spec import SearchSpec


def field(found, label):
    return next(each for each in found if each.label == label)


def figure(at, key):
    """Return the picture of a key, as Plotly's own words."""
    import json

    return next(
        json.loads(chart.proto.spec)
        for chart in at.get("plotly_chart")
        if chart.proto.id.endswith(key)
    )


@pytest.fixture
def solved(monkeypatch):
    """Count the knapsacks that pages have solved."""
    calls, front = [], foresight.front

    def counted(*given, **named):
        calls.append(named)
        return front(*given, **named)

    monkeypatch.setattr(foresight, "front", counted)
    return calls


def test_a_move_of_the_budget_slider_solves_no_knapsack_again(open_page, run_at, solved):
    at = open_page("search", run_at("search"))
    n_solved = len(solved)
    assert n_solved == 1
    seen = set()
    for percent in (32.0, 40.0, 55.0):
        field(at.slider, "Memory budget, % of the dense model").set_value(percent).run()
        seen.add(field(at.metric, "Weights").value)
    assert len(seen) == 3
    assert len(solved) == n_solved


def test_fewer_precisions_are_foreseen_at_once_with_those_that_are_left(open_page, run_at, solved):
    at = open_page("search", run_at("quantize"))
    at.pills[0].set_value(["nf4", "int8"]).run()
    (_, again) = solved
    assert again == {"signal": "kl"}
    at.pills[0].set_value(["nf4", "int8", "bf16"]).run()
    assert len(solved) == 2


def test_signals_stand_below_with_their_sentence_and_a_choice(open_page, run_at, said):
    at = open_page("search", run_at("quantize"))
    assert "Signals per layer" in said(at)
    assert "rank the layers alike to 0.87" in said(at)
    by_kl = figure(at, "search/signals")
    choice = field(at.segmented_control, "Sensitivity by")
    assert choice.value == "kl"
    choice.set_value("loss").run()
    by_loss = figure(at, "search/signals")
    assert by_kl["data"][0]["zmax"] == pytest.approx(0.9 * by_loss["data"][0]["zmax"])


def test_an_older_record_says_that_it_has_losses_alone(open_page, run_at, store, said):
    record = run_at("quantize")
    cells = tuple(replace(cell, kl=None) for cell in record.quantize.sensitivities)
    at = open_page("search", sample_home.with_quantize(store, record, sensitivities=cells))
    assert "losses alone" in said(at)
    assert "This run has no KL divergence on record." in said(at)


def test_predicted_stands_beside_measured_with_differences_counted(open_page, run_at, said):
    at = open_page("search", run_at("search"))
    field(at.slider, "Memory budget, % of the dense model").set_value(38.0).run()
    assert [metric.label for metric in at.metric] == ["Weights", "Loss per token"] * 2
    assert "differ from the prediction; they are ringed" in said(at)
    assert "Predicted for this plan: 1." in said(at)
    names = [trace["name"] for trace in figure(at, "search/measured_map")["data"]]
    assert "differs" in names


def test_a_budget_that_no_plan_reaches_names_the_least_possible(open_page, run_at, store, said):
    record = run_at("quantize")
    spec = replace(record.spec, search=replace(record.spec.search, memory_budget="0.1"))
    record = replace(record, spec=spec)
    store.write(record)
    at = open_page("search", record)
    (warning,) = at.warning
    assert "which no plan of this search reaches: the least possible is" in warning.value
    assert field(at.metric, "Weights").value in warning.value


@pytest.mark.parametrize(
    ("cost", "title"),
    [("training_memory", "Memory of LoRA training"), ("latency", "Latency, ms per")],
)
def test_the_front_follows_the_cost(open_page, run_at, said, cost, title):
    at = open_page("search", run_at("quantize"))
    field(at.selectbox, "Against").set_value(cost).run()
    picture = figure(at, "search/front")
    assert title in picture["layout"]["xaxis"]["title"]["text"]
    assert "predicted front" in picture["data"][0]["name"]
    assert "bounds the weights" in said(at)


def test_the_front_follows_the_objective(open_page, run_at, said):
    at = open_page("search", run_at("search"))
    field(at.selectbox, "Weigh").set_value("accuracy").run()
    assert "accuracy" in figure(at, "search/front")["layout"]["yaxis"]["title"]["text"]
    assert "weigh loss to see it" in said(at)


def test_latency_is_measured_first_where_nothing_was_timed(open_page, run_at, store, jobs):
    record = run_at("quantize")
    cells = tuple(replace(cell, seconds=None) for cell in record.quantize.sensitivities)
    at = open_page("search", sample_home.with_quantize(store, record, sensitivities=cells))
    field(at.selectbox, "Against").set_value("latency").run()
    assert any("not measured yet" in info.value for info in at.info)
    at.button(key="start/search").click().run()
    (_, (_, steps, spec)) = jobs.asked[0]
    assert (steps[0], spec.search.cost) == ("quantize", "latency")


def test_a_ratio_per_layer_with_finer_ties_is_refused_in_a_sentence_and_nothing_is_lost(
    open_page, run_at
):
    at = open_page("search", run_at("search"))
    field(at.number_input, "Trials").set_value(31).run()
    field(at.selectbox, "Share one precision").set_value("fused").run()
    field(at.selectbox, "Pruning ratio").set_value("per-layer").run()
    (error,) = at.error
    assert "Tie by layer, or choose one ratio for the model." in error.value
    assert at.button(key="start/search").disabled
    assert field(at.number_input, "Trials").value == 31
    assert at.get("plotly_chart")
    field(at.selectbox, "Share one precision").set_value("layer").run()
    assert not at.error
    assert not at.button(key="start/search").disabled


def test_a_joint_search_asks_for_further_ratios_and_measures_them_first(open_page, run_at, jobs):
    at = open_page("search", run_at("quantize"))
    field(at.selectbox, "Pruning ratio").set_value("global").run()
    ratios = next(each for each in at.multiselect if each.label.startswith("Ratios beside"))
    assert ratios.value == [0.3]
    ratios.set_value([0.1, 0.4]).run()
    at.button(key="start/search").click().run()
    (_, (_, steps, spec)) = jobs.asked[0]
    assert steps[0] == "quantize"
    assert (spec.search.joint, spec.search.ratios) == ("global", (0.1, 0.4))


def test_a_ratio_that_pruning_cannot_reach_is_a_sentence(open_page, run_at):
    at = open_page("search", run_at("quantize"))
    field(at.selectbox, "Pruning ratio").set_value("global").run()
    ratios = next(each for each in at.multiselect if each.label.startswith("Ratios beside"))
    ratios.set_value([0.8]).run()
    (error,) = at.error
    assert "ratio" in error.value
    assert at.button(key="start/search").disabled


CHANGES = {
    "objective": ("selectbox", "Weigh", "accuracy"),
    "cost": ("selectbox", "Against", "training_memory"),
    "signal": ("selectbox", "Predict by", "loss"),
    "information": ("selectbox", "QPruner-2 goes by", "block_influence"),
    "patience": ("number_input", "Patience", 6),
    "rungs": ("number_input", "Rungs", 3),
    "recover_steps": ("number_input", "Recovery steps in each trial", 20),
    "signal_tokens": ("number_input", "Tokens for sensitivities, 0 for as many as needed", 512),
    "tie": ("selectbox", "Share one precision", "fused"),
    "joint": ("selectbox", "Pruning ratio", "global"),
    "seed": ("number_input", "Seed", 5),
    "n_trials": ("number_input", "Trials", 7),
    "strategy": ("selectbox", "Strategy", "tpe"),
}
ELSEWHERE = {"memory_budget", "precisions", "ratios", "options"}
"""Asked too; other tests change them."""
KEPT = {"fixed"}
"""Not asked on the page, which leaves them as the run has them."""


def test_every_field_of_a_search_is_asked():
    assert {each.name for each in fields(SearchSpec)} == CHANGES.keys() | ELSEWHERE | KEPT


@pytest.mark.parametrize("name", list(CHANGES))
def test_what_is_asked_reaches_the_job(open_page, run_at, jobs, name):
    kind, label, value = CHANGES[name]
    at = open_page("search", run_at("prune"))
    field(getattr(at, kind), label).set_value(value).run()
    at.button(key="start/search").click().run()
    (_, (_, _, spec)) = jobs.asked[0]
    assert getattr(spec.search, name) == value


def test_options_of_the_strategy_reach_the_job(open_page, run_at, jobs):
    at = open_page("search", run_at("prune"))
    field(at.selectbox, "Strategy").set_value("nsga2").run()
    next(each for each in at.number_input if each.label.endswith("Population")).set_value(30).run()
    at.button(key="start/search").click().run()
    (_, (_, _, spec)) = jobs.asked[0]
    assert spec.search.options["population_size"] == 30


def test_measured_losses_after_recovery_are_told_apart_from_predictions(
    open_page, run_at, store, said
):
    record = run_at("search")
    assert "recovery; the predicted front" not in said(open_page("search", record))
    search = replace(record.spec.search, recover_steps=20)
    found = replace(record.search, spec=search)
    store.write(replace(record, spec=replace(record.spec, search=search), search=found))
    words = "after 20 steps of recovery; the predicted front is of plans as they are quantised"
    assert words in said(open_page("search", record))
    assert "were measured after 20 steps of recovery each" in said(open_page("results", record))


def test_another_run_starts_with_its_own_settings(open_page, run_at):
    one, other = run_at("quantize", name="one"), run_at("quantize", name="other")
    at = open_page("search", one)
    field(at.number_input, "Trials").set_value(99).run()
    at.selectbox(key="run_picker").set_value(other.run_id).run()
    assert field(at.number_input, "Trials").value == other.spec.search.n_trials


def test_the_form_starts_anew_when_a_job_has_given_the_run_other_settings(
    open_page, run_at, store
):
    record = run_at("quantize")
    at = open_page("search", record)
    assert field(at.number_input, "Trials").value == record.spec.search.n_trials
    asked = replace(record.spec.search, n_trials=6, memory_budget="0.44")
    store.write(replace(record, spec=replace(record.spec, search=asked)))
    at.run()
    assert field(at.number_input, "Trials").value == 6
    assert field(at.slider, "Memory budget, % of the dense model").value == 44.0
