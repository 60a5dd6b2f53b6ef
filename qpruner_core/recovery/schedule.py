"""How the learning rate rises and falls along a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import cos, pi

_FALLS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1.0 + cos(pi * share)),
    "constant": lambda _: 1.0,
}
"""`RecoverySpec.schedule` -> what is left of the peak after a share of the way down, in (0, 1)."""


def rate_factor(step: int, n_steps: int, schedule: str = "linear", warm_up: float = 0.1) -> float:
    """Return the learning rate of a step as a share of its peak, in (0, 1].

    It rises linearly over the first ``warm_up`` of the steps, reaches its peak with the last of
    these (without any, with the first step), and then falls towards 0, which it would reach one
    step after the last.

    Args:
        step: From 0.
        n_steps: All steps; >= 1.
        schedule: As in `RecoverySpec.schedule`.
        warm_up: Share of the steps, in [0, 1).
    """
    rising = max(1, round(warm_up * n_steps))
    if step < rising:
        return (step + 1) / rising
    return _FALLS[schedule]((step - rising + 1) / (n_steps - rising + 1))
