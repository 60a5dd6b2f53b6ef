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
from qpruner_core.errors import BadInputError, InfeasibleBudgetError, NotReadyError
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line
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
        pruning=PruningSpec(ratio=0.5, criterion="magnitude", protect_first=0, protect_last=1),
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
    n_slots = first.search_begin()
    early = [first.search_trial(slot) for slot in range(n_slots - 2)]
    second = Line(store, first.record().run_id, pick_device("cpu"))
    again = [second.search_trial(slot) for slot in range(n_slots)]
    second.search_finish()
    assert again[: len(early)] == early
    found = second.record().search
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
    with pytest.raises(InfeasibleBudgetError, match="smallest"):
        line.begin(small, STEPS)
    assert line.record().load is None


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
    assert trial.name == "by hand"
    assert line.measure(plan) == trial
    assert line.record().search.trials[-1] == trial


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
