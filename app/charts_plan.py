"""The layer map: which precision every Linear of every layer has under a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import plotly.graph_objects as go

from app import charts_base, palette, wording
from qpruner_core.catalog import PRECISIONS, precision_formats
from qpruner_core.domain.footprint import format_bytes
from qpruner_core.domain.layout import LinearLayout, ModelLayout
from qpruner_core.domain.plan import PrecisionPlan

N_NAMED_LAYERS = 16
"""Up to so many layers every cell also spells its precision."""

PRUNED = "pruned"
"""Name of the row with the pruning ratio of every layer."""

Cells = dict[tuple[int, str], list[LinearLayout]]
"""Layer and row of the map -> its Linears: one, or those that all experts have."""


def layer_map(
    layout: ModelLayout,
    plan: PrecisionPlan,
    marked: Collection[str] = (),
    ratios: Sequence[float] = (),
) -> go.Figure:
    """Return layers across and Linears down, one colour per precision; names in the cells where
    they fit. The experts of a layer share a cell, in the colour that most of them have.

    Args:
        layout: The model that the plan is for.
        plan: What is shown.
        marked: Linears whose cells are ringed, such as those that another plan gives another
            precision.
        ratios: Pruning ratio of every layer of a plan of a joint search, drawn as a row above.
    """
    cells = _cells(layout)
    rows = [*([PRUNED] if ratios else []), *dict.fromkeys(row for _, row in cells)]
    most = {key: _most_common(linears, plan) for key, linears in cells.items()}
    made = charts_base.figure(64 + 30 * len(rows))
    for name in (name for name in PRECISIONS.names() if name in set(most.values())):
        mine = [key for key in cells if most[key] == name]
        title, colour = PRECISIONS.entry(name).title, palette.precision_colour(name)
        made.add_trace(
            go.Bar(
                x=[layer for layer, _ in mine],
                y=[0.86] * len(mine),
                base=[rows.index(row) - 0.43 for _, row in mine],
                width=0.9,
                name=title,
                marker={"color": colour, "line": {"width": 0}},
                text=[title if layout.n_layers <= N_NAMED_LAYERS else "" for _ in mine],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": palette.text_on(colour), "size": 11},
                hovertext=[_words(key, cells[key], plan) for key in mine],
                hoverinfo="text",
            )
        )
    if ratios:
        made.add_trace(_ratio_row(ratios))
    ringed = [key for key, linears in cells.items() if any(li.name in marked for li in linears)]
    if ringed:
        made.add_trace(_rings(ringed, rows))
    # Wide enough for the names of the rows: a margin that has to grow draws all twice.
    left = 24 + 7 * max(map(len, rows), default=0)
    made.update_layout(barmode="overlay", bargap=0, margin={"l": left})
    made.update_xaxes(
        title="Decoder layer",
        dtick=1 if layout.n_layers <= 24 else 4,
        range=[-0.55, layout.n_layers - 0.45],
        showgrid=False,
        zeroline=False,
    )
    made.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=rows,
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
        automargin=True,
    )
    return made


def _ratio_row(ratios: Sequence[float]) -> go.Bar:
    """Return the uppermost row: how much of every layer was pruned, greyer for more."""
    words = [wording.percent(ratio, 0) for ratio in ratios]
    shades = [f"rgba(139, 152, 169, {0.12 + 0.6 * ratio:.3f})" for ratio in ratios]
    return go.Bar(
        x=list(range(len(ratios))),
        y=[0.86] * len(ratios),
        base=[-0.43] * len(ratios),
        width=0.9,
        name="pruned",
        marker={"color": shades, "line": {"width": 0}},
        text=words if len(ratios) <= N_NAMED_LAYERS else [""] * len(ratios),
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"size": 11},
        hovertext=[f"layer {i}: pruned by {word}" for i, word in enumerate(words)],
        hoverinfo="text",
        showlegend=False,
    )


def _rings(keys: Sequence[tuple[int, str]], rows: Sequence[str]) -> go.Bar:
    """Return outlines of cells that differ from those of another plan."""
    return go.Bar(
        x=[layer for layer, _ in keys],
        y=[0.86] * len(keys),
        base=[rows.index(row) - 0.43 for _, row in keys],
        width=0.9,
        name="differs",
        marker={"color": "rgba(0, 0, 0, 0)", "line": {"width": 2.5, "color": palette.RING}},
        hoverinfo="skip",
    )


def _cells(layout: ModelLayout) -> Cells:
    """Return the cells of the map; a role that attention and MLP both have names its block."""
    blocks: dict[str, set[str]] = {}
    for linear in layout.linears:
        blocks.setdefault(linear.role, set()).add(linear.block)
    cells: Cells = {}
    for linear in layout.linears:
        shared = len(blocks[linear.role]) > 1
        row = f"{linear.block} {linear.role}" if shared else linear.role
        cells.setdefault((linear.layer, row), []).append(linear)
    return cells


def _precisions(linears: Iterable[LinearLayout], plan: PrecisionPlan) -> Counter[str]:
    found = (plan.precisions.get(linear.name) for linear in linears)
    return Counter(name for name in found if name is not None)


def _most_common(linears: Iterable[LinearLayout], plan: PrecisionPlan) -> str:
    """Return the most frequent precision; empty where the plan names none of the Linears."""
    counts = _precisions(linears, plan).most_common(1)
    return counts[0][0] if counts else ""


def _words(key: tuple[int, str], linears: list[LinearLayout], plan: PrecisionPlan) -> str:
    """Return what a person reads over a cell."""
    formats = precision_formats()
    counts = _precisions(linears, plan)
    size = sum(formats[plan.precisions[linear.name]].linear_bytes(linear) for linear in linears)
    titles = [PRECISIONS.entry(name).title for name in counts]
    if len(linears) == 1:
        what = f"{linears[0].out_features} x {linears[0].in_features}"
    else:
        titles = [f"{title} in {n}" for title, n in zip(titles, counts.values(), strict=True)]
        what = f"{len(linears)} experts"
    return f"layer {key[0]}, {key[1]}: {', '.join(titles)}<br>{what}, {format_bytes(size)}"
