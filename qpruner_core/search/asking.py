"""What is measured next: points of the predicted front, a wish of the strategy, or an untried
neighbour. Every plan holds the budget.

An Optuna sampler looks at a copy of the study in memory, made anew for every question, that also
holds the baselines, which are measured but are no trials of the study. So a proposal is a function
of seed, number and what was measured, whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from qpruner_core.catalog import STRATEGIES
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.record import SensitivityCell
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.search import rows
from qpruner_core.search.allocator import Floats, Integers, MeasuredCode, Situation
from qpruner_core.search.costs import cost_of, summable
from qpruner_core.search.knapsack import Front, front, unit_costs
from qpruner_core.search.pareto import badness
from qpruner_core.search.seeding import nearest_untried, order_points, within_budget
from qpruner_core.search.space import Code, SearchSpace

CONSTRAINT = "memory"
"""Key of the Optuna constraint: measured bytes minus the budget; <= 0 is within it."""
SEED_SHARE = 2 / 3
"""Share of the trials that a seeded sampler spends on the predicted front. On a nearly additive
toy the front alone reached 0.986 of the reference hypervolume and a quarter of it with a Gaussian
process 0.97.
"""
MAX_DRAWS = 4
"""How often a sampler may repeat itself before an untried neighbour of its wish is taken."""
MAX_ANCHORS = 512
"""Points of the predicted front that neighbours are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A plan that is to become a trial."""

    code: Code
    origin: str
    system_attrs: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """What is known before a study begins."""

    sensitivities: Sequence[SensitivityCell] = ()
    """Cells of the space; without them nothing is predicted."""
    measured: Mapping[str, Metrics] = field(default_factory=dict)
    """`PrecisionPlan.key` of every plan measured beside the study, such as a baseline -> its
    metrics; never proposed again."""
    sizes: Integers | None = None
    """Cost of every unit at every option, ``(n_units, n_options)``, where the search weighs
    something else than bytes."""
    weights: str = ""
    """Fingerprint of the model's weights; a stored study of other ones is refused."""


