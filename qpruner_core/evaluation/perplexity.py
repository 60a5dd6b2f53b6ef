"""Loss on held-out text: the trunk runs once per batch, logits live for one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from qpruner_core.models.trunk import head_logits

TOKENS_PER_BATCH = 2048
"""Tokens of one forward pass; one sequence at least."""


def text_loss(model: nn.Module, ids: torch.Tensor) -> float:
    """Return the mean negative log-likelihood per predicted token; nats.

    Equals the loss that transformers computes with ``labels=input_ids`` over all sequences at
    once.

    Args:
        model: A causal language model in evaluation mode.
        ids: Token ids, ``(n_sequences, length)``, length >= 2.
    """
    return mean_loss(text_sums(model, ids), ids.shape[1])


@torch.no_grad()
def text_sums(model: nn.Module, ids: torch.Tensor) -> list[float]:
    """Return the summed negative log-likelihood of every sequence; nats.

    Args:
        model: A causal language model in evaluation mode.
        ids: Token ids, ``(n_sequences, length)``, length >= 2.
    """
    device = next(model.parameters()).device
    whole = cast("Any", model)
    sums = torch.empty(len(ids), dtype=torch.float64, device=device)
    place = 0
    for batch in torch.split(ids, max(1, TOKENS_PER_BATCH // ids.shape[1])):
        on_device = batch.to(device)
        hidden = whole.get_decoder()(input_ids=on_device, use_cache=False).last_hidden_state
        for states, targets in zip(hidden, on_device, strict=True):
            logits = head_logits(model, states[:-1])
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            sums[place] = functional.cross_entropy(wide, targets[1:], reduction="sum")
            place += 1
    return sums.tolist()


def mean_loss(sums: Sequence[float], length: int) -> float:
    """Return the loss per predicted token of sequences of equal length; nats.

    Args:
        sums: Summed negative log-likelihood of every sequence, at least one.
        length: Tokens per sequence, >= 2.
    """
    total = 0.0
    for value in sums:
        # In order: newer Pythons compensate in `sum`, and a loss may not hang on the version.
        total += value
    return total / (len(sums) * (length - 1))
