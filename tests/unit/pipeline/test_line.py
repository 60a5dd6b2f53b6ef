import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig

from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import STEPS, RunRecord
from qpruner_core.domain.spec import (
    DataSpec,
    ExportSpec,
    ImportanceSpec,
    ModelSpec,
    PruningSpec,
    RecoverySpec,
    RunSpec,
    SearchSpec,
)
from qpruner_core.errors import (
    BadInputError,
    IncompatibleShapeError,
    InfeasibleBudgetError,
    NonFiniteLossError,
    NotReadyError,
)
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line
from qpruner_core.pipeline.measuring import Measuring
from qpruner_core.store.records import RunStore


@pytest.fixture
def tiny_config(tiny_config: LlamaConfig) -> LlamaConfig:
    """Heads of 32, so that a KV head with its two query heads is one block of 64 columns."""
    tiny_config.head_dim = 32
    return tiny_config


@pytest.fixture
def spec(tiny_folder: Path, tiny_data: DataSpec) -> RunSpec:
    return RunSpec(
        model=ModelSpec(source=str(tiny_folder)),
        data=tiny_data,
        importance=ImportanceSpec(criteria=("magnitude", "mutual_information")),
        pruning=PruningSpec(
            ratio=0.25,
            criterion="magnitude",
            scope="per-layer",
            protect_first=0,
            protect_last=1,
        ),
        search=SearchSpec(memory_budget="0.9", n_trials=3, strategy="random"),
        recovery=RecoverySpec(steps=3, rank=2, batch_size=2, sequence_length=16),
    )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "home")


def start(store: RunStore, spec: RunSpec) -> Line:
    return Line(store, store.create(spec).run_id, pick_device("cpu"))


def go(line: Line, spec: RunSpec, *steps: str) -> RunRecord:
    line.begin(spec, steps)
    for step in steps:
        line.run(step)
    return line.record()


def test_the_whole_line_fills_every_slot_and_the_export_reloads(store, spec):
    record = go(start(store, spec), spec, *STEPS)
    assert record.next_step is None
    assert record.prune.parameters_after < record.prune.parameters_before
    assert record.export.max_logit_difference == 0.0
    assert record.export.reload_logits_equal
    assert record.export.spec.trial == record.search.chosen
    assert set(record.seconds) == set(STEPS)


def test_the_chosen_plan_stands_on_the_front(store, spec):
    found = go(start(store, spec), spec, *STEPS[:6]).search
    assert found.chosen in found.front
    assert found.chosen >= 0 or all(trial.number < 0 for trial in found.baselines)


def test_bytes_of_a_trial_are_those_of_its_plan_and_all_plans_are_distinct(store, spec):
    record = go(start(store, spec), spec, *STEPS[:6])
    plans = [trial.plan.key for trial in record.search.trials]
    assert len(set(plans)) == len(plans) == 3
    names = [trial.name for trial in record.search.baselines]
    assert names[:3] == ["LLM-Pruner (16 bit)", "uniform int8", "QPruner-1"]
    chosen = next(
        trial
        for trial in (*record.search.trials, *record.search.baselines)
        if trial.number == record.search.chosen
    )
    assert chosen.metrics.weight_bytes <= record.search.budget_bytes


def test_a_search_taken_up_by_another_process_loses_and_doubles_nothing(store, spec):
    first = start(store, spec)
    go(first, spec, *STEPS[:5])
    first.begin(spec, ("search",))
    baselines = [first.search_baseline(index) for index in range(first.search_begin())]
    early = first.search_next("the first")
    second = Line(store, first.record().run_id, pick_device("cpu"))
    again = [second.search_baseline(index) for index in range(second.search_begin())]
    later = [second.search_next("the second") for _ in range(3)]
    second.search_finish()
    assert again == baselines
    found = second.record().search
    assert found.trials == (early, *later[:2])
    assert later[2] is None
    assert [trial.number for trial in found.trials] == [0, 1, 2]


