from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qs

import pytest
import sample_home

from app import wording
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.recovery import PRESETS, RecoverySpec
from qpruner_core.store import uploads
from qpruner_core.store.workers import WorkerInfo

ONE = '{"instruction": "Name a colour.", "output": "Blue."}\n'


def value(at, label, place=0):
    return [metric.value for metric in at.metric if metric.label == label][place]


def change(at, label, place=0):
    return [metric.delta for metric in at.metric if metric.label == label][place]


def field(at, label):
    kinds = (at.number_input, at.selectbox, at.toggle, at.text_input)
    return next(each for kind in kinds for each in kind if each.label == label)


def choose(at, preset):
    field(at, "Preset").set_value(preset).run()


def start(at, jobs) -> RecoverySpec:
    at.button(key="start/recover").click().run()
    (_, (_, _, spec)) = jobs.asked[-1]
    return spec.recovery


def with_recovery(store, record, **changes):
    made = replace(record, recover=replace(record.recover, **changes))
    store.write(made)
    return made


def cut_short(store, record, n_steps):
    """The training of a run, stopped early."""
    return with_recovery(store, record, losses=record.recover.losses[:n_steps])


def tell(store, run_id, done, total=60, **values):
    told = Progress(step="recover", done=done, total=total, message="at work", values=values)
    store.append_event(run_id, told)


def worker(**facts):
    known = {"host": "here", "pid": 1, "device": "cpu", "since": "2026-01-01T00:00:00+00:00"}
    return WorkerInfo(**{"name": "worker-1", **known, **facts})


def test_without_a_search_it_says_what_to_do(open_page, run_at):
    at = open_page("recovery", run_at("prune"))
    assert "Search first" in at.info[0].value


# the form -------------------------------------------------------------------------------------


def test_starting_asks_for_the_settings(open_page, run_at, jobs):
    record = run_at("search")
    at = open_page("recovery", record)
    field(at, "Steps").set_value(12).run()
    at.button(key="start/recover").click().run()
    (_, (_, steps, spec)) = jobs.asked[0]
    assert steps == ("recover",)
    assert (spec.recovery.steps, spec.recovery.trial) == (12, record.search.chosen)


def test_a_form_that_nobody_touched_asks_for_what_the_run_has(open_page, run_at, jobs):
    record = run_at("search")
    asked = start(open_page("recovery", record), jobs)
    assert asked == replace(record.spec.recovery, trial=record.search.chosen)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_fills_the_whole_form(open_page, run_at, jobs, preset):
    record = run_at("search")
    at = open_page("recovery", record)
    choose(at, preset)
    assert field(at, "LoRA rank").value == PRESETS[preset].rank
    asked = start(at, jobs)
    assert asked == replace(PRESETS[preset], trial=record.search.chosen)


def test_a_field_can_still_be_changed_after_a_preset(open_page, run_at, jobs):
    at = open_page("recovery", run_at("search"))
    choose(at, "low memory")
    field(at, "LoRA rank").set_value(4).run()
    asked = start(at, jobs)
    assert (asked.rank, asked.gradient_checkpointing, asked.initialization) == (4, True, "loftq")


def test_every_setting_reaches_the_job(open_page, run_at, jobs):
    at = open_page("recovery", run_at("search"))
    for label, given in {
        "Learning rate": 2e-4,
        "Schedule": "cosine",
        "Warm-up, % of the steps": 3.0,
        "Weight decay": 0.01,
        "Checkpoint every, steps": 5,
        "LoRA alpha": 32.0,
        "LoRA dropout": 0.05,
        "Micro-batch, sequences (0 for the whole batch)": 2,
        "Gradient checkpointing": True,
        "Optimiser": "adamw_8bit",
        "Adapters start at": "loftq",
    }.items():
        field(at, label).set_value(given).run()
    field(at, "LoftQ: Iterations").set_value(3).run()
    asked = start(at, jobs)
    assert replace(asked, trial=None) == RecoverySpec(
        learning_rate=2e-4,
        schedule="cosine",
        warm_up=0.03,
        weight_decay=0.01,
        checkpoint_steps=5,
        alpha=32.0,
        dropout=0.05,
        micro_batch_size=2,
        gradient_checkpointing=True,
        optimizer="adamw_8bit",
        initialization="loftq",
        initialization_options={"iterations": 3},
    )


