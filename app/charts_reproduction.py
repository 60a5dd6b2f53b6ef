"""The memory-accuracy picture of the paper's table: one symbol per variant, one colour per
ratio.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from app import charts_base, palette, tables_reproduction, wording
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.reproduction import VARIANTS, Reproduction, ReproductionRow

HEIGHT, LEFT = 440, 70
SYMBOLS = dict(zip(VARIANTS, ("square", "circle", "diamond", "star"), strict=True))
SIZES = {"star": 15}
USUAL_SIZE = 12
TRAINING, INFERENCE = "training", "inference"
MEMORIES = {TRAINING: "Training memory", INFERENCE: "Weights to run"}
AXES = {
    TRAINING: "Memory of recovery, measured",
    INFERENCE: "Weights and float32 adapter, measured",
}


def memory_of(row: ReproductionRow, memory: str) -> int | None:
    """Return what a row takes; bytes, None where it was not measured."""
    return row.training_bytes if memory == TRAINING else row.recovery.after.weight_bytes


def memory_accuracy(reproduction: Reproduction, memory: str) -> go.Figure:
    """Return the measured accuracy, without tasks the loss, of every row against its memory.

    Args:
        reproduction: The table as far as it has come; rows without measured memory have no mark.
        memory: ``TRAINING`` or ``INFERENCE``.
    """
    made = charts_base.figure(HEIGHT)
    by_accuracy = _has_tasks(reproduction)
    drawn = [row for row in reproduction.rows if memory_of(row, memory) is not None]
    for place, ratio in enumerate(reproduction.spec.ratios):
        rows = [row for row in drawn if row.ratio == ratio]
        if rows:
            made.add_trace(_ratio_key(ratio, palette.run_colour(place)))
            made.add_trace(_marks(rows, memory, palette.run_colour(place), by_accuracy))
    present = {row.variant for row in drawn}
    for variant in (name for name in VARIANTS if name in present):
        made.add_trace(_key(variant))
    if reproduction.dense is not None:
        _dense_line(made, _value(reproduction.dense, by_accuracy))
    sizes = [float(memory_of(row, memory) or 0) for row in drawn]
    if sizes:
        made.update_xaxes(**charts_base.byte_axis(sizes, AXES[memory]), zeroline=False)
    better = "higher" if by_accuracy else "lower"
    name = "Mean zero-shot accuracy" if by_accuracy else "Loss, nats/token"
    made.update_yaxes(title=f"{name} ({better} is better)", zeroline=False)
    if by_accuracy:
        made.update_yaxes(tickformat=".0%")
    made.update_layout(margin={"l": LEFT, "b": 40, "r": 12, "t": 52})
    return made


def _marks(
    rows: Sequence[ReproductionRow], memory: str, colour: str, by_accuracy: bool
) -> go.Scatter:
    """Return the rows of one ratio with their standard errors."""
    symbols = [SYMBOLS[row.variant] for row in rows]
    after = [row.recovery.after for row in rows]
    return go.Scatter(
        x=[memory_of(row, memory) for row in rows],
        y=[_value(metrics, by_accuracy) for metrics in after],
        mode="markers",
        name=_ratio_name(rows[0].ratio),
        legendgroup=_ratio_name(rows[0].ratio),
        showlegend=False,
        marker={
            "color": colour,
            "symbol": symbols,
            "size": [SIZES.get(symbol, USUAL_SIZE) for symbol in symbols],
        },
        error_y={
            "type": "data",
            "array": [metrics.standard_error for metrics in after],
            "visible": by_accuracy,
            "thickness": 1,
            "width": 4,
            "color": colour,
        },
        customdata=[_hover(row, by_accuracy) for row in rows],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _ratio_name(ratio: float) -> str:
    return f"pruned by {tables_reproduction.ratio_words(ratio)}"


def _ratio_key(ratio: float, colour: str) -> go.Scatter:
    """Return the entry of the legend that says which colour a ratio has: a line, as symbols say
    which variant.
    """
    return go.Scatter(
        x=[None],
        y=[None],
        mode="lines",
        name=_ratio_name(ratio),
        legendgroup=_ratio_name(ratio),
        line={"color": colour, "width": 6},
        hoverinfo="skip",
    )


def _key(variant: str) -> go.Scatter:
    """Return the entry of the legend that says which symbol a variant has."""
    symbol = SYMBOLS[variant]
    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        name=variant,
        marker={
            "color": palette.MUTED,
            "symbol": symbol,
            "size": SIZES.get(symbol, USUAL_SIZE),
        },
        hoverinfo="skip",
    )


def _dense_line(made: go.Figure, value: float) -> None:
    """Draw how the model answers before pruning; it is not trained, so it has no memory here."""
    made.add_hline(
        y=value,
        line={"color": palette.SLATE, "dash": "dot", "width": 1.5},
        annotation={
            "text": "before pruning",
            "font": {"size": 11, "color": palette.MUTED},
            "yanchor": "bottom",
        },
        annotation_position="top left",
    )


def _hover(row: ReproductionRow, by_accuracy: bool) -> str:
    after, peak = row.recovery.after, row.training_bytes
    answers = (
        f"{wording.percent(after.accuracy)} ± {100 * after.standard_error:.1f} accuracy<br>"
        if by_accuracy
        else ""
    )
    trained = f"{wording.size(peak)} to train<br>" if peak is not None else ""
    return (
        f"<b>{row.variant}</b>, {_ratio_name(row.ratio)}<br>{answers}"
        f"{wording.nats(after.loss)} per token<br>{trained}{wording.size(after.weight_bytes)} "
        f"to run<br>measured on {after.device}"
    )


def _value(metrics: Metrics, by_accuracy: bool) -> float:
    return metrics.accuracy if by_accuracy else metrics.loss


def _has_tasks(reproduction: Reproduction) -> bool:
    return any(row.recovery.after.tasks for row in reproduction.rows)
