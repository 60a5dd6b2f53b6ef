"""How a trial lies in the study's storage: the names of its attributes and what their texts mean.

Plan and metrics are user attributes of the Optuna trial, so that a reader needs neither Optuna nor
the model: the study itself carries which Linears its units hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import Trial
from qpruner_core.search.space import SearchSpace

SPACE = "space"
"""Study attribute: `StoredSpace.text`."""
FINGERPRINT = "fingerprint"
"""Study attribute: what the study was made for, name -> text."""
SLOT = "slot"
"""Trial attribute: the slot it fills; int."""
PLAN = "plan"
"""Trial attribute: precision per unit, joined by commas."""
ORIGIN = "origin"
"""Trial attribute: ``"front"`` (predicted), ``"strategy"``, ``"lowered"`` (to hold the budget)
or ``"neighbour"``."""
METRICS = "metrics"
"""Trial attribute: `metrics_to_text`."""
REASON = "reason"
"""Trial attribute: why it failed or was stopped."""
OWNER = "owner"
"""Trial attribute: the worker that measures it."""
LEVELS = "levels"
"""Trial attribute: pruning level per layer, joined by commas; only where not all are 0."""

STATES = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "stopped"}
"""Optuna's state -> ours; any other is ``"running"``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSpace:
    """What a stored study says of its space: enough to read its plans."""

    linears: tuple[str, ...]
    """Linear names in forward order."""
    unit_of: tuple[int, ...]
    """Index of each Linear's unit; -1 where it is fixed."""
    fixed: tuple[str, ...] = ()
    """Precisions of the fixed Linears, in forward order."""

    @classmethod
    def of(cls, space: SearchSpace) -> StoredSpace:
        """Return what is stored of a space."""
        linears = [linear.name for linear in space.layout.linears]
        unit = {name: i for i, names in enumerate(space.units.values()) for name in names}
        return cls(
            linears=tuple(linears),
            unit_of=tuple(unit.get(name, -1) for name in linears),
            fixed=tuple(space.fixed.values()),
        )

    @classmethod
    def read(cls, text: str) -> StoredSpace:
        """Return the value whose `text` this is."""
        stored = json.loads(text)
        fixed = tuple(stored.get("fixed", ()))
        return cls(linears=tuple(stored["linears"]), unit_of=tuple(stored["unit_of"]), fixed=fixed)

    @property
    def text(self) -> str:
        """JSON."""
        fixed = {"fixed": self.fixed} if self.fixed else {}
        return json.dumps({"linears": self.linears, "unit_of": self.unit_of, **fixed})

    def plan(self, text: str, levels: str = "") -> PrecisionPlan:
        """Return the plan of a trial's `PLAN` and `LEVELS` attributes."""
        units, fixed = text.split(","), iter(self.fixed)
        chosen = [units[i] if i >= 0 else next(fixed) for i in self.unit_of]
        return PrecisionPlan(
            precisions=dict(zip(self.linears, chosen, strict=True)),
            levels=tuple(int(level) for level in levels.split(",")) if levels else (),
        )

    def trial(self, number: int, state: str, attributes: Mapping[str, object]) -> Trial:
        """Return a trial from its Optuna state and its user attributes."""
        metrics = attributes.get(METRICS) if state == "COMPLETE" else None
        return Trial(
            number=number,
            name="",
            plan=self.plan(str(attributes[PLAN]), str(attributes.get(LEVELS, ""))),
            metrics=metrics_from_text(str(metrics)) if metrics is not None else None,
            state=STATES.get(state, "running"),
            reason=str(attributes.get(REASON, "")),
            worker=str(attributes.get(OWNER, "")),
        )


def plan_to_text(space: SearchSpace, plan: PrecisionPlan) -> str:
    """Return the `PLAN` attribute of a plan of the space."""
    return ",".join(space.choices(plan).values())


def metrics_to_text(metrics: Metrics) -> str:
    """Return metrics as JSON; answers item by item shrink to a text of 0 and 1."""
    values = asdict(metrics)
    for result in values["tasks"].values():
        result["correct"] = "".join("01"[answer] for answer in result["correct"])
    return json.dumps(values)


def metrics_from_text(text: str) -> Metrics:
    """Return the metrics of `metrics_to_text`; unknown keys raise."""
    values = json.loads(text)
    tasks = {
        name: TaskResult(**{**result, "correct": tuple(c == "1" for c in result["correct"])})
        for name, result in values.pop("tasks").items()
    }
    return Metrics(**values, tasks=tasks)
