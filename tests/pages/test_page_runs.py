from __future__ import annotations

from qpruner_core.domain.record import STEPS


def button(at, label):
    return next(each for each in at.button if each.label == label)


def test_the_first_start_offers_the_demo_and_one_click_starts_the_whole_line(
    open_page, jobs, store
):
    at = open_page("runs")
    button(at, "Compress the demo model").click().run()
    (kind, (run_id, steps, spec)) = jobs.asked[0]
    assert (kind, steps, spec.model.source) == ("line", STEPS, "demo")
    assert [record.run_id for record in store.list()] == [run_id]


def test_after_the_first_start_the_offer_is_gone_and_the_line_is_shown(open_page, jobs, said):
    at = open_page("runs")
    button(at, "Compress the demo model").click().run()
    assert "Compress the demo model" not in [each.label for each in at.button]
    assert "Quantise" in said(at)


def test_the_card_says_what_is_measured_and_what_is_estimated(open_page, said):
    at = open_page("runs")
    assert {"Parameters", "On disk", "At 16 bit"} <= {metric.label for metric in at.metric}
    assert "measured" in said(at)
    assert "estimated" in said(at)


def test_the_table_shows_the_best_measured_point_of_every_run(open_page, run_at):
    record = run_at("search")
    at = open_page("runs", record)
    table = at.dataframe[0].value
    assert table.loc[0, "Best plan, measured"] != "-"
    assert table.loc[0, "Weights"].endswith("iB")


def test_a_picked_run_is_deleted_only_after_a_second_click(open_page, run_at, jobs, store):
    record = run_at("score")
    at = open_page("runs", record)
    assert store.list()
    button(at, "Delete for good").click().run()
    assert store.list() == []
    assert ("forget", record.run_id) in jobs.asked


def test_trusting_remote_code_is_off_and_warns_when_it_is_ticked(open_page):
    at = open_page("runs")
    at.segmented_control[0].set_value("Hub").run()
    tick = next(box for box in at.checkbox if box.label == "Trust remote code")
    assert tick.value is False
    tick.check().run()
    assert "rights" in at.warning[0].value


def test_a_folder_outside_the_allowed_ones_is_refused_in_a_sentence(open_page):
    at = open_page("runs")
    at.segmented_control[0].set_value("Folder").run()
    field = next(each for each in at.text_input if each.label == "Folder on the server")
    field.set_value("/etc").run()
    assert "outside the folders this server may use" in at.error[0].value


def test_a_failed_run_says_why_in_a_sentence(open_page, run_at, jobs):
    record = run_at(None)
    jobs.add(record.run_id, "failed", STEPS, error="The disk is full. Free some space.")
    at = open_page("runs", record)
    assert at.error[0].value == "The disk is full. Free some space."


def test_two_picked_runs_can_be_compared(open_page, run_at):
    first, second = run_at("search"), run_at("search", name="Other", seed=2)
    at = open_page("runs", first)
    assert button(at, "Compare").disabled
    at.multiselect[0].set_value([first.run_id, second.run_id]).run()
    button(at, "Compare").click().run()
    assert at.title[0].value == "Results"
    assert at.query_params["with"] == [second.run_id] or at.query_params["with"] == second.run_id


def test_a_running_line_shows_progress_and_can_be_stopped(open_page, run_at, jobs, said):
    record = run_at("prune")
    job = jobs.running(record.run_id, "search", 7, 24)
    at = open_page("runs", record)
    assert "7 of 24" in at.get("progress")[0].proto.text
    at.button(key=f"stop/{job.job_id}").click().run()
    assert ("cancel", job.job_id) in jobs.asked
