from __future__ import annotations

import json
from dataclasses import replace

import pytest
import sample_home
from streamlit.proto.Metric_pb2 import Metric as MetricProto

from app import wording
from qpruner_core.domain.footprint import dense_bytes
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.spec import PruningSpec, SearchSpec
from qpruner_core.domain.speed import Rate, Speed, SpeedSpec
from qpruner_core.jobs import WorkerInfo
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


def test_before_and_after_stand_together(open_page, run_at, said):
    record = run_at("load")
    at = open_page("pruning", record)
    dense = record.load.layout
    left = select(dense, None, record.spec.pruning).layout
    change = next(metric.delta for metric in at.metric if metric.label == "Parameters")
    assert change == f"{100 * (left.parameters / dense.parameters - 1):+.1f} %"
    assert f"before {wording.count(dense.parameters)}" in said(at)


def test_the_criterion_comes_with_its_options_from_the_catalogue(open_page, run_at, jobs):
    at = open_page("pruning", run_at("score"))
    at.selectbox(key="prune/criterion").select("magnitude").run()
    at.number_input(key="prune/magnitude/p").set_value(1.0).run()
    assert "decided from scores that this run has not yet" in " ".join(c.value for c in at.caption)
    at.toggle(key="copy/prune").set_value(False).run()
    at.button(key="start/prune").click().run()
    (_, (_, steps, spec)) = jobs.asked[0]
    assert steps == ("score", "prune")
    assert spec.importance.options["magnitude"] == {"p": 1.0}
    assert spec.pruning.criterion == "magnitude"


def test_options_as_scored_do_not_score_again(open_page, run_at, jobs):
    record = run_at("score")
    at = open_page("pruning", record)
    at.selectbox(key="prune/criterion").select("magnitude").run()
    at.button(key="start/prune").click().run()
    (_, (run_id, steps, spec)) = jobs.asked[0]
    assert (run_id, steps) == (record.run_id, ("prune",))
    assert spec.importance == record.spec.importance


def test_more_options_go_into_the_spec(open_page, run_at, jobs):
    at = open_page("pruning", run_at("score"))
    at.slider(key="prune/ratio").set_value(30)
    at.number_input(key="prune/drop_layers").set_value(2)
    at.number_input(key="prune/rounds").set_value(3)
    at.selectbox(key="prune/scope").select("balanced")
    at.selectbox(key="prune/compensation").select("bias")
    at.pills(key="prune/kinds").set_value(["mlp_channels"]).run()
    at.button(key="start/prune").click().run()
    asked = jobs.asked[0][1][2].pruning
    assert (asked.ratio, asked.drop_layers, asked.iterations) == (0.3, 2, 3)
    assert (asked.scope, asked.compensation) == ("balanced", "bias")
    # Kinds that this model lacks stay as they were.
    assert asked.kinds == ("mlp_channels", "expert_channels")


def test_untouched_the_form_asks_for_what_the_run_asked(open_page, run_at, jobs):
    record = run_at("score")
    at = open_page("pruning", record)
    at.button(key="start/prune").click().run()
    assert jobs.asked[0][1][2] == record.spec


def test_only_kinds_that_the_model_has_may_leave(open_page, run_at):
    pills = open_page("pruning", run_at("load", source="olmo2")).pills(key="prune/kinds")
    assert pills.options == ["MLP channels"]
    pills = open_page("pruning", run_at("load", source="mixtral")).pills(key="prune/kinds")
    assert pills.options == ["KV heads", "Expert channels", "Experts"]


def test_nothing_that_may_leave_is_answered_with_a_sentence(open_page, run_at):
    at = open_page("pruning", run_at("load"))
    at.pills(key="prune/kinds").set_value([]).run()
    assert "Choose at least one" in at.error[0].value


def test_what_cannot_be_done_is_a_sentence_without_a_button(open_page, run_at):
    at = open_page("pruning", run_at("load"))
    at.slider(key="prune/ratio").set_value(10)
    at.number_input(key="prune/drop_layers").set_value(11).run()
    assert len(at.error) == 1
    assert "start/prune" not in [button.key for button in at.button]
    at.number_input(key="prune/drop_layers").set_value(1).run()
    assert not at.error


def test_the_picture_shows_layers_that_leave_whole(open_page, run_at, said):
    at = open_page("pruning", run_at("score"))
    at.number_input(key="prune/drop_layers").set_value(1).run()
    assert not at.error
    figure = json.loads(at.get("plotly_chart")[0].proto.spec)
    words = [each["text"] for each in figure["layout"]["annotations"]]
    assert words.count("layer leaves") == 2


