# ruff: noqa: A005 - a strategy's file carries the strategy's name
"""Uniform plans: what any strategy has to beat."""

from __future__ import annotations

from optuna.samplers import RandomSampler


class RandomStrategy(RandomSampler):
    """Every plan equally likely.

    Args:
        seed: Seed of everything random in it.
    """

    def __init__(self, *, seed: int) -> None:
        super().__init__(seed=seed)
