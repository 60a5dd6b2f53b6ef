"""What `evaluate` prints of accuracies: which of the two it is, and how sure."""

from __future__ import annotations

import pytest

from qpruner_core.cli.report import metrics_document
from qpruner_core.cli.report_evaluation import metrics_lines
from qpruner_core.domain.metrics import Metrics, TaskResult

QUIZ = TaskResult(n_items=101, accuracy=0.5, accuracy_normalized=0.9)
FOUND = Metrics(loss=1.0, accuracy=0.5, weight_bytes=8, device="cpu", tasks={"quiz": QUIZ})


def test_both_accuracies_are_named_with_their_standard_errors() -> None:
    lines = metrics_lines(FOUND)
    assert "  quiz: acc 50.0% ± 5.0%, acc_norm 90.0% ± 3.0% (101 items)" in lines
    assert "mean: acc 50.0% ± 5.0%, acc_norm 90.0% ± 3.0%" in lines


def test_the_document_has_acc_norm_beside_acc() -> None:
    document = metrics_document(FOUND)
    assert document["tasks"] == {"quiz": 0.5}
    assert document["tasks_acc_norm"] == {"quiz": 0.9}
    assert document["task_standard_errors_acc_norm"] == {"quiz": pytest.approx(0.03)}
    assert document["acc_norm"] == pytest.approx(0.9)
    assert document["standard_error_acc_norm"] == pytest.approx(0.03)
    assert (
        metrics_document(Metrics(loss=1.0, accuracy=0.0, weight_bytes=8, device="cpu"))["acc_norm"]
        is None
    )
