"""What the measured plans of a page say: the searches' own remarks, pruning against bits, and how
fast each search got where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import streamlit as st

from app import charts_front, charts_hypervolume, points, sequences, services, state, wording
from app.charts_hypervolume import Corner
from app.clouds import Cloud, Floats
from app.glossary import tip
from qpruner_core.domain.record import RunRecord

T = TypeVar("T")


def remarks(records: Sequence[RunRecord]) -> None:
    """Show what the searches say of themselves, such as that the text was too small."""
    for record in records:
        for remark in record.search.remarks if record.search is not None else ():
            name = f"**{state.run_name(record)}:** " if len(records) > 1 else ""
            st.warning(f"{name}{remark}", icon=":material/info:")


def joint_line(records: Sequence[RunRecord], clouds: Mapping[str, Cloud], objective: str) -> None:
    """Say what the measured data say on pruning against bits, where models pruned by several
    ratios stand on one picture.

    Args:
        records: The runs, that of the page first; others of another model or text are left out.
        clouds: Run -> its points, all of them.
        objective: What is weighed.
    """
    first = records[0].spec
    alike = [
        r
        for r in records
        if r.spec.model.source == first.model.source and r.spec.data == first.data
    ]
    ratios = {ratio for record in alike for ratio in clouds[record.run_id].ratios}
    if len(ratios) < 2:
        return
    said = _held(
        f"joint/{records[0].run_id}",
        (objective, *((r.run_id, r.study_name, len(clouds[r.run_id])) for r in alike)),
        lambda: sequences.joint_words(alike, clouds, objective),
    )
    if said:
        st.markdown(f":material/balance: {said}", help=tip("joint_sentence"))


def hypervolume(
    clouds: Mapping[str, Cloud], records: Sequence[RunRecord], weighed: tuple[str, str]
) -> None:
    """Draw the area that the measured front covers after every trial, of all runs.

    Args:
        clouds: Run -> its points, all of them.
        records: The runs; the first one fixes the corner.
        weighed: Objective and cost.
    """
    objective, cost = weighed
    record = records[0]
    corner = charts_hypervolume.corner_of(clouds[record.run_id], objective, cost)
    if corner is None:
        return
    curves = {
        state.run_name(each): _areas(clouds[each.run_id], weighed, corner) for each in records
    }
    whole = max(float(reached[-1]) for reached in curves.values())
    if whole <= 0 or max(len(reached) for reached in curves.values()) < 2:
        return
    predicted = _predicted_area(record, weighed, corner)
    st.subheader("How fast the search got there", anchor=False, help=tip("hypervolume"))
    st.plotly_chart(
        charts_hypervolume.hypervolumes(curves, whole, predicted), key="results/hypervolume"
    )
    value = corner.badness if objective == "loss" else -corner.badness
    words = wording.nats(value) if objective == "loss" else wording.percent(value)
    st.caption(
        f"The area between the measured front and a fixed corner, as a share of the area at the "
        f"end. The corner lies at {charts_front.cost_words(corner.cost, cost)} (as "
        f"{corner.dearest}, the dearest baseline) and {objective} {words} (as {corner.cheapest}, "
        f"the cheapest one); before the first trial it is what the baselines alone reach."
    )


def _areas(found: Cloud, weighed: tuple[str, str], corner: Corner) -> Floats:
    return _held(
        f"areas/{found[0].run_id}/{weighed}",
        (len(found), float(found.value("loss").sum()), corner),
        lambda: charts_hypervolume.areas(found, *weighed, corner),
    )


def _predicted_area(record: RunRecord, weighed: tuple[str, str], corner: Corner) -> float:
    """Return the area of the predicted front; 0 where it is not predicted for these."""
    objective, cost = weighed
    spec = record.search.spec if record.search is not None else record.spec.search
    if objective != "loss":
        return 0.0
    if cost == "weight_bytes":
        foreseen = services.predicted(record, spec)
        costs = foreseen.weight_bytes.astype(float) if foreseen is not None else None
    else:
        by_cost = services.predicted_by_cost(record, spec) if spec.cost == cost else None
        foreseen = by_cost.front if by_cost is not None else None
        costs = by_cost.costs if by_cost is not None else None
    if foreseen is None or costs is None:
        return 0.0
    losses = points.loss_at_16_bit(record) + foreseen.loss_increase
    return _held(
        f"predicted/{record.run_id}/{weighed}",
        (id(foreseen), corner),
        lambda: charts_hypervolume.predicted_area(costs, losses, corner),
    )


def _held(key: str, signature: object, make: Callable[[], T]) -> T:
    """Return what was made under a key, made anew when its signature is another one."""
    kept = _made(str(services.store().home))
    found = kept.get(key)
    if found is None or found[0] != signature:
        found = (signature, make())
        kept[key] = found
    return cast("T", found[1])


@st.cache_resource(show_spinner=False)
def _made(home: str) -> dict[str, tuple[object, object]]:
    return {}
