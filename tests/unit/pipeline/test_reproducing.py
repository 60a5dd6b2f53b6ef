"""The paper's table on a model that is small enough to make it again and again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest

from qpruner_core.domain.progress import Progress
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.reproduction import VARIANTS, Reproduction, ReproductionSpec
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import BadInputError, InfeasibleRatioError, NotReadyError, StoppedError
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line
from qpruner_core.store.records import RunStore

RECOVERY = RecoverySpec(
    steps=3,
    rank=2,
    alpha=4.0,
    dropout=0.05,
    batch_size=2,
    micro_batch_size=1,
    sequence_length=16,
    checkpoint_steps=1,
    initialization="loftq",
)
SPEC = ReproductionSpec(
    ratios=(0.2, 0.4), recovery=RECOVERY, n_trials=2, n_startup=1, recover_steps=1
)
SHORT = replace(SPEC, ratios=(0.2,), n_trials=1, n_startup=0, recover_steps=0)
QUICK = replace(SHORT, recovery=replace(RECOVERY, steps=1, initialization="default"))
TIMES = ("seconds", "tokens_per_second", "search_seconds", "begun_at")
PLACES = ("run_id", "runs", "adapter", "shift")


def table_of(line: Line) -> Reproduction:
    found = line.record().reproduction
    assert found is not None
    return found


def make(line: Line, spec: ReproductionSpec) -> Reproduction:
    line.reproduce_begin(spec)
    while line.reproduce_next("somebody"):
        pass
    return table_of(line)


def bare(value: Any) -> Any:
    """Return a value without what differs from one making of a table to the next."""
    if isinstance(value, dict):
        gone = (*TIMES, *PLACES)
        return {key: bare(each) for key, each in value.items() if key not in gone}
    return [bare(each) for each in value] if isinstance(value, list | tuple) else value


def plain(table: Reproduction) -> Any:
    return json.loads(json.dumps(bare(asdict(table))))


def test_the_papers_table_has_every_row_once_and_in_order(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line], store: RunStore
) -> None:
    line = start(parent_spec)
    table = make(line, SPEC)
    wanted = [(ratio, name) for ratio in SPEC.ratios for name in VARIANTS]
    assert [(row.ratio, row.variant) for row in table.rows] == wanted
    assert table.is_complete
    assert table.dense is not None
    assert set(table.search_seconds) == set(table.runs) == {"0.2", "0.4"}
    for row in table.rows:
        child = store.read(row.run_id)
        assert child.prune is not None
        assert child.search is not None
        assert child.prune.spec.ratio == row.ratio
        assert child.prune.spec.criterion == "taylor"
        assert child.search.spec.recover_steps == 1
        assert child.search.spec.strategy == "gp"
        assert replace(row.recovery.spec, initialization="loftq") == RECOVERY
        if row.variant in ("QPruner-2", "QPruner-3"):
            assert row.weight_bytes <= child.search.budget_bytes
            assert set(row.plan.precisions.values()) <= {"nf4", "int8"}


def test_the_model_is_scored_once_and_nothing_is_done_to_the_parents_own_line(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line], store: RunStore
) -> None:
    line = start(parent_spec)
    line.reproduce_begin(replace(QUICK, ratios=(0.2, 0.4)))
    while line.reproduce_next("somebody") != "40 %, prune":
        pass
    table = table_of(line)
    children = [store.read(run_id) for run_id in table.runs.values()]
    first, second = (child.score for child in children)
    assert first == second
    assert line.record().next_step == "load"
    assert [child.reproduction for child in children] == [None, None]
    assert [child.spec.name.rpartition(", ")[2] for child in children] == ["20 %", "40 %"]


def test_qpruner_3_is_at_least_as_good_in_the_search_as_qpruner_2(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line], store: RunStore
) -> None:
    table = make(start(parent_spec), QUICK)
    search = store.read(table.runs["0.2"]).search
    assert search is not None
    measured = {trial.number: trial.metrics for trial in (*search.baselines, *search.trials)}
    rows = {row.variant: measured[row.trial] for row in table.rows}
    second, third = rows["QPruner-2"], rows["QPruner-3"]
    assert second is not None
    assert third is not None
    assert third.accuracy >= second.accuracy
    assert search.spec.objective == "accuracy"


def test_in_the_scripts_setting_protected_layers_stay_at_16_bit_in_every_row(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line], store: RunStore
) -> None:
    # The share pays for int8 everywhere, so that some layers have it.
    table = make(start(parent_spec), replace(QUICK, setting="script", int8_share=1.0))
    assert table.is_complete
    of_variant = {row.variant: row for row in table.rows}
    for name in VARIANTS[1:]:
        precisions = of_variant[name].plan.precisions
        assert {p for linear, p in precisions.items() if ".layers.0." in linear} == {"bf16"}
        assert "bf16" not in {p for linear, p in precisions.items() if ".layers.0." not in linear}
    second, dense = of_variant["QPruner-2"], of_variant["LLM-Pruner (16 bit)"]
    assert "int8" in second.plan.precisions.values()
    search = store.read(second.run_id).search
    assert search is not None
    packed = next(t.metrics for t in search.baselines if t.name == "QPruner-2")
    assert packed is not None
    # What its 8-bit layers hold is 16-bit weights, and it is counted as held.
    assert second.weight_bytes > packed.weight_bytes
    assert second.weight_bytes >= dense.weight_bytes


def test_our_setting_uses_our_defaults_within_the_same_budget(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line], store: RunStore
) -> None:
    table = make(start(parent_spec), replace(QUICK, setting="ours"))
    child = store.read(table.runs["0.2"])
    assert child.search is not None
    assert child.search.spec.strategy == "refit"
    assert child.search.spec.precisions == ("nf4", "int8", "bf16")
    assert child.spec.pruning.criterion == "flap"
    third = table.row(0.2, "QPruner-3")
    assert third is not None
    assert third.trial == child.search.chosen
    assert third.weight_bytes <= child.search.budget_bytes


def test_a_table_that_is_taken_up_after_every_piece_equals_one_made_at_once(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line], store: RunStore
) -> None:
    at_once = make(start(parent_spec), SHORT)
    run_id = store.create(parent_spec).run_id
    pieces = []
    while True:
        line = Line(store, run_id, pick_device("cpu"))
        line.reproduce_begin(SHORT)
        done = line.reproduce_next("somebody")
        if not done:
            break
        pieces.append(done)
    assert plain(table_of(line)) == plain(at_once)
    assert len(pieces) == len(set(pieces))
    assert pieces[-1] == "20 %, QPruner-3, recovered"


def test_training_that_is_stopped_leaves_no_row_and_goes_on_to_the_same_one(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line], store: RunStore
) -> None:
    at_once = make(start(parent_spec), SHORT)
    told: list[Progress] = []

    def is_in_training() -> bool:
        return bool(told) and "QPruner-1 2 of" in told[-1].message

    run_id = store.create(parent_spec).run_id
    line = Line(store, run_id, pick_device("cpu"), told.append, is_in_training)
    with pytest.raises(StoppedError, match="continues from there"):
        make(line, SHORT)
    assert table_of(line).missing[0] == (0.2, "QPruner-1")
    assert plain(make(Line(store, run_id, pick_device("cpu")), SHORT)) == plain(at_once)


def test_progress_counts_the_pieces_of_the_whole_table_upwards_and_tells_the_time_left(
    parent_spec: RunSpec, store: RunStore
) -> None:
    told: list[Progress] = []
    run_id = store.create(parent_spec).run_id
    make(Line(store, run_id, pick_device("cpu"), told.append), replace(QUICK, ratios=(0.2, 0.4)))
    assert {progress.step for progress in told} == {"reproduce"}
    assert {progress.total for progress in told} == {2 * (4 + 5 + 1 + 4)}
    done = [progress.done for progress in told]
    assert done == sorted(done)
    left = [p.values["seconds_left"] for p in told if "seconds_left" in p.values]
    assert left
    assert min(left) >= 0.0


def test_a_row_whose_plan_is_that_of_another_row_is_not_trained_again(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line]
) -> None:
    # No share for 8 bit: all of QPruner-1 to 3 are nf4 everywhere.
    table = make(start(parent_spec), replace(QUICK, int8_share=0.0))
    first, second, third = table.rows[1:]
    assert first.recovery == second.recovery == third.recovery
    assert "At 20 % the plan of QPruner-2 is that of QPruner-1." in table.remarks


def test_a_ratio_whose_run_was_deleted_is_begun_anew_and_the_others_stay(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line], store: RunStore
) -> None:
    line = start(parent_spec)
    line.reproduce_begin(SHORT)
    while "recovered" not in line.reproduce_next("somebody"):
        pass
    gone = table_of(line).runs["0.2"]
    store.delete(gone)
    again = make(Line(store, line.record().run_id, pick_device("cpu")), SHORT)
    assert {row.run_id for row in again.rows} == {again.runs["0.2"]}
    assert again.runs["0.2"] != gone
    assert len(again.rows) == len(VARIANTS)


def test_a_table_that_asks_for_something_else_takes_the_place_of_the_old_one(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line]
) -> None:
    line = start(parent_spec)
    make(line, SHORT)
    line.reproduce_begin(replace(SHORT, seed=1))
    assert table_of(line).rows == ()
    line.reproduce_begin(replace(SHORT, seed=1))
    assert table_of(line).spec.seed == 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"ratios": (0.2, 0.99)}, InfeasibleRatioError, "0.99"),
        ({"recovery": replace(RECOVERY, optimizer="adamv")}, BadInputError, "adamv"),
        (
            {"recovery": replace(RECOVERY, initialization="pissa"), "recover_steps": 1},
            BadInputError,
            "pissa",
        ),
        ({"recovery": replace(RECOVERY, sequence_length=4096)}, BadInputError, "4096"),
        ({"n_startup": 1}, BadInputError, "startup"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_computed(
    parent_spec: RunSpec,
    start: Callable[[RunSpec], Line],
    change: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    line = start(parent_spec)
    with pytest.raises(error, match=words):
        line.reproduce_begin(replace(SHORT, **change))
    assert line.record().reproduction is None


def test_tasks_that_the_source_lacks_are_refused_at_once(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line]
) -> None:
    data = replace(parent_spec.data, task_names=("riddles",))
    line = start(replace(parent_spec, data=data))
    with pytest.raises(BadInputError, match="riddles"):
        line.reproduce_begin(SHORT)


def test_another_writer_of_a_ratios_run_is_waited_for_until_a_stop(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line], store: RunStore
) -> None:
    line = start(parent_spec)
    line.reproduce_begin(QUICK)
    line.reproduce_next("somebody")
    asked: list[bool] = []

    def is_asked_twice() -> bool:
        asked.append(True)
        return len(asked) > 1

    run_id = line.record().run_id
    waiting = Line(store, run_id, pick_device("cpu"), should_stop=is_asked_twice)
    with store.writing(table_of(line).runs["0.2"]), pytest.raises(StoppedError, match="waited"):
        waiting.reproduce_next("somebody")
    assert len(asked) == 2
    assert line.reproduce_next("somebody") == "20 %, the dense model"


def test_without_a_table_there_is_no_piece_to_do(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line]
) -> None:
    with pytest.raises(NotReadyError, match="qpruner reproduce"):
        start(parent_spec).reproduce_next("somebody")
