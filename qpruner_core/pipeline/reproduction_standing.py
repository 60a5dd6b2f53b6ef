"""Whether what a table has come to is still what it was begun as: runs and files stay a person's
own, and may be changed between two pieces of it.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from qpruner_core.catalog import STRATEGIES
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.reproduction import Reproduction, of_ratio
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import NotReadyError
from qpruner_core.pipeline.fingerprint import Fingerprints, digest_of
from qpruner_core.pipeline.reproduction_pace import BEFORE
from qpruner_core.pipeline.reproduction_settings import search_spec
from qpruner_core.store.records import RunStore

_EDITED = (
    "The text or the items that this table is measured on were edited after it was begun, and "
    "rows on different items are not one table. Put the files back as they were, or begin a new "
    "table, in a folder and a run of its own."
)


def pruning_of(record: RunRecord) -> str:
    """Return a fingerprint of what a run has pruned; empty where it has not."""
    if record.prune is None:
        return ""
    return digest_of([asdict(record.prune.plan), record.prune.biases])


def changed_since(table: Reproduction, child: RunRecord, wanted: RunSpec, ratio: float) -> str:
    """Return what of a ratio's run is no longer as the table wants it, in a word or two; empty
    where all that is there is.

    Args:
        table: The table.
        child: The run, as far as it has come.
        wanted: What it is asked for up to its pruning.
        ratio: The pruning ratio.
    """
    standing = {
        "model or data": (child.spec.model, child.spec.data) == (wanted.model, wanted.data),
        "scores": _is_scored_for(child, wanted),
        "pruning": _is_pruned_for(child, wanted, table, ratio),
        "search": _is_searched_for(child, table),
        "recovery of its trials": _trains_trials_for(child, table),
    }
    return next((name for name, holds in standing.items() if not holds), "")


def check_files(store: RunStore, record: RunRecord, table: Reproduction) -> None:
    """Refuse to go on with a table whose text or items were edited: its rows were measured on
    others than those to come.

    Raises:
        NotReadyError: They are not what they were when the table was begun.
    """
    is_measured = bool(table.rows) or table.dense is not None or bool(table.search_seconds)
    if not table.evaluated or not is_measured:
        return
    if evaluated(store, record) != table.evaluated:
        raise NotReadyError(_EDITED)


def check_items(table: Reproduction, measured: Metrics) -> None:
    """Refuse a row that answers other items than those that the table has.

    Raises:
        NotReadyError: It does.
    """
    rows = [row.recovery.after for row in table.rows]
    for known in (*rows, *([table.dense] if table.dense is not None else [])):
        for name, result in measured.tasks.items():
            other = known.tasks.get(name)
            stated = other is not None and bool(other.items) and bool(result.items)
            if stated and other is not None and other.items != result.items:
                raise NotReadyError(_EDITED)


def evaluated(store: RunStore, record: RunRecord) -> str:
    """Return a fingerprint of the person's files that plans and rows are measured on."""
    return Fingerprints(store, record.run_id).evaluation_text(record)


def with_search(table: Reproduction, child: RunRecord, ratio: float, key: str) -> Reproduction:
    """Return the table with what the search of a ratio took, and its remarks.

    Args:
        table: The table.
        child: The run, which has searched.
        ratio: The pruning ratio.
        key: The ratio as `ratio_key` names it.
    """
    taken = sum(child.seconds.get(name, 0.0) for name in (*BEFORE, "search"))
    remarks = child.search.remarks if child.search is not None else ()
    told = tuple(of_ratio(ratio, f": {sentence}") for sentence in remarks)
    seconds = {**table.search_seconds, key: taken}
    return replace(table, search_seconds=seconds, remarks=(*table.remarks, *told))


def _is_scored_for(child: RunRecord, wanted: RunSpec) -> bool:
    scored = child.score.spec if child.score is not None else child.spec.importance
    return child.spec.importance == scored == wanted.importance


def _is_pruned_for(child: RunRecord, wanted: RunSpec, table: Reproduction, ratio: float) -> bool:
    """Whether a run has the pruning that is wanted, and that of the rows; or none yet."""
    if child.prune is None:
        return True
    kept = {row.pruning for row in table.rows if row.ratio == ratio and row.pruning}
    return child.prune.spec == wanted.pruning and kept <= {pruning_of(child)}


def _is_searched_for(child: RunRecord, table: Reproduction) -> bool:
    """Whether signals and search of a run are those that are wanted; or not made yet."""
    signals = child.quantize
    if child.prune is None or signals is None:
        return True
    wanted = search_spec(table.spec, child.spec.data, child.prune.spec, child.prune.layout)
    # With its options written out, as a run keeps it.
    wanted = replace(wanted, options=STRATEGIES.options(wanted.strategy, wanted.options))
    made = child.search.spec if child.search is not None else child.spec.search
    measured = (signals.tie, signals.precisions, signals.information, set(signals.fixed))
    asked = (wanted.tie, wanted.precisions, wanted.information, set(wanted.fixed))
    return child.spec.search == made == wanted and measured == asked and not signals.levels


def _trains_trials_for(child: RunRecord, table: Reproduction) -> bool:
    """Whether the trials of a search that is under way are recovered as is wanted."""
    if child.quantize is None or child.search is not None or not table.spec.recover_steps:
        return True
    return replace(child.spec.recovery, trial=None) == table.spec.recovery
