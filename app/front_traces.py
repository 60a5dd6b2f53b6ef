"""What stands on the picture of a front: the marks of every run, vectorised, as there may be ten
thousand of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import floor, log2

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from app import palette, points, wording
from app.clouds import Cloud, Floats, Mask
from app.points import Point

N_SVG = 3_000
"""Marks of a trace up to which the browser draws them one by one; without a graphics card that is
quicker than the making of a WebGL context, which every redraw needs anew.
"""
N_RATIOS = 6
"""Pruning ratios that have a mark each; with more of them the words over a point say it."""
_RATIO_MARKS = ("circle", "square", "cross", "triangle-right", "pentagon", "x")
_LOOKS = {
    points.BASELINE: ("baselines", "diamond", 11),
    points.REFERENCE: ("reference", "star", 13),
}
_COLUMNS = ("run", "number", "size", "loss", "accuracy", "error", "latency", "pruned")
"""Columns of a trial's ``customdata``, in order."""


def drawn(at: Floats, cost: str) -> Floats:
    """Return costs as the axis has them: bytes, or milliseconds."""
    return 1000.0 * at if cost == "latency" else at


def key_of(customdata: object, run_ids: tuple[str, ...]) -> str | None:
    """Return the key of a clicked point; None where it carries no plan.

    Args:
        customdata: As the browser sends it: a text, or numbers in the order of the columns.
        run_ids: Runs of the picture, in the order of `Cloud.run_ids`.
    """
    if isinstance(customdata, Mapping):
        customdata = [customdata[key] for key in sorted(customdata, key=int)]
    if isinstance(customdata, list | tuple | np.ndarray) and len(customdata) > 1:
        run = int(customdata[0])
        return f"{run_ids[run]}:{int(customdata[1])}" if run < len(run_ids) else None
    text = str(customdata[0] if isinstance(customdata, list | tuple) else customdata)
    return None if text.endswith(":None") else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where points stand: far ones at the edge, as triangles that name their value."""

    objective: str
    cost: str
    low: float
    """Lowest value that stands in its true place."""
    high: float
    """Highest one."""

    @property
    def _pad(self) -> float:
        return 0.05 * ((self.high - self.low) or 0.1)

    @property
    def range(self) -> tuple[float, float]:
        """Ends of the axis."""
        return self.low - 2 * self._pad, self.high + 2 * self._pad

    def across(self, found: Cloud) -> Floats:
        """Return where points are drawn across: bytes, or milliseconds."""
        return drawn(found.cost(self.cost), self.cost)

    def places(self, found: Cloud) -> Floats:
        """Return the heights at which points are drawn."""
        at = found.value(self.objective)
        below, above = self.low - self._pad, self.high + self._pad
        return np.where(at < self.low, below, np.where(at > self.high, above, at))

    def outside(self, found: Cloud) -> Mask:
        """Return which points stand at an edge."""
        at = found.value(self.objective)
        return (at < self.low) | (at > self.high)

    def symbols(self, found: Cloud, usual: str) -> str | list[str]:
        """Return the usual mark; one per point where some are the triangles of an edge."""
        at = found.value(self.objective)
        if not self.outside(found).any():
            return usual
        marks = np.where(at < self.low, "triangle-down", "triangle-up")
        return [str(mark) for mark in np.where(self.outside(found), marks, usual)]

    def name(self, point: Point) -> str:
        """Return the point's name, with its value where its place does not tell it."""
        one = Cloud.of([point])
        if not self.outside(one).any():
            return point.name
        at = float(one.value(self.objective)[0])
        words = wording.nats(at) if self.objective == "loss" else wording.percent(at)
        return f"{point.name}: {words}"


def marks(found: Cloud, frame: Frame) -> Iterator[go.Scatter]:
    """Give the marks of all runs: trials, baselines and references, each run in its colour."""
    several = len(found.ratios) > 1
    for position, run_id in enumerate(found.run_ids):
        mine = found.of_run(run_id) if len(found.run_ids) > 1 else found
        colour = palette.run_colour(position)
        yield from _trials(mine, position, frame, several=several)
        few = mine.where(mine.is_kind(points.PLAN) & mine.is_named)
        if len(few):
            yield _told_apart(few, frame, ("by hand", "hexagon", 11), colour)
        for kind, look in _LOOKS.items():
            shown = mine.where(mine.is_kind(kind))
            if len(shown):
                yield _told_apart(shown, frame, look, colour)