class Asker:
    """Asks the strategy of one study.

    Args:
        space: What may be chosen.
        spec: Strategy, options, objective, cost, number of trials and seed.
        budget_bytes: The memory budget in bytes.
        known: What is known beforehand.
    """

    def __init__(
        self, space: SearchSpace, spec: SearchSpec, budget_bytes: int, known: Known
    ) -> None:
        self._space, self._spec, self._budget = space, spec, budget_bytes
        self._cells, self._given_sizes = known.sensitivities, known.sizes
        plans = {key: space.plan_of_key(key) for key in known.measured}
        # What lies outside the space cannot be encoded, and teaches no strategy anything.
        self._baselines = {
            space.code(plan): known.measured[key] for key, plan in plans.items() if plan in space
        }
        self._entry = STRATEGIES.entry(spec.strategy)
        self._options = STRATEGIES.options(spec.strategy, spec.options)
        quality = StudyDirection.MINIMIZE if spec.objective == "loss" else StudyDirection.MAXIMIZE
        self.directions = [quality, StudyDirection.MINIMIZE]

    def wish(self, number: int, trials: Sequence[FrozenTrial]) -> Wish | None:
        """Return the plan for the trial of that number, None when every plan has been tried.

        Args:
            number: Number of the trial that is asked for.
            trials: All trials of the study so far.
        """
        tried = {self.code(trial) for trial in trials} | self._baselines.keys()
        if len(tried) >= self._space.size:
            return None
        if self._entry.facts["kind"] == "allocator":
            return self._allocated(number, trials, tried)
        seed = next((code for code in self._seeds if code not in tried), None)
        if seed is not None:
            return Wish(code=seed, origin="front", system_attrs={})
        return self._sampled(number, trials, tried)

    def values(self, metrics: Metrics) -> list[float]:
        """Return both objectives as Optuna keeps them."""
        quality = metrics.loss if self._spec.objective == "loss" else metrics.accuracy
        return [quality, cost_of(metrics, self._spec.cost)]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the parameters of the space as Optuna knows them."""
        return {name: IntDistribution(0, n - 1) for name, n in self._space.parameters.items()}

    def params(self, code: Code) -> dict[str, int]:
        """Return a code as Optuna's parameters."""
        return dict(zip(self._space.parameters, code, strict=True))

    def code(self, trial: FrozenTrial | optuna.trial.Trial) -> Code:
        """Return the code of a trial."""
        return tuple(int(trial.params[name]) for name in self._space.parameters)

    @cached_property
    def _prior(self) -> Floats:
        if not self._cells:
            return np.zeros((len(self._space.units), len(self._space.options)))
        return unit_costs(self._space, self._cells, self._spec.signal)

    @cached_property
    def _sizes(self) -> Integers:
        if self._given_sizes is not None:
            return self._given_sizes
        return np.array(self._space.unit_bytes, dtype=np.int64)

    @cached_property
    def _front(self) -> Front | None:
        if not self._cells:
            return None
        return front(self._space, self._cells, signal=self._spec.signal, sizes=self._given_sizes)

    @cached_property
    def _anchors(self) -> list[Code]:
        return self._points(MAX_ANCHORS)

    @cached_property
    def _seeds(self) -> list[Code]:
        if not self._entry.facts["seeded"]:
            return []
        n_seeds = round(SEED_SHARE * self._spec.n_trials)
        points = self._points(n_seeds + len(self._baselines))
        return [code for code in points if code not in self._baselines][:n_seeds]

    def _points(self, n_points: int) -> list[Code]:
        """Return points of the predicted front that hold the budget, the most telling first."""
        if self._front is None:
            return []
        return order_points(self._front, self._budget, n_points)

    def _allocated(
        self, number: int, trials: Sequence[FrozenTrial], tried: set[Code]
    ) -> Wish | None:
        """Ask a strategy of our own."""
        strategy = STRATEGIES.target(self._spec.strategy)(**self._options)
        code = strategy.propose(self._situation(number, trials, tried))
        if code is not None:
            return Wish(code=code, origin="strategy", system_attrs={})
        start = self._anchors[0] if self._anchors else (0,) * len(self._space.parameters)
        return self._neighbour(start, tried, {})

    def _situation(
        self, number: int, trials: Sequence[FrozenTrial], tried: set[Code]
    ) -> Situation:
        measured = list(self._baselines.items())
        measured += [
            (self.code(trial), rows.metrics_from_text(trial.user_attrs[rows.METRICS]))
            for trial in trials
            if trial.state == TrialState.COMPLETE
        ]
        return Situation(
            space=self._space,
            prior=self._prior,
            sizes=self._sizes,
            budget_bytes=self._budget,
            measured=[
                MeasuredCode(
                    code=code,
                    badness=badness(metrics, self._spec.objective),
                    cost=summable(cost_of(metrics, self._spec.cost), self._spec.cost),
                )
                for code, metrics in measured
            ],
            pending=[self.code(t) for t in trials if t.state == TrialState.RUNNING],
            closed=frozenset(tried),
            n_trials=self._spec.n_trials,
            number=number,
            seed=self._seed(number),
        )

    def _sampled(
        self, number: int, trials: Sequence[FrozenTrial], tried: set[Code]
    ) -> Wish | None:
        """Ask a sampler; a repetition stays pending in the copy, so that it looks elsewhere."""
        study = self._copy(number, trials)
        for _ in range(MAX_DRAWS):
            trial = study.ask(self.distributions())
            drawn = self.code(trial)
            attrs = study.get_trials(deepcopy=False)[trial.number].system_attrs
            code = within_budget(self._space, drawn, self._prior, self._budget)
            if code not in tried:
                origin = "strategy" if code == drawn else "lowered"
                return Wish(code=code, origin=origin, system_attrs=_kept(attrs))
        return self._neighbour(code, tried, _kept(attrs))

    def _neighbour(
        self, start: Code, tried: set[Code], system_attrs: Mapping[str, Any]
    ) -> Wish | None:
        inside = within_budget(self._space, start, self._prior, self._budget)
        near = nearest_untried(self._space, inside, tried, self._anchors, self._budget)
        if near is None:
            return None
        return Wish(code=near, origin="neighbour", system_attrs=system_attrs)

    def _copy(self, number: int, trials: Sequence[FrozenTrial]) -> optuna.Study:
        """Return a study in memory: baselines, trials, and a sampler seeded for this number."""
        sampler = STRATEGIES.target(self._spec.strategy)(seed=self._seed(number), **self._options)
        study = optuna.create_study(directions=self.directions, sampler=sampler)
        for code, metrics in self._baselines.items():
            study.add_trial(
                create_trial(
                    values=self.values(metrics),
                    params=self.params(code),
                    distributions=self.distributions(),
                    constraints={CONSTRAINT: metrics.weight_bytes - self._budget},
                )
            )
        study.add_trials(t for t in trials if t.state in {TrialState.COMPLETE, TrialState.RUNNING})
        return study

    def _seed(self, number: int) -> int:
        return int(np.random.SeedSequence((self._spec.seed, number)).generate_state(1)[0])


def _kept(system_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sampler must find again, such as a generation; not what it merely caches."""
    return {key: value for key, value in system_attrs.items() if not key.startswith("gp:")}
