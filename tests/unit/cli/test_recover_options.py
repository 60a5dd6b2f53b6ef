"""Every choice of a recovery can be made on the command line, comes back in the spec and is told;
Ctrl-C keeps what was learned.
"""

from __future__ import annotations

import json
import shlex
import signal
from dataclasses import asdict, fields, replace

import pytest

from qpruner_core.catalog import check_spec
from qpruner_core.cli import commands, main
from qpruner_core.cli.parser import build_parser
from qpruner_core.cli.recovering import Interruption, estimate_document, estimate_lines
from qpruner_core.cli.report_recovery import recovery_document, recovery_lines
from qpruner_core.cli.specs import overlay, run_spec
from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.recovery import PRESETS, RecoverySpec
from qpruner_core.domain.spec import DataSpec, ModelSpec, RunSpec
from qpruner_core.errors import BadInputError
from qpruner_core.pipeline.asked import compress_command, options_of
from qpruner_core.store.records import RunStore

EVERYTHING = (
    "--recovery-training /text/mine.jsonl --recovery-steps 7 --lora-rank 4 --lora-alpha 8 "
    "--lora-dropout 0.1 --learning-rate 0.01 --batch-size 6 --micro-batch-size 2 "
    "--recovery-length 64 --targets q_proj,v_proj --layer-rank 3=16 --layer-rank 4=0 "
    "--initialization loftq --initialization-option iterations=5 --optimizer adamw_8bit "
    "--schedule cosine --warm-up 0.03 --weight-decay 0.2 --gradient-checkpointing --no-packing "
    "--train-on-prompt --checkpoint-steps 3"
)
ASKED = RecoverySpec(
    training="/text/mine.jsonl",
    steps=7,
    rank=4,
    alpha=8.0,
    dropout=0.1,
    learning_rate=0.01,
    batch_size=6,
    micro_batch_size=2,
    sequence_length=64,
    targets=("q_proj", "v_proj"),
    layer_ranks={"3": 16, "4": 0},
    initialization="loftq",
    initialization_options={"iterations": 5},
    optimizer="adamw_8bit",
    schedule="cosine",
    warm_up=0.03,
    weight_decay=0.2,
    gradient_checkpointing=True,
    packing=False,
    train_on_prompt=True,
    checkpoint_steps=3,
)
DEMO = RunSpec(model=ModelSpec(source="demo"))


def parsed(words: str):
    return build_parser().parse_args(shlex.split(words))


def recovered_as(words: str, known: RecoverySpec | None = None) -> RecoverySpec:
    """Return what ``recover`` asks for on a run."""
    spec = replace(DEMO, recovery=known or RecoverySpec())
    return overlay(spec, parsed(f"recover some-run {words}")).recovery


def test_run_and_recover_take_every_option():
    assert run_spec(parsed(f"run {EVERYTHING}")).recovery == ASKED
    assert recovered_as(EVERYTHING) == ASKED
    assert recovered_as("") == RecoverySpec()
    check_spec(replace(DEMO, recovery=ASKED))


def test_every_field_of_the_spec_was_asked_for():
    usual = RecoverySpec()
    same = {
        f.name for f in fields(RecoverySpec) if getattr(ASKED, f.name) == getattr(usual, f.name)
    }
    assert same == {"seed", "trial"}
    assert recovered_as("--seed 3 --trial 2").seed == 3
    assert recovered_as("--seed 3 --trial 2").trial == 2


def test_a_recovery_comes_back_from_the_options_that_ask_for_it():
    data = DataSpec(task_names=("one", "two"))
    for recovery in (ASKED, RecoverySpec(), *PRESETS.values()):
        spec = replace(DEMO, recovery=recovery, data=data)
        assert run_spec(parsed(shlex.join(["run", *options_of(spec)]))) == spec
    assert "--no-packing" not in options_of(DEMO)
    words = shlex.split(compress_command(replace(DEMO, recovery=ASKED, data=data)))
    assert build_parser().parse_args(words[1:]).command == "compress"


