"""Context and choice are cut as lm-evaluation-harness cuts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from test_suite import corpus_of, draw_items, naive_log_likelihood

from qpruner_core.data import Item
from qpruner_core.errors import BadInputError
from qpruner_core.evaluation import build_suite
from qpruner_core.evaluation.choices import PairEncoder
from qpruner_core.evaluation.tasks import rows_of

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Characters and the pairs 'ab' and ' a', so that a cut between texts may fall inside a
    token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = ("<s>", " ", "a", "b", "ab", " a", "c")
    vocabulary = {token: index for index, token in enumerate(names)}
    model = models.BPE(vocabulary, [("a", "b"), (" ", "a")])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), bos_token="<s>")


def encode(
    tokenizer: PreTrainedTokenizerFast, context: str, *choices: str
) -> tuple[object, object]:
    item = Item(id="0", context=context, choices=choices, gold=0)
    encoded = PairEncoder(tokenizer).item(item, "t")
    return encoded.contexts, encoded.continuations


def test_the_choice_is_what_the_whole_has_behind_the_context(
    merging_tokenizer: PreTrainedTokenizerFast,
) -> None:
    # Alone the context is [c, a]; with the choice the whole is [c, ab, c]: one token is left over.
    assert encode(merging_tokenizer, "ca", "bc") == (((6, 2),), ((6,),))


def test_spaces_at_the_end_of_the_context_count_to_the_choice(
    merging_tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert encode(merging_tokenizer, "cb ", "a") == (((6, 3),), ((5,),))
    assert encode(merging_tokenizer, "cb ", "a") == encode(merging_tokenizer, "cb", " a")


def test_an_empty_context_becomes_the_first_token(
    merging_tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert encode(merging_tokenizer, "", "cb", "ab") == (((0,), (0,)), ((6, 3), (4,)))


def test_an_empty_context_without_a_first_token_is_answered_with_a_sentence(
    merging_tokenizer: PreTrainedTokenizerFast,
) -> None:
    merging_tokenizer.bos_token = None
    with pytest.raises(BadInputError, match="Give the item a context"):
        encode(merging_tokenizer, "", "c")


def test_lengths_are_characters_of_the_choice_without_the_space_that_joins_it(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    item = Item(id="0", context="ba", choices=(" be", " bé", "  bi"), gold=0)
    encoded = PairEncoder(tiny_tokenizer).item(item, "t")
    assert encoded.n_characters == (2, 2, 3)


def test_a_choice_longer_than_the_model_reads_is_named(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = PairEncoder(tiny_tokenizer, max_length=3)
    item = Item(id="7", context="ba", choices=(" ca", " ca da bo bi"), gold=0)
    with pytest.raises(BadInputError, match=r"'7' of task 't'.*4 tokens.*reads 3"):
        encoder.item(item, "t")


def test_long_contexts_are_cut_from_the_left_for_every_choice_by_itself(
    tiny_tokenizer: PreTrainedTokenizerFast, tiny_model: LlamaForCausalLM
) -> None:
    items = draw_items(5, 8, 5)
    encoder = PairEncoder(tiny_tokenizer, max_length=12)
    encoded = [encoder.item(item, "t") for item in items]
    assert any(
        len(item.contexts[0]) < len(raw.context.split())
        for item, raw in zip(encoded, items, strict=True)
    )
    for item in encoded:
        for context, choice in zip(item.contexts, item.continuations, strict=True):
            assert len(context) + len(choice) - 1 <= 12
    assert len(rows_of(encoded)) > len(items), "contexts of different length get rows of their own"

    heldout = torch.randint(4, 128, (1, 16))
    suite = build_suite(
        tiny_tokenizer,
        corpus_of(heldout, t=items),
        max_length=12,
    )
    found = suite.log_likelihoods(tiny_model)["t"]
    for item, raw, values in zip(encoded, items, found, strict=True):
        for context, choice, value in zip(item.contexts, raw.choices, values, strict=True):
            text = tiny_tokenizer.decode(context)
            expected = naive_log_likelihood(tiny_model, tiny_tokenizer, text, choice)
            assert value == pytest.approx(expected, abs=1e-4)