def test_a_micro_batch_that_does_not_divide_is_refused_in_a_sentence(open_page, run_at):
    at = open_page("recovery", run_at("search"))
    field(at, "Micro-batch, sequences (0 for the whole batch)").set_value(3).run()
    assert "leaves 2 over" in at.error[0].value
    assert at.button(key="start/recover").disabled


def test_adapters_may_go_to_some_linears_alone(open_page, run_at, jobs):
    at = open_page("recovery", run_at("search"))
    roles = at.get("button_group")[0]
    roles.set_value(["v_proj", "q_proj"]).run()
    assert start(at, jobs).targets == ("q_proj", "v_proj")


def test_without_any_linear_it_says_what_is_missing(open_page, run_at):
    at = open_page("recovery", run_at("search"))
    at.get("button_group")[0].set_value([]).run()
    assert "No kind of Linear is chosen" in at.error[0].value
    assert at.button(key="start/recover").disabled


def test_ranks_by_hand_of_the_run_are_kept(open_page, run_at, jobs, store):
    record = run_at("search")
    ranks = {"0": 0, "3": 16}
    spec = replace(record.spec, recovery=RecoverySpec(layer_ranks=ranks))
    store.write(replace(record, spec=spec))
    assert start(open_page("recovery", record), jobs).layer_ranks == ranks


def test_an_optimiser_that_the_device_cannot_run_is_said_so(open_page, run_at):
    at = open_page("recovery", run_at("search"))
    shown = field(at, "Optimiser").options
    assert "AdamW, paged, not on this run's device" in shown
    field(at, "Optimiser").set_value("paged_adamw").run()
    assert "needs a CUDA card" in at.warning[0].value


# the training text ----------------------------------------------------------------------------


@pytest.fixture
def own_file(store):
    """A folder that the server allows."""
    folder = store.home / "texts"
    folder.mkdir(parents=True)

    def written(name, content):
        (folder / name).write_text(content)
        return str(folder / name)

    return written


def name_file(at, path):
    field(at, "Train on").set_value("own").run()
    field(at, "Training file on the server").set_value(path).run()


def test_an_instruction_file_is_shown_with_its_first_instruction(
    open_page, run_at, jobs, said, own_file
):
    at = open_page("recovery", run_at("search"))
    path = own_file("mine.jsonl", ONE * 3)
    name_file(at, path)
    assert "3 examples" in said(at)
    assert "Name a colour." in [each.value for each in at.text]
    field(at, "Several examples in a sequence").set_value(False).run()
    field(at, "Learn the instructions too").set_value(True).run()
    asked = start(at, jobs)
    assert (asked.training, asked.packing, asked.train_on_prompt) == (path, False, True)


def test_the_first_bad_line_of_a_file_is_named_and_nothing_can_start(open_page, run_at, own_file):
    at = open_page("recovery", run_at("search"))
    name_file(at, own_file("bad.jsonl", ONE + '{"instruction": "Name a shape."}\n'))
    assert "bad.jsonl:2" in at.error[0].value
    assert "lacks 'output'" in at.error[0].value
    assert at.button(key="start/recover").disabled


def test_a_text_says_how_many_documents_it_has_and_asks_nothing_of_instructions(
    open_page, run_at, said, own_file
):
    at = open_page("recovery", run_at("search"))
    name_file(at, own_file("mine.txt", "one\n\ntwo\n"))
    assert "2 documents" in said(at)
    assert "Learn the instructions too" not in [toggle.label for toggle in at.toggle]


def test_a_path_that_is_none_of_the_servers_is_refused(open_page, run_at):
    at = open_page("recovery", run_at("search"))
    name_file(at, "/etc/passwd")
    assert "lies outside" in at.error[0].value
    assert at.button(key="start/recover").disabled


