from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app import downloads, wording


def test_without_a_search_it_says_what_to_do(open_page, run_at):
    at = open_page("export", run_at("prune"))
    assert "Search first" in at.info[0].value


def test_exporting_asks_for_format_and_plan(open_page, run_at, jobs):
    record = run_at("search")
    at = open_page("export", record)
    next(box for box in at.selectbox if box.label == "Format").select("hf_16bit").run()
    at.button(key="start/export").click().run()
    (_, (_, steps, spec)) = jobs.asked[0]
    assert steps == ("export",)
    assert (spec.export.format, spec.export.trial) == ("hf_16bit", record.search.chosen)


def test_done_it_shows_bytes_proof_snippet_and_download(open_page, run_at, said):
    record = run_at("export")
    at = open_page("export", record)
    values = {metric.label: metric.value for metric in at.metric}
    assert values["On disk"] == wording.size(record.export.size_bytes)
    assert values["Planned"] == wording.size(record.export.planned_bytes)
    assert "bit for bit" in at.success[0].value
    assert "from_pretrained" in said(at)
    assert [each.label for each in at.get("download_button")] == ["Download as zip"]


def test_with_the_route_the_download_is_a_link_that_streams(open_page, run_at, monkeypatch):
    record = run_at("export")
    monkeypatch.setattr(downloads, "is_served", lambda: True)
    at = open_page("export", record)
    (link,) = at.get("link_button")
    assert link.proto.url == f"/download/{record.run_id}/{record.run_id}-hf_mixed.zip"


def test_a_reload_that_differs_is_an_error_not_a_success(open_page, run_at, store):
    record = run_at("export")
    wrong = replace(record.export, reload_logits_equal=False, max_logit_difference=0.25)
    store.write(replace(record, export=wrong))
    at = open_page("export", record)
    assert not at.success
    assert "0.25" in at.error[0].value


def test_an_export_whose_folder_is_gone_says_so(open_page, run_at, store, said):
    record = run_at("export")
    moved = replace(record.export, path=record.export.path + "-gone")
    store.write(replace(record, export=moved))
    at = open_page("export", record)
    assert "is gone" in said(at)


def test_both_models_answer_the_prompt(open_page, run_at, jobs, said):
    record = run_at("search")
    at = open_page("export", record)
    at.text_input(key="export/prompt").set_value("The lantern").run()
    next(each for each in at.button if each.label == "Ask").click().run()
    assert jobs.asked[0] == ("generate", (record.run_id, "The lantern", record.search.chosen))
    assert "one word" in said(at)
    assert "another word" in said(at)


def test_with_an_adapter_its_bytes_count_and_the_budget_is_minded(open_page, run_at, store, said):
    record = run_at("export")
    at = open_page("export", record)
    assert "With its adapter" not in said(at)
    folder = Path(record.export.path) / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(bytes(5000))
    search = replace(record.search, budget_bytes=record.export.size_bytes + 1000)
    store.write(replace(record, search=search))
    at = open_page("export", record)
    size = wording.size(record.export.size_bytes + 5000)
    assert f"With its adapter {size} on disk (measured)." in said(at)
    assert "more than the memory budget" in said(at)


@pytest.mark.parametrize("written", [False, True])
def test_the_snippet_speaks_of_an_adapter_only_if_the_folder_has_one(
    open_page, run_at, store, written
):
    """The run was recovered and asks for the adapter in both cases."""
    record = run_at("export")
    files = {**record.export.files}
    if written:
        files["adapter/adapter_model.safetensors"] = "0" * 64
    store.write(replace(record, export=replace(record.export, files=files)))
    at = open_page("export", record)
    assert ("PeftModel" in at.code[0].value) is written


@pytest.mark.parametrize("names", [(), ("modeling_pruned.py",)])
def test_the_snippet_asks_for_remote_code_only_if_the_folder_has_some(
    open_page, run_at, store, names
):
    record = run_at("export")
    outcome = replace(
        record.export,
        spec=replace(record.export.spec, format="hf_16bit"),
        files={**record.export.files, **dict.fromkeys(names, "0" * 64)},
    )
    store.write(replace(record, export=outcome))
    at = open_page("export", record)
    assert ("trust_remote_code" in at.code[0].value) is bool(names)