@pytest.mark.parametrize("name", ["usual", "paper", "low-memory", "low memory"])
def test_a_preset_replaces_what_the_run_has_and_single_options_go_on_top(name):
    known = replace(ASKED, seed=5)
    preset = PRESETS[name.replace("-", " ")]
    found = recovered_as(f"--preset {shlex.quote(name)} --lora-rank 3", known)
    assert found == replace(preset, rank=3, seed=5, training=ASKED.training)
    assert run_spec(parsed(f"run --preset {shlex.quote(name)}")).recovery == preset


def test_what_the_run_has_can_be_taken_back():
    found = recovered_as(
        "--targets all --layer-rank none --training run --packing --no-train-on-prompt "
        "--no-gradient-checkpointing",
        ASKED,
    )
    usual = RecoverySpec()
    for name in ("targets", "layer_ranks", "training", "packing", "train_on_prompt",
                 "gradient_checkpointing"):  # fmt: skip
        assert getattr(found, name) == getattr(usual, name)
    assert found.rank == ASKED.rank


def test_options_of_an_initialisation_leave_with_it():
    assert recovered_as("--initialization pissa", ASKED).initialization_options == {}
    more = recovered_as("--initialization-option iterations=2", ASKED)
    assert more.initialization_options == {"iterations": 2}
    unknown = recovered_as("--initialization-option rounds=2", ASKED)
    with pytest.raises(BadInputError, match="no option 'rounds'"):
        check_spec(replace(DEMO, recovery=unknown))


