"""A table whose runs or files a person changes between two pieces of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.reproduction import (
    VARIANTS,
    Reproduction,
    ReproductionSpec,
)
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import NotReadyError
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line
from qpruner_core.pipeline.reproduction_standing import pruning_of
from qpruner_core.store.records import RunStore

SPEC = ReproductionSpec(
    ratios=(0.2,),
    recovery=RecoverySpec(steps=1, rank=2, batch_size=1, sequence_length=16),
    n_trials=1,
    n_startup=0,
)


@pytest.fixture
def line(parent_spec: RunSpec, start: Callable[[RunSpec], Line]) -> Line:
    found = start(parent_spec)
    found.reproduce_begin(SPEC)
    return found


def table_of(line: Line) -> Reproduction:
    found = line.record().reproduction
    assert found is not None
    return found


def until(line: Line, words: str) -> None:
    while words not in (done := line.reproduce_next("somebody")):
        assert done


def finished(line: Line) -> Reproduction:
    while line.reproduce_next("somebody"):
        pass
    return table_of(line)


def child_of(line: Line, store: RunStore) -> Line:
    return Line(store, table_of(line).runs["0.2"], pick_device("cpu"))


def checked(table: Reproduction, store: RunStore, gone: str) -> None:
    """Check that a finished table is of one run, which is not the one that was changed."""
    child = store.read(table.runs["0.2"])
    assert child.run_id != gone
    assert [row.variant for row in table.rows] == list(VARIANTS)
    assert {row.run_id for row in table.rows} == {child.run_id}
    assert {row.pruning for row in table.rows} == {pruning_of(child)} != {""}
    assert child.prune is not None
    assert child.prune.spec.ratio == 0.2
    assert all(row.counts_temporaries for row in table.rows)
    assert sum("was changed" in remark for remark in table.remarks) == 1


def test_a_ratio_whose_run_was_pruned_otherwise_in_the_middle_gets_a_new_run_and_all_its_rows(
    line: Line, store: RunStore
) -> None:
    until(line, "QPruner-1, recovered")
    child = child_of(line, store)
    spec = child.record().spec
    child.begin(replace(spec, pruning=replace(spec.pruning, ratio=0.4)), ("prune",))
    child.step("prune")
    gone = child.record().run_id
    assert "begun anew, as the pruning" in line.reproduce_next("somebody")
    assert table_of(line).rows == ()
    checked(finished(line), store, gone)


def test_a_ratio_whose_run_was_searched_in_another_budget_gets_a_new_run_and_all_its_rows(
    line: Line, store: RunStore
) -> None:
    until(line, "QPruner-1, recovered")
    child = child_of(line, store)
    spec = child.record().spec
    search = replace(spec.search, memory_budget="0.9")
    child.begin(replace(spec, search=search), ("quantize", "search"))
    child.step("quantize")
    child.run("search")
    gone = child.record().run_id
    assert "begun anew, as the search" in line.reproduce_next("somebody")
    checked(finished(line), store, gone)


def test_rows_of_another_cut_under_the_same_settings_are_no_rows_of_the_table(
    line: Line, store: RunStore
) -> None:
    until(line, "LLM-Pruner (16 bit), recovered")
    record, child = line.record(), child_of(line, store).record()
    table = table_of(line)
    rows = tuple(replace(row, pruning="of another cut") for row in table.rows)
    store.write(replace(record, reproduction=replace(table, rows=rows)))
    assert "begun anew" in line.reproduce_next("somebody")
    checked(finished(line), store, child.run_id)


def test_items_that_were_edited_are_refused_and_the_rows_stay(
    line: Line, store: RunStore, parent_spec: RunSpec
) -> None:
    until(line, "LLM-Pruner (16 bit), recovered")
    rows = table_of(line).rows
    path = sorted(Path(parent_spec.data.tasks).glob("*.jsonl"))[0]
    known = path.read_text()
    first, *rest = known.splitlines()
    item = json.loads(first)
    item["context"] += " once"
    path.write_text("\n".join((json.dumps(item), *rest)))
    again = Line(store, line.record().run_id, pick_device("cpu"))
    with pytest.raises(NotReadyError, match="edited"):
        again.reproduce_begin(SPEC)
    with pytest.raises(NotReadyError, match="edited"):
        line.reproduce_next("somebody")
    assert table_of(line).rows == rows
    path.write_text(known)
    assert "QPruner-1" in line.reproduce_next("somebody")


def test_a_table_with_other_ratios_keeps_what_is_true_of_those_that_stay(
    line: Line, store: RunStore
) -> None:
    kept = finished(line)
    line.reproduce_begin(replace(SPEC, ratios=(0.1, 0.2)))
    table = table_of(line)
    assert table.rows == kept.rows
    assert (table.runs, table.dense, table.search_seconds) == (
        kept.runs,
        kept.dense,
        kept.search_seconds,
    )
    until(line, "10 %, LLM-Pruner (16 bit), recovered")
    assert [row.ratio for row in table_of(line).rows] == [0.1, 0.2, 0.2, 0.2, 0.2]
    line.reproduce_begin(replace(SPEC, ratios=(0.1,)))
    left = table_of(line)
    assert [row.ratio for row in left.rows] == [0.1]
    assert set(left.runs) == set(left.search_seconds) == {"0.1"}
    assert not [each for each in left.remarks if each.startswith("At 20 %")]


def test_a_kill_between_the_search_and_the_table_loses_neither_its_time_nor_its_remarks(
    line: Line, store: RunStore
) -> None:
    until(line, "search, finished")
    noted = table_of(line)
    assert noted.search_seconds["0.2"] > 0.0
    remarks = tuple(each for each in noted.remarks if not each.startswith("At 20 %"))
    lost = replace(noted, search_seconds={}, remarks=remarks)
    store.write(replace(line.record(), reproduction=lost))
    again = Line(store, line.record().run_id, pick_device("cpu"))
    again.reproduce_next("somebody")
    assert table_of(again).search_seconds == noted.search_seconds
    assert table_of(again).remarks == noted.remarks


def test_remarks_of_a_ratio_go_with_its_rows(line: Line, store: RunStore) -> None:
    until(line, "LLM-Pruner (16 bit), recovered")
    table = table_of(line)
    told = ("At 20 %: told of the old run.", "Of all.", "At 2 % it stays.")
    store.write(replace(line.record(), reproduction=replace(table, remarks=told)))
    store.delete(table.runs["0.2"])
    line.reproduce_next("somebody")
    assert table_of(line).remarks == told[1:]


def test_a_row_that_answers_other_items_than_the_dense_model_is_not_taken_in(
    line: Line, store: RunStore
) -> None:
    until(line, "search, finished")
    table = table_of(line)
    assert table.dense is not None
    tasks = {name: replace(task, items="others") for name, task in table.dense.tasks.items()}
    dense = replace(table.dense, tasks=tasks)
    store.write(replace(line.record(), reproduction=replace(table, dense=dense)))
    with pytest.raises(NotReadyError, match="edited"):
        line.reproduce_next("somebody")
    assert table_of(line).rows == ()
