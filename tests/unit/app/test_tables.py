from __future__ import annotations

from dataclasses import replace

from app import tables, widgets_compare_plans, wording
from qpruner_core.domain.metrics import Metrics, TaskResult

BARE = Metrics(loss=2.0, accuracy=0.0, weight_bytes=1 << 20, device="cpu")
FULL = replace(
    BARE,
    accuracy=0.5,
    tasks={"quiz": TaskResult(n_items=10, accuracy=0.5, accuracy_normalized=0.5)},
    decode_tokens_per_second=61.0,
)


def test_rows_that_no_candidate_fills_are_left_out() -> None:
    rows = set(tables.compare({"A": BARE, "B": BARE}).index)
    assert rows == {"Loss, nats/token", "Perplexity", "Weights", "Device"}


def test_a_row_that_one_candidate_fills_is_kept() -> None:
    table = tables.compare({"A": BARE, "B": FULL})
    assert list(table.loc["Accuracy"]) == ["-", "50.0 ± 16.7 %"]
    assert list(table.loc["Writing"]) == ["-", "61 tokens/s"]
    assert list(table.loc["quiz"]) == ["-", "50.0 ± 16.7 %"]


def test_acc_norm_stands_beside_the_accuracy_of_every_task_and_of_all() -> None:
    one = TaskResult(n_items=101, accuracy=0.5, accuracy_normalized=0.8)
    two = TaskResult(n_items=101, accuracy=0.5, accuracy_normalized=0.2)
    table = tables.tasks(replace(BARE, accuracy=0.5, tasks={"one": one, "two": two}))
    assert list(table["acc_norm"]) == ["80.0 ± 4.0 %", "20.0 ± 4.0 %", "50.0 ± 2.8 %"]
    assert list(tables.tasks(BARE)["acc_norm"]) == ["-"]


def test_a_job_that_was_stopped_is_called_so() -> None:
    assert wording.job_status("cancelled") == "stopped"
    assert wording.job_status("failed") == "failed"


def test_the_difference_of_two_plans_names_the_other() -> None:
    words = widgets_compare_plans.difference_words("plan B", 84, 84)
    assert words == "All 84 Linears differ from plan B."
