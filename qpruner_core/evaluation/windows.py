"""Perplexity of one long text, in the windows that the field reads it in.

``blocks``
    Windows of equal length without overlap; what is left at the end is dropped, and the first
    token of a window has nothing before it and is not predicted. This is what papers on
    quantisation print for WikiText-2 (from GPTQ on, arXiv:2210.17323; length 2048).
``stride``
    Windows that begin every ``stride`` tokens; a token counts once, in the first window that holds
    it, behind all tokens before it there. As in the guide "Perplexity of fixed-length models" of
    transformers, but summed exactly, where the guide weighs each window by one token less.
``rolling``
    Every token counts, the first one behind the tokenizer's first token; all windows but the first
    begin with the last token of the one before. This is lm-evaluation-harness's
    ``loglikelihood_rolling``, from which it takes perplexity per word and per byte.

In all three the text is tokenised once and whole, with the special tokens that the tokenizer adds
to a text of its own accord: where that is a first token (BOS), it stands at the beginning of the
text and of no later window.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional

from qpruner_core.domain.progress import Progress
from qpruner_core.domain.text_result import TextResult, WindowSpec
from qpruner_core.errors import DataTooShortError
from qpruner_core.models.trunk import head_logits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qpruner_core.domain.progress import OnProgress

TOKENS_PER_BATCH = 2048
"""Tokens of one forward pass; one window at least."""
LOGITS_AT_ONCE = 2**24
"""Entries of the logits held at a time."""


@dataclass(frozen=True, slots=True)
class Window:
    """One forward pass."""

    tokens: tuple[int, ...]
    """What the model reads, and the last token, which it only predicts."""
    n_scored: int
    """How many tokens at the end count; below the number of tokens."""


def windows_of(tokens: Sequence[int], spec: WindowSpec, first: int | None) -> Iterator[Window]:
    """Yield the windows of a text.

    Args:
        tokens: The whole text, at least two tokens.
        spec: How it is cut.
        first: The token before the text, of ``rolling`` windows.
    """
    length, n_tokens = spec.length, len(tokens)
    if spec.kind == "blocks":
        length = min(length, n_tokens)
        for start in range(0, n_tokens - length + 1, length):
            yield Window(tuple(tokens[start : start + length]), length - 1)
    elif spec.kind == "stride":
        done = 1  # the first token has nothing before it
        for start in range(0, n_tokens, spec.stride or length):
            stop = min(start + length, n_tokens)
            # A stride of the whole length leaves the first token of every window unpredicted.
            n_scored = min(stop - done, stop - start - 1)
            if n_scored > 0:
                yield Window(tuple(tokens[start:stop]), n_scored)
            done = stop
            if stop == n_tokens:
                return
    else:
        before = () if first is None else (first,)
        text = (*before, *tokens)
        for start in range(0, len(text) - 1, length):
            stop = min(start + length, len(text) - 1)
            # What is read is filled up from before, as far as the length allows.
            begin = max(0, stop - length)
            yield Window(text[begin : stop + 1], stop - start)


def measure_text(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    spec: WindowSpec,
    on_progress: OnProgress,
) -> TextResult:
    """Return the perplexity of a text.

    Args:
        model: A causal language model; it is put into evaluation mode and back.
        tokenizer: Its own.
        text: All of it, as one.
        spec: How it is cut into windows.
        on_progress: Told after every batch.

    Raises:
        DataTooShortError: The text has fewer than two tokens.
        NonFiniteLossError: The loss is not a number.
    """
    tokens = tokenizer(text, verbose=False)["input_ids"]
    if len(tokens) < 2:
        raise DataTooShortError(
            f"The text has {len(tokens)} tokens; at least 2 are needed to predict one. Give a "
            f"longer text."
        )
    first = tokenizer.bos_token_id
    first = tokenizer.eos_token_id if first is None else first
    windows = list(windows_of(tokens, spec, first))
    was_training = model.training
    model.eval()
    try:
        total, squares = _sums(model, windows, on_progress)
    finally:
        model.train(was_training)
    return TextResult(
        spec=spec,
        n_tokens=len(tokens),
        n_predicted=sum(window.n_scored for window in windows),
        n_windows=len(windows),
        n_words=len(re.split(r"\s+", text)),
        n_bytes=len(text.encode()),
        nats=total,
        squares=squares,
    )


@torch.no_grad()
def _sums(
    model: nn.Module, windows: Sequence[Window], on_progress: OnProgress
) -> tuple[float, float]:
    """Return the summed negative log-likelihood, and the sum of its squares per token."""
    total = squares = 0.0
    done = n_scored = 0
    left = iter(windows)
    longest = max(len(window.tokens) for window in windows)
    while batch := list(islice(left, max(1, TOKENS_PER_BATCH // longest))):
        for values in _batch_losses(model, batch):
            total += float(values.sum())
            squares += float(values.square().sum())
            n_scored += len(values)
        done += len(batch)
        told = {"loss": total / n_scored}
        on_progress(Progress(step="evaluate", done=done, total=len(windows), values=told))
    return total, squares


def _batch_losses(model: nn.Module, batch: Sequence[Window]) -> Iterator[torch.Tensor]:
    """Yield the negative log-likelihoods of every window's scored tokens, float64 on the CPU."""
    device = next(model.parameters()).device
    whole = cast("Any", model)
    width = max(len(window.tokens) - 1 for window in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    for row, window in zip(ids, batch, strict=True):
        # Padding stands on the right, where nothing sees it.
        row[: len(window.tokens) - 1] = torch.tensor(window.tokens[:-1])
    decoder = whole.get_decoder()
    hidden = decoder(input_ids=ids.to(device), use_cache=False).last_hidden_state
    for states, window in zip(hidden, batch, strict=True):
        stop = len(window.tokens) - 1
        targets = torch.tensor(window.tokens[1:], device=device)
        yield _losses(model, states[stop - window.n_scored : stop], targets[-window.n_scored :])


def _losses(model: nn.Module, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of every target, ``(n,)``, float64 on the CPU."""
    step = max(1, LOGITS_AT_ONCE // int(cast("Any", model).config.vocab_size))
    found = []
    for start in range(0, len(states), step):
        logits = head_logits(model, states[start : start + step])
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        wanted = targets[start : start + step]
        found.append(functional.cross_entropy(wide, wanted, reduction="none").double().cpu())
    return torch.cat(found)
