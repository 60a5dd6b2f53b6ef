"""Log-likelihoods of choices, every context computed once.

The choices of an item follow its context in one row and do not see each other, their positions
starting again after the context:

    row        c0 c1 c2 | a0 a1 | b0 b1 b2          (the last token of a choice is never an input)
    position    0  1  2 |  3  4 |  3  4  5
    sees       context, and its own choice up to itself

which equals a row per choice and costs a fraction of it. Rows without branches (choices of one
token) use the plain causal mask. Rows are padded on the right, where nothing sees the padding,
and sorted by length so that there is little.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from qpruner_core.domain.metrics import TaskResult
from qpruner_core.evaluation.choices import EncodedItem
from qpruner_core.models.trunk import head_logits

TOKENS_PER_BATCH = 2048
"""Tokens of one forward pass, padding included; one row at least."""
LOGITS_AT_ONCE = 2**22
"""Entries of the logits held at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One context with the choices that follow it."""

    context: tuple[int, ...]
    """Tokens, at least one."""
    choices: tuple[tuple[int, tuple[int, ...]], ...]
    """(Number of the choice in the whole suite, its tokens). Equal tokens are read once, so that
    equal choices tie exactly."""

    def __len__(self) -> int:
        read = {tokens for _, tokens in self.choices}
        return len(self.context) + sum(len(tokens) - 1 for tokens in read)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of similar length as tensors."""

    ids: torch.Tensor
    """Token ids, ``(B, T)``."""
    positions: torch.Tensor
    """Position of every token in its own text, ``(B, T)``."""
    branches: torch.Tensor
    """0 for context and padding, 1 and up for the choices of the row, ``(B, T)``."""
    sources: torch.Tensor
    """Places in ``B * T`` whose states predict a token of a choice, each once, ``(S,)``."""
    picks: torch.Tensor
    """For every predicted token its place in ``sources``, the token and its choice, ``(P, 3)``."""


def rows_of(items: Sequence[EncodedItem]) -> list[Row]:
    """Return one row per item, or one per context where choices have their own or a limit cut
    them differently.
    """
    rows = []
    number = 0
    for item in items:
        sharing: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
        for pair in enumerate(item.continuations, number):
            sharing.setdefault(item.contexts[pair[0] - number], []).append(pair)
        rows += [Row(context=context, choices=tuple(pairs)) for context, pairs in sharing.items()]
        number += len(item.continuations)
    return rows


