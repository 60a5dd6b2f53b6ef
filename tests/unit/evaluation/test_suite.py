"""Loss and log-likelihoods equal a naive reference, item by item."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from qpruner_core.data import Corpus, Item
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.paired import paired
from qpruner_core.errors import BadInputError, DataTooShortError, NonFiniteLossError
from qpruner_core.evaluation import Suite, build_suite, tasks
from qpruner_core.evaluation.choices import PairEncoder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = tuple(c + v for v in "aeiouy" for c in "bcdfghjklmnpqrstvwxyz")[:124]


def corpus_of(heldout: torch.Tensor, **tasks: tuple[Item, ...]) -> Corpus:
    """Return a corpus of held-out text and tasks; the other texts stay empty."""
    unused = torch.zeros(0, 8, dtype=torch.long)
    return Corpus(calibration=unused, heldout=heldout, tasks=tasks)


def draw_items(seed: int, n_items: int, longest: int) -> tuple[Item, ...]:
    """Return items of two to four choices of 1 to ``longest`` words behind 1 to 20 words."""
    rng = np.random.default_rng(seed)

    def text(n_words: int) -> str:
        return " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=n_words))

    items = []
    for index in range(n_items):
        n_choices = int(rng.integers(2, 5))
        items.append(
            Item(
                id=f"{seed}-{index}",
                context=text(int(rng.integers(1, 21))),
                choices=tuple(
                    " " + text(int(rng.integers(1, longest + 1))) for _ in range(n_choices)
                ),
                gold=int(rng.integers(n_choices)),
            )
        )
    return tuple(items)


@pytest.fixture
def corpus() -> Corpus:
    ids = torch.randint(4, 128, (7, 32), generator=torch.Generator().manual_seed(1))
    return corpus_of(ids, words=draw_items(0, 12, 1), phrases=draw_items(1, 15, 6), none=())


@pytest.fixture
def suite(tiny_tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> Suite:
    return build_suite(tiny_tokenizer, corpus)


def naive_log_likelihood(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, context: str, choice: str
) -> float:
    """Return one choice's log-likelihood from one whole forward pass."""
    before, whole = tokenizer.encode(context), tokenizer.encode(context + choice)
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(
        float(logits[place - 1, token])
        for place, token in enumerate(whole)
        if place >= len(before)
    )


def test_the_loss_equals_that_of_transformers(
    suite: Suite, tiny_model: LlamaForCausalLM, corpus: Corpus
) -> None:
    with torch.no_grad():
        expected = tiny_model(input_ids=corpus.heldout, labels=corpus.heldout).loss
    assert suite.loss(tiny_model) == pytest.approx(float(expected), abs=1e-5)


def test_the_loss_does_not_depend_on_the_batches(
    suite: Suite, tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qpruner_core.evaluation import perplexity

    whole = suite.loss(tiny_model)
    monkeypatch.setattr(perplexity, "TOKENS_PER_BATCH", 70)
    assert suite.loss(tiny_model) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens_per_batch", [1, 100, 2048])
def test_log_likelihoods_equal_one_forward_pass_per_choice(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    attention: str,
    tokens_per_batch: int,
) -> None:
    monkeypatch.setattr(tasks, "TOKENS_PER_BATCH", tokens_per_batch)
    monkeypatch.setattr(tasks, "LOGITS_AT_ONCE", 128 * 9)
    tiny_model.set_attn_implementation(attention)
    suite = build_suite(tiny_tokenizer, corpus)
    found = suite.log_likelihoods(tiny_model)
    for task in ("words", "phrases"):
        for item, values in zip(corpus.tasks[task], found[task], strict=True):
            expected = [
                naive_log_likelihood(tiny_model, tiny_tokenizer, item.context, choice)
                for choice in item.choices
            ]
            assert values == pytest.approx(expected, abs=1e-4)


def test_answers_are_tied_to_the_encoded_items_they_answer(
    tiny_tokenizer: PreTrainedTokenizerFast, tiny_model: LlamaForCausalLM, corpus: Corpus
) -> None:
    def answered(items: tuple[Item, ...]) -> Metrics:
        suite = build_suite(tiny_tokenizer, replace(corpus, tasks={"words": items}))
        return suite.evaluate(tiny_model, weight_bytes=7, device_name="cpu")

    items = corpus.tasks["words"]
    flipped = tuple(replace(item, gold=(item.gold + 1) % len(item.choices)) for item in items)
    other_context = (replace(items[0], context="ba be"), *items[1:])
    other_choice = (replace(items[0], choices=(" ba", " be"), gold=0), *items[1:])
    first, again = answered(items), answered(items)
    assert len(first.tasks["words"].items) >= 8
    assert paired(first, again) is not None
    for others in (flipped, other_context, other_choice, items[::-1]):
        assert paired(first, answered(others)) is None


def test_accuracies_follow_from_the_log_likelihoods_item_by_item(
    suite: Suite, tiny_model: LlamaForCausalLM, corpus: Corpus
) -> None:
    sums = suite.log_likelihoods(tiny_model)
    metrics = suite.evaluate(tiny_model, weight_bytes=7, device_name="cpu")
    assert list(metrics.tasks) == ["words", "phrases"]
    for task, result in metrics.tasks.items():
        items = corpus.tasks[task]
        summed = [
            int(np.argmax(s)) == item.gold for s, item in zip(sums[task], items, strict=True)
        ]
        weighed = [
            int(np.argmax(np.array(s) / [len(c.strip()) for c in item.choices])) == item.gold
            for s, item in zip(sums[task], items, strict=True)
        ]
        assert result.correct == tuple(summed)
        assert result.n_items == len(items)
        assert result.accuracy == pytest.approx(np.mean(summed))
        assert result.accuracy_normalized == pytest.approx(np.mean(weighed))
    expected = np.mean([result.accuracy for result in metrics.tasks.values()])
    assert metrics.accuracy == pytest.approx(expected)
    assert metrics.loss == suite.loss(tiny_model)
    assert (metrics.weight_bytes, metrics.device) == (7, "cpu")
    assert metrics.peak_memory_bytes is None
    assert metrics.prefill_tokens_per_second is None
    assert metrics.seconds > 0


def test_evaluating_twice_gives_the_same_numbers(
    suite: Suite, tiny_model: LlamaForCausalLM
) -> None:
    first, second = (
        suite.evaluate(tiny_model, weight_bytes=0, device_name="cpu") for _ in range(2)
    )
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)


