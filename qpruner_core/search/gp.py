"""Bayesian optimisation with Optuna's Gaussian process; it imports torch when it is first asked,
not here.
"""

from __future__ import annotations

from optuna.samplers import GPSampler


class GpStrategy(GPSampler):
    """A Gaussian process over integers: Matern 5/2 kernel, log expected hypervolume improvement.

    Args:
        seed: Seed of everything random in it.
        n_startup: Measured plans, baselines included, before the Gaussian process is asked; >= 1.
            The QPruner paper (arXiv:2412.11629) takes 10.
    """

    def __init__(self, *, seed: int, n_startup: int = 10) -> None:
        super().__init__(seed=seed, n_startup_trials=n_startup, warn_independent_sampling=False)
