"""A row of the paper's table, to be measured again: its plan with the adapter that it keeps beside
the line of its ratio's run.
"""

from __future__ import annotations

import difflib

from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.reproduction import (
    VARIANTS,
    Reproduction,
    ReproductionRow,
    ratio_key,
)
from qpruner_core.errors import BadInputError, NotReadyError, UnknownNameError
from qpruner_core.pipeline.evaluating import Subject
from qpruner_core.pipeline.reproduction_settings import held_at_16_bit
from qpruner_core.pipeline.reproduction_standing import pruning_of
from qpruner_core.store.records import RunStore


def row_of_table(
    record: RunRecord, variant: str, ratio: float | None
) -> tuple[Reproduction, ReproductionRow]:
    """Return the table of a run and a measured row of it.

    Args:
        record: The run that holds the table.
        variant: Name of the row; upper and lower case are the same.
        ratio: Its pruning ratio; None: the only one that the table has.

    Raises:
        NotReadyError: The run has no table, or the row has not been measured yet.
        UnknownNameError: No row is called so.
        BadInputError: The table has no such ratio, or several and none was given.
    """
    table = record.reproduction
    if table is None:
        raise NotReadyError(
            f"The run {record.run_id} has no table of the paper's rows. Give the run of one, or "
            f"make one with 'qpruner reproduce'."
        )
    name, ratio = _variant(variant), _ratio(table, ratio)
    row = table.row(ratio, name)
    if row is None:
        raise NotReadyError(
            f"The row {name} at {ratio:g} has not been measured yet. Go on with the table first."
        )
    return table, row


def subject_of_row(store: RunStore, table: Reproduction, row: ReproductionRow) -> Subject:
    """Return the plan of a row as the table measured it: with its adapter, and with what the
    setting holds in memory.

    Raises:
        BadInputError: The run of its ratio was deleted.
        NotReadyError: That run was pruned anew, so that the adapter fits it no more.
    """
    now = pruning_of(store.read(row.run_id))
    if not now or (row.pruning and row.pruning != now):
        raise NotReadyError(
            f"The run {row.run_id} of this row was pruned anew after the row was measured. Go on "
            f"with the table, which measures its rows again."
        )
    return Subject(
        trial=row.trial,
        plan=row.plan,
        recovery=row.recovery,
        hold_16_bit=held_at_16_bit(table.spec.setting),
        items_per_task=table.spec.items_per_task,
        row=row.variant,
    )


def _variant(asked: str) -> str:
    known = {name.lower(): name for name in VARIANTS}
    if asked.lower() in known:
        return known[asked.lower()]
    near = difflib.get_close_matches(asked.lower(), known, n=1)
    meant = f" Did you mean {known[near[0]]!r}?" if near else ""
    raise UnknownNameError(
        f"The table has no row {asked!r}.{meant} Its rows are {', '.join(VARIANTS)}."
    )


def _ratio(table: Reproduction, asked: float | None) -> float:
    ratios = table.spec.ratios
    if asked is None and len(ratios) == 1:
        return ratios[0]
    if asked not in ratios:
        what = "No pruning ratio was given" if asked is None else f"The ratio {asked:g} was given"
        raise BadInputError(
            f"{what}, and the table has {', '.join(map(ratio_key, ratios))}. Name one of these."
        )
    return asked
