"""Multiple-choice items as token ids, cut between context and choice as lm-evaluation-harness
0.4.13 does.

The choice's tokens are those of ``context + choice`` behind as many tokens as the context alone
has; spaces at the end of the context count to the choice; an empty context becomes the
tokenizer's first token. What normalises a log-likelihood is the choice's number of characters, as
for the harness's ``acc_norm``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qpruner_core.errors import BadInputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qpruner_core.data import Item

NO_LIMIT = 10**9
"""Tokenizers without a limit say a number far above this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedItem:
    """One item as token ids."""

    contexts: tuple[tuple[int, ...], ...]
    """Context of every choice, at least one token; equal unless a limit cut them."""
    continuations: tuple[tuple[int, ...], ...]
    """Tokens of every choice, at least one."""
    n_characters: tuple[int, ...]
    """Characters of every choice's text, without the space that joins it to the context; those of
    the context where each choice has its own. >= 1."""
    gold: int
    """Index of the right choice."""


def items_hash(items: Sequence[EncodedItem]) -> str:
    """Return a short hash of all that answers depend on: tokens of contexts and choices, and which
    choice is right; 12 hexadecimal digits.
    """
    read = [(item.contexts, item.continuations, item.gold) for item in items]
    return hashlib.sha256(json.dumps(read).encode()).hexdigest()[:12]


class PairEncoder:
    """Encodes (context, choice) pairs with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> None:
        """Take a tokenizer; max_length: longest input, None for what the tokenizer states."""
        self._tokenizer = tokenizer
        stated = int(min(tokenizer.model_max_length, NO_LIMIT))
        self._max_length = stated if max_length is None else max_length
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._first: int | None = bos if bos is not None else eos
        self._first_text = "" if self._first is None else str(tokenizer.decode([self._first]))

    def item(self, item: Item, task: str) -> EncodedItem:
        """Return the item as token ids, cut from the left to the limit, choice by choice.

        Raises:
            BadInputError: A choice has no text or no tokens or is longer than the limit, the gold
                index names no choice, or the context is empty and the tokenizer has no first
                token.
        """
        if not 0 <= item.gold < len(item.choices):
            raise BadInputError(
                f"Item {item.id!r} of task {task!r} names choice {item.gold} as right, but has "
                f"{len(item.choices)} choices. Give an index from 0 to {len(item.choices) - 1}."
            )
        texts = tuple(zip(item.all_contexts, item.choices, strict=True))
        pairs = [self._pair(item, task, *text) for text in texts]
        longest = max(len(choice) for _, choice in pairs)
        if longest > self._max_length:
            raise BadInputError(
                f"Item {item.id!r} of task {task!r} has a choice of {longest} tokens, but the "
                f"model reads {self._max_length} at most. Shorten or remove the item."
            )
        return EncodedItem(
            contexts=tuple(self._cut(context, choice) for context, choice in pairs),
            continuations=tuple(choice for _, choice in pairs),
            n_characters=tuple(
                len(context) if item.contexts else len(choice.removeprefix(" "))
                for context, choice in texts
            ),
            gold=item.gold,
        )

    def _pair(
        self, item: Item, task: str, text: str, choice: str
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        context, continuation = self._split(text, choice)
        if not continuation or not choice.strip():
            raise BadInputError(
                f"Item {item.id!r} of task {task!r} has the choice {choice!r}, which holds no "
                f"token of its own. Every choice needs text; correct or remove the item."
            )
        if not context:
            raise BadInputError(
                f"Item {item.id!r} of task {task!r} has no context, and the tokenizer has neither "
                f"a first nor a last token to stand in. Give the item a context."
            )
        return context, continuation

    def _split(self, context: str, choice: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if context == "":
            tokens = self._encode(choice, special=False)
            if tokens[:1] == (self._first,):
                return tokens[:1], tokens[1:]
            return () if self._first is None else (self._first,), tokens
        bare = context.rstrip()
        whole, before = self._encode(context + choice), self._encode(bare)
        return before, whole[len(before) :]

    def _encode(self, text: str, special: bool = True) -> tuple[int, ...]:
        # A text that already begins with the first token does not get it twice.
        doubled = bool(self._first_text) and text.startswith(self._first_text)
        return tuple(self._tokenizer.encode(text, add_special_tokens=special and not doubled))

    def _cut(self, context: tuple[int, ...], choice: tuple[int, ...]) -> tuple[int, ...]:
        """Return the context's last tokens, so that all but the choice's last token fit the
        limit.
        """
        room = self._max_length + 1 - len(choice)
        return context[-room:]
