"""Every choice of a pruning can be made on the command line, and comes back in the spec."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from qpruner_core.cli import main
from qpruner_core.cli.compress import compression_document, compression_lines
from qpruner_core.cli.parser import build_parser
from qpruner_core.cli.report import run_document, run_lines
from qpruner_core.cli.report_pruning import (
    comparison_document,
    comparison_lines,
    pruning_document,
    what_stays,
)
from qpruner_core.cli.specs import overlay, run_spec
from qpruner_core.domain.compression import CompressionOutcome
from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import (
    ComparedPruning,
    Comparison,
    ModelCard,
    PruningOutcome,
    RunRecord,
)
from qpruner_core.domain.spec import ModelSpec, PruningSpec, RunSpec
from qpruner_core.pipeline.asked import options_of

EVERYTHING = (
    "--pruning-ratio 0.3 --criterion magnitude --scope global --shape uniform "
    "--pruning-kinds mlp_channels,experts --layer-ratio 3=0.5 --layer-ratio 10=0.25 "
    "--drop-layers 2 --pruning-iterations 4 --compensation bias --protect-first 1 "
    "--protect-last 0 --width-multiple 32"
)
ASKED = PruningSpec(
    ratio=0.3,
    criterion="magnitude",
    scope="global",
    shape="uniform",
    kinds=("mlp_channels", "experts"),
    layer_ratios={"3": 0.5, "10": 0.25},
    drop_layers=2,
    iterations=4,
    compensation="bias",
    protect_first=1,
    protect_last=0,
    width_multiple=32,
)


def parsed(words: str):
    return build_parser().parse_args(shlex.split(words))


def test_every_field_of_a_pruning_can_be_given():
    assert run_spec(parsed(f"run {EVERYTHING}")).pruning == ASKED
    # Each of them comes from its option: without any, another one stays as it was.
    other = PruningSpec(
        ratio=0.1,
        criterion="random",
        kinds=("kv_heads",),
        protect_first=3,
        protect_last=3,
        width_multiple=8,
    )
    spec = RunSpec(model=ModelSpec(source="demo"), pruning=other)
    assert overlay(spec, parsed(f"prune RUN {EVERYTHING}")).pruning == ASKED
    assert overlay(spec, parsed("prune RUN")).pruning == other


def test_what_is_not_given_stays_as_the_run_has_it():
    spec = RunSpec(model=ModelSpec(source="demo"), pruning=ASKED)
    assert overlay(spec, parsed("prune RUN --drop-layers 0")).pruning == replace(
        ASKED, drop_layers=0
    )
    again = overlay(spec, parsed("prune RUN --layer-ratio 1=0.1")).pruning
    assert again.layer_ratios == {"1": 0.1}
    assert overlay(spec, parsed("prune RUN --layer-ratio none")).pruning.layer_ratios == {}
    assert overlay(spec, parsed("compare RUN --ratio 0.4")).pruning == replace(ASKED, ratio=0.4)


def test_the_command_line_of_a_model_card_asks_for_the_same_again():
    options = {"magnitude": {"p": 1.0}}
    spec = RunSpec(model=ModelSpec(source="demo"), pruning=ASKED)
    spec = replace(spec, importance=replace(spec.importance, options=options))
    again = run_spec(parsed(shlex.join(["run", *options_of(spec)])))
    assert again == spec


def test_options_of_criteria_are_typed_and_join_those_of_the_run():
    spec = RunSpec(model=ModelSpec(source="demo"))
    words = (
        "score RUN --criteria magnitude,mutual_information --criterion-option magnitude.p=1 "
        "--criterion-option mutual_information.n_samples=64"
    )
    found = overlay(spec, parsed(words)).importance
    assert found.criteria == ("magnitude", "mutual_information")
    assert found.options == {"magnitude": {"p": 1}, "mutual_information": {"n_samples": 64}}
    spec = replace(spec, importance=found)
    more = overlay(spec, parsed("score RUN --criterion-option magnitude.p=2.5")).importance
    assert more.options == {**found.options, "magnitude": {"p": 2.5}}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("prune RUN --layer-ratio 3", "3=0.5"),
        ("prune RUN --layer-ratio x=0.5", "3=0.5"),
        ("prune RUN --layer-ratio 3=half", "3=0.5"),
        ("score RUN --criterion-option taylor", "aggregation"),
        ("score RUN --criterion-option nonsense.p=1", "magnitude"),
        ("prune RUN --compensation maybe", "maybe"),
    ],
)
def test_what_cannot_be_read_gets_one_sentence(words, named, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(shlex.split(words))
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--criterion-option magnitude.q=1", "'q'"),
        ("--criterion-option magnitude.p=much", "float"),
        ("--pruning-kinds heads", "heads"),
        ("--pruning-iterations 0", "iterations"),
        ("--layer-ratio 3=1.5", "1.5"),
    ],
)
def test_what_no_entry_or_range_allows_is_refused_before_anything_is_computed(
    option, named, tmp_path, capsys
):
    assert main(["run", f"--home={tmp_path}", *shlex.split(option)]) == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def metrics(loss: float, accuracy: float | None = 0.5) -> Metrics:
    found = TaskResult(n_items=4, accuracy=accuracy or 0.0, accuracy_normalized=accuracy or 0.0)
    tasks = {} if accuracy is None else {"pairs": found}
    return Metrics(loss=loss, accuracy=accuracy or 0.0, weight_bytes=7, device="cpu", tasks=tasks)


@pytest.fixture
def record(tiny_layout) -> RunRecord:
    plan = PruningPlan(
        kept={"model.layers.1.self_attn": (1,), "model.layers.1.mlp": tuple(range(64))},
        dropped_layers=(0,),
        biases=("model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"),
    )
    layout = tiny_layout.pruned(plan)
    return RunRecord(
        run_id="r",
        created_at="",
        spec=RunSpec(model=ModelSpec(source="demo")),
        load=ModelCard(
            source="demo",
            revision=None,
            title="demo",
            layout=tiny_layout,
            parameters=tiny_layout.parameters,
            file_bytes=1,
            dtype="F16",
            max_positions=64,
        ),
        prune=PruningOutcome(
            spec=ASKED,
            plan=plan,
            layout=layout,
            parameters_before=tiny_layout.parameters,
            parameters_after=layout.parameters,
            before=metrics(1.0),
            after=metrics(2.0),
        ),
    )


def test_a_report_says_which_units_and_layers_stay_and_what_compensates(record):
    said = what_stays(record)
    assert said == (
        "1 of 4 KV heads stay; 64 of 256 MLP channels stay; layers dropped: 0; "
        "biases that compensate: 2"
    )
    found = pruning_document(record)
    assert found["units"]["kv_heads"] == {"before": 4, "after": 1}
    assert found["dropped_layers"] == [0]
    assert len(found["biases"]) == 2
    assert json.loads(json.dumps(found)) == found


def test_compared_criteria_stand_in_the_order_of_their_loss():
    rows = tuple(
        ComparedPruning(
            criterion=name, compensation="none", parameters=9, metrics=metrics(loss), seconds=1.5
        )
        for name, loss in (("random", 3.0), ("taylor", 1.5))
    )
    found = Comparison(spec=PruningSpec(ratio=0.3), dense=metrics(1.0), rows=rows)
    assert [row["criterion"] for row in comparison_document(found)["rows"]] == ["taylor", "random"]
    lines = comparison_lines(found)
    assert "0.3" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["(dense)", "taylor", "random"]
    bare = replace(found, dense=metrics(1.0, None), rows=())
    assert "%" not in comparison_lines(bare)[-1]


def test_a_run_tells_what_was_written_layer_by_layer_beside_it(record):
    assert "compressed" not in run_document(record)
    outcome = CompressionOutcome(
        spec=record.spec,
        path="/out",
        pruning=record.prune.plan,
        layout=record.prune.layout,
        plan=PrecisionPlan.uniform(record.prune.layout, "nf4"),
        parameters_before=100,
        parameters_after=80,
        planned_bytes=2**20,
        size_bytes=2**20,
        largest_layer_bytes=2**10,
        peak_memory_bytes=2**30,
        device="cpu",
        n_tokens=0,
        files={},
        seconds={"score": 1.0},
    )
    written = replace(record, compressed=outcome)
    assert run_document(written)["compressed"] == compression_document(outcome)
    said = run_lines(written)
    assert said[:-5] == run_lines(record)
    assert said[-5:] == [
        "beside the line, layer by layer:",
        *(f"  {line}" for line in compression_lines(outcome)),
    ]


@pytest.mark.parametrize("option", ["--trials 3", "--strategy tpe", "--tasks none"])
def test_compress_asks_nothing_that_it_would_not_do(option, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(f"compress demo --out X {option}")
    assert ended.value.code == 2
    assert option in capsys.readouterr().err


def test_help_of_a_step_says_that_the_rest_stays_as_the_run_has_it(capsys):
    with pytest.raises(SystemExit):
        parsed("prune --help")
    assert "stays as the run has it" in " ".join(capsys.readouterr().out.split())
