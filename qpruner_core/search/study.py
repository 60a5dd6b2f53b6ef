"""The study: which plan next, and what was measured. Everything lies in Optuna's storage; no state
of ours.

A slot is a place in the study (0, 1, 2, ...) that one job step fills. Asking for a slot twice
gives the same trial, so a step that is run again after a crash goes on where it was. A proposal is
a function of seed, slot and what the storage holds: for every slot a fresh sampler looks at a copy
of the study in memory that also holds the baselines, which are measured but are no trials of the
study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from qpruner_core.catalog import STRATEGIES
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import Trial
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.errors import BadInputError
from qpruner_core.search import rows
from qpruner_core.search.seeding import nearest_untried, order_seeds
from qpruner_core.search.space import Code, SearchSpace
from qpruner_core.search.storage import open_storage

CONSTRAINT = "memory"
"""Key of the Optuna constraint: measured bytes minus the budget; <= 0 is within it."""
SEED_SHARE = 2 / 3
"""Share of the trials that a seeded strategy spends on the predicted front. On a nearly additive
toy the front alone reached 0.986 of the reference hypervolume and a quarter of it with a Gaussian
process 0.97.
"""
MAX_DRAWS = 4
"""How often a sampler may repeat itself before an untried neighbour of its wish is taken."""
MAX_ANCHORS = 512
"""Points of the predicted front that neighbours are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a slot is to measure."""

    number: int
    """Number of the trial in the study; -1 when the space is exhausted."""
    plan: PrecisionPlan
    """The plan of that trial; it names no Linear when the space is exhausted."""
    done: bool = False
    """The trial is complete or has failed already; there is nothing to measure."""
    exhausted: bool = False
    """Every plan of the space has been tried; no slot after this one has a plan either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A plan that is to become a trial."""

    code: Code
    origin: str
    system_attrs: Mapping[str, Any]


class Study:
    """Two objectives, one constraint, and a memory that survives the process. Open with
    `Study.open`.
    """

    @classmethod
    def open(
        cls,
        storage: str,
        name: str,
        space: SearchSpace,
        spec: SearchSpec,
        budget_bytes: int,
        seeds: Sequence[PrecisionPlan] = (),
        measured: Mapping[str, Metrics] | None = None,
    ) -> Study:
        """Create the study of that name, or take up the stored one.

        Args:
            storage: Path of a SQLite file, or an SQLAlchemy URL (SQLite or PostgreSQL).
            name: Name of the study.
            space: What may be chosen.
            spec: Strategy, options, objective, number of trials and seed.
            budget_bytes: The memory budget in bytes.
            seeds: Plans of the predicted front, in any order; those outside the space are passed
                over.
            measured: `PrecisionPlan.key` of every baseline -> its metrics; never proposed again.

        Raises:
            InfeasibleBudgetError: No plan of the space fits the budget.
            BadInputError: The stored study was made for something else, or an option does not fit.
            UnknownNameError: The strategy has no entry in the catalogue.
        """
        space.check_budget(budget_bytes)
        study = cls(storage, name, space, spec, budget_bytes)
        study._know(seeds, measured or {})
        return study

    def __init__(
        self, storage: str, name: str, space: SearchSpace, spec: SearchSpec, budget_bytes: int
    ) -> None:
        self._space, self._spec, self._budget = space, spec, budget_bytes
        self._options = STRATEGIES.options(spec.strategy, spec.options)
        self._baselines: dict[Code, Metrics] = {}
        self._seeds: list[Code] = []
        self._anchors: list[Code] = []
        self._stored_space = rows.StoredSpace.of(space)
        quality = StudyDirection.MINIMIZE if spec.objective == "loss" else StudyDirection.MAXIMIZE
        self._directions = [quality, StudyDirection.MINIMIZE]
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage, self._turn = open_storage(storage)
        with self._turn.taken():
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                directions=self._directions,
                sampler=optuna.samplers.RandomSampler(),  # never asked: samplers see a copy
                load_if_exists=name in optuna.get_all_study_names(self._storage),
            )
            self._check_fingerprint(name)

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections to the storage back; the study itself stays."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def propose(self, slot: int) -> Proposal:
        """Return what a slot is to measure: always the same trial for the same slot.

        Args:
            slot: Place in the study; >= 0.
        """
        if slot < 0:
            raise ValueError(f"slots count from 0, got {slot}")
        with self._turn.taken():
            trials = self._stored()
            trial = next((t for t in trials if t.user_attrs[rows.SLOT] == slot), None)
            if trial is None:
                wish = self._wish(slot, trials)
                if wish is None:
                    return Proposal(number=-1, plan=PrecisionPlan(precisions={}), exhausted=True)
                self._add(slot, wish)
                trial = next(t for t in self._stored() if t.user_attrs[rows.SLOT] == slot)
            elif trial.state == TrialState.RUNNING and rows.METRICS in trial.user_attrs:
                self._finish(trial)  # measured, but its worker died before it could say so
        return Proposal(
            number=trial.number,
            plan=self._stored_space.plan(trial.user_attrs[rows.PLAN]),
            done=trial.state.is_finished() or rows.METRICS in trial.user_attrs,
        )

    def record(self, number: int, metrics: Metrics) -> None:
        """Keep what was measured for a trial; a trial that has finished already stays as it is."""
        trial = self._running(number)
        if trial is not None:
            handle = optuna.trial.Trial(self._study, trial._trial_id)
            handle.set_user_attr(rows.METRICS, rows.metrics_to_text(metrics))
            self._finish(self._study.get_trials(deepcopy=False)[number])

    def fail(self, number: int, reason: str) -> None:
        """Keep that a trial could not be measured; its plan is not proposed again."""
        trial = self._running(number)
        if trial is not None:
            optuna.trial.Trial(self._study, trial._trial_id).set_user_attr(rows.REASON, reason)
            self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def trials(self) -> tuple[Trial, ...]:
        """Return all trials of the study by number, running and failed ones included."""
        return tuple(
            self._stored_space.trial(t.number, t.state.name, t.user_attrs) for t in self._stored()
        )

    def _know(self, seeds: Sequence[PrecisionPlan], measured: Mapping[str, Metrics]) -> None:
        """Take in baselines and predicted front; what lies outside the space cannot be encoded."""
        plans = {key: self._space.plan_of_key(key) for key in measured}
        self._baselines = {
            self._space.code(plan): measured[key]
            for key, plan in plans.items()
            if plan in self._space
        }
        codes = [self._space.code(plan) for plan in seeds if plan in self._space]
        self._anchors = order_seeds(self._space, codes, self._budget, MAX_ANCHORS)
        if STRATEGIES.entry(self._spec.strategy).facts["seeded"]:
            untried = [code for code in codes if code not in self._baselines]
            n_seeds = round(SEED_SHARE * self._spec.n_trials)
            self._seeds = order_seeds(self._space, untried, self._budget, n_seeds)

    def _check_fingerprint(self, name: str) -> None:
        """Write what the study is for, or refuse one that is for something else."""
        asked = {
            **self._space.fingerprint,
            "budget": f"{self._budget} B",
            "objective": self._spec.objective,
        }
        stored = self._study.user_attrs.get(rows.FINGERPRINT)
        if stored is None:
            self._study.set_user_attr(rows.SPACE, self._stored_space.text)
            self._study.set_user_attr(rows.FINGERPRINT, asked)
            return
        differing = [key for key in asked if stored.get(key) != asked[key]]
        if differing:
            found = "; ".join(
                f"{key} {stored.get(key)!r} (asked: {asked[key]!r})" for key in differing
            )
            raise BadInputError(
                f"The stored study {name!r} was made for another search: {found}. Go on with the "
                f"settings it was made with, or start a new run for the new ones."
            )

    def _stored(self) -> list[FrozenTrial]:
        return [t for t in self._study.get_trials(deepcopy=False) if rows.SLOT in t.user_attrs]

    def _running(self, number: int) -> FrozenTrial | None:
        trials = self._study.get_trials(deepcopy=False)
        if not 0 <= number < len(trials):
            raise ValueError(f"the study has {len(trials)} trials, none has the number {number}")
        return None if trials[number].state.is_finished() else trials[number]

    def _finish(self, trial: FrozenTrial) -> None:
        """Tell Optuna the values that lie in the trial's metrics; may be repeated."""
        metrics = rows.metrics_from_text(trial.user_attrs[rows.METRICS])
        if CONSTRAINT not in trial.constraints:
            handle = optuna.trial.Trial(self._study, trial._trial_id)
            handle.set_constraint(CONSTRAINT, metrics.weight_bytes - self._budget)
        self._study.tell(trial.number, self._values(metrics), skip_if_finished=True)

    def _values(self, metrics: Metrics) -> list[float]:
        quality = metrics.loss if self._spec.objective == "loss" else metrics.accuracy
        return [quality, float(metrics.weight_bytes)]

    def _add(self, slot: int, wish: _Wish) -> None:
        """Create a running trial with plan, slot and parameters in one write."""
        plan = self._space.decode(wish.code)
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=self._params(wish.code),
                distributions=self._distributions(),
                user_attrs={
                    rows.SLOT: slot,
                    rows.PLAN: rows.plan_to_text(self._space, plan),
                    rows.ORIGIN: wish.origin,
                },
                system_attrs=dict(wish.system_attrs),
            )
        )

    def _wish(self, slot: int, trials: Sequence[FrozenTrial]) -> _Wish | None:
        """Return the plan for a new trial, None when every plan has been tried."""
        tried = {self._code(trial) for trial in trials} | self._baselines.keys()
        if len(tried) >= self._space.size:
            return None
        seed = next((code for code in self._seeds if code not in tried), None)
        if seed is not None:
            return _Wish(code=seed, origin="front", system_attrs={})
        return self._ask(slot, trials, tried)

    def _ask(self, slot: int, trials: Sequence[FrozenTrial], tried: set[Code]) -> _Wish | None:
        """Ask the strategy; a repetition stays pending in the copy, so that it looks elsewhere."""
        study = self._copy(slot, trials)
        for _ in range(MAX_DRAWS):
            trial = study.ask(self._distributions())
            code = self._code(trial)
            attrs = study.get_trials(deepcopy=False)[trial.number].system_attrs
            if code not in tried:
                return _Wish(code=code, origin="strategy", system_attrs=_kept(attrs))
        near = nearest_untried(self._space, code, tried, self._anchors, self._budget)
        if near is None:
            return None
        return _Wish(code=near, origin="neighbour", system_attrs=_kept(attrs))

    def _copy(self, slot: int, trials: Sequence[FrozenTrial]) -> optuna.Study:
        """Return a study in memory: baselines, trials, and a sampler seeded for this slot."""
        seed = int(np.random.SeedSequence((self._spec.seed, slot)).generate_state(1)[0])
        sampler = STRATEGIES.target(self._spec.strategy)(seed=seed, **self._options)
        study = optuna.create_study(directions=self._directions, sampler=sampler)
        for code, metrics in self._baselines.items():
            study.add_trial(
                create_trial(
                    values=self._values(metrics),
                    params=self._params(code),
                    distributions=self._distributions(),
                    constraints={CONSTRAINT: metrics.weight_bytes - self._budget},
                )
            )
        study.add_trials(t for t in trials if t.state in {TrialState.COMPLETE, TrialState.RUNNING})
        return study

    def _distributions(self) -> dict[str, BaseDistribution]:
        return {u: IntDistribution(0, len(self._space.precisions) - 1) for u in self._space.units}

    def _params(self, code: Code) -> dict[str, int]:
        return dict(zip(self._space.units, code, strict=True))

    def _code(self, trial: FrozenTrial | optuna.trial.Trial) -> Code:
        return tuple(int(trial.params[unit]) for unit in self._space.units)


def _kept(system_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sampler must find again, such as a generation; not what it merely caches."""
    return {key: value for key, value in system_attrs.items() if not key.startswith("gp:")}