def test_until_a_file_is_named_it_says_what_is_missing_and_nothing_can_start(open_page, run_at):
    at = open_page("recovery", run_at("search"))
    name_file(at, "")
    assert any("No training file is named yet" in each.value for each in at.info)
    assert at.button(key="start/recover").disabled


def test_what_a_file_says_is_never_drawn_as_markup(open_page, run_at, said, own_file):
    at = open_page("recovery", run_at("search"))
    name_file(at, own_file("mine.txt", "![picture](http://127.0.0.1/x.png)\n"))
    drawn = [*at.markdown, *at.caption]
    assert "x.png" in at.text[0].value
    assert not any("x.png" in each.value for each in drawn)


def test_a_good_upload_is_kept_in_the_run_and_chosen(open_page, run_at, jobs, store):
    record = run_at("search")
    at = open_page("recovery", record)
    field(at, "Train on").set_value("upload").run()
    assert at.button(key="start/recover").disabled
    sent = ("../my colours.jsonl", ONE.encode(), "application/json")
    at.get("file_uploader")[0].set_value(sent).run()
    (kept,) = uploads.listed(store.folder(record.run_id))
    assert kept.name == "my-colours.jsonl"
    assert start(at, jobs).training == str(kept)


def test_a_bad_upload_names_its_first_bad_line_and_leaves_nothing(open_page, run_at, store):
    record = run_at("search")
    at = open_page("recovery", record)
    field(at, "Train on").set_value("upload").run()
    sent = ("bad.jsonl", b'{"instruction": 1, "output": "x"}\n', "application/json")
    at.get("file_uploader")[0].set_value(sent).run()
    assert at.error[0].value.startswith("bad.jsonl:1 (entry 1) states 'instruction' as 1")
    assert uploads.listed(store.folder(record.run_id)) == ()


def test_the_file_of_a_copy_is_its_own(open_page, run_at, jobs, store):
    record = run_at("recover")
    path = uploads.keep(store.folder(record.run_id), "one.jsonl", ONE.encode(), lambda path: None)
    at = open_page("recovery", record)
    field(at, "Train on").set_value(str(path)).run()
    at.button(key="start/recover").click().run()
    (_, (run_id, _, spec)) = jobs.asked[-1]
    assert run_id != record.run_id
    assert spec.recovery.training == str(uploads.listed(store.folder(run_id))[0])


# the estimate ---------------------------------------------------------------------------------


def test_the_estimated_memory_grows_with_the_batch(open_page, run_at):
    at = open_page("recovery", run_at("search"))
    small = value(at, "Training memory")
    field(at, "Batch, sequences").set_value(64).run()
    assert value(at, "Training memory") != small


def test_the_estimate_says_whether_it_fits_the_worker(open_page, run_at, jobs, said):
    jobs.crew = [worker(device="card", memory_bytes=8 << 30)]
    at = open_page("recovery", run_at("search"))
    assert "Fits the 8.00 GiB of the worker on card" in said(at)
    field(at, "Batch, sequences").set_value(4096).run()
    assert any("more than the 8.00 GiB" in each.value for each in at.warning)


# faces ----------------------------------------------------------------------------------------


def test_while_training_the_loss_is_drawn_live(open_page, run_at, jobs, store, said):
    record = run_at("search")
    jobs.running(record.run_id, "recover", 9, 60)
    tell(store, record.run_id, 0)
    for done in range(1, 10):
        told = {"tokens_per_second": 1234.0, "learning_rate": 5e-4}
        tell(store, record.run_id, done, loss=1.9 - 0.02 * done, **told)
    at = open_page("recovery", record)
    assert "Step 9 of 60" in said(at)
    assert at.get("plotly_chart")
    assert value(at, "Loss, nats") == "1.720"
    # The means of the last and the first four steps.
    assert change(at, "Loss, nats") == "-0.100"
    assert value(at, "Tokens/s") == "1,234"
    assert value(at, "Learning rate") == "5.00e-04"
    assert at.button(key="start/recover").disabled