def test_ratios_by_hand_have_a_table(open_page, run_at):
    record = run_at("load", pruning=PruningSpec(ratio=0.2, layer_ratios={"5": 0.4}))
    at = open_page("pruning", record)
    assert at.toggle(key="prune/by_hand").value
    at.toggle(key="prune/by_hand").set_value(False).run()
    assert not at.error


def test_criteria_are_compared_at_the_ratio_of_the_slider(open_page, run_at, jobs):
    record = run_at("score")
    at = open_page("pruning", record)
    at.slider(key="prune/ratio").set_value(30).run()
    at.button(key="compare/start").click().run()
    (kind, (run_id, spec)) = jobs.asked[0]
    assert (kind, run_id, spec.ratio) == ("compare", record.run_id, 0.3)


def test_without_scores_there_is_nothing_to_compare(open_page, run_at, said):
    at = open_page("pruning", run_at("load"))
    assert at.button(key="compare/start").disabled
    assert "Score the model first" in said(at)


def test_a_comparison_under_way_shows_its_pieces(open_page, run_at, jobs):
    record = run_at("score")
    told = Progress(step="prune", done=2, total=6, message="Wanda")
    jobs.add(record.run_id, "running", (), kind="compare", progress=told, device="cpu")
    at = open_page("pruning", record)
    assert "Compare criteria** 2 of 6" in at.get("progress")[0].proto.text
    assert at.button(key="compare/start").disabled


def test_a_failed_comparison_is_a_sentence(open_page, run_at, jobs):
    record = run_at("score")
    jobs.add(record.run_id, "failed", (), kind="compare", error="No task is left.")
    at = open_page("pruning", record)
    assert at.error[0].value == "Compare criteria: No task is left."


def test_what_was_compared_is_measured_and_the_best_is_used_on_a_click(
    open_page, run_at, compared, said
):
    at = open_page("pruning", compared(run_at("score")))
    table = at.dataframe[0].value
    assert list(table["Best"]) == ["★", "", "", "", "", ""]
    assert (table.loc[0, "Criterion"], table.loc[0, "Compensation"]) == (
        "Weight magnitude",
        "bias",
    )
    assert table.loc[0, "Against dense"] == "+0.0900 nats"
    assert "measured" in said(at)
    at.button(key="compare/use").click().run()
    assert at.selectbox(key="prune/criterion").value == "magnitude"
    assert at.selectbox(key="prune/compensation").value == "bias"
    assert at.toast[0].value == (
        "“Weight magnitude” with bias compensation is now in the form above."
    )
    assert "The form above asks for just this" in said(at)


@pytest.mark.parametrize("before", ["none", "bias"])
def test_what_is_used_has_no_second_origin(open_page, run_at, compared, before, caplog):
    """Streamlit warns where a widget has a default and a value from elsewhere."""
    record = run_at("score", pruning=PruningSpec(ratio=0.2, compensation=before))
    at = open_page("pruning", compared(record))
    at.selectbox(key="compare/chosen").select_index(1).run()
    at.button(key="compare/use").click().run()
    assert not at.exception
    assert not at.warning
    assert "default value" not in caplog.text


def test_protection_by_hand_starts_from_the_automatic_numbers(open_page, run_at):
    at = open_page("pruning", run_at("score"))
    before = value(at, "Parameters")
    at.toggle(key="prune/protect").set_value(True).run()
    first = at.number_input(key="prune/protect_first").value
    assert (first, at.number_input(key="prune/protect_last").value) == (2, 1)
    assert value(at, "Parameters") == before


def test_a_share_that_is_not_the_one_asked_for_is_said_once(open_page, run_at, said):
    at = open_page("pruning", run_at("score"))
    at.selectbox(key="prune/shape").select("uniform")
    at.pills(key="prune/kinds").set_value(["kv_heads"])
    at.slider(key="prune/ratio").set_value(6).run()
    assert not at.error
    assert any("leave rather than" in warning.value for warning in at.warning)
    assert "were asked for" not in said(at)


def test_a_change_of_nothing_has_no_arrow(open_page, run_at, store):
    record = run_at("prune")
    same = replace(record.prune, after=record.prune.before)
    store.write(replace(record, prune=same))
    at = open_page("pruning", record)
    loss = next(metric for metric in at.metric if metric.label == "Loss per token")
    assert loss.delta == "0.000 nats/token"
    assert loss.proto.color == MetricProto.GRAY
    assert loss.proto.direction == MetricProto.NONE


def test_an_impossible_form_hides_no_measured_result(open_page, run_at, compared, said):
    at = open_page("pruning", compared(run_at("score")))
    at.pills(key="prune/kinds").set_value([]).run()
    assert "start/prune" not in [button.key for button in at.button]
    assert "Which criterion is best here?" in said(at)
    assert len(at.dataframe[0].value) == 6
    assert at.button(key="compare/start").disabled
    assert at.button(key="compress/start").disabled