def test_asking_for_more_trials_keeps_the_measured_ones(store, spec):
    line = start(store, spec)
    few = go(line, spec, *STEPS[:6]).search
    more = replace(spec, search=replace(spec.search, n_trials=4))
    many = go(line, more, "search").search
    assert many.trials[:3] == few.trials
    assert len(many.trials) == 4


def test_a_step_done_again_empties_what_followed(store, spec):
    line = start(store, spec)
    go(line, spec, *STEPS[:6])
    line.begin(spec, ("prune",))
    record = line.record()
    assert record.score is not None
    assert record.prune is record.quantize is record.search is None


def test_a_budget_no_plan_reaches_is_refused_before_anything_is_computed(store, spec):
    line = start(store, spec)
    small = replace(spec, search=replace(spec.search, memory_budget="0.01"))
    with pytest.raises(InfeasibleBudgetError, match="smallest") as refused:
        line.begin(small, STEPS)
    assert line.record().load is None
    named = float(re.search(r"0\.\d+", str(refused.value).replace("0.01", ""))[0])
    enough = replace(spec, search=replace(spec.search, memory_budget=f"{named + 1e-4:.4f}"))
    line.begin(enough, STEPS)
    assert line.record().spec.search.memory_budget == enough.search.memory_budget


def test_pruning_by_a_criterion_that_was_not_scored_says_what_to_do(store, spec):
    line = start(store, spec)
    go(line, spec, "load", "score")
    other = replace(spec, pruning=replace(spec.pruning, criterion="taylor"))
    line.begin(other, ("prune",))
    with pytest.raises(NotReadyError, match="Score it again with 'taylor'"):
        line.step("prune")


def test_a_plan_made_by_hand_joins_the_search_once(store, spec):
    line = start(store, spec)
    record = go(line, spec, *STEPS[:6])
    plan = PrecisionPlan.uniform(record.prune.layout, "fp4")
    trial = line.measure(plan)
    assert trial.name == "by hand 1"
    assert line.measure(plan) == trial
    assert line.record().search.trials[-1] == trial
    more = replace(spec, search=replace(spec.search, n_trials=4))
    found = go(line, more, "search").search
    assert found.trials[-1] == trial
    assert [t.number for t in found.trials[:-1]] == [0, 1, 2, 3]


def test_both_models_continue_a_prompt(store, spec):
    line = start(store, spec)
    go(line, spec, *STEPS[:6])
    said = line.generate("ba ca", None)
    assert said["prompt"] == "ba ca"
    assert said["original"]
    assert said["compressed"]


def test_an_unknown_plan_number_names_where_to_look(store, spec):
    line = start(store, spec)
    go(line, spec, *STEPS[:6])
    wrong = replace(spec, export=ExportSpec(trial=99))
    line.begin(wrong, ("export",))
    with pytest.raises(BadInputError, match="no measured plan number 99"):
        line.step("export")


def test_without_4_bit_a_model_of_narrow_heads_is_searched_and_names_what_it_leaves_out(
    store, spec, tiny_model, tiny_tokenizer, tmp_path
):
    narrow = tiny_model.config
    narrow.head_dim = 16
    folder = tmp_path / "narrow"
    type(tiny_model)(narrow).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    search = replace(spec.search, precisions=("int8", "bf16"))
    spec = replace(spec, model=ModelSpec(source=str(folder)), search=search)
    line, told = start(store, spec), []
    line.on_progress = told.append
    found = go(line, spec, *STEPS[:6]).search
    names = [trial.name for trial in found.baselines]
    assert "uniform int8" in names
    assert "QPruner-1" not in names
    assert any("QPruner-1" in progress.message for progress in told)
    with pytest.raises(IncompatibleShapeError, match="o_proj"):
        line.begin(replace(spec, search=SearchSpec(memory_budget="0.9")), STEPS)


