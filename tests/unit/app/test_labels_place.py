from __future__ import annotations

import numpy as np
import pytest

from app import labels


def boxes(names: list[str], spots: list[tuple[float, float]]) -> np.ndarray:
    """Return what the placed names cover, one row each."""
    at = np.array(spots)
    found = []
    for name, spot, note in zip(names, spots, labels.place(names, spots, spots), strict=True):
        pixel = labels.to_pixels(at, np.array([spot]))[0]
        place = labels._PLACES.index((note["ax"], note["ay"]))
        found.append(labels.boxes(pixel, labels.shown_length(name))[place])
    return np.array(found)


def covered(found: np.ndarray) -> float:
    """Return the pixels that different boxes share."""
    shared = labels.overlaps(found, found)
    return float(shared.sum() - np.trace(shared))


def test_names_of_points_that_stand_close_do_not_cover_each_other() -> None:
    spots = [(4.4, 1.50), (4.8, 1.50), (5.2, 1.48), (9.4, 1.47), (3.2, 1.72)]
    found = boxes(["QPruner-3", "QPruner-2", "uniform int8", "LLM-Pruner (16 bit)", "x"], spots)
    assert covered(found) == pytest.approx(0, abs=1e-6)


def test_names_of_points_in_a_heap_do_not_cover_each_other() -> None:
    spots = [(5.0 + 0.02 * i, 1.5 + 0.001 * i) for i in range(8)] + [(1.0, 1.0), (9.0, 3.0)]
    found = boxes([f"baseline number {i}" for i in range(10)], spots)
    assert covered(found) == pytest.approx(0, abs=1e-6)


def test_tags_take_no_room() -> None:
    assert labels.shown_length("<b>A</b> trial 7") == len("A trial 7")


def test_ten_thousand_points_in_the_way_make_no_loop() -> None:
    points = np.random.default_rng(0).random((10_000, 2))
    (note,) = labels.place(["a name"], [tuple(points[0])], points)
    assert note["text"] == "a name"


def test_a_name_at_the_right_edge_stays_inside_the_picture() -> None:
    spots = [(0.0, 0.0), (1.0, 1.0)]
    found = boxes(["left", "a name of quite some length"], spots)
    assert labels.outside(found).sum() == 0


def test_a_name_does_not_cross_the_budget_line_where_another_place_is_free() -> None:
    spots = [(0.0, 0.0), (0.48, 0.5), (1.0, 1.0)]
    (note,) = labels.place(["a plan with a name"], spots[1:2], spots, wall=0.5)
    assert note["xanchor"] == "right"


@pytest.mark.parametrize("names", [[], ["alone"]])
def test_no_name_and_one_name_work(names: list[str]) -> None:
    spots = [(1.0, 1.0)] * len(names)
    assert len(labels.place(names, spots, spots)) == len(names)
