"""The paper's table on the Results page: empty, running, failed, stopped and done."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sample_home
import sample_reproduction

from app import tables, widgets_reproduction
from qpruner_core.cli import report
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.recovery import PRESETS
from qpruner_core.domain.reproduction import SMALL_RECOVERY, VARIANTS, usual_recover_steps


@pytest.fixture
def table_of(store):
    return lambda n_rows=12, **how: sample_reproduction.reproduced(store, n_rows, **how)


def button(at, label):
    return next(each for each in at.button if each.label == label)


def number(at, label):
    return next(each for each in at.number_input if each.label == label)


def test_without_anything_measured_it_says_what_the_table_is_and_how_much_work(
    open_page, run_at, said
):
    text = said(open_page("results", run_at(None)))
    assert widgets_reproduction.ABOUT in text
    steps = SMALL_RECOVERY.steps
    within = usual_recover_steps("paper", SMALL_RECOVERY)
    assert f"12 rows are trained for {steps} steps each" in text
    assert f"150 plans were tried (50 at each of 3 ratios), each trained for {within}" in text


def test_starting_asks_for_the_settings(open_page, run_at, jobs):
    record = run_at("load")
    at = open_page("results", record)
    next(each for each in at.radio if each.label == "Setting").set_value("script").run()
    next(m for m in at.multiselect if m.label == "Pruning ratios").set_value([0.2]).run()
    number(at, "Plans tried at every ratio").set_value(7).run()
    number(at, "Steps of recovery").set_value(9).run()
    at.button(key="reproduce/start").click().run()
    ((kind, (run_id, spec)),) = jobs.asked
    assert (kind, run_id) == ("reproduce", record.run_id)
    assert (spec.setting, spec.ratios, spec.n_trials, spec.n_startup) == ("script", (0.2,), 7, 1)
    assert spec.recovery.steps == 9
    assert spec.recovery.rank == SMALL_RECOVERY.rank
    assert spec.recover_steps == usual_recover_steps("script", spec.recovery)


def test_a_preset_of_recovery_brings_its_own_steps(open_page, run_at, jobs):
    at = open_page("results", run_at("load"))
    next(s for s in at.selectbox if s.label == "Recovery of every row").set_value("paper").run()
    assert number(at, "Steps of recovery").value == PRESETS["paper"].steps
    at.button(key="reproduce/start").click().run()
    assert jobs.asked[0][1][1].recovery == PRESETS["paper"]


def test_no_ratio_is_answered_with_a_sentence(open_page, run_at):
    at = open_page("results", run_at("load"))
    next(m for m in at.multiselect if m.label == "Pruning ratios").set_value([]).run()
    assert "pruning ratios of the table are none" in at.error[0].value
    assert at.button(key="reproduce/start").disabled


def test_other_tasks_are_answered_in_a_run_of_their_own(open_page, run_at, jobs, store):
    record = run_at("load")
    at = open_page("results", record)
    next(m for m in at.multiselect if m.label == "Tasks of the table").set_value(["piqa"]).run()
    at.button(key="reproduce/start").click().run()
    ((_, (run_id, _)),) = jobs.asked
    assert run_id != record.run_id
    assert store.read(run_id).spec.data.task_names == ("piqa",)
    assert store.read(record.run_id).spec.data.task_names == ()


def test_a_measured_run_says_how_long_the_plans_take(open_page, run_at, said):
    at = open_page("results", run_at("search"))
    within = "Recovery steps in each trial"
    number(at, within).set_value(0).run()
    assert "A plan of this run took 1.4 s to measure" in said(at)


def test_while_it_runs_rows_and_pieces_are_counted_and_it_can_be_stopped(
    open_page, table_of, jobs, said
):
    record = table_of(5)
    told = Progress(
        step="reproduce",
        done=70,
        total=189,
        message="30 %, QPruner-1 12 of 150",
        values={"seconds_left": 610.0},
    )
    job = jobs.add(record.run_id, "running", (), kind="reproduce", progress=told, device="cpu")
    at = open_page("results", record)
    bars = [bar.proto.text for bar in at.get("progress")]
    live = "30 %, QPruner-1 12 of 150 · about 10 min 10 s left"
    assert bars == [f"**The paper's table** 70 of 189 · {live} · on cpu"]
    assert "5 are by now" in said(at)
    assert at.button(key="reproduce/start").disabled
    assert len(at.table) == 4
    at.button(key=f"stop/{job.job_id}").click().run()
    assert ("cancel", job.job_id) in jobs.asked


def test_below_a_front_the_table_says_how_far_it_is_and_can_be_stopped_there(
    open_page, table_of, run_at, jobs, store
):
    searched = run_at("search")
    made = table_of(5).reproduction
    store.write(replace(searched, reproduction=made))
    told = Progress(step="reproduce", done=70, total=189, message="30 %", values={})
    job = jobs.add(searched.run_id, "running", (), kind="reproduce", progress=told)
    at = open_page("results", searched)
    bars = [bar.proto.text for bar in at.get("progress")]
    assert bars == [
        "**The paper's table** 70 of 189 · 30 %",
        "**5 of 12 rows** measured · 30 %",
    ]
    at.button(key=f"reproduce/stop/{job.job_id}").click().run()
    assert ("cancel", job.job_id) in jobs.asked


def test_the_jobs_page_says_how_far_it_is(open_page, table_of, jobs):
    record = table_of(5)
    told = Progress(step="reproduce", done=70, total=180, values={"seconds_left": 61.0})
    job = jobs.add(record.run_id, "running", (), kind="reproduce", progress=told)
    bar = open_page("jobs", record).get("progress")[0].proto.text
    assert "**The paper's table** 70 of 180 · about 1 min 1 s left" in bar
    assert (tables.does(job), tables.progress(job)) == ("The paper's table", "70 of 180")


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_a_table_that_ended_early_goes_on_from_here(open_page, table_of, jobs, said, status):
    record = table_of(5)
    job = jobs.add(record.run_id, status, (), kind="reproduce", error="The disk is full.")
    at = open_page("results", record)
    shown = at.error if status == "failed" else at.warning
    words = "The disk is full." if status == "failed" else "5 of 12 rows are measured."
    assert words in shown[0].value
    at.button(key="reproduce/resume").click().run()
    assert ("resume", job.job_id) in jobs.asked


def test_a_table_that_a_command_left_half_finished_goes_on_too(open_page, table_of, jobs):
    record = table_of(5)
    at = open_page("results", record)
    at.button(key="reproduce/resume").click().run()
    assert jobs.asked == [("reproduce", (record.run_id, record.reproduction.spec))]


def test_done_it_shows_every_ratio_the_picture_and_what_it_found(open_page, table_of, said):
    record = table_of()
    at = open_page("results", record)
    assert len(at.table) == 6
    assert not [each for each in at.button if each.key == "reproduce/resume"]
    assert "reproduce/picture" in {chart.key for chart in at.get("plotly_chart")}
    text = said(at)
    assert "trains in 38.7 % less memory than LLM-Pruner (16 bit)" in text
    assert record.reproduction.remarks[0] in text
    assert "Nothing has been measured" not in text


def test_the_table_is_taken_along_as_csv_markdown_and_latex(open_page, table_of):
    at = open_page("results", table_of())
    labels = [each.proto.label for each in at.get("download_button")]
    assert labels == ["CSV", "Markdown", "LaTeX"]


def test_the_best_of_a_ratio_is_bold_where_the_test_says_so(open_page, table_of):
    last = open_page("results", table_of()).table[4].value
    names = [name.replace("\N{NO-BREAK SPACE}", " ") for name in last["Row"]]
    bold = [n for n, cell in zip(names, last["Mean accuracy, %"], strict=True) if "**" in cell]
    assert bold == [VARIANTS[-1]]


def test_the_picture_is_drawn_over_what_runs_too(open_page, table_of):
    at = open_page("results", table_of())
    next(
        each for each in at.get("segmented_control") if each.label == "Memory of the picture"
    ).set_value("inference").run()
    assert not at.exception


def test_a_finished_table_is_kept_and_another_one_gets_a_run_of_its_own(
    open_page, table_of, jobs, store
):
    record = table_of()
    at = open_page("results", record)
    at.button(key="reproduce/start").click().run()
    ((_, (run_id, spec)),) = jobs.asked
    assert run_id != record.run_id
    assert spec == record.reproduction.spec
    assert store.read(run_id).reproduction is None


def test_a_finished_table_is_replaced_only_when_asked(open_page, table_of, jobs):
    record = table_of()
    at = open_page("results", record)
    at.toggle(key="reproduce/apart").set_value(False).run()
    at.button(key="reproduce/start").click().run()
    assert jobs.asked[0][1][0] == record.run_id


def test_the_run_of_a_ratio_says_which_table_it_belongs_to(open_page, table_of, store):
    record = table_of(4)
    child = store.read(record.reproduction.runs["0.2"])
    at = open_page("results", child)
    labels = [link.proto.label for link in at.get("page_link")]
    assert any("part at 20 % of the table of Demo, table" in label for label in labels)
    assert "results/front" in {chart.key for chart in at.get("plotly_chart")}


def test_the_runs_table_says_how_far_a_table_is(open_page, table_of):
    record = table_of(5)
    assert tables.stands_at(record, None) == "table: 5 of 12 rows"


def test_the_runs_page_offers_the_table_of_a_new_run(open_page, store):
    at = open_page("runs")
    button(at, "Make the paper's table").click().run()
    assert len(store.list()) == 1


def test_every_widget_of_the_table_has_a_label_and_a_tooltip(open_page, table_of):
    at = open_page("results", table_of(5))
    kinds = ("button", "toggle", "slider", "selectbox", "multiselect", "number_input", "radio")
    for kind in (*kinds, "segmented_control"):
        for widget in at.get(kind):
            assert widget.label, kind
            assert getattr(widget.proto, "help", ""), f"{kind} {widget.label!r} has no tooltip"


def test_without_tasks_the_rows_are_judged_by_the_loss(open_page, table_of, said):
    at = open_page("results", table_of(12, tasks=False))
    assert len(at.table) == 3
    assert "Loss, nats/token" in at.table[0].value
    assert "nats per token higher" in said(at)
    assert sample_home.DEVICE == "cpu"


def test_the_seed_is_that_of_recovery_too(open_page, run_at, jobs):
    at = open_page("results", run_at("load"))
    number(at, "Seed").set_value(7).run()
    at.button(key="reproduce/start").click().run()
    spec = jobs.asked[0][1][1]
    assert (spec.seed, spec.recovery.seed) == (7, 7)


def test_our_setting_asks_for_no_first_plans_and_the_others_for_less_than_all(open_page, run_at):
    at = open_page("results", run_at("load"))
    label = "Plans before the model chooses"
    number(at, "Plans tried at every ratio").set_value(5).run()
    assert (number(at, label).value, number(at, label).max) == (1, 4)
    next(each for each in at.radio if each.label == "Setting").set_value("ours").run()
    assert label not in {each.label for each in at.number_input}
    assert not at.exception


def test_what_stays_of_a_table_that_is_made_again_is_said_as_it_is(open_page, table_of, said):
    at = open_page("results", table_of())
    at.toggle(key="reproduce/apart").set_value(False).run()
    assert "its rows are kept" in said(at)
    next(m for m in at.multiselect if m.label == "Pruning ratios").set_value([0.2]).run()
    assert "Only the ratios differ: rows of ratios that stay are kept" in said(at)
    number(at, "Steps of recovery").set_value(3).run()
    assert "The whole table is replaced" in said(at)


def test_a_run_that_is_there_for_the_table_alone_shows_no_steps(open_page, table_of, said):
    assert "Quantise" not in said(open_page("results", table_of()))


def test_the_command_line_says_how_far_a_table_and_what_step_is_next(store, table_of):
    record = table_of(5)
    assert report.run_lines(record)[0].endswith("table: 5 of 12 rows")
    ratio = store.read(next(iter(record.reproduction.runs.values())))
    without = replace(ratio, evaluate=None)
    assert report.run_lines(without)[0].endswith("next step: recover")