def test_equal_searches_are_one_study_however_they_were_asked_for(store, spec):
    line = start(store, spec)
    go(line, spec, "load")
    first = replace(spec, search=SearchSpec(memory_budget="0.9", strategy="gp"))
    line.begin(first, ("search",))
    name = line.record().study_name
    written = replace(first.search, memory_budget="0.9000", options={"n_startup": 10}, n_trials=7)
    line.begin(replace(spec, search=written), ("search",))
    assert line.record().study_name == name
    line.begin(replace(spec, search=replace(written, tie="block")), ("search",))
    assert line.record().study_name != name


def test_a_job_leaves_the_spec_of_earlier_steps_as_it_was(store, spec):
    line = start(store, spec)
    go(line, spec, *STEPS[:3])
    other = replace(
        spec,
        pruning=replace(spec.pruning, ratio=0.1),
        recovery=replace(spec.recovery, trial=3),
    )
    line.begin(other, ("search",))
    assert line.record().spec.pruning == spec.pruning
    assert line.record().spec.recovery.trial is None


def test_sequences_beyond_the_models_positions_are_refused(store, spec):
    data = replace(spec.data, sequence_length=512, calibration_tokens=512, heldout_tokens=512)
    long = replace(spec, data=data)
    with pytest.raises(BadInputError, match="positions for 256"):
        start(store, spec).begin(long, STEPS)


def test_recovery_trains_on_sequences_of_the_length_it_was_asked_for(store, spec):
    line = start(store, spec)
    go(line, spec, *STEPS[:3])
    assert line._materials.training(RecoverySpec(sequence_length=16)).ids.shape[1] == 16
    assert line._materials.training(RecoverySpec(sequence_length=32)).ids.shape[1] == 32


def test_a_baseline_that_cannot_be_measured_does_not_end_the_search(store, spec, monkeypatch):
    line = start(store, spec)
    go(line, spec, *STEPS[:5])
    line.begin(spec, ("search",))
    real = Measuring._answer

    def measure(self, plan, rivals):
        if set(plan.precisions.values()) == {"nf4"}:
            raise NonFiniteLossError("The loss is nan.")
        return real(self, plan, rivals)

    monkeypatch.setattr(Measuring, "_answer", measure)
    line.run("search")
    failed = [t for t in line.record().search.baselines if t.state == "failed"]
    assert [(t.name, t.reason) for t in failed] == [("QPruner-1", "The loss is nan.")]


def test_a_training_text_that_fills_no_row_is_refused_before_anything_is_computed(store, spec):
    recovery = replace(spec.recovery, steps=2, sequence_length=256)
    short = Path(spec.data.training).parent / "short.txt"
    short.write_text("ba ca da")
    spec = replace(spec, recovery=replace(recovery, training=str(short)))
    line = start(store, spec)
    line.begin(spec, STEPS)
    with pytest.raises(BadInputError, match="one sequence takes 256"):
        line.run("load")
    line.begin(spec, STEPS[:2])
    line.run("load")
    assert line.record().load is not None


def test_what_recovery_cannot_read_or_may_not_is_refused_at_the_beginning(store, spec, tmp_path):
    line = start(store, spec)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    for training, found in ((str(bad), r"bad\.jsonl:2"), (spec.data.heldout, "held-out text")):
        asked = replace(spec, recovery=replace(spec.recovery, steps=2, training=training))
        with pytest.raises(BadInputError, match=found):
            line.begin(asked, STEPS)
        line.begin(asked, STEPS[:4])
        with pytest.raises(BadInputError, match=found):
            line.begin(replace(asked, search=replace(asked.search, recover_steps=1)), STEPS[:6])


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"targets": ("c_fc",)}, "--targets"), ({"layer_ranks": {"9": 2}}, "the layers 0 to 1")],
)
def test_adapters_where_the_model_has_no_linear_are_refused_before_anything_is_computed(
    store, spec, changes, said
):
    line = start(store, spec)
    wrong = replace(spec, recovery=replace(spec.recovery, steps=1, **changes))
    with pytest.raises(BadInputError, match=said):
        line.begin(wrong, STEPS)
    assert line.record().prune is None
