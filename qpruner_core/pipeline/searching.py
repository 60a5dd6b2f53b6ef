"""The search: baselines first, then the trials that the study gives to whoever claims the next.

A plan is measured once, however often it is asked for, and by however many workers.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qpruner_core.domain.footprint import dense_bytes, parse_budget
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import never
from qpruner_core.domain.record import (
    FIRST_BY_HAND,
    RunRecord,
    SearchOutcome,
    Trial,
)
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.errors import IncompatibleShapeError, NotReadyError
from qpruner_core.pipeline.fingerprint import Fingerprints
from qpruner_core.pipeline.halving import Rival
from qpruner_core.pipeline.joint import search_space
from qpruner_core.pipeline.materials import Materials
from qpruner_core.pipeline.measuring import Answer, Bench, Measuring, ShowsPlans
from qpruner_core.pipeline.remembering import Remembered
from qpruner_core.pipeline.signals import required_signals
from qpruner_core.pipeline.stopping import nothing_measured, out_of_patience, remarks, unmoved
from qpruner_core.pipeline.trial_recovery import check_same_training, trained_for
from qpruner_core.quantization.shapes import check_plan
from qpruner_core.search.asking import Known
from qpruner_core.search.costs import cost_of, training_load, unit_costs_of
from qpruner_core.search.pareto import best_measured, front_numbers
from qpruner_core.search.presets import QPRUNER_3, baselines, qpruner_3
from qpruner_core.search.study import Study
from qpruner_core.store.records import RunStore
from qpruner_core.store.workers import is_gone

THIS_PROCESS = f"{socket.gethostname()}/process {os.getpid()}"
"""Who claims trials of a search that runs in one process, without workers."""


def check_budget(
    spec: SearchSpec,
    dense: ModelLayout,
    pruned: ModelLayout,
    further: Sequence[ModelLayout] = (),
) -> int:
    """Return the budget in bytes if some plan of the pruned model fits it.

    Args:
        spec: What is searched.
        dense: What a budget given as a fraction refers to.
        pruned: The model as the run prunes it.
        further: It at every further level of a joint search.

    Raises:
        BadInputError: The budget is no number.
        InfeasibleBudgetError: The smallest plan is larger; the message names it.
    """
    reference = dense_bytes(dense)
    budget = parse_budget(spec.memory_budget, reference)
    search_space(pruned, spec, further).check_budget(budget, reference)
    return budget


class Searching:
    """One study of one run; built again after a crash from the record and the storage alone."""

    def __init__(
        self,
        store: RunStore,
        record: RunRecord,
        materials: Materials,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        self._should_stop = should_stop
        if record.load is None or record.prune is None:
            raise NotReadyError(
                "This run has no pruned model yet. Run its pruning step first; a ratio of 0 keeps "
                "all."
            )
        self._prints = Fingerprints(store, record.run_id)
        signals = required_signals(record, self._prints)
        self._store, self._run_id, self._materials = store, record.run_id, materials
        self._spec, self._name = record.spec.search, record.study_name
        self._baselines_name, self._by_hand_name = record.baselines_name, record.by_hand_name
        self._layout = record.prune.layout
        self._levels = signals.levels if self._spec.joint != "none" else ()
        further = [level.layout for level in self._levels[1:]]
        self._budget = check_budget(self._spec, record.load.layout, self._layout, further)
        self._space = search_space(self._layout, self._spec, further)
        presets = baselines(
            self._space,
            self._layout,
            signals.mutual_information,
            self._budget,
            seed=self._spec.seed,
        )
        self._presets = {name: plan for name, plan in presets.items() if self._fits(plan)}
        self.left_out = tuple(name for name in presets if name not in self._presets)
        self._signals, self._record = signals, record
        self._load = training_load(record.spec.recovery, materials.device.compute_dtype.itemsize)
        self._study: Study | None = None
        self._memory: Remembered | None = None
        self._measuring = Measuring(self._bench(), self._spec)

    @property
    def n_baselines(self) -> int:
        """Baselines of this study."""
        return len(self._presets)

    @property
    def n_plans(self) -> int:
        """Baselines and trials together."""
        return self.n_baselines + self._spec.n_trials

    def baseline(self, index: int) -> Trial:
        """Measure a baseline, unless it has been measured; for the only writer of the run."""
        return self._baseline(-1 - index, list(self._presets)[index])

    def next(self, owner: str, *, alone: bool) -> tuple[Trial, int] | None:
        """Claim the plan to measure next, and measure it.

        Args:
            owner: Who claims it.
            alone: Nobody else measures for this run now, so that a trial which counts as running
                was left by somebody who died or failed.

        Returns:
            The trial and how many are finished; None where there is nothing left to claim.

        Raises:
            StoppedError: It was asked to stop while it trained the plan, which counts as running
                and is measured by whoever claims it again.
        """
        study, home = self._open(), self._store.home
        if self.ending():
            return None
        proposal = study.claim(
            owner, self._spec.n_trials, lambda other: alone or is_gone(home, other)
        )
        if proposal.exhausted:
            return None
        answer = self._measuring.answer(proposal.plan, self._rivals(study))
        if answer.metrics is not None:
            study.record(proposal.number, answer.metrics)
        elif answer.state == "stopped":
            study.stop(proposal.number, answer.reason)
        else:
            study.fail(proposal.number, answer.reason)
        trials = study.trials()
        n_finished = sum(trial.state != "running" for trial in trials)
        return next(t for t in trials if t.number == proposal.number), n_finished

    def ending(self) -> str:
        """Return why the search ends before its last trial; empty where it goes on."""
        if not self._spec.patience:
            return ""
        trials, known = self._open().trials(), self._read(self._baselines_name)
        n_finished = sum(trial.state != "running" for trial in trials)
        n_unmoved = unmoved(known, trials, self._spec.objective, self._spec.cost)
        return out_of_patience(n_unmoved, n_finished, self._spec.patience, self._spec.n_trials)

    def finish(self) -> SearchOutcome:
        """Return the slot of *search*: all that was measured, the front, the best in budget.

        Raises:
            NotReadyError: Nothing has been measured.
            InfeasibleBudgetError: Nothing measured fits the budget.
        """
        # Of a search that was stopped, a killed worker may have left a trial that still counts as
        # running; going on with the search measures it.
        ended = (trial for trial in self._open().trials() if trial.state != "running")
        trials = (*ended, *self._read(self._by_hand_name))
        known = self._name_the_refined(self._read(self._baselines_name), trials)
        everything = (*trials, *known)  # of equal plans the study's own number stays on the front
        chosen = best_measured(everything, self._spec.objective, self._budget)
        if chosen is None:
            raise nothing_measured(everything)
        front = front_numbers(everything, self._spec.objective, self._spec.cost)
        by_number = {trial.number: trial for trial in everything}
        return SearchOutcome(
            spec=self._spec,
            budget_bytes=self._budget,
            study_name=self._name,
            baselines=known,
            trials=trials,
            front=front,
            chosen=chosen.number,
            remarks=remarks(
                self._record.spec,
                trials,
                [by_number[number] for number in front],
                self._remembered().losses,
                self.ending(),
            ),
        )

    def close(self) -> None:
        """Give the connections to the studies back."""
        if self._study is not None:
            self._study.close()
            self._study = None

    def by_hand(self, plan: PrecisionPlan) -> Trial:
        """Measure a plan made by hand and keep it beside the study; once for every plan.

        Raises:
            BadInputError: The plans of the finished search were trained in another way.
        """
        check_same_training(self._record, self._name)
        known = self._read(self._by_hand_name)
        for trial in known:
            if trial.plan.key == plan.key:
                return trial
        check_plan(self._space.layout_of(plan), plan)
        trial = Trial(
            number=FIRST_BY_HAND + len(known),
            name=f"by hand {len(known) + 1}",
            plan=plan,
            metrics=self.measure(plan),
        )
        self._store.write_value(self._run_id, self._by_hand_name, (*known, trial))
        return trial

    def measure(self, plan: PrecisionPlan) -> Metrics:
        """Measure one plan to the end, unless the run knows it.

        Raises:
            NonFiniteLossError: The loss is not a number.
        """
        metrics = self._measuring.full(plan).metrics
        if metrics is None:
            raise ValueError("a plan without rivals was stopped")
        return metrics

    def _bench(self) -> Bench:
        return Bench(
            bank_of=self._bank_of,
            suite=self._materials.suite,
            layout_of=self._space.layout_of,
            remembered=self._remembered,
            device_name=self._materials.device.name,
            study_name=self._name,
            load=self._load,
            trained=trained_for(
                self._spec.recover_steps,
                self._record.spec.recovery,
                self._space.layout_of,
                self._materials.training,
                self._should_stop,
            ),
        )

    def _bank_of(self, plan: PrecisionPlan) -> ShowsPlans:
        """Return the bank that shows a plan. Latency needs packed candidates: dense ones take the
        same time in every precision.
        """
        wanted = (*self._bank_precisions(), *plan.precisions.values())
        packed = True if self._spec.cost == "latency" else None
        precisions = tuple(dict.fromkeys(wanted))
        return self._materials.search_bank(precisions, self._levels, packed=packed)

    def _remembered(self) -> Remembered:
        if self._memory is None:
            held = "packed, timed" if self._spec.cost == "latency" else "as usual"
            arithmetic = f"{self._materials.device.name}, {held}"
            key = self._prints.measured(self._record, arithmetic)
            self._memory = Remembered(self._store, self._run_id, key)
        return self._memory

    def _rivals(self, study: Study) -> list[Rival]:
        """Return every measured plan that another one has to beat; none where plans are not
        stopped.
        """
        if self._spec.rungs == 1:
            return []
        beside = (*self._read(self._baselines_name), *self._read(self._by_hand_name))
        memory = self._remembered()
        return [
            Rival(
                name=trial.name or f"trial {trial.number}",
                cost=cost_of(trial.metrics, self._spec.cost),
                losses=memory.losses(trial.plan),
            )
            for trial in (*beside, *study.trials())
            if trial.metrics is not None
        ]

    def _bank_precisions(self) -> tuple[str, ...]:
        used = [name for plan in self._presets.values() for name in plan.precisions.values()]
        return tuple(dict.fromkeys((*self._spec.precisions, *used)))

    def _baseline(self, number: int, name: str) -> Trial:
        plan = self._presets[name]
        known = tuple(t for t in self._read(self._baselines_name) if t.name in self._presets)
        for trial in known:
            if trial.name == name and trial.plan.key == plan.key:
                return trial
        known = tuple(trial for trial in known if trial.name != name)
        answer: Answer = self._measuring.answer(plan)
        trial = Trial(
            number=number,
            name=name,
            plan=plan,
            metrics=answer.metrics,
            state=answer.state,
            reason=answer.reason,
        )
        self._store.write_value(self._run_id, self._baselines_name, (*known, trial))
        return trial

    def _fits(self, plan: PrecisionPlan) -> bool:
        try:
            check_plan(self._layout, plan)
        except IncompatibleShapeError:
            return False
        return True

    def _open(self) -> Study:
        if self._study is None:
            measured = {
                trial.plan.key: trial.metrics
                for trial in self._read(self._baselines_name)
                if trial.metrics is not None
            }
            self._study = Study.open(
                self._store.study_url(),
                self._name,
                self._space,
                self._spec,
                self._budget,
                Known(
                    sensitivities=self._signals.sensitivities,
                    measured=measured,
                    sizes=self._sizes(),
                    weights=self._weights(),
                ),
            )
        return self._study

    def _sizes(self) -> NDArray[np.int64] | None:
        """Return what every unit costs where the search weighs something else than bytes."""
        if self._spec.cost == "weight_bytes":
            return None
        cells, beside = self._signals.sensitivities, self._signals.seconds_beside
        return unit_costs_of(self._space, cells, self._spec.cost, self._load, beside).matrix

    def _weights(self) -> str:
        """Return what a stored study must have been measured on, so that nothing is mixed."""
        weights = self._prints.weights(self._record)
        text = self._prints.evaluation_text(self._record)
        weights += f", evaluation text {text}" if text else ""
        learned = self._prints.training_text(self._record) if self._spec.recover_steps else ""
        weights += f", training text {learned}" if learned else ""
        # Seconds, and bytes of activations, are those of one device.
        device = self._materials.device.name
        return weights if self._spec.cost == "weight_bytes" else f"{weights} on {device}"

    def _read(self, name: str) -> tuple[Trial, ...]:
        return self._store.read_value(self._run_id, name, tuple[Trial, ...]) or ()

    def _name_the_refined(
        self, known: tuple[Trial, ...], trials: tuple[Trial, ...]
    ) -> tuple[Trial, ...]:
        asked = (self._layout, self._budget, self._spec.objective, self._space.fixed)
        best = qpruner_3((*known, *trials), *asked)
        if best is None:
            return known
        lowest = min((trial.number for trial in known), default=0)
        return (*known, replace(best, number=lowest - 1, name=QPRUNER_3))


def told_values(trial: Trial, seconds: float) -> dict[str, float]:
    """Return the numbers that go with the report of a measured plan."""
    found = trial.metrics
    if found is None:
        return {"seconds": seconds}
    size = float(found.weight_bytes)
    return {
        "seconds": seconds,
        "loss": found.loss,
        "accuracy": found.accuracy,
        "weight_bytes": size,
    }
