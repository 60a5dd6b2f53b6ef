"""The optimisers of the catalogue: AdamW, with what it remembers in 32 or in 8 bit.

Reference: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101;
Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit, PagedAdamW32bit

from qpruner_core.catalog import OPTIMIZERS
from qpruner_core.errors import BadInputError


def check_optimizer(name: str, device_kind: str) -> None:
    """Refuse an optimiser that does not run where training is asked for.

    Args:
        name: Catalogue name.
        device_kind: ``"cpu"`` or ``"cuda"``.

    Raises:
        UnknownNameError: It has no entry.
        BadInputError: It does not run there.
    """
    devices = cast("tuple[str, ...]", OPTIMIZERS.entry(name).facts["devices"])
    if device_kind in devices:
        return
    fitting = [e.name for e in OPTIMIZERS if device_kind in cast("tuple[str]", e.facts["devices"])]
    raise BadInputError(
        f"The optimiser {name!r} runs on {' and '.join(devices)}, but this training runs on "
        f"{device_kind}. Choose one of {', '.join(fitting)}."
    )


def adamw(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW with two float32 moments for every trained parameter."""
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)


def adamw_8bit(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW with 8-bit moments; tensors of fewer than 4096 entries keep float32 ones."""
    return _made(AdamW8bit, parameters, learning_rate, weight_decay)


def paged_adamw(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW whose float32 moments move to the host when the card runs short."""
    return _made(PagedAdamW32bit, parameters, learning_rate, weight_decay)


def paged_adamw_8bit(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW whose 8-bit moments move to the host when the card runs short."""
    return _made(PagedAdamW8bit, parameters, learning_rate, weight_decay)


def _made(
    kind: type[torch.optim.Optimizer],
    parameters: Iterable[torch.nn.Parameter],
    learning_rate: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    return kind(parameters, lr=learning_rate, weight_decay=weight_decay)  # type: ignore[call-arg]
