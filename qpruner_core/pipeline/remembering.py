"""No plan is measured twice in a run: what was measured answers, whichever study asks.

Every measured plan is a value of its own in the run's folder, named after what its numbers depend
on (`fingerprint.Fingerprints.measured`) and after the plan, so that workers never write the same
file with different content, and a copy of the run takes what was measured along.
"""

from __future__ import annotations

from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.store.measured import Kept, value_name
from qpruner_core.store.records import RunStore


class Remembered:
    """What was measured under one key, plan by plan."""

    def __init__(self, store: RunStore, run_id: str, key: str) -> None:
        self._store, self._run_id, self._key = store, run_id, key
        self._whole: dict[str, Kept] = {}

    def read(self, plan: PrecisionPlan) -> Kept | None:
        """Return what was measured of a plan; None where nothing was."""
        known = self._whole.get(plan.key)
        if known is None:
            known = self._store.read_value(self._run_id, self._name(plan), Kept)
            if known is not None and known.key != plan.key:
                return None
            if known is not None and known.metrics is not None:
                self._whole[plan.key] = known
        return known

    def losses(self, plan: PrecisionPlan) -> tuple[float, ...]:
        """Return the loss of every sequence of a plan that was measured in full, else nothing."""
        known = self.read(plan)
        return known.sequence_losses if known is not None and known.metrics is not None else ()

    def write(self, plan: PrecisionPlan, kept: Kept) -> None:
        """Keep what was measured of a plan."""
        self._store.write_value(self._run_id, self._name(plan), kept)
        if kept.metrics is not None:
            self._whole[plan.key] = kept

    def _name(self, plan: PrecisionPlan) -> str:
        return value_name(self._key, plan)
