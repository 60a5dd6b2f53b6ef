"""Losses sequence by sequence of the few plans that are compared, so that their differences carry
paired standard errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import streamlit as st

from app import plans, services
from app.clouds import Cloud
from app.points import Point
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.search.joint_words import JointPoint, compared, joint_points, joint_sentence
from qpruner_core.store.measured import sequence_losses


def of_plan(run_id: str, plan: PrecisionPlan, metrics: Metrics) -> tuple[float, ...]:
    """Return the loss of every sequence of a measured plan; empty where they were not kept."""
    where = (str(services.store().home), run_id, plan.key, metrics.loss)
    return _losses(where, plan, metrics)


def of_points(found: Mapping[str, Point]) -> dict[str, tuple[float, ...]]:
    """Return letter -> losses of plans side by side; none of those whose run reads other text or
    another model than the first one's.
    """
    specs = {p.run_id: services.store().read(p.run_id).spec for p in found.values()}
    first = specs[next(iter(found.values())).run_id] if found else None
    return {
        letter: of_plan(point.run_id, point.plan, point.metrics)
        for letter, point in found.items()
        if point.plan is not None
        and first is not None
        and specs[point.run_id].data == first.data
        and specs[point.run_id].model == first.model
    }


def same_items(found: Mapping[str, Point]) -> frozenset[str]:
    """Return the letters of plans that answered items of the first one: of one task at least, by
    what was kept of them. Older records kept nothing; there the run has to ask for the same items.
    """
    first = next(iter(found.values()), None)
    return frozenset(
        letter for letter, point in found.items() if first is not None and _alike(first, point)
    )


def _alike(first: Point, other: Point) -> bool:
    tasks = other.metrics.tasks
    both = [(one.items, tasks[n].items) for n, one in first.metrics.tasks.items() if n in tasks]
    if any(one or two for one, two in both):
        return any(one == two for one, two in both)
    return _asked_items(first) == _asked_items(other)


def _asked_items(point: Point) -> tuple[str, int]:
    data = services.store().read(point.run_id).spec.data
    return data.tasks, data.items_per_task


def joint_words(records: Sequence[RunRecord], clouds: Mapping[str, Cloud], objective: str) -> str:
    """Return the sentence on pruning against bits, its differences with paired errors.

    Args:
        records: Runs of one model on one text.
        clouds: Run -> its points, all of them.
        objective: What is weighed.
    """
    found: list[tuple[str, Trial, JointPoint]] = []
    for record in records:
        found += _told(record, clouds[record.run_id], objective)
    told = [point for _, _, point in found]
    wanted = compared(told) if objective == "loss" else frozenset[JointPoint]()
    for index, (run_id, trial, point) in enumerate(found):
        if point in wanted and trial.metrics is not None:
            losses = of_plan(run_id, trial.plan, trial.metrics)
            told[index] = replace(point, sequence_losses=losses)
    return joint_sentence(told, objective)


def _told(record: RunRecord, found: Cloud, objective: str) -> list[tuple[str, Trial, JointPoint]]:
    """Return the plans of a run that may be best under some budget: all of a joint search, else
    those on its front.
    """
    card, space = record.load, plans.space_of(record)
    if card is None or space is None:
        return []
    trials = [t for t in services.trials(record) if t.metrics is not None]
    if space.joint == "none":
        numbers = {found[index].number for index in found.front(objective)}
        trials = [trial for trial in trials if trial.number in numbers]
    trials = [trial for trial in trials if trial.state == "complete"]
    told = joint_points(trials, card.layout, space.layout_of, objective)
    return [(record.run_id, *pair) for pair in zip(trials, told, strict=True)]


@st.cache_resource(show_spinner=False, max_entries=256)
def _losses(
    where: tuple[str, str, str, float], _plan: PrecisionPlan, _metrics: Metrics
) -> tuple[float, ...]:
    return sequence_losses(services.store(), where[1], _plan, _metrics)
