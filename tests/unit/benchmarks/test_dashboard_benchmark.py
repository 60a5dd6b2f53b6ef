"""The benchmark of the pages measures a home that the pages read, and holds the right numbers to
their bounds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qpruner_core.search.reading import TrialReader
from qpruner_core.store.records import RunStore

FOLDER = Path(__file__).parents[3] / "benchmarks"
N_TRIALS = 60


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("dashboard")
    sys.path.remove(str(FOLDER))


@pytest.mark.parametrize(("card", "tie"), [("demo_card", "layer"), ("deep_card", "linear")])
def test_the_study_and_the_record_tell_the_same_trials_all_different(
    benchmark, tmp_path, card, tie
):
    made = benchmark.make_home(tmp_path, N_TRIALS, getattr(benchmark, card)(), tie)
    store = RunStore(tmp_path)
    record = store.read(made.run_id)
    assert record == made
    assert TrialReader(store.study_url(), record.study_name).read() == record.search.trials
    assert len({trial.plan.key for trial in record.search.trials}) == N_TRIALS
    assert record.search.study_name == record.study_name


@pytest.mark.parametrize("page", ["results", "search", "runs"])
def test_every_step_changes_its_page(benchmark, tmp_path, page):
    record = benchmark.make_home(tmp_path, N_TRIALS, benchmark.demo_card(), "layer")
    with benchmark._home(tmp_path):
        timed = benchmark._reruns(page, record, benchmark.STEPS[page][1], 1)
    assert len(timed) == 1
    assert timed[0].seconds > 0


def test_a_step_that_changes_nothing_is_refused(benchmark, tmp_path):
    record = benchmark.make_home(tmp_path, N_TRIALS, benchmark.demo_card(), "layer")
    with benchmark._home(tmp_path), pytest.raises(RuntimeError, match="nothing on it changed"):
        benchmark._reruns("runs", record, lambda at, number: None, 1)


def test_steps_and_memory_are_held_to_bounds_and_first_pages_are_not(benchmark):
    one = benchmark.Timed(seconds=0.2, cpu_seconds=0.1)
    rows = [
        benchmark._row("Chromium", "Results: first page", [one]),
        benchmark._row("Chromium", "Results: another plan A", [one, one]),
        benchmark._row("AppTest", "Search: budget moved, 12 layers, tied by layer", [one]),
        {**benchmark._row("Chromium", "Server: memory, peak", []), "MB": 300.0},
        benchmark._row("Chromium", "left out: no chromium on this machine", []),
    ]
    found = benchmark._targets(rows)
    assert [(target.target, target.is_met) for target in found] == [
        (0.5, True),
        (0.1, False),
        (400.0, True),
    ]


def test_without_a_browser_its_rows_say_so(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    record = benchmark.make_home(tmp_path, N_TRIALS, benchmark.demo_card(), "layer")
    (row,) = benchmark._browser_rows(tmp_path, record, 1)
    assert "chromium" in row["what"]
    assert row["seconds"] is None
