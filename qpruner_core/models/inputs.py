"""What enters the Linears of a model over calibration text: the one place that watches it.

Criteria, bias compensation and streaming read the same moments of every input. Tokens are merged
into them batch by batch and never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.errors import DataTooShortError, NonFiniteLossError
from qpruner_core.models.trunk import first_inputs, run_layers

TOKENS_PER_BATCH = 1024
"""Tokens of one micro-batch: eight sequences of 128."""
ROWS_AT_ONCE = 256
"""Tokens of one Linear that are widened to the dtype of the moments at a time."""

OnBatch = Callable[[], None]


def nothing() -> None:
    """Ignore a finished micro-batch."""


class InputStats:
    """Moments of what entered one Linear, input by input.

    Held in float64 on the CPU and in float32 on other devices. Batches are merged by the update of
    Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample
    variances", 1979), which does not cancel when a mean is large beside its deviation.
    """

    __slots__ = ("_deviations", "mean", "n_tokens")

    def __init__(self, n_inputs: int, device: torch.device) -> None:
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        self.n_tokens = 0
        """Tokens seen; 0 for an expert that the router never chose."""
        self.mean = torch.zeros(n_inputs, dtype=dtype, device=device)
        """Mean of every input over the tokens seen, (in,); zeros before the first."""
        self._deviations = torch.zeros_like(self.mean)

    @property
    def deviations(self) -> torch.Tensor:
        """Sum over the tokens seen of the squared deviation from the mean, (in,), >= 0."""
        return self._deviations

    @property
    def norm(self) -> torch.Tensor:
        """Euclidean norm over the tokens seen: the square root of the *sum* of squares, (in,), >=
        0. Divide by ``sqrt(n_tokens)`` for the root mean square.
        """
        return (self._deviations + self.n_tokens * self.mean.square()).sqrt()

    @torch.no_grad()
    def add(self, inputs: torch.Tensor) -> None:
        """Merge tokens (..., in) of any floating dtype into the moments."""
        tokens = inputs.detach().reshape(-1, inputs.shape[-1])
        for rows in torch.split(tokens, ROWS_AT_ONCE):
            self._merge(rows.to(self.mean, copy=True))

    def _merge(self, rows: torch.Tensor) -> None:
        """Merge rows (n, in) of the moments' dtype, which are overwritten."""
        if not len(rows):
            return
        mean = rows.mean(dim=0)
        total = self.n_tokens + len(rows)
        away = mean - self.mean
        self._deviations += rows.sub_(mean).square_().sum(dim=0)
        self._deviations += away.square() * (self.n_tokens * len(rows) / total)
        self.mean += away * (len(rows) / total)
        self.n_tokens = total


@contextmanager
def watching(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, InputStats]]:
    """Gather the moments of what enters some Linears while they run inside the context.

    Args:
        modules: Any name -> a Linear or Conv1D, in memory; one layer's are enough.

    Yields:
        Name -> moments so far, complete when the context ends.
    """
    stats = {name: _empty_stats(module) for name, module in modules.items()}
    handles = [
        module.register_forward_pre_hook(partial(_take, stats[name]))
        for name, module in modules.items()
    ]
    try:
        yield stats
    finally:
        for handle in handles:
            handle.remove()


def input_statistics(
    model: nn.Module,
    layout: ModelLayout,
    ids: torch.Tensor,
    names: Iterable[str],
    on_batch: OnBatch = nothing,
) -> dict[str, InputStats]:
    """Return the moments of what enters some Linears, by one forward pass over calibration text.

    Args:
        model: The model; left as found.
        layout: Its layout as it is now.
        ids: Calibration tokens, int64 (n, T), on any device.
        names: Names of Linears in its decoder layers.
        on_batch: Told after every micro-batch.

    Raises:
        DataTooShortError: There is no token.
        NonFiniteLossError: What enters a Linear is not finite.
    """
    ids = require_text(ids.to(next(model.parameters()).device))
    modules = {name: model.get_submodule(name) for name in names}
    with torch.no_grad(), evaluating(model), watching(modules) as stats:
        for _, batch in micro_batches(ids):
            run_layers(model, layout, first_inputs(model, layout, batch))
            on_batch()
    return require_finite(stats)


def output_projections(layout: ModelLayout) -> dict[str, str]:
    """Return group name -> the Linear whose inputs its units are; whole experts have none."""
    return {
        group.name: part.tensor.rpartition(".")[0]
        for group in layout.groups
        for part in group.slices
        if part.is_input
    }


def micro_batches(
    ids: torch.Tensor, sequences: int | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield micro-batches of ids (n, T), each after the index of its first sequence.

    Args:
        ids: Tokens, (n, T).
        sequences: Sequences of one micro-batch; None for about `TOKENS_PER_BATCH` tokens.
    """
    size = sequences or max(1, TOKENS_PER_BATCH // max(1, ids.shape[1]))
    for first in range(0, len(ids), size):
        yield first, ids[first : first + size]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode and back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def require_text(ids: torch.Tensor, length: int = 1) -> torch.Tensor:
    """Return ids (n, T) that hold at least one sequence of that many tokens.

    Raises:
        DataTooShortError: They do not.
    """
    n_sequences, n_tokens = ids.shape
    if n_sequences < 1 or n_tokens < length:
        raise DataTooShortError(
            f"The calibration text has {n_sequences} sequences of {n_tokens} tokens, but one of "
            f"{length} or more is needed. Choose a longer text or another sequence length."
        )
    return ids


def require_finite(stats: dict[str, InputStats]) -> dict[str, InputStats]:
    """Return moments that are all finite.

    Raises:
        NonFiniteLossError: Some are not; the first Linear is named.
    """
    for name, seen in stats.items():
        if not torch.isfinite(seen.norm).all():
            raise NonFiniteLossError(
                f"While watching calibration text, values enter {name!r} that are not finite "
                "numbers. The weights may be damaged or overflow in this precision: load the "
                "model again, or run it in bfloat16 or float32."
            )
    return stats


def _empty_stats(module: nn.Module) -> InputStats:
    weight = module.get_parameter("weight")
    # A Conv1D stores its weight (in, out) and does not state its inputs by this name.
    n_inputs = getattr(module, "in_features", weight.shape[0])
    return InputStats(n_inputs, weight.device)


def _take(stats: InputStats, _module: nn.Module, args: tuple[Any, ...]) -> None:
    stats.add(args[0])
