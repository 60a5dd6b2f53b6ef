"""The study: which plan next, and what was measured. Everything lies in Optuna's storage; no state
of ours.

A worker *claims* what it measures next: a trial of its own that a crash left running, one of a
worker that is gone, or a new one. Workers of one study claim one at a time, so that no plan is
measured twice, and a finished trial is never lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from qpruner_core.catalog import STRATEGIES
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import Trial
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.errors import BadInputError
from qpruner_core.search import rows
from qpruner_core.search.asking import CONSTRAINT, Asker, Known, Wish
from qpruner_core.search.space import SearchSpace
from qpruner_core.search.storage import open_storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What is to be measured."""

    number: int
    """Number of the trial in the study; -1 when there is nothing to measure."""
    plan: PrecisionPlan
    """The plan of that trial; it names no Linear when there is nothing to measure."""
    exhausted: bool = False
    """All trials are taken, or every plan of the space has been tried."""


NOTHING = Proposal(number=-1, plan=PrecisionPlan(precisions={}), exhausted=True)


def _never(owner: str) -> bool:
    return False


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
        known: Known | None = None,
    ) -> Study:
        """Create the study of that name, or take up the stored one.

        Args:
            storage: Path of a SQLite file, or an SQLAlchemy URL (SQLite or PostgreSQL).
            name: Name of the study.
            space: What may be chosen.
            spec: Strategy, options, objective, cost, number of trials and seed.
            budget_bytes: The memory budget in bytes; every proposal holds it.
            known: What is known beforehand; None for nothing.

        Raises:
            InfeasibleBudgetError: No plan of the space fits the budget.
            BadInputError: The stored study was made for something else, or an option does not fit.
            UnknownNameError: The strategy has no entry in the catalogue.
        """
        space.check_budget(budget_bytes)
        return cls(storage, name, space, spec, budget_bytes, known or Known())

    def __init__(
        self,
        storage: str,
        name: str,
        space: SearchSpace,
        spec: SearchSpec,
        budget_bytes: int,
        known: Known,
    ) -> None:
        STRATEGIES.options(spec.strategy, spec.options)
        self._space, self._spec, self._budget = space, spec, budget_bytes
        self._asker, self._weights = Asker(space, spec, budget_bytes, known), known.weights
        self._stored_space = rows.StoredSpace.of(space)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage, self._turn = open_storage(storage)
        with self._turn.taken():
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                directions=self._asker.directions,
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

    def claim(
        self, owner: str, n_trials: int, is_gone: Callable[[str], bool] = _never
    ) -> Proposal:
        """Return what a worker measures next, and note that it does.

        A trial that it had claimed before and that is still running comes first, then one of a
        worker that is gone, then a new one unless ``n_trials`` are taken.

        Args:
            owner: Name of the worker; not empty.
            n_trials: Trials the study is to have.
            is_gone: Whether the worker of that name will not come back.
        """
        with self._turn.taken():
            for trial in self._stored():
                if trial.state != TrialState.RUNNING:
                    continue
                holder = str(trial.user_attrs.get(rows.OWNER, ""))
                if holder != owner and not is_gone(holder):
                    continue
                if rows.METRICS in trial.user_attrs:
                    self._finish(trial)  # measured, but its worker died before it could say so
                    continue
                self._handle(trial).set_user_attr(rows.OWNER, owner)
                return self._proposal(trial)
            trials = self._stored()
            if len(trials) >= n_trials:
                return NOTHING
            return self._new(len(trials), trials, owner) or NOTHING

    def record(self, number: int, metrics: Metrics) -> None:
        """Keep what was measured for a trial; a trial that has finished already stays as it is."""
        trial = self._running(number)
        if trial is not None:
            text = rows.metrics_to_text(metrics)
            self._handle(trial).set_user_attr(rows.METRICS, text)
            self._finish(self._study.get_trials(deepcopy=False)[number])

    def fail(self, number: int, reason: str) -> None:
        """Keep that a trial could not be measured; its plan is not proposed again."""
        self._end(number, reason, TrialState.FAIL)

    def stop(self, number: int, reason: str) -> None:
        """Keep that a trial was dominated on a part of the text; it is not proposed again."""
        self._end(number, reason, TrialState.PRUNED)

    def trials(self) -> tuple[Trial, ...]:
        """Return all trials of the study by number, running and failed ones included."""
        return tuple(
            self._stored_space.trial(t.number, t.state.name, t.user_attrs) for t in self._stored()
        )

    def _check_fingerprint(self, name: str) -> None:
        """Write what the study is for, or refuse one that is for something else."""
        asked = {
            **self._space.fingerprint,
            "budget": f"{self._budget} B",
            "objective": self._spec.objective,
        }
        if self._weights:
            asked["weights"] = self._weights
        stored = self._study.user_attrs.get(rows.FINGERPRINT)
        if stored is None:
            self._study.set_user_attr(rows.SPACE, self._stored_space.text)
            self._study.set_user_attr(rows.FINGERPRINT, asked)
            return
        # Studies from before weights had a say carry no fingerprint of them.
        differing = [k for k in asked if stored.get(k, asked[k]) != asked[k]]
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

    def _end(self, number: int, reason: str, state: TrialState) -> None:
        trial = self._running(number)
        if trial is not None:
            self._handle(trial).set_user_attr(rows.REASON, reason)
            self._study.tell(number, state=state, skip_if_finished=True)

    def _finish(self, trial: FrozenTrial) -> None:
        """Tell Optuna the values that lie in the trial's metrics; may be repeated."""
        metrics = rows.metrics_from_text(trial.user_attrs[rows.METRICS])
        if CONSTRAINT not in trial.constraints:
            excess = metrics.weight_bytes - self._budget
            self._handle(trial).set_constraint(CONSTRAINT, excess)
        self._study.tell(trial.number, self._asker.values(metrics), skip_if_finished=True)

    def _handle(self, trial: FrozenTrial) -> optuna.trial.Trial:
        return optuna.trial.Trial(self._study, trial._trial_id)

    def _plan(self, trial: FrozenTrial) -> PrecisionPlan:
        attributes = trial.user_attrs
        return self._stored_space.plan(attributes[rows.PLAN], attributes.get(rows.LEVELS, ""))

    def _proposal(self, trial: FrozenTrial) -> Proposal:
        return Proposal(number=trial.number, plan=self._plan(trial))

    def _new(self, slot: int, trials: Sequence[FrozenTrial], owner: str) -> Proposal | None:
        """Ask for a plan and create its running trial; None when every plan has been tried."""
        wish = self._asker.wish(slot, trials)
        if wish is None:
            return None
        self._add(slot, wish, owner)
        return self._proposal(_of_slot(self._stored(), slot))

    def _add(self, slot: int, wish: Wish, owner: str) -> None:
        """Create a running trial with plan, slot and parameters in one write."""
        plan = self._space.decode(wish.code)
        attributes: dict[str, object] = {
            rows.SLOT: slot,
            rows.PLAN: rows.plan_to_text(self._space, plan),
            rows.ORIGIN: wish.origin,
            rows.OWNER: owner,
        }
        if plan.levels:
            attributes[rows.LEVELS] = ",".join(map(str, plan.levels))
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=self._asker.params(wish.code),
                distributions=self._asker.distributions(),
                user_attrs=attributes,
                system_attrs=dict(wish.system_attrs),
            )
        )


def _of_slot(trials: Iterable[FrozenTrial], slot: int) -> FrozenTrial:
    return next(trial for trial in trials if trial.user_attrs[rows.SLOT] == slot)
