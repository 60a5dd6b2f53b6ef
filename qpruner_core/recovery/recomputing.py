"""Gradient checkpointing: what a piece of the model computes on the way is let go, and computed
again when its gradient is due.

A piece is a function of one tensor, such as a decoder layer of its hidden states, which alone is
kept. Random numbers are drawn again as they were, so that dropout drops the same entries and the
gradients equal those of a training that keeps everything.

Reference: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.models.trunk import decoder_layers, replaced_forwards
from qpruner_core.recovery.randomness import RandomState

Piece = Callable[[torch.Tensor], torch.Tensor]


class _Recomputed(torch.autograd.Function):
    """A piece that keeps what enters it, and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, piece: Piece, anchor: torch.Tensor, entering: torch.Tensor
    ) -> torch.Tensor:
        """Return what the piece says; autograd runs this without building a graph."""
        ctx.piece = piece
        ctx.random = RandomState.now(entering.device)
        ctx.save_for_backward(entering)
        return piece(entering)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, torch.Tensor | None]:
        """Compute the piece again with its graph, and go back through that."""
        (entering,) = ctx.saved_tensors
        entered = entering.detach().requires_grad_(ctx.needs_input_grad[2])
        with torch.enable_grad(), ctx.random.again():
            result = ctx.piece(entered)
        torch.autograd.backward(result, gradient)
        return None, None, entered.grad


def recomputed(piece: Piece, entering: torch.Tensor) -> torch.Tensor:
    """Return what a piece says of a tensor, keeping only that tensor for the backward pass."""
    # Autograd asks a gradient only of what some input needs one for, and hidden states before
    # the first adapter need none.
    anchor = torch.zeros((), device=entering.device, requires_grad=True)
    apply = cast("Callable[..., torch.Tensor]", _Recomputed.apply)
    return apply(piece, anchor, entering)


@contextmanager
def recomputed_layers(model: nn.Module, layout: ModelLayout) -> Iterator[None]:
    """Let every decoder layer keep only what enters it while gradients are asked for.

    Works on any family, however uneven its layers, and leaves no trace: the model's own gradient
    checkpointing is not touched.
    """
    with replaced_forwards(decoder_layers(model, layout), _keeping_its_input):
        yield


def _keeping_its_input(module: nn.Module) -> Callable[..., torch.Tensor]:
    forward = module.forward
    trains = any(parameter.requires_grad for parameter in module.parameters())

    def layer(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        def piece(entering: torch.Tensor) -> torch.Tensor:
            output = forward(entering, *args, **kwargs)
            # Every decoder takes the states alone as well as in a tuple.
            found: torch.Tensor = output[0] if isinstance(output, tuple) else output
            return found

        if not torch.is_grad_enabled() or not (trains or hidden_states.requires_grad):
            return piece(hidden_states)
        return recomputed(piece, hidden_states)

    return layer
