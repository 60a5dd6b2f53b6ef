import math

import pytest

from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.errors import NonFiniteLossError


def metrics(**changes: object) -> Metrics:
    values = {"loss": 2.0, "accuracy": 0.5, "weight_bytes": 100, "device": "cpu"} | changes
    return Metrics(**values)


def test_perplexity_is_the_exponential_of_the_loss():
    assert metrics().perplexity == pytest.approx(math.exp(2.0))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_refused_with_a_way_out(loss):
    with pytest.raises(NonFiniteLossError, match="higher precision"):
        metrics(loss=loss)


def test_an_accuracy_is_a_fraction():
    with pytest.raises(ValueError, match="fraction"):
        metrics(accuracy=50.0)


def test_the_standard_error_of_a_task_is_binomial():
    result = TaskResult(n_items=101, accuracy=0.5, accuracy_normalized=0.5)
    assert result.standard_error == pytest.approx(0.05)


def test_the_standard_error_of_the_mean_falls_with_more_tasks():
    one = TaskResult(n_items=101, accuracy=0.5, accuracy_normalized=0.5)
    assert metrics(tasks={"a": one, "b": one}).standard_error == pytest.approx(0.05 / math.sqrt(2))
    assert metrics().standard_error == 0.0


def test_acc_norm_has_a_mean_and_standard_errors_of_its_own():
    one = TaskResult(n_items=101, accuracy=0.5, accuracy_normalized=0.9)
    other = TaskResult(n_items=101, accuracy=0.5, accuracy_normalized=0.5)
    assert one.standard_error_normalized == pytest.approx(0.03)
    both = metrics(tasks={"a": one, "b": other})
    assert both.accuracy_normalized == pytest.approx(0.7)
    expected = math.sqrt(0.03**2 + 0.05**2) / 2
    assert both.standard_error_normalized == pytest.approx(expected)
    assert (metrics().accuracy_normalized, metrics().standard_error_normalized) == (0.0, 0.0)