def test_the_text_of_a_recovery_is_not_that_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = overlay(DEMO, parsed("recover some-run --training mine.txt"))
    assert spec.recovery.training == str(tmp_path / "mine.txt")
    assert spec.data.training == "demo"
    spec = run_spec(parsed("run --training mine.txt"))
    assert (spec.data.training, spec.recovery.training) == ("mine.txt", "")
    assert recovered_as("--training demo").training == "demo"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--preset papers", "no preset 'papers'; choose one of usual, paper, low-memory"),
        ("--layer-rank 3", "no rank of a layer"),
        ("--layer-rank 3=-1", "no rank of a layer"),
        ("--initialization-option five", "no option of an initialisation"),
        ("--targets ,", "no role is named"),
        ("--optimizer sgd", "invalid choice"),
        ("--schedule step", "invalid choice"),
    ],
)
def test_what_cannot_be_read_gets_one_sentence(words, found, capsys):
    with pytest.raises(SystemExit) as refused:
        parsed(f"recover some-run {words}")
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert found in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--micro-batch-size 3", "leaves 2 over"),
        ("--warm-up 1", "share in [0, 1)"),
        ("--initialization-option rounds=2", "no option 'rounds'"),
        ("--training gone.json", "is not a file that exists"),
        ("--training bad.json", "bad.json:1 (entry 1) lacks 'output'"),
    ],
)
def test_wrong_values_end_before_torch_is_loaded(tmp_path, monkeypatch, capsys, words, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('[{"instruction": "a"}]')
    monkeypatch.setattr(commands, "_line", lambda *given: pytest.fail("a line was built"))
    store = RunStore(tmp_path / "home")
    run_id = store.create(DEMO).run_id
    assert main(["recover", run_id, f"--home={tmp_path / 'home'}", *shlex.split(words)]) == 2
    said = capsys.readouterr().err
    assert found in said
    assert said.count("\n") == 1


# What is told


def metrics(loss, answers, size=1000):
    rate = sum(answers) / len(answers)
    task = TaskResult(
        n_items=len(answers), accuracy=rate, accuracy_normalized=rate, correct=tuple(answers)
    )
    return Metrics(loss=loss, accuracy=rate, weight_bytes=size, device="cpu", tasks={"one": task})


def outcome(**changes) -> RecoveryOutcome:
    stated = {
        "spec": RecoverySpec(steps=3, trial=4),
        "before": metrics(2.0, [False] * 20 + [True] * 20),
        "after": metrics(1.5, [True] * 30 + [False] * 10, 1200),
        "losses": (3.0, 2.0),
        "adapter": "adapter",
        "trainable_parameters": 10,
        "estimated_memory_bytes": 5 * 2**20,
        "peak_memory_bytes": 4 * 2**20,
        "tokens_per_second": 123.0,
        "remarks": ("Training was stopped.",),
    }
    return RecoveryOutcome(**{**stated, **changes})


def test_a_document_holds_memory_test_and_remarks():
    found = recovery_document(outcome())
    assert json.loads(json.dumps(found)) == found
    assert (found["steps"], found["is_complete"], found["trial"]) == (2, False, 4)
    assert found["settings"]["optimizer"] == "adamw"
    assert found["adapter_bytes"] == 200
    assert found["tokens_per_second"] == 123.0
    assert found["remarks"] == ["Training was stopped."]
    test = found["paired_test"]
    assert (test["items"], test["right_after_only"], test["right_before_only"]) == (40, 20, 10)
    assert test["differs"] is (test["p_value"] < 0.05)


def test_lines_say_the_same_to_a_person():
    first, memory, test, remark = recovery_lines(outcome())
    assert "loss 2.000 -> 1.500, accuracy 50.0% ± 8.0 -> 75.0% ± 6.9" in first
    assert memory == "  2 of 3 steps; training memory 5.00 MiB estimated, 4.00 MiB measured"
    assert "of 40 items 20 are right only after, 10 only before: p = 0.099, not called" in test
    assert remark == "  Training was stopped."
    bare = Metrics(loss=1.0, accuracy=0.0, weight_bytes=1, device="cpu")
    alone = recovery_lines(outcome(before=bare, after=bare, peak_memory_bytes=None, remarks=()))
    assert len(alone) == 2
    assert "accuracy" not in alone[0]
    assert recovery_document(outcome(before=bare, after=bare))["paired_test"] is None
    assert recovery_lines(outcome(adapter="")) == ["recovery was skipped: no step was asked for"]


def test_an_estimate_stands_with_and_without_checkpointing(tiny_layout):
    plan = PrecisionPlan.uniform(tiny_layout, "nf4")
    spec = RecoverySpec(gradient_checkpointing=True)
    found = estimate_document(tiny_layout, plan, spec, 4)
    plain, kept = (found[f"estimated_bytes_{word}_checkpointing"] for word in ("without", "with"))
    assert found["estimated_bytes"] == kept
    assert kept["total"] < plain["total"]
    assert kept["weights"] == plain["weights"]
    for parts in (plain, kept):
        assert sum(size for name, size in parts.items() if name != "total") == parts["total"]
    lines = estimate_lines(found)
    assert "checkpointing (asked for)" in lines[2]
    assert len(lines) == 3 + len(plain)


def test_an_estimate_names_its_plan_and_its_settings(tiny_layout):
    plan = PrecisionPlan.uniform(tiny_layout, "nf4")
    spec = replace(ASKED, gradient_checkpointing=False)
    lines = estimate_lines({"trial": 7, **estimate_document(tiny_layout, plan, spec, 4)})
    assert lines[0] == f"Estimated memory of training plan 7 (nf4 {len(plan.precisions)}):"
    assert lines[1] == (
        "  rank 4, layer 3: 16, layer 4: 0, on q_proj, v_proj; 2 of 6 sequences of 64 tokens at a "
        "time; adamw_8bit, start loftq"
    )


# Ctrl-C


def test_the_first_interrupt_is_a_wish_and_the_second_ends(capsys):
    interruption, usual = Interruption(), signal.getsignal(signal.SIGINT)
    with interruption.listening():
        assert not interruption.asked()
        signal.raise_signal(signal.SIGINT)
        assert interruption.asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is usual
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def searched(tiny_folder, tiny_data, tmp_path, capsys) -> RunRecord:
    """A short run on a random model, searched."""
    store = RunStore(tmp_path / "home")
    words = (
        f"run --model {tiny_folder} --criteria magnitude --criterion magnitude --pruning-ratio 0 "
        "--memory-budget 1.0 --precisions int8 --trials 1 --strategy random --recovery-steps 6 "
        "--recovery-length 16 --batch-size 4 --lora-rank 2 --seed 0"
    )
    spec = replace(run_spec(parsed(words)), data=tiny_data)
    run_id = store.create(spec).run_id
    assert main(["search", run_id, f"--home={store.home}", "--quiet", "--json"]) == 0
    capsys.readouterr()
    return store.read(run_id)


def test_a_stopped_training_is_kept_and_the_same_command_goes_on(
    searched, tmp_path, monkeypatch, capsys
):
    command = ["recover", searched.run_id, f"--home={tmp_path / 'home'}", "--json"]
    assert main([*command, "--estimate"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["trial"] == searched.search.chosen
    assert said["estimated_bytes"]["total"] > said["estimated_bytes"]["weights"]
    assert RunStore(tmp_path / "home").read(searched.run_id).recover is None

    def interrupt(progress):
        if progress.step == "recover" and progress.done == 2 and progress.total == 6:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(commands, "_show", interrupt)
    assert main(command) == 130
    first = capsys.readouterr()
    stopped = json.loads(first.out)["recovery"]
    assert "The same command goes on" in first.err
    assert (stopped["steps"], stopped["is_complete"]) == (2, False)
    assert any("stopped" in remark for remark in stopped["remarks"])
    monkeypatch.setattr(commands, "_show", lambda progress: None)
    assert main(command) == 0
    whole = json.loads(capsys.readouterr().out)["recovery"]
    assert (whole["steps"], whole["is_complete"]) == (6, True)
    assert whole["losses"][:2] == stopped["losses"]
    assert set(asdict(RecoverySpec())) == set(whole["settings"])


def test_an_estimate_refuses_what_training_does(searched, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('[{"instruction": "a"}]')
    command = ["recover", searched.run_id, f"--home={tmp_path / 'home'}", "--quiet", "--estimate"]
    for words, found in (
        ("--targets foo", "asked for on foo"),
        ("--layer-rank 30=4", "layers 30, but the model has the layers 0 to"),
        ("--training bad.json", "lacks 'output'"),
        ("--recovery-length 999999", "Sequences of 999999 tokens"),
        ("--targets foo --recovery-steps 0", "asked for on foo"),
    ):
        assert main([*command, *shlex.split(words)]) == 2
        said = capsys.readouterr()
        assert found in said.err
        assert said.out == ""


def test_an_interrupt_before_the_first_step_says_that_nothing_was_trained(
    searched, tmp_path, monkeypatch, capsys
):
    def interrupt(progress):
        if progress.step == "recover" and progress.done == 0:
            signal.raise_signal(signal.SIGINT)

    command = ["recover", searched.run_id, f"--home={tmp_path / 'home'}", "--json"]
    told = []
    monkeypatch.setattr(commands, "_show", lambda progress: told.append(progress.message))
    loading = Progress(step="recover", done=0, total=1)
    monkeypatch.setattr(commands, "_line", lambda *given: interrupt(loading))
    assert main(command) == 130
    assert told == ["loading the model and what it trains on"]
    assert "Nothing was trained yet" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(commands, "_show", interrupt)
    assert main(command) == 130
    said = capsys.readouterr().err
    assert f"Nothing was trained yet. 'qpruner recover {searched.run_id}'" in said


def test_an_interrupt_that_says_nothing_gets_the_usual_words(tmp_path, monkeypatch, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("qpruner_core.cli.run_command", interrupt)
    assert main(["runs", f"--home={tmp_path}"]) == 130
    assert "What was finished is kept" in capsys.readouterr().err
