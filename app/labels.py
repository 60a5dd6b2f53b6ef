"""Where names stand beside their points: the first free of a few places, so that names never
cover each other.

Works in shares of the picture, as the browser decides its real size; names that find no free
place stand where they cover least. Arrays throughout, as ten thousand points may be in the way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Spot = tuple[float, float]
Floats = NDArray[np.float64]

WIDTH, HEIGHT = 900.0, 400.0
"""Pixels of the drawing area that placing assumes."""
CHARACTER, LINE = 6.4, 15.0
"""Pixels of one character and of one line at the size of the labels."""
POINT = 9.0
"""Pixels around a point that its neighbours' names leave free."""
_OUTSIDE, _FAR = 4.0, 0.35
"""What a pixel beyond the picture, and a pixel between point and name, count against a pixel that
is covered."""
_STEPS = (14, 30, 46, 64, 84)
_PLACES = (
    *((side * 12, up * 14) for side in (1, -1) for up in (-1, 1)),
    *((side * 14, 0) for side in (1, -1)),
    *(
        (side * (12 + 6 * i), up * far)
        for i, far in enumerate(_STEPS[1:])
        for side in (1, -1)
        for up in (-1, 1)
    ),
    *((side * far, up * 14) for far in (40, 72, 104) for side in (1, -1) for up in (-1, 1)),
)
"""Offsets of a name's near end from its point; pixels, right and down."""


def place(
    names: Sequence[str],
    spots: Sequence[Spot],
    points: Sequence[Spot] | Floats,
    wall: float | None = None,
) -> list[dict[str, object]]:
    """Return one Plotly annotation per name.

    Args:
        names: What is written; tags such as ``<b>`` take no room.
        spots: Data coordinates of the named points.
        points: Data coordinates of all points, which names should not cover; ``(n_points, 2)``.
        wall: Where a line from top to bottom stands, which names should not cross.
    """
    if not names:
        return []
    everything = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    pixels, here = to_pixels(everything, everything), to_pixels(everything, np.array(spots))
    taken = np.concatenate((pixels - POINT, pixels + POINT), axis=1)
    if wall is not None:
        at = to_pixels(everything, np.array([[wall, everything[0, 1]]]))[0, 0]
        taken = np.vstack((taken, [at - 3, 0.0, at + 3, HEIGHT]))
    made = []
    for name, spot, pixel in zip(names, spots, here, strict=True):
        found = boxes(pixel, shown_length(name))
        best = int(np.argmin(_cost(found, taken)))
        taken = np.vstack((taken, found[best]))
        made.append(_annotation(name, spot, _PLACES[best]))
    return made


def shown_length(name: str) -> int:
    """Return the characters of a name that take room."""
    return len(re.sub(r"<[^>]*>", "", name))


def to_pixels(points: Floats, spots: Floats) -> Floats:
    """Return where spots stand in a picture that holds these points; pixels from its upper left
    corner, ``(n_spots, 2)``.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    shares = (spots - low) / span
    return np.column_stack(
        ((0.06 + 0.88 * shares[:, 0]) * WIDTH, (0.94 - 0.88 * shares[:, 1]) * HEIGHT)
    )


def boxes(at: Floats, n_characters: int) -> Floats:
    """Return what a name covers at each place: left, top, right, bottom, ``(n_places, 4)``."""
    offsets = np.array(_PLACES, dtype=np.float64)
    length = n_characters * CHARACTER
    near = at[0] + offsets[:, 0]
    left = np.where(offsets[:, 0] > 0, near, near - length)
    middle = at[1] + offsets[:, 1]
    return np.column_stack((left, middle - LINE / 2, left + length, middle + LINE / 2))


def overlaps(found: Floats, taken: Floats) -> Floats:
    """Return the pixels that boxes share, ``(n_boxes, n_taken)``."""
    low = np.maximum(found[:, None, :2], taken[None, :, :2])
    high = np.minimum(found[:, None, 2:], taken[None, :, 2:])
    shared: Floats = np.clip(high - low, 0.0, None).prod(axis=2)
    return shared


def outside(found: Floats) -> Floats:
    """Return the pixels of boxes beyond the picture, ``(n_boxes,)``."""
    wide = np.clip(-found[:, 0], 0, None) + np.clip(found[:, 2] - WIDTH, 0, None)
    tall = np.clip(-found[:, 1], 0, None) + np.clip(found[:, 3] - HEIGHT, 0, None)
    gone: Floats = wide * LINE + tall * (found[:, 2] - found[:, 0])
    return gone


def _cost(found: Floats, taken: Floats) -> Floats:
    far = np.abs(np.array(_PLACES, dtype=np.float64)).sum(axis=1)
    low, high = found[:, :2].min(axis=0), found[:, 2:].max(axis=0)
    near = ((taken[:, :2] < high) & (taken[:, 2:] > low)).all(axis=1)
    covered = overlaps(found, taken[near]).sum(axis=1)
    cost: Floats = covered + _OUTSIDE * outside(found) + _FAR * far
    return cost


def _annotation(name: str, spot: Spot, offset: tuple[int, int]) -> dict[str, object]:
    far = max(abs(offset[0]), abs(offset[1])) > 20
    return {
        "x": spot[0],
        "y": spot[1],
        "text": name,
        "font": {"size": 11},
        "showarrow": True,
        "arrowhead": 0,
        "arrowwidth": 1 if far else 0.1,
        "arrowcolor": "rgba(139, 152, 169, 0.7)" if far else "rgba(0, 0, 0, 0)",
        "ax": offset[0],
        "ay": offset[1],
        "xanchor": "left" if offset[0] > 0 else "right",
        "yanchor": "middle",
    }
