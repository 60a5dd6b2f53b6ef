"""The loss of recovery, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from app import charts_base, palette

SMOOTHING = 8
"""Steps in the running mean beside the raw losses."""


def losses(values: Sequence[float], n_steps: int, before: float | None = None) -> go.Figure:
    """Return the training loss so far against the step, raw and smoothed."""
    made = charts_base.figure(340)
    steps = list(range(1, len(values) + 1))
    made.add_trace(
        go.Scatter(
            x=steps,
            y=list(values),
            mode="lines+markers" if len(values) <= 3 else "lines",
            name="training loss per step",
            line={"color": palette.MUTED, "width": 1},
            hovertemplate="step %{x}: %{y:.3f} nats/token<extra></extra>",
        )
    )
    if len(values) > SMOOTHING:
        window = np.ones(SMOOTHING) / SMOOTHING
        made.add_trace(
            go.Scatter(
                x=steps[SMOOTHING - 1 :],
                y=np.convolve(values, window, mode="valid"),
                mode="lines",
                name=f"mean of {SMOOTHING} steps",
                line={"color": palette.TRIAL, "width": 2.5},
                hovertemplate="step %{x}: %{y:.3f} nats/token<extra></extra>",
            )
        )
    if before is not None:
        made.add_hline(
            y=before,
            line={"color": palette.SLATE, "dash": "dash", "width": 1.5},
            annotation={"text": "held-out loss before", "font": {"size": 11}, "xanchor": "right"},
        )
    made.update_xaxes(title="Optimiser step", range=[0.5, max(n_steps, 2) + 0.5], tickformat="d")
    made.update_yaxes(title="Loss, nats/token (measured)", automargin=True)
    return made
