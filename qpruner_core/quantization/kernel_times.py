"""How long one Linear takes for one generated token, in every precision, measured on its own.

Time hangs on a Linear's shape and precision, not on what its weights say, so every distinct shape
is timed once on drawn weights. Added up over a plan this leaves out what the rest of the model
takes, which `pipeline.timing` measures beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.layout import LinearLayout

if TYPE_CHECKING:
    from qpruner_core.models.device import Device

N_WARM_UP = 3
"""Calls before the clock starts: kernels are chosen and caches filled by the first."""
N_CALLS = 8
"""Calls in a row that are timed together, as one layer follows the other in a model."""
N_ROUNDS = 15
"""Rounds of which the median counts."""

Shape = tuple[int, int, bool]
"""Input features, output features, and whether there is a bias."""


def shape_of(linear: LinearLayout) -> Shape:
    """Return what a Linear's time hangs on besides its precision."""
    return (linear.in_features, linear.out_features, linear.has_bias)


def linear_seconds(
    linears: Iterable[LinearLayout], precisions: Sequence[str], device: Device
) -> dict[tuple[Shape, str], float]:
    """Return the seconds of one token through every distinct shape at every precision; medians.

    Conv1D modules are timed as Linears of their shape.

    Args:
        linears: Linears of one or several layouts, in any number.
        precisions: Catalogue names.
        device: Where they are timed, as packed modules.

    Raises:
        IncompatibleShapeError: A precision cannot carry some width.
    """
    found = {}
    for shape in sorted({shape_of(linear) for linear in linears}):
        for precision in precisions:
            found[shape, precision] = _seconds(shape, precision, device)
    return found


@torch.no_grad()
def _seconds(shape: Shape, precision: str, device: Device) -> float:
    n_in, n_out, has_bias = shape
    generator = torch.Generator().manual_seed(0)
    dense = nn.Linear(n_in, n_out, has_bias, device="meta").to_empty(device="cpu")
    for parameter in dense.parameters():
        parameter.normal_(generator=generator)
    dense = dense.to(device.torch, device.compute_dtype).eval()
    packed: nn.Module = PRECISIONS.target(precision).pack(dense, device.compute_dtype).eval()
    token = torch.randn(1, 1, n_in, generator=generator).to(device.torch, device.compute_dtype)
    for _ in range(N_WARM_UP):
        packed(token)
    return median(_round(packed, token) for _ in range(N_ROUNDS))


def _round(module: nn.Module, token: torch.Tensor) -> float:
    """Return the seconds of one call, of several in a row."""
    _wait_for(token)
    started = perf_counter()
    for _ in range(N_CALLS):
        module(token)
    _wait_for(token)
    return (perf_counter() - started) / N_CALLS


def _wait_for(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