def test_before_the_first_loss_it_says_what_is_done(open_page, run_at, jobs, store):
    record = run_at("search")
    jobs.running(record.run_id, "recover", 0, 60)
    tell(store, record.run_id, 0)
    at = open_page("recovery", record)
    assert any("not reported a loss yet" in each.value for each in at.info)


def test_stopped_it_says_after_which_step_and_resumes(open_page, run_at, jobs, store, said):
    record = cut_short(store, run_at("recover"), 12)
    job = jobs.add(record.run_id, "cancelled", ("recover",))
    at = open_page("recovery", record)
    assert "Stopped after 12 of 60 steps; the adapter as it is was kept." in said(at)
    assert value(at, "Loss per token") == wording.nats(record.recover.after.loss)
    at.button(key=f"resume/{job.job_id}").click().run()
    assert jobs.asked[-1] == ("resume", job.job_id)


@pytest.mark.parametrize("trained_before", [0, 4])
def test_a_stopped_training_that_is_still_measured_is_said_so(
    open_page, run_at, jobs, store, trained_before
):
    record = run_at("recover")
    partial = replace(record.recover, losses=record.recover.losses[:trained_before])
    store.write(replace(record, recover=partial if trained_before else None))
    for done in range(6):
        tell(store, record.run_id, done, **({"loss": 1.9} if done else {}))
    jobs.add(record.run_id, "cancelled", ("recover",), worker="worker-1")
    jobs.crew = [worker()]
    at = open_page("recovery", record)
    assert any("measures the adapter as it is" in each.value for each in at.info)
    assert not at.warning
    assert not at.button
    assert len(at.get("plotly_chart")) == 1


@pytest.mark.parametrize(
    "crew", [[], [worker(name="worker-2")], [worker(since="2026-01-01T00:02:00+00:00")]]
)
def test_a_worker_that_has_ended_since_measures_nothing(open_page, run_at, jobs, store, crew):
    record = run_at("search")
    tell(store, record.run_id, 1, loss=1.9)
    jobs.add(record.run_id, "cancelled", ("recover",), worker="worker-1")
    jobs.crew = crew
    at = open_page("recovery", record)
    assert any("Nothing is trained yet" in each.value for each in at.info)
    assert any("was stopped before it finished" in each.value for each in at.warning)


def test_stopped_by_a_command_it_says_how_to_go_on(open_page, run_at, store, said):
    record = cut_short(store, run_at("recover"), 12)
    assert "Train with the same settings, not in a copy" in said(open_page("recovery", record))


def test_a_training_that_failed_names_the_step(open_page, run_at, jobs):
    record = run_at("search")
    sentence = "The loss of recovery step 7 of 60 is nan; a finite number is needed."
    jobs.add(record.run_id, "failed", ("recover",), error=sentence)
    at = open_page("recovery", record)
    assert sentence in [each.value for each in at.error]
    assert [button.label for button in at.button if button.label == "Resume"]


def test_one_that_failed_after_it_was_stopped_says_both(open_page, run_at, jobs, store, said):
    record = cut_short(store, run_at("recover"), 12)
    jobs.add(record.run_id, "failed", ("recover",), error="The loss of step 13 is nan.")
    at = open_page("recovery", record)
    assert "The loss of step 13 is nan." in [each.value for each in at.error]
    assert "Stopped after 12 of 60 steps" in said(at)


def test_done_it_shows_before_and_after_and_the_measured_memory(open_page, run_at):
    record = run_at("recover")
    at = open_page("recovery", record)
    assert value(at, "Loss per token") == wording.nats(record.recover.after.loss)
    assert value(at, "Training memory", 1) == wording.size(record.recover.peak_memory_bytes)
    assert change(at, "Training memory", 1) == "-10.5 % against the estimate"
    assert value(at, "Estimated before") == wording.size(record.recover.estimated_memory_bytes)