def test_layer_by_layer_a_budget_decides_as_on_the_command_line(open_page, run_at, jobs):
    at = open_page("pruning", run_at("load"))
    at.button(key="compress/start").click().run()
    spec = jobs.asked[0][1][1]
    assert spec.search.memory_budget == "0.45"
    assert spec.search.precisions == SearchSpec().precisions


def worker(memory_bytes, device="cpu"):
    return WorkerInfo(
        name=f"atlas/{device}",
        pid=7,
        host="atlas",
        device=device,
        since="2026-01-01T00:00:00+00:00",
        memory_bytes=memory_bytes,
    )


def test_a_model_that_does_not_fit_its_worker_is_offered_layer_by_layer(
    open_page, run_at, jobs, said
):
    record = run_at("load")
    jobs.crew.append(worker(2**20))
    at = open_page("pruning", record)
    assert "more than the 1.00 MiB of the worker on cpu" in said(at)
    others = at.radio(key="compress/others")
    assert others.disabled
    assert "Taylor, first order" in others.options
    at.radio(key="compress/criterion").set_value("magnitude")
    at.selectbox(key="compress/precision").select("int8").run()
    at.button(key="compress/start").click().run()
    (kind, (run_id, spec)) = jobs.asked[0]
    assert (kind, run_id) == ("compress", record.run_id)
    assert spec.pruning.criterion == "magnitude"
    assert spec.search.precisions == ("int8",)


def test_a_model_that_fits_its_worker_gets_no_warning(open_page, run_at, jobs, said):
    jobs.crew.append(worker(2**34))
    assert "more than the" not in said(open_page("pruning", run_at("load")))


def test_layer_by_layer_a_budget_mixes_precisions(open_page, run_at, jobs):
    at = open_page("pruning", run_at("load"))
    at.selectbox(key="compress/precision").select("mixed").run()
    at.slider(key="compress/budget").set_value(40).run()
    at.button(key="compress/start").click().run()
    search = jobs.asked[0][1][1].search
    assert search.memory_budget == "0.40"
    assert len(search.precisions) > 1


def test_the_folder_of_an_export_is_not_written_layer_by_layer_too(open_page, run_at, store, jobs):
    record = run_at("load")
    export = replace(record.spec.export, out="/somewhere/exported")
    record = replace(record, spec=replace(record.spec, export=export))
    store.write(record)
    at = open_page("pruning", record)
    at.button(key="compress/start").click().run()
    assert jobs.asked[0][1][1].export.out is None


def test_what_was_written_layer_by_layer_is_measured_and_can_be_downloaded(
    open_page, run_at, store, said
):
    folder = store.home / "written"
    record = sample_home.with_compressed(store, run_at("load"), folder)
    at = open_page("pruning", record)
    assert value(at, "On disk") == "1.00 MiB"
    assert value(at, "Peak memory") == "1.00 GiB"
    assert str(folder) in said(at)
    assert "predicted, not measured" in said(at)
    assert at.get("download_button")


def test_a_pass_layer_by_layer_says_which_one_it_is(open_page, run_at, jobs):
    record = run_at("load")
    told = Progress(step="score", done=3, total=12, message="layer by layer")
    jobs.add(record.run_id, "running", (), kind="compress", progress=told, device="cpu")
    at = open_page("pruning", record)
    assert "Compress layer by layer: Score** 3 of 12" in at.get("progress")[0].proto.text


def test_layer_by_layer_there_is_one_round(open_page, run_at, jobs):
    at = open_page("pruning", run_at("load", pruning=PruningSpec(ratio=0.2, iterations=4)))
    at.button(key="compress/start").click().run()
    assert jobs.asked[0][1][1].pruning.iterations == 1


def test_while_rows_still_come_none_is_offered(open_page, run_at, compared, jobs):
    record = compared(run_at("score"))
    jobs.add(record.run_id, "running", (), kind="compare", device="cpu")
    at = open_page("pruning", record)
    assert "compare/use" not in [button.key for button in at.button]
    assert len(at.dataframe[0].value) == 6


def test_speeds_are_shown_with_their_spread(open_page, run_at, store, said):
    record = run_at("evaluate")
    rates = {name: Rate(median=50.0, lower=41.0, upper=57.0) for name in ("prefill", "decode")}
    timed = replace(record.evaluate, speed=Speed(spec=SpeedSpec(context=128), **rates))
    store.write(replace(record, evaluate=timed))
    at = open_page("pruning", record)
    assert "medians of 5 repetitions" in said(at)
    assert "writing 41 to 57 tokens/s" in said(at)
