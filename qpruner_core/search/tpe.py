"""Optuna's multi-objective tree-structured Parzen estimator."""

from __future__ import annotations

from optuna.samplers import TPESampler


class TpeStrategy(TPESampler):
    """Two densities, of good and of other plans, and plans where their ratio is high.

    Args:
        seed: Seed of everything random in it.
        n_startup: Measured plans, baselines included, before the estimator is asked; >= 1.
    """

    def __init__(self, *, seed: int, n_startup: int = 10) -> None:
        super().__init__(seed=seed, n_startup_trials=n_startup)
