"""Losses sequence by sequence: the same forward, the same loss to the last bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from qpruner_core.evaluation import Asked, Suite, perplexity

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

N, LENGTH = 13, 24


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(4, 128, (N, LENGTH), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def suite(ids: torch.Tensor) -> Suite:
    return Suite(ids, {})


@torch.no_grad()
def summed_as_it_goes(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """The loss with one running sum over all sequences."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in torch.split(ids, perplexity.TOKENS_PER_BATCH // LENGTH):
        hidden = model.model(input_ids=batch, use_cache=False).last_hidden_state
        for states, targets in zip(hidden, batch, strict=True):
            logits = model.lm_head(states[:-1])
            total += functional.cross_entropy(logits, targets[1:], reduction="sum").double()
    return float(total) / (N * (LENGTH - 1))


def test_the_loss_is_the_running_sum_to_the_last_bit(
    suite: Suite,
    ids: torch.Tensor,
    tiny_model: LlamaForCausalLM,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(perplexity, "TOKENS_PER_BATCH", 5 * LENGTH)
    expected = summed_as_it_goes(tiny_model, ids)
    assert suite.loss(tiny_model) == expected
    found = suite.evaluate(tiny_model, weight_bytes=1, device_name="cpu")
    assert found.loss == expected


def test_parts_of_the_text_are_those_of_the_whole(
    suite: Suite, tiny_model: LlamaForCausalLM
) -> None:
    whole = suite.sequence_losses(tiny_model)
    assert len(whole) == suite.n_sequences == N
    assert sum(whole) / N == pytest.approx(suite.loss(tiny_model), abs=1e-9)
    parts = suite.sequence_losses(tiny_model, 0, 4) + suite.sequence_losses(tiny_model, 4)
    assert parts == pytest.approx(whole, abs=1e-5)


def test_what_was_read_before_is_not_read_again(
    suite: Suite, tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = suite.measure(tiny_model, Asked(weight_bytes=1, device_name="cpu"))
    known = whole.sequence_losses[:10]
    read: list[int] = []
    sums = perplexity.text_sums

    def counted(model: LlamaForCausalLM, ids: torch.Tensor) -> list[float]:
        read.append(len(ids))
        return sums(model, ids)

    monkeypatch.setattr("qpruner_core.evaluation.suite.text_sums", counted)
    asked = Asked(weight_bytes=1, device_name="cpu", losses=known, seconds=5.0)
    again = suite.measure(tiny_model, asked)
    assert read == [N - 10]
    assert again.sequence_losses == pytest.approx(whole.sequence_losses, abs=1e-5)
    assert again.sequence_losses[:10] == known
    assert again.metrics.loss == pytest.approx(whole.metrics.loss, abs=1e-6)
    assert again.metrics.seconds > 5.0
    everything = Asked(weight_bytes=1, device_name="cpu", losses=whole.sequence_losses)
    assert suite.measure(tiny_model, everything).sequence_losses == whole.sequence_losses
    assert read == [N - 10]
