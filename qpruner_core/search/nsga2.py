"""The evolutionary search NSGA-II (Deb et al., IEEE Trans. Evol. Comput. 6(2), 2002)."""

from __future__ import annotations

from optuna.samplers import NSGAIISampler


class Nsga2Strategy(NSGAIISampler):
    """Generations of plans, crossed and mutated, the least dominated survive.

    Args:
        seed: Seed of everything random in it.
        population_size: Plans per generation; >= 2. Optuna's own default of 50 would leave a study
            of some forty trials in its random first generation.
    """

    def __init__(self, *, seed: int, population_size: int = 12) -> None:
        super().__init__(seed=seed, population_size=population_size)
