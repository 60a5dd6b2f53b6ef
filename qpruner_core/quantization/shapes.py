"""Which widths a precision carries; asked before anything is quantised. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable

from qpruner_core.catalog import PRECISIONS, precision_formats
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.errors import BadInputError, IncompatibleShapeError

_NAMED = 8
"""Offending Linears with all their numbers in one message; the others follow by name."""


def check_shapes(layout: ModelLayout, precisions: Iterable[str]) -> None:
    """Refuse precisions that some Linear of the model cannot carry.

    Raises:
        UnknownNameError: A precision has no catalogue entry.
        IncompatibleShapeError: Blocks do not divide the input columns; every Linear is named.
    """
    pairs = [(linear.name, name) for name in precisions for linear in layout.linears]
    _check_pairs(layout, pairs)


def check_plan(layout: ModelLayout, plan: PrecisionPlan) -> None:
    """Refuse a plan that does not give each Linear of the model one precision that it can carry.

    Raises:
        BadInputError: A Linear of the model is left out, or one is named that the model lacks.
        UnknownNameError: A precision has no catalogue entry.
        IncompatibleShapeError: Blocks do not divide the input columns; every Linear is named.
    """
    here = {linear.name for linear in layout.linears}
    missing, strange = here - plan.precisions.keys(), plan.precisions.keys() - here
    if missing or strange:
        raise BadInputError(
            f"The precision plan leaves out {len(missing)} Linears of this model "
            f"({', '.join(sorted(missing)[:3]) or 'none'}) and names {len(strange)} that it does "
            f"not have ({', '.join(sorted(strange)[:3]) or 'none'}). Make a plan for the model as "
            f"it is pruned now."
        )
    _check_pairs(layout, list(plan.precisions.items()))


def _check_pairs(layout: ModelLayout, pairs: list[tuple[str, str]]) -> None:
    """Check (Linear name, precision) pairs against the catalogue's formats."""
    for name in {precision for _, precision in pairs}:
        PRECISIONS.entry(name)
    formats = precision_formats()
    columns = {linear.name: linear.in_features for linear in layout.linears}
    offending = [
        (name, precision, columns[name], formats[precision].block_size)
        for name, precision in pairs
        if formats[precision].block_size and columns[name] % formats[precision].block_size
    ]
    if offending:
        raise IncompatibleShapeError(_describe(offending))


def _describe(offending: list[tuple[str, str, int, int]]) -> str:
    shown = ", ".join(
        f"{name!r} ({width} input columns, {width % block} left over)"
        for name, _, width, block in offending[:_NAMED]
    )
    others = [repr(name) for name, *_ in offending[_NAMED:]]
    blocks = sorted({block for *_, block in offending})
    names = sorted({precision for _, precision, *_ in offending})
    return (
        f"{', '.join(names)} stores blocks of {', '.join(map(str, blocks))} weights, which do not "
        f"divide the input columns of {', '.join((shown, *others))}. Prune in multiples of "
        f"{', '.join(map(str, blocks))} (MLP channels, and query heads times head size), or "
        f"leave {', '.join(names)} out of the precisions, as in int8 and bf16 alone."
    )
