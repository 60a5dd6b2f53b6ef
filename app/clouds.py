"""Points with their numbers in one array, so that a picture of ten thousand needs no loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from app import points
from app.points import Point
from qpruner_core.domain.metrics import Metrics

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_BYTES, _LOSS, _ACCURACY, _ERROR, _SPEED, _TRAINING, _NUMBER, _KIND, _PLAN, _NAMED, _PRUNED = (
    range(N_COLUMNS := 11)
)
_KINDS = (points.PLAN, points.BASELINE, points.REFERENCE)


class Cloud(Sequence[Point]):
    """Measured candidates of one or several runs, and their numbers as arrays of shape
    ``(n_points,)``.

    What was not measured is NaN.
    """

    def __init__(self, found: Iterable[Point], table: Floats | None = None) -> None:
        self._points = tuple(found)
        if table is not None:
            self._table = table

    @classmethod
    def of(cls, found: Sequence[Point]) -> Cloud:
        """Return points as a cloud; one that is a cloud already stays as it is."""
        return found if isinstance(found, Cloud) else cls(found)

    @classmethod
    def joined(cls, clouds: Sequence[Cloud]) -> Cloud:
        """Return the points of several clouds in one."""
        if len(clouds) == 1:
            return clouds[0]
        tables = [cloud._table for cloud in clouds] or [np.zeros((0, N_COLUMNS))]
        return cls((p for cloud in clouds for p in cloud._points), np.concatenate(tables))

    def where(self, mask: Mask) -> Cloud:
        """Return the points for which a mask of shape ``(n_points,)`` is true."""
        if mask.all():
            return self
        kept = (self._points[i] for i in np.flatnonzero(mask))
        return Cloud(kept, self._table[mask])

    def __len__(self) -> int:
        return len(self._points)

    @overload
    def __getitem__(self, index: int) -> Point: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Point, ...]: ...
    def __getitem__(self, index: int | slice) -> Point | tuple[Point, ...]:
        return self._points[index]

    def __iter__(self) -> Iterator[Point]:
        return iter(self._points)

    @cached_property
    def _table(self) -> Floats:
        rows = [_row(point) for point in self._points]
        return np.array(rows, dtype=np.float64).reshape(-1, N_COLUMNS)

    @property
    def weight_bytes(self) -> Floats:
        """Packed weights; bytes."""
        return self._table[:, _BYTES]

    @property
    def accuracy(self) -> Floats:
        """Mean accuracy; in [0, 1], NaN without tasks."""
        return self._table[:, _ACCURACY]

    @property
    def standard_error(self) -> Floats:
        """Standard error of the accuracy; in [0, 0.5], NaN without tasks."""
        return self._table[:, _ERROR]

    @property
    def latency(self) -> Floats:
        """Seconds per generated token."""
        return self._table[:, _SPEED]

    @property
    def numbers(self) -> Floats:
        """Number of the trial; NaN for references."""
        return self._table[:, _NUMBER]

    @property
    def pruned(self) -> Floats:
        """Pruning ratio, its mean over layers in a joint search; NaN where it is not known."""
        return self._table[:, _PRUNED]

    @cached_property
    def ratios(self) -> tuple[float, ...]:
        """Pruning ratios of the points that carry a plan, ascending, each once."""
        found = np.unique(self.pruned[self.has_plan])
        return tuple(float(ratio) for ratio in found[~np.isnan(found)])

    def of_run(self, run_id: str) -> Cloud:
        """Return the points of one run."""
        return self.where(np.array([point.run_id == run_id for point in self._points], bool))

    @cached_property
    def run_ids(self) -> tuple[str, ...]:
        """Runs of the points, each once, in the order in which they come."""
        return tuple(dict.fromkeys(point.run_id for point in self._points))

    @cached_property
    def runs(self) -> Floats:
        """Position in `run_ids` of every point's run."""
        at = {run_id: float(position) for position, run_id in enumerate(self.run_ids)}
        return np.array([at[point.run_id] for point in self._points], dtype=np.float64)

    def cost(self, cost: str) -> Floats:
        """Return what the points cost, as in `SearchSpec.cost`; bytes, or seconds per token."""
        column = {"weight_bytes": _BYTES, "training_memory": _TRAINING, "latency": _SPEED}[cost]
        return self._table[:, column]

    def value(self, objective: str) -> Floats:
        """Return loss or accuracy, as they are drawn upwards."""
        found = self._table[:, _LOSS if objective == "loss" else _ACCURACY]
        return np.nan_to_num(found) if objective == "accuracy" else found

    def badness(self, objective: str) -> Floats:
        """Return what an objective minimises."""
        return self.value(objective) if objective == "loss" else -self.value(objective)

    def is_kind(self, kind: str) -> Mask:
        """Return which points are of a kind, such as `points.BASELINE`."""
        found: Mask = self._table[:, _KIND] == _KINDS.index(kind)
        return found

    @property
    def has_plan(self) -> Mask:
        """Which points carry a plan."""
        return self._table[:, _PLAN] > 0

    @property
    def is_named(self) -> Mask:
        """Which trials have a name of their own, such as plans by hand."""
        return self._table[:, _NAMED] > 0

    def find(self, key: str | None) -> Point | None:
        """Return the point of that key."""
        index = self.position(key)
        return None if index is None else self._points[index]

    def position(self, key: str | None) -> int | None:
        """Return where the point of that key stands; None where there is none."""
        run_id, _, number = (key or "").rpartition(":")
        if not number.lstrip("-").isdigit():
            return None
        same = np.flatnonzero(self.numbers == int(number))
        return next((int(i) for i in same if self._points[i].run_id == run_id), None)

    def front(self, objective: str, cost: str = "weight_bytes") -> list[int]:
        """Return the indices of the non-dominated among points that carry a plan and have that
        cost, by ascending cost; of equal points the first.
        """
        costs, bad = self.cost(cost), self.badness(objective)
        able = np.flatnonzero(self.has_plan & ~np.isnan(costs))
        order = able[np.lexsort((able, bad[able], costs[able]))]
        if not len(order):
            return []
        lowest = np.minimum.accumulate(bad[order])
        better = np.append(True, bad[order][1:] < lowest[:-1])
        return [int(i) for i in order[better]]


def _row(point: Point) -> tuple[float, ...]:
    metrics = point.metrics
    has_tasks = bool(metrics.tasks or metrics.accuracy)
    nan = float("nan")
    return (
        metrics.weight_bytes,
        metrics.loss,
        metrics.accuracy if has_tasks else nan,
        metrics.standard_error if has_tasks else nan,
        _latency(metrics),
        metrics.training_bytes or nan,
        nan if point.number is None else point.number,
        _KINDS.index(point.kind),
        point.plan is not None,
        point.kind == points.PLAN and point.name != points.trial_name(point.number),
        nan if point.pruned is None else point.pruned,
    )


def _latency(metrics: Metrics) -> float:
    speed = metrics.decode_tokens_per_second
    return 1.0 / speed if speed else float("nan")
