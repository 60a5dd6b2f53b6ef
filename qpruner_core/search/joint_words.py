"""Whether a byte is better saved by pruning or by bits: what measured plans of different pruning
say, in one sentence.

Plans come from one joint search or from several runs of one model with different ratios. At a few
budgets the best plan that is pruned least is held against the best of all that are pruned more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, sqrt

from qpruner_core.domain.footprint import bits_per_weight, format_bytes
from qpruner_core.domain.joint import removed_share
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import Trial
from qpruner_core.search.noise import RESOLVED, paired_error

ALIKE = 0.005
"""Shares of removed parameters that differ by less count as one ratio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JointPoint:
    """One measured plan, as the sentence needs it."""

    weight_bytes: int
    """Packed bytes of the whole model."""
    badness: float
    """Loss in nats per token, or one minus the accuracy."""
    removed: float
    """Share of all parameters that pruning removed; in [0, 1)."""
    bits: float
    """Mean bits per weight that is left, scales and tables included."""
    sequence_losses: tuple[float, ...] = ()
    """Loss of every evaluation sequence, for plans measured on the same text; empty if unknown."""
    error: float | None = None
    """Standard error of the badness by itself, used where no sequence losses are known."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """The best of both kinds under a budget."""

    budget: int
    least: JointPoint
    """Best of those pruned least."""
    more: JointPoint
    """Best of all others."""


def joint_points(
    trials: Iterable[Trial],
    dense: ModelLayout,
    layout_of: Callable[[PrecisionPlan], ModelLayout],
    objective: str = "loss",
    sequence_losses: Mapping[str, tuple[float, ...]] | None = None,
) -> tuple[JointPoint, ...]:
    """Return the measured plans of one run as points; those of several runs may be put together.

    Args:
        trials: Trials and baselines; those that were not measured are left out.
        dense: The model before pruning.
        layout_of: Returns the layout of the model under a plan, as `SearchSpace.layout_of`.
        objective: As in `SearchSpec.objective`.
        sequence_losses: `PrecisionPlan.key` -> losses, as `Study.sequence_losses`; only for loss.
    """
    known = sequence_losses or {}
    found = []
    for trial in trials:
        metrics = trial.metrics
        if metrics is None or trial.state != "complete":
            continue
        layout = layout_of(trial.plan)
        by_loss = objective == "loss"
        found.append(
            JointPoint(
                weight_bytes=metrics.weight_bytes,
                badness=metrics.loss if by_loss else 1.0 - metrics.accuracy,
                removed=removed_share(dense, layout),
                bits=bits_per_weight(layout, metrics.weight_bytes),
                sequence_losses=known.get(trial.plan.key, ()) if by_loss else (),
                error=None if by_loss else metrics.standard_error,
            )
        )
    return tuple(found)


def compared(points: Sequence[JointPoint]) -> frozenset[JointPoint]:
    """Return the points whose difference `joint_sentence` tells, so that the losses sequence by
    sequence are read of these alone.
    """
    least, more = _kinds(points)
    pairs = _pairs(least, more) if least and more else []
    return frozenset(point for pair in pairs for point in (pair.least, pair.more))


def joint_sentence(points: Sequence[JointPoint], objective: str = "loss") -> str:
    """Return one sentence on pruning against precision; empty where nothing was measured.

    A difference is named with its winner only where it exceeds two standard errors, or where none
    is known, which is said then. Errors of two plans by themselves are added in quadrature, as if
    they had answered different items: too large rather than too small.

    Args:
        points: Measured plans, in any order.
        objective: As in `SearchSpec.objective`: what `JointPoint.badness` counts.
    """
    if not points:
        return ""
    least, more = _kinds(points)
    if not more:
        lowest = min(point.removed for point in points)
        return (
            f"Only plans {_ratio_words(lowest)} were measured, so the data do not say whether "
            f"pruning or precision saves a byte better."
        )
    pairs = _pairs(least, more)
    clauses = [_clause(pair, objective) for pair in pairs]
    if any(_error(pair) is None for pair in pairs):
        clauses.append("no standard error of these differences is known")
    clauses += _below(least, more)
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def _kinds(points: Sequence[JointPoint]) -> tuple[list[JointPoint], list[JointPoint]]:
    """Return the points that are pruned least, and all others."""
    lowest = min((point.removed for point in points), default=0.0)
    least = [point for point in points if point.removed <= lowest + ALIKE]
    return least, [point for point in points if point.removed > lowest + ALIKE]


def _pairs(least: Sequence[JointPoint], more: Sequence[JointPoint]) -> list[_Pair]:
    """Return the best of both kinds at three measured sizes at most: the smallest that both reach,
    the largest that still changes one of them, and one between; equal pairs once.
    """
    first = max(min(point.weight_bytes for point in kind) for kind in (least, more))
    last = max(first, *(_best(kind).weight_bytes for kind in (least, more)))
    between = [p.weight_bytes for p in (*least, *more) if p.weight_bytes <= sqrt(first * last)]
    found: list[_Pair] = []
    for budget in sorted({first, max([first, *between]), last}):
        pair = _Pair(budget, _best(least, budget), _best(more, budget))
        if not found or (pair.least, pair.more) != (found[-1].least, found[-1].more):
            found.append(pair)
    return found


def _best(points: Sequence[JointPoint], budget: int | None = None) -> JointPoint:
    """Return the best point within a budget; of equal ones the smallest."""
    fitting = [p for p in points if budget is None or p.weight_bytes <= budget]
    return min(fitting, key=lambda point: (point.badness, point.weight_bytes))


def _error(pair: _Pair) -> float | None:
    """Return the standard error of the difference of a pair; None where it is not known."""
    first, second = pair.least, pair.more
    n_sequences = len(first.sequence_losses)
    if n_sequences > 1 and n_sequences == len(second.sequence_losses):
        return paired_error(first.sequence_losses, second.sequence_losses).error
    if first.error is None or second.error is None:
        return None
    return hypot(first.error, second.error)


def _clause(pair: _Pair, objective: str) -> str:
    gap, error = pair.least.badness - pair.more.badness, _error(pair)
    where = f"at {format_bytes(pair.budget)}"
    if gap == 0.0 or (error is not None and abs(gap) <= RESOLVED * error):
        return (
            f"{where} the data cannot tell: the best plans {_with_bits(pair.least)} and "
            f"{_with_bits(pair.more)} differ by {_amount(gap, objective)}"
            + ("" if error is None else ", no more than two standard errors")
        )
    winner, other = (pair.more, pair.least) if gap > 0.0 else (pair.least, pair.more)
    spread = "" if error is None else f" (standard error {_number(error, objective)})"
    return (
        f"{where} the best plan {_verb(winner.removed)} at {winner.bits:.1f} bits and beats the "
        f"best {_with_bits(other)} by {_amount(gap, objective)}{spread}"
    )


def _below(least: Sequence[JointPoint], more: Sequence[JointPoint]) -> list[str]:
    """Say which kind alone was measured below what both reach."""
    smallest = [min(point.weight_bytes for point in kind) for kind in (least, more)]
    if smallest[0] == smallest[1]:
        return []
    where = format_bytes(max(smallest))
    if smallest[1] < smallest[0]:
        return [f"below {where} only plans that are pruned more were measured"]
    return [f"below {where} only plans {_ratio_words(least[0].removed)} were measured"]


def _share(removed: float) -> str:
    return f"{removed:.0%}" if removed >= 0.1 else f"{removed:.1%}"


def _ratio_words(removed: float) -> str:
    if removed < ALIKE:
        return "without pruning"
    return f"with {_share(removed)} of the parameters pruned"


def _verb(removed: float) -> str:
    return "prunes nothing" if removed < ALIKE else f"prunes {_share(removed)}"


def _with_bits(point: JointPoint) -> str:
    return f"{_ratio_words(point.removed)} ({point.bits:.1f} bits)"


def _number(value: float, objective: str) -> str:
    return f"{abs(value):.3f}" if objective == "loss" else f"{100 * abs(value):.1f}"


def _amount(value: float, objective: str) -> str:
    unit = "nats" if objective == "loss" else "points of accuracy"
    return f"{_number(value, objective)} {unit}"
