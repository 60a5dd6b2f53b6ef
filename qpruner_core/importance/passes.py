"""The two passes over calibration text that criteria share: one forward, one with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.errors import NonFiniteLossError
from qpruner_core.importance.freeing import Freeing
from qpruner_core.models.inputs import OnBatch, evaluating, micro_batches, require_text
from qpruner_core.models.trunk import final_logits, first_inputs, run_layers, sequence_losses

if TYPE_CHECKING:
    from qpruner_core.importance import LayerSignal

SEQUENCES_PER_BACKWARD = 1
"""Sequences whose gradients are one sample of Taylor criteria.

The Fisher information is the second moment of the gradients of single sequences: over B sequences
at once it would shrink by B and mix with the square of their mean. Element-wise first order takes
the magnitude of every sample, and at the end of training, where gradients cancel over a text, the
mean magnitude over many samples says more than the magnitude of their sum, which is one sample.
"""


def n_batches(ids: torch.Tensor, sequences: int | None = None) -> int:
    """Return the micro-batches of one pass over ids (n, T); see `micro_batches`."""
    return len(list(micro_batches(ids, sequences)))


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
    require_text(ids)
    for signal in signals:
        signal.begin(layout.n_layers, *ids.shape)
    with evaluating(model):
        for first, batch in micro_batches(ids):
            _show_batch(model, layout, batch, first, signals)
            on_batch()


def gradient_pass(
    model: nn.Module, layout: ModelLayout, ids: torch.Tensor, freeing: Freeing, on_batch: OnBatch
) -> None:
    """Show the gradients of every group once per micro-batch of ids (n, T), in one pass.

    A micro-batch has `SEQUENCES_PER_BACKWARD` sequences, and its gradients are those of their mean
    loss. They exist for tensors that units own alone and are freed as soon as they were seen, so
    that memory is weights, one layer's gradients and the activations of one micro-batch.

    Raises:
        NonFiniteLossError: The loss is not finite.
        DataTooShortError: There is no sequence, or none with a second token.
    """
    require_text(ids, length=2)
    only = _only_trainable(model, freeing.parameters)
    with evaluating(model), only, freeing.listening(), torch.enable_grad():
        for _, batch in micro_batches(ids, SEQUENCES_PER_BACKWARD):
            hidden = _run_announced(model, layout, batch, freeing.finish)
            loss = sequence_losses(model, hidden, batch).mean()
            if not torch.isfinite(loss):
                raise _not_finite("the loss on calibration text")
            torch.autograd.backward(loss)
            freeing.finish_all()
            on_batch()


def _run_announced(
    model: nn.Module, layout: ModelLayout, batch: torch.Tensor, left: Callable[[int], None]
) -> torch.Tensor:
    """Return the states after the last layer; on the way back, ``left`` is told every layer whose
    gradients are complete.
    """
    inputs = first_inputs(model, layout, batch)
    for layer in range(layout.n_layers):
        if inputs.hidden.requires_grad:
            cast("Any", inputs.hidden).register_hook(partial(_tell, left, layer))
        inputs = inputs.at(run_layers(model, layout, inputs, layer, layer + 1))
    return inputs.hidden


def _tell(left: Callable[[int], None], layer: int, _gradient: torch.Tensor) -> None:
    # Autograd reaches what made a layer's input after everything that was made from it, so all
    # gradients of the layer's own tensors are there by now.
    left(layer)


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


@contextmanager
def _only_trainable(model: nn.Module, chosen: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let only these parameters gather gradients; clear all and restore flags at the end."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(parameter) for parameter in chosen}
    model.zero_grad(set_to_none=True)
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _not_finite(what: str) -> NonFiniteLossError:
    return NonFiniteLossError(
        f"While scoring, {what} is not a finite number. The weights may be damaged or overflow in "
        f"this precision: load the model again, or run it in bfloat16 or float32."
    )