def _trials(mine: Cloud, position: int, frame: Frame, *, several: bool) -> Iterator[go.Scatter]:
    """Give the trials of a run; one trace per pruning ratio where there are a few."""
    trials = mine.where(mine.is_kind(points.PLAN) & ~mine.is_named)
    ratios = trials.ratios if 1 < len(trials.ratios) <= N_RATIOS else ()
    for number, ratio in enumerate(ratios or (None,)):
        shown = trials if ratio is None else trials.where(trials.pruned == ratio)
        if not len(shown):
            continue
        known = trials.ratios[0] if len(trials.ratios) == 1 else ratio
        words = f", pruned {wording.percent(known, 0)}" if several and known is not None else ""
        yield _many(
            _true_marks_first(shown, frame),
            position,
            frame,
            (f"{shown[0].run_name}: trials{words}", _RATIO_MARKS[number]),
        )


def _many(shown: Cloud, position: int, frame: Frame, look: tuple[str, str]) -> go.Scatter:
    """Return points whose words over them are put together by the browser, from numbers."""
    name, symbol = look
    power = floor(log2(max(float(shown.weight_bytes.max()), 1.0)) / 10)
    unit = 2.0 ** (10 * power)
    table = np.column_stack(
        (
            np.full(len(shown), position),
            shown.numbers,
            shown.weight_bytes / unit,
            shown.value("loss"),
            100.0 * np.nan_to_num(shown.accuracy),
            100.0 * np.nan_to_num(shown.standard_error),
            1000.0 * np.nan_to_num(shown.latency),
            100.0 * np.nan_to_num(shown.pruned),
        )
    ).astype(np.float32)
    made = go.Scatter if len(shown) <= N_SVG else go.Scattergl
    return made(
        x=_light(frame.across(shown)),
        y=_light(frame.places(shown)),
        mode="markers",
        name=name,
        marker={"symbol": frame.symbols(shown, symbol), "size": 8}
        | _paint(palette.run_colour(position)),
        customdata=table,
        hovertemplate=_template(shown, wording.size(unit).split()[-1]),
        selected={"marker": {"opacity": 0.95}},
        unselected={"marker": {"opacity": 0.85}},
    )


def _template(shown: Cloud, unit: str) -> str:
    """Return what a person reads over a trial; every number is measured."""
    at = {name: f"customdata[{column}]" for column, name in enumerate(_COLUMNS)}
    lines = [
        f"<b>trial %{{{at['number']}:d}}</b> · {shown[0].run_name}",
        f"%{{{at['size']}:.2f}} {unit}",
        f"loss %{{{at['loss']}:.3f}} nats",
    ]
    if not np.isnan(shown.accuracy).all():
        lines.append(f"accuracy %{{{at['accuracy']}:.1f}} % ± %{{{at['error']}:.1f}} points")
    if not np.isnan(shown.latency).all():
        lines.append(f"%{{{at['latency']}:.3g}} ms per generated token")
    if len(shown.ratios) > 1:
        lines.append(f"pruned by %{{{at['pruned']}:.0f}} %, mean over layers")
    lines.append(f"measured on {shown[0].metrics.device}")
    return "<br>".join(lines) + "<extra></extra>"


def _told_apart(shown: Cloud, frame: Frame, look: tuple[str, str, int], colour: str) -> go.Scatter:
    """Return a few points with names and words of their own."""
    word, symbol, size = look
    shown = _true_marks_first(shown, frame)
    return go.Scatter(
        x=frame.across(shown),
        y=frame.places(shown),
        mode="markers",
        name=f"{shown[0].run_name}: {word}",
        marker={"symbol": frame.symbols(shown, symbol), "size": size} | _paint(colour),
        customdata=[point.key for point in shown],
        hovertext=[points.hover(point) for point in shown],
        hoverinfo="text",
        selected={"marker": {"opacity": 0.95}},
        unselected={"marker": {"opacity": 0.85}},
    )


def _true_marks_first(shown: Cloud, frame: Frame) -> Cloud:
    """Return the points in an order in which the legend, which shows the mark of the first, does
    not show the triangle of an edge.
    """
    outside = frame.outside(shown)
    if not outside[:1].any() or outside.all():
        return shown
    return Cloud.joined([shown.where(~outside), shown.where(outside)])


def _paint(colour: str) -> dict[str, object]:
    return {"color": colour, "opacity": 0.85, "line": {"width": 0}}


def _light(values: Floats) -> NDArray[np.float32]:
    """Return values with the digits that a screen can show, in half the bytes."""
    return values.astype(np.float32)
