"""A decoder taken apart: what enters its first layer, any stretch of layers, and the loss at the
end.

Sensitivities cache hidden states before the changed layer, and evaluation keeps the logits of one
sequence at a time; both need the forward pass in pieces that together equal the model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from qpruner_core.domain.layout import ModelLayout

FINAL_NORMS = ("norm", "final_layer_norm", "ln_f")
"""What decoders call the norm behind their last layer; some have none."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerInputs:
    """What the model hands its decoder layers for one batch."""

    hidden: torch.Tensor
    """Hidden states before the layer that runs first, ``(B, T, H)``."""
    kwargs: Mapping[str, Any]
    """Arguments of layer 0 by name: attention mask, position embeddings and so on."""
    by_layer: tuple[Mapping[str, Any], ...] = ()
    """Arguments of every layer, where masks, rotary positions or others differ (sliding and full
    attention mixed); empty: all as layer 0."""

    def at(self, hidden: torch.Tensor) -> LayerInputs:
        """Return the same batch with other hidden states, such as those before a later layer."""
        return replace(self, hidden=hidden)

    def layer_kwargs(self, layer: int) -> Mapping[str, Any]:
        """Return the keyword arguments of one layer."""
        return self.by_layer[layer] if self.by_layer else self.kwargs


def decoder_layers(model: nn.Module, layout: ModelLayout) -> list[nn.Module]:
    """Return the decoder layers in forward order."""
    return list(cast("nn.ModuleList", model.get_submodule(layout.layer_prefix)))


def first_inputs(model: nn.Module, layout: ModelLayout, ids: torch.Tensor) -> LayerInputs:
    """Return what the model hands its decoder layers for token ids ``(B, T)``.

    The decoder runs once with its layers bypassed, so masks and positions are the model's own
    whatever its family or attention implementation. Gradients flow as the surrounding context
    says. Not safe while another thread uses the model.
    """
    decoder = model.get_submodule(layout.layer_prefix.rpartition(".")[0])
    layers = decoder_layers(model, layout)
    with _bypassed(layers) as seen:
        decoder(input_ids=ids, use_cache=False)
    hidden, kwargs = seen[0]
    by_layer = tuple(arguments for _, arguments in seen)
    alike = all(_same(arguments, kwargs) for arguments in by_layer)
    return LayerInputs(hidden, kwargs, () if alike else by_layer)


def _same(these: Mapping[str, Any], those: Mapping[str, Any]) -> bool:
    """Whether two layers were handed the very same objects."""
    return these.keys() == those.keys() and all(these[key] is those[key] for key in these)


@contextmanager
def _bypassed(
    layers: list[nn.Module],
) -> Iterator[list[tuple[torch.Tensor, Mapping[str, Any]]]]:
    """Let every layer return its hidden states unchanged and note what it was called with."""
    seen: list[tuple[torch.Tensor, Mapping[str, Any]]] = []

    def passthrough(layer: nn.Module) -> Callable[..., torch.Tensor]:
        # That of its class: what stands before it may take anything.
        signature = inspect.signature(type(layer).forward.__get__(layer))

        def note(*args: Any, **kwargs: Any) -> torch.Tensor:
            hidden, named = _by_name(signature, args, kwargs)
            seen.append((hidden, named))
            return hidden

        return note

    with replaced_forwards(layers, passthrough):
        yield seen


@contextmanager
def replaced_forwards(
    layers: Sequence[nn.Module], forward_of: Callable[[nn.Module], Callable[..., Any]]
) -> Iterator[None]:
    """Give layers another forward pass for a block; afterwards each has that which it had, its
    class's or one of its own.

    Args:
        layers: Modules of a model.
        forward_of: Makes the forward pass that takes the place of a layer's.
    """
    saved = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = forward_of(layer)
        yield
    finally:
        for layer, forward in zip(layers, saved, strict=True):
            if forward is None:
                # A layer whose turn did not come was left as it is.
                vars(layer).pop("forward", None)
            else:
                layer.forward = forward


def _by_name(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, Mapping[str, Any]]:
    """Return the hidden states, which are a layer's first argument, and all others by name."""
    given = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    first = next(iter(signature.parameters))
    hidden: torch.Tensor = given.pop(first)
    return hidden, given


def run_layers(
    model: nn.Module,
    layout: ModelLayout,
    inputs: LayerInputs,
    start: int = 0,
    stop: int | None = None,
) -> torch.Tensor:
    """Return the hidden states ``(B, T, H)`` after layers ``start`` to ``stop`` (exclusive; None:
    the last).

    ``inputs.hidden`` are the states before layer ``start``.
    """
    hidden = inputs.hidden
    for index, layer in enumerate(decoder_layers(model, layout)[start:stop], start):
        output = layer(hidden, **inputs.layer_kwargs(index))
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden


def final_logits(model: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Return the logits ``(..., vocabulary)`` for hidden states ``(..., H)`` after the last
    layer.
    """
    decoder = cast("Any", model).get_decoder()
    found = (getattr(decoder, name, None) for name in FINAL_NORMS)
    norm = next((module for module in found if module is not None), None)
    if norm is not None:
        hidden = norm(hidden)
    if getattr(decoder, "project_out", None) is not None:
        hidden = decoder.project_out(hidden)  # OPT's embedding can be narrower than its stream
    return head_logits(model, hidden)


def head_logits(model: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Return the logits ``(..., vocabulary)`` for what the decoder returns, ``(..., H)``: the head
    with what the family does to its output.

    Granite divides by ``logits_scaling``; Gemma caps softly, c tanh(z / c).
    """
    whole = cast("Any", model)
    logits: torch.Tensor = whole.get_output_embeddings()(states)
    scaling = getattr(whole.config, "logits_scaling", None)
    if scaling is not None:
        logits = logits / scaling
    cap = getattr(whole.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def sequence_losses(model: nn.Module, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log-likelihood of every sequence, ``(B,)``, nats per predicted
    token.

    Args:
        model: The model whose final norm and head are used.
        hidden: Hidden states after the last layer, ``(B, T, H)``.
        ids: Token ids, ``(B, T)``, T >= 2; token t is predicted from the states at t - 1.

    Logits live for one sequence at a time; log-probabilities are taken in float32 or wider.
    """
    losses = []
    for states, targets in zip(hidden, ids, strict=True):
        logits = final_logits(model, states[:-1])
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses.append(functional.cross_entropy(wide, targets[1:].to(wide.device)))
    return torch.stack(losses)
