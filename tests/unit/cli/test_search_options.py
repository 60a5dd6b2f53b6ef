"""Every choice of a search can be made on the command line, comes back in the spec and is told."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace

import pytest

from qpruner_core.catalog import check_spec
from qpruner_core.cli.parser import build_parser
from qpruner_core.cli.report_search import search_document, search_lines, trial_document
from qpruner_core.cli.search_options import answers
from qpruner_core.cli.specs import overlay, run_spec
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import (
    PruningOutcome,
    QuantizationOutcome,
    RunRecord,
    SearchOutcome,
    SensitivityCell,
    Trial,
)
from qpruner_core.domain.spec import ModelSpec, PruningSpec, RunSpec, SearchSpec
from qpruner_core.errors import BadInputError
from qpruner_core.pipeline.asked import compress_command, options_of

EVERYTHING = (
    "--memory-budget 0.6 --precisions int8,bf16 --tie layer --objective loss "
    "--cost training_memory --signal loss --information mutual_information_gaussian "
    "--strategy nsga2 --strategy-option population_size=6 --trials 7 --patience 3 --rungs 2 "
    "--signal-tokens 640 --joint per-layer "
    "--joint-ratios 0.3,0.4"
)
ASKED = SearchSpec(
    memory_budget="0.6",
    precisions=("int8", "bf16"),
    cost="training_memory",
    signal="loss",
    information="mutual_information_gaussian",
    strategy="nsga2",
    options={"population_size": 6},
    n_trials=7,
    patience=3,
    rungs=2,
    signal_tokens=640,
    joint="per-layer",
    ratios=(0.3, 0.4),
)


TRAINED = replace(ASKED, rungs=1, recover_steps=20)
"""Plans are trained, which goes without rungs."""


def parsed(words: str):
    return build_parser().parse_args(shlex.split(words))


def test_run_and_search_take_every_option():
    assert run_spec(parsed(f"run {EVERYTHING}")).search == ASKED
    trained = f"{EVERYTHING} --rungs 1 --recover-steps 20"
    assert run_spec(parsed(f"run {trained}")).search == TRAINED
    known = RunSpec(model=ModelSpec(source="demo"))
    assert overlay(known, parsed(f"search some-run {EVERYTHING}")).search == ASKED
    assert overlay(known, parsed("search some-run")).search == SearchSpec()


def test_layers_get_a_precision_by_hand_and_give_it_back():
    asked = parsed("run --layer-precision 0=bf16 --layer-precision 11=int8")
    spec = run_spec(asked)
    assert spec.search.fixed == {"0": "bf16", "11": "int8"}
    again = shlex.join(["run", *options_of(spec)])
    assert run_spec(parsed(again)).search == spec.search
    assert "--layer-precision" not in compress_command(spec)
    assert overlay(spec, parsed("search RUN --layer-precision none")).search.fixed == {}
    assert overlay(spec, parsed("search RUN")).search.fixed == spec.search.fixed


def test_a_precision_of_no_layer_is_refused_with_an_example(capsys):
    with pytest.raises(SystemExit):
        parsed("search RUN --layer-precision first=bf16")
    assert "0=bf16" in capsys.readouterr().err


def test_every_field_of_the_spec_was_asked_for():
    usual = SearchSpec()
    same = {f.name for f in fields(SearchSpec) if getattr(ASKED, f.name) == getattr(usual, f.name)}
    # Precisions by hand do not go with a joint search.
    assert same == {"tie", "objective", "seed", "recover_steps", "fixed"}
    assert TRAINED.recover_steps != usual.recover_steps


@pytest.mark.parametrize("asked", [ASKED, TRAINED])
def test_a_search_comes_back_from_the_options_that_ask_for_it(asked):
    spec = replace(RunSpec(model=ModelSpec(source="demo")), search=asked)
    again = run_spec(parsed(shlex.join(["run", *options_of(spec)])))
    assert again == spec
    assert not any("joint" in word for word in options_of(RunSpec(model=spec.model)))


def test_layer_by_layer_nothing_of_a_search_but_its_budget_is_asked():
    spec = replace(RunSpec(model=ModelSpec(source="demo")), search=ASKED)
    words = shlex.split(compress_command(spec))[1:]
    assert build_parser().parse_args(words).memory_budget == "0.6"


def test_ratios_of_a_joint_search_can_be_taken_back():
    known = replace(RunSpec(model=ModelSpec(source="demo")), search=ASKED)
    asked = overlay(known, parsed("search some-run --joint none --joint-ratios none"))
    assert (asked.search.joint, asked.search.ratios) == ("none", ())
    with pytest.raises(BadInputError, match="needs none"):
        overlay(known, parsed("search some-run --joint none"))


def test_options_join_those_of_the_run_and_leave_with_their_strategy():
    known = replace(RunSpec(model=ModelSpec(source="demo")), search=SearchSpec(strategy="refit"))
    known = overlay(known, parsed("search some-run --strategy-option draws=5"))
    assert known.search.options == {"draws": 5}
    more = overlay(known, parsed("search some-run --strategy-option rounds=1")).search
    assert more.options == {"draws": 5, "rounds": 1}
    other = overlay(known, parsed("search some-run --strategy gp --strategy-option n_startup=4"))
    assert other.search.options == {"n_startup": 4}
    check_spec(other)
    unknown = overlay(known, parsed("search some-run --strategy-option drawers=5"))
    with pytest.raises(BadInputError, match="no option 'drawers'"):
        check_spec(unknown)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--joint-ratios a,b", "no list of pruning ratios"),
        ("--strategy-option draws", "no option of a strategy"),
    ],
)
def test_what_cannot_be_read_gets_one_sentence(words, found, capsys):
    with pytest.raises(SystemExit) as refused:
        parsed(f"search some-run {words}")
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert found in said
    assert said.count("\n") == 1


def test_signals_that_do_not_answer_the_search_are_measured_again(record):
    cell = SensitivityCell(unit="layer.0", precision="int8", loss_increase=0.0)
    known = QuantizationOutcome(
        tie="layer",
        precisions=("int8", "bf16"),
        sensitivities=(cell,),
        loss_16_bit=1.0,
        mutual_information=(),
        device="cpu",
    )
    record = replace(record, quantize=known)
    spec = replace(record.spec, search=SearchSpec(precisions=("int8",)))

    def asked(**changes):
        return replace(spec, search=replace(spec.search, **changes))

    assert answers(record, spec)
    assert not answers(record, asked(tie="block"))
    assert not answers(record, asked(precisions=("nf4",)))
    assert not answers(record, asked(cost="latency"))
    assert not answers(record, asked(joint="global", ratios=(0.4,)))
    assert not answers(record, asked(information="block_influence"))
    timed = replace(known, sensitivities=(replace(cell, seconds=1e-6),))
    assert answers(replace(record, quantize=timed), asked(cost="latency"))


def test_trials_are_not_trained_by_an_initialisation_that_shifts_the_weights():
    asked = run_spec(parsed("run --recover-steps 3"))
    for name, options in (("loftq", {"iterations": 2}), ("pissa", {})):
        recovery = replace(asked.recovery, initialization=name, initialization_options=options)
        with pytest.raises(BadInputError, match=f"begin by {name}.*Begin by loftq with 1"):
            check_spec(replace(asked, recovery=recovery))
        check_spec(replace(asked, recovery=recovery, search=SearchSpec()))
    check_spec(replace(asked, recovery=replace(asked.recovery, initialization="loftq")))


@pytest.mark.parametrize(
    "words",
    [
        "--patience -1",
        "--rungs 9",
        "--rungs 2 --objective accuracy",
        "--recover-steps -1",
        "--recover-steps 2 --rungs 2",
    ],
)
def test_values_out_of_range_are_refused_with_a_sentence(words):
    with pytest.raises(BadInputError, match=r"\. (Give|Search|Measure)"):
        run_spec(parsed(f"run {words}"))


def metrics(**changes):
    return Metrics(
        **{"loss": 2.0, "accuracy": 0.5, "weight_bytes": 4000, "device": "cpu"} | changes
    )


def trial(number, **changes):
    plan = PrecisionPlan(precisions={"a": "int8"})
    return Trial(**{"number": number, "name": "", "plan": plan, "metrics": None} | changes)


@pytest.fixture
def record(tiny_layout) -> RunRecord:
    spec = SearchSpec(cost="latency")
    found = SearchOutcome(
        spec=spec,
        budget_bytes=5000,
        study_name="s",
        baselines=(trial(-1, name="QPruner-1", state="failed", reason="The loss is nan."),),
        trials=(
            trial(0, metrics=metrics(decode_tokens_per_second=50.0, measured_in="before")),
            *(trial(n, state="stopped", reason=f"dominated {n}") for n in range(1, 6)),
        ),
        front=(0,),
        chosen=0,
        remarks=("The search stopped after 6 of 9 trials.",),
    )
    pruned = PruningOutcome(
        spec=PruningSpec(),
        plan=PruningPlan(kept={}),
        layout=tiny_layout,
        parameters_before=1,
        parameters_after=1,
        before=metrics(),
        after=metrics(),
    )
    run = RunSpec(model=ModelSpec(source="demo"), search=spec)
    return RunRecord(run_id="r", created_at="", spec=run, prune=pruned, search=found)


def test_lines_show_front_stopped_and_failed_plans_and_remarks(record):
    said = "\n".join(search_lines(record))
    assert "*> trial 0" in said
    assert "20 ms/token" in said
    assert "5 of 7 plans stopped on part of the text:\n  trial 1: dominated 1" in said
    assert "and 2 more" in said
    assert "dominated 4" not in said
    assert "1 of 7 plans failed:\n  QPruner-1: The loss is nan." in said
    assert said.endswith("The search stopped after 6 of 9 trials.")


def test_the_document_holds_every_trial_and_what_it_costs(record):
    found = search_document(record.search)
    assert found["cost"] == "latency"
    assert found["remarks"] == list(record.search.remarks)
    first, second = found["trials"][:2]
    assert (first["seconds_per_token"], first["measured_in"]) == (0.02, "before")
    assert (second["state"], second["reason"]) == ("stopped", "dominated 1")
    estimated = trial_document(trial(3, metrics=metrics(training_bytes=7)))
    assert estimated["estimated_training_bytes"] == 7
