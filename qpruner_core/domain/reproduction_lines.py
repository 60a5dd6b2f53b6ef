"""The lines of the paper's table: what is compared with what, before anybody writes it down."""

from __future__ import annotations

from dataclasses import dataclass

from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.paired import Paired, paired
from qpruner_core.domain.reproduction import VARIANTS, Reproduction, ReproductionRow

DENSE = "dense (16 bit)"
"""What the row before pruning is called."""
REFERENCE, SUBJECT = VARIANTS[0], VARIANTS[-1]
"""Whose training memory the others are held against, and who is compared with the others."""
CLAIMED_SAVING = 0.3
"""Share of the training memory that the paper's abstract says is saved, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """QPruner-3 held against another line."""

    mean: float
    """Its mean accuracy over the tasks minus that of the other; in [-1, 1]."""
    test: Paired
    """Over all items together: where tasks have different numbers of items, its difference is not
    that of the means, and may even have the other sign."""

    @property
    def agrees(self) -> bool:
        """Whether both differences have the same sign."""
        return self.mean * self.test.difference > 0.0

    @property
    def differs(self) -> bool:
        """Whether one of the two is called better: the test tells them apart, and the means say
        the same.
        """
        return self.test.differs and self.agrees


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table, whatever it is written as."""

    ratio: float
    variant: str
    metrics: Metrics
    """After recovery."""
    inference_bytes: int
    """What inference holds: the weights, and the adapter as it is stored, in float32."""
    plan_bytes: int | None = None
    """Weights without the adapter, see `weights_words`; None for the dense model."""
    training_bytes: int | None = None
    """Measured; None where nothing was trained."""
    estimated_training_bytes: int | None = None
    saving: float | None = None
    """Share of the training memory of LLM-Pruner at the same ratio that is saved; below 0 where it
    takes more."""
    estimated_saving: float | None = None
    """The same of the estimates."""
    compared: Compared | None = None
    """QPruner-3 against this line, on the same items."""


def lines(table: Reproduction) -> tuple[Line, ...]:
    """Return what is measured so far: the dense model, then the rows by ratio."""
    found = [
        _line(table, row)
        for ratio in table.spec.ratios
        for name in VARIANTS
        if (row := table.row(ratio, name)) is not None
    ]
    if table.dense is None:
        return tuple(found)
    dense = Line(
        ratio=0.0,
        variant=DENSE,
        metrics=table.dense,
        inference_bytes=table.dense.weight_bytes,
    )
    return (dense, *found)


def task_names(table: Reproduction) -> tuple[str, ...]:
    """Return the tasks that some line was scored on, in order."""
    named = (name for line in lines(table) for name in line.metrics.tasks)
    return tuple(dict.fromkeys(named))


def weights_words(table: Reproduction) -> str:
    """Return what weights without an adapter are in a setting: what is packed, or where 8-bit
    layers hold 16-bit weights besides, what is held.
    """
    return "held" if table.spec.setting == "script" else "packed"


def compared(subject: Metrics, other: Metrics) -> Compared | None:
    """Return how two lines differ; None where they share no items."""
    test = paired(subject, other)
    return None if test is None else Compared(mean=subject.accuracy - other.accuracy, test=test)


def _line(table: Reproduction, row: ReproductionRow) -> Line:
    reference, subject = table.row(row.ratio, REFERENCE), table.row(row.ratio, SUBJECT)
    after, saving, estimated, held_against = row.recovery.after, None, None, None
    if reference is not None and row.variant != REFERENCE:
        saving = _saving(row.training_bytes, reference.training_bytes)
        if saving is not None:
            base = reference.recovery.estimated_memory_bytes
            estimated = _saving(row.recovery.estimated_memory_bytes, base)
    if subject is not None and row.variant != SUBJECT:
        held_against = compared(subject.recovery.after, after)
    return Line(
        ratio=row.ratio,
        variant=row.variant,
        metrics=after,
        inference_bytes=after.weight_bytes,
        plan_bytes=row.weight_bytes,
        training_bytes=row.training_bytes,
        estimated_training_bytes=row.recovery.estimated_memory_bytes,
        saving=saving,
        estimated_saving=estimated,
        compared=held_against,
    )


def _saving(size: int | None, base: int | None) -> float | None:
    return 1.0 - size / base if size is not None and base else None
