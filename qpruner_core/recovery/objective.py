"""What training minimises: the mean negative log-likelihood of the tokens that are learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from qpruner_core.data.training import IGNORED
from qpruner_core.domain.device_memory import LOGITS_AT_ONCE
from qpruner_core.models.trunk import head_logits
from qpruner_core.recovery.batches import Batch
from qpruner_core.recovery.recomputing import recomputed

_BLIND_TO_POSITIONS = ("opt",)
"""Families (``config.model_type``) that draw no mask from positions as all others do, which tell
examples apart by positions that start again; their only mask is the causal one."""


def batch_loss(
    model: nn.Module, batch: Batch, n_learned: int, *, in_pieces: bool = False
) -> torch.Tensor:
    """Return the summed negative log-likelihood of the learned tokens over ``n_learned``; nats.

    With the learned tokens of the whole batch there, the losses of its parts add up to its mean
    loss, and their gradients to its gradient, however unevenly the parts learn. Only learned
    tokens get logits; log-probabilities are taken in float32 or wider.

    Args:
        model: The causal language model itself, not a wrapper around it; adapters are in place.
        batch: Rows on the model's device, at least one token of which is learned.
        n_learned: What the sum is divided by; >= 1.
        in_pieces: Compute logits in pieces of `LOGITS_AT_ONCE` entries, each let go and computed
            again in the backward pass, instead of all at once.
    """
    decoder = cast("Any", model).get_decoder()
    hidden = decoder(
        input_ids=batch.ids, use_cache=False, **_visibility(model, batch.positions)
    ).last_hidden_state
    targets = batch.labels[:, 1:]
    learned = targets != IGNORED
    states, wanted = hidden[:, :-1][learned], targets[learned]  # (L, H), (L,)
    if not in_pieces:
        return _summed(model, states, wanted) / n_learned
    n = _at_once(model)
    parts = [
        recomputed(_piece(model, wanted[first : first + n]), states[first : first + n])
        for first in range(0, len(states), n)
    ]
    return torch.stack(parts).sum() / n_learned


def _visibility(model: nn.Module, positions: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return what keeps examples that share a row apart; nothing where a row is one text."""
    if positions is None:
        return {}
    told = {"position_ids": positions}
    if cast("Any", model).config.model_type not in _BLIND_TO_POSITIONS:
        return told
    example = (positions.diff(dim=1, prepend=positions[:, :1] - 1) != 1).cumsum(dim=1)
    seen = (example[:, :, None] == example[:, None, :]).tril()  # (B, T, T): query, key
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return {**told, "attention_mask": mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]}


def _piece(model: nn.Module, wanted: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda states: _summed(model, states, wanted)


def _summed(model: nn.Module, states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    logits = head_logits(model, states)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(wide, wanted, reduction="sum")


def _at_once(model: nn.Module) -> int:
    """Return how many tokens get logits at a time."""
    vocabulary = cast("Any", model).get_output_embeddings().weight.shape[0]
    return max(1, LOGITS_AT_ONCE // int(vocabulary))
