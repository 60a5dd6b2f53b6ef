"""`qpruner evaluate TABLE_RUN --row`: every number of the table can be had again, and from
lm-evaluation-harness.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from qpruner_core.cli import main
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.reproduction import Reproduction, ReproductionSpec
from qpruner_core.domain.spec import DataSpec, ModelSpec, RunSpec
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line
from qpruner_core.store.records import RunStore

RECOVERY = RecoverySpec(
    steps=2,
    rank=2,
    alpha=4.0,
    dropout=0.0,
    learning_rate=0.05,
    batch_size=2,
    micro_batch_size=1,
    sequence_length=16,
    initialization="loftq",
)
SPEC = ReproductionSpec(
    setting="script",
    ratios=(0.2,),
    recovery=RECOVERY,
    n_trials=1,
    n_startup=0,
    int8_share=1.0,
    items_per_task=6,
)
Evaluate = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "home")


@pytest.fixture
def table_id(tiny_config: LlamaConfig, request: pytest.FixtureRequest, store: RunStore) -> str:
    """A whole table of one ratio, its rows judged by more items than its trials."""
    tiny_config.num_hidden_layers = 3
    tiny_config.intermediate_size = 256
    folder: Path = request.getfixturevalue("tiny_folder")
    data: DataSpec = request.getfixturevalue("tiny_data")
    run = store.create(RunSpec(model=ModelSpec(source=str(folder)), data=data))
    line = Line(store, run.run_id, pick_device("cpu"))
    line.reproduce_begin(SPEC)
    while line.reproduce_next("somebody"):
        pass
    return run.run_id


@pytest.fixture
def evaluate(table_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """The command on the table: words -> its document, or what it refuses."""

    def command(*words: str, expected: int = 0) -> Any:
        line = ["evaluate", table_id, f"--home={tmp_path / 'home'}", "--quiet", "--json", *words]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the harness and its imports warn of
            found = main(line)
        said = capsys.readouterr()
        assert found == expected, said.err
        return json.loads(said.out) if expected == 0 else said.err

    return command


def table_of(store: RunStore, run_id: str) -> Reproduction:
    found = store.read(run_id).reproduction
    assert found is not None
    return found


def harness_task(folder: Path, data: DataSpec) -> str:
    """Write the items of the rows as a task of the harness, and return its name."""
    from qpruner_core.data import read_tasks

    ((name, items),) = read_tasks(data.tasks, SPEC.items_per_task).items()
    folder.mkdir()
    lines = [
        {
            "context": item.context,
            "choices": [choice.removeprefix(" ") for choice in item.choices],
            "gold": item.gold,
        }
        for item in items
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stated = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "items.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (folder / "own.yaml").write_text(json.dumps(stated))
    return name


def test_a_row_measures_again_what_the_table_says_and_so_does_the_harness(
    evaluate: Evaluate, table_id: str, store: RunStore, tiny_data: DataSpec, tmp_path: Path
) -> None:
    table = table_of(store, table_id)
    name = harness_task(tmp_path / "yaml", tiny_data)
    by_harness = ("--harness=lm-eval", f"--tasks={name}", f"--include-path={tmp_path / 'yaml'}")
    assert "int8" in table.rows[2].plan.precisions.values()
    for row in (table.rows[0], table.rows[3]):
        after = row.recovery.after
        found = evaluate(f"--row={row.variant}", "--ratio=0.2")
        assert (found["row"], found["ratio"]) == (row.variant, 0.2)
        assert (found["row_run_id"], found["trial"]) == (row.run_id, row.trial)
        assert found["with_adapter"]
        assert found["metrics"]["loss"] == pytest.approx(after.loss, abs=1e-5)
        # In the script's setting, 16-bit weights that are held beside 8-bit ones count.
        assert found["metrics"]["weight_bytes"] == after.weight_bytes
        assert found["metrics"]["tasks"] == {name: after.tasks[name].accuracy}

        said = evaluate(f"--row={row.variant}", *by_harness)["harness"]["tasks"][name]
        assert said["n_items"] == after.tasks[name].n_items == 6
        assert said["acc"]["value"] == after.tasks[name].accuracy
        assert said["acc"]["standard_error"] == pytest.approx(after.tasks[name].standard_error)
        assert said["acc_norm"]["value"] == after.tasks[name].accuracy_normalized
    kept = store.read(table.runs["0.2"]).harness
    assert [outcome.row for outcome in kept] == ["LLM-Pruner (16 bit)", "QPruner-3"]
    assert store.read(table_id).harness == ()

    timed = evaluate("--row=qpruner-3", "--batch=1", "--context=8", "--decode=2")["speed"]
    assert timed["weight_bytes"] == table.rows[3].recovery.after.weight_bytes


def test_rows_that_are_not_there_are_said(
    evaluate: Evaluate, table_id: str, store: RunStore
) -> None:
    assert "Did you mean 'QPruner-2'" in evaluate("--row=QPruner2", expected=2)
    assert "0.2" in evaluate("--row=QPruner-3", "--ratio=0.3", expected=2)
    assert "--row" in evaluate("--ratio=0.2", expected=2)
    assert "Give one" in evaluate("--row=QPruner-3", "--trial=0", expected=2)
    record, table = store.read(table_id), table_of(store, table_id)
    store.write(replace(record, reproduction=replace(table, rows=table.rows[:3])))
    assert "not been measured yet" in evaluate("--row=QPruner-3", expected=2)
    child = store.read(table.runs["0.2"])
    assert child.prune is not None
    other = replace(child.prune, plan=replace(child.prune.plan, kept={}))
    store.write(replace(child, prune=other))
    assert "pruned anew" in evaluate("--row=QPruner-2", expected=2)
    store.write(replace(record, reproduction=None))
    assert "no table" in evaluate("--row=QPruner-3", expected=2)
