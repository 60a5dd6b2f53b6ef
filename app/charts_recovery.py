"""Pictures of recovery: the loss step by step, and what training takes in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from app import charts_base, palette, wording
from qpruner_core.domain.device_memory import TrainingBytes
from qpruner_core.domain.progress import Progress

SMOOTHING = 8
"""Steps in the running mean beside the raw losses."""
PARTS = {
    "weights": ("weights", palette.SLATE),
    "adapter": ("adapters, optimiser", palette.TRIAL),
    "activations": ("activations", palette.RUNS[1]),
    "logits": ("logits", palette.RUNS[4]),
    "workspace": ("workspace", palette.MUTED),
}
"""Part of `TrainingBytes` -> its name on screen and its colour."""


def by_step(told: Iterable[Progress]) -> dict[int, float]:
    """Return step -> loss of the newest training, from all that was reported, oldest first.

    A training that goes on from a checkpoint reports the steps after it once more: what was
    reported of these before does not count. One that begins anew begins at its first step.
    """
    found: dict[int, float] = {}
    for progress in told:
        if "loss" in progress.values:
            kept = {step: loss for step, loss in found.items() if step < progress.done}
            found = {**kept, progress.done: progress.values["loss"]}
    return found


def losses(
    values: Mapping[int, float], n_steps: int, heldout: Mapping[str, float] | None = None
) -> go.Figure:
    """Return the training loss so far against the step, raw and smoothed.

    Args:
        values: Step, from 1 -> training loss; nats per token.
        n_steps: All steps.
        heldout: Word such as ``before`` -> loss on held-out text, drawn as a line across.
    """
    made = charts_base.figure(340)
    steps = sorted(values)
    raw = [values[step] for step in steps]
    made.add_trace(
        go.Scatter(
            x=steps,
            y=raw,
            mode="lines+markers" if len(steps) <= 3 else "lines",
            name="training loss per step",
            line={"color": palette.MUTED, "width": 1},
            hovertemplate="step %{x}: %{y:.3f} nats/token<extra></extra>",
        )
    )
    if len(steps) > SMOOTHING:
        window = np.ones(SMOOTHING) / SMOOTHING
        made.add_trace(
            go.Scatter(
                x=steps[SMOOTHING - 1 :],
                y=np.convolve(raw, window, mode="valid"),
                mode="lines",
                name=f"mean of {SMOOTHING} steps",
                line={"color": palette.TRIAL, "width": 2.5},
                hovertemplate="step %{x}: %{y:.3f} nats/token<extra></extra>",
            )
        )
    _heldout_lines(made, heldout or {})
    made.update_xaxes(title="Optimiser step", range=[0.5, max(n_steps, 2) + 0.5], tickformat="d")
    made.update_yaxes(title="Loss, nats/token (measured)", automargin=True)
    return made


def _heldout_lines(made: go.Figure, heldout: Mapping[str, float]) -> None:
    """Draw lines across; the highest is named above its end and the others below their beginning,
    where the falling loss is not.
    """
    highest = max(heldout.values(), default=0.0)
    for word, loss in heldout.items():
        after = word != "before"
        made.add_hline(
            y=loss,
            line={
                "color": palette.EMERALD if after else palette.SLATE,
                "dash": "dash",
                "width": 1.5,
            },
            annotation={"text": f"held-out loss {word}: {loss:.3f}", "font": {"size": 11}},
            annotation_position="top right" if loss == highest else "bottom left",
        )


def memory(rows: Mapping[str, TrainingBytes]) -> go.Figure:
    """Return what training takes under each of some settings, by what it is spent on; estimated.

    Args:
        rows: Words for the settings -> their parts; the first is drawn on top.
    """
    made = charts_base.figure(104 + 46 * len(rows))
    names = list(rows)
    for part, (word, colour) in PARTS.items():
        sizes = [getattr(each, part) for each in rows.values()]
        made.add_trace(
            go.Bar(
                y=names,
                x=sizes,
                orientation="h",
                name=word,
                marker={"color": colour},
                customdata=[wording.size(size) for size in sizes],
                hovertemplate=f"%{{y}}<br>{word}: %{{customdata}} (estimated)<extra></extra>",
            )
        )
    for name, each in rows.items():
        made.add_annotation(_over_bar(name, each.total))
    axis = charts_base.byte_axis([each.total for each in rows.values()], "", from_zero=True)
    legend = {"traceorder": "normal", "font": {"size": 11}}
    made.update_layout(barmode="stack", bargap=0.6, legend=legend)
    made.update_xaxes(**axis)
    made.update_yaxes(autorange="reversed", showticklabels=False)
    return made


def _over_bar(name: str, total: int) -> dict[str, object]:
    """Return what stands over a bar: beside it, names would leave it too little room."""
    return {
        "x": 0,
        "y": name,
        "text": f"{name}: <b>{wording.size(total)}</b>",
        "showarrow": False,
        "xanchor": "left",
        "yshift": 17,
        "font": {"size": 11},
    }


def numbered(values: Sequence[float]) -> dict[int, float]:
    """Return step, from 1 -> loss of a finished training."""
    return dict(enumerate(values, start=1))
