from __future__ import annotations

import pytest
import sample_home

from app import services, wording
from qpruner_core.domain.record import STEPS
from qpruner_core.domain.spec import DataSpec


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


def test_a_missing_folder_is_answered_for_folders(open_page):
    at = open_page("runs")
    at.segmented_control[0].set_value("Folder").run()
    field = next(each for each in at.text_input if each.label == "Folder on the server")
    field.set_value("/models/nowhere").run()
    assert len(at.error) == 1
    assert at.error[0].value.startswith("There is no folder '/models/nowhere' on the server.")


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


def select(at, label):
    return next(each for each in at.selectbox if each.label == label)


def text_field(at, label):
    return next(each for each in at.text_input if each.label == label)


def start_hub_model(open_page):
    at = open_page("runs")
    at.segmented_control[0].set_value("Hub").run()
    text_field(at, "Hub id").set_value("some/model").run()
    return at


def test_the_demo_starts_on_its_own_text(open_page, jobs):
    at = open_page("runs")
    button(at, "Run the whole line").click().run()
    assert jobs.asked[0][1][2].data == DataSpec()


def test_a_real_model_starts_on_english_without_the_demos_tasks(open_page, jobs, said):
    at = start_hub_model(open_page)
    assert wording.DEMO_TEXT not in said(at)
    button(at, "Run the whole line").click().run()
    data = jobs.asked[0][1][2].data
    assert (data.calibration, data.training, data.heldout) == ("wikitext2",) * 3
    assert data.tasks == "none"


@pytest.mark.parametrize(("label", "choice"), [("Text", "demo"), ("Tasks", "demo")])
def test_a_real_model_on_the_demos_data_is_warned_about(open_page, said, label, choice):
    at = start_hub_model(open_page)
    select(at, label).select(choice).run()
    assert wording.DEMO_TEXT in said(at)


def test_own_files_and_counts_go_into_the_run(open_page, jobs, store):
    store.home.mkdir(exist_ok=True)
    at = start_hub_model(open_page)
    select(at, "Text").select("own").run()
    assert "Run the whole line" not in [each.label for each in at.button]
    for label in ("Calibration text", "Training text", "Held-out text"):
        text_field(at, label).set_value(str(store.home / "text.txt"))
    select(at, "Tasks").select("own").run()
    text_field(at, "Folder of tasks").set_value(str(store.home / "tasks")).run()
    next(n for n in at.number_input if n.label == "Held-out, tokens").set_value(4096).run()
    button(at, "Run the whole line").click().run()
    data = jobs.asked[0][1][2].data
    assert data.heldout == str((store.home / "text.txt").resolve())
    assert data.tasks == str((store.home / "tasks").resolve())
    assert data.heldout_tokens == 4096


def test_data_outside_the_allowed_folders_is_refused_in_a_sentence(open_page):
    at = open_page("runs")
    select(at, "Tasks").select("own").run()
    text_field(at, "Folder of tasks").set_value("/etc").run()
    assert "outside the folders this server may use" in at.error[0].value


def test_less_text_than_one_sequence_is_refused_in_a_sentence(open_page):
    at = open_page("runs")
    next(n for n in at.number_input if n.label == "Calibration, tokens").set_value(16).run()
    assert "less than one sequence of 128" in at.error[0].value


def test_the_card_says_what_can_leave(open_page, jobs, said, store):
    assert "Pruning can remove KV heads, MLP channels and whole layers." in said(open_page("runs"))


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        ("mixtral", "Pruning can remove KV heads, expert channels, experts and whole layers."),
        ("mixtral", "Mixture of 6 experts per sparse layer."),
        ("mixtral", "Mixtral: 4 layers"),
        ("olmo2", "Pruning can remove MLP channels and whole layers."),
        ("olmo2", "8 heads of 8"),
    ],
)
def test_the_card_speaks_of_other_families(open_page, said, monkeypatch, family, sentence):
    monkeypatch.setattr(services, "_card", lambda spec: sample_home.card_of(family))
    assert sentence in said(open_page("runs"))
