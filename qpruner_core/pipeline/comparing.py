"""Criteria side by side: each prunes the dense model at one ratio, and what is left is measured.

The rows stand in the run's record as they come, so a comparison that was stopped or killed goes on
where it was, and asking again at the same ratio measures only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

from qpruner_core.catalog import CRITERIA
from qpruner_core.domain.record import ComparedPruning, Comparison, RunRecord
from qpruner_core.domain.spec import COMPENSATIONS, PruningSpec
from qpruner_core.errors import NotReadyError
from qpruner_core.pipeline.cutting import Cutting
from qpruner_core.pipeline.materials import Materials, bytes_16_bit
from qpruner_core.pruning.selection import select
from qpruner_core.store.records import RunStore

Pairs = tuple[tuple[str, str], ...]
"""Criterion and compensation of every row."""


def row_words(criterion: str, compensation: str) -> str:
    """Return what a row is called, for a person."""
    return criterion if compensation == "none" else f"{criterion} with {compensation}"


class Comparing:
    """The comparison of one run; built again after a crash from the record alone."""

    def __init__(
        self,
        store: RunStore,
        record: Callable[[], RunRecord],
        materials: Materials,
        cutting: Cutting,
    ) -> None:
        self._store = store
        self._record = record
        self._materials = materials
        self._cutting = cutting

    def begin(self, spec: PruningSpec) -> Pairs:
        """Return the rows that a comparison has: every scored unit criterion, in the order of the
        scores, and with compensation ``"bias"`` each without and with it.

        The rows of an earlier comparison that asked for the same are kept. The dense model is
        measured unless it was for these.

        Args:
            spec: Ratio, scope, shape and all else that the rows share; its criterion does not
                matter.

        Raises:
            NotReadyError: The run has not been scored.
            QPrunerError: The ratio cannot be reached.
        """
        pairs = self._pairs(spec)
        record = self._record()
        if record.load is not None:
            select(record.load.layout, None, spec)
        known = record.comparison
        if known is None or not known.is_of(spec):
            dense = self._materials.dense()
            metrics = self._materials.suite().evaluate(
                dense.model,
                weight_bytes=bytes_16_bit(dense.layout),
                device_name=dense.device.name,
            )
            known = Comparison(spec=spec, dense=metrics, rows=())
        self._store.write(replace(self._record(), comparison=replace(known, spec=spec)))
        return pairs

    def one(self, criterion: str, compensation: str, spec: PruningSpec) -> ComparedPruning:
        """Return a row: measured and added to the record, unless it stands there.

        Args:
            criterion: Of the row.
            compensation: Of the row.
            spec: As `begin` was given it.

        Raises:
            NotReadyError: No comparison has begun, or the run was scored anew since, or another
                comparison has begun.
        """
        comparison = self._comparison()
        if not comparison.is_of(spec):
            raise NotReadyError(
                f"The run compares criteria at other settings by now: at a pruning ratio of "
                f"{comparison.spec.ratio:g}, while {spec.ratio:g} was asked for here, or with "
                f"another scope, shape or protection. Start this comparison again."
            )
        for row in comparison.rows:
            if (row.criterion, row.compensation) == (criterion, compensation):
                return row
        row = self._measured(
            replace(comparison.spec, criterion=criterion, compensation=compensation)
        )
        extended = replace(comparison, rows=(*comparison.rows, row))
        self._store.write(replace(self._record(), comparison=extended))
        return row

    def progress(self) -> tuple[int, int]:
        """Return how many rows of the comparison are measured, and how many it has."""
        comparison = self._comparison()
        wanted = self._pairs(comparison.spec)
        measured = {(row.criterion, row.compensation) for row in comparison.rows}
        return len(measured & set(wanted)), len(wanted)

    def _measured(self, spec: PruningSpec) -> ComparedPruning:
        self._cutting.prepare(spec)
        started, loading = perf_counter(), self._materials.loading_seconds
        cut = self._cutting.decide(spec)
        self._materials.cut(cut.plan, cut.biases, "compared" if cut.plan.biases else "")
        seconds = perf_counter() - started - (self._materials.loading_seconds - loading)
        left = self._materials.current()
        metrics = self._materials.suite().evaluate(
            left.model, weight_bytes=bytes_16_bit(cut.layout), device_name=left.device.name
        )
        return ComparedPruning(
            criterion=spec.criterion,
            compensation=spec.compensation,
            parameters=cut.layout.parameters,
            metrics=metrics,
            seconds=seconds,
        )

    def _pairs(self, spec: PruningSpec) -> Pairs:
        outcome = self._record().score
        if outcome is None:
            raise NotReadyError(
                "This run has no importance scores yet, and a comparison needs them. Score it "
                "first, by every criterion that is to be compared."
            )
        criteria = [
            c for c in outcome.spec.criteria if CRITERIA.entry(c).facts["scores"] == "units"
        ]
        ways = COMPENSATIONS if spec.compensation != "none" else ("none",)
        return tuple((criterion, way) for criterion in criteria for way in ways)

    def _comparison(self) -> Comparison:
        found = self._record().comparison
        if found is None:
            raise NotReadyError(
                "This run has no comparison of criteria to go on with; it was scored anew since. "
                "Start the comparison again."
            )
        return found
