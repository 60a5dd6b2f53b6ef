from __future__ import annotations

import pandas as pd

from app import tables_recovery
from qpruner_core.domain.metrics import Metrics, TaskResult


def metrics(**tasks: float) -> Metrics:
    results = {
        name: TaskResult(n_items=101, accuracy=share, accuracy_normalized=share)
        for name, share in tasks.items()
    }
    mean = sum(tasks.values()) / len(tasks) if tasks else 0.0
    return Metrics(loss=1.0, accuracy=mean, weight_bytes=10, device="cpu", tasks=results)


def test_ranks_come_back_as_they_were_given():
    ranks = {"0": 0, "3": 16}
    assert tables_recovery.to_ranks(tables_recovery.from_ranks(ranks, 4)) == ranks


def test_a_layer_without_a_rank_of_its_own_is_empty():
    table = tables_recovery.from_ranks({"1": 4}, 3)
    assert list(table[tables_recovery.RANK].isna()) == [True, False, True]


def test_ranks_that_an_editor_returns_as_fractions_are_whole():
    table = pd.DataFrame({tables_recovery.RANK: [8.0, None]})
    assert tables_recovery.to_ranks(table) == {"0": 8}


def test_a_task_has_both_accuracies_with_their_errors_and_the_change():
    found = tables_recovery.before_after(metrics(easy=0.5, hard=0.2), metrics(easy=0.6, hard=0.2))
    assert list(found.loc["easy"]) == ["50.0 ± 5.0 %", "60.0 ± 4.9 %", "+10.0 points"]
    assert list(found.index[-3:]) == ["Accuracy, mean", "easy", "hard"]


def test_the_dense_model_stands_first_where_it_is_known():
    found = tables_recovery.before_after(metrics(easy=0.5), metrics(easy=0.6), metrics())
    assert list(found.columns) == ["Dense", "Before", "After", "Change"]
    assert found.loc["easy", "Dense"] == found.loc["Accuracy, mean", "Dense"] == "-"


def test_a_task_that_was_not_answered_before_has_no_change():
    found = tables_recovery.before_after(metrics(easy=0.5), metrics(easy=0.6, hard=0.4))
    assert list(found.loc["hard"]) == ["-", "40.0 ± 4.9 %", "-"]


def test_without_tasks_the_loss_and_the_weights_remain():
    found = tables_recovery.before_after(metrics(), metrics())
    assert list(found.index) == ["Loss, nats/token", "Perplexity", "Weights"]
