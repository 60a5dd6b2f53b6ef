"""What is timed, how often and on how many tokens; no claim on how long anything takes."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest
import torch
from test_suite import corpus_of

from qpruner_core.domain.speed import SpeedSpec
from qpruner_core.errors import BadInputError
from qpruner_core.evaluation import build_suite
from qpruner_core.evaluation.latency import measure_speed

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPEC = SpeedSpec(batch=3, context=8, n_decoded=4, n_repetitions=5)


@pytest.fixture
def passes(tiny_model: LlamaForCausalLM) -> list[tuple[int, ...]]:
    """The shapes of all token ids that enter the model."""
    seen: list[tuple[int, ...]] = []
    tiny_model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: seen.append(tuple(args[0].shape))
    )
    return seen


def test_every_repetition_reads_the_prompt_and_writes_token_by_token(
    tiny_model: LlamaForCausalLM, passes: list[tuple[int, ...]]
) -> None:
    measure_speed(tiny_model, torch.randint(4, 128, (3, 8)), SPEC)
    once = [(3, 8)] + [(3, 1)] * 4
    assert passes == once * (1 + SPEC.n_repetitions), "one repetition warms up"


def test_rates_are_tokens_over_the_median_and_the_quartiles_of_the_seconds(
    tiny_model: LlamaForCausalLM,
) -> None:
    # Reading takes 1, 2, 3, 4, 5 seconds and writing always 2; the clock is asked at both ends.
    lengths = [length for reading in (1, 2, 3, 4, 5) for length in (reading, 2)]
    ends = [
        moment
        for start, length in zip(count(0, 10), lengths)
        for moment in (start, start + length)
    ]
    clock = iter(ends)
    found = measure_speed(
        tiny_model, torch.ones(3, 8, dtype=torch.long), SPEC, lambda: next(clock)
    )
    assert next(clock, None) is None, "the warm-up is not timed"
    assert found.prefill.median == pytest.approx(3 * 8 / 3)
    assert (found.prefill.lower, found.prefill.upper) == pytest.approx((24 / 4, 24 / 2))
    assert found.decode.median == found.decode.lower == found.decode.upper == pytest.approx(12 / 2)
    assert (found.spec, found.peak_memory_bytes) == (SPEC, None)


def test_a_prompt_longer_than_the_text_repeats_it(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    passes: list[tuple[int, ...]],
) -> None:
    suite = build_suite(tiny_tokenizer, corpus_of(torch.randint(4, 128, (2, 16))))
    found = suite.speed(tiny_model, SpeedSpec(batch=2, context=50, n_decoded=1, n_repetitions=2))
    assert passes[0] == (2, 50)
    assert found.spec.context == 50
    passes.clear()
    assert suite.speed(tiny_model).spec == SpeedSpec(context=16)
    assert passes[0] == (1, 16)


@pytest.mark.parametrize("field", ["batch", "context", "n_decoded", "n_repetitions"])
def test_what_cannot_be_timed_is_refused_with_its_name(field: str) -> None:
    with pytest.raises(BadInputError, match=f"{field} 0"):
        SpeedSpec(**{field: 0})