def test_a_model_in_training_is_evaluated_without_dropout_and_goes_on_training(
    suite: Suite, tiny_model: LlamaForCausalLM
) -> None:
    expected = suite.loss(tiny_model)
    tiny_model.config.attention_dropout = 0.5
    for layer in tiny_model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    tiny_model.train()
    assert suite.loss(tiny_model) == expected
    assert tiny_model.training


def test_speed_is_timed_when_asked_for(suite: Suite, tiny_model: LlamaForCausalLM) -> None:
    metrics = suite.evaluate(tiny_model, weight_bytes=0, device_name="cpu", speed=True)
    assert metrics.prefill_tokens_per_second is not None
    assert metrics.decode_tokens_per_second is not None
    assert metrics.prefill_tokens_per_second > metrics.decode_tokens_per_second > 1


def test_shared_contexts_pass_through_the_model_once(
    tiny_tokenizer: PreTrainedTokenizerFast, tiny_model: LlamaForCausalLM, corpus: Corpus
) -> None:
    items = draw_items(3, 10, 1)
    one_word = replace(corpus, heldout=corpus.heldout[:1], tasks={"words": items})
    suite = build_suite(tiny_tokenizer, one_word)
    longest = max(len(item.context.split()) for item in items)
    passed: list[int] = []
    tiny_model.get_input_embeddings().register_forward_pre_hook(
        lambda _, ids: passed.append(ids[0].numel())
    )
    suite.task_results(tiny_model)
    assert 0 < sum(passed) <= len(items) * longest


def test_without_tasks_there_is_no_accuracy(
    tiny_tokenizer: PreTrainedTokenizerFast, tiny_model: LlamaForCausalLM, corpus: Corpus
) -> None:
    suite = build_suite(tiny_tokenizer, replace(corpus, tasks={}))
    metrics = suite.evaluate(tiny_model, weight_bytes=0, device_name="cpu")
    assert (metrics.accuracy, metrics.tasks) == (0.0, {})


def test_a_loss_that_is_not_a_number_is_answered_with_a_sentence(
    suite: Suite, tiny_model: LlamaForCausalLM
) -> None:
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="finite number"):
        suite.evaluate(tiny_model, weight_bytes=0, device_name="cpu")


def test_no_held_out_text_is_answered_with_a_sentence(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    empty = corpus_of(torch.zeros(0, 32, dtype=torch.long))
    with pytest.raises(DataTooShortError, match="one sequence of 2 tokens"):
        build_suite(tiny_tokenizer, empty)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": (" ba", " ")}, "no token of its own"),
        ({"gold": 2}, "names choice 2 as right, but has 2"),
        ({"gold": -1}, "index from 0 to 1"),
    ],
)
def test_items_that_cannot_be_scored_are_named(
    tiny_tokenizer: PreTrainedTokenizerFast, change: dict[str, object], message: str
) -> None:
    item = replace(Item(id="i7", context="ba be", choices=(" ba", " be"), gold=0), **change)
    with pytest.raises(BadInputError, match=message) as refused:
        PairEncoder(tiny_tokenizer).item(item, "words")
    assert "'i7' of task 'words'" in str(refused.value)


def test_rows_are_numbered_whatever_their_order() -> None:
    rows = [tasks.Row(context=(1,) * n, choices=((i, (2, 3)),)) for i, n in enumerate((5, 2, 9))]
    order = list(range(3))
    random.Random(0).shuffle(order)
    numbers = {
        int(pick[2])
        for batch in tasks.batches_of([rows[i] for i in order])
        for pick in batch.picks
    }
    assert numbers == {0, 1, 2}