def with_adapter_of(record, number):
    recovery = replace(record.recover.spec, trial=number)
    return replace(record, recover=replace(record.recover, spec=recovery, adapter="adapter"))


def test_merging_is_offered_for_the_plan_that_has_an_adapter_alone(open_page, run_at, store):
    record = run_at("recover")
    number = record.search.chosen
    store.write(with_adapter_of(record, number))
    at = open_page("export", record)
    labels = [toggle.label for toggle in at.toggle]
    assert "Merge the adapter into the weights" in labels
    assert "Include the adapter" in labels
    other = next(t.number for t in record.search.trials if t.number != number)
    at.selectbox(key="export/trial").select(other).run()
    assert not [toggle for toggle in at.toggle if "adapter" in toggle.label]


def test_a_merge_is_asked_for_with_what_is_allowed(open_page, run_at, store, jobs):
    record = run_at("recover")
    store.write(with_adapter_of(record, record.search.chosen))
    at = open_page("export", record)
    at.toggle(key="export/merge").set_value(True).run()
    at.number_input(key="export/tolerance").set_value(5.0).run()
    at.button(key="start/export").click().run()
    (_, (_, _, spec)) = jobs.asked[0]
    assert spec.export.merge_adapter
    assert spec.export.merge_tolerance == 0.05


def test_a_merged_export_says_how_far_the_logits_moved(open_page, run_at, store, said):
    record = run_at("export")
    store.write(replace(record, export=replace(record.export, merge_error=0.0123)))
    words = said(open_page("export", record))
    assert "1.23 %" in words
    assert "at most 2 %" in words


def plan_field(at):
    return at.selectbox(key="export/trial")


def test_the_recovered_plan_comes_first_and_says_that_it_has_an_adapter(open_page, run_at, store):
    record = run_at("recover")
    number = next(t.number for t in record.search.baselines if t.number != record.search.chosen)
    store.write(with_adapter_of(record, number))
    at = open_page("export", record)
    assert plan_field(at).value == number
    marked = [name for name in plan_field(at).options if name.endswith(", with adapter")]
    assert len(marked) == 1
    assert "Merge the adapter into the weights" in [toggle.label for toggle in at.toggle]


def test_the_plan_of_the_address_is_the_one_to_write(open_page, run_at, store, jobs):
    record = run_at("recover")
    store.write(with_adapter_of(record, record.search.chosen))
    number = next(t.number for t in record.search.baselines if t.number != record.search.chosen)
    at = open_page("export", record, plan=str(number))
    at.button(key="start/export").click().run()
    (_, (_, _, spec)) = jobs.asked[0]
    assert spec.export.trial == number


def test_a_refused_merge_says_so_beside_the_export_that_stands(
    open_page, run_at, store, jobs, said
):
    record = run_at("export")
    asked = replace(record.spec.export, merge_adapter=True)
    store.write(replace(record, spec=replace(record.spec, export=asked)))
    sentence = "Merging the adapter changes the logits by 4.50 % of their norm."
    jobs.add(record.run_id, "failed", ("export",), error=sentence, is_refused=True)
    at = open_page("export", record)
    assert [each.value for each in at.error] == [sentence]
    assert "The export before it is untouched" in said(at)
    assert "bit for bit" in at.success[0].value
    assert not [button for button in at.button if button.label == "Resume"]


def test_a_refusal_is_not_resumed_as_it_would_be_met_again(open_page, run_at, jobs):
    record = run_at("search")
    jobs.add(record.run_id, "failed", ("export",), error="Refused.", is_refused=True)
    for page in ("export", "jobs"):
        at = open_page(page, record)
        assert "Refused." in [each.value for each in at.error]
        assert not [button for button in at.button if button.label.startswith("Resume")]
