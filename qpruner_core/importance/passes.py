"""The two passes over calibration text that criteria share: one forward, one with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.errors import DataTooShortError, NonFiniteLossError
from qpruner_core.models.trunk import final_logits, first_inputs, run_layers, sequence_losses

if TYPE_CHECKING:
    from qpruner_core.importance import LayerSignal

TOKENS_PER_BATCH = 1024
"""Tokens of one micro-batch: eight sequences of 128."""

OnBatch = Callable[[], None]


def n_batches(ids: torch.Tensor) -> int:
    """Return the micro-batches of one pass over ids (n, T)."""
    return len(list(_batches(ids)))


@torch.no_grad()
def forward_pass(
    model: nn.Module,
    layout: ModelLayout,
    ids: torch.Tensor,
    signals: Sequence[LayerSignal],
    on_batch: OnBatch,
) -> None:
    """Show every layer's input and output to all signals, in one forward pass over ids (n, T).

    Hidden states of one layer are held at a time.

    Raises:
        NonFiniteLossError: A layer gives values that are not finite.
        DataTooShortError: There is no sequence.
    """
    _require_text(ids)
    for signal in signals:
        signal.begin(layout.n_layers, *ids.shape)
    with _evaluating(model):
        for first, batch in _batches(ids):
            _show_batch(model, layout, batch, first, signals)
            on_batch()


@contextmanager
def gradient_pass(
    model: nn.Module, layout: ModelLayout, ids: torch.Tensor, on_batch: OnBatch
) -> Iterator[None]:
    """Inside, the parameters that units own carry the gradient of the mean loss over ids (n, T).

    Gradients are added up micro-batch by micro-batch in the parameters' dtype and exist for these
    parameters alone, so that memory is weights, gradients and the activations of one micro-batch.
    They are gone afterwards.

    Raises:
        NonFiniteLossError: The loss is not finite.
        DataTooShortError: There is no sequence, or none with a second token.
    """
    _require_text(ids, length=2)
    owned = {part.tensor for group in layout.groups for part in group.slices}
    with _evaluating(model), _only_trainable(model, owned), torch.enable_grad():
        for _, batch in _batches(ids):
            hidden = run_layers(model, layout, first_inputs(model, layout, batch))
            loss = sequence_losses(model, hidden, batch).sum() / len(ids)
            if not torch.isfinite(loss):
                raise _not_finite("the loss on calibration text")
            torch.autograd.backward(loss)
            on_batch()
        yield


def _show_batch(
    model: nn.Module,
    layout: ModelLayout,
    batch: torch.Tensor,
    first: int,
    signals: Sequence[LayerSignal],
) -> None:
    inputs = first_inputs(model, layout, batch)
    for layer in range(layout.n_layers):
        after = run_layers(model, layout, inputs, layer, layer + 1)
        if not torch.isfinite(after).all():
            raise _not_finite(f"the output of layer {layer}")
        for signal in signals:
            signal.see_layer(layer, first, inputs.hidden, after)
        inputs = inputs.at(after)
    for signal in signals:
        signal.see_output(first, inputs.hidden, partial(final_logits, model))


def _batches(ids: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield micro-batches of about `TOKENS_PER_BATCH` tokens, each after its first index."""
    size = max(1, TOKENS_PER_BATCH // max(1, ids.shape[1]))
    for first in range(0, len(ids), size):
        yield first, ids[first : first + size]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode and back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _only_trainable(model: nn.Module, names: set[str]) -> Iterator[None]:
    """Let only the named parameters gather gradients; clear all and restore flags at the end."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _require_text(ids: torch.Tensor, length: int = 1) -> None:
    n_sequences, n_tokens = ids.shape
    if n_sequences < 1 or n_tokens < length:
        raise DataTooShortError(
            f"The calibration text has {n_sequences} sequences of {n_tokens} tokens, but scoring "
            f"needs one of {length} or more. Choose a longer text or another sequence length."
        )


def _not_finite(what: str) -> NonFiniteLossError:
    return NonFiniteLossError(
        f"While scoring, {what} is not a finite number. The weights may be damaged or overflow in "
        f"this precision: load the model again, or run it in bfloat16 or float32."
    )
