"""Where names stand beside their points: the first free of a few places, so that names never
cover each other.

Works in shares of the picture, as the browser decides its real size; names that find no free
place stand where
they cover least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Spot = tuple[float, float]

WIDTH, HEIGHT = 760.0, 380.0
"""Pixels of the drawing area that placing assumes."""
CHARACTER, LINE = 6.4, 14.0
"""Pixels of one character and of one line at the size of the labels."""
POINT = 9.0
"""Pixels around a point that its neighbours' names leave free."""
_PLACES = (
    (12, -14),
    (12, 14),
    (-12, -14),
    (-12, 14),
    (14, 0),
    (-14, 0),
    (12, -30),
    (12, 30),
    (-12, -30),
    (-12, 30),
    (24, -46),
    (24, 46),
)
"""Offsets of a name's near end from its point; pixels, right and down."""


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, across) * max(0.0, down)

    def outside(self) -> float:
        gone = max(0.0, -self.left) + max(0.0, self.right - WIDTH)
        return gone * LINE + (max(0.0, -self.top) + max(0.0, self.bottom - HEIGHT)) * WIDTH


def place(
    names: Sequence[str],
    spots: Sequence[Spot],
    points: Sequence[Spot],
    wall: float | None = None,
) -> list[dict[str, object]]:
    """Return one Plotly annotation per name.

    Args:
        names: What is written.
        spots: Data coordinates of the named points.
        points: Data coordinates of all points, which names should not cover.
        wall: Where a line from top to bottom stands, which names should not cross.
    """
    if not names:
        return []
    to_pixels = _scale(points)
    taken = [_around(to_pixels(point)) for point in points]
    if wall is not None:
        at = to_pixels((wall, points[0][1]))[0]
        taken.append(_Box(at - 3, 0.0, at + 3, HEIGHT))
    made = []
    for name, spot in zip(names, spots, strict=True):
        here = to_pixels(spot)
        boxes = {offset: _box(here, offset, len(name)) for offset in _PLACES}
        best = min(boxes, key=lambda o: (_cost(boxes[o], taken), _PLACES.index(o)))
        taken.append(boxes[best])
        made.append(_annotation(name, spot, best))
    return made


def _cost(box: _Box, taken: Sequence[_Box]) -> float:
    return sum(box.overlap(other) for other in taken) + 4 * box.outside()


def _scale(points: Sequence[Spot]) -> Callable[[Spot], Spot]:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low_x, low_y = min(xs), min(ys)
    span_x, span_y = max(xs) - low_x or 1.0, max(ys) - low_y or 1.0

    def to_pixels(spot: Spot) -> Spot:
        x, y = (spot[0] - low_x) / span_x, (spot[1] - low_y) / span_y
        return (0.06 + 0.88 * x) * WIDTH, (0.94 - 0.88 * y) * HEIGHT

    return to_pixels


def _around(at: Spot) -> _Box:
    return _Box(at[0] - POINT, at[1] - POINT, at[0] + POINT, at[1] + POINT)


def _box(at: Spot, offset: tuple[int, int], n_characters: int) -> _Box:
    length = n_characters * CHARACTER
    near = at[0] + offset[0]
    left = near if offset[0] > 0 else near - length
    middle = at[1] + offset[1]
    return _Box(left, middle - LINE / 2, left + length, middle + LINE / 2)


def _annotation(name: str, spot: Spot, offset: tuple[int, int]) -> dict[str, object]:
    far = abs(offset[1]) > 20
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