def batches_of(rows: Sequence[Row]) -> list[Batch]:
    """Return the rows as batches of similar length; plain rows and branched ones apart."""
    batches = []
    for branched in (False, True):
        chosen = [row for row in rows if (len(row) > len(row.context)) == branched]
        batches += [_collate(part) for part in _parts(sorted(chosen, key=len))]
    return batches


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Cut ascending rows so that each part padded to its longest holds the tokens of one batch."""
    start = 0
    for stop in range(1, len(rows) + 1):
        full = stop == len(rows) or (stop + 1 - start) * len(rows[stop]) > TOKENS_PER_BATCH
        if full:
            yield rows[start:stop]
            start = stop


def _collate(rows: Sequence[Row]) -> Batch:
    width = max(len(row) for row in rows)
    ids, positions, branches = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    sources: dict[int, int] = {}
    picks: list[tuple[int, int, int]] = []
    for index, row in enumerate(rows):
        read: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        tokens, places, numbers = (
            list(row.context),
            list(range(len(row.context))),
            [0] * len(row.context),
        )
        for branch, (choice, continuation) in enumerate(row.choices, start=1):
            if continuation in read:
                picks += [(place, token, choice) for place, token, _ in read[continuation]]
                continue
            source = len(row.context) - 1
            mine = read[continuation] = []
            for depth, token in enumerate(continuation):
                place = sources.setdefault(index * width + source, len(sources))
                mine.append((place, token, choice))
                source = len(tokens) + depth
            picks += mine
            tokens += continuation[:-1]
            places += range(len(row.context), len(row.context) + len(continuation) - 1)
            numbers += [branch] * (len(continuation) - 1)
        ids[index, : len(tokens)] = torch.tensor(tokens)
        positions[index, : len(tokens)] = torch.tensor(places)
        branches[index, : len(tokens)] = torch.tensor(numbers)
    return Batch(ids, positions, branches, torch.tensor(list(sources)), torch.tensor(picks))


@torch.no_grad()
def choice_log_likelihoods(
    model: nn.Module, batches: Sequence[Batch], n_choices: int
) -> torch.Tensor:
    """Return the summed log-likelihood of every choice, ``(n_choices,)`` float64 on the CPU,
    nats.
    """
    sums = torch.zeros(n_choices, dtype=torch.float64)
    device = next(model.parameters()).device
    whole = cast("Any", model)
    for batch in batches:
        hidden = whole.get_decoder()(
            input_ids=batch.ids.to(device), use_cache=False, **_visibility(batch, model, device)
        ).last_hidden_state
        states = hidden.flatten(0, 1)[batch.sources.to(device)]
        sums.index_add_(0, batch.picks[:, 2], _picked(model, states, batch.picks))
    return sums


def _visibility(batch: Batch, model: nn.Module, device: torch.device) -> dict[str, Any]:
    """Return the masks ``(B, 1, T, T)`` and positions of branched rows; nothing for plain ones.

    A mask that is handed to a model takes the place of its own, so sliding windows are drawn in
    here, by the positions that tokens have in their own text.
    """
    if not bool(batch.branches.any()):
        return {}
    branches, positions = batch.branches.to(device), batch.positions.to(device)
    keys, queries = branches[:, None, :], branches[:, :, None]
    width = branches.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    seen = causal & ((keys == 0) | (keys == queries))
    config = cast("Any", model).config
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    masks: Any = _added(seen, dtype)
    if window is not None and (not kinds or "sliding_attention" in kinds):
        near = positions[:, :, None] - positions[:, None, :] < window
        sliding = _added(seen & near, dtype)
        masks = {"full_attention": masks, "sliding_attention": sliding} if kinds else sliding
    return {"attention_mask": masks, "position_ids": positions}


def _added(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to attention logits, ``(B, 1, T, T)``, for what may be seen."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _picked(model: nn.Module, states: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of every predicted token, ``(P,)`` float64 on the CPU."""
    found = torch.zeros(len(picks), dtype=torch.float64)
    step = max(1, LOGITS_AT_ONCE // int(cast("Any", model).config.vocab_size))
    for start in range(0, len(states), step):
        logits = head_logits(model, states[start : start + step])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        normaliser = logits.logsumexp(dim=-1)
        here = (picks[:, 0] >= start) & (picks[:, 0] < start + step)
        rows, tokens = (picks[here, column].to(states.device) for column in (0, 1))
        values = logits[rows - start, tokens] - normaliser[rows - start]
        found[here] = values.double().cpu()
    return found


def results(
    items: Mapping[str, Sequence[EncodedItem]],
    log_likelihoods: torch.Tensor,
    hashes: Mapping[str, str],
) -> dict[str, TaskResult]:
    """Return the accuracy of every task, ``acc`` and ``acc_norm`` of lm-evaluation-harness.

    Args:
        items: Task name -> its items, in the order the choices were numbered.
        log_likelihoods: Summed log-likelihood of every choice, ``(n_choices,)``.
        hashes: Task name -> `items_hash` of its items.
    """
    values = log_likelihoods.tolist()
    found = {}
    start = 0
    for task, members in items.items():
        correct, normalized = [], []
        for item in members:
            sums = values[start : start + len(item.continuations)]
            weighed = [value / n for value, n in zip(sums, item.n_characters, strict=True)]
            correct.append(sums.index(max(sums)) == item.gold)
            normalized.append(weighed.index(max(weighed)) == item.gold)
            start += len(sums)
        found[task] = TaskResult(
            n_items=len(members),
            accuracy=sum(correct) / len(members),
            accuracy_normalized=sum(normalized) / len(members),
            correct=tuple(correct),
            items=hashes[task],
        )
    return found