def test_done_it_says_how_much_of_the_loss_came_back(open_page, run_at):
    record = run_at("recover")
    dense, before, after = record.prune.before, record.recover.before, record.recover.after
    share = (before.loss - after.loss) / (before.loss - dense.loss)
    assert value(open_page("recovery", record), "Recovered") == wording.percent(share, 0)


def test_done_the_paired_test_says_whether_the_answers_differ(open_page, run_at, said):
    record = run_at("recover")
    at = open_page("recovery", record)
    assert "p = " in said(at)
    assert "called different." in said(at)
    tables = [table.value for table in at.dataframe]
    (table,) = [table for table in tables if "Before" in table.columns]
    assert list(table.columns) == ["Dense", "Before", "After", "Change"]
    assert all("±" in shown for shown in table.loc["Accuracy, mean"][:3])


def test_done_it_links_to_the_export_and_says_its_remarks(open_page, run_at, store):
    record = with_recovery(store, run_at("recover"), remarks=("3 examples were cut.",))
    at = open_page("recovery", record)
    assert "3 examples were cut." in [each.value for each in at.info]
    (link,) = [each for each in at.get("page_link") if "with its adapter" in each.proto.label]
    asked = parse_qs(link.proto.query_string)
    assert asked == {"run": [record.run_id], "plan": [str(record.recover.spec.trial)]}


def test_with_nothing_trained_it_says_so(open_page, run_at, store):
    whole = run_at("recover")
    record = with_recovery(
        store,
        whole,
        spec=replace(whole.recover.spec, steps=0),
        losses=(),
        adapter="",
        after=whole.recover.before,
        peak_memory_bytes=None,
    )
    at = open_page("recovery", record)
    assert any("was skipped" in each.value for each in at.info)
    assert "Estimated before" not in [metric.label for metric in at.metric]


def test_reports_of_the_sample_home_are_drawn_too(open_page, run_at, jobs, store):
    record = run_at("search")
    jobs.running(record.run_id, "recover", 3, 60)
    sample_home.report(store, record.run_id, "recover", 3, 60)
    at = open_page("recovery", record)
    assert "Learning rate" not in [metric.label for metric in at.metric]


def test_while_it_trains_on_the_block_of_what_was_stopped_is_not_there(
    open_page, run_at, jobs, store, said
):
    record = with_recovery(
        store,
        cut_short(store, run_at("recover"), 12),
        remarks=("Training was stopped after 12 of 60 steps; train on.",),
    )
    jobs.running(record.run_id, "recover", 13, 60)
    assert "Training was stopped" not in said(open_page("recovery", record))


def test_few_steps_show_no_change_of_the_noisy_loss(open_page, run_at, jobs, store):
    record = run_at("search")
    jobs.running(record.run_id, "recover", 3, 60)
    for done in range(4):
        tell(store, record.run_id, done, **({"loss": 1.9 - 0.1 * done} if done else {}))
    assert not change(open_page("recovery", record), "Loss, nats")


@pytest.mark.parametrize("shift", [-9.0, 9.0])
def test_beyond_the_dense_model_or_worse_than_before_is_said_so(
    open_page, run_at, store, said, shift
):
    whole = run_at("recover")
    loss = whole.recover.before.loss + shift
    record = with_recovery(store, whole, after=replace(whole.recover.after, loss=loss))
    at = open_page("recovery", record)
    worse = shift > 0
    assert any("made the held-out loss worse" in each.value for each in at.warning) is worse
    assert any(each.value.startswith("Recovered") for each in at.subheader) is not worse
    assert ("Recovered beyond 100 %" in said(at)) is not worse
    assert ("Recovered" in [metric.label for metric in at.metric]) is not worse


def test_the_estimate_says_what_its_peak_is_made_of(open_page, run_at, said):
    words = said(open_page("recovery", run_at("search")))
    assert "one layer computed again or that of the logits, whichever is larger" in words
    assert "tensors of 4,096 entries or more" in words
    assert "embeddings and norms are held in float32" in words
