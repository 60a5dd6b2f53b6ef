"""``qpruner reproduce`` from its words to the files in its folder."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from qpruner_core.cli import main
from qpruner_core.cli.parser import build_parser
from qpruner_core.cli.reproduce import DOCUMENT, WRITERS, time_left
from qpruner_core.cli.reproduce_options import data_spec, reproduction_spec
from qpruner_core.domain.recovery import PRESETS
from qpruner_core.domain.reproduction import (
    SMALL_MODEL_BYTES,
    SMALL_RECOVERY,
    VARIANTS,
    ReproductionSpec,
    usual_recover_steps,
    usual_recovery,
)
from qpruner_core.domain.spec import DataSpec
from qpruner_core.errors import BadInputError
from qpruner_core.pipeline import Line
from qpruner_core.store.records import RunStore

FEW = (
    "--ratios=0.2",
    "--trials=1",
    "--recovery-steps=1",
    "--recover-steps=0",
    "--lora-rank=2",
    "--batch-size=1",
    "--micro-batch-size=0",
    "--recovery-length=16",
    "--sequence-length=16",
    "--calibration-tokens=256",
    "--heldout-tokens=64",
    "--trial-items=2",
    "--items-per-task=4",
    "--initialization=default",
    "--device=cpu",
)


@pytest.fixture
def command(tiny_config, tmp_path, request):
    """A command that makes a table of one ratio, all but its folder."""
    tiny_config.num_hidden_layers = 3
    tiny_config.intermediate_size = 256
    folder, data = request.getfixturevalue("tiny_folder"), request.getfixturevalue("tiny_data")
    texts = [f"--{name}={getattr(data, name)}" for name in ("calibration", "training", "heldout")]
    home = f"--home={tmp_path / 'home'}"
    return ["reproduce", str(folder), *FEW, *texts, f"--items={data.tasks}", home]


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "home")


def parsed(*words: str) -> Namespace:
    return build_parser().parse_args(["reproduce", "demo", "--out=x", *words])


def parents(store):
    return [record for record in store.list() if record.reproduction is not None]


def test_without_options_the_papers_table_is_asked_for_with_what_suits_the_model():
    small = reproduction_spec(parsed(), 1)
    assert small.recovery == SMALL_RECOVERY
    assert (small.setting, small.ratios) == ("paper", ReproductionSpec().ratios)
    assert small.recover_steps == usual_recover_steps("paper", SMALL_RECOVERY)
    large = reproduction_spec(parsed("--setting=script"), SMALL_MODEL_BYTES)
    assert large.recovery == usual_recovery(SMALL_MODEL_BYTES)
    assert large.recover_steps == 0
    assert data_spec(parsed()) == DataSpec()


def test_every_option_has_its_place_in_what_is_asked_for():
    asked = parsed(
        "--setting=script",
        "--ratios=0.1,0.6",
        "--trials=7",
        "--startup=3",
        "--int8-share=0.5",
        "--items-per-task=9",
        "--seed=4",
        "--recover-steps=2",
        "--preset=low-memory",
        "--lora-rank=3",
        "--learning-rate=0.01",
    )
    spec = reproduction_spec(asked, 1)
    assert (spec.setting, spec.ratios, spec.n_trials, spec.n_startup) == (
        "script",
        (0.1, 0.6),
        7,
        3,
    )
    assert (spec.int8_share, spec.items_per_task, spec.seed) == (0.5, 9, 4)
    assert spec.recover_steps == 2
    low = PRESETS["low memory"]
    assert (spec.recovery.rank, spec.recovery.learning_rate) == (3, 0.01)
    assert (spec.recovery.optimizer, spec.recovery.seed) == (low.optimizer, 4)


def test_of_few_trials_few_are_first_ones_unless_a_number_is_given():
    assert reproduction_spec(parsed("--trials=10"), 1).n_startup == 2
    assert reproduction_spec(parsed("--trials=10", "--startup=7"), 1).n_startup == 7
    assert reproduction_spec(parsed(), 1) == replace(
        ReproductionSpec(), recovery=SMALL_RECOVERY, recover_steps=6
    )
    ours = ReproductionSpec(setting="ours", recovery=SMALL_RECOVERY)
    assert reproduction_spec(parsed("--setting=ours"), 1) == ours


def test_first_plans_are_refused_where_there_is_no_gaussian_process():
    with pytest.raises(BadInputError, match=r"--startup.*ours"):
        reproduction_spec(parsed("--setting=ours", "--startup=3"), 1)


def test_tasks_are_named_within_their_source_and_a_folder_is_found_from_anywhere():
    data = data_spec(parsed("--items=some/where", "--tasks=piqa, boolq", "--trial-items=5"))
    assert data.tasks == str(Path("some/where").absolute())
    assert data.task_names == ("piqa", "boolq")
    assert data.items_per_task == 5
    assert data_spec(parsed("--tasks=all")).task_names == ()


def test_the_folder_holds_the_table_in_every_form_and_the_same_command_has_nothing_to_do(
    command, store, tmp_path, capsys
):
    out = tmp_path / "made" / "out"
    assert main([*command, f"--out={out}", "--json", "--quiet"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert {path.name for path in out.iterdir()} == {*WRITERS, DOCUMENT}
    assert json.loads((out / DOCUMENT).read_text()) == made
    assert made["complete"]
    assert [row["row"] for row in made["rows"][1:]] == list(VARIANTS)
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert len(rows) == 1 + len(VARIANTS)
    assert [record.run_id for record in parents(store)] == [made["run_id"]]
    n_runs = len(store.list())
    assert main([*command, f"--out={out}", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == made
    assert len(store.list()) == n_runs
    assert main(["runs", made["run_id"], command[-1], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["reproduction"]
    assert told["rows"] == made["rows"]
    assert main(["runs", made["run_id"], command[-1]]) == 0
    assert "setting paper: 4 of 4 rows" in capsys.readouterr().out


def test_an_interrupted_command_says_so_and_goes_on_where_it_was(
    command, store, tmp_path, capsys, monkeypatch
):
    out, do = tmp_path / "out", Line.reproduce_next

    def until_the_search(line, owner):
        done = do(line, owner)
        if "search" in done:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Line, "reproduce_next", until_the_search)
        assert main([*command, f"--out={out}"]) == 130
    told = capsys.readouterr().err
    assert "goes on with the table" in told
    assert "quantise" in told
    (parent,) = parents(store)
    child = parent.reproduction.runs["0.2"]
    assert main([*command, f"--out={out}"]) == 0
    shown = capsys.readouterr()
    assert "score" not in shown.err
    assert "left" in shown.err
    assert shown.out.startswith("| Ratio |")
    assert {row.run_id for row in store.read(parent.run_id).reproduction.rows} == {child}


def test_other_arguments_than_before_are_refused_in_one_sentence(
    command, store, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setattr(Line, "reproduce_next", lambda line, owner: "")
    assert main([*command, f"--out={out}", "--quiet"]) == 0
    changed = ["--seed=1", "--lora-rank=1", "--trial-items=3"]
    assert main([*command, f"--out={out}", "--quiet", *changed]) == 2
    told = capsys.readouterr().err
    for words in ("seed", "recovery rank", "data items per task"):
        assert words in told
    assert len(parents(store)) == 1


def test_a_folder_with_something_else_is_left_alone(command, store, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    assert main([*command, f"--out={out}"]) == 2
    assert "Nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    assert store.list() == []


def test_a_folder_of_another_home_says_where_its_run_is_not(command, store, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / DOCUMENT).write_text(json.dumps({"run_id": "20250101-000000-table-0000"}))
    assert main([*command, f"--out={out}"]) == 2
    assert "--home" in capsys.readouterr().err
    (out / DOCUMENT).write_text("[]")
    assert main([*command, f"--out={out}"]) == 2
    assert "names no run" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["--quiet", "--queue"])
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("--ratios=0.99", "ratio"),
        ("--tasks=riddles", "riddles"),
        ("--recovery-length=4096", "4096"),
        ("--startup=9", "startup"),
    ],
)
def test_what_is_refused_at_once_leaves_neither_run_nor_folder(
    command, store, tmp_path, capsys, where, asked, words
):
    out = tmp_path / "out"
    assert main([*command, f"--out={out}", where, asked]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()
    assert store.list() == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (0.2, "about 1 s left"),
        (80.0, "about 80 s left"),
        (600.0, "about 10 min left"),
        (3 * 3600.0 + 120.0, "about 3 h 2 min left"),
    ],
)
def test_the_time_left_is_said_in_the_unit_that_fits(seconds, words):
    assert time_left(seconds) == words
